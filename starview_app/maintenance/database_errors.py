"""Explains database errors to an operator, in one line and without secrets."""

import re

import psycopg2
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from psycopg2 import errors as postgres

from starview.database import UnusableDatabaseError
from starview_app.maintenance.text import one_line

_LINK = (
    "Render: link the PostgreSQL instance to this service, or correct DATABASE_URL, or"
    " the DB_ variables where it is not set"
)
# Parts of libpq's messages, since errors before a session begins have no SQLSTATE.
_CONNECT_HINTS = {
    "does not exist": _LINK,
    "password authentication failed": f"the user or password is wrong; {_LINK}",
    "could not translate host name": f"the host is unknown here; {_LINK}",
    "Connection refused": f"is the database running, on that host and port? {_LINK}",
    "No such file or directory": f"is the database running? {_LINK}",
    "timeout expired": "the host does not answer: is it in this service's region?",
    "starting up": "try again in a minute",
    "shutting down": "try again when it is back",
    "unsupported startup parameter": (
        "a pooler refuses it: remove it from DATABASE_URL, add it to the pooler's"
        " ignore_startup_parameters, or use the database's direct address"
    ),
    "query_wait_timeout": (
        "a pooler had no session of the server: raise its default_pool_size, or use the"
        " database's direct address"
    ),
    "idle-session timeout": "set idle_session_timeout = 0 for this database user",
    "transaction timeout": "raise transaction_timeout for this database user",
    "idle-in-transaction timeout": (
        "raise idle_in_transaction_session_timeout for this database user"
    ),
    "terminating connection": "the run was cut off; what it did is kept, run it again",
    "closed the connection": "the run was cut off; what it did is kept, run it again",
    "statement timeout": (
        "raise statement_timeout in DATABASE_URL, or for this database user"
    ),
    "lock timeout": "something else holds the rows or the table; run it again later",
    "remaining connection slots": "close idle connections, or take a larger plan",
    "does not support SSL": (
        "remove sslmode from DATABASE_URL, or set it to prefer; DB_HOST asks for TLS"
        " unless it is this machine, and DATABASE_URL can say otherwise"
    ),
    "too many": "close idle connections, or take a plan with more of them",
}


# SQLSTATEs of a lost connection, or of one that cannot be made.
_AWAY = ("08", "53300", "57P01", "57P02", "57P03", "57P04", "57P05")
# SQLSTATEs of errors that another attempt may not meet: also deadlocks and
# serialization failures, timeouts of a session, a lock or a query, and lack of memory.
_PASSING = (*_AWAY, "40", "25P03", "25P04", "53200", "55P03", "57014")


# The only data exception that quotes the value of a setting, and none of a row.
_PARAMETER = "22023"


def is_away(error: BaseException) -> bool:
    """Whether the database does not answer, as opposed to refusing a statement.

    An error of the driver itself has no SQLSTATE: there is no server, or the connection
    was lost, for which it raises a plain DatabaseError after a crash of the server.
    """
    return _is_one_of(error, _AWAY)


def refuses_rows(error: BaseException) -> bool:
    """Whether the database refused these rows, and may take others.

    A value, a constraint, or a trigger that raises.
    """
    code = getattr(error.__cause__, "pgcode", None)
    return str(code or "").startswith(("22", "23", "P0"))


def is_taken(error: BaseException) -> bool:
    """Whether another row has the name, or the number, that was to be unique."""
    return isinstance(error.__cause__, postgres.UniqueViolation)


def may_pass(error: BaseException) -> bool:
    """Whether the same statement may succeed later on a new connection."""
    return _is_one_of(error, _PASSING)


def _is_one_of(error: BaseException, states: tuple[str, ...]) -> bool:
    if isinstance(error.__cause__, UnusableDatabaseError):
        return False
    if code := getattr(error.__cause__, "pgcode", None):
        return str(code).startswith(states)
    is_bare = type(error) is DatabaseError
    return is_bare or isinstance(error, OperationalError | InterfaceError)


# A function of the database in the CONTEXT of an error.
_FUNCTION = re.compile(r'^(?:PL/\w+|SQL) function ("[^"\n]*"|[^\s(]+\([^)\n]*\))', re.M)


def message_of(error: BaseException) -> str:
    """Return the error's own message in one line, without the contents of rows.

    PostgreSQL's DETAIL and CONTEXT and the LINE of the statement may show them: names,
    IP addresses, metadata. So may the value that a data exception (SQLSTATE 22) quotes.
    """
    known = error if isinstance(error, psycopg2.Error) else error.__cause__
    if not isinstance(known, psycopg2.Error) or not known.diag.message_primary:
        return one_line(" ".join(str(error).split()))
    text = known.diag.message_primary
    if (known.pgcode or "").startswith("22") and known.pgcode != _PARAMETER:
        text = re.sub('".*"', '"..."', text, flags=re.S)
    if known.diag.message_hint:
        text += f" HINT: {known.diag.message_hint}"
    return one_line(" ".join(text.split()))


def hide_details(error: BaseException) -> None:
    """Let the error, and those that led to it, say in a traceback what `message_of`
    does.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    texts = []
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        left += [found.__cause__, found.__context__]
        if isinstance(found, DatabaseError | psycopg2.Error):
            texts.append((found, message_of(found)))
    for found, text in texts:
        found.args = (text,)


def in_one_line(error: BaseException) -> str:
    """Return the explanation of `explain`, or else the error's own message."""
    return explain(error) or message_of(error)


def explain(error: BaseException) -> str | None:
    """Return one line with a HINT if an operator can fix the error; None for a bug.

    After a lost session Django tries to connect again while it cleans up. The error of
    that hides the first one, which is the one that is explained.
    """
    earlier = error.__context__
    seen: set[int] = set()  # an error may be the context of its own context
    while earlier is not None and id(earlier) not in seen:
        seen.add(id(earlier))
        if isinstance(earlier, OperationalError) and _is_cut_off(earlier):
            error = earlier
        earlier = earlier.__context__
    cause = error.__cause__
    text = message_of(error) or type(cause or error).__name__
    if isinstance(cause, postgres.UndefinedTable):
        return (
            f"{text} HINT: the web service's tables are not in this"
            " database: it names the wrong one, or the web service has not migrated it"
        )
    if isinstance(cause, postgres.ReadOnlySqlTransaction):
        return (
            f"{text} HINT: DATABASE_URL names a read-only copy, or asks for read-only"
            " sessions in its options; use the primary, without that option"
        )
    if isinstance(cause, postgres.ForeignKeyViolation):
        return f"{text} HINT: rows of that other table refer to what should be deleted"
    if isinstance(cause, postgres.InsufficientPrivilege):
        if "row-level security" in text:
            return f"{text} HINT: connect as its owner, or as a user with BYPASSRLS"
        return f"{text} HINT: connect as the web service's database user"
    if isinstance(error, ProgrammingError) and "invalid dsn" in text:
        return f"database: {text} HINT: remove that option from DATABASE_URL"
    if function := _function_of(cause):
        return (
            f"{text} (in function {function}) HINT: a trigger in the database refuses"
            " it; ask who made it"
        )
    if isinstance(error, OperationalError) and " HINT: " in text:
        return f"database: {text}"
    if isinstance(error, OperationalError) or is_away(error):
        hint = next((hint for part, hint in _CONNECT_HINTS.items() if part in text), "")
        return f"database: {text}" + (f" HINT: {hint}" if hint else "")
    return None


def _function_of(cause: BaseException | None) -> str:
    """Return the function of the database in which the error arose, if it was one."""
    context = cause.diag.context if isinstance(cause, psycopg2.Error) else None
    found = _FUNCTION.search(context or "")
    return one_line(found[1]) if found else ""


def _is_cut_off(error: OperationalError) -> bool:
    text = str(error)
    return "terminating connection" in text or "closed the connection" in text

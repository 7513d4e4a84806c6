"""The settings of every database session of this project, set in one place.

A database or a role may have its own settings (`ALTER ROLE ... SET`), made for the web
service's short requests. `Session` replaces those that would end a job or change what
its statements mean. A setting that DATABASE_URL has in `options` is kept.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn, parse_dsn

ENCODING = "UTF8"

# No timeouts: the line in the crontab limits a job, which may also wait for a store or
# for a slow reader of its report.
_OF_TRANSACTIONS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",  # PostgreSQL 17
    # Fail if a policy hides rows: one of them may be what protects an account.
    "row_security": "off",
}
_OF_SESSIONS = {
    **_OF_TRANSACTIONS,
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",  # the archive keeps every digit
}
# psycopg2 reads this when the session begins, to quote text; it cannot be set later.
_STRINGS = "standard_conforming_strings"
_TRANSACTION_TIMEOUT_SINCE = 17_00_00
# How long a pooler may take to provide a session of the server.
ROOM_SECONDS = 10.0
_AUTOCOMMIT: Any = Connection.autocommit


class UnusableDatabaseError(psycopg2.OperationalError):
    """This database cannot be used, and waiting does not help."""


def connect(dsn: str) -> "Session":
    """Open a session; a connection factory for psycopg2."""
    session = Session(dsn)
    if session.info.parameter_status(_STRINGS) == "on":
        return session
    options = f"{session.info.options or ''} -c {_STRINGS}=on"
    session.close()
    try:
        return Session(make_dsn(dsn, options=options))
    except psycopg2.OperationalError as error:
        if "unsupported startup parameter" not in str(error):
            raise
        name = parse_dsn(dsn)["dbname"]
        raise UnusableDatabaseError(
            f"{name} sets {_STRINGS}=off, which a pooler does not let us change HINT:"
            f" ALTER DATABASE {name} RESET {_STRINGS}, the same for the role, or use"
            " the database's direct address"
        ) from error


class Session(Connection):
    """psycopg2's connection, with the settings that our statements need.

    `is_pooled` is True behind a pooler, which may give each transaction another session
    of the server (PgBouncer's mode `transaction`), and would pass a session's settings
    on to others. Then the settings are made for each transaction, and statements
    outside of a transaction have the database's settings.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        encoding = self.info.parameter_status("server_encoding")
        if encoding != ENCODING:
            name = self.info.dbname
            self.close()
            raise UnusableDatabaseError(
                f"the encoding of {name} is {encoding}, and what people write needs"
                f" {ENCODING} HINT: make a database WITH ENCODING"
                f" '{ENCODING}' TEMPLATE template0, restore a dump of this one into it,"
                " and name it in DATABASE_URL"
            )
        self._limits: dict[str, str] = {}
        _AUTOCOMMIT.__set__(self, True)
        self.is_pooled, self._is_read_only = self._set_for_session()
        _AUTOCOMMIT.__set__(self, False)

    @property
    def autocommit(self) -> bool:
        return bool(_AUTOCOMMIT.__get__(self))

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        _AUTOCOMMIT.__set__(self, value)
        if self.is_pooled and not value:
            with self.cursor() as cursor:
                cursor.execute(self.at_begin())

    def at_begin(self) -> str:
        """SQL for the begin of a transaction."""
        settings = {
            "transaction_isolation": "'read committed'",
            **({"transaction_read_only": "off"} if self._is_read_only else {}),
            **self._wanted(_OF_TRANSACTIONS),
            **self._limits,
        }
        return "; ".join(f"SET LOCAL {name} = {settings[name]}" for name in settings)

    def limit(self, *, lock_timeout: str, statement_timeout: str) -> None:
        """Limit the waits of this session; behind a pooler, those in transactions."""
        self._limits = {
            "lock_timeout": f"'{lock_timeout}'",
            "statement_timeout": f"'{statement_timeout}'",
        }
        if not self.is_pooled:
            with self.cursor() as cursor:
                cursor.execute(
                    "; ".join(
                        f"SET {name} = {limit}" for name, limit in self._limits.items()
                    )
                )

    @contextmanager
    def answers_in_time(self) -> Iterator[None]:
        """Cut off the session if the block takes longer than ROOM_SECONDS."""
        is_late = threading.Event()

        def cut_off() -> None:
            is_late.set()
            with socket.socket(fileno=os.dup(self.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(ROOM_SECONDS, cut_off)
        timer.daemon = True
        timer.start()
        try:
            yield
        except psycopg2.Error as error:
            if not is_late.is_set() and "query_wait_timeout" not in str(error):
                raise
            raise psycopg2.OperationalError(
                f"no session of the server within {ROOM_SECONDS:.0f} s HINT: a pooler"
                " has too few: raise its default_pool_size, 3 for each run and those of"
                " the web service, or use the database's direct address"
            ) from error
        finally:
            timer.cancel()

    # -- internal helpers ---------------------------------------------------------

    def _set_for_session(self) -> tuple[bool, bool]:
        """Set it up; return (is a pooler used, do its transactions begin read-only)."""
        # When a session begins, the server sends its process id; a pooler sends another
        # number. Behind a pooler the settings end with this statement.
        calls = "".join(
            f", set_config('{name}', '{value}', found.is_pooled)"
            for name, value in self._wanted(_OF_SESSIONS).items()
        )
        with self.answers_in_time(), self.cursor() as cursor:
            cursor.execute(
                f"SELECT found.* {calls} FROM (SELECT"
                " pg_backend_pid() <> %(pid)s,"
                " NOT pg_is_in_recovery()"
                " AND current_setting('default_transaction_read_only') = 'on'"
                " OFFSET 0) AS found (is_pooled, is_read_only)",
                {"pid": self.info.backend_pid},
            )
            is_pooled, is_read_only, *_ = cursor.fetchone() or (False, False)
        return is_pooled, is_read_only

    def _wanted(self, settings: dict[str, str]) -> dict[str, str]:
        asked_for = self.info.options or ""
        return {
            name: value
            for name, value in settings.items()
            if name not in asked_for
            and (
                name != "transaction_timeout"
                or self.server_version >= _TRANSACTION_TIMEOUT_SINCE
            )
        }


def server_ahead_seconds(cursor: Any) -> float:
    """Return by how much the server's clock is ahead of this machine's."""
    before = time.time()
    cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
    (server,) = cursor.fetchone()
    return float(server) - (before + time.time()) / 2

"""One section of a diagnosis: rows to show, and problems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.jobs.sessions.clear import Redis

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Rows with the same keys; `problems` are one line each."""

    title: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Situation:
    """The input of the checks, with the limits from which on something is a problem."""

    now: datetime
    host: str  # of the database, as configured; empty for a socket
    unverified_days: int
    link_days: int
    soft_bounce_days: int
    stale_days: int
    archive_days: int
    # For web sessions in Redis, which may not answer; None: they are not checked.
    redis: Redis | None = None
    session_prefix: str = ""
    # The names that the runs of a command have: {command: names}.
    names_of_runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    long_transaction: timedelta = timedelta(minutes=5)  # longer ones are listed
    too_long_transaction: timedelta = timedelta(hours=1)
    too_long_wait: timedelta = timedelta(minutes=1)
    # From this number on a problem, if they are also a fifth of their table.
    dead_rows: int = 100_000


Check = Callable[[Situation], Section]


def query(statement: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """Return the rows of a statement, as {column: value}."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters or {})
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def guarded(title: str, check: Check, situation: Situation) -> Section:
    """Run a check; if the database refuses a query, the section has that as problem."""
    try:
        return check(situation)
    except DatabaseError as error:
        if connection.connection is None or connection.connection.closed:
            raise  # without the database no other check is possible
        problem = f"{title} cannot be looked at: {message_of(error)}"
        return Section(title, problems=[problem])

"""One part of a diagnosis: rows to look at, and what is wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction

from starview_app.maintenance.jobs.sessions.clear import Redis

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Rows that all have the same keys; `problems` are one line each."""

    title: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Situation:
    """What the checks need to know, and from where on something is wrong."""

    now: datetime
    host: str  # of the database, as it is configured; empty for a socket
    unverified_days: int
    link_days: int
    soft_bounce_days: int
    stale_days: int
    archive_days: int
    # The sessions in Redis, which may not answer; None: nobody looks there.
    redis: Redis | None = None
    session_prefix: str = ""
    long_transaction: timedelta = timedelta(minutes=5)  # is listed
    too_long_transaction: timedelta = timedelta(hours=1)
    too_long_wait: timedelta = timedelta(minutes=1)
    # From so many on, if they are also a fifth of their table.
    dead_rows: int = 100_000


Check = Callable[[Situation], Section]


def query(statement: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows of a statement, each by the names of its columns."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters or {})
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def guarded(title: str, check: Check, situation: Situation) -> Section:
    """Its section; where the database refuses what it asks, that is the problem."""
    try:
        return check(situation)
    except DatabaseError as error:
        if connection.connection is None or connection.connection.closed:
            raise  # nothing more can be asked
        text = str(error).strip().splitlines()[0]
        return Section(title, problems=[f"{title} cannot be looked at: {text}"])

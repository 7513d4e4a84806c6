"""The record of a run in PostgreSQL: its claim, its output, its end."""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import DatabaseError, ProgrammingError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils import timezone
from psycopg2 import errors as postgres

from starview_app.maintenance.database_errors import may_pass
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.running import kept_endings
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.text import one_line

logger = structlog.get_logger(__name__)

KEEP_DAYS = 400
PRUNE_ROWS = 100  # deleted at the end of each run, which adds fewer
# How long recording the end of a run is tried again: a database may restart meanwhile.
FINISH_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
# A lock on our own tables must not delay a job for longer.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "20s"

Outcome = JobRun.Outcome

_PAUSED_UNTIL = """
    SELECT paused_until
    FROM maintenance_job
    WHERE name = %(job)s AND paused_until > %(now)s
"""
# The unique index jobrun_slot_once decides the claim. The statement may be repeated
# when the answer to it was lost: the id of the run is the same.
_CLAIM = """
    INSERT INTO maintenance_jobrun (
        run_id, job, slot, attempt, trigger, command, host, pid, started_at, seen_at,
        outcome, finished_at, seconds, exit_code, counts, output, error
    )
    SELECT
        %(run_id)s, %(job)s, %(slot)s, %(attempt)s, %(trigger)s, %(command)s,
        %(host)s, %(pid)s, %(now)s, now(),
        %(outcome)s, %(finished_at)s, %(seconds)s, %(exit_code)s, '{}', '', %(error)s
    WHERE NOT EXISTS (SELECT FROM maintenance_jobrun WHERE run_id = %(run_id)s)
    ON CONFLICT DO NOTHING
"""
# Our row, or the row of the run that has claimed the slot.
_FOUND = """
    SELECT id, run_id, host, pid, started_at, outcome
    FROM maintenance_jobrun
    WHERE
        run_id = %(run_id)s
        OR (job = %(job)s AND slot = %(slot)s AND attempt = %(attempt)s)
"""
# A process that writes is alive, even if its run was marked as crashed while its
# session was cut off: so the mark is taken back.
_SAVE_OUTPUT = """
    UPDATE maintenance_jobrun
    SET
        output = coalesce(%(output)s, output),
        seen_at = now(),
        outcome = 'running',
        finished_at = NULL,
        seconds = NULL,
        error = ''
    WHERE id = %(id)s
"""
_FINISH = """
    UPDATE maintenance_jobrun
    SET
        finished_at = %(finished_at)s,
        outcome = %(outcome)s,
        exit_code = %(exit_code)s,
        seconds = %(seconds)s,
        counts = %(counts)s,
        output = %(output)s,
        error = %(error)s
    WHERE run_id = %(run_id)s
"""
# Uses the indexes jobrun_by_time and jobrun_slot_once. What was run for a job's newest
# slot stays: without it catch-up would take that slot for missed, if the job is rare.
_PRUNE = """
    DELETE FROM maintenance_jobrun
    WHERE id IN (
        SELECT id
        FROM maintenance_jobrun AS run
        WHERE
            started_at < %(cutoff)s
            AND (
                (slot IS NULL AND trigger <> 'manual')
                OR EXISTS (
                    SELECT
                    FROM maintenance_jobrun AS newer
                    WHERE
                        newer.job = run.job
                        AND newer.slot > coalesce(run.slot, run.started_at)
                        AND newer.slot <= %(now)s  -- else a clock was ahead
                )
                OR NOT EXISTS (
                    SELECT
                    FROM maintenance_jobrun AS other
                    WHERE other.job = run.job AND other.slot IS NOT NULL
                )
            )
        ORDER BY started_at
        LIMIT %(rows)s
    )
"""


@dataclass(frozen=True)
class Taken:
    """Another run has claimed the slot; `text` describes it."""

    text: str


@dataclass(frozen=True)
class Paused:
    """The job is paused; the slot is recorded as skipped."""

    text: str


@dataclass(frozen=True)
class Ending:
    outcome: JobRun.Outcome
    exit_code: int
    seconds: float
    finished_at: datetime
    error: str
    counts: dict[str, int]
    output: str


class RunRecord:
    """The row of one run. Only the watching process writes it."""

    def __init__(self, request: RunRequest, run_id: uuid.UUID) -> None:
        self.id = 0
        self.run_id = run_id
        self._request = request
        self._started_at = timezone.now()
        self._saved = ""

    def begin(self, now: datetime) -> Taken | Paused | None:
        """Claim the slot, or return why that is not possible.

        A run without a slot is only recorded. Database errors are raised; `is_away` and
        `may_pass` classify them.
        """
        self._started_at = now
        return self._claim()

    def _claim(self, *, is_late: bool = False) -> Taken | Paused | None:
        try:
            return self._begin(is_late=is_late)
        except ProgrammingError as error:
            is_missing = isinstance(
                error.__cause__, postgres.UndefinedTable | postgres.UndefinedColumn
            )
            if not is_missing:
                raise
            create_own_tables()  # does nothing if another process was faster
            return self._begin(is_late=is_late)

    def save_output(self, output: str) -> None:
        """Save the output so far. A lost database session is replaced."""
        if not self.id:
            return
        is_new = output != self._saved
        parameters = {"id": self.id, "output": _storable(output) if is_new else None}
        try:
            if connection.connection is None:
                self._open_session()
            execute(_SAVE_OUTPUT, parameters)
        except DatabaseError as error:
            connection.close()
            if not may_pass(error):
                raise
            self._open_session()
            execute(_SAVE_OUTPUT, parameters)
        self._saved = output

    def finish(self, ending: Ending) -> Taken | None:
        """Record the end; retry for FINISH_SECONDS while the error may be temporary.

        A run that could not be claimed at its begin is claimed now, and Taken is
        returned if another run has the slot. From the first error until the end is
        recorded, a file keeps it for `settle`: this process may be killed meanwhile.
        Raises the last error.
        """
        give_up = time.monotonic() + FINISH_SECONDS
        is_kept = False
        while True:
            try:
                taken = None if self.id else self._claim(is_late=True)
                if isinstance(taken, Taken):
                    return taken
                write_ending(self.columns(ending))
                if is_kept:
                    kept_endings.forget(self.run_id.hex)
                return None
            except DatabaseError as error:
                connection.close()
                if not is_kept:
                    self._keep(ending)
                    is_kept = True
                if not may_pass(error) or time.monotonic() > give_up:
                    raise
                time.sleep(_PAUSE_SECONDS)

    # -- internal helpers ---------------------------------------------------------

    def _begin(self, *, is_late: bool) -> Taken | Paused | None:
        self._open_session()
        now = self._started_at
        request = self._request
        with transaction.atomic(), connection.cursor() as cursor:
            paused_until = None
            if request.slot:
                cursor.execute(_PAUSED_UNTIL, {"job": request.job, "now": now})
                (paused_until,) = cursor.fetchone() or (None,)
            # Only the schedule's punctual runs are skipped: `catch_up` looks for pauses
            # itself, a manual run is wanted, and what has run was not skipped.
            if request.trigger != JobRun.Trigger.SCHEDULE or is_late:
                paused_until = None
            cursor.execute(_CLAIM, self.row(now, paused_until))
            cursor.execute(_FOUND, self.row(now, None))
            number, run_id, *others = cursor.fetchone()
        if run_id != self.run_id:
            return Taken(_other(request, number, *others))
        self.id = number
        return Paused(_paused(paused_until)) if paused_until else None

    def row(
        self, now: datetime, paused_until: datetime | None = None
    ) -> dict[str, Any]:
        request = self._request
        paused = paused_until is not None
        return {
            "run_id": self.run_id,
            "job": request.job,
            "slot": request.slot,
            "attempt": request.attempt,
            "trigger": request.trigger.value,
            "command": _storable(request.command),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "now": now,
            "outcome": (Outcome.SKIPPED if paused else Outcome.RUNNING).value,
            "finished_at": now if paused else None,
            "seconds": 0.0 if paused else None,
            "exit_code": 0 if paused else None,
            "error": _paused(paused_until) if paused_until else "",
        }

    def _open_session(self) -> None:
        name = f"runner {self._request.job} {socket.gethostname()} pid {os.getpid()}"
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT set_config('application_name', %(name)s, false)",
                    {"name": name[:63]},
                )
            _limit_waits()
        except Exception:
            connection.close()
            raise

    def columns(self, ending: Ending) -> dict[str, Any]:
        return {
            "run_id": str(self.run_id),
            "finished_at": ending.finished_at.isoformat(),
            "outcome": ending.outcome.value,
            "exit_code": ending.exit_code,
            "seconds": ending.seconds,
            "counts": json.dumps(ending.counts),
            "output": _storable(ending.output),
            "error": _storable(ending.error),
        }

    def _keep(self, ending: Ending) -> None:
        if not self.id:
            return
        try:
            kept_endings.keep(self.run_id.hex, self.columns(ending))
        except OSError as error:
            logger.warning("ending_not_kept", error=one_line(error))


def write_ending(columns: dict[str, Any]) -> None:
    """Write an end with the columns of `RunRecord.columns`."""
    execute(_FINISH, columns)


def prune(now: datetime) -> None:
    """Delete up to PRUNE_ROWS runs that began more than KEEP_DAYS days ago.

    Runs of a job's newest slot, and manual ones since it, are kept.
    """
    cutoff = now - timedelta(days=KEEP_DAYS)
    execute(_PRUNE, {"cutoff": cutoff, "now": now, "rows": PRUNE_ROWS})


@contextmanager
def short_waits() -> Iterator[None]:
    """Let this process wait at most LOCK_TIMEOUT for a lock while the block runs."""

    def set_timeouts(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        _limit_waits()

    connection_created.connect(set_timeouts)
    try:
        if connection.connection is not None:
            set_timeouts(connection)
        yield
    finally:
        connection_created.disconnect(set_timeouts)


def _paused(until: datetime) -> str:
    return f"paused until {until:%Y-%m-%d %H:%M} UTC"


def _other(
    request: RunRequest,
    number: int,
    host: str,
    pid: int,
    started_at: datetime,
    outcome: str,
) -> str:
    return (
        f"{request.job}, slot {request.slot:%Y-%m-%d %H:%M} UTC, is taken: run {number}"
        f" on {host} pid {pid} since {started_at:%Y-%m-%d %H:%M:%S} UTC, {outcome}"
    )


def execute(statement: str, parameters: dict[str, Any]) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def _limit_waits() -> None:
    with connection.wrap_database_errors:
        connection.connection.limit(
            lock_timeout=LOCK_TIMEOUT, statement_timeout=STATEMENT_TIMEOUT
        )


def _storable(text: str) -> str:
    """Replace what PostgreSQL's `text` cannot hold: NUL and lone surrogates."""
    whole = text.encode("utf-8", errors="backslashreplace").decode()
    return whole.replace("\x00", "\\x00")

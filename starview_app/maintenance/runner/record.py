"""The record of a run in PostgreSQL: its claim, its output, its end."""

import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import OperationalError, ProgrammingError, connection
from psycopg2 import errors as postgres

from starview_app.maintenance.models import JobRun
from starview_app.maintenance.runner.request import RunRequest
from starview_app.maintenance.runner.tables import create_own_tables

EXIT_RUNNING = 75  # EX_TEMPFAIL of sysexits.h: another run of this job is under way
KEEP_DAYS = 400
PRUNE_ROWS = 100  # at the end of each run; more than any run adds
# How long the end of a run is tried to be recorded, through a restart of the database.
FINISH_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
# Waiting for a lock on our own tables must not hold up a job.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "20s"

Outcome = JobRun.Outcome

_OPEN_SESSION = """
    SELECT
        set_config('application_name', %(name)s, false),
        set_config('lock_timeout', %(lock_timeout)s, false),
        set_config('statement_timeout', %(statement_timeout)s, false),
        pg_advisory_lock(hashtextextended(%(key)s, 0))
"""
_PAUSED_UNTIL = """
    WITH seen AS (
        INSERT INTO maintenance_job (name, first_seen_at)
        VALUES (%(job)s, %(now)s)
        ON CONFLICT DO NOTHING
    )
    SELECT paused_until
    FROM maintenance_job
    WHERE name = %(job)s AND paused_until > %(now)s
"""
# By the unique index jobrun_slot_once.
_CLAIM = """
    INSERT INTO maintenance_jobrun (
        run_id, job, slot, attempt, trigger, command, host, pid, started_at,
        outcome, finished_at, seconds, exit_code, counts, output, error
    )
    VALUES (
        %(run_id)s, %(job)s, %(slot)s, %(attempt)s, %(trigger)s, %(command)s,
        %(host)s, %(pid)s, %(now)s,
        %(outcome)s, %(finished_at)s, %(seconds)s, %(exit_code)s, '{}', '', %(error)s
    )
    ON CONFLICT DO NOTHING
    RETURNING id
"""
_OTHER = """
    SELECT id, host, pid, started_at, outcome
    FROM maintenance_jobrun
    WHERE job = %(job)s AND slot = %(slot)s AND attempt = %(attempt)s
"""
_SAVE_OUTPUT = """
    UPDATE maintenance_jobrun
    SET output = %(output)s
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
    WHERE id = %(id)s
"""
# By the index jobrun_by_time.
_PRUNE = """
    DELETE FROM maintenance_jobrun
    WHERE id IN (
        SELECT id
        FROM maintenance_jobrun
        WHERE started_at < %(cutoff)s
        ORDER BY started_at
        LIMIT %(rows)s
    )
"""
# By the partial index jobrun_running. A process that has just begun holds its lock
# before its row is seen; ours are free again at the end of the statement.
_MARK_CRASHED = """
    WITH running AS MATERIALIZED (
        SELECT id, run_id
        FROM maintenance_jobrun
        WHERE outcome = 'running'
    )
    UPDATE maintenance_jobrun AS run
    SET
        outcome = 'crashed',
        finished_at = %(now)s,
        seconds = extract(epoch FROM %(now)s - run.started_at),
        error = %(error)s
    FROM running
    WHERE
        run.id = running.id
        AND run.outcome = 'running'
        AND pg_try_advisory_xact_lock(
            hashtextextended('starview-maintenance:run:' || running.run_id::text, 0)
        )
    RETURNING run.id, run.job
"""


@dataclass(frozen=True)
class Taken:
    """The slot has another run already; `text` says which."""

    text: str


@dataclass(frozen=True)
class Paused:
    """The job is paused; the slot is recorded as skipped."""

    text: str


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    outcome: JobRun.Outcome
    exit_code: int
    seconds: float
    finished_at: datetime
    error: str
    counts: dict[str, int]
    output: str


class RunRecord:
    """The row of one run, and the session that holds its lock.

    The lock is taken before the row is written, so that nobody takes the run for
    crashed; it is free when this process is gone.
    """

    def __init__(self, request: RunRequest, run_id: uuid.UUID) -> None:
        self.id = 0
        self.run_id = run_id
        self._request = request
        self._output = ""

    def begin(self, now: datetime) -> Taken | Paused | None:
        """Claim the slot, or say why not; a run without a slot is only recorded.

        Raises OperationalError when the database does not answer, and other errors of
        the database when the record could not be written.
        """
        try:
            return self._begin(now)
        except ProgrammingError as error:
            is_missing = isinstance(
                error.__cause__, postgres.UndefinedTable | postgres.UndefinedColumn
            )
            if not is_missing or not create_own_tables():
                raise
            return self._begin(now)

    def save_output(self, output: str) -> None:
        """What it has written so far; also notices, and mends, a lost session."""
        try:
            with connection.cursor() as cursor:
                if output == self._output or not self.id:
                    cursor.execute("SELECT 1")
                else:
                    cursor.execute(
                        _SAVE_OUTPUT, {"id": self.id, "output": _storable(output)}
                    )
        except OperationalError:
            connection.close()
            self._open_session()
        self._output = output

    def finish(self, ending: Ending) -> None:
        """Record the end, for FINISH_SECONDS through a database that is away."""
        give_up = time.monotonic() + FINISH_SECONDS
        while True:
            try:
                return self._finish(ending)
            except OperationalError:
                if time.monotonic() > give_up:
                    raise
                connection.close()
                time.sleep(_PAUSE_SECONDS)

    # -- internal helpers ---------------------------------------------------------

    def _begin(self, now: datetime) -> Taken | Paused | None:
        self._open_session()
        request = self._request
        with connection.cursor() as cursor:
            paused_until = None
            if request.slot:
                cursor.execute(_PAUSED_UNTIL, {"job": request.job, "now": now})
                (paused_until,) = cursor.fetchone() or (None,)
            if request.trigger != JobRun.Trigger.SCHEDULE:
                paused_until = None  # `catch_up` asks by itself, people know
            cursor.execute(_CLAIM, self._row(now, paused_until))
            row = cursor.fetchone()
            if row is None:
                cursor.execute(_OTHER, self._row(now, None))
                return Taken(_other(request, cursor.fetchone()))
        (self.id,) = row
        return Paused(_paused(paused_until)) if paused_until else None

    def _row(self, now: datetime, paused_until: datetime | None) -> dict[str, Any]:
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
        key = f"starview-maintenance:run:{self.run_id}"
        with connection.cursor() as cursor:
            cursor.execute(
                _OPEN_SESSION,
                {
                    "name": name[:63],
                    "key": key,
                    "lock_timeout": LOCK_TIMEOUT,
                    "statement_timeout": STATEMENT_TIMEOUT,
                },
            )

    def _finish(self, ending: Ending) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                _FINISH,
                {
                    "id": self.id,
                    "finished_at": ending.finished_at,
                    "outcome": ending.outcome.value,
                    "exit_code": ending.exit_code,
                    "seconds": ending.seconds,
                    "counts": json.dumps(ending.counts),
                    "output": _storable(ending.output),
                    "error": _storable(ending.error),
                },
            )
            cutoff = ending.finished_at - timedelta(days=KEEP_DAYS)
            cursor.execute(_PRUNE, {"cutoff": cutoff, "rows": PRUNE_ROWS})


def mark_crashed(now: datetime) -> list[tuple[int, str]]:
    """Mark the runs whose process is gone; returns their ids and jobs."""
    error = "its process is gone: it, or its container, was killed"
    with connection.cursor() as cursor:
        cursor.execute(_MARK_CRASHED, {"now": now, "error": error})
        return list(cursor.fetchall())


def _paused(until: datetime) -> str:
    return f"paused until {until:%Y-%m-%d %H:%M} UTC"


def _other(request: RunRequest, row: tuple[Any, ...]) -> str:
    number, host, pid, started_at, outcome = row
    return (
        f"{request.job}, slot {request.slot:%Y-%m-%d %H:%M} UTC, is taken: run {number}"
        f" on {host} pid {pid} since {started_at:%Y-%m-%d %H:%M:%S} UTC, {outcome}"
    )


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in a text."""
    return text.replace("\x00", "\\x00")

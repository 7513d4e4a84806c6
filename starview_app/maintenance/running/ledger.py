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

# Of sysexits.h. EX_UNAVAILABLE: without the database nothing was claimed, or run.
EXIT_UNCLAIMED = 69
EXIT_RUNNING = 75  # EX_TEMPFAIL: another run of this job is under way
_NOT_STARTED = (126, 127)  # of a shell, env or timeout
KEEP_DAYS = 400
PRUNE_ROWS = 100  # at the end of each run; more than any run adds
# How long the end of a run is tried to be recorded, through a restart of the database.
FINISH_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
# Waiting for a lock on our own tables must not hold up a job.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "20s"
# For a catch-up of the container that keeps the end of a run to come first.
RESTART_PATIENCE = "15 minutes"

Outcome = JobRun.Outcome

_PAUSED_UNTIL = """
    SELECT paused_until
    FROM maintenance_job
    WHERE name = %(job)s AND paused_until > %(now)s
"""
# By the unique index jobrun_slot_once; and once, although an answer may be lost.
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
# Ours, or the one that has the slot.
_FOUND = """
    SELECT id, run_id, host, pid, started_at, outcome
    FROM maintenance_jobrun
    WHERE
        run_id = %(run_id)s
        OR (job = %(job)s AND slot = %(slot)s AND attempt = %(attempt)s)
"""
# Who writes this is alive, whatever somebody thought while its session was cut off.
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
# By the index jobrun_of_job.
_TICK = """
    WITH last AS (
        SELECT id, outcome, error, counts
        FROM maintenance_jobrun
        WHERE job = %(job)s
        ORDER BY job, started_at DESC
        LIMIT 1
    ),
    tick AS (
        UPDATE maintenance_jobrun AS run
        SET
            run_id = %(run_id)s,
            trigger = %(trigger)s,
            host = %(host)s,
            pid = %(pid)s,
            started_at = %(now)s,
            finished_at = %(finished_at)s,
            seconds = %(seconds)s,
            counts = jsonb_build_object(
                'runs', 0, 'ticks', (last.counts ->> 'ticks')::bigint + 1
            )
        FROM last
        WHERE
            run.id = last.id
            AND last.outcome = %(outcome)s
            AND last.error = %(error)s
            AND (last.counts ->> 'runs')::bigint = 0
            AND %(runs)s = 0
        RETURNING run.id
    )
    INSERT INTO maintenance_jobrun (
        run_id, job, attempt, trigger, command, host, pid, started_at,
        outcome, finished_at, seconds, exit_code, counts, output, error
    )
    SELECT
        %(run_id)s, %(job)s, 1, %(trigger)s, %(command)s, %(host)s, %(pid)s, %(now)s,
        %(outcome)s, %(finished_at)s, %(seconds)s, %(exit_code)s,
        jsonb_build_object('runs', %(runs)s, 'ticks', 1), '', %(error)s
    WHERE NOT EXISTS (SELECT FROM tick)
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
# By the partial index jobrun_running. The process that works holds the run's lock, and
# the one that watches it writes every 5 s; a run of which neither is seen is gone.
_IS_SILENT = """
    outcome = 'running'
    AND coalesce(seen_at, started_at) < now() - interval '90 seconds'
    AND (
        seen_at IS NULL
        OR seen_at > pg_postmaster_start_time()
        OR pg_postmaster_start_time() < now() - %(restart_patience)s::interval
    )
"""
_RUN_KEY = "hashtextextended('starview-maintenance:run:' || run_id::text, 0)"
# When it was last seen: what came after that nobody paid for, or waited for.
_ENDED_AT = "coalesce(greatest(seen_at, started_at), %(now)s)"
# Ours are free again at the end of the transaction.
_MARK_CRASHED = f"""
    WITH silent AS MATERIALIZED (
        SELECT id, {_RUN_KEY} AS key
        FROM maintenance_jobrun
        WHERE {_IS_SILENT}
    )
    UPDATE maintenance_jobrun AS run
    SET
        outcome = 'crashed',
        finished_at = {_ENDED_AT},
        seconds = extract(epoch FROM {_ENDED_AT} - run.started_at),
        error = %(error)s
    FROM silent
    WHERE
        run.id = silent.id
        AND run.outcome = 'running'
        AND pg_try_advisory_xact_lock(silent.key)
    RETURNING run.id, run.job
"""
# For whom only looks: takes no lock.
_GONE = f"""
    SELECT run.id, {_ENDED_AT}, extract(epoch FROM {_ENDED_AT} - started_at)::float
    FROM maintenance_jobrun AS run
    WHERE {_IS_SILENT} AND NOT EXISTS (
        SELECT FROM pg_locks AS lock
        WHERE
            lock.locktype = 'advisory'
            AND lock.granted
            AND lock.objsubid = 1
            AND lock.database
                = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND ((lock.classid::bigint << 32) | lock.objid::bigint) = {_RUN_KEY}
    )
"""
_IS_GONE = "its process is gone: it, or its container, was killed"


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
    """The row of one run, written by the process that watches it."""

    def __init__(self, request: RunRequest, run_id: uuid.UUID) -> None:
        self.id = 0
        self.run_id = run_id
        self._request = request
        self._started_at = timezone.now()
        self._saved = ""

    def begin(self, now: datetime) -> Taken | Paused | None:
        """Claim the slot, or say why not; a run without a slot is only recorded.

        Raises errors of the database: `is_away` and `may_pass` tell them apart.
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
            create_own_tables()  # unless another has, meanwhile
            return self._begin(is_late=is_late)

    def save_output(self, output: str) -> None:
        """What it has written so far; also notices, and mends, a lost session."""
        if not self.id:
            return
        is_new = output != self._saved
        parameters = {"id": self.id, "output": _storable(output) if is_new else None}
        try:
            if connection.connection is None:
                self._open_session()
            _execute(_SAVE_OUTPUT, parameters)
        except DatabaseError as error:
            connection.close()
            if not may_pass(error):
                raise
            self._open_session()
            _execute(_SAVE_OUTPUT, parameters)
        self._saved = output

    def finish(self, ending: Ending) -> Taken | None:
        """Record the end, trying for FINISH_SECONDS what may pass.

        A run that could not be claimed is claimed now: then the slot may be taken. An
        end that cannot be recorded is kept for `settle`, and raises.
        """
        give_up = time.monotonic() + FINISH_SECONDS
        while True:
            try:
                taken = None if self.id else self._claim(is_late=True)
                if isinstance(taken, Taken):
                    return taken
                _execute(_FINISH, self._columns(ending))
                return None
            except DatabaseError as error:
                connection.close()
                if not may_pass(error) or time.monotonic() > give_up:
                    self._keep(ending)
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
            # `catch_up` asks by itself, people know, and what has run was not skipped.
            if request.trigger != JobRun.Trigger.SCHEDULE or is_late:
                paused_until = None
            cursor.execute(_CLAIM, self._row(now, paused_until))
            cursor.execute(_FOUND, self._row(now, None))
            number, run_id, *others = cursor.fetchone()
        if run_id != self.run_id:
            return Taken(_other(request, number, *others))
        self.id = number
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

    def _columns(self, ending: Ending) -> dict[str, Any]:
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
            kept_endings.keep(self.run_id.hex, self._columns(ending))
        except OSError as error:
            logger.warning("ending_not_kept", error=one_line(error))


def record_unbegun(
    request: RunRequest, *, exit_code: int, started_at: datetime, now: datetime
) -> None:
    """Record that a line ended without a record of its own, unless it has one.

    The shell did not find its program, for example: nobody else knows of it.
    """
    what = (
        f"its line in the crontab ended with {exit_code} before the job began"
        if exit_code in _NOT_STARTED
        else f"it ended with {exit_code} and left no record"
    )
    error = f"{what}: the container's log says why HINT: python manage.py jobs check"
    record = RunRecord(request, uuid.uuid4())
    if isinstance(record.begin(started_at), Taken):
        return
    seconds = round((now - started_at).total_seconds(), 3)
    record.finish(Ending(Outcome.FAILED, exit_code, seconds, now, error, {}, ""))


def record_tick(
    request: RunRequest, ending: Ending, *, started_at: datetime, runs: int
) -> None:
    """Record a tick of catch-up, which has begun so many runs.

    144 a day that did nothing would hide the rest: like ones share a row, which says
    how many they were and has the time of the last.
    """
    record = RunRecord(request, uuid.uuid4())
    parameters = {
        **record._row(started_at, None),
        **record._columns(ending),
        "runs": runs,
    }
    _execute(_TICK, parameters)


def prune(now: datetime) -> None:
    """Forget runs that began more than KEEP_DAYS ago, PRUNE_ROWS of them."""
    cutoff = now - timedelta(days=KEEP_DAYS)
    _execute(_PRUNE, {"cutoff": cutoff, "rows": PRUNE_ROWS})


@contextmanager
def short_waits() -> Iterator[None]:
    """Let no lock of somebody else hold up what this process asks of the database."""

    def set_timeouts(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        _limit_waits()

    connection_created.connect(set_timeouts)
    try:
        if connection.connection is not None:
            set_timeouts(connection)
        yield
    finally:
        connection_created.disconnect(set_timeouts)


def settle() -> None:
    """Record the ends that this container has kept while the database was away."""
    for run_id, columns in kept_endings.found().items():
        _execute(_FINISH, columns)
        kept_endings.forget(run_id)
        logger.info("run_settled", run_id=run_id[:12], outcome=columns["outcome"])


def mark_crashed(now: datetime) -> list[tuple[int, str]]:
    """Mark the runs whose process is gone, and log it; returns their ids and jobs."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_MARK_CRASHED, {**_as_of(now), "error": _IS_GONE})
        crashed: list[tuple[int, str]] = cursor.fetchall()
    for number, job in crashed:
        logger.error("run_crashed", job=job, run=number)
    return crashed


def gone_runs(now: datetime) -> dict[int, dict[str, Any]]:
    """The columns that `mark_crashed` would write now, by the run's id; only looks."""
    with connection.cursor() as cursor:
        cursor.execute(_GONE, _as_of(now))
        return {
            number: {
                "outcome": Outcome.CRASHED.value,
                "finished_at": ended_at,
                "seconds": seconds,
                "error": _IS_GONE,
            }
            for number, ended_at, seconds in cursor.fetchall()
        }


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


def _execute(statement: str, parameters: dict[str, Any]) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def _as_of(now: datetime) -> dict[str, Any]:
    return {"now": now, "restart_patience": RESTART_PATIENCE}


def _limit_waits() -> None:
    with connection.wrap_database_errors:
        connection.connection.limit(
            lock_timeout=LOCK_TIMEOUT, statement_timeout=STATEMENT_TIMEOUT
        )


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in a text, and no half of a character."""
    whole = text.encode("utf-8", errors="backslashreplace").decode()
    return whole.replace("\x00", "\\x00")

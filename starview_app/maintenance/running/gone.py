"""Runs whose end is not in the database: kept by their container, or crashed."""

from datetime import datetime
from typing import Any

import structlog
from django.db import connection, transaction

from starview_app.maintenance.models import JobRun
from starview_app.maintenance.running import kept_endings
from starview_app.maintenance.running.ledger import write_ending

logger = structlog.get_logger(__name__)

# So long after a restart of the database server, runs that were last seen before it are
# not marked: their containers may have kept their ends in files, and record them first.
RESTART_PATIENCE = "15 minutes"

# Uses the partial index jobrun_running. The working process holds the run's advisory
# lock, and the watching process writes every 5 s; without either the run has crashed.
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
# A crashed run ended when it was last seen: the time since then cost nothing.
_ENDED_AT = "coalesce(greatest(seen_at, started_at), %(now)s)"
# The advisory locks that this takes are freed at the end of the transaction.
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
# For readers: takes no advisory lock.
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


def settle() -> None:
    """Record the ends of runs that this container kept while the database was away."""
    for run_id, columns in kept_endings.found().items():
        write_ending(columns)
        kept_endings.forget(run_id)
        logger.info("run_settled", run_id=run_id[:12], outcome=columns["outcome"])


def mark_crashed(now: datetime) -> list[tuple[int, str]]:
    """Mark and log the runs whose process is gone; return their ids and jobs."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_MARK_CRASHED, {**_as_of(now), "error": _IS_GONE})
        crashed: list[tuple[int, str]] = cursor.fetchall()
    for number, job in crashed:
        logger.error("run_crashed", job=job, run=number)
    return crashed


def gone_runs(now: datetime) -> dict[int, dict[str, Any]]:
    """Return what `mark_crashed` would write now: columns by run id. Writes nothing."""
    with connection.cursor() as cursor:
        cursor.execute(_GONE, _as_of(now))
        return {
            number: {
                "outcome": JobRun.Outcome.CRASHED.value,
                "finished_at": ended_at,
                "seconds": seconds,
                "error": _IS_GONE,
            }
            for number, ended_at, seconds in cursor.fetchall()
        }


def _as_of(now: datetime) -> dict[str, Any]:
    return {"now": now, "restart_patience": RESTART_PATIENCE}

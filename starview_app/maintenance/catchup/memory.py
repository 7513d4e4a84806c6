"""The memory of the schedule, brought up to date by each tick (a run of catch-up)."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from starview_app.maintenance.models import ScheduleLine
from starview_app.maintenance.own_tables import unless_missing
from starview_app.maintenance.schedule.crontab import ScheduledJob

# A line that has been missing from the crontab for so long is forgotten: if it comes
# back, it has missed nothing. It is not forgotten at once, since during a deploy the
# ticks of two crontabs alternate.
FORGOTTEN_AFTER = timedelta(hours=1)
# The time between two ticks counts as seen up to this; the rest may be an outage.
_TICK = timedelta(minutes=10)

# An advisory lock for one tick at a time: two that write the same rows in a different
# order could deadlock.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_LAST_TICK = """
    SELECT max(seen_at), pg_postmaster_start_time()
    FROM maintenance_scheduleline
"""
_REMEMBER = """
    WITH line AS (
        SELECT DISTINCT job, times
        FROM unnest(%(jobs)s, %(times)s) AS line (job, times)
    ),
    other AS (
        SELECT
            id,
            absent + least(greatest(%(now)s - seen_at, interval '0'), %(tick)s)
                AS absent
        FROM maintenance_scheduleline
        WHERE (job, times) NOT IN (SELECT job, times FROM line)
    ),
    forgotten AS (
        DELETE FROM maintenance_scheduleline
        WHERE id IN (SELECT id FROM other WHERE absent >= %(forgotten_after)s)
    ),
    absent AS (
        UPDATE maintenance_scheduleline AS known
        SET absent = other.absent, seen_at = %(now)s
        FROM other
        WHERE known.id = other.id AND other.absent < %(forgotten_after)s
    )
    INSERT INTO maintenance_scheduleline AS known
        (job, times, first_seen_at, seen_at, absent)
    SELECT job, times, %(now)s, %(now)s, interval '0'
    FROM line
    ON CONFLICT (job, times) DO UPDATE
    SET
        -- A clock that was ahead may have been wrong; one that goes back is put right.
        first_seen_at = least(known.first_seen_at, excluded.first_seen_at),
        seen_at = excluded.seen_at,
        absent = excluded.absent
"""


def remember(jobs: Iterable[ScheduledJob], now: datetime) -> None:
    """Record a tick, with `jobs` as all the lines of the crontab.

    A line that is new, or whose times are new, has missed nothing before `now`. An
    outage does not make a line new, however long there was no tick.
    """
    lines = [(job.job, job.five_fields) for job in jobs if job.job]
    parameters: dict[str, Any] = {
        "jobs": [job for job, _ in lines],
        "times": [times for _, times in lines],
        "now": now,
        "tick": _TICK,
        "forgotten_after": FORGOTTEN_AFTER,
    }
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK, {"key": "starview-maintenance:schedule"})
        cursor.execute(_REMEMBER, parameters)


def last_tick() -> tuple[datetime | None, datetime]:
    """Return when any container last ticked, and when the database server started."""
    with connection.cursor() as cursor:
        cursor.execute(_LAST_TICK)
        found: tuple[datetime | None, datetime] = cursor.fetchone()
    return found


def first_seen(jobs: Iterable[str]) -> dict[tuple[str, str], datetime]:
    """Return since when each line of `jobs` is known: {(name, times): moment}."""
    rows = ScheduleLine.objects.filter(job__in=jobs)
    found = unless_missing(rows.values_list("job", "times", "first_seen_at"))
    return {(job, times): first_seen_at for job, times, first_seen_at in found}

"""What is remembered of the schedule from one tick of catch-up to the next."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from starview_app.maintenance.models import ScheduleLine
from starview_app.maintenance.own_tables import unless_missing
from starview_app.maintenance.schedule.crontab import ScheduledJob

# A line that the ticks of so long did not have is forgotten: should it come back, it
# has missed nothing. During a deploy the ticks of two crontabs take turns.
FORGOTTEN_AFTER = timedelta(hours=1)
# How much of the time between two ticks counts as seen: the rest may be an outage.
_TICK = timedelta(minutes=10)

# Ticks take turns: two that write the same lines in another order would wait for each
# other.
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
    SET seen_at = excluded.seen_at, absent = excluded.absent
"""


def remember(jobs: Iterable[ScheduledJob], now: datetime) -> None:
    """Note that these are the crontab's lines, all of them: a tick.

    A line that is new, or has other times, has missed nothing before `now`. How long
    nobody ticked does not matter: what was known before an outage is known after it.
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
    """When that was, of whichever container, and when the server was started."""
    with connection.cursor() as cursor:
        cursor.execute(_LAST_TICK)
        found: tuple[datetime | None, datetime] = cursor.fetchone()
    return found


def first_seen(jobs: Iterable[str]) -> dict[tuple[str, str], datetime]:
    """Since when each line of `jobs` is known, by name and times."""
    rows = ScheduleLine.objects.filter(job__in=jobs)
    found = unless_missing(rows.values_list("job", "times", "first_seen_at"))
    return {(job, times): first_seen_at for job, times, first_seen_at in found}

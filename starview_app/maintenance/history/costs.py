"""The costs of runs at Render's prices, in US dollars.

The prices are those of November 2026: https://render.com/pricing ("Cron Jobs",
"Background Workers") and https://render.com/docs/cronjobs ("Billing").
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starview_app.maintenance.own_tables import rows_of

PER_MINUTE = 0.00016  # instance type Starter, prorated by the second
CRON_JOB_PER_MONTH = 1.0  # the minimum for each cron job
WORKER_PER_MONTH = 7.0  # the smallest background worker, for supercronic and all jobs

# Uses the index jobrun_by_time. A run under way is counted until it was last seen,
# which was seconds ago unless its process is gone.
_OF_THE_MONTH = """
    SELECT
        job,
        count(*) FILTER (WHERE outcome <> 'skipped'),
        sum(
            coalesce(
                seconds,
                greatest(0, extract(epoch FROM coalesce(seen_at, %(now)s) - started_at))
            )
        )::float
    FROM maintenance_jobrun
    WHERE
        started_at >= %(begin)s
        AND started_at < %(end)s
        AND NOT counts ? 'ticks'  -- of catch-up, whose runs are counted as themselves
    GROUP BY job
    ORDER BY job
"""


@dataclass(frozen=True)
class JobCost:
    """One job in one month; the cost in dollars."""

    name: str
    runs: int
    seconds: float
    cost: float


@dataclass(frozen=True)
class MonthCosts:
    """All jobs that ran in one month, and the month's price at Render in two forms."""

    month: str
    jobs: list[JobCost]
    cost: float
    as_cron_jobs: float  # with the minimum for each cron job
    as_worker: float = WORKER_PER_MONTH


def cost_of(seconds: float) -> float:
    """Return the cost of a run of that length, in dollars."""
    return round(seconds / 60 * PER_MINUTE, 8)


def month_costs(now: datetime, *, lines: int) -> MonthCosts:
    """Return the costs from the begin of the month of `now` (UTC) until `now`.

    `lines` is the number of the crontab's lines.
    """
    begin = now.astimezone(UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    end = (begin + timedelta(days=31)).replace(day=1)
    rows = rows_of(_OF_THE_MONTH, {"now": now, "begin": begin, "end": end})
    jobs = [
        JobCost(job, runs, seconds, cost_of(seconds)) for job, runs, seconds in rows
    ]
    return MonthCosts(
        month=f"{begin:%Y-%m}",
        jobs=jobs,
        cost=round(sum(job.cost for job in jobs), 8),
        as_cron_jobs=lines * CRON_JOB_PER_MONTH,
    )

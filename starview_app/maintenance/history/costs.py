"""What the runs cost at Render's price, and what the two ways to run them would cost.

In US dollars, November 2026: https://render.com/pricing ("Cron Jobs", "Background
Workers") and https://render.com/docs/cronjobs ("Billing").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starview_app.maintenance.models import Job
from starview_app.maintenance.own_tables import rows_of, unless_missing
from starview_app.maintenance.schedule.crontab import ScheduledJob

PER_MINUTE = 0.00016  # instance type Starter, prorated by the second
CRON_JOB_PER_MONTH = 1.0  # of each cron job, at least
WORKER_PER_MONTH = 7.0  # the smallest background worker: supercronic and all jobs

_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)

# By the index jobrun_by_time. A run under way costs what it has cost until it was last
# seen, which is seconds ago, or its process is gone.
_SO_FAR = """
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
# By the index jobrun_of_job, which "=" would not ensure, 30 rows of each job. When a
# killed run has ended is not known.
_USUAL_SECONDS = """
    SELECT wanted.job, usual.seconds
    FROM unnest(%(jobs)s::text[]) AS wanted (job)
    CROSS JOIN LATERAL (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY last.seconds)
        FROM (
            SELECT seconds
            FROM maintenance_jobrun
            WHERE
                job BETWEEN wanted.job AND wanted.job
                AND outcome NOT IN ('running', 'skipped', 'crashed')
            ORDER BY job, started_at DESC
            LIMIT 30
        ) AS last
    ) AS usual (seconds)
    WHERE usual.seconds IS NOT NULL
"""


@dataclass(frozen=True)
class JobCost:
    """One job in one month; the costs in dollars."""

    name: str
    is_scheduled: bool
    runs: int
    seconds: float
    so_far: float
    usual_seconds: float | None  # the median of its last runs; None without any
    runs_left: int
    expected: float | None  # for the whole month; None when nothing tells


@dataclass(frozen=True)
class MonthCosts:
    """All jobs in one month, and both prices of a month at Render."""

    month: str
    jobs: list[JobCost]
    so_far: float
    expected: float  # of the jobs of which it is known
    as_cron_jobs: float
    as_worker: float = WORKER_PER_MONTH

    @property
    def is_whole(self) -> bool:
        """Whether it is known of every job what the month will cost."""
        return all(cost.expected is not None for cost in self.jobs)

    @property
    def cheaper(self) -> str:
        if self.as_cron_jobs == self.as_worker:
            return "Both cost the same."
        less = abs(self.as_cron_jobs - self.as_worker)
        way = "cron jobs" if self.as_cron_jobs < self.as_worker else "one worker"
        return f"Cheaper: {way}, by ${less:.2f} a month."


def cost_of(seconds: float) -> float:
    """What a run of that length costs, in dollars."""
    return round(seconds / 60 * PER_MINUTE, 8)


def month_costs(
    jobs: Sequence[ScheduledJob], now: datetime, *, unrecorded: int = 0
) -> MonthCosts:
    """The month of `now` (UTC): the crontab's `jobs`, then whatever else has run.

    Of its `unrecorded` lines, catch-up for one, only the least price is known.
    """
    now = now.astimezone(UTC)
    begin = _midnight_after(now.replace(day=1)) - _DAY
    end = (begin + 31 * _DAY).replace(day=1)
    rows = Job.objects.filter(paused_until__gt=now)
    paused = dict(unless_missing(rows.values_list("name", "paused_until")))
    begun = rows_of(_SO_FAR, {"now": now, "begin": begin, "end": end})
    so_far = {name: (runs, seconds) for name, runs, seconds in begun}
    usual: dict[str, float] = dict(
        rows_of(_USUAL_SECONDS, {"jobs": [job.job for job in jobs]})
    )
    costs = []
    for job in jobs:
        left = runs_left(job, first_moment(now, paused.get(job.job)), end)
        runs, seconds = so_far.pop(job.job, (0, 0.0))
        costs.append(_job_cost(job.job, runs, seconds, usual.get(job.job), left))
    for name, (runs, seconds) in so_far.items():
        spent = cost_of(seconds)
        costs.append(JobCost(name, False, runs, seconds, spent, None, 0, spent))
    return MonthCosts(
        month=f"{begin:%Y-%m}",
        jobs=costs,
        so_far=round(sum(cost.so_far for cost in costs), 8),
        expected=round(sum(cost.expected or 0.0 for cost in costs), 8),
        as_cron_jobs=unrecorded * CRON_JOB_PER_MONTH
        + sum(
            max(CRON_JOB_PER_MONTH, cost.expected or 0.0)
            for cost in costs
            if cost.is_scheduled
        ),
    )


def first_moment(now: datetime, paused_until: datetime | None) -> datetime:
    """After which a due time is run: a pause ends just before its moment."""
    ended = timedelta(microseconds=1)
    return max(now, paused_until - ended) if paused_until else now


def runs_left(job: ScheduledJob, after: datetime, end: datetime) -> int:
    """How often it is due after `after` and before `end`, which is a midnight.

    Every day that it comes on has the same times: they are counted once.
    """
    if after >= end:
        return 0
    tonight = _midnight_after(after)
    total = _count(job, after, tonight)
    due = job.next_after(tonight - _MINUTE)
    in_day = _count(job, tonight - _MINUTE, _midnight_after(due))
    while due < end:
        total += in_day
        due = job.next_after(_midnight_after(due) - _MINUTE)
    return total


def _count(job: ScheduledJob, after: datetime, before: datetime) -> int:
    count = 0
    while (after := job.next_after(after)) < before:
        count += 1
    return count


def _midnight_after(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY


def _job_cost(
    name: str, runs: int, seconds: float, usual: float | None, left: int
) -> JobCost:
    spent = cost_of(seconds)
    expected: float | None = spent
    if left:
        expected = None if usual is None else round(spent + cost_of(left * usual), 8)
    return JobCost(name, True, runs, seconds, spent, usual, left, expected)

"""The jobs and their runs for the command `jobs`, as plain values.

Lists never read the output of a run, and every query uses an index.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from starview_app.maintenance.catchup.slots import (
    FAILURES,
    SlotRun,
    SlotState,
    slot_states,
)
from starview_app.maintenance.history.costs import cost_of
from starview_app.maintenance.models import Job, JobRun
from starview_app.maintenance.own_tables import (
    create_own_tables,
    rows_of,
    unless_missing,
)
from starview_app.maintenance.running.gone import gone_runs
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import is_recorded

Outcome = JobRun.Outcome
RUN_ID_DIGITS = 12

# Uses the index jobrun_of_job, for ten rows of each job. Of these the last is preferred
# that was not skipped, since a skipped run shows little about the job, and that was not
# a command typed by a person, whose options are not those of the crontab.
_LAST = """
    SELECT DISTINCT ON (last.job) last.id
    FROM unnest(%(jobs)s::text[]) AS wanted (job)
    CROSS JOIN LATERAL (
        SELECT id, job, started_at, outcome, trigger
        FROM maintenance_jobrun
        WHERE job BETWEEN wanted.job AND wanted.job
        ORDER BY job, started_at DESC
        LIMIT 10
    ) AS last
    ORDER BY
        last.job,
        last.trigger = 'by hand',
        last.outcome = 'skipped',
        last.started_at DESC
"""
# Uses the index jobrun_of_job, one step for each name; DISTINCT would read every row.
_NAMES = """
    WITH RECURSIVE known AS (
        (SELECT job FROM maintenance_jobrun ORDER BY job LIMIT 1)
        UNION ALL
        SELECT (
            SELECT job
            FROM maintenance_jobrun
            WHERE job > known.job
            ORDER BY job
            LIMIT 1
        )
        FROM known
        WHERE known.job IS NOT NULL
    )
    SELECT job FROM known WHERE job IS NOT NULL
"""


@dataclass(frozen=True)
class Run:
    """One run, without its output."""

    id: int
    job: str
    slot: datetime | None
    attempt: int
    trigger: str
    command: str
    host: str
    pid: int
    started_at: datetime
    finished_at: datetime | None
    outcome: str
    exit_code: int | None
    seconds: float  # of a run that is under way: until now
    counts: dict[str, Any]
    error: str
    cost: float  # dollars


@dataclass(frozen=True)
class RunWithOutput(Run):
    output: str
    run_id: str  # the log shows the first RUN_ID_DIGITS of it


_COLUMNS = [field.name for field in fields(Run) if field.name != "cost"]


@dataclass(frozen=True)
class JobOverview:
    """One line of the crontab. Without a record all fields after `times` are empty."""

    name: str
    schedule: str  # in words
    times: str
    next_run_at: datetime
    is_recorded: bool
    last_run: Run | None = None
    paused_until: datetime | None = None
    overdue: str = ""
    failing_run: int | None = None  # the last run, if it failed


def overview(lines: Sequence[ScheduledJob], now: datetime) -> list[JobOverview]:
    """Return an overview of every line, in the order of the crontab."""
    recorded = list(filter(is_recorded, lines))
    states = {state.schedule: state for state in slot_states(recorded, now)}
    failing = {
        state.job: failed.id
        for state in states.values()
        if (failed := failing_run(state))
    }
    last = _last_runs([line.job for line in lines if line.job], failing, now)
    return [
        _overview(line, states.get(line), last.get(line.job), now) for line in lines
    ]


def history(
    job: str | None, *, only_failed: bool, limit: int, now: datetime
) -> list[Run]:
    """Return the newest runs first, of one job or of all."""
    rows = JobRun.objects.order_by("-started_at", "-id")
    if only_failed:  # the condition and the order of the index jobrun_failed
        rows = rows.filter(outcome__in=FAILURES, **({"job": job} if job else {}))
    elif job:  # as in _LAST
        rows = rows.filter(job__range=(job, job)).order_by("job", "-started_at", "-id")
    return [Run(**row) for row in _reckoned(rows.values(*_COLUMNS)[:limit], now)]


def names_with_runs() -> list[str]:
    return [name for (name,) in rows_of(_NAMES, {})]


def find_run(key: str, now: datetime) -> RunWithOutput | None:
    """Return one run with its output; of a run under way, the output saved so far.

    `key` is the number of the run or its id in the log, at least RUN_ID_DIGITS of it.
    """
    number = int(key) if key.isdigit() else 0
    if found := _first(JobRun.objects.filter(id=min(number, 2**63 - 1)), now):
        return found
    digits = key.replace("-", "").lower()
    if not RUN_ID_DIGITS <= len(digits) <= 32:
        return None
    ids = [uuid.UUID(digits.ljust(32, fill)) for fill in "0f"]
    return _first(JobRun.objects.filter(run_id__range=ids), now)


def last_manual_run(
    job: str, *, host: str, since: datetime, now: datetime
) -> RunWithOutput | None:
    """Return the run that `jobs run` has started on `host` at `since` or later."""
    rows = JobRun.objects.filter(
        job=job, started_at__gte=since, trigger=JobRun.Trigger.MANUAL, host=host
    )
    return _first(rows.order_by("started_at"), now)


def next_run(
    line: ScheduledJob, now: datetime, paused_until: datetime | None
) -> datetime:
    """Return the next due time after `now`, at `paused_until` or later if paused."""
    if paused_until:
        now = max(now, paused_until - timedelta(microseconds=1))
    return line.next_after(now)


def failing_run(state: SlotState) -> SlotRun | None:
    """Return the last run that succeeded or failed, if it failed."""
    last = next(reversed(state.telling_runs), None)
    return last if last and last.has_failed else None


def pause(job: str, *, until: datetime, now: datetime) -> None:
    """Pause the job before `until` (exclusive); manual runs are still possible.

    Slots within the pause are not run later.
    """
    pause = {"paused_at": now, "paused_until": until}
    create_own_tables()
    with transaction.atomic():
        # A pause that is made longer or shorter keeps its begin.
        paused = Job.objects.filter(name=job, paused_until__gt=now)
        if not paused.update(paused_until=until):
            Job.objects.update_or_create(name=job, defaults=pause)


def resume(job: str, *, now: datetime) -> bool:
    """End the pause; return whether there was one."""
    create_own_tables()
    paused = Job.objects.filter(name=job, paused_until__gt=now)
    return paused.update(paused_until=now) > 0


# -- internal helpers ---------------------------------------------------------------


def _overview(
    line: ScheduledJob, state: SlotState | None, last: Run | None, now: datetime
) -> JobOverview:
    if state is None:
        next_run_at = line.next_after(now)
        # Catch-up is not recorded as a run, but its ticks are.
        has_ticks = line.django_command == "catch_up"
        return JobOverview(
            line.name, line.in_words, line.times, next_run_at, has_ticks, last
        )
    paused_until = state.paused_until if state.is_paused else None
    failed = failing_run(state)
    return JobOverview(
        name=line.name,
        schedule=line.in_words,
        times=line.times,
        next_run_at=next_run(line, now, paused_until),
        is_recorded=True,
        last_run=last,
        paused_until=paused_until,
        overdue=state.overdue,
        failing_run=failed.id if failed else None,
    )


def _last_runs(
    jobs: Sequence[str], failing: dict[str, int], now: datetime
) -> dict[str, Run]:
    """Return the last run of each job; if that succeeded, but the job is in `failing`
    ({job: run}), the failed run: the last one may have had other options.
    """
    numbers = [number for (number,) in rows_of(_LAST, {"jobs": list(jobs)})]
    rows = JobRun.objects.filter(id__in=[*numbers, *failing.values()])
    found = [Run(**row) for row in _reckoned(rows.values(*_COLUMNS), now)]
    runs = {run.id: run for run in found}
    last = [runs[number] for number in numbers if number in runs]
    return {run.job: _worse(run, runs.get(failing.get(run.job, 0))) for run in last}


def _worse(last: Run, failed: Run | None) -> Run:
    return failed if failed and last.outcome == Outcome.SUCCEEDED else last


def _first(rows: QuerySet[JobRun], now: datetime) -> RunWithOutput | None:
    for row in _reckoned(rows.values(*_COLUMNS, "output", "run_id")[:1], now):
        return RunWithOutput(**{**row, "run_id": row["run_id"].hex})
    return None


def _reckoned(
    query: "QuerySet[JobRun, dict[str, Any]]", now: datetime
) -> list[dict[str, Any]]:
    """Return the rows with their costs, with crashed runs shown as crashed."""
    rows = unless_missing(query)
    is_one_running = any(row["outcome"] == Outcome.RUNNING for row in rows)
    gone = gone_runs(now) if is_one_running else {}
    return [_with_cost({**row, **gone.get(row["id"], {})}, now) for row in rows]


def _with_cost(row: dict[str, Any], now: datetime) -> dict[str, Any]:
    seconds = row["seconds"]
    if seconds is None:
        seconds = max((now - row["started_at"]).total_seconds(), 0.0)
    return {**row, "seconds": round(seconds, 3), "cost": cost_of(seconds)}

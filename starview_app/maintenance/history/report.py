"""The data of the report page, as plain values.

Every query uses an index, and reads no more rows than are shown.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

from starview.people import without_people
from starview_app.maintenance.catchup.slots import FAILURES
from starview_app.maintenance.history.runs import JobOverview, overview
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.own_tables import rows_of
from starview_app.maintenance.running.gone import gone_runs
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import names_of
from starview_app.maintenance.text import end_of

RUNS_OF_A_JOB = 30
RUNS = 50
DAYS_AHEAD = 35
WEEKS = 12
_OUTPUT_CHARACTERS = 8000  # of the end of a run's output
_OFTEN = timedelta(hours=1)  # a job that runs more often is not shown by days

# Uses the index jobrun_of_job.
_OF_EACH_JOB = """
    SELECT run.*
    FROM unnest(%(jobs)s::text[]) AS wanted (job)
    CROSS JOIN LATERAL (
        SELECT job, id, outcome, started_at, seconds, counts, error
        FROM maintenance_jobrun
        WHERE job BETWEEN wanted.job AND wanted.job
        ORDER BY job, started_at DESC
        LIMIT %(runs)s
    ) AS run
    ORDER BY run.job, run.started_at DESC
"""
# Uses the index jobrun_by_time.
_NEWEST = """
    SELECT
        id, job, started_at, outcome, seconds, counts, error,
        right(output, %(characters)s)
    FROM maintenance_jobrun
    ORDER BY started_at DESC
    LIMIT %(runs)s
"""
_ARCHIVE = """
    SELECT
        date_trunc('month', first_timestamp AT TIME ZONE 'UTC')::date,
        sum(row_count)::bigint,
        count(*),
        sum(
            (
                SELECT coalesce(sum((entry ->> 'size_bytes')::bigint), 0)
                FROM jsonb_array_elements(objects_written) AS entry
            )
        )::bigint
    FROM maintenance_auditarchive
    WHERE state = 'archived'
    GROUP BY 1
    ORDER BY 1 DESC
"""
# Uses the index jobrun_of_job, for each of the names that such a run may have.
_VERIFIED = """
    SELECT
        max(finished_at) FILTER (WHERE outcome = 'succeeded'),
        max(finished_at) FILTER (WHERE outcome = ANY (%(failures)s))
    FROM maintenance_jobrun
    WHERE job = ANY (%(jobs)s)
"""
# Uses the index jobrun_of_job: a weekly job has no more runs in twelve weeks.
_MAIL = """
    SELECT started_at, counts
    FROM unnest(%(jobs)s::text[]) AS wanted (job)
    CROSS JOIN LATERAL (
        SELECT started_at, counts
        FROM maintenance_jobrun
        WHERE job BETWEEN wanted.job AND wanted.job
        ORDER BY job, started_at DESC
        LIMIT 200
    ) AS run
    WHERE started_at > %(since)s AND counts ? 'ses_attempts'
    ORDER BY started_at
"""


@dataclass(frozen=True)
class PastRun:
    id: int
    outcome: str
    started_at: datetime
    seconds: float | None  # None: the run is under way
    counts: dict[str, Any]
    error: str


@dataclass(frozen=True)
class JobOnPage:
    overview: JobOverview
    runs: list[PastRun]  # oldest first, RUNS_OF_A_JOB at most
    usual_seconds: float | None  # the median of the runs that succeeded
    days_ahead: list[bool]  # whether the job is due, for DAYS_AHEAD days from today
    is_frequent: bool  # due several times on each day, and so of no interest there


@dataclass(frozen=True)
class RunOnPage(PastRun):
    job: str
    output: str


_Run = TypeVar("_Run", bound=PastRun)


@dataclass(frozen=True)
class ArchiveMonth:
    month: date
    rows: int
    segments: int
    size_bytes: int


@dataclass(frozen=True)
class MailWeek:
    """SES's figures for the week before a health report was mailed."""

    until: datetime
    attempts: int
    bounces: int
    complaints: int


@dataclass(frozen=True)
class Report:
    now: datetime
    jobs: list[JobOnPage]
    runs: list[RunOnPage]  # newest first
    archive: list[ArchiveMonth]  # newest first
    verified_at: datetime | None
    verify_failed_at: datetime | None  # if that is newer than the last success
    mail: list[MailWeek]  # oldest first

    @property
    def failing(self) -> list[JobOnPage]:
        return [job for job in self.jobs if job.overview.failing_run]

    @property
    def overdue(self) -> list[JobOnPage]:
        return [job for job in self.jobs if job.overview.overdue]


def collect(lines: Sequence[ScheduledJob], now: datetime) -> Report:
    """Read all the data of the page, without names and addresses of accounts."""
    of_each = _runs_of_each([line.job for line in lines if line.job])
    newest = _newest()
    shown = [*newest, *(run for runs in of_each.values() for run in runs)]
    is_one_running = any(run.outcome == JobRun.Outcome.RUNNING for run in shown)
    gone = gone_runs(now) if is_one_running else {}
    jobs = [
        _job(line, found, [_ended(run, gone) for run in of_each.get(line.job, [])], now)
        for line, found in zip(lines, overview(lines, now), strict=True)
    ]
    verified_at, failed_at = _verified(names_of(_VERIFY_COMMAND, lines))
    return Report(
        now=now,
        jobs=jobs,
        runs=[_ended(run, gone) for run in newest],
        archive=[ArchiveMonth(*row) for row in rows_of(_ARCHIVE, {})],
        verified_at=verified_at,
        verify_failed_at=failed_at,
        mail=_mail(names_of(_MAIL_COMMAND, lines), now),
    )


# -- internal helpers -----------------------------------------------------------------

_MAIL_COMMAND = "cleanup_email_suppressions"
_VERIFY_COMMAND = "verify_audit_archives"


def _runs_of_each(jobs: list[str]) -> dict[str, list[PastRun]]:
    """Return the last runs of each job, oldest first."""
    found: dict[str, list[PastRun]] = {}
    limits = {"jobs": jobs, "runs": RUNS_OF_A_JOB}
    for job, number, outcome, at, seconds, counts, error in rows_of(
        _OF_EACH_JOB, limits
    ):
        run = PastRun(
            number, outcome, at, seconds, json.loads(counts), without_people(error)
        )
        found.setdefault(job, []).insert(0, run)
    return found


def _ended(run: _Run, gone: dict[int, dict[str, Any]]) -> _Run:
    """Return the run as it is shown: as crashed if its process is gone."""
    columns = ("outcome", "seconds", "error") if run.id in gone else ()
    return replace(run, **{name: gone[run.id][name] for name in columns})


def _job(
    line: ScheduledJob, found: JobOverview, runs: list[PastRun], now: datetime
) -> JobOnPage:
    done = [
        run.seconds
        for run in runs
        if run.outcome == JobRun.Outcome.SUCCEEDED and run.seconds is not None
    ]
    following = line.next_after(found.next_run_at)
    days = _days_ahead(line, found.next_run_at, now)
    return JobOnPage(
        overview=found,
        runs=runs,
        usual_seconds=statistics.median(done) if done else None,
        days_ahead=days,
        is_frequent=following - found.next_run_at < _OFTEN and all(days[1:]),
    )


def _days_ahead(line: ScheduledJob, due: datetime, now: datetime) -> list[bool]:
    """Return for each day whether the line is due; `due` is the first time.

    Takes one step for each day, however often the line comes.
    """
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [False] * DAYS_AHEAD
    while (number := (due - midnight).days) < DAYS_AHEAD:
        days[number] = True
        tomorrow = midnight + timedelta(days=number + 1)
        due = line.next_after(tomorrow - timedelta(microseconds=1))
    return days


def _newest() -> list[RunOnPage]:
    limits = {"runs": RUNS, "characters": _OUTPUT_CHARACTERS + 1}  # to see a cut
    return [
        RunOnPage(
            id=number,
            job=job,
            started_at=at,
            outcome=outcome,
            seconds=seconds,
            counts=json.loads(counts),
            error=without_people(error),
            output=without_people(end_of(output, _OUTPUT_CHARACTERS)),
        )
        for number, job, at, outcome, seconds, counts, error, output in rows_of(
            _NEWEST, limits
        )
    ]


def _verified(jobs: list[str]) -> tuple[datetime | None, datetime | None]:
    """Return when a verification last succeeded, and failed if that is newer."""
    parameters = {"jobs": jobs, "failures": [str(outcome) for outcome in FAILURES]}
    for good, bad in rows_of(_VERIFIED, parameters):
        return good, bad if bad and (good is None or bad > good) else None
    return None, None


def _mail(jobs: list[str], now: datetime) -> list[MailWeek]:
    rows = rows_of(_MAIL, {"jobs": jobs, "since": now - timedelta(weeks=WEEKS)})
    weeks = [(at, json.loads(counts)) for at, counts in rows]
    return [
        MailWeek(
            at,
            counts["ses_attempts"],
            counts.get("ses_bounces", 0),
            counts.get("ses_complaints", 0),
        )
        for at, counts in weeks[-WEEKS:]
    ]

"""The state of each job's newest slot: its runs, and whether it must be run now."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from starview_app.maintenance import exits
from starview_app.maintenance.catchup.memory import first_seen
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.own_tables import rows_of
from starview_app.maintenance.running.gone import gone_runs
from starview_app.maintenance.schedule.crontab import ScheduledJob

Outcome = JobRun.Outcome

# supercronic starts a run within seconds; after this time the slot was missed.
MISSED_AFTER = timedelta(minutes=5)
# The waits after the first, second and third failure; then a person must act.
RETRY_AFTER = (timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))
# `catch_up` comes every ten minutes. An attempt that is due just after it would wait
# ten minutes more, so it is run this much earlier.
RETRY_SLACK = timedelta(minutes=1)
# Catch-up does not run a slot when the next one comes as soon as this.
SOON = timedelta(hours=1)
# A job is overdue when it has not been run this long after its slot, or has not ended
# this long after its deadline.
OVERDUE_AFTER = timedelta(hours=1)

FAILURES = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED)

# Uses the unique index jobrun_slot_once, and jobrun_of_job for manual runs, which do
# the work of the slot as well. A run of the future was recorded by a wrong clock: until
# its time it must neither hide a failure nor what was not run.
_RUNS = """
    SELECT due.job, run.id, run.slot, run.attempt, run.outcome, run.exit_code,
        run.started_at, run.finished_at, run.error
    FROM unnest(%(jobs)s, %(slots)s::timestamptz[]) AS due (job, slot)
    CROSS JOIN LATERAL (
        SELECT *
        FROM maintenance_jobrun
        WHERE job = due.job AND slot BETWEEN due.slot AND %(now)s
        UNION ALL
        SELECT *
        FROM maintenance_jobrun
        WHERE
            job = due.job
            AND started_at BETWEEN due.slot AND %(now)s
            AND slot IS NULL
            AND trigger = 'manual'
    ) AS run
    ORDER BY due.job, run.started_at, run.id
"""
_PAUSES = """
    SELECT name, paused_at, paused_until
    FROM maintenance_job
    WHERE name = ANY (%(jobs)s)
"""

# In the order of _PAUSES, which is that of SlotState's fields.
_Pause = tuple[datetime | None, datetime | None]
_NO_PAUSE: _Pause = (None, None)


@dataclass(frozen=True)
class SlotRun:
    """One run of a slot, or a manual run since it."""

    id: int
    slot: datetime | None
    attempt: int
    outcome: str
    exit_code: int | None
    started_at: datetime
    finished_at: datetime | None
    error: str

    @property
    def has_failed(self) -> bool:
        return self.outcome in FAILURES

    @property
    def is_telling(self) -> bool:
        """Whether the run shows if the job works: not if interrupted or skipped."""
        return self.has_failed or self.outcome == Outcome.SUCCEEDED

    @property
    def is_refused(self) -> bool:
        """Whether the run was refused because another run of the job was under way."""
        return self.outcome == Outcome.SKIPPED and self.exit_code == exits.RUNNING


@dataclass(frozen=True)
class SlotState:
    """A job's newest slot at a moment, and all the runs that concern it."""

    schedule: ScheduledJob
    slot: datetime
    now: datetime
    first_seen_at: datetime
    paused_at: datetime | None
    paused_until: datetime | None
    # Oldest first; all since the slot that was the newest OVERDUE_AFTER ago.
    since: tuple[SlotRun, ...]

    @property
    def job(self) -> str:
        return self.schedule.job

    @property
    def runs(self) -> list[SlotRun]:
        """The runs of this slot, oldest first."""
        return [
            run
            for run in self.since
            if run.slot == self.slot or (not run.slot and run.started_at >= self.slot)
        ]

    @property
    def last(self) -> SlotRun | None:
        return self.runs[-1] if self.runs else None

    @property
    def is_paused(self) -> bool:
        return self.paused_until is not None and self.now < self.paused_until

    def _was_expected(self, slot: datetime) -> bool:
        """Whether the slot should be run: its job is known and was not paused then."""
        if slot <= self.first_seen_at:
            return False
        if self.paused_at is None or self.paused_until is None:
            return True
        return not self.paused_at <= slot < self.paused_until

    @property
    def telling_runs(self) -> list[SlotRun]:
        """The runs that show if the job works, oldest first: the last one counts."""
        return [run for run in self.since if run.is_telling]

    @property
    def is_done(self) -> bool:
        """Whether the slot's run succeeded or was skipped for a pause."""
        return any(
            run.outcome == Outcome.SUCCEEDED
            or (run.outcome == Outcome.SKIPPED and not run.is_refused)
            for run in self.runs
        )

    @property
    def failures(self) -> int:
        return sum(run.has_failed and run.slot is not None for run in self.runs)

    @property
    def next_attempt(self) -> int:
        return 1 + max((run.attempt for run in self.runs if run.slot), default=0)

    @property
    def retry_at(self) -> datetime | None:
        """When `catch_up` should run the slot; None when it should not."""
        if self.is_done:
            return None
        if self.last is None:
            is_missed = self._was_expected(self.slot)
            return self.slot + MISSED_AFTER if is_missed else None
        is_running = any(run.finished_at is None for run in self.runs)
        if is_running or self.failures > len(RETRY_AFTER):
            return None
        # A run that was interrupted or refused does not count as a failure.
        wait = RETRY_AFTER[max(self.failures - 1, 0)]
        ended_at = max(run.finished_at for run in self.runs if run.finished_at)
        return ended_at + wait

    @property
    def reason_to_run(self) -> str:
        """Why the slot should be run now; empty when it should not."""
        if self.is_paused or self.retry_at is None:
            return ""
        slack = RETRY_SLACK if self.last else timedelta(0)
        if self.now < self.retry_at - slack:
            return ""
        if self.schedule.next_after(self.now) <= self.now + SOON:
            return ""
        if self.last is None:
            return "missed"
        return f"{self.last.outcome}, attempt {self.next_attempt}"

    @property
    def overdue(self) -> str:
        """What is overdue by more than OVERDUE_AFTER; empty when nothing is.

        A slot whose run failed is not overdue: the failure is announced as such.
        """
        if self.is_paused:
            return ""
        running = next((run for run in self.since if run.finished_at is None), None)
        if running:
            allowed = timedelta(seconds=self.schedule.deadline_seconds or 0)
            is_late = self.now > running.started_at + allowed + OVERDUE_AFTER
            return (
                f"running since {running.started_at:%Y-%m-%d %H:%M} UTC"
                if is_late
                else ""
            )
        due = self.schedule.last_due(self.now - OVERDUE_AFTER)
        was_tried = self.telling_runs or any(map(_is_paused, self.since))
        if was_tried or not self._was_expected(due):
            return ""
        done = "done" if self.since else "run"  # a run was interrupted or refused
        return f"not {done} since {due:%Y-%m-%d %H:%M} UTC"

    @property
    def is_left_to_next(self) -> bool:
        """Whether catch-up leaves what is overdue to the next slot, as that is near.

        False for a job that comes as often as SOON, since one is always near.
        """
        if any(run.finished_at is None for run in self.since):
            return False
        due = self.schedule.last_due(self.now - OVERDUE_AFTER)
        following = self.schedule.next_after(due)
        is_near = following - SOON <= self.now < following + MISSED_AFTER
        return is_near and following - due > SOON


def slot_states(
    jobs: Iterable[ScheduledJob], now: datetime, *, as_of: datetime | None = None
) -> list[SlotState]:
    """Return the state of each named job, in the order of the crontab.

    With `as_of` the newest slot is that of an earlier moment, with all its runs until
    now.
    Takes three statements and writes nothing. A line that `memory.remember` has not
    recorded is new, and so has missed nothing.
    """
    jobs = [job for job in jobs if job.job]
    if not jobs:
        return []
    names = [job.job for job in jobs]
    first = first_seen(names)
    pauses = _pauses(names)
    moment = as_of or now
    runs = _runs(jobs, now, moment)
    return [
        SlotState(
            job,
            job.last_due(moment),
            moment,
            first.get((job.job, job.five_fields), moment),
            *pauses.get(job.job, _NO_PAUSE),
            tuple(runs[job.job]),
        )
        for job in jobs
    ]


def _pauses(jobs: list[str]) -> dict[str, _Pause]:
    rows = rows_of(_PAUSES, {"jobs": jobs})
    return {name: (paused_at, until) for name, paused_at, until in rows}


def _runs(
    jobs: Sequence[ScheduledJob], now: datetime, moment: datetime
) -> dict[str, list[SlotRun]]:
    found: dict[str, list[SlotRun]] = {job.job: [] for job in jobs}
    # The runs of at most two slots, or of several for a job that runs more often than
    # OVERDUE_AFTER. If two lines have one name, which `jobs check` refuses, one counts.
    slots = {job.job: job.last_due(moment - OVERDUE_AFTER) for job in jobs}
    parameters = {"jobs": list(slots), "slots": list(slots.values()), "now": now}
    rows = rows_of(_RUNS, parameters)
    runs = [(name, SlotRun(*row)) for name, *row in rows]
    is_one_running = any(run.outcome == Outcome.RUNNING for _, run in runs)
    gone = gone_runs(now) if is_one_running else {}
    for name, run in runs:
        found[name].append(_gone(run, gone[run.id]) if run.id in gone else run)
    return found


def _gone(run: SlotRun, ended: dict[str, Any]) -> SlotRun:
    columns = ("outcome", "finished_at", "error")
    return replace(run, **{name: ended[name] for name in columns})


def _is_paused(run: SlotRun) -> bool:
    return run.outcome == Outcome.SKIPPED and not run.is_refused

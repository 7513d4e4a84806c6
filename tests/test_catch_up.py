"""What was missed or failed is run again: once per slot, and not for ever.

The clock is a value here. `World` plays supercronic and `catch_up` over days and
months; a run is a row, as the runner writes it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demo.services import LocalServices
from starview_app.maintenance.catchup.catch_up import catch_up, due_now
from starview_app.maintenance.catchup.memory import remember
from starview_app.maintenance.catchup.slots import SlotState, slot_states
from starview_app.maintenance.history.costs import month_costs
from starview_app.maintenance.models import Job, JobRun, ScheduleLine
from starview_app.maintenance.notify import alerts
from starview_app.maintenance.running.ledger import KEEP_DAYS, prune
from starview_app.maintenance.schedule.crontab import (
    ScheduledJob,
    parse_crontab,
    read_crontab,
)
from tests.app import App
from tests.archive_processes import Commands
from tests.conftest import ROOT, Manage, merged
from tests.factories import make_known, make_run, runs, session
from tests.launcher import Launcher

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TEN_MINUTES = 10 * MINUTE

DAILY = "0 2 * * *"
WEEKLY = "0 3 * * 0"
MONTHLY = "0 4 1 * *"
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday


def line(times: str, name: str = "job") -> ScheduledJob:
    text = f"{times} JOB={name} timeout 1h python manage.py run_job clearsessions\n"
    (job,), _ = parse_crontab(text)
    return job


def known(*jobs: ScheduledJob, since: datetime) -> None:
    for job in jobs:
        make_known(job, since=since)


def state_of(job: ScheduledJob, now: datetime) -> SlotState:
    (state,) = slot_states([job], now)
    return state


def reasons(job: ScheduledJob, now: datetime) -> list[str]:
    return [due.reason for due in due_now([job], now)]


class World:
    """supercronic where `is_up`, and catch-up every ten minutes there."""

    def __init__(
        self,
        jobs: list[ScheduledJob],
        *,
        is_up: Callable[[datetime], bool] = lambda now: True,
        outcome: Callable[[ScheduledJob, datetime], str] = lambda job, now: "succeeded",
    ) -> None:
        self.jobs = jobs
        self.now = NOON
        self._is_up = is_up
        self._outcome = outcome
        self.runs: list[tuple[str, datetime, datetime, int]] = []

    def play(
        self, begin: datetime, end: datetime, *, step: timedelta = TEN_MINUTES
    ) -> None:
        """Every `step`, `end` exclusive; each slot must fall on one."""
        for job in self.jobs:
            if not ScheduleLine.objects.filter(job=job.job).exists():
                make_known(job, since=begin - MINUTE)
        self.now = begin
        while self.now < end:
            if self._is_up(self.now):
                for job in self.jobs:
                    if job.last_due(self.now) == self.now:
                        self._run(job, self.now, 1, "schedule")
                if self.now.minute % 10 == 0:
                    catch_up(
                        self.jobs,
                        clock=lambda: self.now,
                        launch=lambda state: self._run(
                            state.schedule, state.slot, state.next_attempt, "catch-up"
                        ),
                        announce=alerts.dispatch,
                        should_stop=lambda: False,
                    )
            self.now += step

    def _run(
        self, job: ScheduledJob, slot: datetime, attempt: int, trigger: str
    ) -> None:
        outcome = self._outcome(job, self.now)
        make_run(
            job.job,
            outcome=outcome,
            started_at=self.now,
            slot=slot,
            attempt=attempt,
            trigger=trigger,
        )
        self.runs.append((job.job, slot, self.now, attempt))


# -- missed --------------------------------------------------------------------------


def test_a_run_that_leaves_no_trace_is_begun_once_by_each_catch_up() -> None:
    # Its line cannot be started, and the database does not take the record of that.
    job = line(DAILY)
    known(job, since=NOON - 10 * DAY)
    begun: list[datetime] = []

    count = catch_up(
        [job],
        clock=lambda: NOON,
        launch=lambda state: begun.append(state.slot),
        announce=lambda jobs, now, at_once: None,
        should_stop=lambda: len(begun) > 3,
    )

    assert (count, len(begun)) == (1, 1)


def test_a_slot_that_nobody_ran_is_run() -> None:
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)

    assert reasons(job, NOON) == ["missed"]


def test_a_slot_is_left_to_supercronic_for_five_minutes() -> None:
    job = line(DAILY)
    known(job, since=NOON - 60 * DAY)
    slot = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)

    assert reasons(job, slot) == []
    assert reasons(job, slot + timedelta(minutes=4, seconds=59)) == []
    assert reasons(job, slot + timedelta(minutes=5)) == ["missed"]


@pytest.mark.parametrize("trigger", ["schedule", "manual"])
def test_a_run_of_a_clock_that_was_ahead_hides_nothing_until_its_time(
    trigger: str,
) -> None:
    job, ahead = line(DAILY), NOON + 400 * DAY
    known(job, since=NOON - 60 * DAY)
    slot = job.last_due(ahead) if trigger == "schedule" else None
    make_run("job", slot=slot, started_at=ahead, trigger=trigger)

    missed = state_of(job, NOON)
    failed_slot = job.last_due(NOON)
    make_run("job", slot=failed_slot, started_at=failed_slot, outcome="failed")
    failing = state_of(job, NOON)

    assert (missed.reason_to_run, missed.overdue[:7]) == ("missed", "not run")
    assert [run.outcome for run in failing.telling_runs] == ["failed"]


def test_a_line_that_a_clock_ahead_has_seen_first_is_known_once_it_is_right() -> None:
    job = line(DAILY)
    remember([job], NOON + 400 * DAY)

    remember([job], NOON)

    assert reasons(job, NOON + DAY) == ["missed"]


def test_a_job_that_is_new_in_the_crontab_has_missed_nothing() -> None:
    job = line(MONTHLY)
    before = reasons(job, NOON)
    remember([job], NOON)

    assert (before, reasons(job, NOON)) == ([], [])
    assert reasons(job, NOON + 20 * DAY) == ["missed"]


def test_of_many_missed_slots_the_newest_is_run_once() -> None:
    job = line(DAILY)
    world = World([job], is_up=lambda now: now >= NOON)
    world.play(NOON - 5 * DAY, NOON + 6 * HOUR, step=HOUR)

    assert world.runs == [("job", datetime(2026, 11, 23, 2, tzinfo=UTC), NOON, 1)]


def test_the_newest_slot_comes_first() -> None:
    jobs = [line(MONTHLY, "monthly"), line(DAILY, "daily"), line(WEEKLY, "weekly")]
    known(*jobs, since=NOON - 60 * DAY)

    assert [due.state.job for due in due_now(jobs, NOON)] == [
        "daily",
        "weekly",
        "monthly",
    ]


def test_what_is_due_again_within_the_hour_is_not_made_up_for() -> None:
    job = line(DAILY)
    known(job, since=NOON - 60 * DAY)
    next_slot = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)

    assert reasons(job, next_slot - HOUR - MINUTE) == ["missed"]
    assert reasons(job, next_slot - HOUR) == []


def test_a_job_of_every_hour_is_never_made_up_for() -> None:
    job = line("0 * * * *")
    known(job, since=NOON - 60 * DAY)

    assert [reasons(job, NOON + n * MINUTE) for n in range(60)] == 60 * [[]]


@pytest.mark.parametrize("outcome", ["succeeded", "skipped", "running"])
def test_a_slot_that_is_done_or_under_way_is_left_alone(outcome: str) -> None:
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)
    make_run(
        job.job,
        outcome=outcome,
        started_at=NOON - 2 * DAY,
        slot=job.last_due(NOON),
        seen_at=datetime.now(UTC),
    )

    assert reasons(job, NOON) == []


def test_a_paused_job_is_left_alone_until_its_pause_is_over() -> None:
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)
    Job.objects.create(name=job.job, paused_until=NOON + HOUR)

    assert reasons(job, NOON) == []
    assert reasons(job, NOON + HOUR) == ["missed"]


def test_what_was_due_within_a_pause_is_not_made_up_for_when_nobody_was_there() -> None:
    job = line(DAILY)
    known(job, since=NOON - 60 * DAY)
    slot = job.last_due(NOON)
    Job.objects.create(name=job.job, paused_at=slot, paused_until=NOON - HOUR)
    within = state_of(job, NOON)

    Job.objects.update(paused_at=slot - HOUR, paused_until=slot)

    assert (within.reason_to_run, within.overdue) == ("", "")
    assert reasons(job, NOON) == ["missed"]


def test_what_failed_before_a_pause_is_tried_again_after_it() -> None:
    job = line(DAILY)
    known(job, since=NOON - 60 * DAY)
    slot = job.last_due(NOON)
    make_run(job.job, outcome="failed", started_at=slot, slot=slot)
    Job.objects.create(name=job.job, paused_at=slot + MINUTE, paused_until=NOON)

    assert reasons(job, NOON - MINUTE) == []
    assert reasons(job, NOON) == ["failed, attempt 2"]


def test_jobs_run_does_the_work_of_the_slot_and_a_command_by_hand_does_not() -> None:
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)
    make_run(job.job, outcome="succeeded", started_at=NOON - DAY, trigger="by hand")
    by_hand = reasons(job, NOON)

    make_run(job.job, outcome="succeeded", started_at=NOON - HOUR, trigger="manual")

    assert by_hand == ["missed"]
    assert reasons(job, NOON) == []


def test_other_times_have_missed_nothing() -> None:
    known(line(WEEKLY), since=NOON - 60 * DAY)
    before = reasons(line(WEEKLY), NOON)

    assert before == ["missed"]
    assert reasons(line("0 3 * * 6"), NOON) == []


def test_a_line_that_comes_back_has_missed_nothing() -> None:
    always, other = line(DAILY, "always"), line(MONTHLY, "other")
    known(always, other, since=NOON - 90 * DAY)
    remember([always, other], NOON - 80 * DAY)
    for minutes in range(0, 61, 10):
        remember([always], NOON - 79 * DAY + minutes * MINUTE)
    remember([always, other], NOON)

    due = [found.state.job for found in due_now([always, other], NOON)]

    assert due == ["always"]


def test_an_outage_of_any_length_makes_up_for_every_line_and_not_for_one_only() -> None:
    jobs = [line(DAILY, "daily"), line(MONTHLY, "monthly"), line(WEEKLY, "weekly")]
    down = datetime(2026, 10, 31, tzinfo=UTC)
    remember(jobs, down - DAY)
    remember(jobs, down)
    now = down + 3 * DAY
    make_run(
        jobs[0].job, outcome="succeeded", started_at=now, slot=jobs[0].last_due(now)
    )
    remember(jobs, now + MINUTE)

    due = [found.state.job for found in due_now(jobs, now + MINUTE)]

    assert due == ["monthly", "weekly"]


@pytest.mark.parametrize("outage", [0 * HOUR, 3 * HOUR, 3 * DAY], ids=str)
@pytest.mark.parametrize("first", ["old", "new"])
def test_two_crontabs_of_a_deploy_erase_nothing_that_is_due(
    first: str, outage: timedelta
) -> None:
    """Whichever ticks last before an outage, and first after it."""
    same, moved = line(MONTHLY, "same"), line(MONTHLY, "moved")
    crontabs = {
        "old": [same, moved, line(MONTHLY, "dropped")],
        "new": [same, line("0 5 1 * *", "moved")],
    }
    begin = datetime(2026, 11, 1, 3, 0, tzinfo=UTC)
    turns = ("old", "new") if first == "old" else ("new", "old")
    for ticks in range(6):
        for turn in turns:
            remember(crontabs[turn], begin + ticks * TEN_MINUTES)
    now = begin + HOUR + TEN_MINUTES + outage
    for turn in turns:
        remember(crontabs[turn], now)

    due = {
        turn: [due.state.job for due in due_now(crontabs[turn], now)] for turn in turns
    }

    assert due["old"] == ["same", "moved", "dropped"]
    assert due["new"] == (["moved", "same"] if outage else ["same"])


def test_a_line_is_forgotten_by_ticks_and_not_by_an_outage() -> None:
    job, other = line(MONTHLY), line(DAILY, "other")
    slot = datetime(2026, 11, 1, 4, 0, tzinfo=UTC)
    remember([job, other], slot - HOUR)
    for minutes in (50, 40, 30, 20):
        remember([other], slot - minutes * MINUTE)
    remember([other], slot + 10 * DAY)
    before = reasons(job, slot + 10 * DAY)
    remember([other], slot + 10 * DAY + TEN_MINUTES)

    assert before == ["missed"]
    assert reasons(job, slot + 10 * DAY + TEN_MINUTES) == []


def test_a_run_that_still_runs_is_waited_for_whatever_came_after_it() -> None:
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)
    make_run(
        job.job,
        outcome="running",
        started_at=NOON - 2 * HOUR,
        slot=job.last_due(NOON),
        seen_at=datetime.now(UTC),
    )
    make_run(
        job.job,
        outcome="skipped",
        started_at=NOON - HOUR,
        trigger="manual",
        exit_code=75,
    )

    assert reasons(job, NOON) == []


# -- failed --------------------------------------------------------------------------


def test_a_failure_is_tried_again_after_10_minutes_1_hour_6_hours_and_no_more() -> None:
    outcomes = ["failed", "timed out", "crashed"]
    world = World(
        [line(MONTHLY, outcome.replace(" ", "-")) for outcome in outcomes],
        outcome=lambda job, now: job.job.replace("-", " "),
    )
    slot = datetime(2026, 11, 1, 4, 0, tzinfo=UTC)
    world.play(slot - HOUR, slot + 8 * HOUR)
    world.play(slot + 8 * HOUR, slot + 3 * DAY, step=6 * HOUR)

    # Each counts from the failure before it.
    for outcome in outcomes:
        assert [
            (begun - slot, attempt)
            for job, _, begun, attempt in world.runs
            if job == outcome.replace(" ", "-")
        ] == [(0 * MINUTE, 1), (10 * MINUTE, 2), (70 * MINUTE, 3), (430 * MINUTE, 4)]


def test_a_retry_that_succeeds_is_the_last() -> None:
    job = line(MONTHLY)
    slot = datetime(2026, 11, 1, 4, 0, tzinfo=UTC)
    world = World(
        [job],
        outcome=lambda job, now: "succeeded" if now >= slot + HOUR else "failed",
    )
    world.play(slot - HOUR, slot + 2 * HOUR)
    world.play(slot + 2 * HOUR, slot + 3 * DAY, step=2 * HOUR)

    assert [attempt for *_, attempt in world.runs] == [1, 2, 3]


def test_a_new_slot_begins_anew() -> None:
    job = line(DAILY)
    world = World([job], outcome=lambda job, now: "failed")
    begin = datetime(2026, 11, 23, 0, 0, tzinfo=UTC)
    world.play(begin, begin + 2 * DAY, step=HOUR)

    assert [attempt for *_, attempt in world.runs] == [1, 2, 3, 4, 1, 2, 3, 4]


def test_an_interrupted_run_is_tried_again_and_counts_as_no_failure() -> None:
    job = line(MONTHLY)
    slot = datetime(2026, 11, 1, 4, 0, tzinfo=UTC)
    deploys = iter(["interrupted"] * 6)
    world = World([job], outcome=lambda job, now: next(deploys, "succeeded"))
    world.play(slot - HOUR, slot + 2 * HOUR)
    world.play(slot + 2 * HOUR, slot + DAY, step=2 * HOUR)

    assert [begun - slot for _, _, begun, _ in world.runs] == [
        n * TEN_MINUTES for n in range(7)
    ]


def test_a_run_that_was_refused_beside_another_is_tried_again() -> None:
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)
    slot = job.last_due(NOON)
    make_run(
        job.job, outcome="skipped", started_at=NOON - HOUR, slot=slot, exit_code=75
    )

    assert reasons(job, NOON) == ["skipped, attempt 2"]


def test_two_catch_ups_at_once_ask_for_the_same_attempt_which_one_gets() -> None:
    """Both plan alike, so that the unique claim decides."""
    job = line(MONTHLY)
    known(job, since=NOON - 60 * DAY)
    make_run(job.job, outcome="failed", started_at=NOON - HOUR, slot=job.last_due(NOON))

    first, second = (due_now([job], NOON)[0].state for _ in range(2))

    assert (first.slot, first.next_attempt) == (second.slot, second.next_attempt)


# -- each schedule of the crontab ----------------------------------------------------

PROJECTS = [
    job for job in read_crontab(ROOT / "crontab") if "catch_up" not in job.command
]
MONTH_ENDS = [
    datetime(2026, 11, 30, tzinfo=UTC),
    datetime(2027, 2, 28, tzinfo=UTC),
    datetime(2028, 2, 29, tzinfo=UTC),
    datetime(2026, 12, 31, tzinfo=UTC),  # of a year
    datetime(2028, 2, 28, tzinfo=UTC),  # before a leap day
]


@pytest.mark.parametrize(
    ("day", "days"),
    [
        (MONTH_ENDS[-2], 3),
        (MONTH_ENDS[-1], 3),
        *(pytest.param(day, 10, marks=pytest.mark.soak) for day in MONTH_ENDS),
    ],
    ids=lambda value: f"{value:%Y-%m-%d}" if isinstance(value, datetime) else value,
)
def test_a_worker_that_was_down_for_two_days_makes_up_for_each_job_once(
    day: datetime, days: int
) -> None:
    """`days` before and after it nothing else is run twice, or left out."""
    down, up = day, day + 2 * DAY + 12 * HOUR
    begin, end = down - days * DAY, up + days * DAY
    world = World(PROJECTS, is_up=lambda now: not down <= now < up)
    world.play(begin, end, step=HOUR)

    hours = [begin + n * HOUR for n in range((end - begin) // HOUR)]
    for job in PROJECTS:
        runs = [(slot, begun) for name, slot, begun, _ in world.runs if name == job.job]
        slots = {slot for slot, _ in runs}
        made_up = [slot for slot, begun in runs if begun != slot]
        every = {job.last_due(hour) for hour in hours}
        missed = {slot for slot in every if down <= slot < up}
        assert len(runs) == len(slots)
        assert made_up == ([max(missed)] if missed else [])
        assert slots | missed == {slot for slot in every if slot >= begin}


@pytest.mark.parametrize("job", PROJECTS, ids=lambda job: job.job)
def test_a_deploy_at_its_minute_loses_no_slot(job: ScheduledJob) -> None:
    slot = job.next_after(NOON)
    world = World([job], is_up=lambda now: not slot <= now < slot + 2 * MINUTE)
    world.play(slot - HOUR, slot + HOUR)

    assert world.runs == [(job.job, slot, slot + TEN_MINUTES, 1)]


def test_a_leap_days_slot_is_made_up_for_on_the_day_after() -> None:
    job = line("0 4 29 2 *")
    leap_day = datetime(2028, 2, 29, tzinfo=UTC)
    world = World([job], is_up=lambda now: now.date() != leap_day.date())
    world.play(leap_day - DAY, leap_day + 2 * DAY, step=HOUR)

    assert world.runs == [
        ("job", leap_day + 4 * HOUR, leap_day + DAY, 1),
    ]


@pytest.mark.parametrize("trigger", ["schedule", "manual"])
def test_a_leap_days_run_is_not_made_up_for_when_older_runs_are_forgotten(
    trigger: str,
) -> None:
    leap_day = datetime(2028, 2, 29, 4, 0, tzinfo=UTC)
    job = line("0 4 29 2 *")
    known(job, since=leap_day - DAY)
    for number in (1, 2):
        make_run(
            "job", slot=leap_day - number * DAY, started_at=leap_day - number * DAY
        )
    is_manual = trigger == "manual"
    slot = None if is_manual else leap_day
    make_run("job", slot=slot, started_at=leap_day, trigger=trigger)
    make_run("job", slot=None, started_at=leap_day, trigger="by hand")
    now = leap_day + 2 * KEEP_DAYS * DAY

    prune(now)

    assert reasons(job, now) == []
    assert [run.trigger for run in runs()] == (
        ["schedule", "manual"] if is_manual else ["schedule"]
    )


# -- the command ---------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_catch_up_runs_the_crontabs_line_and_its_run_is_recorded(
    tmp_path: Path, launcher: Launcher, test_environment: dict[str, str]
) -> None:
    name = "starview-cleanup-unverified-users"
    slot = datetime.now(UTC) - 3 * HOUR
    app = App(
        tmp_path,
        Path(),
        f"0 {slot.hour} * * * JOB={name} timeout 1h"
        " python manage.py cleanup_unverified_users --days=7\n",
    )
    (job,) = read_crontab(app.folder / "crontab")
    make_known(job, since=slot - DAY)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def catch_up(*options: str) -> str:
        environment = merged({**test_environment, "PATH": path})
        done = launcher.run(["catch_up", *options], environment, app.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = catch_up("--dry-run")
    catch_up()
    catch_up()

    found = [(run.job, run.trigger, run.outcome) for run in runs()]
    assert found == [(name, "catch-up", "succeeded")]
    assert f"{name}: slot " in listed
    assert "(missed)" in listed


@pytest.mark.django_db(transaction=True)
def test_ticks_that_did_nothing_share_a_row_and_a_failure_has_its_own(
    commands: Commands, tmp_path: Path
) -> None:
    for crontab in (ROOT / "crontab", ROOT / "crontab", tmp_path / "none"):
        commands.run("catch_up", settings={"CRONTAB": str(crontab)})
    commands.run("catch_up")

    ticks = JobRun.objects.order_by("id")
    assert [(tick.job, tick.outcome, tick.counts) for tick in ticks] == [
        ("starview-catch-up", "succeeded", {"runs": 0, "ticks": 3}),
        ("catch_up", "failed", {"runs": 0, "ticks": 1}),
    ]
    assert "the crontab has no job" in ticks[1].error
    assert month_costs(datetime.now(UTC), lines=5).cost == 0


@pytest.mark.django_db(transaction=True)
def test_a_dry_run_changes_nothing(manage: Manage) -> None:
    for job in PROJECTS:
        make_known(job, since=datetime.now(UTC) - 40 * DAY)

    done = manage("catch_up", "--dry-run")

    assert done.returncode == 0
    assert not JobRun.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_with_the_database_away_catch_up_fails_in_one_line_and_mails_that_once(
    manage: Manage, services: LocalServices, tmp_path: Path
) -> None:
    before = len(services.sent_mail())
    url = "postgresql://u:hidden-word@127.0.0.1:9/x"

    for _ in range(2):
        done = manage("catch_up", env={"DATABASE_URL": url, "TMPDIR": str(tmp_path)})

        assert done.returncode == 1
        assert "Connection refused" in done.stderr
        assert "Traceback" not in done.stderr
        assert "hidden-word" not in done.stderr

    (mail,) = services.sent_mail()[before:]
    assert "Subject: [Starview] the database does not answer" in mail


@pytest.mark.django_db(transaction=True)
def test_catch_up_takes_a_locked_table_for_no_outage(
    commands: Commands, services: LocalServices, tmp_path: Path
) -> None:
    before = len(services.sent_mail())
    with session() as holder:
        holder.cursor().execute("LOCK TABLE maintenance_jobrun")
        done = commands.run(
            "catch_up",
            environment={"TMPDIR": str(tmp_path)},
            constants={
                "starview_app.maintenance.running.ledger.LOCK_TIMEOUT": "100ms",
            },
        )

    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(
        "CommandError: database: canceling statement due to lock timeout"
    )
    assert len(services.sent_mail()) == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("code", "errors"),
    [
        # The database was away when it began: no attempt is used up.
        (69, []),
        # It may have run, and the crontab is not to blame.
        (1, ["it ended with 1 and left no record"]),
    ],
)
def test_the_line_of_a_job_without_a_record_is_not_blamed_for_it(
    code: int, errors: list[str], commands: Commands, tmp_path: Path
) -> None:
    crontab, slot = due_two_hours_ago(tmp_path, "python")
    away = tmp_path / "timeout"
    away.write_text(f"#!/bin/sh\nexit {code}\n")
    away.chmod(0o755)

    done = commands.run(
        "catch_up",
        settings={"CRONTAB": str(crontab)},
        environment={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )

    assert f"exit_code={code}" in done.err
    assert [run.error.partition(":")[0] for run in runs()] == errors


def due_two_hours_ago(folder: Path, program: str) -> tuple[Path, datetime]:
    """A crontab of one line, its `program` given, that nobody has run; and its slot."""
    crontab = folder / "crontab"
    slot = (datetime.now(UTC) - 2 * HOUR).replace(second=0, microsecond=0)
    crontab.write_text(
        f"{slot.minute} {slot.hour} * * * JOB=job timeout 1h"
        f" {program} manage.py run_job clearsessions\n"
    )
    (job,) = read_crontab(crontab)
    make_known(job, since=slot - DAY)
    return crontab, slot


@pytest.mark.django_db(transaction=True)
def test_a_line_that_cannot_start_its_job_is_a_failed_run(
    commands: Commands, tmp_path: Path
) -> None:
    """Its shell says so to the log alone, each time."""
    crontab, slot = due_two_hours_ago(tmp_path, "python")
    settings, nowhere = {"CRONTAB": str(crontab)}, {"PATH": str(tmp_path)}

    for _ in range(2):
        done = commands.run("catch_up", settings=settings, environment=nowhere)
        assert done.code == 0

    run = runs().get()  # its second attempt waits for ten minutes
    assert (run.job, run.attempt, run.trigger) == ("job", 1, "catch-up")
    assert (run.outcome, run.exit_code, run.slot) == (
        "failed",
        127,
        slot,
    )
    assert run.error.startswith("its line in the crontab ended with 127 before the job")

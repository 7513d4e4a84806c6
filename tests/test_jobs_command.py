"""`jobs` shows the jobs and their runs, and starts, pauses and resumes them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

import starview
from starview_app.maintenance.history import costs
from starview_app.maintenance.history.costs import month_costs
from starview_app.maintenance.history.lines import _printable, duration
from starview_app.maintenance.history.runs import history, overview
from starview_app.maintenance.models import Job, JobRun
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.running import gone as gone_module
from starview_app.maintenance.schedule.crontab import ScheduledJob, parse_crontab
from tests.archive_processes import Commands
from tests.conftest import ROOT, Manage, merged
from tests.factories import (
    CLEANUP,
    NOW,
    contents,
    execute,
    make_known,
    make_run,
    wait_until,
)

Outcome, Trigger = JobRun.Outcome, JobRun.Trigger

EMAIL = "starview-cleanup-email-suppressions"
ARCHIVE = "starview-archive-audit-logs"
SESSIONS = "starview-clear-sessions"
NAMES = [CLEANUP, EMAIL, ARCHIVE, SESSIONS]
OWN_TABLES = [
    f"maintenance_{name}" for name in ("jobrun", "job", "scheduleline", "announcement")
]
SUBCOMMANDS = [
    "list",
    "history",
    "show",
    "run",
    "costs",
    "pause",
    "resume",
    "health",
    "check",
]

Crontab = Callable[..., list[ScheduledJob]]


@pytest.fixture
def crontab(settings: Settings, tmp_path: Path) -> Crontab:
    """Make these lines the schedule."""

    def write(*lines: str) -> list[ScheduledJob]:
        settings.CRONTAB = tmp_path / "crontab"
        text = "".join(f"{line}\n" for line in lines)
        settings.CRONTAB.write_text(text)
        return parse_crontab(text)[0]

    return write


@pytest.fixture
def at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)


def line_of(name: str) -> ScheduledJob:
    lines, _ = parse_crontab((ROOT / "crontab").read_text())
    return next(line for line in lines if line.job == name)


def jobs(*arguments: str) -> str:
    stdout = StringIO()
    call_command("jobs", *arguments, stdout=stdout)
    return stdout.getvalue()


def jobs_json(*arguments: str) -> dict[str, Any]:
    text = jobs(*arguments, "--json")
    assert text.count("\n") == 1
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def hold_lock_of(run: JobRun) -> None:
    """As the process that watches over it does."""
    execute(
        "SELECT pg_advisory_lock_shared(hashtextextended(%s, 0))",
        f"starview-maintenance:run:{run.run_id}",
    )


# -- list ---------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_the_list_shows_schedule_last_run_and_next_run_in_the_order_of_the_crontab(
    crontab: Crontab,
) -> None:
    crontab(
        f"0 3 * * 0 JOB={EMAIL} python manage.py cleanup_email_suppressions",
        f"0 2 * * * JOB={CLEANUP} python manage.py cleanup_unverified_users",
        "*/10 * * * * JOB=starview-catch-up python manage.py catch_up",
    )
    make_run(started_at=NOW - timedelta(days=2))
    make_run(started_at=NOW - timedelta(days=1))

    text = jobs()

    assert [re.split("  +", line) for line in text.splitlines()] == [
        ["JOB", "LAST RUN (UTC)", "NEXT RUN (UTC)"],
        [EMAIL, "never", "2026-03-01 03:00"],
        ["", "At 03:00 on Sunday"],
        [CLEANUP, "succeeded 2026-02-28 02:00", "2026-03-02 02:00"],
        ["", "At 02:00 every day"],
        ["starview-catch-up", "never", "2026-03-01 02:10"],
        ["", "Every 10th minute of every hour"],
    ]
    # Aligned.
    assert len({line.find("2026-03-0") for line in text.splitlines()[1::2]}) == 1
    assert text == jobs("list")


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_run_under_way_is_shown_rather_than_one_that_was_refused_beside_it() -> None:
    make_run(
        outcome=Outcome.RUNNING,
        started_at=NOW - timedelta(minutes=1),
        seen_at=datetime.now(UTC),
    )
    make_run(outcome=Outcome.SKIPPED, exit_code=75)  # refused to run beside it

    (found, *_) = overview(parse_crontab((ROOT / "crontab").read_text())[0], NOW)

    assert found.last_run
    assert (found.last_run.outcome, found.last_run.seconds) == ("running", 60.0)


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_killed_run_is_not_shown_as_running() -> None:
    make_run(outcome=Outcome.RUNNING, started_at=NOW - timedelta(minutes=1))

    assert "crashed 2026-03-01 01:59" in jobs()
    assert "crashed" in jobs("history")
    assert "running" not in jobs("history")


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_paused_job_says_until_when_and_its_next_run_is_after_that() -> None:
    jobs("pause", CLEANUP, "--until", "2026-04-01")

    (job, *_) = jobs_json()["jobs"]

    assert job["paused_until"] == "2026-04-01T00:00:00+00:00"
    assert job["next_run_at"] == "2026-04-01T02:00:00+00:00"
    assert "    PAUSED until 2026-04-01 00:00; At 02:00 every day\n" in jobs()


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_overdue_and_failing_jobs_are_marked() -> None:
    make_known(line_of(EMAIL), since=NOW - timedelta(days=30))
    run = make_run(slot=NOW, outcome=Outcome.FAILED)

    text = jobs()

    assert f"    FAILING: see `jobs show {run.id}`; At 02:00 every day\n" in text
    overdue = "    OVERDUE: not run since 2026-02-22 03:00 UTC; At 03:00 on Sunday\n"
    assert overdue in text


@pytest.mark.django_db
def test_a_crontab_without_a_job_lists_none(crontab: Crontab) -> None:
    crontab("# nothing yet")

    assert jobs() == "No jobs\n"
    assert jobs_json() == {"jobs": []}
    assert jobs_json("costs")["jobs"] == []


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_an_attempt_by_hand_does_not_make_a_job_failing() -> None:
    make_run(trigger=Trigger.HAND, outcome=Outcome.FAILED)

    assert "FAILING" not in jobs()


# -- history ------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_the_history_shows_time_duration_status_and_cost_newest_first() -> None:
    first = make_run(
        started_at=NOW - timedelta(days=1), seconds=90.0, counts={"deleted": 2}
    )
    second = make_run(
        ARCHIVE,
        outcome=Outcome.FAILED,
        trigger=Trigger.CATCH_UP,
        attempt=2,
        slot=NOW,
        error="the bucket is full",
    )

    number = max(len(str(second.id)), 3)
    lines = jobs("history").splitlines()

    assert lines[1:] == [
        f"{second.id:>{number}}  2026-03-01 02:00  starview-archive-audit-logs      "
        "     30.0s  failed     $0.000080",
        "    catch-up, attempt 2: the bucket is full",
        f"{first.id:>{number}}  2026-02-28 02:00  starview-cleanup-unverified-users"
        "    1m 30s  succeeded  $0.000240",
        "    schedule: deleted 2",
    ]


@pytest.mark.django_db
def test_the_history_can_be_of_one_job_of_failures_and_of_so_many() -> None:
    ours = [make_run(started_at=NOW - timedelta(days=days)).id for days in range(5)]
    failed = [
        make_run(outcome=outcome, started_at=NOW - timedelta(days=10)).id
        for outcome in (Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.FAILED)
    ]
    for outcome in (Outcome.INTERRUPTED, Outcome.SKIPPED):
        make_run(SESSIONS, outcome=outcome)

    def ids(*arguments: str) -> list[int]:
        return [run["id"] for run in jobs_json("history", *arguments)["runs"]]

    assert ids(CLEANUP) == [*ours, *reversed(failed)]
    assert ids("--failed") == [*reversed(failed)]
    assert ids(CLEANUP, "--limit", "2") == ours[:2]
    assert ids(SESSIONS, "--failed") == []
    assert len(ids()) == 10


@pytest.mark.django_db
def test_a_job_without_runs_has_an_empty_history() -> None:
    assert jobs("history", CLEANUP) == "No runs\n"


@pytest.mark.django_db
def test_a_job_that_left_the_crontab_keeps_its_history() -> None:
    make_run("starview-of-old")

    assert "starview-of-old" in jobs("history", "starview-of-old")
    assert jobs("history", "starview-of-old", "--failed") == "No runs\n"


@pytest.mark.django_db
def test_the_history_of_a_name_that_nobody_knows_is_an_error_with_the_names() -> None:
    make_run("starview-of-old")
    make_run("diagnose_db")

    with pytest.raises(CommandError) as caught:
        jobs("history", "cleanup")

    known = ", ".join([*NAMES, "starview-catch-up", "diagnose_db", "starview-of-old"])
    assert str(caught.value) == (
        f"there is no job 'cleanup' HINT: the names are {known}"
    )
    assert caught.value.returncode == 2


@pytest.mark.django_db
def test_text_from_outside_cannot_forge_a_line() -> None:
    make_run("evil\nname" + "x" * 150, error="one\n2  2026-01-01 \x1b[2J", counts={})

    text = jobs("history")

    assert len(text.splitlines()) == 3
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


# -- show ---------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_show_tells_everything_about_one_run_with_its_output() -> None:
    run = make_run(
        slot=NOW,
        outcome=Outcome.FAILED,
        counts={"deleted": 2, "problems": 1},
        error="it is incomplete",
        output="\x1b[32mFound\x1b[0m 3\r\n\tä\x01\x9b\u2028\u202e done\n",
    )

    assert jobs("show", str(run.id)).splitlines() == [
        f"run       {run.id}",
        f"run id    {run.run_id.hex}",
        f"job       {CLEANUP}",
        "outcome   failed, exit code 1",
        "started   2026-03-01 02:00:00 UTC",
        "finished  2026-03-01 02:00:30 UTC",
        "duration  30.0s",
        "cost      $0.000080",
        "trigger   schedule, attempt 1",
        "slot      2026-03-01 02:00 UTC",
        "command   cleanup_unverified_users --days=7",
        "process   7 on a-container",
        "counts    deleted 2, problems 1",
        "error     it is incomplete",
        "",
        "output:",
        "Found 3",
        "\tä done",
    ]


def test_output_keeps_its_lines_and_tabs_and_loses_what_controls_a_terminal() -> None:
    assert (
        _printable("a\tb\n\x1b[1;31mc\x1b]0;title\x07\x85\u200b\n\n")
        == "a\tb\nc]0;title"
    )


@pytest.mark.django_db(transaction=True)
def test_show_of_a_run_under_way_tells_what_was_saved_so_far(
    commands: Commands,
) -> None:
    run = make_run(outcome=Outcome.RUNNING, output="half of it")
    hold_lock_of(run)

    shown = commands.run("jobs", "show", str(run.id), supervised=True)
    listed = commands.run("jobs", supervised=True)

    assert "outcome   running\n" in shown.out
    assert "output so far, as it was last saved:\nhalf of it\n" in shown.out
    assert "running since 2026-03-01 02:00" in listed.out
    execute("SELECT pg_advisory_unlock_all()")


@pytest.mark.django_db
def test_show_finds_a_run_by_its_number_and_by_its_id_in_the_log() -> None:
    make_run()
    run = make_run(run_id="0123456789ab4def8123456789abcdef")
    hexadecimal = "0123456789ab4def8123456789abcdef"
    dashed = "01234567-89AB-4def-8123-456789abcdef"

    for key in (str(run.id), hexadecimal[:12], hexadecimal[:20], hexadecimal, dashed):
        assert jobs_json("show", key)["run"]["id"] == run.id

    for key in ("0123456789ac", "123456789012", "9" * 19):
        with pytest.raises(CommandError, match="^there is no run "):
            jobs("show", key)
    for key in ("0123456789a", "0123456789ag", "9" * 20 + "x", "-1", "\u0663"):
        with pytest.raises(CommandError, match="neither a run's number nor its id"):
            jobs("show", "--", key)


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_job_that_fails_is_not_shown_as_succeeded_because_of_a_command_by_hand() -> (
    None
):
    failed = make_run(slot=NOW, outcome=Outcome.FAILED)
    for minutes in range(12):
        later = NOW + timedelta(minutes=minutes)
        make_run(trigger=Trigger.HAND, started_at=later)

    (overview, *_) = jobs_json()["jobs"]

    assert overview["last_run"]["id"] == overview["failing_run"] == failed.id
    assert f"{CLEANUP}  " in jobs()
    assert "failed 2026-03-01 02:00" in jobs()


@pytest.mark.django_db
def test_the_history_of_catch_up_is_not_denied() -> None:
    assert jobs("history", "starview-catch-up") == "No runs\n"


@pytest.mark.django_db
def test_show_of_an_unknown_run_is_one_line() -> None:
    with pytest.raises(
        CommandError, match="^there is no run 999999999 HINT: "
    ) as caught:
        jobs("show", "999999999")

    assert caught.value.returncode == 1


# -- run ----------------------------------------------------------------------------


def on_path(environment: dict[str, str]) -> dict[str, str]:
    """`python` of the crontab is the one that runs these tests."""
    folder = str(Path(sys.executable).parent)
    return {**environment, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture
def with_python(manage: Manage, test_environment: dict[str, str]) -> Manage:
    test_environment.update(on_path({}))
    return manage


@pytest.mark.django_db(transaction=True)
def test_run_runs_the_line_of_the_crontab_and_records_it_as_manual(
    with_python: Manage,
) -> None:
    ended = with_python("jobs", "run", CLEANUP)

    assert ended.returncode == 0, ended.stderr
    assert "Found 0 unverified user(s) older than 7 days" in ended.stdout
    run = JobRun.objects.get()
    assert (run.job, run.trigger, run.slot) == (CLEANUP, Trigger.MANUAL, None)
    assert run.outcome == Outcome.SUCCEEDED


@pytest.mark.django_db(transaction=True)
def test_run_as_json_prints_the_record_and_leaves_stdout_to_it(
    with_python: Manage,
) -> None:
    ended = with_python("jobs", "run", CLEANUP, "--json", env={"LOG_FORMAT": "json"})

    facts = json.loads(ended.stdout)
    assert facts["exit_code"] == 0
    assert facts["run"]["id"] == JobRun.objects.get().id
    assert "Found 0 unverified" in facts["run"]["output"]
    assert "Found 0 unverified" in ended.stderr


@pytest.mark.django_db(transaction=True)
def test_run_ends_with_75_while_another_run_is_under_way(with_python: Manage) -> None:
    execute(
        "SELECT pg_advisory_lock(hashtextextended(%s, 0))",
        "starview-maintenance:cleanup_unverified_users",
    )

    ended = with_python("jobs", "run", CLEANUP)

    execute("SELECT pg_advisory_unlock_all()")
    assert ended.returncode == 75
    assert "is under way" in ended.stderr


@pytest.mark.django_db(transaction=True)
def test_run_of_a_paused_job_runs_it(with_python: Manage) -> None:
    until = timezone.now() + timedelta(days=3)
    Job.objects.create(name=CLEANUP, paused_until=until)

    ended = with_python("jobs", "run", CLEANUP)

    assert "Found 0 unverified" in ended.stdout
    assert JobRun.objects.get().outcome == Outcome.SUCCEEDED


@pytest.mark.django_db(transaction=True)
def test_run_passes_a_signal_on_and_ends_as_the_job_ends(
    test_environment: dict[str, str],
) -> None:
    execute("BEGIN; LOCK TABLE auth_user IN ACCESS EXCLUSIVE MODE")
    try:
        with subprocess.Popen(
            [sys.executable, "manage.py", "jobs", "run", CLEANUP],
            cwd=ROOT,
            env=merged(on_path(test_environment)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            wait_until(is_waiting_for_a_lock, "the job waits for the table's lock")
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=30)
    finally:
        execute("ROLLBACK")

    assert process.returncode == 1, output
    assert JobRun.objects.get().outcome == Outcome.INTERRUPTED


def is_waiting_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
        )
        (count,) = cursor.fetchone()
    return bool(count)


# -- costs --------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_month_costs_what_was_run_in_it() -> None:
    now = datetime(2028, 2, 10, 12, 0, tzinfo=UTC)
    for day, seconds in ((8, 60.0), (9, 30.0), (10, 120.0)):
        started = now.replace(day=day, hour=2)
        make_run("daily", started_at=started, seconds=seconds)
    make_run("daily", started_at=datetime(2028, 1, 31, 23, 59, tzinfo=UTC))
    make_run("by-hand", started_at=now, seconds=60.0)

    month = month_costs(now, lines=5)

    assert [(job.name, job.runs, job.seconds) for job in month.jobs] == [
        ("by-hand", 1, 60.0),
        ("daily", 3, 210.0),
    ]
    assert month.cost == pytest.approx(270 / 60 * 0.00016)
    assert (month.as_cron_jobs, month.as_worker) == (5.0, 7.0)


@pytest.mark.django_db
def test_a_run_under_way_costs_until_now_and_a_skipped_one_is_no_run() -> None:
    make_run("daily", outcome=Outcome.RUNNING, started_at=NOW - timedelta(minutes=1))
    make_run("daily", outcome=Outcome.SKIPPED, seconds=0.0)

    (cost,) = month_costs(NOW, lines=5).jobs

    assert (cost.runs, cost.seconds) == (1, 60.0)


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_the_costs_are_a_table_beside_both_prices() -> None:
    make_run(started_at=NOW - timedelta(hours=1), seconds=60.0)

    lines = jobs("costs").splitlines()

    assert lines[0] == "2026-03 (UTC) until now, at $0.00016 a minute:"
    assert lines[2].split() == [CLEANUP, "1", "$0.000160"]
    assert lines[3].split() == ["total", "$0.000160"]
    assert lines[4:] == [
        "Render bills at least $5.00 a month for these as cron jobs, and $7.00 for one"
        " worker that runs them all."
    ]


def test_the_guide_s_minute_costs_what_the_guide_says() -> None:
    assert costs.cost_of(60) == 0.00016
    assert costs.cost_of(30 * 60) == 0.0048


# -- pause and resume ---------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_schedule_skips_a_paused_job(manage: Manage) -> None:
    until_day = f"{timezone.now() + timedelta(days=2):%Y-%m-%d}"
    assert manage("jobs", "pause", CLEANUP, "--until", until_day).returncode == 0

    ended = manage("cleanup_unverified_users", "--days=7", env={"JOB": CLEANUP})

    assert ended.returncode == 0
    assert JobRun.objects.get().outcome == Outcome.SKIPPED
    assert f"PAUSED until {until_day} 00:00" in manage("jobs").stdout


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_pause_remembers_the_moment_and_says_the_next_run() -> None:
    said = jobs("pause", CLEANUP, "--until", "2026-03-10T12:30")

    assert said == (
        f"{CLEANUP} is paused until 2026-03-10 12:30 UTC;"
        " its next run is at 2026-03-11 02:00 UTC\n"
    )
    job = Job.objects.get()
    assert (job.name, job.paused_at) == (CLEANUP, NOW)
    assert job.paused_until == datetime(2026, 3, 10, 12, 30, tzinfo=UTC)


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_pause_of_a_paused_job_moves_the_moment_and_nothing_else() -> None:
    Job.objects.create(name=CLEANUP)
    jobs("pause", CLEANUP, "--until", "2026-03-10")

    facts = jobs_json("pause", CLEANUP, "--until", "2026-03-05")

    assert facts == {
        "job": CLEANUP,
        "paused_until": "2026-03-05T00:00:00+00:00",
        "next_run_at": "2026-03-05T02:00:00+00:00",
    }
    job = Job.objects.get()
    assert job.paused_until == datetime(2026, 3, 5, tzinfo=UTC)
    assert job.paused_at == NOW


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_resume_ends_a_pause_and_says_when_there_is_none() -> None:
    jobs("pause", CLEANUP, "--until", "2026-03-10")

    first = jobs("resume", CLEANUP)
    second = jobs_json("resume", CLEANUP)

    assert first == f"{CLEANUP} is resumed\n"
    assert second == {"job": CLEANUP, "paused_until": None, "was_paused": False}
    job = Job.objects.get()
    assert (job.paused_at, job.paused_until) == (NOW, NOW)


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_pause_that_is_over_is_none() -> None:
    Job.objects.create(name=CLEANUP, paused_until=NOW - timedelta(days=1))

    assert jobs("resume", CLEANUP) == f"{CLEANUP} is not paused\n"


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_job_that_left_the_crontab_can_be_resumed() -> None:
    Job.objects.create(name="of-old", paused_until=NOW + timedelta(days=1))

    assert jobs("resume", "of-old") == "of-old is resumed\n"


@pytest.mark.usefixtures("at_now")
@pytest.mark.parametrize(
    "when",
    [
        "2026-03-01T02:00",  # now
        "2026-03-01",  # its midnight is over
        "2027-04-06",  # more than 400 days
        "2026-02-30",
        "2026-03-05 12:00",
        "2026-03-05T12:00Z",
        "2026-03-05T12:00:00",
        "2026-03-05T1:5",
        "tomorrow",
        "",
    ],
)
def test_a_moment_that_is_no_moment_to_come_is_refused(when: str) -> None:
    with pytest.raises(CommandError, match="argument --until"):
        jobs("pause", CLEANUP, "--until", when)


@pytest.mark.django_db
@pytest.mark.usefixtures("at_now")
def test_a_pause_may_last_400_days_and_not_a_minute_more() -> None:
    jobs("pause", CLEANUP, "--until", "2027-04-05T02:00")

    with pytest.raises(CommandError, match="within the next 400 days"):
        jobs("pause", CLEANUP, "--until", "2027-04-05T02:01")


@pytest.mark.django_db
@pytest.mark.parametrize("subcommand", ["pause", "resume"])
def test_a_line_that_is_not_recorded_cannot_be_paused(subcommand: str) -> None:
    until = ["--until", f"{timezone.now() + timedelta(days=9):%Y-%m-%d}"]

    with pytest.raises(CommandError, match="it does not ask") as caught:
        jobs(subcommand, "starview-catch-up", *(until if subcommand == "pause" else []))

    assert caught.value.returncode == 2


# -- speed --------------------------------------------------------------------------


@pytest.mark.django_db
def test_no_subcommand_reads_all_rows(crontab: Crontab) -> None:
    crontab(
        *[
            f"0 2 * * * JOB=job-{number} python manage.py cleanup_unverified_users"
            for number in range(20)
        ]
    )
    make_many_runs(20_000, jobs=20)

    read = {
        words: rows_read_by(*words.split())
        for words in (
            *("list", "history", "history --failed", "history job-7 --limit 10"),
            *("show 1", "costs", "health"),
        )
    }

    # Ten or thirty of each job, and of a slot, at most.
    assert [words for words in read if not 0 <= read[words] < 1_500] == [], read
    assert rows_read_by("history", "nobody") < 100


@pytest.mark.django_db
def test_a_job_that_has_not_run_for_long_is_found_without_reading_the_others(
    crontab: Crontab,
) -> None:
    crontab("0 2 * * * JOB=job-3 python manage.py cleanup_unverified_users")
    make_many_runs(20_000, jobs=4)
    execute(
        "DELETE FROM maintenance_jobrun"
        " WHERE job = 'job-3' AND started_at > now() - interval '872 days'"
    )

    for words in ("list", "history job-3", "costs"):
        assert rows_read_by(*words.split()) < 100, words


@pytest.mark.django_db
def test_lists_never_read_the_output_of_a_run() -> None:
    make_run(output="secret")

    with CaptureQueriesContext(connection) as queries:
        jobs()
        jobs("history")
        jobs("costs")

    assert not [query for query in queries if "output" in query["sql"]]


def make_many_runs(count: int, *, jobs: int) -> None:
    """Finished runs of `jobs` jobs in turns, one each hour, long before this month."""
    execute(
        """
        INSERT INTO maintenance_jobrun (
            run_id, job, slot, attempt, trigger, command, host, pid, started_at,
            outcome, finished_at, seconds, exit_code, counts, output, error
        )
        SELECT
            gen_random_uuid(), 'job-' || number %% %s, NULL, 1, 'schedule', 'c', 'h', 1,
            now() - interval '40 days' - number * interval '1 hour',
            CASE WHEN number %% 500 = 0 THEN 'failed' ELSE 'succeeded' END,
            now(), 1.0, 0, '{}', repeat('x', 1000), ''
        FROM generate_series(1, %s) AS number
        """,
        jobs,
        count,
    )
    execute("ANALYZE maintenance_jobrun")


def rows_read_by(*arguments: str) -> int:
    before = _rows_read()
    # `show` and `history` find none, `health` is not healthy.
    with suppress(CommandError, SystemExit):
        jobs(*arguments)
    return _rows_read() - before


def _rows_read() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables"
            " WHERE relname = 'maintenance_jobrun'"
        )
        (count,) = cursor.fetchone()
    return int(count)


# -- as a process -------------------------------------------------------------------


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_each_subcommand_explains_itself_in_a_sentence(
    subcommand: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        call_command("jobs", subcommand, "--help")

    assert caught.value.code == 0
    paragraph = capsys.readouterr().out.split("\n\n")[1]
    assert paragraph.endswith(".")


def test_the_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_command("jobs", "--help")

    text = capsys.readouterr().out
    assert [name for name in SUBCOMMANDS if f"\n    {name} " not in text] == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list"], 0),
        (["costs"], 0),
        (["history", "nobody"], 2),
        (["show", "1"], 1),
        (["show", "x"], 2),
        (["history", "--limit", "0"], 2),
        (["listen"], 2),
        (["run", "nobody"], 2),
        (["run"], 2),
        (["pause", CLEANUP, "--until", "2026-01-01"], 2),
        (["pause", CLEANUP], 2),
        (["resume", "nobody"], 2),
    ],
)
def test_the_exit_code_tells_wrong_options_from_what_is_not_there(
    commands: Commands, arguments: list[str], code: int
) -> None:
    ended = commands.run("jobs", *arguments, supervised=True)

    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arguments", [["list"], ["history"], ["costs"], ["health"]])
def test_json_stays_json_where_every_line_is_json(
    manage: Manage, arguments: list[str]
) -> None:
    run = make_run(started_at=timezone.now(), error="ä\u2028\x1b")

    ended = manage("jobs", *arguments, "--json", env={"LOG_FORMAT": "json"})

    assert ended.returncode == 0, ended.stderr
    assert "event" not in json.loads(ended.stdout)
    assert ended.stdout.isascii()
    assert run.error not in ended.stdout


@pytest.mark.django_db(transaction=True)
def test_json_may_be_asked_for_before_the_subcommand(commands: Commands) -> None:
    assert json.loads(
        commands.run("jobs", "--json", "history", supervised=True).out
    ) == {"runs": []}


@pytest.mark.django_db
def test_json_tells_the_times_in_utc_as_iso_8601() -> None:
    make_run()

    (run,) = jobs_json("history")["runs"]

    assert run["started_at"] == "2026-03-01T02:00:00+00:00"
    assert run["cost"] == 0.00008


@pytest.fixture
def looker() -> Iterator[str]:
    """A role of the database that may read our tables, and nothing else."""
    execute("CREATE ROLE looker; GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker")
    yield "looker"
    execute("RESET ROLE; DROP OWNED BY looker; DROP ROLE looker")


def all_that_looks(run: int) -> list[str]:
    """What each command that only looks prints; an unknown run is an error."""
    stdout = StringIO()
    call_command("catch_up", "--dry-run", stdout=stdout)
    said = [stdout.getvalue()]
    for arguments in (["list"], ["history"], ["costs"], ["health"]):
        with suppress(SystemExit):  # of what is not healthy
            said.append(jobs(*arguments))
    with suppress(CommandError):
        said.append(jobs("show", str(run)))
    return said


@pytest.mark.django_db(transaction=True)
def test_what_only_looks_changes_nothing_and_needs_no_right_to(
    looker: str, crontab: Crontab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gone_module, "RESTART_PATIENCE", "0 s")
    (line,) = crontab(f"0 4 1 * * JOB={ARCHIVE} python manage.py archive_audit_logs")
    make_known(line, since=NOW)
    gone = make_run(outcome=Outcome.RUNNING, seen_at=NOW + timedelta(seconds=12))
    before = contents(*OWN_TABLES)

    execute("SET ROLE looker")
    due, listed, history, *_, shown = all_that_looks(gone.id)
    # In a deploy the crontab of the image before.
    crontab(f"0 5 * * * JOB={SESSIONS} python manage.py run_job clearsessions")
    all_that_looks(gone.id)
    execute("RESET ROLE")

    assert due.startswith(f"{ARCHIVE}: slot ")
    assert due.endswith(" (missed)\n")
    assert "OVERDUE: not run since " in listed
    assert "12.0s  crashed" in history
    assert "outcome   crashed\n" in shown
    assert "finished  2026-03-01 02:00:12 UTC\n" in shown
    assert contents(*OWN_TABLES) == before


@pytest.mark.django_db(transaction=True)
def test_what_only_looks_makes_no_table() -> None:
    execute(f"DROP TABLE {', '.join(OWN_TABLES)}")
    try:
        said = all_that_looks(1)

        assert said[0] == "Nothing to catch up with\n"
        assert said[1].count("  never  ") == 5
        assert said[2] == "No runs\n"
        assert said[4].startswith("healthy: ")
        assert not set(OWN_TABLES) & set(connection.introspection.table_names())
    finally:
        create_own_tables()


@pytest.mark.django_db
def test_a_database_that_does_not_answer_is_one_line(manage: Manage) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}

    listed = manage("jobs", env=nowhere)
    health = manage("jobs", "health", env=nowhere)

    assert (listed.returncode, health.returncode) == (1, 1)
    assert listed.stderr.startswith("CommandError: database: ")
    assert listed.stderr.count("\n") == 1
    assert health.stdout.startswith("unhealthy: database: ")
    assert health.stdout.count("\n") == 1


@pytest.mark.django_db(transaction=True)
def test_health_exits_1_and_says_what_is_overdue(commands: Commands) -> None:
    make_known(line_of(CLEANUP), since=NOW)

    ended = commands.run("jobs", "health", supervised=True)
    as_json = commands.run("jobs", "health", "--json", supervised=True)

    assert (ended.code, as_json.code) == (1, 1)
    assert ended.out.startswith(f"unhealthy: {CLEANUP}: not run since ")
    facts = json.loads(as_json.out)
    assert facts["healthy"] is False
    assert [f"unhealthy: {text}" for text in facts["problems"]] == (
        ended.out.splitlines()
    )


# -- check --------------------------------------------------------------------------


@pytest.mark.django_db
def test_check_reads_the_crontab_without_a_database(manage: Manage) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}

    ended = manage("jobs", "check", env=nowhere)
    as_json = manage("jobs", "check", "--json", env=nowhere)

    assert ended.stdout == "crontab is good: 5 jobs\n"
    assert ended.returncode == 0
    assert json.loads(as_json.stdout) == {"jobs": 5, "findings": []}


@pytest.mark.django_db
def test_check_tells_each_mistake_with_its_line_and_exits_1(
    commands: Commands, tmp_path: Path
) -> None:
    wrong = tmp_path / "crontab"
    wrong.write_text("# good\n61 * * * * JOB=a timeout 1m python manage.py migrate\n")

    ended = commands.run("jobs", "check", str(wrong), supervised=True)
    missing = commands.run("jobs", "check", str(tmp_path / "none"), supervised=True)

    assert ended.code == 1
    # Of the file as a whole, then of its lines.
    whole, times, *_ = ended.out.splitlines()
    assert re.fullmatch("crontab: no line runs catch_up: .+ HINT: .+", whole)
    assert re.fullmatch("crontab line 2: bad times: bad minute: '61' HINT: .+", times)
    assert missing.code == 1
    assert missing.err.startswith("CommandError: cannot read ")


# -- text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (59.94, "59.9s"),
        (60, "1m 00s"),
        (3599.4, "59m 59s"),
        (3600, "1h 00m 00s"),
        (90_061, "25h 01m 01s"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.django_db
def test_runs_of_the_same_moment_are_listed_by_number() -> None:
    ids = [make_run().id for _ in range(3)]

    found = history(None, only_failed=False, limit=2, now=NOW)

    assert [run.id for run in found] == [ids[2], ids[1]]


@pytest.mark.django_db
def test_the_version_is_the_images(manage: Manage) -> None:
    done = manage("jobs", "--version")

    assert done.stdout.startswith(f"starview-maintenance {starview.__version__} (")

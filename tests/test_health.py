"""A healthy container has a living scheduler and no job that is overdue."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection

from starview_app.maintenance.history.health import (
    Health,
    Scheduler,
    check_health,
    find_scheduler,
)
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.schedule.crontab import ScheduledJob, read_crontab
from tests.conftest import ROOT
from tests.factories import CLEANUP, NOW, make_known, make_run, wait_until

Outcome = JobRun.Outcome

AS_SCHEDULE = b"/usr/bin/tini\0-s\0--\0/app/entrypoint.sh\0"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """What /proc shows of a container that runs the schedule, and its scheduler."""
    make_process(tmp_path, 1, "tini", "S", cmdline=AS_SCHEDULE)
    make_process(tmp_path, 7, "supercronic", "S")
    return tmp_path


@pytest.fixture
def lines() -> list[ScheduledJob]:
    return read_crontab(ROOT / "crontab")


def make_process(
    proc: Path, pid: int, name: str, state: str, *, cmdline: bytes = b""
) -> None:
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{pid} ({name}) {state} 1 {pid} {pid} 0 -1 4194560\n")
    (folder / "cmdline").write_bytes(cmdline)


def remember(lines: list[ScheduledJob], *, since: datetime) -> None:
    for line in lines:
        make_known(line, since=since)


@contextmanager
def process_named(name: str) -> Iterator["subprocess.Popen[bytes]"]:
    program = (
        "import pathlib, sys\n"
        f"pathlib.Path('/proc/self/comm').write_text({name!r})\n"
        "sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.read(1)
        try:
            yield process
        finally:
            process.kill()


# -- the scheduler ------------------------------------------------------------------


def test_a_scheduler_that_sleeps_or_works_is_alive(proc: Path) -> None:
    for state in "SRDI":
        make_process(proc, 7, "supercronic", state)

        assert find_scheduler(proc) is Scheduler.RUNS


@pytest.mark.parametrize("state", ["T", "t", "X", "Z"])
def test_a_scheduler_that_is_stopped_traced_dead_or_a_zombie_is_dead(
    proc: Path, state: str
) -> None:
    make_process(proc, 7, "supercronic", state)

    assert find_scheduler(proc) is Scheduler.DEAD


def test_one_living_scheduler_is_enough(proc: Path) -> None:
    make_process(proc, 7, "supercronic", "Z")
    make_process(proc, 8, "supercronic", "S")

    assert find_scheduler(proc) is Scheduler.RUNS


@pytest.mark.parametrize(
    "name", ["supercronic2", "my supercronic", "a) (supercronic) S", "python3"]
)
def test_a_process_of_another_name_is_no_scheduler(proc: Path, name: str) -> None:
    make_process(proc, 7, name, "S")

    assert find_scheduler(proc) is Scheduler.DEAD


@pytest.mark.parametrize(
    "cmdline",
    [
        b"/usr/bin/tini\0-s\0--\0/app/entrypoint.sh\0python\0manage.py\0catch_up\0",
        b"/sbin/init\0",
        b"",
    ],
)
def test_a_container_for_one_command_needs_no_scheduler(
    proc: Path, cmdline: bytes
) -> None:
    make_process(proc, 7, "python3", "S")
    make_process(proc, 1, "tini", "S", cmdline=cmdline)

    assert find_scheduler(proc) is Scheduler.NOT_HERE


def test_a_process_that_ends_meanwhile_is_passed_over(proc: Path) -> None:
    (proc / "7" / "stat").unlink()
    (proc / "7" / "stat").symlink_to(proc / "gone")
    make_process(proc, 8, "supercronic", "S")

    assert find_scheduler(proc) is Scheduler.RUNS


def test_a_real_process_is_found_in_proc_and_missed_once_it_is_stopped(
    tmp_path: Path,
) -> None:
    with process_named("supercronic") as process:
        real = Path("/proc") / str(process.pid)
        make_process(tmp_path, 1, "tini", "S", cmdline=AS_SCHEDULE)
        (tmp_path / str(process.pid)).symlink_to(real)
        found = find_scheduler(tmp_path)

        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: ") T " in (real / "stat").read_text(), "it is stopped")

        assert found is Scheduler.RUNS
        assert find_scheduler(tmp_path) is Scheduler.DEAD


# -- the jobs -----------------------------------------------------------------------


@pytest.mark.django_db
def test_it_is_healthy_while_nothing_is_overdue(
    proc: Path, lines: list[ScheduledJob]
) -> None:
    health = check_health(lines, NOW, proc)

    assert health == Health(Scheduler.RUNS, [], jobs=4, failing=[])
    assert health.is_healthy


@pytest.mark.django_db
def test_a_dead_scheduler_is_a_problem(proc: Path, lines: list[ScheduledJob]) -> None:
    make_process(proc, 7, "supercronic", "Z")

    health = check_health(lines, NOW, proc)

    assert health.problems == ["the scheduler is dead: no process supercronic runs"]


@pytest.mark.django_db
def test_a_job_that_was_not_run_is_overdue_an_hour_after_its_time(
    proc: Path, lines: list[ScheduledJob]
) -> None:
    remember(lines, since=NOW - timedelta(hours=2))

    just_before = check_health(lines, NOW + timedelta(minutes=59), proc)
    after = check_health(lines, NOW + timedelta(minutes=61), proc)

    assert just_before.problems == []
    assert after.problems == [f"{CLEANUP}: not run since 2026-03-01 02:00 UTC"]


@pytest.mark.django_db
def test_what_was_missed_is_no_problem_while_its_next_time_is_near(
    proc: Path, lines: list[ScheduledJob]
) -> None:
    remember(lines, since=NOW - timedelta(hours=2))
    following, minute = NOW + timedelta(days=1), timedelta(minutes=1)

    at = {
        minutes: check_health([lines[0]], following + minutes * minute, proc)
        for minutes in (-61, -60, 4, 5)
    }

    missed = f"{CLEANUP}: not run since 2026-03-01 02:00 UTC"
    assert {minutes: found.problems for minutes, found in at.items()} == {
        **{-61: [missed], -60: [], 4: [], 5: [missed]},
    }
    assert at[-60].late == at[4].late == f"left to the next time: {missed}"


@pytest.mark.django_db
def test_a_job_of_every_hour_that_is_not_run_is_a_problem_at_each_minute(
    proc: Path, lines: list[ScheduledJob]
) -> None:
    hourly = replace(lines[0], times="0 * * * *")
    remember([hourly], since=NOW - timedelta(hours=2))

    for minutes in range(61, 181):
        now = NOW + timedelta(minutes=minutes)
        assert check_health([hourly], now, proc).problems, minutes


@pytest.mark.django_db
def test_a_job_that_fails_is_said_and_is_no_problem(
    proc: Path, lines: list[ScheduledJob]
) -> None:
    remember(lines, since=NOW - timedelta(hours=2))
    run = make_run(slot=NOW, outcome=Outcome.FAILED)

    health = check_health(lines, NOW + timedelta(minutes=50), proc)

    assert health.failing == [f"{CLEANUP} (run {run.id})"]
    assert health.is_healthy


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("outcome", "is_failing"),
    [
        (Outcome.SUCCEEDED, False),
        (Outcome.TIMED_OUT, True),
        (Outcome.CRASHED, True),
        # These say nothing of whether the job works.
        (Outcome.INTERRUPTED, True),
        (Outcome.SKIPPED, True),
    ],
)
def test_a_job_fails_until_a_later_run_succeeds(
    proc: Path, lines: list[ScheduledJob], outcome: str, is_failing: bool
) -> None:
    make_run(slot=NOW, outcome=Outcome.FAILED)
    make_run(
        slot=NOW, attempt=2, outcome=outcome, started_at=NOW + timedelta(minutes=10)
    )

    health = check_health(lines, NOW + timedelta(minutes=20), proc)

    assert bool(health.failing) is is_failing


@pytest.mark.django_db
def test_a_crontab_without_a_job_is_a_problem(proc: Path) -> None:
    health = check_health([], NOW, proc)

    assert health.problems == [
        "the crontab has no job, or cannot be read HINT: jobs check"
    ]


@pytest.mark.django_db(transaction=True)
def test_a_database_that_does_not_answer_is_one_line_beside_the_scheduler(
    proc: Path, lines: list[ScheduledJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_process(proc, 7, "supercronic", "Z")
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connection.settings_dict, "PORT", "9")

    health = check_health(lines, NOW, proc)

    assert health.problems[0] == Scheduler.DEAD
    assert health.problems[1].startswith("database: connection to server")
    assert "\n" not in health.problems[1]


def test_it_does_not_import_what_the_stores_need(proc: Path) -> None:
    program = (
        "import django, sys; django.setup()\n"
        "import starview_app.management.commands.jobs\n"
        "from starview_app.maintenance.schedule.registry import recorded_jobs\n"
        "recorded_jobs()\n"
        "sys.exit('boto3' in sys.modules or 'requests' in sys.modules)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60
    )

    assert ended.returncode == 0, ended.stderr

"""Every scheduled command runs inside the runner: claimed, recorded, watched over."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.db import connection

from demo.services import LocalServices
from starview_app.maintenance.models import Job, JobRun
from starview_app.maintenance.running import gone, ledger
from starview_app.maintenance.running import process as process_module
from starview_app.maintenance.running.gone import mark_crashed
from starview_app.maintenance.running.process import OUTPUT_BYTES
from tests.archive_processes import Command, Commands, Done
from tests.conftest import Manage
from tests.factories import (
    contents,
    execute,
    make_run,
    runs,
    session,
    wait_until,
    wait_until_blocked_by,
)

pytestmark = pytest.mark.django_db(transaction=True)

# One line for each command of tests/commands_for_runs.py, due every day at midnight.
CLASSES = {
    "print": "Print",
    "wait": "Wait",
    "wait_in_query": "WaitInQuery",
    "stubborn": "Stubborn",
    "fail": "Fail",
    "bug": "Bug",
    "flood": "Flood",
    "nested": "Nested",
    "garble": "Garble",
    "close_connection": "CloseConnection",
    "try_again_later": "TryAgainLater",
}
PATHS = {name: f"tests.commands_for_runs.{path}" for name, path in CLASSES.items()}

RUNNING = "starview_app.maintenance.running"
SAVE_SECONDS = f"{RUNNING}.process.SAVE_SECONDS"
FIRST_SAVE_SECONDS = f"{RUNNING}.process.FIRST_SAVE_SECONDS"
LOCK_TIMEOUT = f"{RUNNING}.ledger.LOCK_TIMEOUT"
FINISH_SECONDS = f"{RUNNING}.ledger.FINISH_SECONDS"

Start = Callable[..., Command]
Run = Callable[..., Done]


def midnight() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def only_run() -> JobRun:
    return runs().get()


def outcomes() -> list[tuple[str, str]]:
    return [(run.trigger, run.outcome) for run in runs()]


@pytest.fixture
def start(commands: Commands, tmp_path: Path) -> Iterator[Start]:
    """Start `run_job NAME` for tonight's slot, or by hand; `timeout` is the line's."""
    begun: list[Command] = []

    def start(
        name: str,
        *arguments: str,
        by_hand: bool = False,
        timeout: str = "timeout 1h",
        constants: dict[str, float | str] | None = None,
        stdout: Path | None = None,
        **environment: str,
    ) -> Command:
        crontab = tmp_path / "crontab"
        lines = [
            f"0 0 * * * JOB=starview-{each} {timeout} python manage.py run_job {each}\n"
            for each in CLASSES
        ]
        crontab.write_text("".join(lines))
        job = {} if by_hand else {"JOB": f"starview-{name}"}
        process = commands.start(
            *("run_job", name, *arguments),
            settings={"CRONTAB": str(crontab)},
            environment={**job, **environment},
            commands=PATHS,
            constants=constants,
            stdout=stdout,
            supervised=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        for pid in (*children(process.pid), process.pid):
            kill(pid)


@pytest.fixture
def run(start: Start) -> Run:
    def run(*arguments: str, **options: Any) -> Done:
        return start(*arguments, **options).finish()

    return run


@pytest.fixture
def pipe(tmp_path: Path) -> tuple[Path, int]:
    """The path of a pipe for a command to write to, and its end to read from."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def drain(descriptor: int) -> None:
    """Read on until `flood` has written its last line."""
    seen = b""
    while b"at the end" not in seen:
        wait_until(lambda: readable(descriptor), "more")
        seen = os.read(descriptor, 65_536)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def worker_of(process: Command) -> int:
    """The process that works, once it does."""
    wait_until(lambda: "job_started" in process.err(), "the job has started")
    (worker,) = children(process.pid)
    return worker


def found_crashed() -> list[tuple[int, str]]:
    """As `mark_crashed` finds them some minutes later."""
    execute(
        "UPDATE maintenance_jobrun"
        " SET seen_at = NULL, started_at = now() - interval '5 minutes'"
    )
    return mark_crashed(datetime.now(UTC))


def kill_both(process: Command) -> Done:
    """As a container is killed."""
    kill(process.pid, signal.SIGSTOP)
    for child in children(process.pid):
        kill(child)
    return process.kill()


# -- the record ----------------------------------------------------------------------


def test_a_run_is_recorded_with_all_that_an_operator_asks_for(run: Run) -> None:
    before = datetime.now(UTC)

    done = run("print", "hello")

    recorded = only_run()
    assert (done.code, done.out) == (0, "hello\n")
    assert recorded.job == "starview-print"
    assert recorded.slot == midnight()
    assert recorded.attempt == 1
    assert recorded.trigger == "schedule"
    assert recorded.command == "print hello"
    assert recorded.outcome == "succeeded"
    assert recorded.exit_code == 0
    assert recorded.host == socket.gethostname()
    assert recorded.finished_at
    assert before <= recorded.started_at <= recorded.finished_at <= datetime.now(UTC)
    assert 0 < (recorded.seconds or 0) < 30
    assert recorded.error == ""
    assert "hello\n" in recorded.output
    assert "to the other stream" in recorded.output


def test_the_counts_that_a_job_reports_are_recorded(manage: Manage) -> None:
    done = manage(
        "cleanup_unverified_users", env={"JOB": "starview-cleanup-unverified-users"}
    )

    assert done.returncode == 0, done.stderr
    assert only_run().counts == {
        "found": 0,
        "deleted": 0,
        "kept": 0,
        "confirmations": 0,
    }


def test_a_failure_is_recorded_with_its_error_in_one_line(run: Run) -> None:
    done = run("fail")

    recorded = only_run()
    assert done.code == 1
    assert "CommandError: the bucket is full HINT: empty it" in done.err
    assert (recorded.outcome, recorded.exit_code) == ("failed", 1)
    assert recorded.error == "the bucket is full HINT: empty it"


def test_a_bug_keeps_its_traceback_and_its_record_has_the_last_line_of_it(
    run: Run,
) -> None:
    done = run("bug")

    assert done.code == 1
    assert "Traceback" in done.err
    assert only_run().error == "ValueError: a bug"
    assert "Traceback" in only_run().output


def test_garbage_in_the_report_or_the_output_of_a_run_does_not_end_its_record(
    run: Run,
) -> None:
    done = run("garble")

    recorded = only_run()
    assert done.code == 3
    assert "Traceback" not in done.err
    assert (recorded.outcome, recorded.exit_code) == ("failed", 3)
    assert recorded.counts == {"deleted": 3}
    assert recorded.error.startswith('{"line": [[[')


@pytest.mark.parametrize(
    "arguments",
    [
        ["cleanup_unverified_users", "--dry"],
        ["catch_up", "--dry"],
        ["catch_up", "--nosuch"],
        ["jobs", "--nosuch"],
        ["jobs", "nosuch"],
        ["jobs", "history", "--lim", "3"],
        ["jobs", "history", "--limit", "9" * 5000],
        ["jobs", "show"],
        ["run_job"],
        ["run_job", "--nosuch"],
        ["wait_for_database", "--timeout", "1"],
        ["wait_for_database", "--timeout-seconds", "\u0663"],
        ["migrate", "--pla"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_a_wrong_or_abbreviated_option_is_one_line_and_exit_2(
    arguments: list[str], commands: Commands
) -> None:
    done = commands.run(*arguments, supervised=True)

    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert ": error: " in done.err
    assert not JobRun.objects.exists()


def test_wrong_options_on_the_schedule_are_a_failed_run(manage: Manage) -> None:
    job = "starview-cleanup-unverified-users"

    done = manage("cleanup_unverified_users", "--days=soon", env={"JOB": job})

    assert done.returncode == 2
    assert (only_run().outcome, only_run().exit_code) == ("failed", 2)
    assert "argument --days: 'soon' is not a whole number" in only_run().error


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--days=soon"], 2), (["--dry-run"], 0)],
)
def test_by_hand_what_changes_nothing_is_not_recorded(
    arguments: list[str], code: int, commands: Commands
) -> None:
    done = commands.run("cleanup_unverified_users", *arguments, supervised=True)

    assert done.code == code
    assert not JobRun.objects.exists()


def test_by_hand_there_is_no_slot_and_the_name_is_that_of_the_crontab(
    commands: Commands,
) -> None:
    commands.run("cleanup_unverified_users", "--days=30", supervised=True)

    recorded = only_run()
    assert (recorded.job, recorded.slot, recorded.trigger) == (
        "starview-cleanup-unverified-users",
        None,
        "by hand",
    )
    assert recorded.command == "cleanup_unverified_users --days=30"


def test_a_command_that_the_crontab_does_not_have_keeps_its_own_name(
    commands: Commands,
) -> None:
    commands.run("verify_audit_archives", supervised=True)

    assert only_run().job == "verify_audit_archives"


def test_the_last_64_KiB_of_the_output_are_kept_whatever_is_in_it(run: Run) -> None:
    done = run("flood")

    recorded = only_run()
    assert done.code == 0
    assert done.out.count("\n") == 10_001
    assert OUTPUT_BYTES - 200 <= len(recorded.output.encode()) <= OUTPUT_BYTES + 200
    assert "09999 xxx" in recorded.output
    assert "00000 xxx" not in recorded.output
    assert "a NUL \\x00" in recorded.output


def test_a_secret_of_the_environment_is_in_no_record_and_no_log(
    run: Run, test_environment: dict[str, str]
) -> None:
    secret = test_environment["AWS_SECRET_ACCESS_KEY"]

    done = run("print", f"the key is {secret}")

    assert secret not in only_run().output + done.out + done.err
    assert "the key is ***" in only_run().output
    assert done.out == "the key is ***\n"


def test_a_log_without_room_is_said_and_does_not_end_the_job(run: Run) -> None:
    done = run("flood", stdout=Path("/dev/full"))

    assert (done.code, only_run().outcome) == (0, "succeeded")
    assert "09999 xxx" in only_run().output
    assert "output_not_handed_on" in done.err
    assert "No space left on device" in done.err


def test_a_log_that_nobody_reads_any_more_does_not_end_the_job(
    start: Start, pipe: tuple[Path, int]
) -> None:
    path, reader = pipe
    process = start("flood", stdout=path)
    wait_until(lambda: readable(reader), "it writes")
    os.close(reader)

    done = process.finish()

    assert (done.code, only_run().outcome) == (0, "succeeded")
    assert "09999 xxx" in only_run().output
    assert "Broken pipe" in done.err


def test_while_nobody_reads_the_deadline_holds_and_later_nothing_is_lost(
    start: Start, pipe: tuple[Path, int]
) -> None:
    path, reader = pipe
    process = start("flood", timeout="timeout 0.5", stdout=path)
    wait_until(lambda: readable(reader), "it writes")
    kill(process.pid, signal.SIGTERM)
    wait_until(lambda: outcomes() == [("schedule", "timed out")], "it is stopped")

    seen = b""
    while chunk := os.read(reader, 65_536):
        seen += chunk
        wait_until(lambda: readable(reader), "more, or the end")
    os.close(reader)

    assert process.finish().code == 1
    lines = seen.decode().splitlines()
    assert [line[:5] for line in lines[:-1]] == [
        f"{number:05}" for number in range(len(lines) - 1)
    ]
    # What it wrote on stderr may come between them.
    recorded = [line for line in only_run().output.splitlines() if line[:5].isdigit()]
    assert recorded[-3:-1] == lines[-3:-1]


def test_what_a_run_has_written_so_far_can_be_read_from_its_first_seconds_on(
    start: Start,
) -> None:
    process = start("wait")
    worker_of(process)

    wait_until(lambda: "waiting" in only_run().output, "the output was saved")

    assert only_run().outcome == "running"
    assert process_module.FIRST_SAVE_SECONDS <= 1
    assert process_module.SAVE_SECONDS <= 5


def test_a_run_that_is_killed_with_its_container_has_its_output_and_its_length(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `docker stop` kills what `docker compose exec` has started."""
    process = start("wait")
    worker_of(process)
    wait_until(lambda: "waiting" in only_run().output, "the output was saved")
    assert kill_both(process).code == -signal.SIGKILL
    execute(  # found an hour later
        "UPDATE maintenance_jobrun SET started_at = started_at - interval '1 h',"
        " seen_at = seen_at - interval '1 h'"
    )
    monkeypatch.setattr(gone, "RESTART_PATIENCE", "0 s")

    def is_found() -> bool:  # once the server has noticed, and freed the lock
        return bool(mark_crashed(datetime.now(UTC)))

    wait_until(is_found, "the run is found to have crashed")
    killed = only_run()
    assert killed.outcome == "crashed"
    assert "waiting" in killed.output
    assert killed.finished_at == killed.seen_at
    assert killed.finished_at
    length = killed.finished_at - killed.started_at
    assert killed.seconds == pytest.approx(length.total_seconds())


def test_runs_of_more_than_400_days_ago_are_forgotten_at_the_end_of_a_run(
    run: Run,
) -> None:
    now = datetime.now(UTC)
    for days in (399, 401, 500):
        started_at = now - timedelta(days=days)
        make_run("old", started_at=started_at, slot=started_at)

    run("print")

    old = JobRun.objects.filter(job="old")
    assert [(now - run.started_at).days for run in old] == [399]


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"JOB": "starview-print\n"}, "JOB='starview-print\\n' is no name"),
        ({"JOB": os.fsdecode(b"\xff")}, "JOB='\\udcff' is no name"),
        ({"STARVIEW_JOB_TRIGGER": "schedule"}, "STARVIEW_JOB_TRIGGER='schedule' is"),
        ({"STARVIEW_JOB_SLOT": "soon"}, "STARVIEW_JOB_SLOT='soon' is no time"),
        ({"STARVIEW_JOB_SLOT": "{naive}"}, "is no time with its zone"),
        ({"STARVIEW_JOB_ATTEMPT": "0"}, "STARVIEW_JOB_ATTEMPT='0' is no number"),
        ({"STARVIEW_JOB_ATTEMPT": "\u0663"}, "STARVIEW_JOB_ATTEMPT='\u0663' is no"),
        ({"STARVIEW_JOB_ATTEMPT": "9" * 5000}, "is no number of an attempt"),
        ({"STARVIEW_JOB_ATTEMPT": "1"}, "do not belong together"),
        ({"STARVIEW_JOB_SLOT": "{newest}"}, "do not belong together"),
        ({"STARVIEW_JOB_TRIGGER": "catch-up"}, "do not belong together"),
        (
            {
                "STARVIEW_JOB_TRIGGER": "catch-up",
                "STARVIEW_JOB_SLOT": "{older}",
                "STARVIEW_JOB_ATTEMPT": "1",
            },
            "is not the newest time of starview-print",
        ),
    ],
    ids=str,
)
def test_a_forged_variable_is_one_line_and_nothing_is_run_or_taken(
    variables: dict[str, str], what: str, run: Run
) -> None:
    moments = {
        "newest": midnight().isoformat(),
        "older": (midnight() - timedelta(days=1)).isoformat(),
        "naive": midnight().replace(tzinfo=None).isoformat(),
    }
    given = {name: value.format(**moments) for name, value in variables.items()}

    done = run("print", **given)

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert what in done.err
    assert " HINT: " in done.err
    assert done.err.count("\n") == 1
    assert not JobRun.objects.exists()


def test_a_dry_run_takes_no_slot_also_where_JOB_is_set(manage: Manage) -> None:
    job = {"JOB": "starview-cleanup-unverified-users"}

    done = manage("cleanup_unverified_users", "--days=7", "--dry-run", env=job)

    assert done.returncode == 0
    assert not JobRun.objects.exists()


# -- once ---------------------------------------------------------------------------


def test_a_slot_that_was_run_is_not_run_again_and_that_is_no_failure(run: Run) -> None:
    run("print")

    second = run("print")

    assert (second.code, second.out) == (0, "")
    assert "is taken: run " in second.err
    assert f"on {socket.gethostname()} pid " in second.err
    assert outcomes() == [("schedule", "succeeded")]


def test_a_single_run_writes_nothing_into_the_memory_of_the_schedule(run: Run) -> None:
    """Else the first job after an outage would make what the others missed new."""
    run("print")

    assert contents("maintenance_scheduleline", "maintenance_job") == {
        "maintenance_scheduleline": [],
        "maintenance_job": [],
    }


def test_a_failed_slot_is_taken_as_well(run: Run) -> None:
    run("fail")

    second = run("fail")

    assert second.code == 0
    assert outcomes() == [("schedule", "failed")]


def test_by_hand_a_job_runs_as_often_as_people_like(run: Run) -> None:
    codes = [run("print", by_hand=True).code for _ in range(3)]

    assert codes == [0, 0, 0]
    assert outcomes() == 3 * [("by hand", "succeeded")]


def test_a_second_run_by_hand_is_refused_and_says_who_runs_where_since_when(
    start: Start, run: Run
) -> None:
    process = start("wait", by_hand=True)
    worker_of(process)

    second = run("wait", by_hand=True)

    assert second.code == 75
    text = (
        rf"another run of starview-wait is under way: starview-wait"
        rf" {socket.gethostname()}"
        rf" pid {process.pid},"
        r" connected since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    )
    assert re.search(text, second.err)
    assert outcomes()[1] == ("by hand", "skipped")


def test_a_scheduled_run_beside_one_by_hand_is_skipped_and_no_failure(
    start: Start, run: Run
) -> None:
    worker_of(start("wait", by_hand=True))

    scheduled = run("wait")

    assert scheduled.code == 0
    assert outcomes()[1] == ("schedule", "skipped")
    assert (
        "another run of starview-wait is under way" in JobRun.objects.latest("id").error
    )


def test_JOB_counts_only_for_the_command_of_its_line(run: Run) -> None:
    """A container that has JOB set for good must not lose a slot to something else."""
    done = run("print", JOB="starview-fail")

    assert done.code == 0
    assert "job_not_in_crontab" in done.err
    assert (only_run().slot, only_run().trigger) == (None, "by hand")
    assert only_run().job == "starview-print"


def test_what_a_job_starts_in_turn_is_a_run_of_its_own(run: Run) -> None:
    done = run("nested")

    assert "inherited: []" in done.out
    assert "its exit code: 0" in done.out
    assert outcomes() == [("schedule", "succeeded"), ("by hand", "succeeded")]


def test_a_paused_job_is_skipped_and_recorded_as_such(run: Run) -> None:
    now = datetime.now(UTC)
    Job.objects.create(
        name="starview-print",
        paused_until=now + timedelta(days=1),
    )

    done = run("print")

    assert (done.code, done.out) == (0, "")
    assert "paused until" in done.err
    assert outcomes() == [("schedule", "skipped")]


# -- stopping ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["wait", "wait_in_query"])
def test_a_signal_stops_any_command_and_the_run_is_recorded_as_interrupted(
    name: str, number: signal.Signals, start: Start
) -> None:
    process = start(name)
    worker_of(process)
    if name == "wait_in_query":
        wait_until(_someone_sleeps, "the query runs")

    kill(process.pid, number)
    done = process.finish()

    assert done.code == 1
    assert f"{name} was stopped by {number.name} before it was done" in done.err
    assert outcomes() == [("schedule", "interrupted")]
    assert "was stopped by" in only_run().error


def test_a_signal_that_reaches_both_processes_is_one_stop(start: Start) -> None:
    process = start("wait")
    worker = worker_of(process)

    for pid in (worker, process.pid, worker, process.pid):
        kill(pid, signal.SIGTERM)
    done = process.finish()

    assert done.code == 1
    assert outcomes() == [("schedule", "interrupted")]


def test_a_run_that_timeout_stops_at_the_deadline_is_recorded_as_timed_out(
    start: Start,
) -> None:
    process = start("wait", timeout="timeout 0.5")
    worker_of(process)
    kill(process.pid, signal.SIGTERM)  # as `timeout` does it
    done = process.finish()

    assert done.code == 1
    assert (only_run().outcome, only_run().exit_code) == ("timed out", 1)
    assert only_run().error.startswith("its deadline was over: ")


def test_what_ignores_its_deadline_is_killed_and_recorded_as_timed_out(
    start: Start,
) -> None:
    process = start("stubborn", timeout="timeout -k 0.5 0.5")
    wait_until(lambda: "waiting" in process.out(), "it ignores signals")
    kill(process.pid, signal.SIGTERM)
    done = process.finish()

    assert done.code == 1
    assert (only_run().outcome, only_run().exit_code) == ("timed out", 137)
    assert only_run().error == "its deadline was over: killed by signal 9"


def test_a_signal_during_the_claim_is_an_interruption_too(start: Start) -> None:
    with session() as holder:
        holder.cursor().execute("LOCK TABLE maintenance_job")
        process = start("wait")
        wait_until_blocked_by(holder)
        for pid in (*children(process.pid), process.pid):
            kill(pid, signal.SIGTERM)
    process.finish()

    assert outcomes() == [("schedule", "interrupted")]


# -- kill -9 -------------------------------------------------------------------------


def test_a_command_that_is_killed_is_recorded_at_once_with_its_output(
    start: Start,
) -> None:
    process = start("wait")
    worker = worker_of(process)
    wait_until(lambda: "waiting" in process.out(), "it waits")

    kill(worker)
    done = process.finish()

    assert done.code == 1
    assert outcomes() == [("schedule", "crashed")]
    assert only_run().exit_code == 137
    assert "killed by signal 9" in only_run().error
    assert "waiting" in only_run().output
    assert "outcome=crashed" in done.err


def test_a_run_whose_processes_are_all_gone_is_found_by_its_free_lock(
    start: Start,
) -> None:
    process = start("wait")
    worker_of(process)
    alive = found_crashed()

    kill_both(process)
    wait_until(lambda: bool(found_crashed()), "it is found")

    assert alive == []
    assert outcomes() == [("schedule", "crashed")]
    assert only_run().finished_at is not None
    assert "its process is gone" in only_run().error


def test_a_command_whose_watching_process_is_killed_is_told_to_stop(
    start: Start,
) -> None:
    process = start("wait")
    worker = worker_of(process)

    process.kill()

    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "it has ended as well")
    wait_until(lambda: bool(found_crashed()), "it is found")


# -- the database --------------------------------------------------------------------


def end_sessions() -> None:
    """As a restart of the server does to every client."""
    execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )


def test_a_run_whose_sessions_are_cut_off_fails_and_is_recorded(start: Start) -> None:
    process = start("wait_in_query")
    worker_of(process)
    wait_until(_someone_sleeps, "the query runs")

    end_sessions()
    done = process.finish()

    assert done.code == 1
    assert outcomes() == [("schedule", "failed")]
    # Of whichever of its sessions it has noticed it first.
    assert "connection" in only_run().error


def _someone_sleeps() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(300)'"
        )
        return bool(cursor.fetchone() == (1,))


def test_a_watching_process_that_loses_its_session_goes_on_with_another(
    start: Start,
) -> None:
    process = start("wait", constants={SAVE_SECONDS: 0.05})
    worker_of(process)

    def sessions() -> list[int]:
        """Of the watching process, those that have written to its record."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE application_name LIKE 'runner %%' AND query LIKE '%%seen_at%%'"
            )
            return [pid for (pid,) in cursor.fetchall()]

    wait_until(lambda: bool(sessions()), "it has written")
    before = sessions()  # one that is ended is listed for a moment longer
    execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'runner %%'"
    )

    def is_connected_again() -> bool:
        found = sessions()
        return bool(found) and not set(found) & set(before)

    wait_until(is_connected_again, "it is connected again")
    assert found_crashed() == []


def test_with_the_database_down_a_scheduled_run_fails_and_leaves_its_slot(
    manage: Manage,
) -> None:
    away = {
        "JOB": "starview-cleanup-unverified-users",
        "DATABASE_URL": "postgresql://u:hidden-word@127.0.0.1:9/x",
    }

    done = manage("cleanup_unverified_users", "--days=7", env=away)

    assert done.returncode == 69
    assert "Connection refused" in done.stderr
    assert "HINT" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden-word" not in done.stderr
    assert not JobRun.objects.exists()


@pytest.mark.parametrize("is_passing", [True, False])
def test_a_table_that_is_locked_is_no_outage_and_the_job_runs(
    is_passing: bool, start: Start, services: LocalServices
) -> None:
    before = len(services.sent_mail())
    limits = {LOCK_TIMEOUT: "100ms", FINISH_SECONDS: 60.0 if is_passing else 0.0}
    with session() as holder:
        holder.cursor().execute("LOCK TABLE maintenance_jobrun")
        process = start("print", "hello", constants=limits)
        wait_until(lambda: "job_finished" in process.err(), "the job has run")
        done = None if is_passing else process.finish()
    done = done or process.finish()

    assert (done.code, done.out) == (0, "hello\n")
    assert "lock timeout" in done.err
    assert "does not answer" not in done.err
    recorded = [("schedule", "succeeded")] if is_passing else []
    assert outcomes() == recorded
    assert len(services.sent_mail()) == before


@pytest.mark.parametrize("way", ["short", "long", "killed meanwhile"])
def test_a_success_that_a_crash_of_the_server_keeps_from_its_record_is_no_crash(
    way: str,
    start: Start,
    commands: Commands,
    pipe: tuple[Path, int],
    services: LocalServices,
    tmp_path: Path,
) -> None:
    """`pg_ctl stop -m immediate`: the driver then raises a bare DatabaseError."""
    path, reader = pipe
    limits: dict[str, float | str] = {
        FINISH_SECONDS: 0.0 if way == "long" else 60.0,
        FIRST_SAVE_SECONDS: 3600.0,
        SAVE_SECONDS: 3600.0,
        LOCK_TIMEOUT: "3600s",
    }
    process = start("flood", stdout=path, constants=limits, TMPDIR=str(tmp_path))
    wait_until(lambda: readable(reader), "it writes")
    with session() as holder:
        holder.cursor().execute("LOCK TABLE maintenance_jobrun IN EXCLUSIVE MODE")
        drain(reader)
        wait_until_blocked_by(holder)  # its end is written
        services.crash_postgres()
    try:
        connection.close()
        done = process.finish() if way == "long" else None
        if way == "killed meanwhile":
            wait_until(lambda: any(tmp_path.glob("*/ending-*.json")), "it is kept")
            done = process.kill()
    finally:
        services.restart_postgres()
    done = done or process.finish()
    before = [outcome for _, outcome in outcomes()]
    JobRun.objects.update(seen_at=None, started_at=midnight())
    settings = {"CRONTAB": str(tmp_path / "crontab")}
    caught_up = commands.run(
        "catch_up", settings=settings, environment={"TMPDIR": str(tmp_path)}
    )

    code = -signal.SIGKILL if way == "killed meanwhile" else 0
    assert (done.code, caught_up.code) == (code, 0), done.err + caught_up.err
    assert before == ["succeeded" if way == "short" else "running"]
    assert outcomes() == [("schedule", "succeeded")]
    assert "09999 xxx" in only_run().output
    assert ("run_settled" in caught_up.err) is (way != "short")


def test_a_record_that_cannot_be_written_is_said_and_the_job_runs_all_the_same(
    run: Run,
) -> None:
    execute("ALTER TABLE maintenance_jobrun RENAME COLUMN host TO hosts")
    try:
        done = run("print", "hello")
    finally:
        execute("ALTER TABLE maintenance_jobrun RENAME COLUMN hosts TO host")

    assert (done.code, done.out) == (0, "hello\n")
    assert "run_not_recorded" in done.err
    assert "Traceback" not in done.err


def test_an_end_that_cannot_be_written_is_said_and_the_exit_code_is_the_jobs(
    start: Start,
) -> None:
    process = start("wait", by_hand=True, constants={FINISH_SECONDS: 0.0})
    worker = worker_of(process)
    with session() as holder:
        holder.cursor().execute("LOCK TABLE maintenance_jobrun")
        kill(worker, signal.SIGTERM)
        done = process.finish()

    assert done.code == 1
    assert "run_not_recorded" in done.err
    assert "lock timeout" in done.err


def test_an_outage_over_a_look_makes_no_run_look_crashed(start: Start) -> None:
    """While nobody can connect, and afterwards: who lives is not taken for crashed."""
    process = start("wait", by_hand=True, constants={SAVE_SECONDS: 0.1})
    worker_of(process)
    name = connection.settings_dict["NAME"]
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'runner %'"
    )
    allow = f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS'
    elsewhere = {**connection.get_connection_params(), "dbname": "postgres"}
    with closing(psycopg2.connect(**elsewhere)) as other:
        other.autocommit = True
        _cut_off_for_a_while(other.cursor(), allow, ended, process)

    seen = JobRun.objects.get().seen_at
    wait_until(lambda: JobRun.objects.get().seen_at != seen, "it is back")
    assert found_crashed() == []


def _cut_off_for_a_while(cursor: Any, allow: str, ended: str, process: Command) -> None:
    cursor.execute(f"{allow} false")
    try:
        cursor.execute(ended)
        wait_until(lambda: "output_not_saved" in process.err(), "it has tried")
    finally:
        cursor.execute(f"{allow} true")


def test_a_run_that_was_taken_for_crashed_is_running_again_when_it_is_back(
    start: Start,
) -> None:
    process = start("wait", constants={SAVE_SECONDS: 0.1})
    worker_of(process)

    JobRun.objects.update(outcome="crashed", finished_at=datetime.now(UTC), error="x")

    wait_until(lambda: only_run().outcome == "running", "it says that it lives")
    assert (only_run().finished_at, only_run().error) == (None, "")


def test_by_hand_with_the_database_away_any_command_fails_in_a_line(
    manage: Manage,
) -> None:
    away = {"DATABASE_URL": "postgresql://u:hidden-word@127.0.0.1:9/x"}

    done = manage("run_job", "clearsessions", env=away)

    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "hidden-word" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_exit_code_of_75_of_another_command_is_a_failure(run: Run) -> None:
    done = run("try_again_later")

    assert done.code == 75
    assert outcomes() == [("schedule", "failed")]


def test_a_line_that_cannot_be_read_takes_no_slot_from_the_others(
    commands: Commands, tmp_path: Path
) -> None:
    crontab = tmp_path / "crontab"
    crontab.write_text(
        "*/30 * * * * * * true\n"
        "0 0 * * * JOB=starview-print timeout 1h python manage.py run_job print\n"
    )

    done = commands.start(
        *("run_job", "print"),
        settings={"CRONTAB": str(crontab)},
        environment={"JOB": "starview-print"},
        commands=PATHS,
        supervised=True,
    ).finish()

    assert "crontab_line_not_read" in done.err
    assert only_run().slot == midnight()


def test_a_command_may_close_its_connection_and_open_another(run: Run) -> None:
    done = run("close_connection")

    assert (done.code, done.out) == (0, "connected anew\n")


def test_the_lock_is_free_before_the_record_says_that_a_run_has_ended(
    run: Run,
) -> None:
    run("print")

    with psycopg2.connect(**connection.get_connection_params()) as other:
        cursor = other.cursor()
        cursor.execute(
            "SELECT pg_try_advisory_lock("
            "hashtextextended('starview-maintenance:starview-print', 0))"
        )
        assert cursor.fetchone() == (True,)


# -- options -------------------------------------------------------------------------


def test_an_unknown_command_is_a_wrong_option(run: Run) -> None:
    done = run("nosuch", by_hand=True)

    assert done.code == 2
    assert "no such command: 'nosuch'" in done.err
    assert not JobRun.objects.exists()


def test_an_unknown_command_in_the_crontab_is_a_failed_run(
    commands: Commands, tmp_path: Path
) -> None:
    crontab = tmp_path / "crontab"
    crontab.write_text("0 0 * * * JOB=x timeout 1h python manage.py run_job nosuch\n")

    done = commands.run(
        *("run_job", "nosuch"),
        settings={"CRONTAB": str(crontab)},
        environment={"JOB": "x"},
        supervised=True,
    )

    assert done.code == 2
    assert (only_run().outcome, only_run().slot) == ("failed", midnight())
    assert only_run().error == "no such command: 'nosuch'"


def test_options_that_another_command_refuses_are_its_error(run: Run) -> None:
    done = run("bug", "--nosuch")

    assert done.code == 2
    assert "error: unrecognized arguments: --nosuch" in only_run().error


def test_run_job_of_one_of_ours_is_that_command(commands: Commands) -> None:
    done = commands.run(
        "run_job", "cleanup_unverified_users", "--days=30", supervised=True
    )

    assert done.code == 0
    assert only_run().command == "cleanup_unverified_users --days=30"


def test_help_of_any_command_is_shown_and_not_recorded(commands: Commands) -> None:
    done = commands.run("run_job", "showmigrations", "--help", supervised=True)

    assert done.code == 0
    assert "Shows all available migrations" in done.out
    assert not JobRun.objects.exists()


def test_more_rows_than_a_run_adds_are_pruned_by_each() -> None:
    assert ledger.PRUNE_ROWS >= 10

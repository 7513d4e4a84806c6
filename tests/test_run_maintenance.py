"""run_maintenance: the jobs of the crontab, one after the other."""

import os
import sys
from pathlib import Path

import pytest

from starview_app.maintenance.models import JobRun
from starview_app.models import AuditLog
from tests.archive_processes import Commands
from tests.conftest import Manage
from tests.factories import CLEANUP, days_ago, make_account, usernames

pytestmark = pytest.mark.django_db(transaction=True)

EMAIL = "starview-cleanup-email-suppressions"
ARCHIVE = "starview-archive-audit-logs"
SESSIONS = "starview-clear-sessions"
CLOSED = "http://127.0.0.1:9"


# The lines of the crontab say `python`.
PATH = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def outcomes() -> list[tuple[str, str, str]]:
    runs = JobRun.objects.order_by("started_at")
    return list(runs.values_list("job", "outcome", "trigger"))


def test_one_that_fails_does_not_stop_the_next_and_the_exit_code_is_1(
    manage: Manage,
) -> None:
    make_account("newcomer")
    AuditLog.objects.create(
        event_type="logout", timestamp=days_ago(400), user_agent="", metadata={}
    )

    done = manage("run_maintenance", env={**PATH, "AWS_S3_ENDPOINT_URL": CLOSED})

    assert done.returncode == 1
    assert usernames() == set()
    assert outcomes() == [
        (CLEANUP, "succeeded", "manual"),
        (EMAIL, "succeeded", "manual"),
        (ARCHIVE, "failed", "manual"),
        (SESSIONS, "succeeded", "manual"),
    ]
    lines = done.stdout.splitlines()
    assert lines[0] == f"== {CLEANUP} (1 of 4)"
    assert "✓ Successfully deleted 1 unverified user(s)" in lines
    summary = [line.split()[:2] for line in lines[-4:]]
    assert summary == [
        [CLEANUP, "succeeded"],
        [EMAIL, "succeeded"],
        [ARCHIVE, "failed"],
        [SESSIONS, "succeeded"],
    ]
    assert (
        done.stderr.splitlines()[-1] == f"CommandError: 1 of 4 jobs failed: {ARCHIVE}"
    )


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        (["--only", CLEANUP], [CLEANUP]),
        (["--only=clearsessions,cleanup_unverified_users"], [CLEANUP, SESSIONS]),
        (["--skip", ARCHIVE, "--skip", EMAIL], [CLEANUP, SESSIONS]),
        (["--only", CLEANUP, "--only", SESSIONS, "--skip=clearsessions"], [CLEANUP]),
    ],
)
def test_jobs_are_chosen_by_name_or_command_and_keep_their_order(
    options: list[str], jobs: list[str], manage: Manage
) -> None:
    done = manage("run_maintenance", *options, "--list")

    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == jobs
    assert not JobRun.objects.exists()


def test_a_dry_run_changes_and_records_nothing(manage: Manage) -> None:
    make_account("newcomer")

    done = manage("run_maintenance", "--dry-run", env=PATH)

    assert done.returncode == 0, done.stderr
    assert "Dry run: would delete 1 unverified user(s)" in done.stdout
    assert usernames() == {"newcomer"}
    assert not JobRun.objects.exists()


def test_a_dry_run_leaves_out_what_has_none(commands: Commands, tmp_path: Path) -> None:
    crontab, limit = tmp_path / "crontab", "timeout -k 60 1h python manage.py"
    crontab.write_text(
        f"0 1 * * * JOB=verify {limit} verify_audit_archives\n"
        f"0 2 * * * JOB=sessions {limit} clearsessions\n"
    )

    done = commands.run(
        "run_maintenance", "--dry-run", "--list", settings={"CRONTAB": f"{crontab}"}
    )

    assert done.out == f"sessions: JOB=sessions {limit} clearsessions --dry-run\n"


def test_two_lines_of_one_name_are_two_jobs(commands: Commands, tmp_path: Path) -> None:
    crontab = tmp_path / "crontab"
    line = "0 1 * * * JOB=twice timeout 1h python manage.py"
    crontab.write_text(f"{line} archive_audit_logs\n{line} clearsessions\n")
    settings = {"CRONTAB": f"{crontab}"}

    done = commands.run("run_maintenance", settings=settings, environment=PATH)

    assert done.code == 0, done.err
    assert [run[:2] for run in outcomes()] == 2 * [("twice", "succeeded")]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--only=nothing"], "there is no job 'nothing' HINT: the names are starview-"),
        (["--only="], "--only '' names no job HINT: is a variable empty?"),
        (["--only=,"], "--only ',' names no job"),
        (["--skip", ""], "--skip '' names no job"),
        (["--skip=nothing"], "there is no job 'nothing'"),
        (["--only=clearsessions", "--skip=clearsessions"], "no job is left to run"),
        (["--no-such-option"], "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    options: list[str], text: str, manage: Manage
) -> None:
    done = manage("run_maintenance", *options)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert text in line

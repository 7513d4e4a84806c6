"""A job that is cut off in the middle: what the history says, and who does the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from demo.services import LocalServices
from starview_app.maintenance.jobs.unverified_users import cleanup as job
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.schedule.crontab import parse_crontab
from tests.app import App
from tests.conftest import kill_run, merged
from tests.factories import make_accounts, runs, session, wait_until_blocked_by
from tests.launcher import Launcher

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "starview-cleanup-unverified-users"
DEADLINE_SECONDS = 10  # a run has begun by then, also on a busy machine
WAIT_SECONDS = 60


class Cut(NamedTuple):
    """How a run is cut off, and what is then recorded of it."""

    off: Callable[[int], None]  # with the pid of the watching process
    outcome: str
    error: str


def worker_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def nothing(pid: int) -> None:
    """Its deadline comes by itself."""


CUTS = {
    "kill -9 of the job": Cut(
        lambda pid: os.kill(worker_of(pid), signal.SIGKILL),
        "crashed",
        "killed by signal 9",
    ),
    "kill -9 of all": Cut(nothing, "crashed", "its process is gone"),
    "SIGTERM": Cut(
        lambda pid: os.kill(pid, signal.SIGTERM), "interrupted", "stopped by SIGTERM"
    ),
    "deadline": Cut(nothing, "timed out", "its deadline was over"),
    "database restart": Cut(nothing, "failed", "the run was cut off"),
}


@pytest.fixture
def environment(test_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return {**test_environment, "PATH": path, "TMPDIR": str(temporary)}


@pytest.mark.parametrize("name", CUTS)
def test_the_history_says_how_a_run_was_cut_off_and_catch_up_does_the_rest(
    name: str,
    services: LocalServices,
    launcher: Launcher,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    cut = CUTS[name]
    slot = timezone.now() - timedelta(hours=3)  # not due again within the hour
    limit = f"{DEADLINE_SECONDS}s" if name == "deadline" else "1h"
    crontab = (
        f"0 {slot.hour} * * * JOB={NAME} timeout -k 60 {limit}"
        " python manage.py cleanup_unverified_users --days=7\n"
    )
    app = App(tmp_path, Path(), crontab)
    ((line,), _) = parse_crontab(crontab)
    joined = datetime.now(UTC) - timedelta(days=20)
    make_accounts(job.BATCH_ACCOUNTS, joined=joined - timedelta(days=1), prefix="first")
    make_accounts(5, joined=joined, prefix="second")

    def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
        return launcher.run(arguments, merged(environment), app.folder)

    # A file, since a pipe that nobody reads would hold up the run.
    printed = tmp_path / "printed"
    with session() as holder, printed.open("wb") as output:
        holder.cursor().execute("SELECT id FROM auth_user FOR UPDATE")
        with subprocess.Popen(
            ["/bin/sh", "-c", f"exec env {line.command}"],
            cwd=app.folder,
            env=merged(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as timeout:
            if name != "deadline":
                wait_until_blocked_by(holder)
                watcher = worker_of(timeout.pid)
                if name == "kill -9 of all":
                    os.kill(timeout.pid, signal.SIGKILL)
                    kill_run(SimpleNamespace(pid=watcher))
                else:
                    cut.off(watcher)
            if name == "database restart":
                services.restart_postgres()
                connection.close()
            timeout.wait(WAIT_SECONDS)

    long_ago = timezone.now() - timedelta(minutes=5)
    JobRun.objects.update(seen_at=None, started_at=long_ago)
    found = manage("catch_up")  # finds what is gone; it is not yet time for more
    left = User.objects.count()
    history = manage("jobs", "history", NAME)
    error, counts = runs().get().error, runs().get().counts
    JobRun.objects.update(finished_at=timezone.now() - timedelta(minutes=11))
    (app.folder / "crontab").write_text(crontab.replace(f" {limit} ", " 1h "))
    rest = manage("catch_up")

    assert timeout.returncode not in (0, 2, 75), printed.read_text()
    assert left > 0
    assert (found.returncode, rest.returncode) == (0, 0), found.stderr + rest.stderr
    assert f" {cut.outcome} " in history.stdout
    assert cut.error in error
    is_killed = cut.outcome == "crashed"
    assert counts.get("found") == (None if is_killed else job.BATCH_ACCOUNTS + 5)
    assert User.objects.count() == 0
    assert [
        (run.attempt, run.trigger, run.outcome) for run in runs().order_by("attempt")
    ] == [(1, "schedule", cut.outcome), (2, "catch-up", "succeeded")]

"""What `docker compose up` runs before it serves the page."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demo.services import LocalServices
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.schedule.crontab import parse_crontab
from tests.app import CATCH_UP, SLEEP, WAIT_SECONDS, App
from tests.conftest import ROOT, merged
from tests.factories import make_known, make_run, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SESSIONS = "JOB=starview-clear-sessions timeout -k 60 1h python manage.py clearsessions"
BY_HAND = {"adopt_audit_archives", "verify_audit_archives"}
PROGRAM = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "demo.page_settings"
import django
django.setup()
from demo import up
sys.exit(up.run_jobs())
"""
Up = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def up(tmp_path: Path, bucket: LocalServices, test_environment: dict[str, str]) -> Up:
    """`demo.up` in a process of its own, with this crontab, without set-up and page."""
    app = App(tmp_path, Path())
    (app.folder / "demo").symlink_to(ROOT / "demo")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def start(crontab: str) -> "subprocess.Popen[bytes]":
        (app.folder / "crontab").write_text(crontab)
        environment = merged({**test_environment, "PATH": path})
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=app.folder, env=environment
        )

    return start


def outcomes() -> Counter[tuple[str, str]]:
    runs = JobRun.objects.exclude(host="before-the-demo")
    return Counter(runs.values_list("job", "outcome"))


def test_an_up_that_was_stopped_in_a_job_goes_on_with_the_next_one(up: Up) -> None:
    crontab = f"0 4 1 * *  {SLEEP}\n0 5 * * 0  {SESSIONS}\n*/10 * * * *  {CATCH_UP}\n"
    make_run("starview-clear-sessions", host="before-the-demo")

    first = up(crontab)
    asleep = JobRun.objects.filter(job="starview-sleep", output__contains="sleeping")
    wait_until(asleep.exists, "the job sleeps")
    first.send_signal(signal.SIGTERM)
    stopped = first.wait(WAIT_SECONDS)
    after_first = outcomes()
    codes = [up(crontab).wait(WAIT_SECONDS) for _ in range(2)]

    assert (stopped, codes) == (143, [0, 0])
    assert after_first == {("starview-sleep", "interrupted"): 1}
    assert outcomes() == {
        ("starview-sleep", "interrupted"): 1,
        ("starview-clear-sessions", "succeeded"): 1,
        ("starview-catch-up", "succeeded"): 1,  # a row for both ticks
        **{(name, "succeeded"): 1 for name in BY_HAND},
    }


def test_what_was_missed_while_all_was_stopped_is_done_before_it_serves(up: Up) -> None:
    slot = datetime.now(UTC) - timedelta(hours=3)
    crontab = f"0 {slot.hour} * * *  {SESSIONS}\n*/10 * * * *  {CATCH_UP}\n"
    line = parse_crontab(crontab)[0][0]
    make_known(line, since=slot - timedelta(days=2))
    make_run(line.job, started_at=slot - timedelta(days=1))
    for name in BY_HAND:
        make_run(name, command=name)

    code = up(crontab).wait(WAIT_SECONDS)

    assert code == 0
    newest = JobRun.objects.filter(job=line.job).latest("started_at")
    assert (newest.trigger, newest.outcome) == ("catch-up", "succeeded")

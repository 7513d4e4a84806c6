"""The Celery task: a web service's own worker runs a named job, once a slot."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from demo.processes import ends_with_us
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.schedule.registry import recorded_jobs
from starview_app.maintenance.tasks import run_named_job
from tests.conftest import ROOT, merged
from tests.factories import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

JOB = "starview-clear-sessions"
TASK = "starview_app.maintenance.run_job"


def newest_slot() -> str:
    (line,) = (line for line in recorded_jobs() if line.job == JOB)
    return line.last_due(timezone.now()).isoformat()


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[None]:
    """A real one, with two threads, so that two messages are taken at once."""
    command = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "worker"]
    options = ["--pool=threads", "--concurrency=2", "--without-mingle"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, *options, "--without-gossip", "--loglevel=info"],
            cwd=ROOT,
            env=merged(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=ends_with_us(signal.SIGKILL),
        ) as process,
    ):
        try:
            yield
        finally:
            process.kill()


def send(environment: dict[str, str], *arguments: str | None) -> None:
    """As any process of the web service does that has the broker's address."""
    from celery import Celery

    with Celery("sender", broker=environment["REDIS_URL"]) as app:
        app.send_task(TASK, args=arguments, queue=environment["CELERY_QUEUE"])


@pytest.mark.parametrize("has_slot", [True, False])
def test_a_task_that_is_delivered_twice_runs_once(
    has_slot: bool, test_environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    environment = {**test_environment, "CELERY_QUEUE": uuid.uuid4().hex}
    slot = newest_slot()

    for _ in range(2):
        send(environment, JOB, slot if has_slot else None)
    with worker(environment, log):
        wait_until(
            lambda: log.read_text().count(" succeeded in ") == 2,
            "both messages are done with",
        )

    run = JobRun.objects.get()
    assert (run.job, run.outcome, run.attempt) == (JOB, "succeeded", 1)
    assert run.slot == datetime.fromisoformat(slot)
    assert log.read_text().count("is taken: run ") == 1


def test_a_message_that_comes_when_another_time_is_due_is_dropped(
    settings: Any,
) -> None:
    assert run_named_job(JOB, "2024-01-07T05:00:00+00:00") == 0

    assert not JobRun.objects.exists()


def test_catch_up_can_be_started_by_a_task_too(
    test_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in test_environment.items():
        monkeypatch.setenv(name, value)

    assert run_named_job("starview-catch-up") == 0

    assert JobRun.objects.get().counts == {"runs": 0, "ticks": 1}


def test_what_is_not_recorded_is_refused_with_that_reason(
    settings: Any, tmp_path: Path
) -> None:
    settings.CRONTAB = tmp_path / "crontab"
    settings.CRONTAB.write_text(
        "0 5 * * 0 JOB=check timeout 1h python manage.py check\n"
    )

    with pytest.raises(JobError, match="check is not recorded, so it could run twice"):
        run_named_job("check")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("starview-nothing",), "the crontab has no job 'starview-nothing' HINT: "),
        ((JOB, "2024-01-07T05:00:00"), "is no time with its zone"),
        ((JOB, "soon"), "slot='soon' is no time with its zone"),
    ],
)
def test_what_cannot_be_run_fails_the_task(
    arguments: tuple[str, ...], error: str
) -> None:
    with pytest.raises(JobError, match=error):
        run_named_job(*arguments)


def test_a_run_that_fails_fails_the_task(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CRONTAB = tmp_path / "crontab"
    settings.CRONTAB.write_text(
        f"0 5 * * 0 JOB={JOB} timeout 1h python manage.py clearsessions --wrong\n"
    )

    with pytest.raises(JobError, match=f"{JOB} ended with 2 HINT: "):
        run_named_job(JOB)


def test_the_task_can_be_imported_where_there_is_no_celery() -> None:
    """As in the image: the function is what it is."""
    code = """
import sys
sys.modules["celery"] = None
import django
django.setup()
from starview_app.maintenance import tasks
assert tasks.run_job is tasks.run_named_job
"""
    environment = {"DJANGO_SETTINGS_MODULE": "starview.settings", "DEBUG": "True"}

    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=merged(environment), check=True
    )

"""The real entrypoint.sh with the real supercronic, without a container around them."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from starview_app.maintenance.models import JobRun
from tests.app import CATCH_UP, CRONTAB, SLEEP, WAIT_SECONDS, App
from tests.conftest import ROOT, merged

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def app(tmp_path: Path, supercronic: Path) -> App:
    return App(tmp_path, supercronic)


def stop(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """SIGTERM to the entrypoint alone, as tini sends it: exit code and seconds."""
    started = time.monotonic()
    process.terminate()
    return process.wait(WAIT_SECONDS), time.monotonic() - started


def runs() -> list[tuple[str, str, str]]:
    return list(JobRun.objects.order_by("id").values_list("job", "trigger", "outcome"))


def test_a_stop_ends_the_running_job_at_once_and_it_is_recorded_as_interrupted(
    app: App, test_environment: dict[str, str]
) -> None:
    with app.started(test_environment) as process:
        app.wait_for("sleeping", process)

        code, seconds = stop(process)

    assert (code, seconds < 5) == (0, True), app.said()
    assert runs() == [("starview-sleep", "schedule", "interrupted")]


def test_a_stop_ends_what_is_caught_up_with_as_well(
    app: App, test_environment: dict[str, str]
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO maintenance_scheduleline"
            " (job, times, first_seen_at, seen_at, absent)"
            " VALUES ('starview-sleep', '0 4 1 * *', %s, now(), '0')",
            [timezone.now() - timedelta(days=60)],
        )
    with app.started(test_environment, CATCH_UP) as process:
        app.wait_for("sleeping", process)

        code, seconds = stop(process)

    assert (code, seconds < 5) == (0, True), app.said()
    assert runs() == [
        ("starview-sleep", "catch-up", "interrupted"),
        ("starview-catch-up", "schedule", "interrupted"),
    ]


def test_a_crontab_with_mistakes_is_told_and_runs_all_the_same(
    tmp_path: Path, supercronic: Path, test_environment: dict[str, str]
) -> None:
    app = App(tmp_path, supercronic, f"{CRONTAB}0 2 * * *  {SLEEP} --nosuch\n")
    with app.started(test_environment) as process:
        app.wait_for("sleeping", process)

    assert (
        "crontab line 3: sleep: unrecognized arguments: --nosuch HINT: " in app.said()
    )
    assert "crontab line 3: JOB=starview-sleep is the name of line 1" in app.said()
    assert "warning: the crontab has mistakes" in app.said()


def test_times_of_another_zone_are_refused_rather_than_run_at_the_wrong_hour(
    tmp_path: Path, supercronic: Path, test_environment: dict[str, str]
) -> None:
    app = App(tmp_path, supercronic, f"CRON_TZ=Europe/Berlin\n{CRONTAB}")
    with app.started(test_environment) as process:
        code = process.wait(WAIT_SECONDS)

    assert code == 1
    assert "CRON_TZ=Europe/Berlin: all times are UTC HINT: " in app.said()
    assert "error: the crontab has times of another zone HINT: " in app.said()
    assert runs() == []


def test_supercronic_gets_no_sentry_dsn_and_the_jobs_get_it_under_another_name(
    app: App, test_environment: dict[str, str]
) -> None:
    dsn = "https://public@sentry.example.com/1"
    environment = {**test_environment, "SENTRY_DSN": dsn, "TZ": "Asia/Tokyo"}
    with app.started({**environment, "DISABLE_EXTERNAL_APIS": "True"}) as process:
        app.wait_for("sleeping", process)

    assert "SENTRY_DSN is None" in app.said()
    assert "STARVIEW_SENTRY_DSN is ***" in app.said()  # set, and a secret
    assert "TZ is UTC" in app.said()


@pytest.mark.parametrize("arguments", [["check"], ["history", "--help"]])
def test_what_needs_no_database_waits_for_none(
    arguments: list[str], test_environment: dict[str, str]
) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        [str(ROOT / "entrypoint.sh"), "python", "manage.py", "jobs", *arguments],
        env=merged({**test_environment, **nowhere, "PATH": path}),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )

    assert done.returncode == 0, done.stderr
    assert "waiting for the database" not in done.stderr

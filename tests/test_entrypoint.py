"""The real entrypoint.sh with the real supercronic, without a container around them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from starview_app.maintenance.models import JobRun
from tests.conftest import ROOT, merged

pytestmark = pytest.mark.django_db(transaction=True)

WAIT_SECONDS = 30
# It sleeps until it is told to stop; and says what it was started with.
SLEEPER = """
import os, time
from django.core.management.base import BaseCommand

class Command(BaseCommand):
    requires_system_checks = ()

    def handle(self, **options):
        for name in ("SENTRY_DSN", "STARVIEW_SENTRY_DSN", "TZ"):
            self.stdout.write(f"{name} is {os.environ.get(name)}")
        self.stdout.write("sleeping")
        self.stdout.flush()
        time.sleep(120)
"""
SLEEP = "JOB=starview-sleep timeout -k 60 1h python manage.py run_job sleep"
CATCH_UP = "JOB=starview-catch-up python manage.py catch_up"
CRONTAB = f"0 4 1 * *  {SLEEP}\n*/10 * * * *  {CATCH_UP}\n"


class App:
    """A copy of the image's /app, whose schedule can be run every second."""

    def __init__(self, folder: Path, supercronic: Path, crontab: str = CRONTAB) -> None:
        self.folder = folder / "app"
        self.folder.mkdir()
        for name in ("manage.py", "entrypoint.sh"):
            shutil.copy2(ROOT / name, self.folder / name)
        for name in ("starview", "starview_app"):
            shutil.copytree(ROOT / name, self.folder / name)
        commands = self.folder / "starview_app" / "management" / "commands"
        (commands / "sleep.py").write_text(SLEEPER)
        (self.folder / "crontab").write_text(crontab)
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._seconds = folder / "every_second"
        self._supercronic = supercronic
        self.output = folder / "output"

    @contextmanager
    def started(
        self, environment: dict[str, str], line: str = SLEEP
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """The entrypoint, where supercronic runs `line` every second."""
        self._seconds.write_text(f"* * * * * * *  {line}\n")
        program = self._programs / "supercronic"
        program.write_text(
            f'#!/bin/bash\nexec {self._supercronic} "${{@:1:$#-1}}" {self._seconds}\n'
        )
        program.chmod(0o755)
        path = [self._programs, Path(sys.executable).parent, os.environ["PATH"]]
        variables = {**environment, "PATH": ":".join(map(str, path))}
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                [str(self.folder / "entrypoint.sh")],
                env=merged(variables),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            for pid in [*_descendants(process.pid), process.pid]:
                _kill(pid)
            process.wait(WAIT_SECONDS)

    def wait_for(self, text: str, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.said():
            assert process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


@pytest.fixture
def app(tmp_path: Path, supercronic: Path) -> App:
    return App(tmp_path, supercronic)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(") ")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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
            "INSERT INTO maintenance_job (name, first_seen_at, times)"
            " VALUES (%s, %s, '')",
            ["starview-sleep", timezone.now() - timedelta(days=60)],
        )
    with app.started(test_environment, CATCH_UP) as process:
        app.wait_for("sleeping", process)

        code, seconds = stop(process)

    assert (code, seconds < 5) == (0, True), app.said()
    assert runs() == [("starview-sleep", "catch-up", "interrupted")]


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

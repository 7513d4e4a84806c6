"""The real entrypoint.sh with the real supercronic, without a container around them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def entrypoint(
    *command: str, env: dict[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "entrypoint.sh"), *command],
        env=merged({**env, "PATH": path_of_the_image()}),
        capture_output=True,
        text=True,
        errors="strict",
        input=stdin,
        timeout=WAIT_SECONDS,
    )


def test_of_a_command_that_knows_no_json_each_line_is_an_object_and_its_code_is_kept(
    test_environment: dict[str, str],
) -> None:
    script = r"""
        cat; printf '{not json}\n\377\n{"whole": 1}\n{"a": "%s"}\n' "$SOME_TOKEN"
        sleep 100 & # it keeps the output open
        printf 'no line end' >&2; exit 3
    """
    json_and_a_secret = {"LOG_FORMAT": "json", "SOME_TOKEN": 'to"ken/of 1'}

    done = entrypoint(
        *("sh", "-c", script), env={**test_environment, **json_and_a_secret}, stdin="in"
    )

    objects = [json.loads(line) for line in done.stdout.splitlines()]
    shown = [record.get("line", record) for record in objects]
    assert shown == ["in{not json}", "\\xff", {"whole": 1}, {"a": "***"}, "no line end"]
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["no-such-command"], 127), ([], 1)]
)
def test_with_json_what_the_entrypoint_itself_has_to_say_is_objects(
    arguments: list[str], code: int, test_environment: dict[str, str]
) -> None:
    wrong = {"LOG_FORMAT": "json", "DATABASE_URL": "mysql://"}

    done = entrypoint(*arguments, env={**test_environment, **wrong})

    assert done.returncode == code
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()]


def test_a_signal_reaches_a_command_whose_lines_become_objects(
    tmp_path: Path, test_environment: dict[str, str]
) -> None:
    script = "trap 'echo stopped; exit 7' TERM; echo begun; while :; do sleep 0.1; done"
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(ROOT / "entrypoint.sh"), "bash", "-c", script],
            env=merged({"LOG_FORMAT": "json", "PATH": path_of_the_image()}),
            stdout=output,
        )
    wait_until(lambda: "begun" in (tmp_path / "output").read_text())

    code, _ = stop(process)

    assert code == 7
    assert "stopped" in (tmp_path / "output").read_text()


# -- what `docker exec` has started ----------------------------------------------------

CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
AS_TINI = """
    "$@" & child=$!
    trap 'kill -TERM $child' TERM
    while wait $child; code=$?; kill -0 $child 2>/dev/null; do :; done
    exit $code
"""


@pytest.fixture
def tini(tmp_path: Path) -> list[str]:
    """What runs a program as the image does, as its own process tree's first child."""
    if subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        missing = "this user may not make a namespace of processes"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    program = tmp_path / "tini"
    shutil.copy2(shutil.which("bash") or "", program)
    return [*CONTAINER, str(program), "-c", AS_TINI, "tini"]


@contextmanager
def job_beside(
    init: str, app: App, environment: dict[str, str], output: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A job that `docker exec` has started in the container, once it works."""
    with output.open("wb") as written:
        beside = subprocess.Popen(
            ["nsenter", "-t", init, "--pid", "--mount"]
            + [sys.executable, str(app.folder / "manage.py"), "run_job", "sleep"],
            env=merged(environment),
            stdout=written,
        )
    with beside:
        wait_until(
            lambda: "sleeping" in output.read_text() or beside.poll() is not None
        )
        yield beside


def init_of(process: "subprocess.Popen[bytes]") -> str:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip()


def test_a_stop_reaches_a_job_that_docker_exec_has_started_and_waits_for_its_end(
    app: App, tini: list[str], test_environment: dict[str, str], tmp_path: Path
) -> None:
    with app.started(test_environment, "true", within=tini) as process:
        app.wait_for("job succeeded", process)
        init = init_of(process)
        with job_beside(init, app, test_environment, tmp_path / "beside") as beside:
            os.kill(int(init), signal.SIGTERM)
            code = process.wait(WAIT_SECONDS)

    assert code == 0, app.said()
    assert beside.returncode == 1  # its own word, not a SIGKILL
    assert runs() == [("starview-sleep", "by hand", "interrupted")]


def test_so_it_does_before_the_schedule_has_begun(
    app: App, tini: list[str], test_environment: dict[str, str], tmp_path: Path
) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    waiting = {**test_environment, **nowhere}
    with app.started(waiting, "true", within=tini) as process:
        app.wait_for("waiting for the database", process)
        init = init_of(process)
        with job_beside(init, app, test_environment, tmp_path / "beside") as beside:
            os.kill(int(init), signal.SIGTERM)
            code = process.wait(WAIT_SECONDS)

    assert code == 143, app.said()
    assert beside.returncode == 1
    assert runs() == [("starview-sleep", "by hand", "interrupted")]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def path_of_the_image() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.parametrize("arguments", [["check"], ["history", "--help"]])
def test_what_needs_no_database_waits_for_none(
    arguments: list[str], test_environment: dict[str, str]
) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}

    done = entrypoint(
        *("python", "manage.py", "jobs", *arguments),
        env={**test_environment, **nowhere},
    )

    assert done.returncode == 0, done.stderr
    assert "waiting for the database" not in done.stderr

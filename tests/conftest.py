"""Fixtures: the real services, and commands as an operator runs them."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from django.db import connection

from demo.services import BUCKET, LocalServices
from starview_app.maintenance.models import (
    Announcement,
    Job,
    JobRun,
    ScheduleLine,
    SentReport,
)
from starview_app.maintenance.running import command
from starview_app.management.commands import run_job
from tests import plugin
from tests.emptying import use_quick_emptying
from tests.factories import execute
from tests.launcher import Launcher, Started
from tests.launcher import launcher as the_launcher

# Modules with fixtures. They import models, as this one does: Django is set up by now.
pytest_plugins = [
    "tests.archive_processes",
    "tests.deployment",
    "tests.pgbouncer",
    "tests.supercronic",
]

use_quick_emptying()

ROOT = Path(__file__).resolve().parent.parent
Manage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def services() -> LocalServices:
    """The servers that all tests share."""
    return plugin.services


@pytest.fixture(autouse=True)
def _no_fork_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test runs in this process must not fork it: it is no run."""
    for module in (command, run_job):
        monkeypatch.setattr(module, "fork_run", lambda request: None)


@pytest.fixture(autouse=True)
def _no_run_on_record(request: pytest.FixtureRequest) -> None:
    """Processes that other tests ran have left their records, by another session."""
    if marker := request.node.get_closest_marker("django_db"):
        is_shared = marker.kwargs.get("transaction", False)
        request.getfixturevalue("transactional_db" if is_shared else "db")
        JobRun.objects.all().delete()
        Job.objects.all().delete()
        Announcement.objects.all().delete()
        ScheduleLine.objects.all().delete()
        SentReport.objects.all().delete()


@pytest.fixture
def bucket(services: LocalServices) -> Iterator[LocalServices]:
    """The services with an empty bucket, before and after."""
    _empty_bucket(services)
    yield services
    _empty_bucket(services)


@pytest.fixture
def test_environment() -> dict[str, str]:
    """Production variables for a process that works on the tests' own database."""
    from urllib.parse import quote

    parameters = connection.settings_dict
    url = (
        f"postgresql://{parameters['USER'] or 'postgres'}@/{parameters['NAME']}"
        f"?host={quote(socket_folder())}"
    )
    return {**plugin.services.environment, "DATABASE_URL": url}


@pytest.fixture(scope="session")
def launcher() -> Launcher:
    return the_launcher()


@pytest.fixture
def manage(launcher: Launcher, test_environment: dict[str, str]) -> Manage:
    """Run `manage.py ARGS` as a process of its own; `env=` changes variables."""

    def run(
        *arguments: str, env: dict[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return launcher.run(arguments, merged(test_environment, env))

    return run


def merged(
    environment: dict[str, str], changes: dict[str, str | None] | None = None
) -> dict[str, str]:
    """This process's variables, then `environment`, then `changes` (None: unset)."""
    combined: dict[str, str | None] = {**os.environ, **environment, **(changes or {})}
    return {name: value for name, value in combined.items() if value is not None}


@pytest.fixture
def backup_path(services: LocalServices) -> str:
    """PATH with pg_dump and pg_restore as new as the tests' server."""
    return f"{services.psql_path.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def target() -> Iterator[str]:
    """An empty database of the tests' server."""
    name = f"{connection.settings_dict['NAME']}_restored"
    execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    execute(f"CREATE DATABASE {name}")
    yield name
    execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def started(
    command: str, environment: dict[str, str], folder: Path, *options: str
) -> Iterator[Started]:
    """`manage.py COMMAND OPTIONS`, running; `folder` gets its `stdout` and `stderr`."""
    with (
        (folder / "stdout").open("wb") as stdout,
        (folder / "stderr").open("wb") as stderr,
    ):
        process = the_launcher().start(
            [command, *options], merged(environment), stdout, stderr
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class _WithPid(Protocol):
    @property
    def pid(self) -> int: ...


def kill_run(process: _WithPid) -> None:
    """Kill a run as a container is killed: all of its processes at once."""
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)  # or it would record how its command ended
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def socket_folder() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW unix_socket_directories")
        (folder,) = cursor.fetchone()
    return str(folder)


def _empty_bucket(services: LocalServices) -> None:
    client = services.s3
    for found in services.archived_objects():
        client.delete_object(Bucket=BUCKET, Key=found.key)


# What a trigger may do, and the reason that is told.
REFUSALS = [
    pytest.param("RAISE EXCEPTION 'kept by law'", "kept by law", id="raises"),
    pytest.param(
        "RETURN NULL",
        "the database kept it without an error (a trigger or rule)",
        id="keeps silently",
    ),
]


class Trigger(Protocol):
    def __call__(
        self, before: str, row: int | None = None, how: str = "", /
    ) -> None: ...


@pytest.fixture
def trigger() -> Iterator[Trigger]:
    """Let a trigger refuse a statement, or what it does to the row of an id."""

    def create(before: str, row: int | None = None, how: str = "") -> None:
        how = how or "RAISE EXCEPTION 'kept by law'"
        when = f"ROW WHEN (OLD.id = {row})" if row else "STATEMENT"
        execute(
            "CREATE FUNCTION refuse_rows() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {how}; END $$;"
            f"CREATE TRIGGER refuse BEFORE {before} FOR EACH {when}"
            " EXECUTE FUNCTION refuse_rows()"
        )

    yield create
    execute("DROP FUNCTION IF EXISTS refuse_rows CASCADE")

"""The deployment of docker-compose.yml, for the tests that need a Docker engine."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "starview-cron"
PROJECT = f"starview-test-{uuid.uuid4().hex[:8]}"
# Any that are free: somebody may look at a deployment of their own meanwhile.
PORTS = {"PAGE_PORT": "0", "CONSOLE_PORT": "0"}
_COMPOSE = ("compose", "--progress=quiet", "-p", PROJECT)


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the client; its output is one text, in the order of the lines."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env=os.environ | PORTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def compose(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return docker(*_COMPOSE, *arguments, check=check)


def psql(sql: str) -> str:
    return compose(
        *("exec", "-T", "postgres", "psql", "-XAtq", "-U", "starview", "-c", sql)
    ).stdout.strip()


def _one_off(command: tuple[str, ...], environment: dict[str, str]) -> list[str]:
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    return ["run", "--rm", "-T", "--no-deps", *variables, "cron", *command]


def run_once(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A one-off container of the `cron` service, beside the others."""
    return compose(*_one_off(command, environment), check=False)


@contextmanager
def running(*command: str) -> Iterator["subprocess.Popen[str]"]:
    """The same, while it runs."""
    with subprocess.Popen(
        ["docker", *_COMPOSE, *_one_off(command, {})],
        cwd=ROOT,
        env=os.environ | PORTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def deployment() -> Iterator[None]:
    """All services, set up, but the worker: for all tests of a session."""
    try:
        compose("up", "-d", "--wait", "page")
        yield
    finally:
        compose("down", "--volumes", "--timeout", "1", check=False)

"""The servers of the demo, of the tests and of the benchmarks end with their owner."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg2
import pytest

from demo import services as services_module
from demo.processes import ServiceError
from demo.services import LocalServices
from tests.conftest import ROOT
from tests.factories import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")

OWNER = """
import sys
from demo.services import LocalServices
services = LocalServices(sys.argv[1], is_durable=False)
services.start()
print("started", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def owner_of_services(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "started\n"
        yield owner  # then its input ends, and so does it


def has_ended(process: psutil.Process) -> bool:
    """A zombie has: who should wait for it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def test_the_services_of_a_killed_owner_end_and_the_next_start_is_fresh(
    tmp_path: Path,
) -> None:
    with owner_of_services(tmp_path) as owner:
        processes = psutil.Process(owner.pid).children(recursive=True)
        names = {process.name() for process in processes}

        os.kill(owner.pid, signal.SIGKILL)

        assert {"postgres", "redis-server"} <= names
        with LocalServices(tmp_path, is_durable=False) as services:
            psycopg2.connect(services.database_url).close()
        wait_until(lambda: all(map(has_ended, processes)), "all have ended")


def test_a_folder_in_use_is_neither_shared_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "STOP_SECONDS", 0.1)
    with owner_of_services(tmp_path):
        for attempt in (LocalServices(tmp_path).start, LocalServices(tmp_path).remove):
            with pytest.raises(ServiceError, match="services already run in"):
                attempt()

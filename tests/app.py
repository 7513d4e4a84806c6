"""The real entrypoint.sh with the real supercronic in a copy of the image's /app."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import ROOT, merged

WAIT_SECONDS = 60
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
        self,
        environment: dict[str, str],
        line: str = SLEEP,
        within: Sequence[str] = (),
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """The entrypoint, where supercronic runs `line` every second.

        `within` is what starts it.
        """
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
                [*within, str(self.folder / "entrypoint.sh")],
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

"""`manage.py` as a process of its own that starts in a quarter of the time.

What is forked for each call has imported the packages that every command needs, and
nothing else: it reads its environment and its settings, and ends, as any process does.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

from demo.processes import ends_with_us

_ROOT = Path(__file__).resolve().parent.parent
WAIT_SECONDS = 60
# None of them reads the settings, or the environment, when it is imported.
_PACKAGES = (
    "boto3.session",
    "botocore.client",
    "django.core.management",
    "django.db.backends.postgresql.base",
    "django.db.models",
    "django.forms.models",
    "django.template.loader",
    "django.test.client",
    "psycopg2.extras",
    "s3transfer",
    "structlog",
)


class Started:
    """A process, as its starter sees it: what is used here of a Popen."""

    returncode: int | None = None

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._answers = channel.makefile()
        channel.settimeout(WAIT_SECONDS)
        self.pid = int(self._answers.readline())

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        if self.returncode is None:
            self._channel.settimeout(seconds)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._channel.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Launcher:
    """Starts `manage.py ARGS` with exactly the given variables; close it at the end."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=_ROOT,
                pass_fds=[theirs.fileno()],
                preexec_fn=ends_with_us(signal.SIGKILL),
            )

    def start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
        folder: Path = _ROOT,
    ) -> Started:
        """From any thread; `folder` is where manage.py is."""
        mine, theirs = socket.socketpair()
        with theirs:
            handed = [theirs.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._socket, [b"!"], handed)
        mine.sendall(json.dumps([arguments, environment, str(folder)]).encode())
        mine.shutdown(socket.SHUT_WR)
        return Started(mine)

    def run(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        folder: Path = _ROOT,
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            process = self.start(arguments, environment, out, error, folder)
            try:
                code = process.wait()
            finally:
                process.kill()
            texts = []
            for file in (out, error):
                file.seek(0)
                texts.append(file.read().decode())
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.CompletedProcess(command, code, *texts)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(WAIT_SECONDS)


@cache
def launcher() -> Launcher:
    """The one of these tests."""
    return Launcher()


def serve(descriptor: int) -> None:
    """Fork for each call; returns, in the fork of a fork, where it is to be run."""
    for name in _PACKAGES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(fileno=descriptor) as calls:
        while True:
            _, handed, *_ = socket.recv_fds(calls, 1, 3)
            if not handed:
                sys.exit()
            if not os.fork():
                break
            for each in handed:
                os.close(each)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=handed[0]) as caller:
        with caller.makefile() as lines:
            arguments, environment, folder = json.load(lines)
        end_with_parent = ends_with_us(signal.SIGKILL)
        pid = os.fork()
        if pid:
            with suppress(OSError):
                caller.sendall(f"{pid}\n".encode())
                _, status = os.waitpid(pid, 0)
                caller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
    if end_with_parent:
        end_with_parent()
    for number, each in enumerate(handed[1:], 1):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["manage.py", *arguments]
    sys.path[0] = folder
    os.chdir(folder)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
    runpy.run_path("manage.py", run_name="__main__")

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
from importlib import import_module
from pathlib import Path

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

    def run(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        folder: Path = _ROOT,
    ) -> subprocess.CompletedProcess[str]:
        """Wait for its end; from any thread. `folder` is where manage.py is."""
        mine, theirs = socket.socketpair()
        with mine, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            with theirs:
                handed = [theirs.fileno(), out.fileno(), error.fileno()]
                socket.send_fds(self._socket, [b"!"], handed)
            mine.settimeout(WAIT_SECONDS)
            mine.sendall(json.dumps([arguments, environment, str(folder)]).encode())
            mine.shutdown(socket.SHUT_WR)
            with mine.makefile() as answers:
                pid = int(answers.readline())
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
            texts = []
            for file in (out, error):
                file.seek(0)
                texts.append(file.read().decode())
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.CompletedProcess(command, code, *texts)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(WAIT_SECONDS)


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

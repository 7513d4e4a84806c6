"""Child processes that never outlive their owner, and the remains of a killed one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]

READY_SECONDS = 60  # a first start on a busy machine reads everything from a cold disk
POLL_SECONDS = 0.02
STOP_SECONDS = 10  # then the next, ruder signal

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServiceError(Exception):
    """A service cannot be started; the text says which one and what to look at."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as an exception: what Ctrl-C already is.

    A KeyboardInterrupt because that is what pytest and `finally` clauses clean up for.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


class EndingSignals:
    """While installed, SIGTERM and SIGHUP raise `Terminated` in the main thread.

    A handler that somebody else has set, or an ignored signal (nohup), stays.
    """

    def __init__(self) -> None:
        self._installed: list[signal.Signals] = []

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _raise_terminated)
                self._installed.append(number)

    def uninstall(self) -> None:
        while self._installed:
            number = self._installed.pop()
            if signal.getsignal(number) is _raise_terminated:
                signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold back Ctrl-C and its kin until the block is done; then they are delivered.

    Between starting a process and noting its id, or half-way through stopping one, an
    exception would leave the process behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(
                number, lambda number, frame: received.append(number)
            )
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for late in received[:1]:
            os.kill(os.getpid(), late)


@dataclass
class Service:
    """A running process of ours and the signals that stop it, politest first."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Return once `is_ready()`; raise ServiceError if the process ends instead."""
        # Waiting for its end is the pause between two questions: no time is lost when
        # it dies, and none when it is ready.
        for _ in range(int(READY_SECONDS / POLL_SECONDS)):
            if is_ready():
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(POLL_SECONDS)
                raise ServiceError(
                    f"{self.name} ended with {code}: {self._last_words()}"
                )
        raise ServiceError(
            f"{self.name} was not ready after {READY_SECONDS} s: {self._last_words()}"
        )

    def listens_on(self, port: int) -> bool:
        """Whether this very process accepts TCP connections on `port`."""
        with contextlib.suppress(psutil.Error):
            return any(
                found.status == psutil.CONN_LISTEN and found.laddr.port == port
                for found in psutil.Process(self.process.pid).net_connections("tcp")
            )
        return False

    def wait_for_success(self) -> None:
        """Return when the process, which is no server, has ended with 0."""
        try:
            code = self.process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServiceError(
                f"{self.name} took more than {READY_SECONDS} s: {self._last_words()}"
            ) from None
        if code:
            raise ServiceError(f"{self.name} ended with {code}: {self._last_words()}")

    def stop(self) -> None:
        for number in (*self.stop_signals, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"{lines[-1] if lines else 'it wrote nothing'} (all of it: {self.log})"


class Registry:
    """A file that names the processes of one owner, for whoever finds it killed.

    A process is named by id and start time: an id alone may by now be someone else's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[dict[str, Any]] = []
        self._folders: list[str] = []

    def begin(self) -> None:
        """Note this process as the owner. Ends, or removes, what a killed one left.

        Raises ServiceError when the former owner still runs.
        """
        former = self._read()
        if former and _find(former["owner"]):
            raise ServiceError(
                f"process {former['owner']['pid']} already runs its services in"
                f" {self._path.parent}. HINT: stop it first (Ctrl-C), or use another"
                " checkout."
            )
        for entry in former.get("processes", []):
            _end(entry)
        self._entries = []
        self._folders = former.get("folders", [])
        self._write()

    def left_folders(self) -> list[Path]:
        """The temporary folders of the killed owner, which are no longer in use."""
        return [Path(folder) for folder in self._folders]

    def note_folder(self, folder: Path) -> None:
        self._folders = [str(folder)]
        self._write()

    def note_process(self, pid: int) -> None:
        self._entries.append(_identity(pid))
        self._write()

    def end(self) -> None:
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or the machine died while it was written
            return {}
        return found if isinstance(found, dict) and "owner" in found else {}

    def _write(self) -> None:
        text = json.dumps(
            {
                "owner": _identity(os.getpid()),
                "processes": self._entries,
                "folders": self._folders,
            }
        )
        new = self._path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self._path)


def end_descendants(pid: int) -> None:
    """End the process and all it started: SIGTERM, and SIGKILL for what ignores it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        _end_processes([*parent.children(recursive=True), parent], signal.SIGTERM)


def _identity(pid: int) -> dict[str, Any]:
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "started": 0.0}


def _find(entry: dict[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(entry["pid"])
        # Start times are counted from the boot, which a clock that is set moves a bit.
        is_same = abs(process.create_time() - entry["started"]) < 2
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return process if is_same and is_alive else None
    except psutil.NoSuchProcess:
        return None


def _end(entry: dict[str, Any]) -> None:
    process = _find(entry)
    if process:
        # PostgreSQL waits for its clients after SIGTERM; all of ours obey SIGINT.
        _end_processes([process], signal.SIGINT)


def _end_processes(
    processes: list[psutil.Process], polite_signal: signal.Signals
) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(polite_signal)
    _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)

"""Child processes that never outlive their owner."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
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

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class ServiceError(Exception):
    """A service cannot be started; the text says which one and where to look."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as an exception: what Ctrl-C already is.

    A KeyboardInterrupt because that is what pytest and `finally` clauses clean up for.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def raise_when_terminated() -> None:
    """From now on SIGTERM and SIGHUP raise `Terminated`. Only for the main thread.

    A handler that somebody else has set, or an ignored signal (nohup), stays.
    """

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, raise_terminated)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP until the block, a clean-up, is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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


def ends_with_us(number: signal.Signals) -> Callable[[], None] | None:
    """Return a `preexec_fn` for a child that gets signal `number` when we end.

    The kernel sends the signal, also after a `kill -9`. A change of the user would
    revoke the request, but Popen calls the function after it; an `exec` keeps the
    request. None on other systems than Linux.
    """
    if not _prctl:
        return None
    if threading.current_thread() is not threading.main_thread():
        # For the kernel the parent is the thread, which may end before the process.
        raise RuntimeError("a child that ends with us is started in the main thread")
    prctl, owner = _prctl, os.getpid()

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != owner:  # the owner ended before the request
            os._exit(1)

    return ask_the_kernel


def end_descendants(pid: int) -> None:
    """End the process and all it started: SIGTERM, and SIGKILL for what ignores it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        processes = [*parent.children(recursive=True), parent]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            _, processes = psutil.wait_procs(processes, timeout=STOP_SECONDS)


@dataclass
class Service:
    """A running process of ours and the signals that stop it, politest first."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Return once `is_ready()`; raise ServiceError if the process ends instead."""
        # The pause between two checks waits for the process to end, so that no time is
        # lost if it does.
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


def wheel_folder(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ServiceError(
            f"{package} is not installed. HINT: use the interpreter of the virtual"
            " environment, .venv/bin/python; `make .venv` makes it."
        )
    return Path(found.origin).parent

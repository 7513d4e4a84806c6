"""A command as two processes: one works, the other watches over it.

The command runs in a fork of this process. The watching process hands on what the
command writes and keeps the end of it, keeps the deadline, passes signals on, and knows
how the command ended, also when it was killed or ran out of memory.
"""

import gc
import json
import os
import select
import selectors
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

OUTPUT_BYTES = 64 * 1024
SAVE_SECONDS = 30.0
# How long what a command has started may go on writing after its own end.
DRAIN_SECONDS = 0.3
# For a command that ignores its deadline: as `timeout -k 60`, but sooner, so that the
# end is recorded before `timeout` kills this process as well.
KILL_AFTER_SECONDS = 60.0
SOONER_SECONDS = 30.0
# `timeout` began to count before this process could: it may speak first.
DEADLINE_SLACK_SECONDS = 1.5

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_READ_BYTES = 64 * 1024


@dataclass
class Ended:
    """How the command's process ended, and what it said."""

    exit_code: int  # negative: the number of the signal that killed it
    output: str
    told: dict[str, Any] = field(default_factory=dict)  # see `tell`
    stopped_by: str = ""  # the name of the signal that this process was sent
    timed_out: bool = False


# -- in the command's process -------------------------------------------------------

_report_fd: int | None = None


def is_supervised() -> bool:
    """Whether another process watches over this one."""
    return _report_fd is not None


def run_pid() -> int:
    """The process that stands for this run: the one that a signal should go to."""
    return os.getppid() if is_supervised() else os.getpid()


def tell(**facts: Any) -> None:
    """Tell the watching process about this run; does nothing without one.

    Understood: `counts`, `interrupted`, `refused`, `error`; what is told last counts.
    """
    if _report_fd is not None:
        with suppress(OSError):
            os.write(_report_fd, json.dumps(facts).encode() + b"\n")


# -- in the watching process ---------------------------------------------------------


class Watched:
    """A command's process, forked and waiting to begin."""

    def __init__(self, pid: int, go: int, streams: dict[int, int], report: int) -> None:
        self.pid = pid
        self._go = go
        self._targets = streams  # where what is read from a descriptor goes
        self._report = report
        self._facts = bytearray()
        self._tail = bytearray()
        self._received: list[int] = []
        self._stopped_by = ""
        self._timed_out = False
        self._is_over = False
        self._selector = selectors.DefaultSelector()
        self._listen()

    def dismiss(self) -> None:
        """End it before it has begun."""
        os.close(self._go)
        os.waitpid(self.pid, 0)

    def watch(
        self,
        *,
        deadline_seconds: float | None,
        kill_after_seconds: float | None,
        save_output: Callable[[str], None],
    ) -> Ended:
        """Let it begin, and return when it has ended.

        `deadline_seconds` count from the start of this process. Then the command is
        told to stop, and killed when it has not done so within `kill_after_seconds`.
        `save_output` gets the last OUTPUT_BYTES written, every SAVE_SECONDS.
        """
        with suppress(BrokenPipeError):  # a signal may have ended it already
            os.write(self._go, b"!")
        os.close(self._go)
        never = float("inf")
        stop_at = kill_at = never
        if deadline_seconds:
            stop_at = time.monotonic() - own_age_seconds() + deadline_seconds
        save_at = time.monotonic() + SAVE_SECONDS
        while (status := self._status()) is None:
            self._read(min(stop_at, kill_at, save_at) - time.monotonic())
            now = time.monotonic()
            self._pass_on(is_late=now >= stop_at - DEADLINE_SLACK_SECONDS)
            if now >= stop_at:
                self._timed_out = True
                self._send(signal.SIGTERM)
                stop_at, kill_at = never, now + _patience(kill_after_seconds)
            if now >= kill_at:
                self._send(signal.SIGKILL)
                kill_at = never
            if now >= save_at:
                save_output(self._output())
                save_at = time.monotonic() + SAVE_SECONDS
        drain_until = time.monotonic() + DRAIN_SECONDS
        while self._targets and (left := drain_until - time.monotonic()) > 0:
            self._read(left)
        self._pass_on(is_late=time.monotonic() >= stop_at - DEADLINE_SLACK_SECONDS)
        return Ended(
            os.waitstatus_to_exitcode(status),
            self._output(),
            self._told(),
            self._stopped_by,
            self._timed_out,
        )

    # -- internal helpers ---------------------------------------------------------

    def _listen(self) -> None:
        """Wake up for output, for signals and for the end of the process.

        The signals stay with this process to its end: one that comes while the end of
        the run is recorded must not prevent that.
        """
        reader, self._waker = socket.socketpair()
        for end in (reader, self._waker):
            end.setblocking(False)
        self._wakened = reader
        for number in _PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for descriptor in (*self._targets, self._report, reader.fileno()):
            self._selector.register(descriptor, selectors.EVENT_READ)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    def _status(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        self._is_over = bool(pid)
        return status if pid else None

    def _pass_on(self, *, is_late: bool) -> None:
        while self._received:
            number = self._received.pop(0)
            self._stopped_by = self._stopped_by or signal.Signals(number).name
            self._timed_out = self._timed_out or is_late
            self._send(number)

    def _send(self, number: int) -> None:
        if not self._is_over:  # its number may be another's by now
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _read(self, wait_seconds: float) -> bool:
        """Wait for something to read, and read it; whether there was any output."""
        has_output = False
        for key, _ in self._selector.select(max(wait_seconds, 0.0)):
            if key.fd == self._wakened.fileno():
                with suppress(BlockingIOError):
                    self._wakened.recv(4096)
                continue
            chunk = _read_some(key.fd)
            if not chunk:
                self._leave(key.fd)
            elif key.fd == self._report:
                self._facts += chunk
            else:
                has_output = True
                self._keep(chunk)
                if not _write_all(self._targets[key.fd], chunk):
                    # Nobody reads it, or it has no room: the command shall learn that.
                    self._leave(key.fd)
        return has_output

    def _leave(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        self._targets.pop(descriptor, None)
        os.close(descriptor)

    def _keep(self, chunk: bytes) -> None:
        self._tail += chunk
        if len(self._tail) > 2 * OUTPUT_BYTES:
            del self._tail[:-OUTPUT_BYTES]

    def _output(self) -> str:
        tail = self._tail[-OUTPUT_BYTES:]
        if len(self._tail) > OUTPUT_BYTES and b"\n" in tail:
            # Not half a line, which may begin with half a secret.
            tail = tail[tail.index(b"\n") + 1 :]
        return tail.decode(errors="replace")

    def _told(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for line in self._facts.split(b"\n"):
            with suppress(ValueError):  # the last may be cut off by a kill
                facts |= json.loads(line)
        return facts


def fork() -> Watched | None:
    """Fork: None in the process that is to do the work, once it may begin.

    The caller holds no connection that both would use, and no thread.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    channels = {number: _channel(number) for number in (1, 2)}
    (go_reader, go), (report, report_writer) = os.pipe(), os.pipe()
    parent = os.getpid()
    gc.freeze()  # what both have shall not be copied by the collector's marks
    pid = os.fork()
    if pid:
        for descriptor in (go_reader, report_writer):
            os.close(descriptor)
        for _, writer in channels.values():
            os.close(writer)
        streams = {reader: number for number, (reader, _) in channels.items()}
        return Watched(pid, go, streams, report)
    for number, (reader, writer) in channels.items():
        os.close(reader)
        os.dup2(writer, number)
        os.close(writer)
    os.close(go)
    os.close(report)
    _end_with(parent)
    if not os.read(go_reader, 1):
        os._exit(0)
    os.close(go_reader)
    global _report_fd
    _report_fd = report_writer
    return None


def own_age_seconds() -> float:
    """How long this process has been running; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, AttributeError):
        return 0.0


def _patience(kill_after_seconds: float | None) -> float:
    seconds = kill_after_seconds or KILL_AFTER_SECONDS
    return max(seconds - SOONER_SECONDS, seconds / 2)


def _channel(number: int) -> tuple[int, int]:
    """(reader, writer) for a stream: a terminal again where it is one, for the bar."""
    if not os.isatty(number):
        return os.pipe()
    reader, writer = os.openpty()
    tty.setraw(writer)
    termios.tcsetwinsize(writer, termios.tcgetwinsize(number))
    return reader, writer


def _end_with(parent: int) -> None:
    """Be told to stop when the watching process is killed (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


def _read_some(descriptor: int) -> bytes:
    """b"" at the end; a terminal whose other side is closed says so by an error."""
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:
        return b""


def _write_all(descriptor: int, data: bytes) -> bool:
    """Whether all of it could be written."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [], 1.0)
        except OSError:
            return False
    return True

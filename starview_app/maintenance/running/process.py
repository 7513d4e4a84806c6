"""A command as two processes: one works, the other watches it.

The command runs in a fork of this process. The watching process relays the command's
output and keeps the end of it, passes signals on, and learns how the command ended,
even when it was killed or ran out of memory.
"""

import gc
import json
import os
import select
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

from starview.output import stop_filtering
from starview_app.maintenance.running.forks import end_with, undo_in_children
from starview_app.maintenance.running.relay import Relay, flush

OUTPUT_BYTES = 64 * 1024
# Early, so that a run that is killed together with its container has output and a
# length on record. `docker stop` does that to what `docker compose exec` has started.
FIRST_SAVE_SECONDS = 1.0
SAVE_SECONDS = 5.0
_PATIENCE = 6  # times SAVE_SECONDS after a failed save, which may have taken long
# How long the children of a command may go on writing after the command has ended.
DRAIN_SECONDS = 0.3
# When a command ignores the signal of `timeout -k 60`. It is killed before `timeout`
# would kill this process too, so that the end of the run is recorded.
KILL_AFTER_SECONDS = 60.0
SOONER_SECONDS = 30.0
# An interpreter starts faster; a process that seems older has a wrong clock.
LONGEST_START_SECONDS = 60.0
# `timeout` began to count before this process did, so its signal may come this early.
DEADLINE_SLACK_SECONDS = 1.5

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FACTS_BYTES = 64 * 1024
_MOST_FACTS_BYTES = 1024 * 1024


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(
        type(count) is int and abs(count) < 2**63 for count in value.values()
    )


# The facts that a command may report, each with a test of its type.
_FACTS: dict[str, Callable[[object], bool]] = {
    "counts": _are_counts,
    "error": lambda value: isinstance(value, str),
    "interrupted": lambda value: isinstance(value, bool),
    "refused": lambda value: isinstance(value, bool),
}


@dataclass
class Ended:
    """How the command's process ended, and what it wrote and reported."""

    exit_code: int  # negative: the number of the signal that killed it
    output: str
    facts: dict[str, Any] = field(default_factory=dict)  # see `report`
    stopped_by: str = ""  # the name of the signal that this process was sent
    timed_out: bool = False
    not_handed_on: str = ""  # why some of the output is missing in the log


# -- in the command's process -------------------------------------------------------

_report_fd: int | None = None


def is_supervised() -> bool:
    """Whether another process watches this one."""
    return _report_fd is not None


def run_pid() -> int:
    """Return the id of the process to which a signal for this run should be sent."""
    return os.getppid() if is_supervised() else os.getpid()


def report(**facts: Any) -> None:
    """Send facts about this run to the watching process, if there is one.

    The facts are `counts`, `interrupted`, `refused` and `error`; the last value counts.
    """
    if _report_fd is not None:
        with suppress(OSError):
            # The first line feed ends the rest of a write that was cut short.
            message = memoryview(b"\n" + json.dumps(facts).encode() + b"\n")
            while message:
                message = message[os.write(_report_fd, message) :]


# -- in the watching process ---------------------------------------------------------


class Watched:
    """A command's process, forked and waiting to begin."""

    def __init__(self, pid: int, go: int, streams: dict[int, int], report: int) -> None:
        self.pid = pid
        self._go = go
        self._streams = streams  # by descriptor: the target of what is read from it
        self._relays: list[Relay] = []
        self._report = report
        self._report_is_open = True
        self._facts = bytearray()
        self._tail = bytearray()
        self._received: list[int] = []
        self._stopped_by = ""
        self._timed_out = False
        self._is_over = False
        self._listen()

    def dismiss(self) -> None:
        """Kill the process, which has not begun its command."""
        os.close(self._go)
        os.waitpid(self.pid, 0)

    def watch(
        self,
        *,
        deadline_seconds: float | None,
        kill_after_seconds: float | None,
        save_output: Callable[[str], bool],
    ) -> Ended:
        """Let the command begin, and return when it has ended.

        A signal that comes `deadline_seconds` after the start of this process is taken
        for that of `timeout`: the run has timed out. `timeout` sends SIGKILL
        `kill_after_seconds` later; the command is killed shortly before. `save_output`
        is called every SAVE_SECONDS with the last OUTPUT_BYTES, and returns whether it
        has saved them.
        """
        self._relays = [
            Relay(source, target, keep=self._keep)
            for source, target in self._streams.items()
        ]
        with suppress(BrokenPipeError):  # a signal may have killed the process already
            os.write(self._go, b"!")
        os.close(self._go)
        never = float("inf")
        deadline_at = kill_at = never
        if deadline_seconds:
            deadline_at = time.monotonic() - own_age_seconds() + deadline_seconds
        is_told = False
        save_at = time.monotonic() + min(FIRST_SAVE_SECONDS, SAVE_SECONDS)
        while (status := self._status()) is None:
            self._relay(min(kill_at, save_at) - time.monotonic())
            now = time.monotonic()
            self._pass_on(is_late=now >= deadline_at - DEADLINE_SLACK_SECONDS)
            if self._timed_out and not is_told:
                is_told, kill_at = True, now + _patience(kill_after_seconds)
            if now >= kill_at:
                self._send(signal.SIGKILL)
                kill_at = never
            if now >= save_at:
                is_saved = save_output(self._output())
                pause_seconds = SAVE_SECONDS * (1 if is_saved else _PATIENCE)
                save_at = time.monotonic() + pause_seconds
        drain_until = time.monotonic() + DRAIN_SECONDS
        while self._is_open and (left := drain_until - time.monotonic()) > 0:
            self._relay(left)
        for relay in self._relays:
            relay.end()
        self._pass_on(is_late=time.monotonic() >= deadline_at - DEADLINE_SLACK_SECONDS)
        return Ended(
            os.waitstatus_to_exitcode(status),
            self._output(),
            self._reported(),
            self._stopped_by,
            self._timed_out,
            ", ".join({relay.failure for relay in self._relays if relay.failure}),
        )

    def flush(self) -> None:
        """Wait until a slow reader has taken all the output, or a signal comes."""
        flush(self._relays, is_over=lambda: bool(self._received))

    # -- internal helpers ---------------------------------------------------------

    def _listen(self) -> None:
        """Set up the poll for output, for signals and for the end of the process.

        The signal handlers stay until this process ends, so that a signal cannot
        prevent that the end of the run is recorded.
        """
        reader, self._waker = socket.socketpair()
        for end in (reader, self._waker):
            end.setblocking(False)
        self._wakened = reader
        for number in _PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # set by nohup
                signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

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
        if not self._is_over:  # else its process id may have been reused
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    @property
    def _is_open(self) -> bool:
        return any(relay.is_open for relay in self._relays)

    def _relay(self, wait_seconds: float) -> None:
        """Wait for output, a signal or a fact, and handle it."""
        poll = select.poll()
        poll.register(self._wakened, select.POLLIN)
        if self._report_is_open:
            poll.register(self._report, select.POLLIN)
        for relay in self._relays:
            relay.register(poll)
        wait_ms = None if wait_seconds == float("inf") else max(wait_seconds, 0) * 1000
        ready = {descriptor for descriptor, _ in poll.poll(wait_ms)}
        if self._wakened.fileno() in ready:
            with suppress(BlockingIOError):
                self._wakened.recv(4096)
        if self._report in ready:
            chunk = os.read(self._report, _FACTS_BYTES)
            self._report_is_open = bool(chunk)
            if len(self._facts) < _MOST_FACTS_BYTES:  # our jobs report far less
                self._facts += chunk
        for relay in self._relays:
            relay.step()

    def _keep(self, chunk: bytes) -> None:
        self._tail += chunk
        if len(self._tail) > 2 * OUTPUT_BYTES:
            del self._tail[:-OUTPUT_BYTES]

    def _output(self) -> str:
        tail = self._tail[-OUTPUT_BYTES:]
        if len(self._tail) > OUTPUT_BYTES and b"\n" in tail:
            # Begin with a whole line.
            tail = tail[tail.index(b"\n") + 1 :]
        return tail.decode(errors="replace")

    def _reported(self) -> dict[str, Any]:
        """Return the reported facts that have a known name and the right type."""
        found: dict[str, Any] = {}
        for line in self._facts.split(b"\n"):
            # The last line may be cut off by a kill. Any other that cannot be parsed
            # was not written by `report`.
            with suppress(ValueError, RecursionError):
                facts = json.loads(line)
                found |= facts if isinstance(facts, dict) else {}
        return {
            name: found[name]
            for name, is_one in _FACTS.items()
            if is_one(found.get(name))
        }


def fork() -> Watched | None:
    """Fork; return None in the new process, as soon as it may begin its work.

    The caller must have no database connection, which both processes would use, and no
    threads.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    channels = {1: _channel(1)}
    # If both are one stream (2>&1), two channels would lose the order of the lines.
    channels[2] = channels[1] if _are_one_stream(1, 2) else _channel(2)
    readers, writers = map(set, zip(*channels.values(), strict=True))
    (go_reader, go), (report, report_writer) = os.pipe(), os.pipe()
    parent = os.getpid()
    gc.freeze()  # the collector's marks would copy the memory that both share
    pid = os.fork()
    if pid:
        for descriptor in (go_reader, report_writer, *writers):
            os.close(descriptor)
        streams: dict[int, int] = {}
        for number, (reader, _) in channels.items():
            streams.setdefault(reader, number)
        return Watched(pid, go, streams, report)
    for number, (_, writer) in channels.items():
        os.dup2(writer, number)
    for descriptor in (go, report, *readers, *writers):
        os.close(descriptor)
    end_with(parent, signal.SIGTERM)
    if not os.read(go_reader, 1):
        os._exit(0)
    os.close(go_reader)
    global _report_fd
    _report_fd = report_writer
    undo_in_children(_stop_reporting)
    stop_filtering()  # the watching process does that
    return None


def _stop_reporting() -> None:
    """Keep a child of the command from reporting facts as the run's."""
    global _report_fd
    if _report_fd is not None:
        os.close(_report_fd)
    _report_fd = None


def own_age_seconds() -> float:
    """Return how long this process has been running; 0 if that cannot be known.

    In some sandboxes every process seems to have begun when the machine did.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return 0.0
    return age if 0.0 < age < LONGEST_START_SECONDS else 0.0


def _patience(kill_after_seconds: float | None) -> float:
    seconds = kill_after_seconds or KILL_AFTER_SECONDS
    return max(seconds - SOONER_SECONDS, seconds / 2)


def _are_one_stream(first: int, second: int) -> bool:
    with suppress(OSError):  # a stream may be closed
        return os.path.sameopenfile(first, second)
    return False


def _channel(number: int) -> tuple[int, int]:
    """Return (reader, writer): a terminal if the stream is one, else a pipe.

    Programs show their progress bar only on a terminal.
    """
    if not os.isatty(number):
        return os.pipe()
    reader, writer = os.openpty()
    tty.setraw(writer)
    termios.tcsetwinsize(writer, termios.tcgetwinsize(number))
    return reader, writer

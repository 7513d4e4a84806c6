"""SIGTERM, SIGINT and SIGHUP stop a run: at its next safe point, or after a grace.

A Python signal handler does not run while the process waits inside libpq. So a thread
reads the signal's number from the wake-up pipe, to which the interpreter's C handler
writes it at once.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from starview_app.maintenance.running.forks import undone_in_children
from starview_app.maintenance.running.process import is_supervised

# Long enough to finish a batch, short enough for `docker stop`, which kills after 10 s.
GRACE_SECONDS = 5.0
INSIST_SECONDS = 1.0
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Sent to the main thread to raise StopNow there; commands do not use this signal.
_INSISTING = getattr(signal, "SIGRTMIN", signal.SIGALRM)
_END = b"\0"  # not the number of any signal


def helpers_grace_seconds() -> float:
    """Return the grace of a helper: see `forks.in_processes`.

    It must have undone its work when the grace of this process is over, which then
    kills it.
    """
    return GRACE_SECONDS * 3 / 5


class StopNow(BaseException):
    """Raised in the run when the grace is over.

    It is not an Exception, so that no `except Exception` catches it on the way.
    """


class StopRequest:
    """A callable that returns whether the run should stop.

    `signal_name` is the signal that requested the stop; `failure` is the reason for a
    stop without a signal. Both are empty until then.
    """

    def __init__(self, wake: Callable[[bytes], object]) -> None:
        self.signal_name = ""
        self.failure = ""
        self.is_over = False  # True when the job has ended and need not be stopped
        self._wake = wake

    def __call__(self) -> bool:
        return bool(self.signal_name or self.failure)

    def fail(self, why: str) -> None:
        """Stop the run as a signal would; may be called from any thread."""
        self.failure = self.failure or why
        with suppress(OSError):  # the thread is awake already, or has ended
            self._wake(bytes([signal.SIGTERM]))


@contextmanager
def stop_on_signals(
    cancel_query: Callable[[], None], grace_seconds: float | None = None
) -> Iterator[StopRequest]:
    """Turn the signals into a StopRequest while the block runs, on the main thread.

    If the run has not stopped `grace_seconds` (default: GRACE_SECONDS) after the
    signal, its query is cancelled by `cancel_query`, which is called from another
    thread, and StopNow is raised. A second signal has no effect, since `timeout` and
    the entrypoint may both pass on the same stop. A signal for which the run sets its
    own handler is left to that handler.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    request = StopRequest(lambda data: writer.send(data))
    grace_seconds = GRACE_SECONDS if grace_seconds is None else grace_seconds
    owner, main = os.getpid(), threading.get_ident()
    ended = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    def insist(number: int, frame: FrameType | None) -> None:
        if not (request.is_over or ended.is_set()):
            raise StopNow

    def is_asked() -> bool:
        """Wait until the run is to stop; return False if it has ended before."""
        while data := reader.recv(16):
            if request.failure:
                return True
            for number in set(data) & set(_STOPPING):
                if signal.getsignal(number) is note:
                    # On the main thread StopNow may be raised before it has noted.
                    note(number, None)
                    return True
            if _END in data:
                break
        return False

    def watch() -> None:
        if not is_asked():
            return
        pause_seconds = grace_seconds
        while not ended.wait(pause_seconds):
            pause_seconds = INSIST_SECONDS
            with suppress(Exception):  # the connection may be closed by now
                cancel_query()
            signal.pthread_kill(main, _INSISTING)

    watcher = threading.Thread(target=watch, name="stop-watcher", daemon=True)
    heard = [
        number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN
    ]  # without the signals that nohup ignores
    handlers = dict.fromkeys(heard, note) | {_INSISTING: insist}
    previous = {
        number: signal.signal(number, handler) for number, handler in handlers.items()
    }
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def forget() -> None:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            if signal.getsignal(number) in (note, insist):
                signal.signal(number, handler)
        reader.close()
        writer.close()

    watcher.start()
    with undone_in_children(forget):
        try:
            yield request
        finally:
            if os.getpid() == owner:
                ended.set()
                signal.set_wakeup_fd(previous_fd)
                with suppress(OSError):  # a full pipe has woken the thread already
                    writer.send(_END)
                watcher.join()
                for number, handler in previous.items():
                    # Several processes pass on the same stop. If the last signal comes
                    # late, it must not kill this process before it has reported its
                    # end.
                    is_late = request() and number in _STOPPING and is_supervised()
                    signal.signal(number, signal.SIG_IGN if is_late else handler)
                reader.close()
                writer.close()

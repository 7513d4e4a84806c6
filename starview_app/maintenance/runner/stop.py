"""SIGTERM, SIGINT and SIGHUP ask a run to stop at its next safe point, and then insist.

A Python signal handler does not run while the process waits inside libpq, so a thread
reads the signal's number from the wake-up pipe, which C writes at once.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from starview_app.maintenance.runner.supervisor import is_supervised

# Long enough to finish a batch, short enough for `docker stop`, which kills after 10 s.
GRACE_SECONDS = 5.0
INSIST_SECONDS = 1.0
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopNow(BaseException):
    """The grace is over; unwinds whatever the run was waiting for.

    Not an Exception, so that no `except Exception` on the way takes it for a failure.
    """


class StopRequest:
    """Calling it says whether a signal has arrived; `signal_name` says which."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __call__(self) -> bool:
        return bool(self.signal_name)


@contextmanager
def stop_on_signals(
    cancel_query: Callable[[], None], grace_seconds: float | None = None
) -> Iterator[StopRequest]:
    """Turn the signals into a StopRequest while the block runs, on the main thread.

    A run that has not stopped `grace_seconds` (GRACE_SECONDS) after it is interrupted:
    its query is cancelled (`cancel_query`, called from another thread) and StopNow is
    raised in it. A second signal changes nothing: `timeout` and the entrypoint may
    both pass it.
    """
    request = StopRequest()
    grace_seconds = GRACE_SECONDS if grace_seconds is None else grace_seconds

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    def insist(number: int, frame: FrameType | None) -> None:
        raise StopNow

    main = threading.get_ident()
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while (data := reader.recv(16)) and not set(data) & set(_STOPPING):
            pass
        pause_seconds = grace_seconds if data else 0.0
        while data and not ended.wait(pause_seconds):
            pause_seconds = INSIST_SECONDS
            with suppress(Exception):  # the connection may be gone by now
                cancel_query()
            signal.pthread_kill(main, signal.SIGALRM)

    watcher = threading.Thread(target=watch, name="stop-watcher", daemon=True)
    heard = [
        number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN
    ]  # not what nohup has silenced
    handlers = dict.fromkeys(heard, note) | {signal.SIGALRM: insist}
    previous = {
        number: signal.signal(number, handler) for number, handler in handlers.items()
    }
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield request
    finally:
        ended.set()
        signal.set_wakeup_fd(previous_fd)
        writer.close()
        watcher.join()
        for number, handler in previous.items():
            # The same stop comes from several sides: a late one must not kill a process
            # of its own before it has said how it ended.
            is_late = request.signal_name and number in _STOPPING and is_supervised()
            signal.signal(number, signal.SIG_IGN if is_late else handler)
        reader.close()

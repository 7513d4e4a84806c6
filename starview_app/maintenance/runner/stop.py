"""SIGTERM and SIGINT ask a run to stop at its next safe point."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Calling it says whether a signal has arrived; `signal_name` says which."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __call__(self) -> bool:
        return bool(self.signal_name)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a StopRequest while the block runs.

    A second signal changes nothing: supercronic's `timeout` and the entrypoint may
    both pass one on. What must not wait is ended by SIGKILL, which every job survives.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    previous = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

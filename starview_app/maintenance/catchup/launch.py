"""Runs a line of the crontab now, in the way supercronic does at its time."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from django.conf import settings

from starview_app.maintenance import exits
from starview_app.maintenance.schedule.crontab import ScheduledJob

# How often `look` is called during a run.
LOOK_SECONDS = 60.0
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Launcher:
    """Runs lines one at a time. A signal is passed on to the running line, and no
    further line is run.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped_by = 0

    @property
    def should_stop(self) -> bool:
        return bool(self._stopped_by)

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        previous = {
            number: signal.signal(number, self._pass_on)
            for number in _STOPPING
            if signal.getsignal(number) is not signal.SIG_IGN  # set by nohup
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(
        self,
        line: ScheduledJob,
        variables: dict[str, str],
        look: Callable[[], None] = lambda: None,
    ) -> int:
        """Run the line to its end with `variables` added; return its exit code.

        If a signal killed it, the exit code is 128 plus the signal's number.
        """
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", line.shell_command],
            cwd=settings.BASE_DIR,
            env={**os.environ, **variables},
        )
        if self._stopped_by:
            self._process.send_signal(self._stopped_by)
        while True:
            try:
                code = self._process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                look()
            else:
                return exits.as_shell_shows(code)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stopped_by = number
        if self._process:
            self._process.send_signal(number)

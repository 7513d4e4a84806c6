"""Pings to the monitors that watch from outside.

They never fail a run and cost it _SECONDS at most: each ping is sent by a daemon thread
of its own, which is left behind where it hangs. What the threads have to say is logged
by the thread of the run, so that none of them holds stderr when the process exits.
"""

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog
from django.conf import settings

from starview.redaction import redact
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify.pings import Patience, PingError
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.text import without_people

logger = structlog.get_logger(__name__)

_Step = Callable[[Patience], None]

_SECONDS = 4.8  # of waiting; 5 with the rest
# Of these, how long the last ping waits for the first one: the two in the wrong order
# would leave the job started.
_FIRST_PING_SECONDS = 2.0
_WHILE_IT_RUNS_SECONDS = 60.0
_FAILED = {JobRun.Outcome.FAILED, JobRun.Outcome.TIMED_OUT, JobRun.Outcome.CRASHED}


class _Monitor(Protocol):
    advice: str  # what people should do there; empty when there is nothing

    def started(self, patience: Patience) -> None: ...

    def finished(self, ending: Ending, patience: Patience) -> None: ...

    def settle(self, patience: Patience) -> None:
        """What else is to be done there after a ping that was taken."""


class Monitors:
    """The monitors that are set up, for one run. Starts no thread before `started`."""

    def __init__(self, request: RunRequest, run_id: uuid.UUID) -> None:
        self._channels: list[_Channel] = []
        if settings.DISABLE_EXTERNAL_APIS:
            return

        def healthchecks() -> _Monitor:
            from starview_app.maintenance.notify.healthchecks import (
                Healthchecks,
            )

            url, api_key = settings.HEARTBEAT_URL, settings.HEARTBEAT_API_KEY
            return Healthchecks(url, api_key, request, run_id)

        def sentry() -> _Monitor:
            from starview_app.maintenance.notify.sentry import Sentry

            return Sentry(settings.SENTRY_DSN, request, run_id)

        if settings.HEARTBEAT_URL:
            self._channels.append(_Channel("healthchecks", healthchecks))
        if settings.SENTRY_DSN:
            self._channels.append(_Channel("sentry", sentry))

    def started(self) -> None:
        """Say so; returns at once."""
        for channel in self._channels:
            channel.started()

    def finished(self, ending: Ending) -> None:
        """Say how it ended; returns when that is done, or its time over."""
        ending = _for_strangers(ending)
        patience = Patience(_SECONDS)
        for channel in self._channels:
            channel.finished(ending, patience)
        for channel in self._channels:
            channel.conclude(patience)


class _Channel:
    """The pings of one run to one monitor."""

    def __init__(self, name: str, make: Callable[[], _Monitor]) -> None:
        self._name = name
        self._make = make
        self._made: _Monitor | None = None
        self._pings: dict[str, _Ping] = {}

    def started(self) -> None:
        def send(patience: Patience) -> None:
            self._monitor().started(patience)

        patience = Patience(_WHILE_IT_RUNS_SECONDS)
        self._pings["start"] = _Ping(send, self._settle, patience)

    def finished(self, ending: Ending, patience: Patience) -> None:
        first = self._pings.get("start")

        def send(patience: Patience) -> None:
            if first:
                first.wait(min(_FIRST_PING_SECONDS, patience.seconds_left()))
                first.patience.end()  # what it has not sent by now it never sends
            self._monitor().finished(ending, patience)

        self._pings["end"] = _Ping(send, self._settle, patience)

    def conclude(self, patience: Patience) -> None:
        """Wait for the last ping, and log what went wrong."""
        self._pings["end"].wait(patience.seconds_left())
        reason = "; ".join(
            f"{name}: {ping.failure}"
            for name, ping in self._pings.items()
            if ping.failure
        )
        if reason:
            logger.warning("ping_failed", monitor=self._name, reason=reason)
        if self._made and (advice := self._made.advice):
            logger.warning("monitor_needs_you", monitor=self._name, advice=advice)

    # -- internal helpers ---------------------------------------------------------

    def _monitor(self) -> _Monitor:
        """In the thread of a ping: the first one pays for the imports."""
        if not self._made:
            self._made = self._make()
        return self._made

    def _settle(self, patience: Patience) -> None:
        self._monitor().settle(patience)


class _Ping:
    """One ping, under way. `failure` says what went wrong; empty when it was taken."""

    def __init__(self, send: _Step, settle: _Step, patience: Patience) -> None:
        self.patience = patience
        self.failure = "no answer in time"
        self._send = send
        self._settle = settle
        self._is_over = threading.Event()
        thread = threading.Thread(target=self._run, name="ping", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine allows no more threads
            self.failure = str(error)
            self._is_over.set()

    def wait(self, seconds: float) -> None:
        self._is_over.wait(seconds)

    def _run(self) -> None:
        try:
            self._send(self.patience)
            self.failure = ""
            self._settle(self.patience)
        except PingError as error:
            self.failure = str(error)
        except Exception as error:  # its text may hold the address
            self.failure = f"unexpected {type(error).__name__}"
        finally:
            self._is_over.set()


def _for_strangers(ending: Ending) -> Ending:
    """Without names and addresses; with output only where it says what went wrong."""
    return replace(
        ending,
        error=without_people(redact(ending.error)),
        output=without_people(ending.output) if ending.outcome in _FAILED else "",
    )

"""Announces the start and the end of a run to the channels that hear of runs.

They never fail a run, and cost it _SECONDS at most.
"""

import threading
import time
import uuid

import structlog

from starview_app.maintenance.notify.channels import (
    RUNS,
    Channel,
    channels_for,
    reason_of,
)
from starview_app.maintenance.notify.message import (
    Message,
    NeedsYou,
    RunEnded,
    RunStarted,
)
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest

logger = structlog.get_logger(__name__)

_SECONDS = 4.8  # of waiting, at the end of the run; 5 with the rest
# Of these, how long the end waits for the start: the two in the wrong order would leave
# the job started.
_START_SECONDS = 2.0


class Delivery:
    """A message on its way to a channel, in a daemon thread that may be left behind.

    What there is to say of it is logged by the thread that waits for it: one that held
    stderr would keep the process from exiting.
    """

    def __init__(
        self, channel: Channel, message: Message, after: "Delivery | None" = None
    ) -> None:
        self.failure = "no answer in time"  # empty when it was delivered
        self.advice = ""
        self._is_over = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(channel, message, after), name="ping", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the machine allows no more threads
            self.failure = str(error)
            self._is_over.set()

    def wait(self, seconds: float) -> None:
        self._is_over.wait(max(seconds, 0.0))

    def _run(
        self, channel: Channel, message: Message, after: "Delivery | None"
    ) -> None:
        if after:
            after.wait(_START_SECONDS)
        try:
            self.failure = "" if channel.send(message) else "it was not taken"
        except NeedsYou as need:
            self.failure, self.advice = "", str(need)
        except Exception as error:
            self.failure = reason_of(error)
        self._is_over.set()


_starts: dict[tuple[uuid.UUID, str], Delivery] = {}


def run_started(request: RunRequest, run_id: uuid.UUID) -> None:
    """Return at once: the message is delivered while the job runs."""
    for channel in channels_for(RUNS):
        start = Delivery(channel, RunStarted(request, run_id))
        _starts[run_id, channel.name] = start


def run_ended(request: RunRequest, run_id: uuid.UUID, ending: Ending) -> None:
    """Return when the channels have the end, or their time is over."""
    give_up = time.monotonic() + _SECONDS
    message = RunEnded(request, run_id, ending)
    deliveries = {}
    for channel in channels_for(RUNS):
        start = _starts.pop((run_id, channel.name), None)
        deliveries[channel.name] = start, Delivery(channel, message, after=start)
    for name, (start, end) in deliveries.items():
        end.wait(give_up - time.monotonic())
        _log(name, start, end)


def _log(channel: str, start: Delivery | None, end: Delivery) -> None:
    reason = "; ".join(
        f"{what}: {delivery.failure}"
        for what, delivery in (("start", start), ("end", end))
        if delivery and delivery.failure
    )
    if reason:
        logger.warning("ping_failed", monitor=channel, reason=reason)
    if end.advice:
        logger.warning("monitor_needs_you", monitor=channel, advice=end.advice)

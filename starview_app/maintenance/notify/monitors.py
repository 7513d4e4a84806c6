"""Announces the start and the end of a run to the channels for monitors.

A channel never fails a run, and delays its end by _SECONDS at most.
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

_SECONDS = 4.8  # the longest wait at the end of a run; 5 s with everything else
# Of these, how long the end message waits for the start message: if they arrived in the
# wrong order, the monitor would show the job as running.
_START_SECONDS = 2.0


class Delivery:
    """A message that a daemon thread sends; the process may exit before it is sent.

    Only the thread that waits for the delivery logs anything about it: a daemon thread
    that holds stderr would keep the process from exiting.
    """

    def __init__(
        self, channel: Channel, message: Message, after: "Delivery | None" = None
    ) -> None:
        self.failure = "no answer in time"  # set to "" when the message was delivered
        self.advice = ""
        self._is_over = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(channel, message, after), name="ping", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system allows no more threads
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
    """Announce the start, without waiting: it is delivered while the job runs."""
    for channel in channels_for(RUNS):
        start = Delivery(channel, RunStarted(request, run_id))
        _starts[run_id, channel.name] = start


def run_ended(request: RunRequest, run_id: uuid.UUID, ending: Ending) -> None:
    """Announce the end, and wait for the channels, at most _SECONDS."""
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

"""Check-ins of cron monitors, and errors, to Sentry.

Imported only with SENTRY_DSN: the SDK takes a tenth of a second. The SDK says what is
sent and where to; it is sent by `post`, which knows how long that may take.
"""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import sentry_sdk
from sentry_sdk.crons import MonitorStatus, capture_checkin
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sentry_sdk.utils import Dsn

from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify.pings import (
    Patience,
    PingError,
    post,
    slug_of,
)
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.schedule.crontab import ScheduledJob

if TYPE_CHECKING:
    from sentry_sdk.types import Event, MonitorConfig

_LONGEST_SLUG = 50
_CHECKIN_MARGIN_MINUTES = 10  # by then a missed run has been caught up with

Outcome = JobRun.Outcome


class _Outbox(Transport):
    """Where the SDK puts what is to be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)


class Sentry:
    """The check-ins of one run, and its error.

    A run that was interrupted or skipped is left in progress: Sentry says that it timed
    out unless a later run ends first, as the one that takes its place does.
    """

    advice = ""

    def __init__(self, dsn: str, request: RunRequest, run_id: uuid.UUID) -> None:
        self._request = request
        self._run_id = run_id
        self._slug = slug_of(request.job, _LONGEST_SLUG)
        self._auth = Dsn(dsn).to_auth("starview-maintenance")
        self._outbox = _Outbox()
        self._client = sentry_sdk.Client(
            dsn=dsn,
            transport=self._outbox,
            default_integrations=False,
            include_local_variables=False,
            spotlight=False,
            # Never None, for which the SDK starts `git`.
            release=os.environ.get("SENTRY_RELEASE")
            or os.environ.get("RENDER_GIT_COMMIT", ""),
        )
        self._client.options["release"] = self._client.options["release"] or None

    def started(self, patience: Patience) -> None:
        self._check_in(MonitorStatus.IN_PROGRESS, None, patience)

    def finished(self, ending: Ending, patience: Patience) -> None:
        if ending.outcome in (Outcome.INTERRUPTED, Outcome.SKIPPED):
            return
        if ending.outcome == Outcome.SUCCEEDED:
            self._check_in(MonitorStatus.OK, ending.seconds, patience)
            return
        failure: PingError | None = None
        try:
            self._check_in(MonitorStatus.ERROR, ending.seconds, patience)
        except PingError as error:
            failure = error
        self._report(ending, patience)
        if failure:
            raise failure

    def settle(self, patience: Patience) -> None:
        """Nothing: each check-in brings the schedule along."""

    # -- internal helpers ---------------------------------------------------------

    def _check_in(self, status: str, seconds: float | None, patience: Patience) -> None:
        schedule = self._request.schedule
        capture = partial(
            capture_checkin,
            monitor_slug=self._slug,
            check_in_id=self._run_id.hex,
            status=status,
            duration=seconds,
            monitor_config=_monitor_config(schedule) if schedule else None,
        )
        self._send(capture, patience)

    def _report(self, ending: Ending, patience: Patience) -> None:
        job, outcome = self._request.job, ending.outcome.value
        event: Event = {
            "level": "error",
            "message": f"{job} {outcome}: {ending.error}",
            "fingerprint": [job, outcome],
            "tags": {
                "job": job,
                "outcome": outcome,
                "run_id": str(self._run_id),
                "host": socket.gethostname(),
            },
            "contexts": {"monitor": {"slug": self._slug}},
        }
        self._send(partial(sentry_sdk.capture_event, event), patience)

    def _send(self, capture: Callable[[], object], patience: Patience) -> None:
        with sentry_sdk.new_scope() as scope:
            scope.set_client(self._client)
            capture()
        headers = {
            "Content-Type": "application/x-sentry-envelope",
            "X-Sentry-Auth": self._auth.to_header(),
        }
        body = self._outbox.envelopes.pop().serialize()
        post(self._auth.get_api_url(), body, headers, patience)


def _monitor_config(schedule: ScheduledJob) -> MonitorConfig:
    """What creates the monitor, or brings it up to date with the crontab."""
    config: MonitorConfig = {
        "schedule": {"type": "crontab", "value": schedule.five_fields},
        "timezone": "UTC",
        "checkin_margin": _CHECKIN_MARGIN_MINUTES,
    }
    if schedule.deadline_seconds:
        config["max_runtime"] = math.ceil(schedule.deadline_seconds / 60)
    return config

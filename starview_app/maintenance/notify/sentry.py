"""Sends check-ins of cron monitors, and errors, to Sentry."""

import math
import os
import socket
from typing import Any

import sentry_sdk
from django.conf import settings
from sentry_sdk.crons import MonitorStatus, capture_checkin
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event, MonitorConfig

from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify.message import (
    Message,
    NotDelivered,
    RunEnded,
    RunStarted,
)
from starview_app.maintenance.notify.post import ONCE_MORE, SECONDS
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.text import slug_of

_LONGEST_SLUG = 50
_CHECKIN_MARGIN_MINUTES = 10  # by then catch-up has begun a missed run
_FLUSH_SECONDS = 60.0  # more than `monitors` waits

Outcome = JobRun.Outcome
_STATUS = {
    Outcome.SUCCEEDED: MonitorStatus.OK,
    Outcome.FAILED: MonitorStatus.ERROR,
    Outcome.TIMED_OUT: MonitorStatus.ERROR,
    Outcome.CRASHED: MonitorStatus.ERROR,
}


def send(message: Message) -> bool:
    """Send the check-in of one run, and the error of one that failed.

    A run that was interrupted or skipped stays "in progress": Sentry reports a timeout
    unless a later run, for example the catch-up's, ends first.
    """
    if isinstance(message, RunStarted):
        _send(message, MonitorStatus.IN_PROGRESS)
    elif isinstance(message, RunEnded) and message.ending.outcome in _STATUS:
        _send(message, _STATUS[message.ending.outcome])
    return True


class _Transport(HttpTransport):
    """The SDK's transport, which also remembers the reason of a lost event."""

    TIMEOUT = int(SECONDS)

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.failures: list[str] = []

    def _get_pool_options(self) -> dict[str, Any]:
        return {**super()._get_pool_options(), "retries": ONCE_MORE}

    def _request(self, *arguments: Any, **named: Any) -> Any:
        try:
            answer = super()._request(*arguments, **named)
        except Exception as error:
            reason = getattr(error, "reason", error)
            self.failures.append(f"{type(reason).__name__}: {reason}")
            raise
        if not 200 <= answer.status < 300:
            self.failures.append(f"HTTP {answer.status}")
        return answer


def _send(message: RunStarted | RunEnded, status: str) -> None:
    client = _client()
    slug = slug_of(message.request.job, _LONGEST_SLUG)
    schedule = message.request.schedule
    with sentry_sdk.new_scope() as scope:
        scope.set_client(client)
        capture_checkin(
            monitor_slug=slug,
            check_in_id=message.run_id.hex,
            status=status,
            duration=message.ending.seconds if isinstance(message, RunEnded) else None,
            monitor_config=_monitor_config(schedule) if schedule else None,
        )
        if isinstance(message, RunEnded) and status == MonitorStatus.ERROR:
            sentry_sdk.capture_event(_error(message, slug))
    transport = client.transport
    client.close(timeout=_FLUSH_SECONDS)
    if isinstance(transport, _Transport) and transport.failures:
        raise NotDelivered("; ".join(transport.failures))


def _client() -> sentry_sdk.Client:
    client = sentry_sdk.Client(
        dsn=settings.SENTRY_DSN,
        transport=_Transport,
        default_integrations=False,
        include_local_variables=False,
        send_client_reports=False,
        spotlight=False,
        # Never None, or the SDK would start `git`.
        release=os.environ.get("SENTRY_RELEASE")
        or os.environ.get("RENDER_GIT_COMMIT", ""),
    )
    client.options["release"] = client.options["release"] or None
    return client


def _error(message: RunEnded, slug: str) -> Event:
    job, outcome = message.request.job, message.ending.outcome.value
    return {
        "level": "error",
        "message": f"{job} {outcome}: {message.ending.error}",
        "fingerprint": [job, outcome],
        "tags": {
            "job": job,
            "outcome": outcome,
            "run_id": str(message.run_id),
            "host": socket.gethostname(),
        },
        "contexts": {"monitor": {"slug": slug}},
    }


def _monitor_config(schedule: ScheduledJob) -> MonitorConfig:
    """Return the settings of the monitor, which Sentry creates or updates from them."""
    config: MonitorConfig = {
        "schedule": {"type": "crontab", "value": schedule.five_fields},
        "timezone": "UTC",
        "checkin_margin": _CHECKIN_MARGIN_MINUTES,
    }
    if schedule.deadline_seconds:
        config["max_runtime"] = math.ceil(schedule.deadline_seconds / 60)
    return config

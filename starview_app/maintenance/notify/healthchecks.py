"""Pings in the protocol of Healthchecks, to the hosted service or to one's own server.

HEARTBEAT_URL ends in a ping key or in the UUID of one check. With a ping key each job
has its own check, which has the job's name as its slug and is created by its first
ping; with HEARTBEAT_API_KEY the check also gets the job's schedule.
"""

import json
import uuid
from urllib.parse import urlencode, urlsplit

from django.conf import settings

from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify.message import (
    Message,
    NeedsYou,
    NotDelivered,
    RunEnded,
    RunStarted,
)
from starview_app.maintenance.notify.post import SECONDS, post, text_of
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.text import slug_of

Outcome = JobRun.Outcome

_HOSTED = {"hc-ping.com": "https://healthchecks.io"}  # {host of the pings: site}
_LONGEST_SLUG = 100
_LONGEST_BODY = 10_000  # bytes; what a server keeps by default
# The ping at the end of a short run waits at most this long for that at its start.
_START_SECONDS = 2.0
_API_SECONDS = 1.5
# Catch-up runs a slot again within this time if it was missed or failed at once.
_CATCH_UP_SECONDS = 600
_GRACE_SECONDS = (60, 31_536_000)  # the least and the most that the server accepts
_DEFAULT_GRACE_SECONDS = 3600  # the server's default, for a job without a deadline
# The server records /log without changing the state of the check.
_SIGNALS = {
    Outcome.SUCCEEDED: "",
    Outcome.FAILED: "/fail",
    Outcome.TIMED_OUT: "/fail",
    Outcome.CRASHED: "/fail",
}

# Checks that were created by a ping of this process and have no schedule yet.
_new: set[str] = set()


def send(message: Message) -> bool:
    if isinstance(message, RunStarted):
        _ping(message, "/start", b"", _START_SECONDS)
        _set_up(message.request)  # if that fails, the ping at the end tries again
    elif isinstance(message, RunEnded):
        signal = _SIGNALS.get(message.ending.outcome, "/log")
        _ping(message, signal, _body(message), SECONDS)
        advice = _set_up(message.request)
        _new.clear()
        if advice:
            raise NeedsYou(advice)
    return True


def site_of(url: str) -> str:
    """Return the site of the Management API; own servers get pings at {site}/ping/."""
    host = urlsplit(url).hostname or ""
    return _HOSTED.get(host) or url.rpartition("/")[0].removesuffix("/ping")


def _ping(
    message: RunStarted | RunEnded, signal: str, body: bytes, seconds: float
) -> None:
    slug = slug_of(message.request.job, _LONGEST_SLUG)
    url = settings.HEARTBEAT_URL.rstrip("/")
    query = {"rid": str(message.run_id)}
    if not _is_uuid(url.rpartition("/")[2]):
        url += f"/{slug}"
        query["create"] = "1"
    url += f"{signal}?{urlencode(query)}"
    answer = post(url, body, {"Content-Type": "text/plain"}, seconds=seconds)
    text = text_of(answer)
    if text.startswith("OK ("):  # "not found" and "rate limited" have the HTTP code 200
        raise NotDelivered(text)
    if answer.status == 201:
        _new.add(slug)


def _body(message: RunEnded) -> bytes:
    """Return the error, followed by the end of the output."""
    ending = message.ending
    first = ""
    if ending.outcome != Outcome.SUCCEEDED:
        first = f"{ending.outcome.value}: {ending.error}\n\n"
    if ending.outcome == Outcome.INTERRUPTED and message.request.slot:
        first = f"it will be run again; {first}"
    head = first.encode(errors="replace")
    tail = ending.output.encode(errors="replace")[-(_LONGEST_BODY - len(head)) :]
    return head + tail.decode(errors="ignore").encode()


def _set_up(request: RunRequest) -> str:
    """Give a newly created check the job's schedule.

    If that fails or HEARTBEAT_API_KEY is not set, return what an operator must do.
    """
    slug = slug_of(request.job, _LONGEST_SLUG)
    schedule = request.schedule
    if schedule is None or slug not in _new:
        return ""
    grace = _DEFAULT_GRACE_SECONDS
    if schedule.deadline_seconds:
        least, most = _GRACE_SECONDS
        grace = int(schedule.deadline_seconds) + _CATCH_UP_SECONDS
        grace = min(max(grace, least), most)
    times = schedule.five_fields
    site = site_of(settings.HEARTBEAT_URL.rstrip("/"))
    advice = (
        f"the new check {slug} expects a run a day: set its schedule"
        f" '{times}', UTC, grace {grace // 60} minutes, at {site}"
    )
    if not settings.HEARTBEAT_API_KEY:
        return f"{advice}; with HEARTBEAT_API_KEY this is done for you"
    check = {
        "name": slug,
        "slug": slug,
        "schedule": times,
        "tz": "UTC",
        "grace": grace,
        "channels": "*",
        "unique": ["slug"],
    }
    headers = {
        "X-Api-Key": settings.HEARTBEAT_API_KEY,
        "Content-Type": "application/json",
    }
    url = f"{site}/api/v3/checks/"
    try:
        post(url, json.dumps(check).encode(), headers, seconds=_API_SECONDS)
    except NotDelivered as error:
        return f"{advice}; with HEARTBEAT_API_KEY: {error}"
    _new.discard(slug)
    return ""


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False

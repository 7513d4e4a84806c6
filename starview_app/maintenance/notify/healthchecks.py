"""Pings in the protocol of Healthchecks: hosted, or an installation of one's own."""

import json
import uuid
from urllib.parse import urlencode, urlsplit

from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify.pings import (
    Patience,
    PingError,
    post,
    slug_of,
)
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest

Outcome = JobRun.Outcome

_HOSTED = {"hc-ping.com": "https://healthchecks.io"}  # where its pings go: its site
_LONGEST_SLUG = 100
# The server keeps the first bytes of a body, and says how many.
_BODY_BYTES = 10_000
# A run that is missed or fails at once is run again within this time.
_CATCH_UP_SECONDS = 600
_GRACE_SECONDS = (60, 31_536_000)  # what the server takes
_DEFAULT_GRACE_SECONDS = 3600  # the server's own, for a job without a deadline
# Of /log the server takes note, without a change of the check's state.
_SIGNALS = {
    Outcome.SUCCEEDED: "",
    Outcome.FAILED: "/fail",
    Outcome.TIMED_OUT: "/fail",
    Outcome.CRASHED: "/fail",
}


class Healthchecks:
    """The pings of one run. `url` ends in a ping key, or in the UUID of one check.

    With a ping key each job has a check of its own, named by its slug and created by
    its first ping; `api_key` then gives it the job's schedule.
    """

    def __init__(
        self, url: str, api_key: str, request: RunRequest, run_id: uuid.UUID
    ) -> None:
        self.advice = ""
        self._is_new = False
        self._api_key = api_key
        self._request = request
        self._slug = slug_of(request.job, _LONGEST_SLUG)
        self._body_bytes = _BODY_BYTES
        self._query = {"rid": str(run_id)}
        self._url = url.rstrip("/")
        self._site = site_of(self._url)
        if not _is_uuid(self._url.rpartition("/")[2]):
            self._url += f"/{self._slug}"
            self._query["create"] = "1"

    def started(self, patience: Patience) -> None:
        self._ping("/start", b"", patience)

    def finished(self, ending: Ending, patience: Patience) -> None:
        signal = _SIGNALS.get(ending.outcome, "/log")
        self._ping(signal, self._body(ending), patience)

    def settle(self, patience: Patience) -> None:
        """Give a check that was just created the job's schedule.

        What was not done after the first ping is tried again after the last one.
        """
        schedule = self._request.schedule
        if schedule is None or not self._is_new:
            return
        grace = _DEFAULT_GRACE_SECONDS
        if schedule.deadline_seconds:
            least, most = _GRACE_SECONDS
            grace = int(schedule.deadline_seconds) + _CATCH_UP_SECONDS
            grace = min(max(grace, least), most)
        times = schedule.five_fields
        self.advice = (
            f"the new check {self._slug} expects a run a day: set its schedule"
            f" '{times}', UTC, grace {grace // 60} minutes, at {self._site}"
        )
        if not self._api_key:
            self.advice += "; with HEARTBEAT_API_KEY this is done for you"
            return
        check = {
            "name": self._slug,
            "slug": self._slug,
            "schedule": times,
            "tz": "UTC",
            "grace": grace,
            "channels": "*",
            "unique": ["slug"],
        }
        headers = {"X-Api-Key": self._api_key, "Content-Type": "application/json"}
        url = f"{self._site}/api/v3/checks/"
        try:
            post(url, json.dumps(check).encode(), headers, patience)
        except PingError as error:
            self.advice += f"; with HEARTBEAT_API_KEY: {error}"
        else:
            self.advice = ""
            self._is_new = False

    # -- internal helpers ---------------------------------------------------------

    def _ping(self, signal: str, body: bytes, patience: Patience) -> None:
        url = f"{self._url}{signal}?{urlencode(self._query)}"
        answer = post(url, body, {"Content-Type": "text/plain"}, patience)
        if answer.text.startswith("OK ("):  # "not found" and "rate limited" are 200
            raise PingError(answer.text)
        limit = answer.headers.get("ping-body-limit", "")
        if limit.isascii() and limit.isdecimal():
            self._body_bytes = int(limit)
        self._is_new = self._is_new or answer.status == 201

    def _body(self, ending: Ending) -> bytes:
        """The error first, then the end of the output."""
        first = ""
        if ending.outcome != Outcome.SUCCEEDED:
            first = f"{ending.outcome.value}: {ending.error}"
        if ending.outcome == Outcome.INTERRUPTED and self._request.slot:
            first = f"it will be run again; {first}"
        head = f"{first}\n\n".encode(errors="replace") if first else b""
        room = self._body_bytes - len(head)
        if room <= 0:
            return head[: self._body_bytes]
        tail = ending.output.encode(errors="replace")[-room:]
        return head + tail.decode(errors="ignore").encode()


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def site_of(url: str) -> str:
    """Where the Management API is: {site}/ping/KEY is the default of own servers."""
    host = urlsplit(url).hostname or ""
    return _HOSTED.get(host) or url.rpartition("/")[0].removesuffix("/ping")

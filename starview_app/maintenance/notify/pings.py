"""What the pings to all monitors share: one POST, and how long it may take."""

import re
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from starview_app.maintenance.text import one_line

# After an answer that blames the server, or none at all, it is tried again.
_PAUSES_SECONDS = (0.3, 1.0)
_ANSWER_SECONDS = 10.0  # as Healthchecks advises
_SHOWN_BYTES = 200  # of an answer


class PingError(Exception):
    """A ping that was not accepted; the text says why, without the address."""


class Patience:
    """How long something may take; another thread may end it sooner."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._ended = threading.Event()

    def seconds_left(self) -> float:
        if self._ended.is_set():
            return 0.0
        return max(self._until - time.monotonic(), 0.0)

    def end(self) -> None:
        self._ended.set()

    def pause(self, seconds: float) -> bool:
        """Wait, where time is left afterwards; whether there is."""
        return seconds < self.seconds_left() and not self._ended.wait(seconds)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    text: str  # the beginning, on one line


def post(url: str, body: bytes, headers: dict[str, str], patience: Patience) -> Answer:
    """The answer, of status 2xx; raises PingError for any other end.

    A redirection is not followed: body and keys are for this address. Once `patience`
    is over nothing is sent; what hangs before that, in a look-up of the name for
    example, hangs on.
    """
    failure = ""
    for pause in (0.0, *_PAUSES_SECONDS):
        if pause and not patience.pause(pause):
            break
        try:
            answer = _post_once(url, body, headers, patience)
        except OSError as error:
            failure = one_line(f"{type(error).__name__}: {error}")
        except HTTPException as error:  # its text may hold the path
            failure = type(error).__name__
        else:
            if 200 <= answer.status < 300:
                return answer
            failure = f"HTTP {answer.status}: {answer.text}"
            if answer.status < 500:
                break
    raise PingError(failure)


def slug_of(job: str, longest: int) -> str:
    """The job's name as both monitors take it."""
    return re.sub(r"[^a-z0-9_-]+", "-", job.lower())[:longest]


def _post_once(
    url: str, body: bytes, headers: dict[str, str], patience: Patience
) -> Answer:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    # Half of it: an attempt that gets no connection leaves time for another.
    seconds = min(_seconds(patience) / 2, _ANSWER_SECONDS)
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.connect()
        connection.sock.settimeout(min(_seconds(patience), _ANSWER_SECONDS))
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(
            "POST", target, body, {"User-Agent": "starview-maintenance", **headers}
        )
        with connection.getresponse() as response:
            text = response.read1(_SHOWN_BYTES).decode(errors="replace")
            return Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                one_line(text.strip()),
            )
    finally:
        connection.close()


def _seconds(patience: Patience) -> float:
    """What is left, which is not 0: for a socket that would mean not to wait."""
    if seconds := patience.seconds_left():
        return seconds
    raise TimeoutError("its time was over before it was sent")

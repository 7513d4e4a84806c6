"""The time to check every session in Redis, compared with a bare SCAN of the keys."""

import time
from dataclasses import dataclass
from typing import Any

from bench.laboratory import PYTHON, Laboratory, Usage, measured, median_multiple

LIMIT = 3.0  # the command, as a multiple of the bare SCAN
_KEY = "starview:1:django.contrib.sessions.cache{:032d}"
_TWO_WEEKS = 1_209_600  # seconds
_AT_A_TIME = 10_000
_STEP_KEYS = 1000


@dataclass(frozen=True)
class SessionFigures:
    """Seconds, one per turn; the peak of the command's memory."""

    sessions: int
    turns: int
    command: list[float]
    scan: list[float]
    peak_mb: float
    peak_mb_of_none: float

    @property
    def multiple(self) -> float:
        return median_multiple(self.command, self.scan)


def measure(laboratory: Laboratory, *, sessions: int, turns: int) -> SessionFigures:
    """One in 1,000 has no expiry; a dry run leaves them for the next turn."""
    from redis import Redis

    environment = laboratory.environment("starview", bucket="none")
    client: Any = Redis.from_url(environment["REDIS_URL"])
    client.flushdb()
    nothing = _look(environment)
    for first in range(0, sessions, _AT_A_TIME):
        pipeline = client.pipeline(transaction=False)
        for number in range(first, min(first + _AT_A_TIME, sessions)):
            seconds = _TWO_WEEKS if number % 1000 else None
            pipeline.set(_KEY.format(number), b"x" * 100, ex=seconds)
        pipeline.execute()
    scans, looks = [], []
    for _ in range(turns):
        scans.append(_scan(client))
        looks.append(_look(environment))
    client.flushdb()
    return SessionFigures(
        sessions,
        turns,
        [look.seconds for look in looks],
        scans,
        max(look.peak_mb for look in looks),
        nothing.peak_mb,
    )


def _scan(client: Any) -> float:
    started = time.perf_counter()
    cursor, is_begun = 0, False
    while cursor or not is_begun:
        cursor, _ = client.scan(cursor, count=_STEP_KEYS)
        is_begun = True
    return time.perf_counter() - started


def _look(environment: dict[str, str]) -> Usage:
    return measured([PYTHON, "manage.py", "clearsessions", "--dry-run"], environment)

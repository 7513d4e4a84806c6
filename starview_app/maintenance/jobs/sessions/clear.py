"""Remove web sessions that would otherwise never be removed.

The web service keeps sessions in Redis, beside its cache and Celery's queues. They
expire there by themselves, unless they were written without an expiry. In the database
table, which was or is used too, expired sessions stay until they are deleted.
"""

import re
from datetime import datetime
from typing import Protocol

from django.db import connection

from starview_app.maintenance.jobs.result import JobResult, ShouldStop

SCAN_KEYS = 1000  # keys in one call, during which Redis serves no other client
BATCH_ROWS = 5000

# One step of a SCAN, as a script within Redis: so no client can give a session its
# expiry between the check and the removal, and no key leaves Redis.
_STEP = """
local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local live, endless = 0, {}
for _, key in ipairs(found[2]) do
    if redis.call('PTTL', key) == -1 then
        endless[#endless + 1] = key
    else
        live = live + 1
    end
end
if ARGV[4] == 'remove' and #endless > 0 then
    redis.call('UNLINK', unpack(endless))
end
return {found[1], live, #endless}
"""
_HAS_TABLE = "SELECT to_regclass('django_session') IS NOT NULL"
_COUNT_EXPIRED = "SELECT count(*) FROM django_session WHERE expire_date < %(now)s"
# Uses the index on expire_date.
_DELETE_EXPIRED = """
    DELETE FROM django_session
    WHERE session_key IN (
        SELECT session_key
        FROM django_session
        WHERE expire_date < %(now)s
        ORDER BY expire_date
        LIMIT %(rows)s
        FOR UPDATE SKIP LOCKED
    )
"""


class Redis(Protocol):
    """The methods of redis-py's client that are used here."""

    def eval(self, script: str, numkeys: int, *arguments: str) -> list[bytes | int]: ...


def clear_sessions(
    *,
    now: datetime,
    redis: Redis,
    key_prefix: str,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Remove rows of django_session that expired before `now`, then endless keys.

    In Redis only keys that begin with `key_prefix` are read. A session that is created
    or removed meanwhile may be counted or not, and one may be counted twice when Redis
    resizes its table. Safe to run twice and safe to kill. Errors of the client are
    raised after the rows of the table were removed. Counts: expired, live, endless.
    """
    result = JobResult({"expired": 0, "live": 0, "endless": 0})
    _clear_table(now, result, should_stop, dry_run=dry_run)
    pattern = _as_pattern(key_prefix)
    cursor, is_begun = "0", False
    while not result.interrupted and (cursor != "0" or not is_begun):
        if should_stop():
            result.interrupted = True
            break
        verb = "look" if dry_run else "remove"
        found = redis.eval(_STEP, 0, cursor, pattern, str(SCAN_KEYS), verb)
        cursor, is_begun = _text(found[0]), True
        result.counts["live"] += int(found[1])
        result.counts["endless"] += int(found[2])
    return result


# -- internal helpers -----------------------------------------------------------------


def _clear_table(
    now: datetime, result: JobResult, should_stop: ShouldStop, *, dry_run: bool
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_HAS_TABLE)
        if cursor.fetchone() != (True,):
            return
        if dry_run:
            cursor.execute(_COUNT_EXPIRED, {"now": now})
            (result.counts["expired"],) = cursor.fetchone()
            return
        while not result.interrupted:
            cursor.execute(_DELETE_EXPIRED, {"now": now, "rows": BATCH_ROWS})
            result.counts["expired"] += cursor.rowcount
            if cursor.rowcount < BATCH_ROWS:
                return
            result.interrupted = should_stop()


def _as_pattern(prefix: str) -> str:
    return re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"


def _text(cursor: bytes | int) -> str:
    return cursor.decode() if isinstance(cursor, bytes) else str(cursor)

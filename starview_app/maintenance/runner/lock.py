"""One run of a job at a time, wherever it runs: an advisory lock in PostgreSQL."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

_HOLDER = """
    SELECT
        activity.application_name,
        to_char(activity.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
    FROM pg_locks AS lock
    JOIN pg_stat_activity AS activity ON activity.pid = lock.pid
    WHERE
        lock.locktype = 'advisory'
        AND lock.granted
        AND activity.datname = current_database()
        AND ((lock.classid::bigint << 32) | lock.objid::bigint)
            = hashtextextended(%(key)s, 0)
"""


class JobIsRunningError(Exception):
    """Another run holds the lock; the text says who, where and since when."""


@contextmanager
def job_lock(job: str) -> Iterator[None]:
    """Hold the lock of `job` on this connection; raises JobIsRunningError at once.

    The server frees the lock when the connection ends, so a killed run blocks nobody.
    It needs a session of its own: not a pooler that shares one between transactions.
    """
    key = f"starview-maintenance:{job}"
    name = f"{job} {socket.gethostname()} pid {os.getpid()}"
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('application_name', %(name)s, false)",
            {"name": name[:63]},
        )
        cursor.execute(
            "SELECT pg_try_advisory_lock(hashtextextended(%(key)s, 0))", {"key": key}
        )
        (locked,) = cursor.fetchone()
        if not locked:
            cursor.execute(_HOLDER, {"key": key})
            who, since = cursor.fetchone() or ("one that just ended", "now")
            raise JobIsRunningError(
                f"another run of {job} is under way: {who}, connected since {since} UTC"
            )
    try:
        yield
    finally:
        _unlock(key)


def _unlock(key: str) -> None:
    """Free the lock; a connection that is gone has freed it already."""
    if connection.connection is None or connection.connection.closed:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_unlock(hashtextextended(%(key)s, 0))", {"key": key}
        )

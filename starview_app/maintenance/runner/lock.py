"""One run of a job at a time, wherever it runs: an advisory lock in PostgreSQL."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.runner.supervisor import run_pid

_HOLDER = """
    SELECT
        activity.application_name,
        coalesce(
            to_char(activity.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
            'a time that only its own role sees,'
        )
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
def job_lock(job: str, lock_name: str = "") -> Iterator[None]:
    """Hold the lock of `job` on this connection; raises JobIsRunningError at once.

    Jobs that must not run beside each other share a `lock_name`.

    The server frees the lock when the connection ends, so a killed run blocks nobody.
    It needs a session of its own: not a pooler that shares one between transactions.
    """
    key = _key(lock_name or job)
    with connection.cursor() as cursor:
        _acquire(cursor, key, job, lock_name)
    with _no_other_session():
        try:
            yield
        finally:
            _unlock(key)


@contextmanager
def job_lock_beside(job: str) -> Iterator[None]:
    """Hold the lock of `job` on a session of its own, for a command that is not ours.

    Such a command may close Django's connection, and open others, as it likes. The
    server frees the lock when this process ends.
    """
    with connection.wrap_database_errors:
        session = connection.get_new_connection(connection.get_connection_params())
    try:
        session.autocommit = True
        with connection.wrap_database_errors, session.cursor() as cursor:
            _acquire(cursor, _key(job), job, "")
        yield
    finally:
        session.close()


def _key(name: str) -> str:
    return f"starview-maintenance:{name}"


def _acquire(cursor: Any, key: str, job: str, lock_name: str) -> None:
    name = f"{job} {socket.gethostname()} pid {run_pid()}"
    cursor.execute(
        "SELECT set_config('application_name', %(name)s, false)", {"name": name[:63]}
    )
    cursor.execute(
        "SELECT pg_try_advisory_lock(hashtextextended(%(key)s, 0))", {"key": key}
    )
    (locked,) = cursor.fetchone()
    if locked:
        return
    cursor.execute(_HOLDER, {"key": key})
    who, since = cursor.fetchone() or ("one that just ended", "now")
    other = who.split()[0] if lock_name else job
    raise JobIsRunningError(
        f"{'another' if other == job else 'a'} run of {other} is under way:"
        f" {who}, connected since {since} UTC"
    )


@contextmanager
def _no_other_session() -> Iterator[None]:
    """Refuse to connect anew: Django would by itself, and go on without the lock."""

    def refuse(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        connection.close()
        raise OperationalError(
            "terminating: the database session, and its lock, is lost"
        )

    connection_created.connect(refuse)
    try:
        yield
    finally:
        connection_created.disconnect(refuse)


def _unlock(key: str) -> None:
    """Free the lock; a connection that is gone has freed it already.

    Raises JobError when this session never had it: a pooler has given each transaction
    another one, so that the lock protected nothing and is left behind.
    """
    if connection.connection is None or connection.connection.closed:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_unlock(hashtextextended(%(key)s, 0))", {"key": key}
        )
        (was_held,) = cursor.fetchone()
    if not was_held:
        raise JobError(
            "the job is done, but its lock did not hold: DATABASE_URL goes through a"
            " pooler that shares sessions HINT: use the database's direct address"
        )

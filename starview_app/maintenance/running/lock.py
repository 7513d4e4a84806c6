"""One run of a job at a time, on any host: an advisory lock in PostgreSQL.

An open transaction holds the lock, in a database session of its own. A pooler may give
each transaction another session, but cannot end this one; and the job may do with
Django's connection what it likes. At READ COMMITTED an idle transaction has neither a
snapshot nor a transaction id, so it does not hold back vacuum.
"""

import os
import select
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
from django.db import connection

from starview.database import Session, server_ahead_seconds
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.running.forks import undone_in_children
from starview_app.maintenance.running.process import run_pid

# Poolers, firewalls and routers may end a connection that is silent for long.
KEEP_SECONDS = 30.0
# What is old enough to be deleted depends on the clock: a larger error is refused.
MOST_CLOCK_SECONDS = 300.0
# Needed at the same time: one for the lock, one for the job, one to record the run.
SESSIONS = 3

_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_SHARED = "SELECT pg_try_advisory_xact_lock_shared(hashtextextended(%(key)s, 0))"
# Waits, since a process that looks for crashed runs may hold the lock for a moment.
_LOCK_RUN = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_HOLDER = """
    SELECT
        activity.application_name,
        coalesce(
            to_char(activity.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
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

OnLost = Callable[[str], None]


class JobIsRunningError(Exception):
    """Another run holds the lock; the text names its job, its host and its begin."""


_run_lock = ""


def lock_run(run_id: uuid.UUID) -> None:
    """Hold this run's own advisory lock, which shows that its process is alive."""
    global _run_lock
    _run_lock = _key(f"run:{run_id}")


@contextmanager
def sessions_named(job: str) -> Iterator[None]:
    """Give database sessions that are opened while the block runs the run's name."""
    options = connection.settings_dict["OPTIONS"]
    previous = options.get("application_name")
    options["application_name"] = f"{job} {socket.gethostname()} pid {run_pid()}"[:63]
    try:
        yield
    finally:
        options["application_name"] = previous


@contextmanager
def job_lock(
    job: str, lock_name: str = "", *, on_lost: OnLost, is_shared: bool = False
) -> Iterator[None]:
    """Hold the lock of `job` while the block runs, or raise JobIsRunningError at once.

    Raises JobError if the clocks of this machine and the database differ too much.
    Jobs that must not run at the same time have the same `lock_name`. With `is_shared`
    several runs may hold the lock, while a run without it may not.

    If the lock's session ends early, `on_lost` is called with the reason, worded to
    follow the job's name, from another thread or at the end of the block; from then on
    another run may begin. When this process is killed, the server frees the lock.
    """
    with connection.wrap_database_errors, sessions_named(job):
        session = _connect()
        try:
            _acquire(session, job, lock_name, _SHARED if is_shared else _LOCK)
            if session.is_pooled:
                _require_room()
        except BaseException:
            session.close()
            raise
    with _Keeper(session, on_lost).keep():
        yield


@contextmanager
def lock_if_free(name: str) -> Iterator[bool]:
    """Hold the lock while the block runs; yields False if another session has it."""
    with connection.wrap_database_errors:
        session = _connect()
        with session.answers_in_time(), session.cursor() as cursor:
            cursor.execute(session.at_begin())
            cursor.execute(_LOCK, {"key": _key(name)})
            (is_ours,) = cursor.fetchone() or (False,)
    try:
        yield is_ours
    finally:
        with suppress(psycopg2.Error):
            session.rollback()  # frees the lock before the session is closed
        session.close()


def _key(name: str) -> str:
    return f"starview-maintenance:{name}"


def _connect() -> Session:
    session: Session = psycopg2.connect(**connection.get_connection_params())
    session.set_session(isolation_level="READ COMMITTED")
    return session


def _acquire(session: Session, job: str, lock_name: str, lock: str) -> None:
    key = {"key": _key(lock_name or job)}
    with session.answers_in_time(), session.cursor() as cursor:
        cursor.execute(session.at_begin())
        cursor.execute(lock, key)
        if cursor.fetchone() == (True,):
            if _run_lock:
                cursor.execute(_LOCK_RUN, {"key": _run_lock})
            _require_clock(cursor)
            return
        cursor.execute(_HOLDER, key)
        who, since = cursor.fetchone() or ("one that just ended", "now")
    other = who.split()[0] if lock_name else job
    raise JobIsRunningError(
        f"{'another' if other == job else 'a'} run of {other} is under way:"
        f" {who}, connected since {since} UTC"
    )


def _require_clock(cursor: Any) -> None:
    """Raise JobError if this machine and the database disagree on the time."""
    server_ahead = server_ahead_seconds(cursor)
    if abs(server_ahead) > MOST_CLOCK_SECONDS:
        word = "behind" if server_ahead > 0 else "ahead of"
        raise JobError(
            f"the clock of this machine is {abs(server_ahead):.0f} s {word} the"
            " database's, and what is old enough to be deleted depends on it"
            " HINT: set the clock (NTP) of the one that is wrong; nothing was changed"
        )


def _require_room() -> None:
    """Raise before the job begins if the server or pooler has too few sessions for it.

    Otherwise the job would wait for a session in the middle of its work, for ever.
    """
    others: list[Session] = []
    try:
        for _ in range(SESSIONS - 1):
            others.append(_connect())
            with others[-1].answers_in_time(), others[-1].cursor() as cursor:
                cursor.execute("SELECT")
    finally:
        for other in others:
            other.close()


class _Keeper:
    """Keeps the lock's session from being idle, and notices at once when it ends."""

    def __init__(self, session: Session, on_lost: OnLost) -> None:
        self._session = session
        self._on_lost = on_lost
        self._is_lost = False
        self._reader, self._writer = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="lock", daemon=True)

    @contextmanager
    def keep(self) -> Iterator[None]:
        owner = os.getpid()
        self._thread.start()
        with undone_in_children(self._forget):
            try:
                yield
            finally:
                if os.getpid() == owner:
                    self._end()

    def _watch(self) -> None:
        poll = select.poll()
        for descriptor in (self._session.fileno(), self._reader.fileno()):
            poll.register(descriptor, select.POLLIN)
        while self._reader.fileno() not in dict(poll.poll(KEEP_SECONDS * 1000)):
            if not self._is_alive():
                return

    def _is_alive(self) -> bool:
        try:
            self._session.poll()  # reads a message that the server sent by itself
            with self._session.cursor() as cursor:
                cursor.execute("SELECT")
        except psycopg2.Error as error:
            self._lose(error)
        return not self._is_lost

    def _lose(self, error: psycopg2.Error) -> None:
        self._is_lost = True
        fatal = [text for text in self._session.notices if text.startswith("FATAL:")]
        text = (fatal or [str(error)])[-1].removeprefix("FATAL:").strip()
        reason = text.partition("\n")[0]
        self._on_lost(f"lost its lock and was stopped: {reason}")

    def _end(self) -> None:
        self._writer.send(b"!")
        self._thread.join()
        try:
            if not self._is_lost:
                # Frees the lock before the end of the run is announced.
                self._session.rollback()
        except psycopg2.Error as error:
            self._lose(error)
        self._session.close()
        self._reader.close()
        self._writer.close()

    def _forget(self) -> None:
        """Close a child's copy of the connection, without which the lock would be held
        until the child ends.
        """
        with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is needed
            os.dup2(nothing.fileno(), self._session.fileno())
        self._reader.close()
        self._writer.close()

"""Runs one COPY parallel to another, in a thread and a second session on its snapshot.

The thread only reads from PostgreSQL and writes to a temporary file. It changes no
object and no row, so it can be given up at any moment. If there is no second database
session, or no room for the file, the main session makes the copy instead.
"""

import errno
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import IO

import psycopg2
from django.db import connection
from django.db.backends.utils import CursorWrapper
from psycopg2.extensions import connection as Session
from psycopg2.extensions import cursor as Cursor

from starview_app.maintenance.jobs.audit_archive.table import SET_TEXT_FORMS
from starview_app.maintenance.jobs.audit_archive.transfer import (
    PIECE_BYTES,
    Digest,
    StopRequested,
)
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.stores.base import ObjectWriter

# Some 40 MB is usual. /tmp may be memory, so larger copies are left to the main
# session.
SPOOL_BYTES = 128 << 20
CONNECT_SECONDS = 3
# A pooler may accept the connection and then let it wait for a server connection.
OPEN_SECONDS = 5.0
CANCEL_AGAIN_SECONDS = 0.1

_EXPORT = """
    SELECT
        pg_export_snapshot() AS snapshot,
        current_setting('application_name') AS application_name,
        current_setting('TimeZone') AS time_zone
"""
# The last statement takes every lock that the COPY needs, on the table and its indexes.
# If the COPY waited for a lock, it could wait for ever: the holder may wait for the
# main session, which waits for this thread, and PostgreSQL cannot see that deadlock.
_PREPARE = f"""
    SET TRANSACTION SNAPSHOT %(snapshot)s;
    {SET_TEXT_FORMS};
    SELECT
        set_config('application_name', %(application_name)s, true),
        set_config('TimeZone', %(time_zone)s, true),
        set_config('idle_in_transaction_session_timeout', '0', true),
        set_config('lock_timeout', '900ms', true);
    SELECT FROM starview_app_auditlog LIMIT 0
"""


class CopyBeside:
    """Starts `copy` with a new session on the snapshot of `cursor`, into a file.

    It must be closed, which ends its thread and its session.
    """

    def __init__(
        self, cursor: CursorWrapper, copy: Callable[[Cursor, ObjectWriter], Digest]
    ) -> None:
        cursor.execute(_EXPORT)
        names = ("snapshot", "application_name", "time_zone")
        self._settings = dict(zip(names, cursor.fetchone(), strict=True))
        parameters = connection.get_connection_params()
        # Not Django's `connect`, which would replace the connection of this session.
        self._connect: Callable[[], Session] = partial(
            connection.get_new_connection,
            {**parameters, "connect_timeout": CONNECT_SECONDS},
        )
        self._copy = copy
        self._session: Session | None = None
        self._is_given_up = False
        self._is_open_or_failed = threading.Event()
        self._copied: Future[Digest | None] = Future()
        self._file: IO[bytes] | None = None
        # A daemon, so that a server that does not answer cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self._thread.start()

    def pass_on(self, target: ObjectWriter, stop: ShouldStop) -> Digest | None:
        """Wait for the copy and write it to `target`; return None if there is no copy.

        Raises what `copy` has raised, with psycopg2's errors as Django's.
        """
        if not self._is_open_or_failed.wait(OPEN_SECONDS):
            return None
        with connection.wrap_database_errors:
            digest = self._copied.result()
        if digest and self._file:
            self._file.seek(0)
            while piece := self._file.read(PIECE_BYTES):
                if stop():
                    raise StopRequested
                target.write(piece)
        return digest

    def close(self) -> None:
        """End the thread and the session; an unfinished copy is cancelled."""
        self._is_given_up = True
        while self._thread.is_alive():
            # Repeated, since a cancel may come just before the query begins.
            if self._session and not self._copied.done():
                with suppress(psycopg2.Error):
                    self._session.cancel()
            self._thread.join(CANCEL_AGAIN_SECONDS)
        for opened in (self._session, self._file):
            if opened:
                with suppress(OSError):  # a full disk does not matter any more
                    opened.close()

    # -- in the thread ------------------------------------------------------------

    def _run(self) -> None:
        try:
            cursor = self._open()
            self._copied.set_result(self._spool(cursor) if cursor else None)
        except BaseException as error:  # noqa: BLE001 - raised again by `pass_on`
            self._copied.set_exception(error)

    def _open(self) -> Cursor | None:
        """Return None if there is no second session."""
        try:
            self._session = self._connect()
            self._session.set_session("REPEATABLE READ", readonly=True)
            cursor = self._session.cursor()
            cursor.execute(_PREPARE, self._settings)
            return cursor
        except psycopg2.Error:
            return None
        finally:
            self._is_open_or_failed.set()

    def _spool(self, cursor: Cursor) -> Digest | None:
        """Return None if there is no room for the file."""
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
            digest = self._copy(cursor, _Spool(self._file, lambda: self._is_given_up))
            self._file.flush()
        except OSError:
            return None
        return digest


class _Spool:
    def __init__(self, file: IO[bytes], is_given_up: ShouldStop) -> None:
        self._file = file
        self._is_given_up = is_given_up
        self._size_bytes = 0

    def write(self, data: bytes) -> None:
        if self._is_given_up():
            raise StopRequested
        self._size_bytes += len(data)
        if self._size_bytes > SPOOL_BYTES:
            raise OSError(errno.EFBIG, "too large to be copied beside")
        self._file.write(data)

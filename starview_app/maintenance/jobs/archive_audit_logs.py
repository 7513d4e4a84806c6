"""Move old audit rows to the archive: write, read back, compare, then delete them.

Everything about one archive happens in one repeatable-read transaction, so the rows
that PostgreSQL writes out, and the rows that are deleted afterwards, are the same ones:
a row that appears or is back-dated meanwhile is not seen, and stays for the next run.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg2.errors import SerializationFailure

from starview_app.maintenance.jobs import archive_format
from starview_app.maintenance.jobs.archive_format import Batch
from starview_app.maintenance.jobs.errors import JobError
from starview_app.maintenance.jobs.references import unreferenced_sql
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.stores.base import ObjectWriter, Store, StoreError

# A row of the batch was changed by somebody else: the batch is written anew.
ATTEMPTS = 3
PIECE_BYTES = 1 << 18
KEEP_BYTES = 8  # longer than any separator, which the last row must lose again


@dataclass(frozen=True)
class Found:
    count: int
    cutoff: datetime


@dataclass(frozen=True)
class Stored:
    """An object is in the store, read back and equal."""

    format: str
    name: str


@dataclass(frozen=True)
class Archived:
    """The rows are gone from the database."""

    count: int


Event = Found | Stored | Archived
Report = Callable[[Event], None]


@dataclass(frozen=True)
class Digest:
    """What an object is compared by."""

    sha256: str
    size_bytes: int
    lines: int


class _StopRequested(Exception):
    """Unwinds to the transaction, which is rolled back."""


def archive_audit_logs(
    *,
    now: datetime,
    days: int,
    formats: Iterable[str],
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Archive and delete the audit rows older than `days` before `now`.

    A row exactly `days` old is kept. `formats` holds `json`, `txt` or both; each is one
    object. No row is deleted before every object has been read back and found equal to
    what was sent, and the count of deleted rows is the count of rows written. When
    anything fails, no row is gone; a run that is killed may leave an object whose rows
    are still in the database, and the next run archives them under another name.

    Counts: found, archived, objects. Raises JobError.
    """
    cutoff = now - timedelta(days=days)
    result = JobResult({"found": 0, "archived": 0, "objects": 0})
    run = _Run(now, days, cutoff, tuple(formats), store, should_stop)
    batch = run.find()
    report(Found(batch.count if batch else 0, cutoff))
    if batch is None:
        return result
    result.counts["found"] = batch.count
    if dry_run:
        return result
    try:
        batch, names = run.archive()
    except _StopRequested:
        result.interrupted = True
        return result
    except StoreError as error:
        raise JobError(f"nothing was deleted, archiving failed: {error}") from error
    for object_format, name in names.items():
        report(Stored(object_format, name))
    result.counts["archived"] = batch.count
    result.counts["objects"] = len(names)
    report(Archived(batch.count))
    return result


@dataclass(frozen=True)
class _Run:
    now: datetime
    days: int
    cutoff: datetime
    formats: tuple[str, ...]
    store: Store
    should_stop: ShouldStop

    def find(self) -> Batch | None:
        """The rows that are due now; None when there are none."""
        with connection.cursor() as cursor:
            cursor.execute(archive_format.SUMMARY, {"cutoff": self.cutoff})
            count, first, last = cursor.fetchone()
        return Batch(count, first, last, self.now, self.days) if count else None

    def archive(self) -> tuple[Batch, dict[str, str]]:
        """Archive what is due; returns it and {format: object name}."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._archive_once()
            except DatabaseError as error:
                if not isinstance(error.__cause__, SerializationFailure):
                    raise
                if attempt == ATTEMPTS:
                    raise JobError(
                        "nothing was deleted: audit rows were changed while they were"
                        " archived, three times over. HINT: run the job again later"
                    ) from error
        raise AssertionError("not reached")

    def _archive_once(self) -> tuple[Batch, dict[str, str]]:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            batch = self.find()
            if batch is None:
                raise JobError("the due rows were gone before they were archived")
            self._refuse_referred(cursor)
            names = {kind: batch.object_name(kind) for kind in self.formats}
            with self._removed_on_failure() as written:
                for kind, name in names.items():
                    self._write(cursor, batch, kind, name, written)
                self._delete(cursor, batch)
        # From the commit on the objects stay, even if its answer was lost.
        return batch, names

    def _refuse_referred(self, cursor: CursorWrapper) -> None:
        """Rows of an unknown table that refer to the log would be lost with it."""
        statement = archive_format.COUNT_REFERRED.format(
            unreferenced=unreferenced_sql("starview_app_auditlog", "log")
        )
        cursor.execute(statement, {"cutoff": self.cutoff})
        (count,) = cursor.fetchone()
        if count:
            raise JobError(
                f"nothing was deleted: rows of another table refer to {count} due audit"
                " rows HINT: move those rows away, or drop that foreign key"
            )

    def _write(
        self,
        cursor: CursorWrapper,
        batch: Batch,
        kind: str,
        name: str,
        written: list[str],
    ) -> None:
        """Write one object, note it in `written`, compare it with what comes back."""
        with self.store.writer(name) as target:
            sink = _Sink(target, self.should_stop)
            sink.write(batch.head(kind))
            before = sink.lines
            sql = cursor.mogrify(archive_format.COPY[kind], {"cutoff": self.cutoff})
            with connection.wrap_database_errors:  # Django does not know copy_expert
                cursor.copy_expert(sql.decode(), sink)
            rows = sink.lines - before
            sink.end_rows(batch.tail(kind), drop=archive_format.SEPARATOR[kind])
        written.append(name)
        if rows != batch.count:
            raise JobError(f"{name} has {rows} rows instead of {batch.count}")
        sent, stored = sink.digest(), self._read_back(name)
        if stored != sent:
            raise JobError(
                f"nothing was deleted: {name} came back from the store changed:"
                f" sent {sent.size_bytes} bytes with SHA-256 {sent.sha256},"
                f" got {stored.size_bytes} bytes with {stored.sha256}"
            )

    def _read_back(self, name: str) -> Digest:
        sink = _Sink(None, self.should_stop)
        for piece in self.store.read(name):
            sink.write(piece)
        return sink.digest()

    def _delete(self, cursor: CursorWrapper, batch: Batch) -> None:
        """Delete the rows of this snapshot: the ones that were written."""
        if self.should_stop():
            raise _StopRequested
        cursor.execute(archive_format.DELETE, {"cutoff": self.cutoff})
        if cursor.rowcount != batch.count:
            raise JobError(
                f"nothing was deleted: the database removed {cursor.rowcount} rows"
                f" instead of the {batch.count} archived ones, which was undone"
                " HINT: is there a trigger or rule on starview_app_auditlog?"
            )

    @contextmanager
    def _removed_on_failure(self) -> Iterator[list[str]]:
        """Leave no object of the list behind whose rows are still in the database.

        Only what this run wrote is listed: a name that was refused is another's.
        """
        written: list[str] = []
        try:
            yield written
        except BaseException:
            for name in written:
                with suppress(StoreError):  # the failure that led here is reported
                    self.store.delete(name)
            raise


class _Sink:
    """Hashes, counts and passes on, in larger pieces, what it is given.

    Without a target it only hashes and counts. Raises _StopRequested when told to stop.
    """

    def __init__(self, target: ObjectWriter | None, should_stop: ShouldStop) -> None:
        self._target = target
        self._should_stop = should_stop
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._lines = 0

    @property
    def lines(self) -> int:
        """The line ends so far."""
        return self._lines + self._buffer.count(b"\n")

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= PIECE_BYTES:
            self._pass_on(keep_bytes=KEEP_BYTES)

    def end_rows(self, tail: bytes, *, drop: bytes) -> None:
        """Take `drop` off the end of the last row, and add `tail`."""
        ending = drop + b"\n"
        if drop and self._buffer.endswith(ending):
            self._buffer[-len(ending) :] = b"\n"
        self.write(tail)
        self._pass_on(keep_bytes=0)

    def digest(self) -> Digest:
        self._pass_on(keep_bytes=0)
        return Digest(self._sha256.hexdigest(), self._size_bytes, self._lines)

    def _pass_on(self, *, keep_bytes: int) -> None:
        if self._should_stop():
            raise _StopRequested
        end = len(self._buffer) - keep_bytes
        piece = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._sha256.update(piece)
        self._size_bytes += len(piece)
        self._lines += piece.count(b"\n")
        if self._target is not None and piece:
            self._target.write(piece)

"""One segment of the audit log: planned, written, read back, and only then deleted.

A segment is recorded as open, in a separate commit, before its first object is written.
Everything else happens in one repeatable-read transaction: the rows that PostgreSQL
writes out are the rows that are deleted, and the deletion and the state "archived" are
one commit. So an open segment still has all its rows in the table, however its run
ended.

Safety does not depend on a lock (docs/decisions/0008). An object is removed only after
its record is committed as abandoned, and no commit can make that record archived again;
nor will another record ever have the object's name. So a run that is suspended between
any two steps, and goes on after others have, removes nothing that is needed. If several
processes share the work (`sharing`), the lock on a record only shows that a process
works on it.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import count

from django.db import Error as DatabaseErrors
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg2.errors import (
    DeadlockDetected,
    LockNotAvailable,
    SerializationFailure,
    UniqueViolation,
)
from psycopg2.extensions import cursor as Cursor

from starview_app.maintenance.database_errors import in_one_line, refuses_rows
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import format as archive_format
from starview_app.maintenance.jobs.audit_archive.beside import CopyBeside
from starview_app.maintenance.jobs.audit_archive.format import Batch, moment_text
from starview_app.maintenance.jobs.audit_archive.manifests import Entry, as_listed
from starview_app.maintenance.jobs.audit_archive.table import (
    SET_TEXT_FORMS,
    TABLE,
    Column,
    read_columns,
)
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Digest,
    RefusedRowsError,
    Sink,
    Source,
    StopRequested,
)
from starview_app.maintenance.jobs.references import unreferenced_sql
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import (
    ObjectLockedError,
    ObjectMissingError,
    ObjectWriter,
    Store,
    StoreError,
)

# Below PostgreSQL's deadlock_timeout (1 s): if this job and a request of the web
# service wait for each other, the job gives way and tries again.
LOCK_TIMEOUT_MS = 900
_CHANGED_MEANWHILE = (SerializationFailure, DeadlockDetected, LockNotAvailable)
State = AuditArchive.State


@dataclass(frozen=True, order=True)
class Position:
    """A place in the order (timestamp, id)."""

    timestamp: datetime
    id: int


START = Position(datetime(1900, 1, 1, tzinfo=UTC), 0)


class Outcome(StrEnum):
    """The outcome for the objects of an abandoned segment."""

    UNDONE = "undone"  # removed; the rows are in the table, and are archived when due
    KEPT = "kept"  # a lock of the store keeps the objects; a later run removes them


class SegmentVanishedError(Exception):
    """The rows of the segment were deleted by others: there is nothing to archive."""


class ChangedMeanwhileError(Exception):
    """A row of the segment was changed or locked, or another run has abandoned it."""


def plan(
    *, cutoff: datetime, after: Position, segment_rows: int
) -> tuple[Position, Position] | None:
    """Return the first and last row (inclusive) of the next segment.

    It begins after `after` (exclusive) and has at most `segment_rows` rows, all of one
    calendar month of UTC. None if no row is due there.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            archive_format.PLAN,
            {
                "cutoff": cutoff,
                "after_timestamp": after.timestamp,
                "after_id": after.id,
                "segment_rows": segment_rows,
            },
        )
        ends = [Position(*row) for row in cursor.fetchall()]
    return (ends[0], ends[1]) if ends else None


def open_segment(
    *,
    location: str,
    archived_at: datetime,
    retention_days: int,
    first: Position,
    last: Position,
    kinds: tuple[str, ...],
    number: int,
) -> AuditArchive:
    """Record a segment as open, before any of its objects is in the store.

    Its objects get names that no other record of this database has or will have: the
    number in them is the first free one from `number` on.
    """
    for tried in count(number):
        stem = archive_format.object_stem(
            first=first.timestamp,
            last=last.timestamp,
            archived_at=archived_at,
            number=tried,
        )
        record = AuditArchive(
            location=location,
            stem=stem,
            archived_at=archived_at,
            retention_days=retention_days,
            first_timestamp=first.timestamp,
            first_id=first.id,
            last_timestamp=last.timestamp,
            last_id=last.id,
            names=[f"{stem}.{kind}" for kind in kinds],
        )
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                record.save(force_insert=True)
            return record
        except (IntegrityError, OperationalError) as error:
            # Another record has the name; or its row is locked, since another run is
            # finishing it, or is suspended.
            if not isinstance(error.__cause__, UniqueViolation | LockNotAvailable):
                raise
    raise AssertionError("there is always a next number")


def abandon(record: AuditArchive) -> bool:
    """Abandon an open segment for ever; return False if it is not open any more.

    From this commit on its objects are not needed, and any run may remove them. Raises
    a DatabaseError, also if another run is just finishing the segment.
    """
    opened = AuditArchive.objects.filter(pk=record.pk, state=State.OPEN)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        return opened.update(state=State.ABANDONED) == 1


def remove_abandoned(
    store: Store, record: AuditArchive, listed: Collection[str]
) -> Outcome | None:
    """Remove the objects and uploads of an abandoned segment; None if there are none.

    Objects are removed only if they are `listed`; an unfinished upload is in no list.
    If two databases share a store, an object of the same name may belong to the other
    one: it is removed only if its head has the record's own moment.
    """
    outcome = None
    for name in record.names:
        store.discard_unfinished(name)
        if name not in listed or not _is_marked(store, record, name):
            continue
        try:
            store.delete(name)
            outcome = outcome or Outcome.UNDONE
        except ObjectLockedError:
            outcome = Outcome.KEPT
    return outcome


@dataclass(frozen=True)
class SegmentArchiver:
    """Moves segments to `store`. No row is lost, however a call ends.

    `begin` is called first in the transaction that archives a record.
    """

    store: Store
    should_stop: ShouldStop
    begin: Callable[[AuditArchive], None] = lambda record: None

    def archive(self, record: AuditArchive) -> None:
        """Archive the open `record`: write, read back and compare objects, delete rows.

        After an error the record is abandoned and its objects are removed, as far as
        the database and the store allow; the next run removes the rest. Raises
        JobError, StoreError, StopRequested, ChangedMeanwhileError, or
        SegmentVanishedError if no row of the segment exists any more.
        """
        objects = _Objects(self.store, record, self.should_stop)
        try:
            self._archive(record, objects)
        except BaseException as error:
            # If the answer to the commit was lost, the segment is not open any more,
            # and nothing is removed.
            with suppress(DatabaseErrors, StoreError):
                if abandon(record):
                    objects.remove_written()
            if isinstance(error.__cause__, _CHANGED_MEANWHILE):
                raise ChangedMeanwhileError from error
            if refuses_rows(error):
                text = f"the database refused: {in_one_line(error)}"
                raise RefusedRowsError(text) from error
            raise

    # -- internal helpers ---------------------------------------------------------

    def _archive(self, record: AuditArchive, objects: "_Objects") -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            # While an object is read back the database session is idle.
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            # Before the snapshot is taken, so that no column can be added in between.
            cursor.execute(f"LOCK TABLE {TABLE} IN ACCESS SHARE MODE")
            cursor.execute(SET_TEXT_FORMS)
            self.begin(record)
            columns = read_columns(cursor)
            batch = _summary(cursor, record)
            _refuse_referred(cursor, record)
            with objects.last_copied_beside(cursor, columns, batch):
                written = [
                    _entry(name, objects.put(cursor, columns, batch, name), batch)
                    for name in record.names
                ]
            objects.refuse_unlisted(written)
            if self.should_stop():
                raise StopRequested
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            _mark_archived(record, batch, written)
            _delete(cursor, record, batch)


def _mark_archived(
    record: AuditArchive, batch: Batch, written: list[dict[str, object]]
) -> None:
    """Mark the record as archived, unless another run has abandoned it: the fence.

    PostgreSQL refuses to update a row that was changed since the snapshot.
    """
    record.state = State.ARCHIVED
    record.row_count = batch.count
    record.objects_written = written
    marked = AuditArchive.objects.filter(pk=record.pk, state=State.OPEN).update(
        state=record.state,
        row_count=record.row_count,
        objects_written=record.objects_written,
    )
    if marked != 1:
        raise ChangedMeanwhileError


def _delete(cursor: CursorWrapper, record: AuditArchive, batch: Batch) -> None:
    """Delete the rows of this snapshot, which are those that were written."""
    cursor.execute(archive_format.DELETE, _range(record))
    if cursor.rowcount != batch.count:
        raise RefusedRowsError(
            f"the database removed {cursor.rowcount} rows instead of the"
            f" {batch.count} archived ones, which was undone"
            f" HINT: is there a trigger or rule on {TABLE}?"
        )


@dataclass
class _Objects:
    """The objects of one segment while they are written."""

    store: Store
    record: AuditArchive
    should_stop: ShouldStop
    # Names of complete objects in the store that this process has written.
    written: list[str] = field(default_factory=list)
    # Makes the copy for the last object at the same time as those for the others.
    beside: CopyBeside | None = None

    def put(
        self,
        cursor: CursorWrapper,
        columns: tuple[Column, ...],
        batch: Batch,
        name: str,
    ) -> Digest:
        """Write one object to the store, read it back and compare it."""
        with self.store.writer(name) as target:
            sent = self._copy(cursor, columns, batch, name, target)
        self.written.append(name)
        stored = Source(name, self.store.read(name), self.should_stop).read_all()
        if stored != sent:
            raise JobError(
                f"{name} came back from the store changed:"
                f" sent {sent.size_bytes} bytes with SHA-256 {sent.sha256},"
                f" got {stored.size_bytes} bytes with {stored.sha256}"
            )
        return sent

    def refuse_unlisted(self, entries: list[dict[str, object]]) -> None:
        """Raise JobError if the store does not list an object that was written.

        Such an object could never be verified or removed.
        """
        listed = {
            found.name: found.size_bytes
            for found in self.store.objects(f"{self.record.stem}.")
        }
        for entry in entries:
            if listed.get(str(entry["name"])) != entry["size_bytes"]:
                raise JobError(
                    f"the store has {entry['name']}, but does not list it as it is"
                    " HINT: does the key pair see the whole bucket, and is the"
                    " endpoint the account's own address?"
                )

    def remove_written(self) -> None:
        """Remove the objects of a record that is abandoned. Raises StoreError."""
        for name in self.written:
            self.store.delete(name)

    @contextmanager
    def last_copied_beside(
        self, cursor: CursorWrapper, columns: tuple[Column, ...], batch: Batch
    ) -> Iterator[None]:
        """Make the copy for the last of several objects parallel to the others."""
        *others, name = self.record.names
        if not others:
            yield
            return

        def copy(second: Cursor, target: ObjectWriter) -> Digest:
            sink = Sink(name, target, self.should_stop)
            return _copy(second, columns, self.record, batch, sink)

        with closing(CopyBeside(cursor, copy)) as self.beside:
            yield

    def _copy(
        self,
        cursor: CursorWrapper,
        columns: tuple[Column, ...],
        batch: Batch,
        name: str,
        target: ObjectWriter,
    ) -> Digest:
        """Write the object's content to `target`."""
        if self.beside and name == self.record.names[-1]:
            copied = self.beside.pass_on(target, self.should_stop)
            if copied:
                return copied
        sink = Sink(name, target, self.should_stop)
        with connection.wrap_database_errors:  # Django does not know copy_expert
            return _copy(cursor, columns, self.record, batch, sink)


def _is_marked(store: Store, record: AuditArchive, name: str) -> bool:
    """Whether the object exists and its head has the record's own moment."""
    pieces = store.read(name)
    try:
        head = next(iter(Source(name, pieces, lambda: False)), b"")
    except ObjectMissingError:
        return False
    return moment_text(record.archived_at).encode() in head


def _range(record: AuditArchive) -> dict[str, datetime | int]:
    return {
        "first_timestamp": record.first_timestamp,
        "first_id": record.first_id,
        "last_timestamp": record.last_timestamp,
        "last_id": record.last_id,
    }


def _summary(cursor: CursorWrapper, record: AuditArchive) -> Batch:
    cursor.execute(archive_format.SUMMARY, _range(record))
    count, first, last, first_id, last_id = cursor.fetchone()
    if not count:
        raise SegmentVanishedError
    return Batch(
        count=count,
        first=first,
        last=last,
        first_id=first_id,
        last_id=last_id,
        archived_at=record.archived_at,
        retention_days=record.retention_days,
    )


def _refuse_referred(cursor: CursorWrapper, record: AuditArchive) -> None:
    """Raise RefusedRowsError if a row of an unknown table refers to one of these."""
    statement = archive_format.COUNT_REFERRED.format(
        unreferenced=unreferenced_sql(TABLE, "log")
    )
    cursor.execute(statement, _range(record))
    (count,) = cursor.fetchone()
    if count:
        raise RefusedRowsError(
            f"rows of another table refer to {count} due audit rows"
            " HINT: move those rows away, or drop that foreign key"
        )


def _copy(
    cursor: CursorWrapper | Cursor,
    columns: tuple[Column, ...],
    record: AuditArchive,
    batch: Batch,
    sink: Sink,
) -> Digest:
    """Copy the rows as PostgreSQL's text, with head and tail, to `sink`."""
    kind = archive_format.kind_of(sink.name)
    sink.write(batch.head(kind))
    before = sink.lines
    sql = cursor.mogrify(archive_format.copy_sql(kind, columns), _range(record))
    cursor.copy_expert(sql.decode(), sink)
    rows = sink.lines - before
    sink.end_rows(batch.tail(kind), drop=archive_format.SEPARATOR[kind])
    if rows != batch.count:
        raise JobError(f"{sink.name} has {rows} rows instead of {batch.count}")
    return sink.digest()


def _entry(name: str, digest: Digest, batch: Batch) -> dict[str, object]:
    first, last = (batch.first_id, batch.first), (batch.last_id, batch.last)
    stored = (digest.size_bytes, digest.sha256)
    return as_listed(Entry(name, *stored, batch.count, *first, *last))

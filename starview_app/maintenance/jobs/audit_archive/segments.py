"""One segment of the audit log: planned, written, read back, and only then deleted.

A segment is remembered as open in a commit of its own before its first object is
written. Everything else happens in one repeatable-read transaction: the rows that
PostgreSQL writes out and the rows that are deleted are the same ones, and the deletion
and the mark "archived" are one commit. So a segment that is found open still has all
its rows in the table, whatever happened to the run.
"""

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg2.errors import (
    DeadlockDetected,
    LockNotAvailable,
    SerializationFailure,
)
from psycopg2.extensions import cursor as Cursor

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import format as archive_format
from starview_app.maintenance.jobs.audit_archive.beside import CopyBeside
from starview_app.maintenance.jobs.audit_archive.format import Batch, moment_text
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Digest,
    Sink,
    Source,
    StopRequested,
)
from starview_app.maintenance.jobs.references import unreferenced_sql
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import (
    ObjectExistsError,
    ObjectLockedError,
    ObjectMissingError,
    ObjectWriter,
    Store,
    StoreError,
)

# A row of the segment was changed or held by another: the segment is written anew.
ATTEMPTS = 3
# Below PostgreSQL's deadlock_timeout (1 s): should this job and a request of the web
# service ever wait for each other, it is the job that gives way and tries again.
LOCK_TIMEOUT_MS = 900
_CHANGED_MEANWHILE = (SerializationFailure, DeadlockDetected, LockNotAvailable)


@dataclass(frozen=True, order=True)
class Position:
    """A place in the order (timestamp, id)."""

    timestamp: datetime
    id: int


START = Position(datetime(1900, 1, 1, tzinfo=UTC), 0)


class Outcome(StrEnum):
    """What became of a segment that an earlier run left open."""

    FINISHED = "finished"
    UNDONE = "undone"  # its rows are in the table, and come anew when they are due
    VANISHED = "vanished"  # another hand has removed its rows, and it was forgotten
    KEPT = "kept"  # its objects are locked, and for a later run to remove


class SegmentVanishedError(Exception):
    """Its rows are gone, by another hand: there is nothing to archive."""


def plan(
    *, cutoff: datetime, after: Position, segment_rows: int
) -> tuple[Position, Position] | None:
    """First and last row (inclusive) of the next segment behind `after` (exclusive).

    None when no due row is left there. A segment has `segment_rows` rows at most, all
    of one calendar month of UTC.
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


@dataclass(frozen=True)
class SegmentArchiver:
    """Moves segments to `store`. Nothing of a segment is lost however a call ends."""

    store: Store
    should_stop: ShouldStop

    def archive(self, record: AuditArchive, left: Collection[str] = ()) -> None:
        """Write, read back, compare, delete; `record`, which is open, is then archived.

        `left` names objects of this very segment that are there already: an equal one
        is kept, another one replaced. When this raises before the commit, no row is
        gone, and objects and record are removed where store and database still allow
        it; what remains is for `settle`. Raises JobError, StoreError, StopRequested, or
        SegmentVanishedError when no row of the segment is there any more.
        """
        objects = _Objects(self.store, record, self.should_stop, set(left))
        try:
            self._archive_with_retries(record, objects)
        except BaseException:
            if objects.are_removed:
                with suppress(DatabaseError, StoreError):
                    for name in objects.begun:  # giving an upload up may have failed
                        self.store.discard_unfinished(name)
                    record.delete()
            raise

    def settle(self, record: AuditArchive, *, cutoff: datetime) -> "Outcome":
        """Finish an open segment that a run left behind, or undo it; says which.

        It is undone when a row of it is not before `cutoff`, or when its name is
        another's by now. While a lock of the store keeps an object of it, the segment
        stays open: its rows go into another one, and a later run removes the object.
        """
        left = set()
        for name in record.names:
            self.store.discard_unfinished(name)
            if _is_marked(self.store, record, name):
                left.add(name)
        try:
            if record.last_timestamp >= cutoff:
                for name in left:
                    self.store.delete(name)
                record.delete()
                return Outcome.UNDONE
            self.archive(record, left)
        except SegmentVanishedError:
            return Outcome.KEPT if record.pk else Outcome.VANISHED
        except ObjectExistsError:
            return Outcome.UNDONE
        except ObjectLockedError:
            return Outcome.KEPT
        return Outcome.FINISHED

    # -- internal helpers ---------------------------------------------------------

    def _archive_with_retries(self, record: AuditArchive, objects: "_Objects") -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._archive_once(record, objects)
                return
            except DatabaseError as error:
                if not isinstance(error.__cause__, _CHANGED_MEANWHILE):
                    raise
                # An object that could not be removed is compared, and kept when equal.
                if attempt == ATTEMPTS or objects.doubtful:
                    raise JobError(
                        "audit rows were changed, or held, while they were archived,"
                        f" {attempt} times over HINT: run the job again later"
                    ) from error

    def _archive_once(self, record: AuditArchive, objects: "_Objects") -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            # While an object is read back the session has nothing to do.
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            # Once this block has ended the commit may have happened, even if its
            # answer was lost: from there on the objects stay.
            with objects.removed_on_failure():
                batch = _summary(cursor, record)
                _refuse_referred(cursor, record)
                with objects.last_copied_beside(cursor, batch):
                    written = [
                        _entry(name, objects.put(cursor, batch, name), batch)
                        for name in record.names
                    ]
                self._delete(cursor, record, batch)
                record.state = AuditArchive.State.ARCHIVED
                record.row_count = batch.count
                record.objects_written = written
                record.save()

    def _delete(
        self, cursor: CursorWrapper, record: AuditArchive, batch: Batch
    ) -> None:
        """Delete the rows of this snapshot: the ones that were written."""
        if self.should_stop():
            raise StopRequested
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        cursor.execute(archive_format.DELETE, _range(record))
        if cursor.rowcount != batch.count:
            raise JobError(
                f"the database removed {cursor.rowcount} rows instead of the"
                f" {batch.count} archived ones, which was undone"
                " HINT: is there a trigger or rule on starview_app_auditlog?"
            )


@dataclass
class _Objects:
    """The objects of one segment while they are written."""

    store: Store
    record: AuditArchive
    should_stop: ShouldStop
    # There, and this segment's.
    own: set[str]
    # Their writing began.
    begun: set[str] = field(default_factory=set)
    # They may be there, or a part of them, or still appear: the store failed, or the
    # run was ended, while one was written.
    doubtful: set[str] = field(default_factory=set)
    # Set when a failure has been cleaned up after, without any doubt.
    are_removed: bool = False
    # Copies the last object meanwhile.
    beside: CopyBeside | None = None

    def put(self, cursor: CursorWrapper, batch: Batch, name: str) -> Digest:
        """Have one object in the store, compared with what comes back from it."""
        if name in self.own:
            expected = self._copy(cursor, batch, name, None)
            if self._read_back(name) == expected:
                return expected
            self.store.delete(name)
            self.own.discard(name)
        sent = self._write(cursor, batch, name)
        stored = self._read_back(name)
        if stored != sent:
            raise JobError(
                f"{name} came back from the store changed:"
                f" sent {sent.size_bytes} bytes with SHA-256 {sent.sha256},"
                f" got {stored.size_bytes} bytes with {stored.sha256}"
            )
        return sent

    @contextmanager
    def last_copied_beside(self, cursor: CursorWrapper, batch: Batch) -> Iterator[None]:
        """Copy the last of several objects while the others are copied."""
        *others, name = self.record.names
        if not others:
            yield
            return

        def copy(second: Cursor, target: ObjectWriter) -> Digest:
            sink = Sink(name, target, self.should_stop)
            return _copy(second, self.record, batch, sink)

        with closing(CopyBeside(cursor, copy)) as self.beside:
            yield

    @contextmanager
    def removed_on_failure(self) -> Iterator[None]:
        """Leave no object behind whose rows are still in the table, if possible."""
        self.are_removed = False
        try:
            yield
        except BaseException:
            for name in list(self.own):
                with suppress(StoreError):  # the failure that led here is reported
                    self.store.delete(name)
                    self.own.discard(name)
            self.are_removed = not (self.doubtful or self.own)
            raise

    def _write(self, cursor: CursorWrapper, batch: Batch, name: str) -> Digest:
        self.begun.add(name)
        try:
            with self.store.writer(name) as target:
                digest = self._copy(cursor, batch, name, target)
                self.doubtful.add(name)  # the end of the block makes it appear
        except ObjectExistsError:
            # Another's; or ours after all, when an answer was lost or came late.
            with suppress(StoreError):
                if not _is_marked(self.store, self.record, name):
                    self.doubtful.discard(name)
            raise
        except StoreError:
            self.doubtful.add(name)
            raise
        # In this order: at every instant it is in one of the two.
        self.own.add(name)
        self.doubtful.discard(name)
        return digest

    def _copy(
        self,
        cursor: CursorWrapper,
        batch: Batch,
        name: str,
        target: ObjectWriter | None,
    ) -> Digest:
        """The object's content, to `target` if there is one."""
        if self.beside and name == self.record.names[-1]:
            copied = self.beside.pass_on(target, self.should_stop)
            if copied:
                return copied
        sink = Sink(name, target, self.should_stop)
        with connection.wrap_database_errors:  # Django does not know copy_expert
            return _copy(cursor, self.record, batch, sink)

    def _read_back(self, name: str) -> Digest:
        return Source(name, self.store.read(name), self.should_stop).read_all()


def _is_marked(store: Store, record: AuditArchive, name: str) -> bool:
    """Whether the object is there and has the record's own moment in its head.

    Two deployments may share a store, and open a segment in the same second.
    """
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
    """Rows of an unknown table that refer to the log would be lost with it."""
    statement = archive_format.COUNT_REFERRED.format(
        unreferenced=unreferenced_sql("starview_app_auditlog", "log")
    )
    cursor.execute(statement, _range(record))
    (count,) = cursor.fetchone()
    if count:
        raise JobError(
            f"rows of another table refer to {count} due audit rows"
            " HINT: move those rows away, or drop that foreign key"
        )


def _copy(
    cursor: CursorWrapper | Cursor, record: AuditArchive, batch: Batch, sink: Sink
) -> Digest:
    """PostgreSQL's own text of the rows, with head and tail, through `sink`."""
    kind = archive_format.kind_of(sink.name)
    sink.write(batch.head(kind))
    before = sink.lines
    sql = cursor.mogrify(archive_format.COPY[kind], _range(record))
    cursor.copy_expert(sql.decode(), sink)
    rows = sink.lines - before
    sink.end_rows(batch.tail(kind), drop=archive_format.SEPARATOR[kind])
    if rows != batch.count:
        raise JobError(f"{sink.name} has {rows} rows instead of {batch.count}")
    return sink.digest()


def _entry(name: str, digest: Digest, batch: Batch) -> dict[str, object]:
    """How the manifest lists an object."""
    return {
        "name": name,
        "size_bytes": digest.size_bytes,
        "sha256": digest.sha256,
        "rows": batch.count,
        "first_id": batch.first_id,
        "first_timestamp": moment_text(batch.first),
        "last_id": batch.last_id,
        "last_timestamp": moment_text(batch.last),
    }

"""Claims of segments, for several processes that archive at the same time.

An open record is the claim of its segment. The row lock on it, which the process holds
in the transaction that archives the segment, is the lease: an open record that stays
without a lock (found by `SKIP LOCKED`) belongs to a process that is gone. So no lease
must be renewed. Claims only save work; what keeps each row safe is the fence
(docs/decisions/0008, 0022).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import count

from django.db import OperationalError, connection, transaction
from django.db.models import QuerySet
from psycopg2.errors import LockNotAvailable

from starview_app.maintenance.jobs.audit_archive.segments import (
    START,
    ChangedMeanwhileError,
    Position,
    open_segment,
    plan,
)
from starview_app.maintenance.models import AuditArchive

# A claim takes a moment; a process that holds this lock longer is suspended.
CLAIM_LOCK_TIMEOUT = "5s"
# A living process has its lease a moment after its claim; one that still has none after
# so many looks is gone, or suspended.
LOOKS = 10
SECONDS_BETWEEN_LOOKS = 0.05
State = AuditArchive.State

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_TAKE_LEASE = """
    SELECT FROM maintenance_auditarchive
    WHERE id = %(id)s AND state = 'open'
    FOR UPDATE SKIP LOCKED
"""
Ends = tuple[Position, Position]


@dataclass(frozen=True)
class Claim:
    """A segment that this process has claimed.

    If it `replaces` the record of a process that is gone, the same commit has abandoned
    that record.
    """

    record: AuditArchive
    replaces: AuditArchive | None = None

    @property
    def ends(self) -> Ends:
        return _ends_of(self.record)


@dataclass
class Claims:
    """Claims segments for one process, forward only, and each due row once.

    A row that is inserted or back-dated to before the last claim is left to the next
    run.
    """

    location: str
    archived_at: datetime
    retention_days: int
    cutoff: datetime
    kinds: tuple[str, ...]
    segment_rows: int
    _after: Position = START
    # The numbers in the names of the objects.
    _numbers: Iterator[int] = field(default_factory=partial(count, 1))

    def next(self) -> Claim | None:
        """Claim the next segment; None if all due rows are archived or claimed.

        Rows without a claim come first, then the segments of processes that are gone.
        """
        with self._alone():
            if ends := self._next_free():
                self._after = ends[1]
                return Claim(self._open(ends))
        return self._take_over()

    def again(self, ends: Ends) -> AuditArchive | None:
        """Claim a segment again after abandoning it; None if another process has it."""
        with self._alone():
            for first, last in self._claimed(START):
                if first <= ends[1] and last >= ends[0]:
                    return None
            return self._open(ends)

    # -- internal helpers ---------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Open a transaction that holds the advisory lock for claims.

        If a suspended process holds the lock, this goes on without it: if two processes
        claim the same rows, work is wasted, but no row is lost.
        """
        key = f"starview-maintenance:audit_archives:claim:{self.location}"
        with transaction.atomic(), connection.cursor() as cursor:
            try:
                with transaction.atomic():
                    cursor.execute(f"SET LOCAL lock_timeout = '{CLAIM_LOCK_TIMEOUT}'")
                    cursor.execute(_LOCK, {"key": key})
            except OperationalError as error:
                if not isinstance(error.__cause__, LockNotAvailable):
                    raise
            yield

    def _next_free(self) -> Ends | None:
        """Return the next segment that overlaps no claim.

        The claims are read before the rows: a segment that is archived in between has a
        claim here and no rows, and not rows without a claim.
        """
        after = self._after
        for first, last in self._claimed(after):
            if ends := self._plan(after, min(self.cutoff, first.timestamp)):
                return ends
            after = max(after, last)
        return self._plan(after, self.cutoff)

    def _plan(self, after: Position, before: datetime) -> Ends | None:
        return plan(cutoff=before, after=after, segment_rows=self.segment_rows)

    def _claimed(self, after: Position) -> list[Ends]:
        """Return the ends of the claims that reach beyond `after`, in order."""
        claims = sorted(map(_ends_of, _opened(self.location)))
        return [(first, last) for first, last in claims if last > after]

    def _take_over(self) -> Claim | None:
        """Claim the segment of a process that is gone, and abandon its record."""
        seen = _open_for_a_while(self.location)
        with self._alone():
            due = _without_lease(seen).filter(last_timestamp__lt=self.cutoff)
            left = due.first()
            if left is None:
                return None
            _abandon(left)
            return Claim(self._open(_ends_of(left)), replaces=left)

    def _open(self, ends: Ends) -> AuditArchive:
        return open_segment(
            location=self.location,
            archived_at=self.archived_at,
            retention_days=self.retention_days,
            first=ends[0],
            last=ends[1],
            kinds=self.kinds,
            number=next(self._numbers),
        )


def take_lease(record: AuditArchive) -> None:
    """Lock an open record until the end of the transaction.

    Raises ChangedMeanwhileError if another process has abandoned it or is about to.
    """
    with connection.cursor() as cursor:
        cursor.execute(_TAKE_LEASE, {"id": record.pk})
        if cursor.rowcount != 1:
            raise ChangedMeanwhileError


def abandon_left_open(location: str) -> list[AuditArchive]:
    """Abandon the open records of processes that are gone."""
    seen = _open_for_a_while(location)
    with transaction.atomic():
        left = list(_without_lease(seen))
        for record in left:
            _abandon(record)
    return left


@contextmanager
def held(record: AuditArchive) -> Iterator[bool]:
    """Hold a lock on an abandoned record; yields False if another process holds it.

    The process with the lock removes the record's objects.
    """
    abandoned = AuditArchive.objects.filter(pk=record.pk, state=State.ABANDONED)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield abandoned.select_for_update(skip_locked=True).first() is not None


def _opened(location: str) -> QuerySet[AuditArchive]:
    return AuditArchive.objects.filter(location=location, state=State.OPEN)


def _open_for_a_while(location: str) -> list[int]:
    """Return the ids of the open records whose processes have had time for a lease."""
    seen = list(_opened(location).values_list("pk", flat=True))
    for _ in range(LOOKS):
        if seen:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            still_open = _opened(location).filter(pk__in=seen)
            seen = list(still_open.values_list("pk", flat=True))
    return seen


def _without_lease(numbers: list[int]) -> QuerySet[AuditArchive]:
    """Return and lock those of the records that are open and have no lease."""
    opened = AuditArchive.objects.filter(pk__in=numbers, state=State.OPEN)
    return opened.order_by("id").select_for_update(skip_locked=True)


def _abandon(record: AuditArchive) -> None:
    """Abandon an open record that is locked, so that no other process can change it."""
    record.state = State.ABANDONED
    record.save(update_fields=["state"])


def _ends_of(record: AuditArchive) -> Ends:
    return (
        Position(record.first_timestamp, record.first_id),
        Position(record.last_timestamp, record.last_id),
    )

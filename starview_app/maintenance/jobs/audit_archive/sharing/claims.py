"""Which segment a process takes next where several work at once.

An open record claims its segment, and the lock that its process holds on it, by the
transaction that archives it, is the lease: an open record without one belongs to nobody
(`SKIP LOCKED` tells). So nothing is to be renewed, and no clock is asked. All of this
saves work. What keeps each row safe is the fence (docs/decisions/0008, 0022).
"""

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

# A claim takes a moment; the process that holds this lock longer is frozen.
CLAIM_LOCK_TIMEOUT = "5s"
State = AuditArchive.State

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_TAKE_LEASE = """
    SELECT FROM maintenance_auditarchive
    WHERE id = %(id)s AND state = 'open'
    FOR UPDATE SKIP LOCKED
"""
# The first open segment that shares a position with the given range.
_CLAIM_OVER = """
    SELECT first_timestamp, first_id, last_timestamp, last_id
    FROM maintenance_auditarchive
    WHERE
        location = %(location)s
        AND state = 'open'
        AND (first_timestamp, first_id) <= (%(last_timestamp)s, %(last_id)s)
        AND (last_timestamp, last_id) >= (%(first_timestamp)s, %(first_id)s)
    ORDER BY first_timestamp, first_id
    LIMIT 1
"""

Ends = tuple[Position, Position]


@dataclass(frozen=True)
class Claim:
    """A segment that is this process's to archive.

    It `replaces` the record of a process that is gone, where there was one: that is
    abandoned from the same commit on.
    """

    record: AuditArchive
    replaces: AuditArchive | None = None

    @property
    def ends(self) -> Ends:
        return _ends_of(self.record)


@dataclass
class Claims:
    """Hands out segments to one process: each due row once, and forward only.

    A row that comes or is back-dated to before what was handed out is for the next run.
    """

    location: str
    archived_at: datetime
    retention_days: int
    cutoff: datetime
    kinds: tuple[str, ...]
    segment_rows: int
    _after: Position = START
    # In the names of the objects.
    _numbers: Iterator[int] = field(default_factory=partial(count, 1))

    def next(self) -> Claim | None:
        """None when each due row is archived or claimed by a process that is there.

        First come the rows that nobody has claimed, then the segments of processes that
        are gone.
        """
        with self._alone():
            if ends := self._next_free():
                self._after = ends[1]
                return Claim(self._open(ends))
            return self._take_over()

    def again(self, ends: Ends) -> AuditArchive | None:
        """Claim it once more, given up by oneself; None when another has it by now."""
        with self._alone():
            return None if self._claim_over(ends) else self._open(ends)

    # -- internal helpers ---------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One transaction, beside no other one that claims.

        But for one that is frozen: two that claim the same rows cost work, not rows.
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
        """The next segment that overlaps no claim."""
        after = self._after
        while due := self._plan(after, rows=1):
            if over := self._claim_over(due):
                after = over[1]
                continue
            ends = self._plan(after)
            # Rows came in front of another's segment, or its segments are shorter.
            if ends and (ahead := self._claim_over(ends)):
                ends = self._plan(after, before=ahead[0].timestamp)
                after = ahead[1]
            if ends:
                return ends
        return None

    def _plan(
        self, after: Position, *, rows: int = 0, before: datetime | None = None
    ) -> Ends | None:
        return plan(
            cutoff=min(self.cutoff, before or self.cutoff),
            after=after,
            segment_rows=rows or self.segment_rows,
        )

    def _claim_over(self, ends: Ends) -> Ends | None:
        first, last = ends
        with connection.cursor() as cursor:
            cursor.execute(
                _CLAIM_OVER,
                {
                    "location": self.location,
                    "first_timestamp": first.timestamp,
                    "first_id": first.id,
                    "last_timestamp": last.timestamp,
                    "last_id": last.id,
                },
            )
            found = cursor.fetchone()
        return (Position(*found[:2]), Position(*found[2:])) if found else None

    def _take_over(self) -> Claim | None:
        """The segment of a process that is gone, in one commit with giving that up."""
        due = without_lease(self.location).filter(last_timestamp__lt=self.cutoff)
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

    Raises ChangedMeanwhileError when another has given it up, or is about to.
    """
    with connection.cursor() as cursor:
        cursor.execute(_TAKE_LEASE, {"id": record.pk})
        if cursor.rowcount != 1:
            raise ChangedMeanwhileError


def without_lease(location: str) -> QuerySet[AuditArchive]:
    """The open records of processes that are gone, locked; ask in a transaction."""
    opened = AuditArchive.objects.filter(location=location, state=State.OPEN)
    return opened.order_by("id").select_for_update(skip_locked=True)


def abandon_left_open(location: str) -> list[AuditArchive]:
    """Give up what no process works on any more."""
    with transaction.atomic():
        left = list(without_lease(location))
        for record in left:
            _abandon(record)
    return left


@contextmanager
def held(record: AuditArchive) -> Iterator[bool]:
    """Whether this process is the one that removes what bears its names."""
    abandoned = AuditArchive.objects.filter(pk=record.pk, state=State.ABANDONED)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield abandoned.select_for_update(skip_locked=True).first() is not None


def _abandon(record: AuditArchive) -> None:
    """Its lock is held, and it was open: nobody else can have changed it."""
    record.state = State.ABANDONED
    record.save(update_fields=["state"])


def _ends_of(record: AuditArchive) -> Ends:
    return (
        Position(record.first_timestamp, record.first_id),
        Position(record.last_timestamp, record.last_id),
    )

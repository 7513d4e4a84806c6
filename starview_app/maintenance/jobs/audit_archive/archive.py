"""Move old audit rows to the archive, segment by segment, and list them in a manifest.

At every moment a row is either in the table or in exactly one archived segment: see
`audit_archive.segments`. What a killed run has left is removed first by the next run.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import ClassVar

from django.db import OperationalError, connection
from psycopg2.errors import LockNotAvailable

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import format as archive_format
from starview_app.maintenance.jobs.audit_archive.manifests import (
    ManifestWritten,
    plan_manifest,
    write_manifests,
)
from starview_app.maintenance.jobs.audit_archive.segments import (
    START,
    ChangedMeanwhileError,
    Outcome,
    Position,
    SegmentArchiver,
    SegmentVanishedError,
    abandon,
    open_segment,
    plan,
    remove_abandoned,
)
from starview_app.maintenance.jobs.audit_archive.sharing.claims import (
    Claims,
    abandon_left_open,
    held,
)
from starview_app.maintenance.jobs.audit_archive.sharing.worker import (
    Sharing,
    Worker,
)
from starview_app.maintenance.jobs.audit_archive.table import read_columns
from starview_app.maintenance.jobs.audit_archive.transfer import (
    ATTEMPTS,
    Refusals,
    RefusedRowsError,
    StopRequested,
    changed_too_often,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import Store, StoreError

# 100,000 rows are some 50 MB of JSON and take a few seconds. So little work is repeated
# after a kill, and a change by the web service to a row waits no longer than that.
SEGMENT_ROWS = 100_000
State = AuditArchive.State


@dataclass(frozen=True)
class Found:
    count: int
    cutoff: datetime


@dataclass(frozen=True)
class Settled:
    """The outcome for a segment that an earlier run did not finish."""

    names: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True)
class Stored:
    """An object is in the store, read back and compared; its rows are deleted."""

    format: str
    name: str


@dataclass(frozen=True)
class SegmentArchived:
    """The rows are gone from the table; `size_bytes` is of all objects as stored."""

    count: int
    size_bytes: int


Event = Found | Settled | Stored | SegmentArchived | ManifestWritten
Report = Callable[[Event], None]


def archive_audit_logs(
    *,
    now: datetime,
    days: int,
    formats: Iterable[str],
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
    segment_rows: int = SEGMENT_ROWS,
    compress: bool = False,
    sharing: Sharing | None = None,
) -> JobResult:
    """Archive and delete the audit rows that are older than `days` days at `now`.

    A row that is exactly `days` days old is kept. `formats` contains `json`, `txt` or
    both; each makes one object for a segment, gzipped with `compress`. The rows of a
    segment are deleted only after each of its objects was read back and was equal to
    what was sent, and only if as many rows are deleted as were written. If the run is
    killed, or is suspended and goes on later, or other runs work at the same time, each
    row is still in the table or in exactly one archived segment; the next run removes
    what is unfinished.

    With `sharing` the run's helpers, and other runs with `sharing`, archive segments at
    the same time. At the end this process archives what the helpers have left.

    A dry run reads the table and lists the store, and changes nothing. Counts: found,
    archived, segments, objects. Raises JobError.
    """
    cutoff = now - timedelta(days=days)
    with connection.cursor() as cursor:
        read_columns(cursor)
    count = _count_due(cutoff)
    report(Found(count, cutoff))
    make: Callable[..., _Run] = _Run
    if sharing:
        make = partial(_SharedRun, sharing=sharing)
    run = make(
        now=now,
        days=days,
        cutoff=cutoff,
        kinds=tuple(f"{kind}.gz" if compress else kind for kind in formats),
        segment_rows=segment_rows,
        store=store,
        report=report,
        should_stop=should_stop,
        result=JobResult({"found": count, "archived": 0, "segments": 0, "objects": 0}),
    )
    if dry_run:
        run.look_at_store()
    else:
        run.run()
    return run.result


@dataclass(frozen=True)
class _Run:
    # Whether other processes may archive segments at the same time.
    is_shared: ClassVar[bool] = False
    now: datetime
    days: int
    cutoff: datetime
    kinds: tuple[str, ...]
    segment_rows: int
    store: Store
    report: Report
    should_stop: ShouldStop
    result: JobResult
    # The numbers in the names of this run's objects.
    numbers: Iterator[int] = field(default_factory=partial(itertools.count, 1))

    def look_at_store(self) -> None:
        """Raise JobError if the archive cannot be written to the store."""
        try:
            self._list_store()
        except StoreError as error:
            raise JobError(f"nothing could be archived: {error}") from error

    def run(self) -> None:
        try:
            self._settle()
            self._archive_segments()
        except StopRequested:
            self.result.interrupted = True
        except (JobError, StoreError) as error:
            # What is archived should not wait a month for the manifest of the next run.
            with suppress(JobError, StoreError):
                self._write_manifests()
            raise JobError(f"{self._what_is_kept()}: {error}") from error
        try:
            self._write_manifests()
        except (JobError, StoreError) as error:
            done = (
                f"{self._archived} audit logs are archived, but"
                if self._archived
                else "nothing was left to archive, but"
            )
            raise JobError(
                f"{done} a manifest is not written yet, which the next run tries again:"
                f" {error}"
            ) from error

    @property
    def _archived(self) -> int:
        return self.result.counts["archived"]

    def _what_is_kept(self) -> str:
        if not self._archived:
            return "nothing was deleted, archiving failed"
        return (
            f"{self._archived} audit logs are archived and the rest is still in the"
            " database, archiving failed"
        )

    def _list_store(self) -> set[str]:
        """Return the names in the store, which must be listable before it is used."""
        return {found.name for found in self.store.objects()}

    def _settle(self) -> None:
        """Abandon the segments that earlier runs left open, and remove their objects.

        Objects of segments that were abandoned long ago are removed too: they appear
        late if the process that wrote them was suspended.
        """
        records = AuditArchive.objects.filter(location=self.store.location)
        left_open = list(records.filter(state=State.OPEN).order_by("id"))
        abandoned = list(records.filter(state=State.ABANDONED).order_by("id"))
        if not (self.result.counts["found"] or left_open or abandoned):
            return
        listed = self._list_store()
        for record in self._abandoned_of(left_open):
            self._remove(record, set(record.names), is_new=True)
        for record in abandoned:
            self._remove(record, listed, is_new=False)

    def _abandoned_of(self, left_open: list[AuditArchive]) -> Iterator[AuditArchive]:
        return (record for record in left_open if _abandon(record))

    def _remove(self, record: AuditArchive, listed: set[str], *, is_new: bool) -> None:
        self._check_stop()
        names = tuple(record.names)
        try:
            outcome = remove_abandoned(self.store, record, listed)
        except StoreError as error:
            # Its rows are archived nevertheless.
            self.result.problems.append(
                f"what an unfinished run left could not be removed: {error}"
            )
            return
        if outcome or is_new:
            self.report(Settled(names, outcome or Outcome.UNDONE))

    def _archive_segments(self) -> None:
        after, refusals = START, Refusals()
        # Forward only: a row that is back-dated to before `after` is left to the next
        # run.
        while ends := plan(
            cutoff=self.cutoff, after=after, segment_rows=self.segment_rows
        ):
            self._check_stop()
            if ends[0] <= after:
                raise AssertionError(f"planned {ends[0]} again after {after}")
            try:
                with suppress(SegmentVanishedError):
                    self._archive_segment(*ends)
            except RefusedRowsError as error:
                refusals.add(error)
            after = ends[1]
        refusals.raise_first()

    def _archive_segment(self, first: Position, last: Position) -> None:
        archiver = SegmentArchiver(self.store, self.should_stop)
        for _ in range(ATTEMPTS):
            # Each attempt has its own names.
            record = open_segment(
                location=self.store.location,
                archived_at=self.now,
                retention_days=self.days,
                first=first,
                last=last,
                kinds=self.kinds,
                number=next(self.numbers),
            )
            try:
                archiver.archive(record)
            except ChangedMeanwhileError:
                continue
            self._count(record)
            return
        raise changed_too_often()

    def _count(self, record: AuditArchive) -> None:
        counts = self.result.counts
        counts["archived"] += record.row_count
        counts["segments"] += 1
        counts["objects"] += len(record.names)
        for name in record.names:
            self.report(Stored(archive_format.kind_of(name), name))
        size_bytes = sum(entry["size_bytes"] for entry in record.objects_written)
        self.report(SegmentArchived(record.row_count, size_bytes))

    def _write_manifests(self) -> None:
        """Write a manifest for what is not listed yet, and those that were planned."""
        while plan_manifest(location=self.store.location, now=self.now):
            pass
        for manifest in write_manifests(self.store, is_shared=self.is_shared):
            self.report(ManifestWritten(manifest.name))

    def _check_stop(self) -> None:
        if self.should_stop():
            raise StopRequested


@dataclass(frozen=True)
class _SharedRun(_Run):
    """A run that shares its work with its helpers and with other runs."""

    is_shared: ClassVar[bool] = True
    sharing: Sharing = field(kw_only=True)

    def _abandoned_of(self, left_open: list[AuditArchive]) -> Iterator[AuditArchive]:
        return iter(abandon_left_open(self.store.location))

    def _remove(self, record: AuditArchive, listed: set[str], *, is_new: bool) -> None:
        with held(record) as is_ours:
            if is_ours:
                super()._remove(record, listed, is_new=False)

    def _archive_segments(self) -> None:
        heard: set[int] = set()

        def hear(number: int) -> None:
            heard.add(number)
            self._count(AuditArchive.objects.get(pk=number))

        self.sharing.start(self._help, hear)
        # A helper that was killed after its commit has not reported its last segment.
        records = AuditArchive.objects.filter(
            location=self.store.location, archived_at=self.now, state=State.ARCHIVED
        )
        for record in records.exclude(pk__in=heard).order_by("id"):
            self._count(record)
        self._worker(self.store, self.should_stop, self._count).work()

    def _help(self, should_stop: ShouldStop, tell: Callable[[int], None]) -> None:
        """Archive segments in a helper's process, with a store of its own."""
        store = self.sharing.store()
        with suppress(StopRequested):
            self._worker(store, should_stop, lambda record: tell(record.pk)).work()

    def _worker(
        self,
        store: Store,
        should_stop: ShouldStop,
        archived: Callable[[AuditArchive], None],
    ) -> Worker:
        own = replace(self, store=store, should_stop=should_stop)
        claims = Claims(
            location=store.location,
            archived_at=self.now,
            retention_days=self.days,
            cutoff=self.cutoff,
            kinds=self.kinds,
            segment_rows=self.segment_rows,
        )
        return Worker(store, claims, should_stop, archived, own._remove_left)

    def _remove_left(self, record: AuditArchive) -> None:
        self._remove(record, set(record.names), is_new=False)


def _abandon(record: AuditArchive) -> bool:
    """Abandon a segment; return False if it is not open or is just being finished."""
    try:
        return abandon(record)
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):
            return False
        raise


def _count_due(cutoff: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(archive_format.COUNT_DUE, {"cutoff": cutoff})
        (count,) = cursor.fetchone()
    return int(count)

"""Move old audit rows to the archive, segment by segment, and list them in a manifest.

At every instant a row is in the table or in exactly one finished segment: see
`audit_archive.segments`. What a killed run left is settled first by the next one.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import format as archive_format
from starview_app.maintenance.jobs.audit_archive.manifests import (
    ManifestWritten,
    plan_manifest,
    write_manifests,
)
from starview_app.maintenance.jobs.audit_archive.segments import (
    START,
    Outcome,
    Position,
    SegmentArchiver,
    SegmentVanishedError,
    plan,
)
from starview_app.maintenance.jobs.audit_archive.transfer import StopRequested
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import Store, StoreError

# 100,000 rows are some 50 MB of JSON and take a few seconds: little is done again after
# a kill, and a row that the web service changes meanwhile waits no longer than that.
SEGMENT_ROWS = 100_000


@dataclass(frozen=True)
class Found:
    count: int
    cutoff: datetime


@dataclass(frozen=True)
class Settled:
    """What became of a segment that an earlier run left open."""

    names: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True)
class Stored:
    """An object is in the store, read back and equal; its rows are deleted."""

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
) -> JobResult:
    """Archive and delete the audit rows older than `days` before `now`.

    A row exactly `days` old is kept. `formats` holds `json`, `txt` or both; each is one
    object a segment, gzipped with `compress`. No row is deleted before every object of
    its segment has been read back and found equal to what was sent, and the count of
    deleted rows is the count of rows written. Killed at any moment, each row is in the
    table or in exactly one archived segment, and the next run settles what was open.

    Call it with the archive's lock held. Counts: found, archived, segments, objects.
    Raises JobError.
    """
    cutoff = now - timedelta(days=days)
    count = _count_due(cutoff)
    report(Found(count, cutoff))
    run = _Run(
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
    if not dry_run:
        run.run()
    return run.result


@dataclass(frozen=True)
class _Run:
    now: datetime
    days: int
    cutoff: datetime
    kinds: tuple[str, ...]
    segment_rows: int
    store: Store
    report: Report
    should_stop: ShouldStop
    result: JobResult

    def run(self) -> None:
        try:
            self._settle()
            self._archive_segments()
        except StopRequested:
            self.result.interrupted = True
        except (JobError, StoreError) as error:
            # What is archived already should not wait a month for its manifest.
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

    def _settle(self) -> None:
        """Finish or undo what earlier runs left open."""
        archiver = SegmentArchiver(self.store, self.should_stop)
        left_open = AuditArchive.objects.filter(
            location=self.store.location, state=AuditArchive.State.OPEN
        )
        for record in left_open.order_by("id"):
            self._check_stop()
            names = tuple(record.names)
            try:
                outcome = archiver.settle(record, cutoff=self.cutoff)
            except StoreError as error:
                raise StoreError(
                    f"what an earlier run left could not be settled: {error}"
                ) from error
            self.report(Settled(names, outcome))
            if outcome is Outcome.FINISHED:
                self._count(record)

    def _archive_segments(self) -> None:
        archiver = SegmentArchiver(self.store, self.should_stop)
        after = START
        # Forward only: a row that is back-dated to before `after` is for the next run.
        while ends := plan(
            cutoff=self.cutoff, after=after, segment_rows=self.segment_rows
        ):
            self._check_stop()
            if ends[0] <= after:
                raise AssertionError(f"planned {ends[0]} again after {after}")
            record = self._open(*ends)
            with suppress(SegmentVanishedError):
                archiver.archive(record)
                self._count(record)
            after = ends[1]

    def _open(self, first: Position, last: Position) -> AuditArchive:
        """Remember a segment, before anything of it is in the store."""
        records = AuditArchive.objects.filter(location=self.store.location)
        # A name has the second: of this run, and of one that was killed just before.
        second = self.now.replace(microsecond=0)
        number = (
            1
            + records.filter(
                archived_at__gte=second, archived_at__lt=second + timedelta(seconds=1)
            ).count()
        )
        names = [
            archive_format.object_name(
                kind,
                first=first.timestamp,
                last=last.timestamp,
                archived_at=self.now,
                number=number,
            )
            for kind in self.kinds
        ]
        return records.create(
            location=self.store.location,
            archived_at=self.now,
            retention_days=self.days,
            first_timestamp=first.timestamp,
            first_id=first.id,
            last_timestamp=last.timestamp,
            last_id=last.id,
            names=names,
        )

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
        """One for what none lists yet, and those that earlier runs only planned."""
        while plan_manifest(location=self.store.location, now=self.now):
            pass
        for manifest in write_manifests(self.store):
            self.report(ManifestWritten(manifest.name))

    def _check_stop(self) -> None:
        if self.should_stop():
            raise StopRequested


def _count_due(cutoff: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(archive_format.COUNT_DUE, {"cutoff": cutoff})
        (count,) = cursor.fetchone()
    return int(count)

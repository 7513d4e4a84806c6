"""Remove archives that were kept long enough, and record that in the chain.

A segment is marked as being removed before its first object is removed, and listed in a
manifest as removed after the last one. So the next run continues after a kill, and
removed objects are never reported as missing. The mark is never taken back, so a run
that was suspended removes only what is to be removed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import QuerySet

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.chain import has_records
from starview_app.maintenance.jobs.audit_archive.manifests import (
    ManifestWritten,
    is_manifest,
    plan_manifest,
    write_manifests,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import ObjectLockedError, Store, StoreError

State = AuditArchive.State


@dataclass(frozen=True)
class Found:
    """The number of objects in the store, and of archives due for removal."""

    objects: int
    archives: int
    cutoff: datetime


@dataclass(frozen=True)
class Removed:
    name: str


@dataclass(frozen=True)
class KeptByLock:
    """A lock of the store keeps the object; the next run tries again."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """An object that this database never archived; it is not removed."""

    name: str


Event = Found | Removed | KeptByLock | Unknown | ManifestWritten
Report = Callable[[Event], None]


def cleanup_audit_archives(
    *,
    now: datetime,
    days: int,
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Remove the archives whose newest event is older than `days` days at `now`.

    An archive that is exactly `days` days old is kept. The archive with the newest
    event of all is never removed, nor are manifests or objects that are not recorded
    here as archived. Objects under a lock of the store are kept and counted; that is
    not a failure. An object that was missing before is a problem in this run only,
    since its archive is then recorded as removed. An archive that an earlier run has
    removed in part is removed whatever its age.

    Several runs at the same time are safe. Counts: found, removed, objects,
    kept_by_lock, unknown. Raises JobError.
    """
    names = ("found", "removed", "objects", "kept_by_lock", "unknown")
    run = _Cleanup(
        now=now,
        cutoff=now - timedelta(days=days),
        store=store,
        report=report,
        should_stop=should_stop,
        result=JobResult(dict.fromkeys(names, 0)),
    )
    try:
        run.run(dry_run=dry_run)
    except StoreError as error:
        count = run.result.counts["removed"]
        raise JobError(
            f"{count} archives are removed, the rest failed: {error}"
        ) from error
    return run.result


@dataclass(frozen=True)
class _Cleanup:
    now: datetime
    cutoff: datetime
    store: Store
    report: Report
    should_stop: ShouldStop
    result: JobResult

    def run(self, *, dry_run: bool) -> None:
        listed = [found.name for found in self.store.objects()]
        due = self._due(set(listed))
        self._report_found(due, listed)
        if not dry_run:
            self._remove(due, set(listed))

    @property
    def _records(self) -> QuerySet[AuditArchive]:
        if not has_records():  # in a dry run, which does not create the tables
            return AuditArchive.objects.none()
        return AuditArchive.objects.filter(location=self.store.location)

    def _due(self, listed: set[str]) -> list[AuditArchive]:
        """Return archives that are old enough, except the newest, or partly removed."""
        archived = self._records.filter(state=State.ARCHIVED)
        newest = archived.order_by("last_timestamp", "id").last()
        old = archived.filter(last_timestamp__lt=self.cutoff, manifest__is_written=True)
        if newest:
            old = old.exclude(pk=newest.pk)
        removing = self._records.filter(state=State.REMOVING).order_by("id")
        begun = [
            record
            for record in removing
            if record.last_timestamp < self.cutoff
            or not listed.issuperset(record.names)
        ]
        return [*begun, *old.order_by("last_timestamp", "id")]

    def _report_found(self, due: list[AuditArchive], listed: list[str]) -> None:
        known = {name for record in self._records for name in record.names}
        unknown = [
            name for name in listed if not is_manifest(name) and name not in known
        ]
        self.result.counts["found"] = len(due)
        self.result.counts["unknown"] = len(unknown)
        self.report(Found(len(listed), len(due), self.cutoff))
        for name in unknown:
            self.report(Unknown(name))

    def _remove(self, due: list[AuditArchive], listed: set[str]) -> None:
        removed: list[AuditArchive] = []
        try:
            for record in due:
                if self.should_stop():
                    self.result.interrupted = True
                    break
                if self._remove_objects(record, listed):
                    removed.append(record)
                    self.result.counts["removed"] += 1
        finally:
            # Also if the store failed half-way: what was removed must be listed.
            plan_manifest(location=self.store.location, now=self.now, removed=removed)
        for manifest in write_manifests(self.store):
            self.report(ManifestWritten(manifest.name))

    def _remove_objects(self, record: AuditArchive, listed: set[str]) -> bool:
        """Remove one archive; return False if a lock of the store keeps part of it."""
        was_begun = record.state == State.REMOVING
        if not was_begun and not self._begin_removal(record):
            return False  # another run was faster
        is_gone = True
        for name in record.names:
            try:
                self.store.delete(name)
            except ObjectLockedError:
                self.report(KeptByLock(name))
                self.result.counts["kept_by_lock"] += 1
                is_gone = False
                continue
            if name in listed:
                self.result.counts["objects"] += 1
                self.report(Removed(name))
            elif not was_begun:  # else an earlier run has removed the object
                self.result.problems.append(f"{name} was missing before it was due")
        return is_gone

    def _begin_removal(self, record: AuditArchive) -> bool:
        archived = self._records.filter(pk=record.pk, state=State.ARCHIVED)
        return archived.update(state=State.REMOVING) == 1

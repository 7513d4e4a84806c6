"""Remove archives that have been kept long enough, and say so in the chain.

A segment is marked as being removed before its first object goes, and a manifest says
that it is gone after the last one: a run that is killed in between is continued by the
next one, and what is missing is never taken for lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from starview_app.maintenance.jobs.audit_archive.manifests import (
    ManifestWritten,
    is_manifest,
    plan_manifest,
    write_manifests,
)
from starview_app.maintenance.jobs.errors import JobError
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import ObjectLockedError, Store, StoreError

State = AuditArchive.State


@dataclass(frozen=True)
class Found:
    """`objects` in the store, `archives` of it due for removal."""

    objects: int
    archives: int
    cutoff: datetime


@dataclass(frozen=True)
class Removed:
    name: str


@dataclass(frozen=True)
class KeptByLock:
    """A rule of the store keeps it; the next run tries again."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """An object that this database never archived; it is not touched."""

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
    """Remove the archives whose newest event is older than `days` before `now`.

    One exactly `days` old is kept. The archive with the newest event of all is never
    removed, nor are manifests, nor anything that this database has not on record as
    archived. Objects under a lock of the store are kept and counted, without failing.
    An object that was missing before is a problem, which the chain will not show again.
    An archive whose removal an earlier run began is removed whatever `days` says now.

    Call it with the archive's lock held. Counts: found, removed, objects, kept_by_lock,
    unknown. Raises JobError.
    """
    cutoff = now - timedelta(days=days)
    names = ("found", "removed", "objects", "kept_by_lock", "unknown")
    result = JobResult(dict.fromkeys(names, 0))
    try:
        due = _due(store.location, cutoff)
        listed = _look_around(store, report, result, due, cutoff)
        if not dry_run:
            _remove(store, now, report, should_stop, result, due, listed)
    except StoreError as error:
        raise JobError(
            f"{result.counts['removed']} archives are removed, the rest failed: {error}"
        ) from error
    return result


def _due(location: str, cutoff: datetime) -> list[AuditArchive]:
    """What is marked already, and what is old enough, but for the newest of all."""
    records = AuditArchive.objects.filter(location=location)
    archived = records.filter(state=State.ARCHIVED)
    newest = archived.order_by("last_timestamp", "id").last()
    old = archived.filter(last_timestamp__lt=cutoff, manifest__is_written=True)
    if newest:
        old = old.exclude(pk=newest.pk)
    marked = records.filter(state=State.REMOVING)
    return [*marked.order_by("id"), *old.order_by("last_timestamp", "id")]


def _look_around(
    store: Store,
    report: Report,
    result: JobResult,
    due: list[AuditArchive],
    cutoff: datetime,
) -> set[str]:
    """Report what is there; returns the names of all objects."""
    known = {
        name
        for names in AuditArchive.objects.filter(location=store.location).values_list(
            "names", flat=True
        )
        for name in names
    }
    listed = [found.name for found in store.objects()]
    unknown = [name for name in listed if not is_manifest(name) and name not in known]
    result.counts["found"] = len(due)
    result.counts["unknown"] = len(unknown)
    report(Found(len(listed), len(due), cutoff))
    for name in unknown:
        report(Unknown(name))
    return set(listed)


def _remove(
    store: Store,
    now: datetime,
    report: Report,
    should_stop: ShouldStop,
    result: JobResult,
    due: list[AuditArchive],
    listed: set[str],
) -> None:
    removed: list[AuditArchive] = []
    try:
        for record in due:
            if should_stop():
                result.interrupted = True
                break
            if _remove_objects(store, record, report, result, listed):
                removed.append(record)
                result.counts["removed"] += 1
    finally:
        # Also when the store failed half-way: what is gone is listed as removed.
        plan_manifest(location=store.location, now=now, removed=removed)
    for manifest in write_manifests(store):
        report(ManifestWritten(manifest.name))


def _remove_objects(
    store: Store,
    record: AuditArchive,
    report: Report,
    result: JobResult,
    listed: set[str],
) -> bool:
    """Remove one archive; False when the store's lock keeps a part of it."""
    was_begun = record.state == State.REMOVING
    AuditArchive.objects.filter(pk=record.pk).update(state=State.REMOVING)
    gone = 0
    for name in record.names:
        try:
            store.delete(name)
        except ObjectLockedError:
            report(KeptByLock(name))
            result.counts["kept_by_lock"] += 1
        else:
            gone += 1
            if name in listed:
                result.counts["objects"] += 1
                report(Removed(name))
            elif not was_begun:  # else an earlier run removed it
                result.problems.append(f"{name} was missing before it was due")
    if not gone:
        AuditArchive.objects.filter(pk=record.pk).update(state=State.ARCHIVED)
    return gone == len(record.names)

"""Adopt the archives of the web service's first version into the chain of manifests.

The objects are not changed. Their present contents are recorded and listed in a
manifest, so that verify, restore and clean-up work on them from now on. Changes that
were made to them before cannot be detected.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, transaction

from starview_app.maintenance.database_errors import is_taken
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import first_version
from starview_app.maintenance.jobs.audit_archive.chain import (
    has_records,
    read_chain,
    take_inventory,
)
from starview_app.maintenance.jobs.audit_archive.first_version import (
    NotReadableError,
    Row,
)
from starview_app.maintenance.jobs.audit_archive.format import moment_text
from starview_app.maintenance.jobs.audit_archive.manifests import (
    Entry,
    ManifestWritten,
    as_listed,
    is_manifest,
    parse_manifest,
    plan_manifest,
    read_body,
    write_manifests,
)
from starview_app.maintenance.jobs.audit_archive.segments import Position
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Digest,
    Source,
    StopRequested,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import Store, StoreError

# A name without .gz, so that nothing is unpacked.
_AS_STORED = ""


@dataclass(frozen=True)
class Found:
    """The number of archives of the first version that are not recorded yet."""

    archives: int


@dataclass(frozen=True)
class Adopted:
    names: list[str]
    rows: int


@dataclass(frozen=True)
class Refused:
    name: str
    reason: str


Event = Found | Adopted | Refused | ManifestWritten
Report = Callable[[Event], None]


def adopt_audit_archives(
    *,
    now: datetime,
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Record every archive of the first version that is readable and consistent.

    Each object is read completely: the JSON must have as many rows as its head says,
    and the TXT, if there is one, must have the same rows. Otherwise the archive is not
    adopted, and is a problem. Objects that this database or a manifest in the store
    lists already are skipped, so running twice changes nothing. The only object that is
    written is the manifest. Counts: found, adopted, objects, rows. Raises JobError.
    """
    run = _Adoption(now, store, report, should_stop)
    try:
        run.run(dry_run=dry_run)
    except StoreError as error:
        count = run.result.counts["adopted"]
        raise JobError(f"{count} archives are adopted, the rest failed: {error}") from (
            error
        )
    except StopRequested:
        run.result.interrupted = True
    return run.result


@dataclass(frozen=True)
class _Content:
    """The contents of an archive, as read from the store."""

    archived_at: datetime
    retention_days: int
    rows: int
    first: Position
    last: Position
    digests: dict[str, Digest]


class _Adoption:
    def __init__(
        self, now: datetime, store: Store, report: Report, should_stop: ShouldStop
    ) -> None:
        self._now = now
        self._store = store
        self._report = report
        self._should_stop = should_stop
        self.result = JobResult(
            dict.fromkeys(("found", "adopted", "objects", "rows"), 0)
        )

    def run(self, *, dry_run: bool) -> None:
        archives = self._unknown()
        self.result.counts["found"] = len(archives)
        self._report(Found(len(archives)))
        try:
            for stem, names in sorted(archives.items()):
                self._adopt(stem, names, dry_run=dry_run)
        finally:
            if not dry_run:
                # Also if the store failed half-way, and for what a killed run recorded.
                plan_manifest(location=self._store.location, now=self._now)
        if not dry_run:
            for manifest in write_manifests(self._store):
                self._report(ManifestWritten(manifest.name))

    # -- internal helpers ---------------------------------------------------------

    def _unknown(self) -> dict[str, list[str]]:
        """Return archives in neither the database nor a manifest: {stem: names}."""
        inventory = take_inventory(self._store)
        known = {*read_chain(self._store, inventory).entries, *inventory.unsettled}
        known |= self._listed_by_anybody(list(filter(is_manifest, inventory.sizes)))
        stems = set()
        if has_records():
            records = AuditArchive.objects.filter(location=self._store.location)
            stems = set(records.values_list("stem", flat=True))
        found: dict[str, list[str]] = {}
        for name in sorted(set(inventory.sizes) - known):
            stem = first_version.stem_of(name)
            if stem and stem not in stems:
                found.setdefault(stem, []).append(name)
        return found

    def _listed_by_anybody(self, manifests: list[str]) -> set[str]:
        """Return the objects of any manifest, also one that another database wrote."""
        names: set[str] = set()
        for name in manifests:
            try:
                manifest = parse_manifest(read_body(self._store, name))
            except ValueError:
                continue
            names |= {entry.name for entry in manifest.objects}
        return names

    def _adopt(self, stem: str, names: list[str], *, dry_run: bool) -> None:
        if self._should_stop():
            raise StopRequested
        try:
            content = self._read(names)
            is_new = dry_run or self._record(stem, names, content)
        except NotReadableError as error:
            self.result.problems.append(f"{names[0]} was not adopted: {error}")
            self._report(Refused(names[0], str(error)))
            return
        if is_new:
            counts = self.result.counts
            counts["adopted"] += 1
            counts["objects"] += len(names)
            counts["rows"] += content.rows
            self._report(Adopted(names, content.rows))

    def _read(self, names: list[str]) -> _Content:
        """Raises NotReadableError."""
        by_kind = {name.rpartition(".")[2]: name for name in names}
        if "json" not in by_kind:
            return self._read_text(by_kind["txt"])
        name = by_kind["json"]
        head = first_version.read_head(self._store.read(name))
        source = self._source(name)
        scan = _Scan(first_version.read_rows(source))
        digests = {}
        if "txt" in by_kind:
            text = self._source(by_kind["txt"])
            if wrong := first_version.difference_of_text(scan, text):
                raise NotReadableError(wrong)
            digests[by_kind["txt"]] = text.digest()
        for _ in scan:  # the rows that are left
            pass
        digests = {name: source.digest(), **digests}
        if scan.count != head.rows or scan.first is None or scan.last is None:
            raise NotReadableError(f"it has {scan.count} rows, and says {head.rows}")
        return _Content(
            head.archived_at,
            head.retention_days,
            scan.count,
            scan.first,
            scan.last,
            digests,
        )

    def _read_text(self, name: str) -> _Content:
        source = self._source(name)
        rows, first, last = first_version.read_text_alone(source)
        digests = {name: source.digest()}
        # The head of a TXT has no more than the date.
        return _Content(last.timestamp, 0, rows, first, last, digests)

    def _source(self, name: str) -> Source:
        return Source(_AS_STORED, self._store.read(name), self._should_stop)

    def _record(self, stem: str, names: list[str], content: _Content) -> bool:
        """Record an archive; return False if another run was faster."""
        record = AuditArchive(
            location=self._store.location,
            stem=stem,
            state=AuditArchive.State.ARCHIVED,
            archived_at=content.archived_at,
            retention_days=content.retention_days,
            first_timestamp=content.first.timestamp,
            first_id=content.first.id,
            last_timestamp=content.last.timestamp,
            last_id=content.last.id,
            names=names,
            row_count=content.rows,
            objects_written=[self._entry(name, content) for name in names],
        )
        try:
            with transaction.atomic():
                record.save(force_insert=True)
        except IntegrityError as error:
            if not is_taken(error):
                raise
            return False
        return True

    def _entry(self, name: str, content: _Content) -> dict[str, object]:
        """Return the manifest's entry for an object, with the time of its adoption."""
        digest = content.digests[name]
        entry = Entry(
            name=name,
            size_bytes=digest.size_bytes,
            sha256=digest.sha256,
            rows=content.rows,
            first_id=content.first.id,
            first_timestamp=content.first.timestamp,
            last_id=content.last.id,
            last_timestamp=content.last.timestamp,
        )
        return as_listed(entry) | {"adopted_at": moment_text(self._now)}


class _Scan:
    """Passes rows on, and keeps their number and the first and last position."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self.count = 0
        self.first: Position | None = None
        self.last: Position | None = None

    def __iter__(self) -> "_Scan":
        return self

    def __next__(self) -> Row:
        row = next(self._rows)
        position = first_version.position_of(row)
        self.count += 1
        self.first = min(self.first or position, position)
        self.last = max(self.last or position, position)
        return row

"""Reads the chain of manifests and finds what is wrong with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import QuerySet

from starview_app.maintenance.jobs.audit_archive.manifests import (
    Entry,
    Manifest,
    is_manifest,
    parse_entry,
    parse_manifest,
    read_body,
    sequence_of,
    sha256_of,
)
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.own_tables import has_table
from starview_app.maintenance.stores.base import Store

MISSING = "missing"
CHANGED = "changed"
STRAY = "not in any manifest"
State = AuditArchive.State


@dataclass(frozen=True)
class Inventory:
    """The contents of a store, and the database's records of it at the same time."""

    # {name: bytes} of every object.
    sizes: dict[str, int]
    manifests: list[AuditManifest]
    # Archived segments that no manifest lists yet: only the database vouches for them.
    unlisted: list[AuditArchive]
    # Names that may be in the store or not: of segments that are open or abandoned, or
    # are being removed.
    unsettled: set[str]
    # Other places that this database has archived to.
    elsewhere: list[str]


def take_inventory(store: Store) -> Inventory:
    """List the store, and again if a manifest was added meanwhile. Raises StoreError.

    If this image's tables do not exist yet, there are no records.
    """
    if not has_records():
        sizes = {found.name: found.size_bytes for found in store.objects()}
        return Inventory(sizes, [], [], set(), [])
    while True:
        before = _manifests(store)
        # Before the list: the objects of an archived segment are in the store.
        unlisted = list(_unlisted(store.location))
        # Before and after: a segment may be opened or abandoned during the list.
        unsettled = _unsettled(store.location)
        sizes = {found.name: found.size_bytes for found in store.objects()}
        unsettled |= _unsettled(store.location)
        unsettled |= _names_of(_unlisted(store.location)) - _names_of(unlisted)
        after = _manifests(store)
        if [(row.pk, row.is_written) for row in before] == [
            (row.pk, row.is_written) for row in after
        ]:
            return Inventory(sizes, after, unlisted, unsettled, _elsewhere(store))


def has_records() -> bool:
    """Whether this image's tables exist; commands that only read do not create them."""
    return has_table("maintenance_auditarchive")


def _manifests(store: Store) -> list[AuditManifest]:
    rows = AuditManifest.objects.filter(location=store.location)
    return list(rows.order_by("sequence"))


def _elsewhere(store: Store) -> list[str]:
    archived = AuditArchive.objects.filter(state=State.ARCHIVED)
    places = {
        location
        for rows in (AuditManifest.objects.all(), archived)
        for location in rows.values_list("location", flat=True).distinct()
    }
    return sorted(places - {store.location})


def nothing_here(store: Store, chain: "Chain", inventory: Inventory) -> str:
    """Return what is wrong if this store is empty and another has archives, or ""."""
    if chain.manifests or chain.entries or not inventory.elsewhere:
        return ""
    return (
        f"there are no archives in {store.location}, but this database has some in"
        f" {', '.join(inventory.elsewhere)} HINT: is it the right bucket?"
    )


def _unsettled(location: str) -> set[str]:
    states = (State.OPEN, State.ABANDONED, State.REMOVING)
    records = AuditArchive.objects.filter(location=location, state__in=states)
    planned = AuditManifest.objects.filter(location=location, is_written=False)
    return _names_of(records) | {manifest.name for manifest in planned}


def _unlisted(location: str) -> QuerySet[AuditArchive]:
    archived = AuditArchive.objects.filter(location=location, state=State.ARCHIVED)
    return archived.filter(manifest=None).order_by("id")


def _names_of(records: Iterable[AuditArchive]) -> set[str]:
    return {name for record in records for name in record.names}


def was_removed(store: Store, name: str) -> bool:
    """Whether a clean-up has removed the object, perhaps since the store was listed."""
    if not has_records():
        return False
    records = AuditArchive.objects.filter(
        location=store.location, names__contains=[name]
    )
    return records.filter(state__in=(State.REMOVING, State.REMOVED)).exists()


@dataclass(frozen=True)
class Finding:
    """What is wrong with one object: it is missing, changed or stray."""

    status: str
    name: str
    detail: str


@dataclass
class Chain:
    """The manifests of a store, oldest first, and what they list."""

    manifests: list[Manifest] = field(default_factory=list)
    # By name, the objects that should be in the store, and when they were listed, or
    # archived if no manifest lists them yet.
    entries: dict[str, Entry] = field(default_factory=dict)
    listed_at: dict[str, datetime] = field(default_factory=dict)
    # The names of entries whose manifest is wrong.
    doubtful: set[str] = field(default_factory=set)
    # The names of entries that no manifest in the store lists yet.
    unlisted: set[str] = field(default_factory=set)
    # What is wrong with the manifests themselves.
    findings: list[Finding] = field(default_factory=list)
    # False if the database has no manifests on record: then nothing vouches for the
    # newest one.
    is_on_record: bool = True


def read_chain(store: Store, inventory: Inventory) -> Chain:
    """Read and check every manifest of the inventory.

    The database that planned a manifest vouches for it, or else the next manifest,
    which has its hash. Raises StoreError.
    """
    return _ChainReader(store, inventory).read()


@dataclass(frozen=True)
class _Voucher:
    """The name and hash that a manifest must have, and who vouches for it."""

    name: str
    sha256: str
    who: str
    is_trusted: bool = True


class _ChainReader:
    def __init__(self, store: Store, inventory: Inventory) -> None:
        self._store = store
        self._unlisted = inventory.unlisted
        self._on_record = {row.sequence: row for row in inventory.manifests}
        self._found: dict[int, list[str]] = {}
        for name in sorted(filter(is_manifest, inventory.sizes)):
            self._found.setdefault(sequence_of(name), []).append(name)
        self._chain = Chain()
        # Only from manifests that are vouched for.
        self._removed: set[str] = set()

    def read(self) -> Chain:
        chain = self._chain
        chain.is_on_record = bool(self._on_record) or not self._found
        self._drop_forged()
        # From the newest on, since each manifest has the hash of the one before it.
        voucher: _Voucher | None = None
        above: int | None = None
        for sequence in sorted({*self._found, *self._on_record}, reverse=True):
            if above is not None and above - sequence > 1:
                self._note_gap(sequence + 1, above - 1)
                voucher = None
            if record := self._on_record.get(sequence):
                voucher = _Voucher(record.name, record.sha256, "the database")
            voucher = self._read_one(sequence, voucher)
            above = sequence
        if above is not None and above > 1:
            self._note_gap(1, above - 1)
        self._take_unlisted(self._unlisted)
        chain.manifests.reverse()
        chain.findings.reverse()
        for name in self._removed:
            chain.entries.pop(name, None)
        return chain

    def _take_unlisted(self, records: Iterable[AuditArchive]) -> None:
        """Add the objects that only the database lists."""
        for record in records:
            for entry in map(parse_entry, record.objects_written):
                if entry.name not in self._chain.entries:
                    self._chain.entries[entry.name] = entry
                    self._chain.listed_at[entry.name] = record.archived_at
                    self._chain.unlisted.add(entry.name)

    def _drop_forged(self) -> None:
        """Drop manifests with a higher number than the database's newest one."""
        newest = max(self._on_record, default=None)
        for sequence in sorted(self._found, reverse=True):
            if sequence < 1 or (newest is not None and sequence > newest):
                for name in self._found.pop(sequence):
                    self._note(STRAY, name, "this database has not planned it")

    def _note_gap(self, first: int, last: int) -> None:
        """Note that the numbers `first` to `last`, both inclusive, are missing."""
        until = f" to {last:06d}" if last > first else ""
        self._note(
            MISSING, f"audit_manifest_{first:06d}{until}", "the chain is broken here"
        )

    def _read_one(self, sequence: int, voucher: _Voucher | None) -> _Voucher | None:
        """Check one manifest; return the voucher that it has for the one before."""
        names = self._found.get(sequence, [])
        wanted = voucher.name if voucher else next(iter(names), "")
        for name in names:
            if name != wanted:
                self._note(STRAY, name, f"number {sequence} is {wanted}")
        if wanted not in names:
            return self._read_missing(sequence, wanted)
        body = read_body(self._store, wanted)
        if voucher and sha256_of(body) != voucher.sha256:
            self._note(CHANGED, wanted, f"{voucher.who} has another hash of it")
            if record := self._on_record.get(sequence):
                return self._take(parse_manifest(record.body.encode()))
            return self._take_if_readable(body, wanted, is_doubtful=True)
        if voucher and not voucher.is_trusted:
            self._note(CHANGED, wanted, f"only {voucher.who} vouches for it")
            return self._take_if_readable(body, wanted, is_doubtful=True)
        return self._take_if_readable(body, wanted, is_doubtful=False)

    def _read_missing(self, sequence: int, wanted: str) -> _Voucher | None:
        record = self._on_record.get(sequence)
        if record is None or record.is_written:
            shown = wanted or f"audit_manifest_{sequence:06d}"
            self._note(MISSING, shown, "the chain is broken here")
        if record is None:
            return None
        # The database has the text of the manifest, so its objects can be checked.
        manifest = parse_manifest(record.body.encode())
        if not record.is_written:
            self._chain.unlisted.update(entry.name for entry in manifest.objects)
        return self._take(manifest)

    def _take_if_readable(
        self, body: bytes, name: str, *, is_doubtful: bool
    ) -> _Voucher | None:
        try:
            manifest = parse_manifest(body)
            if manifest.name != name:
                raise ValueError(f"it was written as {manifest.name}")
            if manifest.sequence != sequence_of(name):
                raise ValueError(f"it was written as number {manifest.sequence}")
        except ValueError as error:
            if not is_doubtful:  # else it was noted as changed already
                self._note(CHANGED, name, str(error))
            return None
        return self._take(manifest, is_doubtful=is_doubtful)

    def _take(
        self, manifest: Manifest, *, is_doubtful: bool = False
    ) -> _Voucher | None:
        chain = self._chain
        chain.manifests.append(manifest)
        if not is_doubtful:
            self._removed.update(manifest.removed)
        for entry in manifest.objects:
            chain.entries[entry.name] = entry
            chain.listed_at[entry.name] = manifest.created_at
            if is_doubtful:
                chain.doubtful.add(entry.name)
        if not manifest.previous_name:
            return None
        return _Voucher(
            manifest.previous_name,
            manifest.previous_sha256,
            manifest.name,
            is_trusted=not is_doubtful,
        )

    def _note(self, status: str, name: str, detail: str) -> None:
        self._chain.findings.append(Finding(status, name, detail))

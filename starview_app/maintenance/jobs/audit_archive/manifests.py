"""The manifests: a chain that reveals removed, swapped or edited objects.

Each run that archives or removes something adds a manifest to the store. It lists what
was written and removed, with hashes, and has the hash of the manifest before it, as
CloudTrail's digest files do. So each manifest vouches for the one before it, and the
database for the newest.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import IntegrityError, connection, transaction

from starview_app.maintenance.database_errors import is_taken
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.format import moment_text
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores.base import (
    ObjectExistsError,
    Store,
)

VERSION = 1
_NAME = re.compile(r"audit_manifest_([0-9]{6,})_[0-9]{8}_[0-9]{6}\.json")
# The most segments in one manifest; the next one lists the rest.
MANIFEST_SEGMENTS = 10_000
PLAN_LOCK_TIMEOUT = "10s"
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 0))"
# A list of 100,000 objects is smaller: a larger object is not a manifest.
MANIFEST_BYTES = 64 << 20
State = AuditArchive.State


@dataclass(frozen=True)
class ManifestWritten:
    """A manifest is in the store, and was read back and compared."""

    name: str


@dataclass(frozen=True)
class Entry:
    """An object as a manifest lists it. Its ends are inclusive.

    If it `is_adopted`, the web service's first version has written it.
    """

    name: str
    size_bytes: int
    sha256: str
    rows: int
    first_id: int
    first_timestamp: datetime
    last_id: int
    last_timestamp: datetime
    is_adopted: bool = False


@dataclass(frozen=True)
class Manifest:
    name: str
    sequence: int
    created_at: datetime
    previous_name: str
    previous_sha256: str
    objects: tuple[Entry, ...]
    removed: tuple[str, ...]


def is_manifest(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def sequence_of(name: str) -> int:
    """Return the number in a manifest's name; raise ValueError for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no manifest's name")
    return int(match.group(1))


# -- writing --------------------------------------------------------------------------


def plan_manifest(
    *, location: str, now: datetime, removed: Sequence[AuditArchive] = ()
) -> AuditManifest | None:
    """Record the text of the next manifest in the database; None if it would be empty.

    It lists archived segments without a manifest, and the segments `removed`, whose
    objects are gone and whose state becomes `removed` with this commit. One manifest
    may not hold all, so call this until it returns None. If several runs plan at the
    same time, each gets its own number, and each segment is in one manifest.
    """
    while True:
        try:
            return _plan_once(location, now, [record.pk for record in removed])
        except IntegrityError as error:
            if not is_taken(error):
                raise


def _plan_once(
    location: str, now: datetime, removed_ids: Sequence[int]
) -> AuditManifest | None:
    records = AuditArchive.objects.filter(location=location).order_by("id")
    with transaction.atomic(), connection.cursor() as cursor:
        # Another run plans within a moment; one that is suspended may take for ever.
        cursor.execute(f"SET LOCAL lock_timeout = '{PLAN_LOCK_TIMEOUT}'")
        unlisted = records.filter(state=State.ARCHIVED, manifest=None)
        archived = list(unlisted.select_for_update()[:MANIFEST_SEGMENTS])
        removing = records.filter(pk__in=removed_ids, state=State.REMOVING)
        removed = list(removing.select_for_update())
        if not archived and not removed:
            return None
        previous = (
            AuditManifest.objects.filter(location=location).order_by("sequence").last()
        )
        manifest = _manifest(location, now, previous, archived, removed)
        manifest.save()
        ids = [record.pk for record in archived]
        records.filter(pk__in=ids).update(manifest=manifest)
        ids = [record.pk for record in removed]
        records.filter(pk__in=ids).update(state=State.REMOVED)
    return manifest


def write_manifests(
    store: Store, *, is_shared: bool = False
) -> Iterator[AuditManifest]:
    """Write each planned manifest to the store, read it back, compare it, and yield it.

    If the work `is_shared`, a manifest that another process is writing is skipped.
    Raises JobError if the store has something else under its name or returns something
    else; StoreError.
    """
    planned = AuditManifest.objects.filter(location=store.location, is_written=False)
    for manifest in planned.order_by("sequence"):
        if not is_shared:
            _write(store, manifest)
        elif not _write_unless_another_does(store, manifest):
            continue
        # In a transaction of its own: a run that is suspended must not hold the row.
        manifest.is_written = True
        manifest.save(update_fields=["is_written"])
        yield manifest


def _write_unless_another_does(store: Store, manifest: AuditManifest) -> bool:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        key = f"starview-maintenance:audit_archives:manifest:{manifest.pk}"
        cursor.execute(_TRY_LOCK, {"key": key})
        (is_ours,) = cursor.fetchone()
        if is_ours:
            _write(store, manifest)
    return bool(is_ours)


def _write(store: Store, manifest: AuditManifest) -> None:
    """Write one manifest to the store.

    Every run writes the same text under this name, so a run that was suspended and goes
    on after another one has written the manifest does no harm.
    """
    store.discard_unfinished(manifest.name)
    body = manifest.body.encode()
    try:
        with store.writer(manifest.name) as target:
            target.write(body)
    except ObjectExistsError:
        found = read_body(store, manifest.name)
        if found != body:
            _refuse_strangers(manifest, found)
            with store.writer(manifest.name, overwrite=True) as target:
                target.write(body)
    if read_body(store, manifest.name) != body:
        raise JobError(f"{manifest.name} came back from the store changed")


def _refuse_strangers(manifest: AuditManifest, found: bytes) -> None:
    """Raise JobError if the object found under the name is not this manifest.

    With a different text it may still be this manifest, incompletely written.
    """
    created_at = json.loads(manifest.body)["created_at"]
    if created_at.encode() not in found:
        raise JobError(
            f"{manifest.name} is in the store with another content HINT: another"
            " deployment uses this bucket, give each its own; or remove that object"
        )


def _manifest(
    location: str,
    now: datetime,
    previous: AuditManifest | None,
    archived: Sequence[AuditArchive],
    removed: Sequence[AuditArchive],
) -> AuditManifest:
    sequence = previous.sequence + 1 if previous else 1
    name = f"audit_manifest_{sequence:06d}_{now.astimezone(UTC):%Y%m%d_%H%M%S}.json"
    content = {
        "starview_audit_manifest": VERSION,
        "name": name,
        "sequence": sequence,
        "created_at": moment_text(now),
        "previous": (
            {"name": previous.name, "sha256": previous.sha256} if previous else None
        ),
        "objects": [entry for record in archived for entry in record.objects_written],
        "removed": [name for record in removed for name in record.names],
    }
    body = json.dumps(content, indent=1) + "\n"
    return AuditManifest(
        location=location,
        sequence=sequence,
        name=name,
        body=body,
        sha256=sha256_of(body.encode()),
    )


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- reading --------------------------------------------------------------------------


def read_body(store: Store, name: str) -> bytes:
    """Read at most MANIFEST_BYTES: under this name there may be any object."""
    body = b""
    for piece in store.read(name):
        body += piece
        if len(body) > MANIFEST_BYTES:
            break
    return body


def parse_manifest(body: bytes) -> Manifest:
    """Parse the text of a manifest; raise ValueError for anything else."""
    try:
        content = json.loads(body)
        if content["starview_audit_manifest"] != VERSION:
            raise ValueError("a version that this program does not know")
        previous = content["previous"] or {"name": "", "sha256": ""}
        return Manifest(
            name=_text(content["name"]),
            sequence=_number(content["sequence"]),
            created_at=_moment(content["created_at"]),
            previous_name=_text(previous["name"]),
            previous_sha256=_text(previous["sha256"]),
            objects=tuple(parse_entry(entry) for entry in _list(content["objects"])),
            removed=tuple(_text(name) for name in _list(content["removed"])),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no manifest") from error


def as_listed(entry: Entry) -> dict[str, object]:
    """Return the entry as in a manifest, without the moment of an adoption."""
    return {
        "name": entry.name,
        "size_bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "rows": entry.rows,
        "first_id": entry.first_id,
        "first_timestamp": moment_text(entry.first_timestamp),
        "last_id": entry.last_id,
        "last_timestamp": moment_text(entry.last_timestamp),
    }


def parse_entry(content: dict[str, object]) -> Entry:
    """Raises KeyError, TypeError or ValueError if `content` is not an entry."""
    return Entry(
        name=_text(content["name"]),
        size_bytes=_number(content["size_bytes"]),
        sha256=_text(content["sha256"]),
        rows=_number(content["rows"]),
        first_id=_number(content["first_id"]),
        first_timestamp=_moment(content["first_timestamp"]),
        last_id=_number(content["last_id"]),
        last_timestamp=_moment(content["last_timestamp"]),
        is_adopted="adopted_at" in content,
    )


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _moment(value: object) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise TypeError
    return moment

"""The record of a backup, and the fence around its objects (docs/decisions/0020).

An object's name belongs to one record for ever, and only the run that opened the record
writes the object. It is removed only after the record is committed as abandoned or
removing, which is never taken back. So a run that is suspended between any two steps,
and goes on after others have, overwrites and removes nothing that is needed.
"""

import json
import secrets
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db import OperationalError, connection, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now
from psycopg2.errors import LockNotAvailable

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.database_backup.contents import Contents
from starview_app.maintenance.jobs.database_backup.transfer import SUFFIX, Digest
from starview_app.maintenance.models import Backup
from starview_app.maintenance.own_tables import unless_missing
from starview_app.maintenance.stores.base import (
    ObjectLockedError,
    ObjectMissingError,
    Store,
)

LOCK_TIMEOUT_MS = 10_000  # a suspended run may hold a row for ever
DESCRIPTION = ".json"  # follows the dump's name
_VERSION = 1
_LONGEST_DESCRIPTION = 16 << 20  # bytes
State = Backup.State


class Outcome(StrEnum):
    """The outcome for the objects of a record that were to be removed."""

    REMOVED = "removed"
    KEPT = "kept"  # a lock of the store keeps the objects; a later run removes them


def records(location: str) -> QuerySet[Backup]:
    return Backup.objects.filter(location=location)


def good_ones(location: str) -> list[Backup]:
    """Return the good backups, newest first; none if the table does not exist yet.

    In the order of their ids, since a clock may have been ahead once.
    """
    found = records(location).filter(state=State.GOOD)
    return unless_missing(found.order_by("-id"))


def open_backup(*, location: str, now: datetime, key: str, version: str) -> Backup:
    """Record a backup as open, before any of its objects is in the store."""
    # Random, since several databases may share the store.
    name = f"database_{now:%Y-%m-%dT%H%M%SZ}_{secrets.token_hex(8)}.dump"
    return Backup.objects.create(
        location=location,
        name=f"{name}{SUFFIX if key else ''}",
        started_at=now,
        server_version=version,
        is_encrypted=bool(key),
    )


def abandon(record: Backup) -> bool:
    """Abandon an open backup for ever; return False if it is not open any more."""
    mine = records(record.location).filter(pk=record.pk)
    if _change(mine.filter(state=State.OPEN), state=State.ABANDONED):
        return True
    return mine.filter(state=State.ABANDONED).exists()


def mark_good(record: Backup, sent: Digest, contents: Contents) -> None:
    """Mark a backup as good, unless another run has abandoned it: the fence."""
    opened = records(record.location).filter(pk=record.pk, state=State.OPEN)
    values = {
        "size_bytes": sent.size_bytes,
        "sha256": sent.sha256,
        "contents": contents,
    }
    if not _change(opened, state=State.GOOD, finished_at=Now(), **values):
        raise JobError(
            f"another run has given up {record.name}, or is about to, and it does"
            " not count"
            " HINT: run it again"
        )
    record.refresh_from_db()


def mark_removing(record: Backup) -> bool:
    """Mark a good backup as being removed, if there is a newer good one."""
    newer = records(record.location).filter(state=State.GOOD, pk__gt=OuterRef("pk"))
    due = records(record.location).filter(Exists(newer), pk=record.pk, state=State.GOOD)
    return _change(due, state=State.REMOVING)


def mark_removed(record: Backup) -> bool:
    removing = records(record.location).filter(pk=record.pk, state=State.REMOVING)
    return _change(removing, state=State.REMOVED)


def mark_lost(record: Backup) -> bool:
    good = records(record.location).filter(pk=record.pk, state=State.GOOD)
    return _change(good, state=State.LOST)


def mark_found(record: Backup) -> bool:
    lost = records(record.location).filter(pk=record.pk, state=State.LOST)
    return _change(lost, state=State.GOOD)


def mark_proved(record: Backup) -> bool:
    """Record that a drill has found the backup to be complete."""
    good = records(record.location).filter(pk=record.pk, state=State.GOOD)
    return _change(good, proved_at=Now())


def remove_objects(
    store: Store, record: Backup, listed: Collection[str]
) -> Outcome | None:
    """Remove the record's `listed` objects; return None if there are none.

    The record must be committed as abandoned or removing.
    """
    outcome = None
    store.discard_unfinished(record.name)
    # In this order: a dump without a description does not count as a backup.
    for name in (record.name, record.name + DESCRIPTION):
        if name not in listed:
            continue
        try:
            store.delete(name)
            outcome = outcome or Outcome.REMOVED
        except ObjectLockedError:
            return Outcome.KEPT
    return outcome


def write_description(
    store: Store, record: Backup, sent: Digest, contents: Contents
) -> None:
    """Write the description, for a restore without the database that has the record."""
    text = {
        "version": _VERSION,
        "name": record.name,
        "size_bytes": sent.size_bytes,
        "sha256": sent.sha256,
        "started_at": record.started_at.isoformat(),
        "server_version": record.server_version,
        "contents": contents,
    }
    name, body = record.name + DESCRIPTION, json.dumps(text, indent=1).encode()
    with store.writer(name) as target:
        target.write(body)
    if b"".join(store.read(name)) != body:
        raise JobError(f"{name} came back from the store changed")


def read_description(store: Store, name: str) -> Backup:
    """Return a record, not saved, from the description of the backup `name`."""
    body = b""
    try:
        for piece in store.read(name + DESCRIPTION):
            body += piece
            if len(body) > _LONGEST_DESCRIPTION:
                raise ValueError
        return _described(name, json.loads(body), store.location)
    except ObjectMissingError as error:
        raise JobError(
            f"there is no backup {name}: this database has none on record, and"
            f" the store no {name}{DESCRIPTION}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"{name}{DESCRIPTION} is no description of a backup") from error


# -- internal helpers -----------------------------------------------------------------


def _change(due: QuerySet[Backup], **values: Any) -> bool:
    """Change the one row; return False if it is not `due` or another run holds it.

    The next run then does what is left undone.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            return due.update(**values) == 1
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):
            return False
        raise


def _described(name: str, text: dict[str, Any], location: str) -> Backup:
    contents: Contents = {
        "tables": {
            str(table): [int(rows), str(checksum)]
            for table, (rows, checksum) in text["contents"]["tables"].items()
        },
        "sequences": {
            str(sequence): [before, after]
            for sequence, (before, after) in text["contents"]["sequences"].items()
        },
    }
    if text["version"] != _VERSION or text["name"] != name:
        raise ValueError
    return Backup(
        location=location,
        name=name,
        state=State.GOOD,
        started_at=datetime.fromisoformat(text["started_at"]),
        server_version=str(text["server_version"]),
        is_encrypted=name.endswith(SUFFIX),
        size_bytes=int(text["size_bytes"]),
        sha256=str(text["sha256"]),
        contents=contents,
    )

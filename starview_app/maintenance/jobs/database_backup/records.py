"""The record of a backup, and the fence around its objects (docs/decisions/0020).

An object's name belongs to one record for ever, and only the run that opened the record
writes it. It is removed only once the record is committed as abandoned or removing,
neither of which is taken back. So a run that sleeps between any two of its steps, and
wakes up when others have gone on, overwrites and removes nothing that is relied on.
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

LOCK_TIMEOUT_MS = 10_000  # a frozen run may hold a row for ever
DESCRIPTION = ".json"  # behind the dump's name
_VERSION = 1
_LONGEST_DESCRIPTION = 16 << 20  # bytes
State = Backup.State


class Outcome(StrEnum):
    """What became of the objects of a record."""

    REMOVED = "removed"
    KEPT = "kept"  # a lock of the store keeps them, for a later run to remove


def records(location: str) -> QuerySet[Backup]:
    return Backup.objects.filter(location=location)


def good_ones(location: str) -> list[Backup]:
    """The newest first; none where the tables are yet to be made."""
    found = records(location).filter(state=State.GOOD)
    return unless_missing(found.order_by("-started_at", "-id"))


def open_backup(*, location: str, now: datetime, key: str, version: str) -> Backup:
    """Remember a backup, before anything of it is in the store."""
    # Random, so that no other database that shares the store makes the same name.
    name = f"database_{now:%Y-%m-%dT%H%M%SZ}_{secrets.token_hex(8)}.dump"
    return Backup.objects.create(
        location=location,
        name=f"{name}{SUFFIX if key else ''}",
        started_at=now,
        server_version=version,
        is_encrypted=bool(key),
    )


def abandon(record: Backup) -> bool:
    """Give up an open backup for good; False when it has become good."""
    mine = records(record.location).filter(pk=record.pk)
    if _change(mine.filter(state=State.OPEN), state=State.ABANDONED):
        return True
    return mine.filter(state=State.ABANDONED).exists()


def mark_good(record: Backup, sent: Digest, contents: Contents) -> None:
    """The fence: one that another run has abandoned never counts."""
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
    """Only beside a newer good one: the last good backup never goes."""
    newer = records(record.location).filter(
        state=State.GOOD, started_at__gt=OuterRef("started_at")
    )
    due = records(record.location).filter(Exists(newer), pk=record.pk, state=State.GOOD)
    return _change(due, state=State.REMOVING)


def mark_removed(record: Backup) -> bool:
    removing = records(record.location).filter(pk=record.pk, state=State.REMOVING)
    return _change(removing, state=State.REMOVED)


def mark_lost(record: Backup) -> bool:
    good = records(record.location).filter(pk=record.pk, state=State.GOOD)
    return _change(good, state=State.LOST)


def mark_proved(record: Backup) -> bool:
    """A drill has found everything in it."""
    good = records(record.location).filter(pk=record.pk, state=State.GOOD)
    return _change(good, proved_at=Now())


def remove_objects(
    store: Store, record: Backup, listed: Collection[str]
) -> Outcome | None:
    """Remove what is `listed` under its names; None when nothing is.

    Only of a record that is committed as abandoned or removing.
    """
    outcome = None
    store.discard_unfinished(record.name)
    # The description last: without it nobody takes a dump for a backup.
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
    """What a restore goes by when the database with the records is gone."""
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
    """A record, not saved, of what the store says of the backup `name`."""
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
    """Whether the one row was changed; not when another run holds it, perhaps frozen.

    What is left undone then, the next run does.
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

"""Security events by type, from the audit log and, for archived rows, the archive.

The archive's objects are read as streams, and count only if their bytes have the hash
in the chain of manifests. An error here does not fail the report: the numbers are then
unknown, and the reason is reported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from django.db import connection

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.analytics.figures import Figure, bounds, within
from starview_app.maintenance.jobs.analytics.period import Period
from starview_app.maintenance.jobs.audit_archive import first_version
from starview_app.maintenance.jobs.audit_archive.chain import (
    STRAY,
    has_records,
    nothing_here,
    read_chain,
    take_inventory,
)
from starview_app.maintenance.jobs.audit_archive.first_version import (
    NotReadableError,
    lines_of,
)
from starview_app.maintenance.jobs.audit_archive.format import kind_of
from starview_app.maintenance.jobs.audit_archive.manifests import Entry
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Source,
    TooLargeError,
    bounded,
)
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.stores.base import Store, StoreError
from starview_app.maintenance.text import one_line

ALWAYS_SHOWN = (
    "login_failed",
    "login_locked",
    "permission_denied",
    "access_forbidden",
    "password_changed",
    "password_reset_requested",
    "password_reset_failed",
    "registration_failed",
)
LOGIN = "login_success"
MOST_TYPES = 40
BATCH_ROWS = 5_000
OTHER_LINES = 2  # the head and the tail of an object

_EVENTS = f"""
    SELECT event_type, {within("timestamp")}
    FROM starview_app_auditlog
    WHERE timestamp >= %(before)s AND timestamp < %(end)s
    GROUP BY event_type
"""
# Rows with a date before 1900 are mistakes, and are never archived.
_OLDEST = """
    SELECT min(timestamp)
    FROM starview_app_auditlog
    WHERE timestamp > '1900-01-01'
"""
_WAS_ARCHIVED = """
    SELECT EXISTS (
        SELECT FROM maintenance_auditarchive
        WHERE
            state = ANY(%(states)s)
            AND first_timestamp < %(end)s
            AND last_timestamp >= %(start)s
    )
"""
_REMOVED = ("removing", "removed")
_IN_THE_TABLE = "SELECT id FROM starview_app_auditlog WHERE id = ANY(%(ids)s)"

_NOT_ROWS = (
    TooLargeError,
    NotReadableError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
)

OpenStore = Callable[[], Store]
Event = tuple[int, datetime, str, int | None]  # id, moment, type, id of a log-in's user


@dataclass
class Tally:
    """The events of one period by type, and the users with archived log-ins."""

    events: Counter[str] = field(default_factory=Counter)
    logins: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Security:
    """The events by type, and a text about the source of the numbers."""

    events: tuple[Figure, ...]
    notes: tuple[str, ...]
    # Ids of accounts with a log-in that only the archive has: (this period, before).
    archived_logins: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    # Periods for which the archive could not be read.
    unknown: tuple[Period, ...] = ()

    def figure(self, name: str) -> Figure:
        found = (figure for figure in self.events if figure.name == name)
        return next(found, Figure(name, *self.none))

    @property
    def none(self) -> tuple[int | None, int | None]:
        """The numbers of a type without events: 0, or None if the period is unknown."""
        known = self.events[0] if self.events else Figure("", 0, 0)
        return (
            None if known.this is None else 0,
            None if known.before is None else 0,
        )


def security_events(
    period: Period, *, open_store: OpenStore, should_stop: ShouldStop
) -> Security:
    """Count both periods. The caller's transaction must have one snapshot.

    Otherwise a row that is archived meanwhile could be counted twice. `open_store` is
    called if the table may not have all rows; it may raise JobError.
    """
    counting = _Counting(period)
    counting.take_table()
    unsure = [part for part in counting.parts if _reaches_back(part)]
    if unsure:
        try:
            counting.take_archive(open_store(), unsure, should_stop)
        except (StoreError, JobError) as error:
            counting.give_up(unsure, str(error))
    return counting.result()


@dataclass
class _Counting:
    period: Period
    this: Tally = field(default_factory=Tally)
    before: Tally = field(default_factory=Tally)
    # Why a period is not known, the newest reason last.
    unknown: dict[Period, str] = field(default_factory=dict)
    archived_rows: int = 0

    @property
    def parts(self) -> list[Period]:
        return [self.period, self.period.before]

    def take_table(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_EVENTS, bounds(self.period))
            for name, this, before in cursor.fetchall():
                self.this.events[name], self.before.events[name] = this, before

    def give_up(self, parts: Iterable[Period], reason: str) -> None:
        for part in parts:
            self.unknown.setdefault(part, one_line(reason))

    def take_archive(
        self, store: Store, parts: list[Period], should_stop: ShouldStop
    ) -> None:
        inventory = take_inventory(store)
        chain = read_chain(store, inventory)
        if problem := nothing_here(store, chain, inventory):
            raise JobError(problem)
        read = {manifest.name for manifest in chain.manifests}
        for finding in chain.findings:
            if finding.status != STRAY and finding.name not in read:
                self.give_up(parts, f"{finding.name} is {finding.status}")
        self._give_up_what_is_gone(parts)
        for name in inventory.sizes.keys() - chain.entries.keys():
            self._give_up_what_is_not_adopted(name, parts)
        entries = [entry for entry in chain.entries.values() if self._concerns(entry)]
        seen: set[int] | None = set() if _overlap(entries) else None
        with_json = {_stem(entry) for entry in entries if kind_of(entry.name) == "json"}
        for entry in sorted(entries, key=lambda entry: entry.name):
            concerned = [part for part in parts if _overlaps(entry, part)]
            if kind_of(entry.name) != "json":
                if _stem(entry) not in with_json:
                    self.give_up(concerned, f"{entry.name} is text for people only")
            elif entry.name in chain.doubtful:
                self.give_up(concerned, f"the manifest of {entry.name} was changed")
            else:
                self._take_object(store, entry, concerned, seen, should_stop)

    def _give_up_what_is_gone(self, parts: list[Period]) -> None:
        gone = [part for part in parts if _was_archived(part, *_REMOVED)]
        self.give_up(gone, "an archive of that time was removed")

    def _give_up_what_is_not_adopted(self, name: str, parts: list[Period]) -> None:
        """An archive of the first version is in no manifest until it is adopted."""
        if dates := first_version.dates_of(name):
            first, last = dates
            concerned = [
                part
                for part in parts
                if first < part.end.date() and last >= part.start.date()
            ]
            self.give_up(concerned, f"{name} is not adopted: adopt_audit_archives")

    def _concerns(self, entry: Entry) -> bool:
        return any(_overlaps(entry, part) for part in self.parts)

    def _take_object(
        self,
        store: Store,
        entry: Entry,
        concerned: list[Period],
        seen: set[int] | None,
        should_stop: ShouldStop,
    ) -> None:
        """Count the object's rows, if its bytes are those that were archived."""
        pieces = bounded(store.read(entry.name), entry.size_bytes)
        most_lines = None if entry.is_adopted else entry.rows + OTHER_LINES
        source = Source(entry.name, pieces, should_stop, most_lines=most_lines)
        this, before = Tally(), Tally()
        try:
            lines = lines_of(source) if entry.is_adopted else _lines(source)
            for batch in _batches(_events(lines)):
                for _, moment, name, member in self._unseen(batch, seen):
                    tally = this if moment >= self.period.start else before
                    tally.events[name] += 1
                    if member is not None:
                        tally.logins.add(member)
        except StoreError as error:
            self.give_up(concerned, f"{entry.name}: {error}")
            return
        except _NOT_ROWS:
            self.give_up(concerned, f"{entry.name} cannot be read")
            return
        if source.digest().sha256 != entry.sha256:
            self.give_up(concerned, f"{entry.name} is not what was archived")
            return
        for whole, part in ((self.this, this), (self.before, before)):
            whole.events += part.events
            whole.logins |= part.logins
            self.archived_rows += part.events.total()

    def _unseen(self, batch: list[Event], seen: set[int] | None) -> list[Event]:
        """Return the events of the periods that were not counted elsewhere."""
        events = [
            event
            for event in batch
            if self.period.before.start <= event[1] < self.period.end
        ]
        with connection.cursor() as cursor:
            cursor.execute(_IN_THE_TABLE, {"ids": [number for number, *_ in events]})
            known = {number for (number,) in cursor.fetchall()}
        if seen is not None:
            known |= seen & {number for number, *_ in events}
            seen.update(number for number, *_ in events)
        return [event for event in events if event[0] not in known]

    def result(self) -> Security:
        this_events, earlier = self.this.events, self.before.events
        found = sorted(
            {*this_events, *earlier} - set(ALWAYS_SHOWN),
            key=lambda name: (-this_events[name] - earlier[name], name),
        )
        names = [*ALWAYS_SHOWN, *found[:MOST_TYPES]]
        this, before = (part in self.unknown for part in self.parts)
        return Security(
            events=tuple(
                Figure(
                    one_line(name),
                    None if this else this_events[name],
                    None if before else earlier[name],
                )
                for name in names
            ),
            notes=tuple(self._notes()),
            archived_logins=(
                frozenset(self.this.logins),
                frozenset(self.before.logins),
            ),
            unknown=tuple(self.unknown),
        )

    def _notes(self) -> Iterator[str]:
        if self.archived_rows:
            yield (
                f"{self.archived_rows} of these events are from the archive, the others"
                " from the audit log."
            )
        else:
            yield "From the audit log."
        for part, reason in self.unknown.items():
            yield f"Not known for {part.name}: {reason}"


def _reaches_back(part: Period) -> bool:
    """Whether rows of the period may have been archived."""
    with connection.cursor() as cursor:
        cursor.execute(_OLDEST)
        (oldest,) = cursor.fetchone()
    if oldest is None or part.start < oldest:
        return True
    return _was_archived(part, "archived", *_REMOVED)


def _was_archived(part: Period, *states: str) -> bool:
    """Whether rows of the period are in an archive that is in one of these states."""
    if not has_records():
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            _WAS_ARCHIVED,
            {"states": [*states], "start": part.start, "end": part.end},
        )
        return bool(cursor.fetchone() == (True,))


def _overlaps(entry: Entry, part: Period) -> bool:
    return entry.first_timestamp < part.end and entry.last_timestamp >= part.start


def _overlap(entries: list[Entry]) -> bool:
    """Whether two objects may have the same row, for example after a restore."""
    found = sorted(
        (entry for entry in entries if kind_of(entry.name) == "json"),
        key=lambda entry: (entry.first_timestamp, entry.first_id),
    )
    return any(
        later.first_timestamp <= earlier.last_timestamp
        for earlier, later in zip(found, found[1:], strict=False)
    )


def _stem(entry: Entry) -> str:
    return entry.name.removesuffix(".gz").rpartition(".")[0]


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the rows of an object of this project, without its head and tail."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.rstrip(b",") for line in lines if line.startswith(b'{"id":'))


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Parse rows. Raises ValueError and KeyError for other lines."""
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        moment = datetime.fromisoformat(row["timestamp"])
        if type(row["id"]) is not int or moment.tzinfo is None:
            raise ValueError
        name, member = str(row["event_type"]), row["user_id"]
        is_login = name == LOGIN and row["success"] and type(member) is int
        yield row["id"], moment, name, member if is_login else None


def _batches(events: Iterator[Event]) -> Iterator[list[Event]]:
    while batch := list(islice(events, BATCH_ROWS)):
        yield batch

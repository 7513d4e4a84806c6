"""Security events by type: from the audit log, and from the archive for the rest.

The archive's objects are read in a stream, and count only when their bytes have the
hash that the chain of manifests lists. Nothing here fails the report: what cannot be
read is not known, with the reason.
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
OTHER_LINES = 2  # an object's head and tail

_EVENTS = f"""
    SELECT event_type, {within("timestamp")}
    FROM starview_app_auditlog
    WHERE timestamp >= %(before)s AND timestamp < %(end)s
    GROUP BY event_type
"""
# A row dated before 1900 is a slip, and never archived.
_OLDEST = """
    SELECT min(timestamp)
    FROM starview_app_auditlog
    WHERE timestamp > '1900-01-01'
"""
_WAS_ARCHIVED = """
    SELECT EXISTS (
        SELECT FROM maintenance_auditarchive
        WHERE
            state = 'archived'
            AND first_timestamp < %(end)s
            AND last_timestamp >= %(start)s
    )
"""
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
Event = tuple[int, datetime, str, int | None]  # id, moment, type, who logged in


@dataclass
class Tally:
    """Of one period: events by type, and whose log-ins the archive has."""

    events: Counter[str] = field(default_factory=Counter)
    logins: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Security:
    """Each type of event, and in words where the numbers come from."""

    events: tuple[Figure, ...]
    notes: tuple[str, ...]
    # Ids of accounts with a log-in that is in the archive only: this period, before.
    archived_logins: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    # Periods of which the archive could not be read.
    unknown: tuple[Period, ...] = ()

    def figure(self, name: str) -> Figure:
        found = (figure for figure in self.events if figure.name == name)
        return next(found, Figure(name, *self.none))

    @property
    def none(self) -> tuple[int | None, int | None]:
        """What a type without an event has: 0, where that is known."""
        known = self.events[0] if self.events else Figure("", 0, 0)
        return (
            None if known.this is None else 0,
            None if known.before is None else 0,
        )


def security_events(
    period: Period, *, open_store: OpenStore, should_stop: ShouldStop
) -> Security:
    """Count both periods. To be called in a transaction that sees one moment only.

    So a row that is archived meanwhile is not counted twice. `open_store` is called
    when the table may not have all rows; it may raise JobError.
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
    # Why a part is not known, the newest reason last.
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
        """Count its rows, unless it is not what was archived."""
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
        """Those of the period that neither the table nor another object has."""
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
    """Whether rows of it may have left the table."""
    with connection.cursor() as cursor:
        cursor.execute(_OLDEST)
        (oldest,) = cursor.fetchone()
        if oldest is None or part.start < oldest:
            return True
        if not has_records():
            return False
        cursor.execute(_WAS_ARCHIVED, {"start": part.start, "end": part.end})
        return bool(cursor.fetchone() == (True,))


def _overlaps(entry: Entry, part: Period) -> bool:
    return entry.first_timestamp < part.end and entry.last_timestamp >= part.start


def _overlap(entries: list[Entry]) -> bool:
    """Whether two objects may have the same row: after a restore, for example."""
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
    """The rows of an object of ours: its head and its tail are none."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.rstrip(b",") for line in lines if line.startswith(b'{"id":'))


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Raises ValueError and KeyError for what is no row."""
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

"""Check the chain of manifests and the archived objects.

Nothing is changed, in the database or in the store.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.chain import (
    CHANGED,
    MISSING,
    STRAY,
    Chain,
    Finding,
    nothing_here,
    read_chain,
    take_inventory,
    was_removed,
)
from starview_app.maintenance.jobs.audit_archive.manifests import Entry, is_manifest
from starview_app.maintenance.jobs.audit_archive.transfer import (
    Digest,
    Source,
    StopRequested,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.stores.base import (
    ObjectMissingError,
    Store,
    StoreError,
)

GOOD = "good"
BY_SIZE = "by size"
# Two at a time: one object is hashed while the store sends the other.
READ_AT_A_TIME = 2

_COUNTS = (
    *("manifests", GOOD, "by_size", MISSING, CHANGED, "stray", "read", "unlisted"),
)
_Reading = Future[Digest]


@dataclass(frozen=True)
class ChainRead:
    """The chain was read.

    `is_on_record`: the database has the newest manifest, so that missing ones at the
    end would be noticed. `expected` is the number of objects that should be in the
    store, `to_read` that of objects that are read, `unlisted` that of objects which no
    manifest in the store lists yet.
    """

    manifests: int
    is_on_record: bool
    expected: int
    to_read: int
    unlisted: int


Event = ChainRead | Finding
Report = Callable[[Event], None]


def verify_audit_archives(
    *,
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    since: datetime | None = None,
    sample: int | None = None,
) -> JobResult:
    """Report for each object whether it is good, missing, changed or stray.

    All manifests are checked, and every object that they or the database vouch for.
    Objects that were listed before `since` are left out. Of the others, `sample`
    objects, chosen at random, are read back, and the rest are checked by presence and
    size (`by_size`); without `sample` all are read. Segments that are not finished are
    left out, since their rows are in the table. Objects whose removal has begun may be
    present or not.

    Counts: manifests, good, by_size, missing, changed, stray, read, unlisted. Each
    object that is neither good nor counted by size is a problem. Raises JobError if the
    store cannot be read.
    """
    try:
        return _Verification(store, report, should_stop).run(since, sample)
    except StoreError as error:
        raise JobError(f"the archives could not be verified: {error}") from error


class _Verification:
    def __init__(self, store: Store, report: Report, should_stop: ShouldStop) -> None:
        self._store = store
        self._report = report
        self._should_stop = should_stop
        self._result = JobResult(dict.fromkeys(_COUNTS, 0))

    def run(self, since: datetime | None, sample: int | None) -> JobResult:
        inventory = take_inventory(self._store)
        sizes, unsettled = inventory.sizes, inventory.unsettled
        chain = read_chain(self._store, inventory)
        expected = [
            entry
            for name, entry in sorted(chain.entries.items())
            if (name not in unsettled or name in sizes)
            and (since is None or chain.listed_at[name] >= since)
        ]
        to_read = _chosen(expected, sample)
        manifests, unlisted = len(chain.manifests), len(chain.unlisted)
        self._result.counts |= {"manifests": manifests, "unlisted": unlisted}
        is_on_record = chain.is_on_record
        self._report(
            ChainRead(manifests, is_on_record, len(expected), len(to_read), unlisted)
        )
        for finding in chain.findings:
            self._note(finding)
        if problem := nothing_here(self._store, chain, inventory):
            self._result.problems.append(problem)
        try:
            with closing(self._read_ahead(expected, sizes, to_read)) as readings:
                for entry, reading in zip(expected, readings, strict=True):
                    if found := self._check(chain, entry, sizes, reading):
                        self._note(found)
        except StopRequested:
            self._result.interrupted = True
            return self._result
        for name in sorted(sizes):
            if not (is_manifest(name) or name in chain.entries or name in unsettled):
                self._note(Finding(STRAY, name, "not archived by this database"))
        return self._result

    def _read_ahead(
        self, expected: list[Entry], sizes: dict[str, int], to_read: set[str]
    ) -> Generator[_Reading | None]:
        """Yield a reading for each entry, in order, or None if it is not read.

        READ_AT_A_TIME objects are read at the same time.
        """
        is_over = threading.Event()
        begun: deque[_Reading | None] = deque()
        try:
            for entry in expected:
                is_read = entry.name in to_read
                if is_read and sizes.get(entry.name) == entry.size_bytes:
                    begun.append(self._begin(entry.name, is_over))
                else:
                    begun.append(None)
                if len(begun) == READ_AT_A_TIME:
                    yield begun.popleft()
            yield from begun
        finally:
            is_over.set()

    def _begin(self, name: str, is_over: threading.Event) -> _Reading:
        def should_stop() -> bool:
            return is_over.is_set() or self._should_stop()

        source = Source(name, self._store.read(name), should_stop)
        return _in_thread(source.read_all)

    def _check(
        self,
        chain: Chain,
        entry: Entry,
        sizes: dict[str, int],
        reading: _Reading | None,
    ) -> Finding | None:
        """Check one object; return None if a clean-up has removed it meanwhile."""
        if self._should_stop():
            raise StopRequested
        name = entry.name
        if name not in sizes:
            return Finding(MISSING, name, f"{entry.rows} rows")
        if sizes[name] != entry.size_bytes:
            detail = f"{sizes[name]} bytes instead of {entry.size_bytes}"
            return Finding(CHANGED, name, detail)
        if not reading:
            return Finding(BY_SIZE, name, f"{entry.rows} rows, not read")
        self._result.counts["read"] += 1
        try:
            digest = reading.result()
        except ObjectMissingError:
            if was_removed(self._store, name):
                return None
            return Finding(MISSING, name, f"{entry.rows} rows")
        if (digest.sha256, digest.size_bytes) != (entry.sha256, entry.size_bytes):
            return Finding(CHANGED, name, "its content is not what was archived")
        if name in chain.doubtful:
            return Finding(CHANGED, name, "only a changed manifest lists it so")
        return Finding(GOOD, name, f"{entry.rows} rows")

    def _note(self, finding: Finding) -> None:
        self._report(finding)
        names = {STRAY: "stray", BY_SIZE: "by_size"}
        self._result.counts[names.get(finding.status, finding.status)] += 1
        if finding.status not in (GOOD, BY_SIZE):
            self._result.problems.append(f"{finding.name} is {finding.status}")


def _in_thread(read: Callable[[], Digest]) -> _Reading:
    """Begin a reading in a daemon thread, so that a store that does not answer cannot
    keep the process alive.
    """
    reading = _Reading()

    def run() -> None:
        try:
            reading.set_result(read())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            reading.set_exception(error)

    threading.Thread(target=run, name="read", daemon=True).start()
    return reading


def _chosen(entries: list[Entry], sample: int | None) -> set[str]:
    names = [entry.name for entry in entries]
    if sample is None or sample >= len(names):
        return set(names)
    return set(random.sample(names, sample))

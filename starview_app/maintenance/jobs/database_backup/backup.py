"""Back up the database to a store, check the backup, and remove old ones.

The dump passes from pg_dump to the store through memory. A backup is good after its
object was read back and compared, and pg_restore could list its contents.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from django.db import Error as DatabaseErrors
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.database_backup import records
from starview_app.maintenance.jobs.database_backup.contents import (
    Contents,
    as_contents,
    read_sequences,
    read_tables,
    rows_of,
    set_text_forms,
)
from starview_app.maintenance.jobs.database_backup.keep import Keep, kept
from starview_app.maintenance.jobs.database_backup.programs import (
    LOCK_WAIT_MS,
    PostgresPrograms,
)
from starview_app.maintenance.jobs.database_backup.records import State
from starview_app.maintenance.jobs.database_backup.transfer import (
    Digest,
    StopRequested,
    read_back,
    send,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import Backup
from starview_app.maintenance.own_tables import unless_missing
from starview_app.maintenance.stores.base import Store, StoreError


@dataclass(frozen=True)
class BackedUp:
    """The backup `record` is good: in the store, read back and compared."""

    record: Backup
    tables: int
    rows: int


@dataclass(frozen=True)
class Removed:
    name: str
    why: str  # "not kept any longer", "abandoned"


@dataclass(frozen=True)
class KeptByLock:
    """A lock of the store keeps the object; the next run tries again."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """An object of which this database has no record; it is not removed."""

    name: str


@dataclass(frozen=True)
class FoundAgain:
    """A lost backup is in the store again, with the hash on record: it is good."""

    name: str


Event = BackedUp | Removed | KeptByLock | Unknown | FoundAgain
Report = Callable[[Event], None]
_COUNTS = (
    *("backed_up", "tables", "rows", "size_bytes"),
    *("kept", "removed", "abandoned", "kept_by_lock", "unknown"),
)


def backup_database(
    *,
    now: datetime,
    store: Store,
    key: str,
    keep: Keep,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Make one backup, and remove the good backups that `keep` does not select.

    The dump is encrypted with `key` unless that is empty. Backups that earlier runs
    have left unfinished are abandoned and removed. The newest good backup is never
    removed, nor are objects of which this database has no record; objects that a lock
    of the store keeps are removed later. A recorded backup that is missing in the store
    is a problem, once.

    A dry run makes no backup: it counts those that would be kept and removed after one.

    Safe to kill, and safe to run at the same time as another. Raises JobError.
    """
    run = _Run(now, store, key, keep, report, should_stop, PostgresPrograms())
    run.programs.check()
    try:
        if dry_run:
            run.look()
        else:
            run.run()
    except StoreError as error:
        raise JobError(str(error)) from error
    except StopRequested:
        run.result.interrupted = True
    return run.result


class _Run:
    def __init__(
        self,
        now: datetime,
        store: Store,
        key: str,
        keep: Keep,
        report: Report,
        should_stop: ShouldStop,
        programs: PostgresPrograms,
    ) -> None:
        self.now, self.store, self.key, self.keep = now, store, key, keep
        self.report, self.should_stop, self.programs = report, should_stop, programs
        self.result = JobResult(dict.fromkeys(_COUNTS, 0))

    def look(self) -> None:
        good = records.good_ones(self.store.location)
        listed = self._listed()
        good = [record for record in good if record.name in listed]
        new = Backup(started_at=self.now, pk=max((r.pk for r in good), default=0) + 1)
        stay = {record.pk for record in kept([new, *good], self.keep)}
        self.result.counts["kept"] = len(stay)
        self.result.counts["removed"] = len(good) + 1 - len(stay)
        self._report_unknown(listed)

    def run(self) -> None:
        self._remove_unfinished()
        record = self._make()
        counts = self.result.counts
        tables, rows = len(record.contents["tables"]), rows_of(record.contents)
        counts |= {"backed_up": 1, "tables": tables, "rows": rows}
        counts["size_bytes"] = record.size_bytes
        self.report(BackedUp(record, tables, rows))
        self._remove_old()

    # -- one backup -----------------------------------------------------------------

    def _make(self) -> Backup:
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version")
            (version,) = cursor.fetchone()
        record = records.open_backup(
            location=self.store.location, now=self.now, key=self.key, version=version
        )
        try:
            sent, contents = self._dump(record)
            self._prove(record, sent)
            records.write_description(self.store, record, sent, contents)
            records.mark_good(record, sent, contents)
        except BaseException:
            # If the answer to the commit was lost, the record is not open any more, and
            # nothing is removed.
            with suppress(DatabaseErrors, StoreError):
                if records.abandon(record):
                    self._remove_objects(record)
            raise
        return record

    def _dump(self, record: Backup) -> tuple[Digest, Contents]:
        with _snapshot() as (cursor, snapshot):
            tables = read_tables(cursor)
            before = read_sequences(cursor)
            with (
                self.programs.dump(snapshot=snapshot) as program,
                self.store.writer(record.name) as target,
            ):
                sent = send(
                    program.stdout, target, key=self.key, should_stop=self.should_stop
                )
                program.wait_for_success()  # otherwise no object may appear
            return sent, as_contents(tables, before, read_sequences(cursor))

    def _prove(self, record: Backup, sent: Digest) -> None:
        with self.programs.list(keeps_output=False) as program:
            stored = read_back(
                self.store,
                record.name,
                program.stdin,
                key=self.key,
                should_stop=self.should_stop,
            )
            if stored != sent:
                raise JobError(
                    f"{record.name} came back from the store changed: sent"
                    f" {sent.size_bytes} bytes with SHA-256 {sent.sha256}, got"
                    f" {stored.size_bytes} bytes with {stored.sha256}"
                )
            program.wait_for_success()

    # -- what is removed ------------------------------------------------------------

    def _remove_unfinished(self) -> None:
        """Abandon open backups, and remove the objects of abandoned ones."""
        of_ours = records.records(self.store.location)
        for record in of_ours.filter(state=State.OPEN):
            records.abandon(record)
        listed = self._listed()
        for record in of_ours.filter(state=State.ABANDONED).order_by("id"):
            if self._is_gone(record, listed, "abandoned") and record.name in listed:
                self.result.counts["abandoned"] += 1

    def _remove_old(self) -> None:
        # In this order: what is on record as good was in the store before the listing,
        # also if another run makes a backup meanwhile.
        good = records.good_ones(self.store.location)
        listed = self._listed()
        good += self._find_again(listed)
        for record in good:
            if record.name not in listed and records.mark_lost(record):
                self.result.problems.append(
                    f"{record.name} is on record and not in the store HINT: find out"
                    " who removed it; this is said once"
                )
        there = [record for record in good if record.name in listed]
        stay = kept(there, self.keep)
        self.result.counts["kept"] = len(stay)
        for record in reversed(there):
            if record not in stay:
                records.mark_removing(record)
        removing = records.records(self.store.location).filter(state=State.REMOVING)
        for record in removing.order_by("started_at", "id"):
            if self.should_stop():
                raise StopRequested
            is_gone = self._is_gone(record, listed, "not kept any longer")
            if is_gone and records.mark_removed(record):
                self.result.counts["removed"] += 1
        self._report_unknown(listed)

    def _find_again(self, listed: set[str]) -> list[Backup]:
        """Mark lost backups as good that are in the store, as they were; return them.

        They are lost after a run that looked into another account's bucket.
        """
        found = []
        lost = records.records(self.store.location).filter(state=State.LOST)
        for record in lost.filter(name__in=listed).order_by("id"):
            stored = read_back(
                self.store,
                record.name,
                None,
                key=self.key,
                should_stop=self.should_stop,
            )
            if stored == (record.size_bytes, record.sha256):
                records.mark_found(record)
                self.report(FoundAgain(record.name))
                found.append(record)
        return found

    def _is_gone(self, record: Backup, listed: set[str], why: str) -> bool:
        """Remove the record's `listed` objects; return False if a lock keeps one."""
        outcome = records.remove_objects(self.store, record, listed)
        if outcome is records.Outcome.KEPT:
            self.result.counts["kept_by_lock"] += 1
            self.report(KeptByLock(record.name))
        elif outcome is records.Outcome.REMOVED:
            self.report(Removed(record.name, why))
        return outcome is not records.Outcome.KEPT

    def _listed(self) -> set[str]:
        return {found.name for found in self.store.objects()}

    def _remove_objects(self, record: Backup) -> None:
        names = {record.name, record.name + records.DESCRIPTION}
        records.remove_objects(self.store, record, names)

    def _report_unknown(self, listed: set[str]) -> None:
        ours = unless_missing(records.records(self.store.location))
        known = {record.name for record in ours}
        for name in sorted(listed):
            dump = name.removesuffix(records.DESCRIPTION)
            is_told = dump != name and dump in listed  # reported with its dump
            if dump not in known and not is_told:
                self.result.counts["unknown"] += 1
                self.report(Unknown(name))


@contextmanager
def _snapshot() -> Iterator[tuple[CursorWrapper, str]]:
    """Open a transaction that only reads, and export its snapshot's name."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # While the dump is sent the database session is idle.
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        # pg_dump waits as long for a table whose definition is being changed.
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
        set_text_forms(cursor)
        cursor.execute("SELECT pg_export_snapshot()")
        (snapshot,) = cursor.fetchone()
        yield cursor, snapshot

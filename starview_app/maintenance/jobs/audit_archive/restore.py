"""Restore archived audit rows to the table, unchanged.

An object is read twice: first to compare its size and hash with those in its manifest,
then into a temporary table, where it is hashed again. After that one statement moves
its rows into the audit log, in the same transaction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg2.errors import ForeignKeyViolation

from starview_app.maintenance.database_errors import message_of, refuses_rows
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.chain import (
    STRAY,
    Chain,
    nothing_here,
    read_chain,
    take_inventory,
)
from starview_app.maintenance.jobs.audit_archive.first_version import lines_of
from starview_app.maintenance.jobs.audit_archive.format import kind_of
from starview_app.maintenance.jobs.audit_archive.manifests import Entry
from starview_app.maintenance.jobs.audit_archive.restore_sql import (
    ARCHIVED_NAMES,
    COPY_LINES,
    LEAVE_OTHERS_OUT,
    MAKE_LINES,
    UNLINK,
    compare_sql,
    insert_rows,
    read_rows_sql,
    written,
)
from starview_app.maintenance.jobs.audit_archive.table import (
    KNOWN,
    SET_TEXT_FORMS,
    TABLE,
    Column,
    read_columns,
)
from starview_app.maintenance.jobs.audit_archive.transfer import (
    PiecesFile,
    Source,
    StopRequested,
    TooLargeError,
    bounded,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.stores.base import ObjectMissingError, Store, StoreError
from starview_app.maintenance.text import one_line

COPY_BYTES = 1 << 20
# If an account is deleted while its rows are restored, the next attempt restores them
# without the link to it.
ATTEMPTS = 3
# After so many failed reads in a row the store is taken to have failed, not the
# objects.
MOST_FAILURES = 3
# Lines of an object that are not rows: its head and its tail.
OTHER_LINES = 2
# A name without .gz, so that nothing is unpacked.
_AS_STORED = ""
BEGIN = datetime.min.replace(tzinfo=UTC)
END = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Restored:
    """One object was restored.

    `present` rows were in the table already, of which `differing` have other contents;
    `unlinked` rows belonged to accounts that no longer exist.
    """

    name: str
    rows: int
    present: int = 0
    differing: int = 0
    first_differing_id: int | None = None
    unlinked: int = 0


Report = Callable[[Restored], None]


class _RefusedError(Exception):
    """An object is missing or cannot be trusted; others are restored."""


def restore_audit_logs(
    *,
    store: Store,
    report: Report,
    should_stop: ShouldStop,
    name: str = "",
    since: datetime = BEGIN,
    until: datetime = END,
    dry_run: bool = False,
) -> JobResult:
    """Restore the object `name`, or every row from `since` to `until` (exclusive).

    Rows are restored with their ids and all fields unchanged, except for the link to an
    account that no longer exists. A row whose id is in the table is skipped; if its
    contents there differ, that is a problem. Each object is one transaction: it is
    restored completely or not at all, and running twice is safe. An object is refused
    if nothing vouches for it, if its bytes are not those listed, or if the table cannot
    take its rows; the others are restored. If two objects have the same row, a dry run
    counts it twice.

    Counts: objects, restored, skipped. Raises JobError.
    """
    run = _Restoration(
        store=store,
        report=report,
        should_stop=should_stop,
        since=since,
        until=until,
        dry_run=dry_run,
        result=JobResult({"objects": 0, "restored": 0, "skipped": 0}),
    )
    try:
        run.run(name)
    except StoreError as error:
        count = run.result.counts["restored"]
        raise JobError(
            f"{count} rows are restored, the rest failed: {error}"
        ) from error
    return run.result


@dataclass(frozen=True)
class _Restoration:
    store: Store
    report: Report
    should_stop: ShouldStop
    since: datetime
    until: datetime
    dry_run: bool
    result: JobResult

    def run(self, name: str) -> None:
        inventory = take_inventory(self.store)
        chain = read_chain(self.store, inventory)
        if problem := nothing_here(self.store, chain, inventory):
            raise JobError(f"nothing was restored: {problem}")
        entries = [self._listed(chain, name)] if name else self._between(chain)
        try:
            self._restore_each(chain, entries)
        except StopRequested:
            self.result.interrupted = True

    def _restore_each(self, chain: Chain, entries: list[Entry]) -> None:
        failures = 0
        for entry in entries:
            if self.should_stop():
                raise StopRequested
            try:
                self._restore(chain, entry)
                failures = 0
            except StoreError as error:
                failures += 1
                if failures == min(MOST_FAILURES, len(entries)):
                    raise
                self.result.problems.append(f"it could not be read: {error}")

    # -- which objects ------------------------------------------------------------

    def _listed(self, chain: Chain, name: str) -> Entry:
        entry = chain.entries.get(name)
        if entry and kind_of(name) == "json":
            return entry
        if entry:
            raise JobError(f"{name} is text for people HINT: {_json_of(chain, name)}")
        raise JobError(
            f"nothing was restored: no manifest lists {name!r} HINT:"
            " verify_audit_archives --sample=0 names every object"
        )

    def _between(self, chain: Chain) -> list[Entry]:
        """Return the JSON objects with rows of the period; a missing one is a problem.

        The newest object is first: its ids advance the counter beyond those of all the
        others, so that the web service cannot use one of them meanwhile.
        """
        entries = [
            entry
            for entry in chain.entries.values()
            if entry.first_timestamp < self.until and entry.last_timestamp >= self.since
        ]
        found = [entry for entry in entries if kind_of(entry.name) == "json"]
        has_json = {_stem(entry.name) for entry in found}
        read = {manifest.name for manifest in chain.manifests}
        self.result.problems += [
            *(
                f"{entry.name} has rows of these days, as text for people only, and"
                " cannot be restored"
                for entry in entries
                if _stem(entry.name) not in has_json
            ),
            *(
                f"{finding.name} is {finding.status}: what only it lists was not"
                " restored HINT: restore it from a copy of the bucket"
                for finding in chain.findings
                if finding.status != STRAY and finding.name not in read
            ),
        ]
        return sorted(
            found, key=lambda entry: (entry.last_timestamp, entry.name), reverse=True
        )

    # -- one object ---------------------------------------------------------------

    def _restore(self, chain: Chain, entry: Entry) -> None:
        try:
            if entry.name in chain.doubtful:
                raise _RefusedError(
                    f"{entry.name} is listed by a manifest that was changed, and was"
                    " not restored HINT: verify_audit_archives says which"
                )
            self._prove(entry)
            restored = self._restore_with_retries(entry)
        except ObjectMissingError:
            self.result.problems.append(
                f"{entry.name} is not in the store any more HINT: restore it from a"
                " copy of the bucket"
            )
        except _RefusedError as error:
            self.result.problems.append(str(error))
        else:
            self._count(restored)

    def _count(self, restored: Restored) -> None:
        counts = self.result.counts
        counts["objects"] += 1
        counts["restored"] += restored.rows - restored.present
        counts["skipped"] += restored.present
        if restored.differing:
            self.result.problems.append(
                f"{restored.differing} rows of {restored.name} are in the table with"
                " other contents and were left as they are, the first has id"
                f" {restored.first_differing_id} HINT: their ids were given to other"
                " events, or somebody changed them; the archive has them as they were"
            )
        self.report(restored)

    def _restore_with_retries(self, entry: Entry, attempts: int = ATTEMPTS) -> Restored:
        try:
            return self._restore_once(entry)
        except IntegrityError as error:
            if not isinstance(error.__cause__, ForeignKeyViolation):
                raise _refusal_by_table(entry, error) from error
            if attempts == 1:
                raise _RefusedError(
                    "accounts were deleted while their rows were restored, three times"
                    f" over, and nothing of {entry.name} was restored HINT: run the job"
                    " again later"
                ) from error
        except DatabaseError as error:
            if not refuses_rows(error):
                raise
            raise _refusal_by_table(entry, error) from error
        return self._restore_with_retries(entry, attempts - 1)

    def _restore_once(self, entry: Entry) -> Restored:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {TABLE} IN ACCESS SHARE MODE")
            cursor.execute(SET_TEXT_FORMS)
            cursor.execute(MAKE_LINES)
            self._copy(cursor, entry)
            columns = _archived_columns(cursor, entry)
            restored = self._prepare(cursor, columns, entry)
            if not restored.rows:
                return restored
            if not self.dry_run:
                inserted, altered = insert_rows(cursor, written(columns))
                if altered:
                    raise _RefusedError(
                        f"{altered} rows of {entry.name} did not come back as they"
                        f" were: a trigger on {TABLE} alters them; nothing of it was"
                        " restored HINT: disable it for the restore"
                    )
                restored = replace(restored, present=restored.rows - inserted)
            return self._compare(cursor, columns, restored)

    def _prove(self, entry: Entry) -> None:
        """Compare the object's size and hash with those listed; raise _RefusedError."""
        pieces = bounded(self.store.read(entry.name), entry.size_bytes)
        digest = Source(_AS_STORED, pieces, self.should_stop).read_all()
        if (digest.sha256, digest.size_bytes) != (entry.sha256, entry.size_bytes):
            raise _changed(entry, digest.sha256)

    def _copy(self, cursor: CursorWrapper, entry: Entry) -> None:
        """Copy the object's lines to the temporary table; compare the hash again."""
        pieces = bounded(self.store.read(entry.name), entry.size_bytes)
        most_lines = None if entry.is_adopted else entry.rows + OTHER_LINES
        source = Source(entry.name, pieces, self.should_stop, most_lines=most_lines)
        file = PiecesFile(lines_of(source) if entry.is_adopted else source)
        try:
            with connection.wrap_database_errors:  # Django does not know copy_expert
                cursor.copy_expert(COPY_LINES, file, COPY_BYTES)
        except DatabaseError:
            if isinstance(file.error, TooLargeError):
                raise _RefusedError(
                    f"{entry.name} has more than its {entry.rows} rows, or longer ones"
                    " than any archive has; nothing of it was restored HINT: whoever"
                    " wrote its manifest is not this job"
                ) from None
            if file.error:  # psycopg2 raises an error with only its text
                raise file.error from None
            raise
        digest = source.digest()
        if digest.sha256 != entry.sha256:
            raise _changed(entry, digest.sha256)

    def _prepare(
        self, cursor: CursorWrapper, columns: Sequence[Column], entry: Entry
    ) -> Restored:
        """Read the rows; drop those not asked for, and links to missing accounts."""
        cursor.execute(read_rows_sql(columns), {})
        if cursor.rowcount != entry.rows:
            raise _RefusedError(
                f"{entry.name} has {cursor.rowcount} rows instead of {entry.rows}"
            )
        cursor.execute(LEAVE_OTHERS_OUT, {"since": self.since, "until": self.until})
        rows = entry.rows - cursor.rowcount
        cursor.execute(UNLINK)
        return Restored(entry.name, rows, unlinked=cursor.rowcount)

    def _compare(
        self, cursor: CursorWrapper, columns: Sequence[Column], restored: Restored
    ) -> Restored:
        """Compare with the rows that were in the table already, if there are any."""
        if not self.dry_run and not restored.present:
            return restored
        cursor.execute(compare_sql(written(columns)), {})
        found, differing, first_id = cursor.fetchone()
        if not self.dry_run and found != restored.rows:
            raise _RefusedError(
                f"{restored.rows - found} rows of {restored.name} have a unique key"
                f" that other rows of {TABLE} have; nothing of it was restored"
                " HINT: remove those rows, or that key"
            )
        return replace(
            restored,
            present=found if self.dry_run else restored.present,
            differing=differing,
            first_differing_id=first_id,
        )


def _changed(entry: Entry, sha256: str) -> _RefusedError:
    return _RefusedError(
        f"{entry.name} is not what was archived, its SHA-256 is {sha256}"
        f" instead of {entry.sha256}; nothing of it was restored HINT: restore it"
        " from a copy of the bucket; verify_audit_archives looks at the rest"
    )


def _refusal_by_table(entry: Entry, error: DatabaseError) -> _RefusedError:
    return _RefusedError(
        f"{entry.name} has a row that {TABLE} does not take: {message_of(error)};"
        " nothing of it was restored HINT: give a new column a default, or widen it,"
        " and run it again"
    )


def _archived_columns(cursor: CursorWrapper, entry: Entry) -> list[Column]:
    """Return the columns of the table that the object's rows have.

    A column that was added to the table since then is left out, so it gets its default.
    """
    columns = read_columns(cursor)
    cursor.execute(ARCHIVED_NAMES, {})
    archived = [name for (name,) in cursor.fetchall()]
    unknown = set(archived) - {column.name for column in columns}
    missing = set(KNOWN) - set(archived) if archived else set()
    if unknown or missing:
        what = ", ".join(map(one_line, sorted(unknown or missing)))
        where = f"{TABLE} has not" if unknown else "it lacks"
        raise _RefusedError(
            f"{entry.name} cannot come back whole: column {what}, {where}; nothing of"
            " it was restored HINT: add the column to the table, as it was"
        )
    return [column for column in columns if column.name in archived]


def _json_of(chain: Chain, name: str) -> str:
    """Return a hint to restore the JSON object instead of the TXT object `name`."""
    for other in chain.entries:
        if _stem(other) == _stem(name) and kind_of(other) == "json":
            return f"restore {other}"
    return "its rows were archived as text only"


def _stem(name: str) -> str:
    """Return the common part of the names of a segment's JSON and TXT object."""
    return name.removesuffix(".gz").rpartition(".")[0]

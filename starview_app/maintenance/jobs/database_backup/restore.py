"""Restore a backup into an empty database, and check that it is complete."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg2
from django.db import connection
from psycopg2.extensions import connection as Connection

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.database_backup import records
from starview_app.maintenance.jobs.database_backup.contents import (
    Contents,
    differences,
    read_sequences,
    read_tables,
    rows_of,
    set_text_forms,
)
from starview_app.maintenance.jobs.database_backup.programs import (
    PostgresPrograms,
    connect,
)
from starview_app.maintenance.jobs.database_backup.records import (
    DESCRIPTION,
    State,
)
from starview_app.maintenance.jobs.database_backup.transfer import (
    Digest,
    StopRequested,
    is_encrypted,
    read_back,
    read_begin,
)
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import Backup
from starview_app.maintenance.own_tables import unless_missing
from starview_app.maintenance.stores.base import (
    ObjectMissingError,
    Store,
    StoreError,
)
from starview_app.maintenance.text import one_line

NEWEST = "newest"
# Tables, views and sequences that do not belong to an extension.
_COUNT_OWN = """
    SELECT count(*)
    FROM pg_catalog.pg_class AS found
    JOIN pg_catalog.pg_namespace AS schema ON schema.oid = found.relnamespace
    WHERE found.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
        AND schema.nspname <> 'information_schema'
        AND schema.nspname !~ '^pg_'
        AND NOT EXISTS (
            SELECT
            FROM pg_catalog.pg_depend
            WHERE classid = 'pg_catalog.pg_class'::regclass
                AND objid = found.oid
                AND deptype = 'e'
        )
"""


@dataclass(frozen=True)
class Chosen:
    """The backup to restore; without `is_on_record`, its description is used."""

    record: Backup
    is_on_record: bool


Report = Callable[[Chosen], None]


def restore_database(
    *,
    name: str,
    database: str,
    store: Store,
    key: str,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Restore the backup `name`, or NEWEST, into the empty `database` of the server.

    The database of DATABASE_URL is refused, and one that is not empty. The object is
    read twice: first its size and SHA-256 are compared with the record. If this
    database has no record, for example after its loss, the description beside the
    object is used. The restored database is compared with the record, row for row; a
    difference is a problem. A dry run ends before the restore.

    Counts: tables, rows, size_bytes. Raises JobError.
    """
    restorer = Restorer(store, key, should_stop, PostgresPrograms())
    result = JobResult({"tables": 0, "rows": 0, "size_bytes": 0})
    restorer.programs.check()
    try:
        record, is_on_record = _find(store, name)
        report(Chosen(record, is_on_record))
        restorer.check_target(database)
        restorer.check_object(record)
        if not dry_run:
            restorer.restore(record, database)
            result.problems += restorer.compare(record, database)
    except StoreError as error:
        raise JobError(str(error)) from error
    except StopRequested:
        result.interrupted = True
        return result
    contents: Contents = record.contents
    result.counts |= {
        "tables": len(contents["tables"]),
        "rows": rows_of(contents),
        "size_bytes": record.size_bytes,
    }
    return result


@dataclass(frozen=True)
class Restorer:
    """The steps of a restore. Each raises JobError, StoreError or StopRequested."""

    store: Store
    key: str
    should_stop: ShouldStop
    programs: PostgresPrograms

    def check_target(self, database: str) -> None:
        """Raise JobError if the database is missing, in use or not empty."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            (ours,) = cursor.fetchone()
        with session(database) as target, target.cursor() as asked:
            asked.execute("SELECT current_database()")
            if asked.fetchone() == (ours,):
                raise JobError(
                    f"{database} is the database of DATABASE_URL, and is never restored"
                    f" over HINT: createdb {database}_restored, restore into that, and"
                    " name it in DATABASE_URL"
                )
            asked.execute(_COUNT_OWN)
            (count,) = asked.fetchone() or (0,)
        if count:
            raise JobError(
                f"{database} is not empty: it has {count} tables, views or sequences"
                " HINT: createdb a new one, and restore into that"
            )

    def check_object(self, record: Backup) -> None:
        """Read the object and compare its bytes with the record."""
        if is_encrypted(record.name) and not self.key:
            raise JobError(
                f"{record.name} is encrypted and there is no key HINT: set"
                " BACKUP_ENCRYPTION_KEY to the key that was set when it was made"
            )
        try:
            self._compare_digest(record, self._read(record, None))
        except ObjectMissingError as error:
            raise JobError(
                f"{record.name} is not in the store any more HINT: restore another one"
            ) from error

    def restore(self, record: Backup, database: str) -> None:
        restore = self.programs.restore(database, self._entries(record))
        with restore.program as program:
            self._compare_digest(record, self._read(record, program))
            restore.wait_for_success()

    def compare(self, record: Backup, database: str) -> list[str]:
        """Return the differences between `database` and the record."""
        with session(database) as target, target.cursor() as cursor:
            set_text_forms(cursor)
            tables, sequences = read_tables(cursor), read_sequences(cursor)
        return [
            f"{database}: {one_line(text)}"
            for text in differences(record.contents, tables, sequences)
        ]

    # -- internal helpers ---------------------------------------------------------

    def _read(self, record: Backup, program: object) -> Digest:
        return read_back(
            self.store,
            record.name,
            getattr(program, "stdin", None),
            key=self.key,
            should_stop=self.should_stop,
        )

    def _entries(self, record: Backup) -> bytes:
        """Return the dump's table of contents, from its begin."""
        with self.programs.list(keeps_output=True) as program:
            read_begin(
                self.store,
                record.name,
                program.stdin,
                key=self.key,
                should_stop=self.should_stop,
            )
            program.wait_for_success()
            return program.output

    def _compare_digest(self, record: Backup, stored: Digest) -> None:
        if stored != (record.size_bytes, record.sha256):
            raise JobError(
                f"{record.name} is not what was backed up: {stored.size_bytes} bytes"
                f" with SHA-256 {stored.sha256} instead of {record.size_bytes} with"
                f" {record.sha256} HINT: restore another one, and find out who"
                " changed it"
            )


@contextmanager
def session(database: str) -> Iterator[Connection]:
    """Open a transaction in another database of the server."""
    try:
        opened = connect(database)
    except psycopg2.OperationalError as error:
        text = one_line(" ".join(str(error).split()))
        raise JobError(
            f"{database}: {text} HINT: does it exist? createdb {database}"
        ) from error
    with connection.wrap_database_errors, closing(opened):
        yield opened


def _find(store: Store, name: str) -> tuple[Backup, bool]:
    """Return the backup `name`, and whether this database has a record of it."""
    if name == NEWEST:
        if good := records.good_ones(store.location):
            return good[0], True
        return records.read_description(store, _newest_described(store)), False
    found = unless_missing(records.records(store.location).filter(name=name))
    if not found:
        return records.read_description(store, name), False
    if found[0].state != State.GOOD:
        raise JobError(
            f"{name} is on record as {found[0].state}, and cannot be relied on"
            " HINT: restore another one"
        )
    return found[0], True


def _newest_described(store: Store) -> str:
    """Return the newest name, which is the last, since names begin with the time."""
    listed = {found.name for found in store.objects()}
    # Recorded backups are not good here, or one of them would have been chosen before.
    on_record = {
        record.name for record in unless_missing(records.records(store.location))
    }
    whole = [name for name in listed - on_record if name + DESCRIPTION in listed]
    if not whole:
        raise JobError(f"there is no backup in {store.location}")
    return max(whole)

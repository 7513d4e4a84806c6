"""The drill: restore the newest backup into a temporary database and compare it."""

import re
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from django.db import OperationalError, connection
from psycopg2 import errors as postgres
from psycopg2.extensions import connection as Connection
from psycopg2.sql import SQL, Identifier

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.database_backup import records
from starview_app.maintenance.jobs.database_backup.contents import rows_of
from starview_app.maintenance.jobs.database_backup.programs import (
    PostgresPrograms,
    connect,
)
from starview_app.maintenance.jobs.database_backup.restore import (
    Chosen,
    Report,
    Restorer,
)
from starview_app.maintenance.jobs.database_backup.transfer import StopRequested
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import Backup
from starview_app.maintenance.stores.base import Store, StoreError

_PREFIX = "starview_drill_"
_OID = "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
# Databases of this database's drills that this user owns.
_LEFT = """
    SELECT datname
    FROM pg_database
    WHERE starts_with(datname, %(begin)s)
        AND pg_has_role(datdba, 'USAGE')
    ORDER BY datname
"""


def drill(
    *,
    store: Store,
    key: str,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Prove the newest good backup: restore it, and compare it with its record.

    Tables, their rows and sequences must equal those in the snapshot of the backup; a
    difference is a problem. The time of the proof is recorded. The temporary database
    is removed in any case; if the run is killed, the next drill removes it. No other
    database is changed. A dry run only reads the object.

    Counts: tables, rows, size_bytes, removed_databases. Raises JobError.
    """
    names = ("tables", "rows", "size_bytes", "removed_databases")
    result = JobResult(dict.fromkeys(names, 0))
    restorer = Restorer(store, key, should_stop, PostgresPrograms())
    restorer.programs.check()
    good = records.good_ones(store.location)
    if not good:
        raise JobError(
            "there is no good backup on record HINT: python manage.py backup_database"
        )
    newest = good[0]
    report(Chosen(newest, is_on_record=True))
    try:
        restorer.check_object(newest)
        if dry_run:
            return result
        scratch = _Scratch.of_this_database()
        result.counts["removed_databases"] = scratch.remove_left()
        with scratch.made() as database:
            restorer.restore(newest, database)
            result.problems += restorer.compare(newest, database)
    except StoreError as error:
        raise JobError(str(error)) from error
    except StopRequested:
        result.interrupted = True
        return result
    _count(result, newest)
    if not result.problems and not records.mark_proved(newest):
        raise JobError(f"{newest.name} was removed meanwhile HINT: run the drill again")
    return result


@dataclass(frozen=True)
class _Scratch:
    """Temporary databases, named `prefix` and 16 digits, of this database's drills."""

    prefix: str

    @classmethod
    def of_this_database(cls) -> "_Scratch":
        with connection.cursor() as cursor:
            cursor.execute(_OID)
            (oid,) = cursor.fetchone()
        return cls(f"{_PREFIX}{oid}_")

    def remove_left(self) -> int:
        """Remove the databases that killed drills have left; return their number."""
        with connection.cursor() as cursor:
            cursor.execute(_LEFT, {"begin": self.prefix})
            names = [name for (name,) in cursor.fetchall()]
        pattern = f"{self.prefix}[0-9a-f]{{16}}"
        left = [name for name in names if re.fullmatch(pattern, name)]
        for name in left:
            _execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        return len(left)

    @contextmanager
    def made(self) -> Iterator[str]:
        name = f"{self.prefix}{secrets.token_hex(8)}"
        try:
            _execute("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", name)
            yield name
        finally:
            # If the server is down, the next drill removes the database.
            with suppress(OperationalError):
                _execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _execute(statement: str, name: str) -> None:
    """Execute a statement outside of a transaction, in a database session of its own.

    CREATE and DROP DATABASE are not possible in a transaction.
    """
    with (
        connection.wrap_database_errors,
        closing(_session()) as opened,
        opened.cursor() as cursor,
    ):
        try:
            cursor.execute(SQL(statement).format(Identifier(name)))
        except postgres.InsufficientPrivilege as error:
            raise JobError(
                f"a drill needs a database for a while: {message_of(error)}"
                f" HINT: ALTER ROLE {opened.info.user} CREATEDB, as a superuser"
            ) from error


def _session() -> Connection:
    opened = connect(connection.get_connection_params()["dbname"])
    opened.autocommit = True
    return opened


def _count(result: JobResult, record: Backup) -> None:
    result.counts |= {
        "tables": len(record.contents["tables"]),
        "rows": rows_of(record.contents),
        "size_bytes": record.size_bytes,
    }

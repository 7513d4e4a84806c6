"""Creates this image's own tables when a job first needs them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from django.apps import apps
from django.db import ProgrammingError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from psycopg2.errors import UndefinedTable

Row = TypeVar("Row")

LABEL = "maintenance"  # the label of the app that has the tables
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_TABLES = """
    SELECT
        to_regclass('starview_app_auditlog') IS NOT NULL,
        to_regclass('django_migrations') IS NOT NULL,
        to_regclass('maintenance_auditmanifest') IS NOT NULL
            AND to_regclass('maintenance_jobrun') IS NOT NULL
            AND to_regclass('maintenance_scheduleline') IS NOT NULL
            AND to_regclass('maintenance_announcement') IS NOT NULL
            AND to_regclass('maintenance_backup') IS NOT NULL
            AND to_regclass('maintenance_sentreport') IS NOT NULL
"""
# One table of each migration: a dump may be without it, but with the migration's
# record.
_FORGET_IF_GONE = """
    DELETE FROM django_migrations
    USING (
        VALUES ('0001_audit_archives', 'maintenance_auditmanifest'),
            ('0002_job_runs', 'maintenance_jobrun'),
            ('0003_abandoned_segments', 'maintenance_auditmanifest'),
            ('0004_schedule_memory', 'maintenance_scheduleline'),
            ('0005_announcements', 'maintenance_announcement'),
            ('0006_backups', 'maintenance_backup'),
            ('0007_reports', 'maintenance_sentreport'),
            ('0008_report_recipients', 'maintenance_sentreport')
    ) AS made (migration, table_name)
    WHERE app = %(app)s AND name = migration AND to_regclass(table_name) IS NULL
"""
_APPLIED = """
    SELECT name
    FROM django_migrations
    WHERE app = %(app)s
"""


def unless_missing(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of a query; none if its table does not exist yet.

    For code that only reads, and so does not create the tables.
    """
    try:
        return list(rows)
    except ProgrammingError as error:
        if isinstance(error.__cause__, UndefinedTable):
            return []
        raise


def rows_of(statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return the rows of `statement`; none if our tables do not exist yet."""

    def read() -> Iterator[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            yield from cursor.fetchall()

    return unless_missing(read())


def has_table(name: str) -> bool:
    """Whether a table exists; a query for a missing one would abort the transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%(name)s) IS NOT NULL", {"name": name})
        return bool(cursor.fetchone() == (True,))


def create_own_tables() -> bool:
    """Create or migrate `maintenance_*`; return whether there was something to do.

    Nothing else is changed: no signal is sent at which Django would write content types
    or permissions of the web service's models. A database without the web service's
    tables is the wrong one, and is not changed. Two containers that start at the same
    time wait for each other. If there is nothing to do, it takes two queries.
    """
    if not _missing():
        return False
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK, {"key": "starview-maintenance:tables"})
        executor = MigrationExecutor(connection)
        executor.recorder.ensure_schema()
        cursor.execute(_FORGET_IF_GONE, {"app": LABEL})
        executor.loader.build_graph()
        executor.migrate(_unapplied(executor))
    return True


def _unapplied(executor: MigrationExecutor) -> list[tuple[str, str]]:
    """Return all migrations that are not applied, in their order.

    Django would look only at the last one, but in a restored database an earlier one
    may be missing.
    """
    applied = executor.loader.applied_migrations
    known = executor.loader.graph.nodes
    return sorted(key for key in known if key[0] == LABEL and key not in applied)


def _missing() -> bool:
    folder = Path(apps.get_app_config(LABEL).path) / "migrations"
    files = {path.stem for path in folder.glob("[0-9]*.py")}
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        has_audit_log, has_migrations, has_own = cursor.fetchone()
        if not (has_audit_log and has_migrations and has_own):
            return bool(has_audit_log)
        cursor.execute(_APPLIED, {"app": LABEL})
        return not files <= {name for (name,) in cursor.fetchall()}

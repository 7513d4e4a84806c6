"""The tables that this image owns, made when a job first needs them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from django.apps import apps
from django.db import ProgrammingError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from psycopg2.errors import UndefinedTable

Row = TypeVar("Row")

LABEL = "maintenance"  # of the app that has them
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
"""
# A table of each migration: a dump may have left it out, and not the record of it.
_FORGET_IF_GONE = """
    DELETE FROM django_migrations
    USING (
        VALUES ('0001_audit_archives', 'maintenance_auditmanifest'),
            ('0002_job_runs', 'maintenance_jobrun'),
            ('0003_abandoned_segments', 'maintenance_auditmanifest'),
            ('0004_schedule_memory', 'maintenance_scheduleline'),
            ('0005_announcements', 'maintenance_announcement'),
            ('0006_backups', 'maintenance_backup')
    ) AS made (migration, table_name)
    WHERE app = %(app)s AND name = migration AND to_regclass(table_name) IS NULL
"""
_APPLIED = """
    SELECT name
    FROM django_migrations
    WHERE app = %(app)s
"""


def unless_missing(rows: Iterable[Row]) -> list[Row]:
    """The rows of a query; none where its table is yet to be made.

    For what only looks, and makes no table.
    """
    try:
        return list(rows)
    except ProgrammingError as error:
        if isinstance(error.__cause__, UndefinedTable):
            return []
        raise


def rows_of(statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What `statement` finds in our tables: nothing while they are yet to be made."""

    def read() -> Iterator[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            yield from cursor.fetchall()

    return unless_missing(read())


def create_own_tables() -> bool:
    """Bring `maintenance_*` up to date; says whether there was something to do.

    Nothing else is touched: no signal is sent that would make Django write content
    types or permissions of the web service's models. A database without the web
    service's tables is the wrong one, and left as it is. Two containers that start at
    once wait for each other. It costs two queries when there is nothing to do.
    """
    if not _missing():
        return False
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK, {"key": "starview-maintenance:tables"})
        executor = MigrationExecutor(connection)
        executor.recorder.ensure_schema()
        cursor.execute(_FORGET_IF_GONE, {"app": LABEL})
        executor.loader.build_graph()
        _apply_missing(executor)
    return True


def _apply_missing(executor: MigrationExecutor) -> None:
    """Also one before others that are there, which `migrate` would not find."""
    loader = executor.loader
    (leaf,) = loader.graph.leaf_nodes(LABEL)
    keys = loader.graph.forwards_plan(leaf)
    state = loader.project_state(keys[0], at_end=False)
    for key in keys:
        migration = loader.graph.nodes[key]
        if key in loader.applied_migrations:
            state = migration.mutate_state(state, preserve=False)
        else:
            state = executor.apply_migration(state, migration)


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

"""The tables that this image owns, made when a job first needs them."""

from pathlib import Path

from django.apps import apps
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor

from starview_app.maintenance.apps import MaintenanceConfig

LABEL = MaintenanceConfig.label
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_TABLES = """
    SELECT
        to_regclass('starview_app_auditlog') IS NOT NULL,
        to_regclass('django_migrations') IS NOT NULL
"""
_APPLIED = """
    SELECT name
    FROM django_migrations
    WHERE app = %(app)s
"""


def create_own_tables() -> bool:
    """Bring `maintenance_*` up to date; says whether there was something to do.

    Nothing else is touched: no signal is sent that would make Django write content
    types or permissions of the web service's models. A database without the web
    service's tables is the wrong one, and left as it is. Two containers that start at
    once wait for each other. It costs two queries when there is nothing to do.
    """
    if not _missing():
        return False
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_LOCK, {"key": "starview-maintenance:tables"})
        executor = MigrationExecutor(connection)
        targets = executor.loader.graph.leaf_nodes(LABEL)
        executor.migrate(targets)
    return True


def _missing() -> bool:
    folder = Path(apps.get_app_config(LABEL).path) / "migrations"
    files = {path.stem for path in folder.glob("[0-9]*.py")}
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        has_audit_log, has_migrations = cursor.fetchone()
        if not has_audit_log or not has_migrations:
            return bool(has_audit_log)
        cursor.execute(_APPLIED, {"app": LABEL})
        return not files <= {name for (name,) in cursor.fetchall()}

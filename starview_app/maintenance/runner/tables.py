"""The tables that this image owns, made when a job first needs them."""

from pathlib import Path

from django.apps import apps
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor

from starview_app.maintenance.apps import MaintenanceConfig

LABEL = MaintenanceConfig.label
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))"
_APPLIED = """
    SELECT name
    FROM django_migrations
    WHERE app = %(app)s
"""


def create_own_tables() -> bool:
    """Bring `maintenance_*` up to date; says whether there was something to do.

    Nothing else is touched: no signal is sent that would make Django write content
    types or permissions of the web service's models. Two containers that start at once
    wait for each other. It costs one query when there is nothing to do.
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
        cursor.execute("SELECT to_regclass('django_migrations') IS NOT NULL")
        if cursor.fetchone() == (False,):
            return True
        cursor.execute(_APPLIED, {"app": LABEL})
        return not files <= {name for (name,) in cursor.fetchall()}

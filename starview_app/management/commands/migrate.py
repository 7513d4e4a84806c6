"""Django's `migrate`, which here never touches the web service's tables."""

from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from starview_app.maintenance.apps import MaintenanceConfig

STANDALONE_MARKER = ("starview_app", "0001_standalone_marker")


class Command(migrate.Command):
    help = (
        "Creates the tables of an empty, stand-alone database. In the web service's"
        " database only `migrate maintenance`, this image's own tables, is allowed."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["app_label"] != MaintenanceConfig.label:
            self._refuse_web_service_database(options["database"])
        super().handle(*args, **options)

    def _refuse_web_service_database(self, alias: str) -> None:
        connection = connections[alias]
        if "auth_user" not in connection.introspection.table_names():
            return
        if STANDALONE_MARKER in MigrationRecorder(connection).applied_migrations():
            return
        raise CommandError(
            f"refused: the tables in database {connection.settings_dict['NAME']!r} are"
            " the web service's, which migrates them itself. HINT: run"
            " `migrate maintenance` for this image's own tables."
        )

"""Django's `migrate`, limited so that it never changes the web service's tables."""

from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.signals import pre_migrate

from starview_app.maintenance.apps import MaintenanceConfig
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.running.command import OneLineCommand

# Recorded among the applied migrations before the first table is created, so that a
# `migrate` that was killed can be run again. There is no migration of this name: one
# before all others would make the web service's history inconsistent.
STANDALONE_MARK = ("starview_app", "standalone_database")


class Command(OneLineCommand, migrate.Command):
    help = (
        "Creates the tables of an empty, stand-alone database; refuses to touch those"
        " of the web service."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--yes-drop",
            action="store_true",
            help="undo migrations (`starview_app zero`): drops tables and rows",
        )

    def handle(self, *args: Any, yes_drop: bool = False, **options: Any) -> None:
        if options["app_label"] == MaintenanceConfig.label:
            if options["migration_name"] or options["plan"] or options["fake"]:
                raise CommandError("'migrate maintenance' takes no other option")
            # Django's `migrate` would also write content types of other models.
            is_new = create_own_tables()
            self.stdout.write("Made maintenance_*" if is_new else "Nothing to do")
            return
        self._mark_or_refuse(options["database"])
        # The signal comes with the plan, before its first step.
        if not yes_drop:
            pre_migrate.connect(_refuse_to_drop)
        try:
            super().handle(*args, **options)
        finally:
            pre_migrate.disconnect(_refuse_to_drop)

    def _mark_or_refuse(self, alias: str) -> None:
        connection = connections[alias]
        recorder = MigrationRecorder(connection)
        if STANDALONE_MARK in recorder.applied_migrations():
            return
        if "auth_user" in connection.introspection.table_names():
            raise CommandError(
                f"refused: the tables in database {connection.settings_dict['NAME']!r}"
                " are the web service's, which migrates them itself. HINT: nothing has"
                " to be migrated here; a stand-alone one starts with an empty database"
            )
        recorder.record_applied(*STANDALONE_MARK)


def _refuse_to_drop(plan: list[tuple[Any, bool]], **kwargs: Any) -> None:
    back = [migration for migration, is_backwards in plan if is_backwards]
    if back:
        names = ", ".join(f"{each.app_label}.{each.name}" for each in back)
        raise CommandError(
            f"refused: it would undo {names}, which drops tables and their rows."
            " HINT: if that is meant, add --yes-drop"
        )

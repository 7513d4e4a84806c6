"""`restore_database`: restores a backup into an empty database of the same server."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from starview.env import ARCHIVE, BACKUP
from starview_app.maintenance.jobs.database_backup import restore as job
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand
from starview_app.maintenance.stores.configured import (
    BACKUP_LOCK_NAME,
    BACKUP_PREFIX,
    backup_store,
)


class Command(JobCommand):
    lock_name = BACKUP_LOCK_NAME
    needs = (ARCHIVE, BACKUP)
    needs_in_dry_run = True
    failure = "has restored what is not as backed up"
    help = (
        "Restores a backup into an empty database of the server of DATABASE_URL, never"
        " into that database itself, and compares tables, rows and sequences with what"
        " was backed up. An object that is not what its record says is refused."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "name",
            metavar="BACKUP",
            help=f"an object of {BACKUP_PREFIX}, or `{job.NEWEST}`",
        )
        parser.add_argument(
            "--into",
            required=True,
            metavar="DATABASE",
            help="the name of an empty database, which has to exist",
        )

    def check_options(self, options: dict[str, Any]) -> str:
        return "" if options["into"] else "--into names no database"

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        name: str,
        into: str,
        **options: Any,
    ) -> JobResult:
        result = job.restore_database(
            name=name.removeprefix(BACKUP_PREFIX),
            database=into,
            store=backup_store(),
            key=settings.BACKUP_ENCRYPTION_KEY,
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        for problem in result.problems:
            self.stdout.write(f"Not as backed up: {problem}")
        if result.interrupted or result.problems:
            return result
        if dry_run:
            self.stdout.write(f"Dry run: would restore it into {into}, which is empty")
            return result
        counts = result.counts
        self.stdout.write(
            f"Restored into {into} and compared: {counts['tables']} tables with"
            f" {counts['rows']} rows, and the sequences; all are as backed up\n"
            f"Before it is used: ANALYZE, and the privileges of other users"
        )
        return result

    def _print(self, chosen: job.Chosen) -> None:
        record = chosen.record
        by = "" if chosen.is_on_record else ", described by the store alone"
        self.stdout.write(
            f"Backup of {record.started_at:%Y-%m-%d %H:%M:%S} UTC{by}: {record.name}"
        )

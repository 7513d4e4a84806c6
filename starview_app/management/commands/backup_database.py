"""`backup_database`: makes a backup of PostgreSQL, or proves the newest by a drill."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from starview.env import ARCHIVE, BACKUP
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.database_backup import backup as job
from starview_app.maintenance.jobs.database_backup.drill import drill
from starview_app.maintenance.jobs.database_backup.keep import Keep
from starview_app.maintenance.jobs.database_backup.restore import Chosen
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand, whole_number
from starview_app.maintenance.stores.configured import (
    BACKUP_LOCK_NAME,
    BACKUP_PREFIX,
    backup_store,
    is_public,
)
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    lock_name = BACKUP_LOCK_NAME
    keeps_records = True
    needs = (ARCHIVE, BACKUP)
    needs_in_dry_run = True
    help = (
        "Backs the database up to the store with pg_dump: it counts once it was read"
        " back, is equal, and pg_restore could list it. Keeps the newest backups of so"
        " many days, weeks and months, and removes the others, never the last good one."
        " --drill makes none: it restores the newest into a database made for it,"
        " compares tables, rows and sequences, and removes that database."
    )

    def add_options(self, parser: CommandParser) -> None:
        for name, period, default in (
            ("daily", "days", 7),
            ("weekly", "weeks", 4),
            ("monthly", "months", 12),
        ):
            parser.add_argument(
                f"--keep-{name}",
                type=whole_number(0, period),
                default=default,
                metavar=period.upper(),
                help=f"{period} whose newest backup is kept (default: {default})",
            )
        parser.add_argument(
            "--drill",
            action="store_true",
            help="restore the newest backup for a while, and compare",
        )

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        keep_daily: int,
        keep_weekly: int,
        keep_monthly: int,
        **options: Any,
    ) -> JobResult:
        key = settings.BACKUP_ENCRYPTION_KEY
        if options["drill"]:
            return self._drill(key, should_stop, dry_run=dry_run)
        if is_public() and not key:
            raise JobError(
                "backups would go, unencrypted, to a bucket that R2_PUBLIC_URL serves"
                " to everybody HINT: set AUDIT_R2_BUCKET_NAME to a private one, or"
                " BACKUP_ENCRYPTION_KEY"
            )
        result = job.backup_database(
            now=timezone.now(),
            store=backup_store(),
            key=key,
            keep=Keep(keep_daily, keep_weekly, keep_monthly),
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        counts = result.counts
        if dry_run:
            self.stdout.write(
                f"Dry run: would make a backup, keep {counts['kept']} and remove"
                f" {counts['removed']}; nothing changed"
            )
        elif counts["backed_up"]:
            self.stdout.write(f"Kept {counts['kept']}, removed {counts['removed']}")
        return result

    def _drill(self, key: str, should_stop: ShouldStop, *, dry_run: bool) -> JobResult:
        result = drill(
            store=backup_store(),
            key=key,
            report=lambda chosen: self.stdout.write(_chosen(chosen)),
            should_stop=should_stop,
            dry_run=dry_run,
        )
        counts = result.counts
        for problem in result.problems:
            self.stdout.write(f"Not as backed up: {problem}")
        if dry_run:
            self.stdout.write("Dry run: it is in the store, equal; nothing restored")
        elif not result.problems and not result.interrupted:
            self.stdout.write(
                f"Proved: restored and compared {counts['tables']} tables with"
                f" {counts['rows']} rows, and the sequences; all are as backed up"
            )
        return result

    def _print(self, event: job.Event) -> None:
        write = self.stdout.write
        match event:
            case job.BackedUp(record, tables, rows):
                how = "encrypted" if record.is_encrypted else "not encrypted"
                write(
                    f"Backed up: {BACKUP_PREFIX}{record.name}\n"
                    f"{tables} tables with {rows} rows in {record.size_bytes} bytes,"
                    f" {how}\nRead back and equal: SHA-256 {record.sha256}"
                )
            case job.Removed(name, why):
                write(f"Removed, {why}: {name}")
            case job.KeptByLock(name):
                write(f"Kept by a lock of the bucket: {name}")
            case job.FoundAgain(name):
                write(f"In the store again, and good: {name}")
            case job.Unknown(name):
                write(f"Not on record here, left alone: {one_line(name)}")


def _chosen(chosen: Chosen) -> str:
    record = chosen.record
    by = "" if chosen.is_on_record else ", described by the store alone"
    return f"Backup of {record.started_at:%Y-%m-%d %H:%M:%S} UTC{by}: {record.name}"

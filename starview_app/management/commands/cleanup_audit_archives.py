"""`cleanup_audit_archives`: removes archives that were kept long enough."""

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from starview.env import ARCHIVE
from starview_app.maintenance.jobs.audit_archive import cleanup as job
from starview_app.maintenance.jobs.audit_archive.manifests import ManifestWritten
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand, whole_number
from starview_app.maintenance.stores.configured import LOCK_NAME, archive_store
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    lock_name = LOCK_NAME
    keeps_records = True
    needs = (ARCHIVE,)
    needs_in_dry_run = True
    help = (
        "Removes archives whose newest event is older than --days, and writes a"
        " manifest that lists them. The newest archive, manifests and objects that this"
        " database has not archived are never removed."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days",
            type=whole_number(1, "days"),
            default=90,
            help="age in days of an archive's newest event (default: 90)",
        )

    def run(
        self, *, should_stop: ShouldStop, dry_run: bool, days: int, **options: Any
    ) -> JobResult:
        self._days = days
        result = job.cleanup_audit_archives(
            now=timezone.now(),
            days=days,
            store=archive_store(),
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        counts = result.counts
        if dry_run:
            self.stdout.write(
                f"Dry run: would remove {counts['found']} archives, nothing changed"
            )
        else:
            self.stdout.write(
                f"Removed {counts['removed']} archives ({counts['objects']} objects)"
            )
        if counts["kept_by_lock"]:
            self.stdout.write(
                f"{counts['kept_by_lock']} objects are kept by a lock of the bucket"
            )
        return result

    def _print(self, event: job.Event) -> None:
        write = self.stdout.write
        match event:
            case job.Found(objects, archives, cutoff):
                write(
                    f"Found {archives} archives older than {self._days} days, among"
                    f" {objects} objects"
                )
                write(f"Cutoff date: {cutoff:%Y-%m-%d %H:%M:%S}\n")
            case job.Removed(name):
                write(f"Removed: {name}")
            case job.KeptByLock(name):
                write(f"Kept by a lock of the bucket: {name}")
            case job.Unknown(name):
                write(f"Not archived by this database, left alone: {one_line(name)}")
            case ManifestWritten(name):
                write(f"Manifest written: {name}")

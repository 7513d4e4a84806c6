"""`adopt_audit_archives`: take the first version's archives into the chain."""

from typing import Any

from django.utils import timezone

from starview.env import ARCHIVE
from starview_app.maintenance.jobs.audit_archive import adopt as job
from starview_app.maintenance.jobs.audit_archive.manifests import ManifestWritten
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand
from starview_app.maintenance.stores.configured import (
    LOCK_NAME,
    archive_location,
    archive_store,
)
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    lock_name = LOCK_NAME
    keeps_records = True
    needs = (ARCHIVE,)
    # A dry run reads the archives too.
    needs_in_dry_run = True
    help = (
        "Lists the archives of the web service's own first version in a manifest, as"
        " found, so that verify, restore and clean-up work on them. Each is read first,"
        " and its JSON and TXT are compared row by row; one that does not agree in"
        " itself is left alone. Running twice changes nothing."
    )

    def run(
        self, *, should_stop: ShouldStop, dry_run: bool, **options: Any
    ) -> JobResult:
        self._dry_run = dry_run
        result = job.adopt_audit_archives(
            now=timezone.now(),
            store=archive_store(),
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        counts = result.counts
        what = f"{counts['adopted']} archives ({counts['objects']} objects,"
        what += f" {counts['rows']} rows)"
        if dry_run:
            self.stdout.write(f"\nDry run: would adopt {what}, nothing changed")
        elif counts["found"]:
            self.stdout.write(
                f"\nAdopted {what}. Their hashes are those of today: for what was done"
                " to them before, nobody vouches"
            )
        return result

    def _print(self, event: job.Event) -> None:
        write = self.stdout.write
        match event:
            case job.Found(archives):
                place = archive_location()
                write(f"Found {archives} archives of the first version in {place}")
                if not archives:
                    write(
                        "The first version wrote to AUDIT_R2_BUCKET_NAME,"
                        " starview-audit-logs unless it was named"
                    )
            case job.Adopted(names, rows):
                verb = "Would adopt" if self._dry_run else "Adopted"
                write(f"{verb}: {', '.join(map(one_line, names))} ({rows} rows)")
            case job.Refused(name, reason):
                write(f"Left alone: {one_line(name)}: {one_line(reason)}")
            case ManifestWritten(name):
                write(f"Manifest written: {name}")

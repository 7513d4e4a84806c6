"""`verify_audit_archives`: checks that the objects are those that were archived."""

from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser

from starview.env import ARCHIVE
from starview_app.maintenance.jobs.audit_archive import verify as job
from starview_app.maintenance.jobs.audit_archive.chain import Finding
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import (
    JobCommand,
    utc_day,
    whole_number,
)
from starview_app.maintenance.stores.configured import archive_store
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    has_dry_run = False
    failure = "found what is not good"
    needs = (ARCHIVE,)
    help = (
        "Walks the chain of manifests, reads the archived objects back and names each"
        " as good, missing, changed or not in any manifest; exit code 1 unless all are"
        " good. Changes nothing."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--since",
            type=utc_day,
            metavar="DATE",
            help="only objects that were listed on this day (UTC) or later; the"
            " manifests are all checked",
        )
        parser.add_argument(
            "--sample",
            type=whole_number(0, "objects", maximum=10_000_000),
            metavar="N",
            help="read back N objects chosen at random, and only look at the size of"
            " the others (default: read all)",
        )

    def run(
        self,
        *,
        should_stop: ShouldStop,
        since: datetime | None,
        sample: int | None,
        **options: Any,
    ) -> JobResult:
        result = job.verify_audit_archives(
            store=archive_store(),
            report=self._print,
            should_stop=should_stop,
            since=since,
            sample=sample,
        )
        counts = result.counts
        by_size = f", by size: {counts['by_size']}" if counts["by_size"] else ""
        self.stdout.write(
            f"\nGood: {counts['good']}{by_size}, missing: {counts['missing']}, changed:"
            f" {counts['changed']}, not in any manifest: {counts['stray']}"
        )
        return result

    def _print(self, event: job.Event) -> None:
        match event:
            case job.ChainRead(manifests, is_on_record, expected, to_read, unlisted):
                self.stdout.write(
                    f"Read {manifests} manifests; checking {expected} objects, reading"
                    f" {to_read} of them back"
                )
                if unlisted:
                    self.stdout.write(
                        f"Note: no manifest lists {unlisted} of these objects yet, the"
                        " database vouches for them; the next archive run lists them"
                    )
                if not is_on_record:
                    self.stdout.write(
                        "Note: this database does not know the newest manifest, so one"
                        " that was removed behind it would not be noticed"
                    )
            case Finding(status, name, detail):
                shown = one_line(name)
                self.stdout.write(f"{status:<9} {shown} ({one_line(detail)})")

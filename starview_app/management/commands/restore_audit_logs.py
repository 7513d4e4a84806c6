"""`restore_audit_logs`: restores archived rows to the table."""

from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import CommandParser

from starview.env import ARCHIVE
from starview_app.maintenance.jobs.audit_archive import restore as job
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand, utc_day
from starview_app.maintenance.stores.configured import (
    LOCK_NAME,
    PREFIX,
    archive_store,
)


class Command(JobCommand):
    # An archive run at the same time could remove rows that were just restored.
    lock_name = LOCK_NAME
    keeps_records = True
    needs = (ARCHIVE,)
    # A dry run reads the archive too.
    needs_in_dry_run = True
    help = (
        "Brings archived audit rows back with their ids and all fields unchanged, from"
        " one object or for a range of days. Rows that are there already are skipped;"
        " an object that is not what its manifest lists is refused."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "key", nargs="?", metavar="KEY", help="an archived JSON object"
        )
        parser.add_argument(
            "--from",
            dest="since",
            type=utc_day,
            metavar="DATE",
            help="the first day (UTC) of the rows to restore",
        )
        parser.add_argument(
            "--to",
            dest="until",
            type=utc_day,
            metavar="DATE",
            help="the last day (UTC), which is restored too",
        )

    def check_options(self, options: dict[str, Any]) -> str:
        days = (options["since"], options["until"])
        if options["key"] and any(days):
            return "KEY and --from, --to exclude each other"
        if not options["key"] and not all(days):
            return "name a KEY, or both --from and --to"
        if all(days) and days[0] > days[1]:
            return "--from is after --to"
        return ""

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        key: str | None,
        since: datetime | None,
        until: datetime | None,
        **options: Any,
    ) -> JobResult:
        self._dry_run = dry_run
        result = job.restore_audit_logs(
            store=archive_store(),
            report=self._print,
            should_stop=should_stop,
            name=(key or "").removeprefix(PREFIX),
            since=since or job.BEGIN,
            until=until + timedelta(days=1) if until else job.END,
            dry_run=dry_run,
        )
        counts = result.counts
        for problem in result.problems:
            self.stdout.write(f"Not restored: {problem}")
        if not counts["objects"] and not result.problems and not result.interrupted:
            self.stdout.write("No archive has rows of these days")
        verb = "Dry run: would restore" if dry_run else "Restored"
        self.stdout.write(
            f"\n{verb} {counts['restored']} audit logs from {counts['objects']}"
            f" archives, skipped {counts['skipped']} that are there already"
        )
        if counts["restored"] and not dry_run:
            self.stdout.write(
                "The next archive run moves those that are old enough out again."
            )
        return result

    def _print(self, event: job.Restored) -> None:
        text = (
            f"{event.name}: {event.rows - event.present} of {event.rows} rows"
            f" {'to restore' if self._dry_run else 'restored'}, {event.present} there"
            " already"
        )
        if event.unlinked and event.rows > event.present:
            text += f"; {event.unlinked} of accounts that are gone, without that link"
        self.stdout.write(text)

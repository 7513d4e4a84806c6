"""`archive_audit_logs`: parses the options and prints the guide's report."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from django.conf import settings
from django.core.management.base import CommandParser
from django.db import DatabaseError, connection
from django.utils import timezone

from starview.env import ARCHIVE
from starview_app.maintenance import exits
from starview_app.maintenance.database_errors import in_one_line
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import archive as job
from starview_app.maintenance.jobs.audit_archive.manifests import ManifestWritten
from starview_app.maintenance.jobs.audit_archive.segments import Outcome
from starview_app.maintenance.jobs.audit_archive.sharing.worker import Part, Sharing
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand, whole_number
from starview_app.maintenance.running.forks import in_processes
from starview_app.maintenance.running.stop import (
    StopNow,
    helpers_grace_seconds,
    stop_on_signals,
)
from starview_app.maintenance.stores.base import StoreError
from starview_app.maintenance.stores.configured import (
    LOCK_NAME,
    archive_location,
    archive_store,
    public_warning,
)

if TYPE_CHECKING:
    from tqdm import tqdm

FORMATS = {"json": ("json",), "txt": ("txt",), "both": ("json", "txt")}
SETTLED = {
    Outcome.UNDONE: "undone",
    Outcome.KEPT: "kept by a lock of the bucket until that ends",
}
MEGABYTE = 1_000_000
# Each worker needs one database session, and uses a second one if it can.
MOST_WORKERS = 64

logger = structlog.get_logger(__name__)


class Command(JobCommand):
    lock_name = LOCK_NAME
    keeps_records = True
    needs = (ARCHIVE,)
    # A dry run lists the store, so that its success means that a run would work.
    needs_in_dry_run = True
    help = (
        "Moves audit rows older than --days to JSON and TXT objects in R2, listed in a"
        " manifest. No row is deleted before every object that holds it has been read"
        " back and compared."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days",
            type=whole_number(1, "days"),
            default=30,
            help="age in days from which a row is archived (default: 30)",
        )
        parser.add_argument(
            "--format",
            choices=FORMATS,
            default="both",
            help="json for machines, txt for people (default: both)",
        )
        parser.add_argument(
            "--segment-rows",
            type=whole_number(1, "rows", maximum=10_000_000),
            default=job.SEGMENT_ROWS,
            help="rows that are written, compared and deleted at a time; a segment is"
            f" of one calendar month at most (default: {job.SEGMENT_ROWS})",
        )
        parser.add_argument(
            "--compress",
            action="store_true",
            help="write .json.gz and .txt.gz",
        )
        parser.add_argument(
            "--workers",
            type=whole_number(1, "processes", maximum=MOST_WORKERS),
            help="share the work among so many processes, and with other runs that have"
            " this option, on any machine (default: this run alone)",
        )

    def is_shared(self, options: dict[str, Any]) -> bool:
        return bool(options["workers"])

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        days: int,
        format: str,
        segment_rows: int,
        compress: bool,
        workers: int | None,
        **options: Any,
    ) -> JobResult:
        self._days = days
        self._dry_run = dry_run
        self._archived = 0
        self._segment_started = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if warning := public_warning():
            logger.warning("archive_is_public", detail=warning)
        try:
            return job.archive_audit_logs(
                now=timezone.now(),
                days=days,
                formats=FORMATS[format],
                store=archive_store(),
                report=self._report,
                should_stop=should_stop,
                dry_run=dry_run,
                segment_rows=segment_rows,
                compress=compress,
                sharing=_sharing(workers, should_stop) if workers else None,
            )
        finally:
            # Also after an error, since the archived rows stay archived.
            if self._bar is not None:
                self._bar.close()
            if self._archived:
                self.stdout.write(f"\nArchived {self._archived} audit logs")
                self.stdout.write(f"Archive location: {archive_location()}")

    def _report(self, event: job.Event) -> None:
        write = self.stdout.write
        match event:
            case job.Found(count, cutoff):
                write(f"Found {count} audit logs older than {self._days} days")
                write(f"Cutoff date: {cutoff:%Y-%m-%d %H:%M:%S}\n\n")
                write(self._intention(count))
                self._start_progress(count)
            case job.Settled(names, outcome):
                done = SETTLED[outcome]
                write(f"Left by an earlier run, {done}: {', '.join(names)}")
            case job.Stored(kind, name):
                verb = "saved to folder" if settings.DEBUG else "uploaded to R2"
                write(f"{kind.upper()} archive {verb}: {name}")
            case job.SegmentArchived(count, size_bytes):
                self._archived += count
                self._show_progress(count, size_bytes)
            case ManifestWritten(name):
                write(f"Manifest written: {name}")

    def _intention(self, count: int) -> str:
        if not count:
            return "No audit logs found to archive."
        if self._dry_run:
            return f"Dry run: would archive {count} audit logs, nothing changed"
        if settings.DEBUG:
            return "Development mode: Archives will be stored in audit_archives/"
        return "Production mode: Archives will be stored in R2"

    def _start_progress(self, count: int) -> None:
        """Show a progress bar on a terminal; elsewhere a line for each segment."""
        if count and not self._dry_run and sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # tqdm must not start a thread
            self._bar = tqdm(total=count, unit=" rows", dynamic_ncols=True)

    def _show_progress(self, count: int, size_bytes: int) -> None:
        now = time.monotonic()
        seconds, self._segment_started = now - self._segment_started, now
        if self._bar is not None:
            self._bar.update(count)
            return
        logger.info(
            "segment_archived",
            rows=count,
            megabytes=round(size_bytes / MEGABYTE, 1),
            rows_per_second=round(count / max(seconds, 0.001)),
        )


def _sharing(workers: int, should_stop: ShouldStop) -> Sharing:
    def start(part: Part, heard: Callable[[int], None]) -> None:
        if workers == 1:
            return  # this process does the work alone

        def do(tell: Callable[[int], None]) -> None:
            _help(part, tell)

        for code in in_processes(workers, do, heard, should_stop):
            if code:
                # Other workers archive what this one has left.
                logger.warning("worker_ended", exit_code=code)

    return Sharing(start, archive_store)


def _help(part: Part, tell: Callable[[int], None]) -> None:
    """Do the work of one helper, in its own process."""

    def cancel_query() -> None:
        if connection.connection:
            connection.connection.cancel()

    try:
        with stop_on_signals(cancel_query, helpers_grace_seconds()) as stop:
            part(stop, tell)
    except StopNow:
        sys.exit(exits.FAILED)
    except (JobError, StoreError, DatabaseError) as error:
        logger.warning("worker_failed", error=in_one_line(error))
        sys.exit(exits.FAILED)

"""`archive_audit_logs`: options in, the guide's report out."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from starview.env import ARCHIVE
from starview_app.maintenance.jobs import archive_audit_logs as job
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.runner.command import JobCommand, whole_number
from starview_app.maintenance.stores.base import Store
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.maintenance.stores.s3 import S3Store, Variables

PREFIX = "audit-archives/"
AUDIT_VARIABLES = Variables(
    key_id="AUDIT_R2_ACCESS_KEY_ID",
    secret="AUDIT_R2_SECRET_ACCESS_KEY",  # noqa: S106 - a name
    bucket="AUDIT_R2_BUCKET_NAME",
)
FORMATS = {"json": ("json",), "txt": ("txt",), "both": ("json", "txt")}


class Command(JobCommand):
    job_name = "archive_audit_logs"
    needs = (ARCHIVE,)
    help = (
        "Moves audit rows older than --days to JSON and TXT objects in R2. No row is"
        " deleted before every object has been read back and compared."
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

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        days: int,
        format: str,
        **options: Any,
    ) -> JobResult:
        self._days = days
        self._dry_run = dry_run
        return job.archive_audit_logs(
            now=timezone.now(),
            days=days,
            formats=FORMATS[format],
            store=_store(),
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )

    def _print(self, event: job.Event) -> None:
        write = self.stdout.write
        match event:
            case job.Found(count, cutoff):
                write(f"Found {count} audit logs older than {self._days} days")
                write(f"Cutoff date: {cutoff:%Y-%m-%d %H:%M:%S}\n\n")
                write(self._intention(count))
            case job.Stored(kind, name):
                verb = "saved to folder" if settings.DEBUG else "uploaded to R2"
                write(f"{kind.upper()} archive {verb}: {name}")
            case job.Archived(count):
                write(f"\nArchived {count} audit logs")
                write(f"Archive location: {_location()}")

    def _intention(self, count: int) -> str:
        if not count:
            return "No audit logs found to archive."
        if self._dry_run:
            return f"Dry run: would archive {count} audit logs, nothing changed"
        if settings.DEBUG:
            return "Development mode: Archives will be stored in audit_archives/"
        return "Production mode: Archives will be stored in R2"


def _store() -> Store:
    """The separate audit bucket where there is one, a folder in development."""
    if settings.DEBUG:
        return FolderStore(settings.AUDIT_ARCHIVE_FOLDER)
    variables = AUDIT_VARIABLES if settings.AUDIT_R2_BUCKET_NAME else Variables()
    return S3Store(
        endpoint_url=settings.AWS_S3_ENDPOINT_URL,
        access_key_id=getattr(settings, variables.key_id),
        secret_access_key=getattr(settings, variables.secret),
        bucket=_bucket(),
        prefix=PREFIX,
        variables=variables,
    )


def _bucket() -> str:
    bucket: str = settings.AUDIT_R2_BUCKET_NAME or settings.AWS_STORAGE_BUCKET_NAME
    return bucket


def _location() -> str:
    if settings.DEBUG:
        return f"{settings.AUDIT_ARCHIVE_FOLDER.name}/ folder"
    return f'R2 bucket "{_bucket()}" in {PREFIX} folder'

"""`cleanup_unverified_users`: parses the options and prints the guide's report."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from starview.people import shown
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.jobs.unverified_users import cleanup as job
from starview_app.maintenance.running.command import JobCommand, whole_number
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    help = (
        "Deletes accounts that joined more than --days ago and never verified an"
        " address. Keeps staff, system and deactivated accounts, and whoever has ever"
        " logged in, has a social account, a live link, or content of any kind."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days",
            type=whole_number(1, "days"),
            default=7,
            help="age in days from which an account is deleted (default: 7)",
        )

    def run(
        self, *, should_stop: ShouldStop, dry_run: bool, days: int, **options: Any
    ) -> JobResult:
        now = timezone.now()
        printer = _Printer(self.stdout.write, now=now, days=days)
        result = job.cleanup_unverified_users(
            now=now,
            days=days,
            link_days=settings.ACCOUNT_EMAIL_CONFIRMATION_EXPIRE_DAYS,
            report=printer,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        printer.finish(result, dry_run=dry_run)
        return result


class _Printer:
    """Prints the job's events in the guide's words."""

    def __init__(self, write: Any, *, now: datetime, days: int) -> None:
        self._write = write
        self._now = now
        self._days = days
        self._changed = 0
        self._kept: job.Kept | None = None

    def __call__(self, event: job.Event) -> None:
        match event:
            case job.Found(count, cutoff):
                self._write(
                    f"Found {count} unverified user(s) older than {self._days} days:"
                )
                if count:
                    self._write(f"Cutoff date: {cutoff:%Y-%m-%d %H:%M:%S}\n\n")
                else:
                    self._write("No unverified users found to delete.")
            case job.Listed(accounts):
                # In one write, since each write passes through two processes.
                self._write("\n".join(map(self._listed, accounts)))
            case job.Deleting():
                self._write("\nDeleting unverified users...")
            case job.Deleted(accounts):
                self._write(
                    "\n".join(f"  ✓ Deleted: {_who(each)}" for each in accounts)
                )
            case job.ChangedMeanwhile(name):
                self._changed += 1
                self._write(f"  - Kept: {one_line(shown(name))} (changed meanwhile)")
            case job.Failed(name, reason):
                self._write(f"  ✗ Not deleted: {one_line(shown(name))}: {reason}")
            case job.Kept():
                self._kept = event

    def _listed(self, account: job.Account) -> str:
        age_days = (self._now - account.joined).days
        return f"  - {_who(account)} - registered {age_days} days ago"

    def finish(self, result: JobResult, *, dry_run: bool) -> None:
        found, confirmations = result.counts["found"], result.counts["confirmations"]
        if dry_run and found:
            self._write(
                f"\nDry run: would delete {found} unverified user(s), nothing changed"
            )
        elif found:
            deleted = result.counts["deleted"]
            self._write(
                f"\n✓ Successfully deleted {deleted} unverified user(s)"
                if deleted + self._changed == found
                else f"\n✗ Deleted only {deleted} of {found} unverified user(s)"
            )
        if confirmations:
            verb = "Would remove" if dry_run else "Removed"
            self._write(f"\n{verb} {confirmations} expired email confirmation(s)")
        if self._kept:
            self._print_kept(self._kept)

    def _print_kept(self, kept: job.Kept) -> None:
        """Print up to 20 names, then the numbers by reason."""
        total = sum(kept.by_reason.values())
        reasons = (
            f"{one_line(name)} {count}" for name, count in kept.by_reason.items()
        )
        self._write("")
        for account, reason in kept.named:
            self._write(f"  - Kept: {_who(account)} ({one_line(reason)})")
        if more := total - len(kept.named) - self._changed:
            self._write(f"  - and {more} more")
        self._write(f"Kept {total}: {', '.join(reasons)}")


def _who(account: job.Account) -> str:
    address = shown(account.email) if account.email else "no address"
    return one_line(f"{shown(account.username)} ({address})")

"""`cleanup_email_suppressions`: does the clean-up, then mails the weekly report."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog
from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from starview.env import MAIL
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.email_suppressions import cleanup as job
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import (
    JobCommand,
    addresses,
    whole_number,
)
from starview_app.maintenance.schedule.registry import scheduled_jobs
from starview_app.maintenance.text import one_line

if TYPE_CHECKING:
    from starview_app.maintenance.jobs.email_suppressions.health import RenderedReport
    from starview_app.maintenance.ses import SendingStatistics, SuppressedAtSes

logger = structlog.get_logger(__name__)

RULE = "=" * 80
_NOT_ASKED = "DISABLE_EXTERNAL_APIS is set"


class Command(JobCommand):
    help = (
        "Lets addresses whose last soft bounce is older than --soft-bounce-days receive"
        " mail again, deletes bounce records older than --stale-days that suppress"
        " nothing, and mails the weekly health report. Never touches hard bounces,"
        " complaints, manual entries and unsubscribes."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--email-report",
            type=addresses,
            metavar="ADDRESS[,ADDRESS]",
            help="who gets the health report (default: no report is sent)",
        )
        parser.add_argument(
            "--report",
            action="store_true",
            help="print the health report, without clean-up and mail",
        )
        parser.add_argument(
            "--soft-bounce-days",
            type=whole_number(1, "days"),
            default=30,
            help="days without a bounce after which a suppression ends (default: 30)",
        )
        parser.add_argument(
            "--stale-days",
            type=whole_number(1, "days"),
            default=90,
            help="days without a bounce after which a record is deleted (default: 90)",
        )

    def changes_nothing(self, options: dict[str, Any]) -> bool:
        return bool(options["dry_run"] or options["report"])

    def check_options(self, options: dict[str, Any]) -> str:
        if options["report"] and options["email_report"] is not None:
            return "--report prints, --email-report mails: name one of them"
        return ""

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        report: bool,
        email_report: list[str] | None,
        soft_bounce_days: int,
        stale_days: int,
        **options: Any,
    ) -> JobResult:
        if email_report and not dry_run:
            settings.ENVIRONMENT.require(MAIL)
        self._soft_bounce_days = soft_bounce_days
        self._stale_days = stale_days
        self._dry_run = dry_run
        now = timezone.now()
        if report:
            self.stdout.write(_health_report(now, None).text.strip())
            return JobResult()
        result = job.cleanup_email_suppressions(
            now=now,
            soft_bounce_days=soft_bounce_days,
            stale_days=stale_days,
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        if email_report and not result.interrupted:
            self._send_report(email_report, now, result)
        if email_report == []:
            raise JobError(
                "the clean-up is done, but --email-report names no address"
                " HINT: set ADMIN_EMAIL, which the schedule passes on"
            )
        return result

    def _print(self, event: job.Event) -> None:
        write = self.stdout.write
        would = "Dry run: would have " if self._dry_run else ""
        match event:
            case job.ExpiredFound(count, bounces):
                write(f"SOFT BOUNCE CLEANUP\n{RULE}")
                write(
                    f"Found {count} soft bounce suppressions"
                    f" older than {self._soft_bounce_days} days"
                )
                for bounce in bounces:
                    write(f"  - {one_line(bounce.email)}: {_last_bounce(bounce)}")
            case job.Deactivated(count):
                verb = f"{would}deactivated" if would else "Deactivated"
                write(f"\n{verb} {count} soft bounce suppressions\n\n")
            case job.StaleFound(count):
                write(f"STALE BOUNCE CLEANUP\n{RULE}")
                write(
                    f"Found {count} stale bounce records"
                    f" (inactive for {self._stale_days}+ days)"
                )
            case job.StaleDeleted(count):
                verb = f"{would}deleted" if would else "Deleted"
                write(f"{verb} {count} stale bounce records")

    def _send_report(
        self, recipients: list[str], now: datetime, result: JobResult
    ) -> None:
        """Mail the report on the tables after the clean-up, in one attempt."""
        to = ", ".join(recipients)
        if self._dry_run:
            self.stdout.write(f"\nDry run: the email report would go to {to}")
            return
        # Imported here, since it takes longer than a clean-up without a report.
        from starview_app.maintenance import ses

        report = _health_report(now, result)
        ses.send_report(
            subject=report.subject,
            text=report.text,
            html=report.html,
            from_email=settings.DEFAULT_FROM_EMAIL,
            recipients=recipients,
            region=settings.AWS_SES_REGION_NAME,
            pages=_pages(now),
        )
        result.counts |= report.counts
        self.stdout.write(f"\nEmail report sent to {to}")


def _last_bounce(bounce: job.SoftBounce) -> str:
    if bounce.last_bounce is None:
        return f"No bounce on record, suppressed {bounce.suppressed_on:%Y-%m-%d}"
    return f"Last bounce {bounce.last_bounce:%Y-%m-%d} ({bounce.bounce_count}x)"


def _pages(now: datetime) -> dict[str, str]:
    """Return the report page; empty after an error, so that the mail is sent anyway."""
    from starview_app.maintenance.history import page
    from starview_app.maintenance.history.report import collect

    try:
        return {"report.html": page.render(collect(scheduled_jobs(), now))}
    except Exception as error:
        logger.warning("report_not_attached", reason=one_line(str(error)))
        return {}


def _health_report(now: datetime, cleaned: JobResult | None) -> "RenderedReport":
    """Write the report on the tables at `now`, after the clean-up if there was one."""
    from starview_app.maintenance.jobs.email_suppressions import health

    changes = None
    if cleaned:
        counts = cleaned.counts
        changes = health.CleanupChanges(counts["deactivated"], counts["deleted"])
    found = health.collect_email_health(
        now=now,
        statistics=_sending_statistics(now),
        changes=changes,
        at_ses=_suppressed_at_ses(),
    )
    return health.render_email_health(found)


def _sending_statistics(now: datetime) -> "SendingStatistics":
    from starview_app.maintenance import ses

    if settings.DISABLE_EXTERNAL_APIS:
        return ses.SendingStatistics(unknown_because=_NOT_ASKED)
    return ses.sending_statistics(**_ses_account(), now=now)


def _suppressed_at_ses() -> "SuppressedAtSes":
    from starview_app.maintenance import ses

    if settings.DISABLE_EXTERNAL_APIS:
        return ses.SuppressedAtSes(unknown_because=_NOT_ASKED)
    return ses.suppressed_at_ses(**_ses_account())


def _ses_account() -> dict[str, str]:
    return {
        "access_key_id": settings.AWS_SES_ACCESS_KEY_ID,
        "secret_access_key": settings.AWS_SES_SECRET_ACCESS_KEY,
        "region": settings.AWS_SES_REGION_NAME,
        "endpoint_url": settings.AWS_SES_REGION_ENDPOINT_URL,
    }

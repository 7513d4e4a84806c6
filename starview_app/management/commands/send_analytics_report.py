"""`send_analytics_report`: mails the figures of the last week or month."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from starview.env import ARCHIVE, MAIL
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.analytics.period import Kind, Period, last_whole
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand, addresses
from starview_app.maintenance.stores.base import Store

if TYPE_CHECKING:
    from starview_app.maintenance.jobs.analytics.measure import Analytics
    from starview_app.maintenance.jobs.analytics.write import Mail

_LONGEST_REASON = 200  # characters


class Command(JobCommand):
    help = (
        "Mails the figures of the last whole week or month (UTC), compared with the one"
        " before: members, what they added, security events, e-mail, what maintenance"
        " did. Each period is mailed once to the same recipients. Changes nothing."
    )
    needs = (MAIL,)
    keeps_records = True

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--period",
            choices=[str(kind) for kind in Kind],
            default=str(Kind.WEEK),
            help="the last whole ISO week (default) or calendar month",
        )
        parser.add_argument(
            "--to",
            type=addresses,
            metavar="ADDRESS[,ADDRESS]",
            help="who gets it (default: ADMIN_EMAIL)",
        )
        parser.add_argument(
            "--again",
            action="store_true",
            help="send it although it was sent before",
        )
        parser.add_argument(
            "--preview",
            type=Path,
            metavar="FILE",
            help="write it to FILE as HTML, pictures included, and send nothing",
        )

    def changes_nothing(self, options: dict[str, Any]) -> bool:
        return bool(options["dry_run"] or options["preview"])

    def check_options(self, options: dict[str, Any]) -> str:
        if options["preview"] and options["again"]:
            return "--preview sends nothing, --again sends once more: name one of them"
        return ""

    def run(
        self,
        *,
        should_stop: ShouldStop,
        dry_run: bool,
        period: str,
        to: list[str] | None,
        again: bool,
        preview: Path | None,
        **options: Any,
    ) -> JobResult:
        now = timezone.now()
        wanted = last_whole(Kind(period), now)
        if dry_run:
            return self._show(wanted, preview, should_stop)
        recipients = settings.ADMIN_EMAIL if to is None else to
        if not recipients:
            raise JobError(
                "the analytics report has nobody to go to HINT: set ADMIN_EMAIL, or"
                " name an address with --to"
            )
        # Imported here, like other slow imports, so that --help is quick.
        from starview_app.maintenance.jobs.analytics import send

        result = send.send_analytics_report(
            now=now,
            period=wanted,
            open_store=_open_store,
            recipients=recipients,
            send=_sender(recipients),
            should_stop=should_stop,
            again=again,
        )
        to_whom = ", ".join(recipients)
        if result.counts["sent"]:
            self.stdout.write(
                f"The report of {wanted.name} ({wanted}) was sent to {to_whom}"
            )
        elif not result.interrupted:
            at = send.sent_at(wanted, recipients)
            self.stdout.write(
                f"The report of {wanted.name} ({wanted}) was sent before,"
                f" at {at:%Y-%m-%d %H:%M} UTC: nothing was sent."
                " --again sends it once more"
            )
        return result

    def _show(
        self, period: Period, preview: Path | None, should_stop: ShouldStop
    ) -> JobResult:
        from starview_app.maintenance.jobs.analytics.measure import measure
        from starview_app.maintenance.jobs.audit_archive.transfer import StopRequested

        if preview:
            _check_writable(preview)
        try:
            analytics = measure(
                now=timezone.now(),
                period=period,
                open_store=_open_store,
                should_stop=should_stop,
            )
        except StopRequested:
            return JobResult(interrupted=True)
        mail = _written(analytics)
        if preview:
            _write(preview, mail.html_alone)
            self.stdout.write(
                f"The report of {period.name} ({period}) is in {preview}: nothing was"
                " sent"
            )
        else:
            self.stdout.write(f"Subject: {mail.subject}\n\n{mail.text.strip()}")
        return JobResult()


def _sender(recipients: list[str]) -> "Callable[[Analytics], None]":
    def send(analytics: "Analytics") -> None:
        from starview_app.maintenance import ses

        mail = _written(analytics)
        ses.send_report(
            subject=mail.subject,
            text=mail.text,
            html=mail.html,
            from_email=settings.DEFAULT_FROM_EMAIL,
            recipients=recipients,
            region=settings.AWS_SES_REGION_NAME,
            pictures={chart.content_id: chart.png for chart in mail.charts},
        )

    return send


def _written(analytics: "Analytics") -> "Mail":
    from starview_app.maintenance.jobs.analytics.write import write_report

    return write_report(analytics)


def _open_store() -> Store:
    """Return the archive's store. Raises JobError if a variable is missing."""
    if problems := settings.ENVIRONMENT.problems_for(ARCHIVE):
        raise JobError(f"the archive is not set up: {problems[0]}"[:_LONGEST_REASON])
    from starview_app.maintenance.stores.configured import archive_store

    return archive_store()


def _check_writable(path: Path) -> None:
    """Raise an error before minutes are spent on a report that cannot be written."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise JobError(
            f"{path} cannot be written: it is a folder, or its folder is not there"
            " HINT: --preview names a file in a folder that exists"
        )


def _write(path: Path, html: str) -> None:
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise JobError(
            f"{path} cannot be written: {error.strerror} HINT: --preview names a file"
            " in a folder that this user may write to"
        ) from error

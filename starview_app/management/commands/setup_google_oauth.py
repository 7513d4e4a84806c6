"""`setup_google_oauth`: sets up the web service's sign-in from the environment."""

from argparse import ArgumentTypeError
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from starview.env import host_problem
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.google_oauth import setup as job
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.running.command import JobCommand

_CALLBACK = "/accounts/google/login/callback/"


def domain(text: str) -> str:
    """An argparse type: a host name, with or without a port."""
    if host_problem(text) or text.startswith(("*", ".")) or len(text) > 100:
        raise ArgumentTypeError(
            f"{text!r} is not a host name; write it without https:// and path"
        )
    return text


class Command(JobCommand):
    help = (
        "Creates or updates the web service's app for signing in with Google, from"
        " GOOGLE_OAUTH_CLIENT_ID and GOOGLE_OAUTH_CLIENT_SECRET, and the site that it"
        " is used on. Says what changed. Run it by hand, once: not for schedules."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--domain",
            type=domain,
            help="the web service's host name (default: the site keeps the one it has)",
        )

    def run(self, *, dry_run: bool, domain: str | None, **options: Any) -> JobResult:
        client_id = settings.GOOGLE_OAUTH_CLIENT_ID
        secret = settings.GOOGLE_OAUTH_CLIENT_SECRET
        _require(GOOGLE_OAUTH_CLIENT_ID=client_id, GOOGLE_OAUTH_CLIENT_SECRET=secret)
        done, result = job.set_up_google(
            client_id=client_id,
            secret=secret,
            site_id=settings.SITE_ID,
            domain=domain or "",
            default_domain="127.0.0.1:8000" if settings.DEBUG else "",
            dry_run=dry_run,
        )
        for change in done.changes:
            self.stdout.write(f"{'Would change' if dry_run else 'Changed'}: {change}")
        if not done.changes:
            self.stdout.write("Nothing to change: it is set up as the variables say")
        scheme = "http" if settings.DEBUG else "https"
        self.stdout.write(
            "Google's console must list this as an authorised redirect URI:\n"
            f"  {scheme}://{done.domain}{_CALLBACK}"
        )
        return result


def _require(**variables: str) -> None:
    if missing := [name for name, value in variables.items() if not value]:
        raise JobError(
            f"{' and '.join(missing)} not set HINT: Google Cloud console, APIs and"
            " services, Credentials, the OAuth client of the web service"
        )

"""`wait_for_database`: waits, for a limited time, before anything else runs."""

import time
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import OperationalError, connection

from starview.database import UnusableDatabaseError
from starview_app.maintenance.database_errors import in_one_line
from starview_app.maintenance.running.command import OneLineCommand, whole_number

# Errors for which waiting does not help.
PERMANENT = (
    "does not exist",
    "authentication failed",
    "no pg_hba.conf entry",
    "does not support SSL",
)
LONGEST_PAUSE_SECONDS = 5.0


class Command(OneLineCommand):
    help = "Waits until the database answers; exits 1 when it does not within the time."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--timeout-seconds",
            type=whole_number(0, "seconds"),
            default=settings.DATABASE_WAIT_SECONDS,
            help="how long to wait (default: DATABASE_WAIT_SECONDS, else 60)",
        )

    def handle(self, *, timeout_seconds: int, **options: Any) -> None:
        deadline = time.monotonic() + timeout_seconds
        pause_seconds = 0.5
        while True:
            try:
                connection.ensure_connection()
                break
            except OperationalError as error:
                text = in_one_line(error)
                left_seconds = deadline - time.monotonic()
                is_permanent = isinstance(
                    error.__cause__, UnusableDatabaseError
                ) or any(part in text for part in PERMANENT)
                if left_seconds <= 0 or is_permanent:
                    raise CommandError(text) from error
                self.stderr.write(
                    f"waiting for the database, {left_seconds:.0f} s left: {text}"
                )
            time.sleep(min(pause_seconds, left_seconds))
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        if "auth_user" not in connection.introspection.table_names():
            self.stderr.write(
                "warning: the web service's tables are not in this database: it names"
                " the wrong one, or the web service has not migrated it yet"
            )

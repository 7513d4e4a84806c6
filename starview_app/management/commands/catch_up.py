"""`catch_up`: runs missed and failed slots, and announces the news."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import structlog
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from starview.redaction import redact
from starview_app.maintenance import exits
from starview_app.maintenance.catchup.catch_up import catch_up, due_now, look_after
from starview_app.maintenance.catchup.launch import Launcher
from starview_app.maintenance.catchup.slots import SlotState
from starview_app.maintenance.catchup.ticks import record_tick, record_unbegun
from starview_app.maintenance.database_errors import in_one_line, is_away
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify import alerts
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.running.command import OneLineCommand
from starview_app.maintenance.running.ledger import (
    Ending,
    short_waits,
)
from starview_app.maintenance.running.request import (
    RunRequest,
    environment_of,
    take_request,
)
from starview_app.maintenance.running.worker import clear_errors
from starview_app.maintenance.schedule.registry import recorded_jobs
from starview_app.maintenance.text import one_line

logger = structlog.get_logger(__name__)


class Command(OneLineCommand):
    help = (
        "Runs each job of the crontab whose last slot was missed or failed: now, and"
        " 10 minutes, 1 hour and 6 hours after a failure; never what is paused or due"
        " again within the hour. Finds crashed runs and sends the alerts."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="list what would be run and change nothing",
        )

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        with clear_errors(), short_waits():
            if dry_run:
                self._list()
            else:
                with _telling_an_outage():
                    self._run()

    def _list(self) -> None:
        due = due_now(recorded_jobs(), timezone.now())
        for state in (found.state for found in due):
            self.stdout.write(
                f"{state.job}: slot {state.slot:%Y-%m-%d %H:%M} UTC"
                f" ({state.reason_to_run})"
            )
        if not due:
            self.stdout.write("Nothing to catch up with")

    def _run(self) -> None:
        started_at = timezone.now()
        request = take_request("catch_up", [], now=started_at)
        create_own_tables()
        launcher = Launcher()
        launched: list[SlotState] = []
        failure = ""
        try:
            self._catch_up(launcher, launched)
        except Exception as error:
            failure = redact(in_one_line(error))
            if not is_away(error):
                _record_tick(request, started_at, launcher, len(launched), failure)
            raise
        _record_tick(request, started_at, launcher, len(launched), failure)

    def _catch_up(self, launcher: Launcher, launched: list[SlotState]) -> None:
        jobs = recorded_jobs()
        if not jobs:
            raise CommandError(
                "the crontab has no job whose runs are recorded, or cannot be read"
                " HINT: `python manage.py jobs check` says why"
            )
        alerts.recall_outage(timezone.now())

        def launch(state: SlotState) -> None:
            launched.append(state)
            started_at = timezone.now()
            variables = environment_of(
                JobRun.Trigger.CATCH_UP, slot=state.slot, attempt=state.next_attempt
            )
            code = launcher.run(
                state.schedule,
                variables,
                lambda: look_after(
                    jobs, timezone.now(), alerts.dispatch, at_once=False
                ),
            )
            if code:
                logger.warning("run_failed", job=state.job, exit_code=code)
            is_claimed = code != exits.UNCLAIMED  # otherwise the database was away
            if code and is_claimed and not launcher.should_stop:
                _record_if_unbegun(state, code, started_at)

        with launcher.passing_signals_on():
            catch_up(
                jobs,
                clock=timezone.now,
                launch=launch,
                announce=alerts.dispatch,
                should_stop=lambda: launcher.should_stop,
            )


def _record_tick(
    request: RunRequest,
    started_at: datetime,
    launcher: Launcher,
    runs: int,
    failure: str,
) -> None:
    now = timezone.now()
    outcome = JobRun.Outcome.SUCCEEDED
    if launcher.should_stop:
        outcome = JobRun.Outcome.INTERRUPTED
    elif failure:
        outcome = JobRun.Outcome.FAILED
    seconds = round((now - started_at).total_seconds(), 3)
    ending = Ending(outcome, int(bool(failure)), seconds, now, failure, {}, "")
    try:
        record_tick(request, ending, started_at=started_at, runs=runs)
    except DatabaseError as error:
        logger.warning("run_not_recorded", error=one_line(error))


@contextmanager
def _telling_an_outage() -> Iterator[None]:
    """Announce an outage of the database that catch-up itself notices."""
    try:
        yield
    except DatabaseError as error:
        if is_away(error):
            alerts.database_is_down("catch-up", in_one_line(error), now=timezone.now())
        raise


def _record_if_unbegun(state: SlotState, code: int, started_at: datetime) -> None:
    """Record a line that did not start its job, so that its failures are counted."""
    request = RunRequest(
        state.job,
        redact(state.schedule.command),
        JobRun.Trigger.CATCH_UP,
        slot=state.slot,
        attempt=state.next_attempt,
        schedule=state.schedule,
    )
    try:
        record_unbegun(
            request, exit_code=code, started_at=started_at, now=timezone.now()
        )
    except DatabaseError as error:
        logger.warning("run_not_recorded", error=one_line(error))

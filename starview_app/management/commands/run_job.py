"""`run_job COMMAND [ARGS]`: any management command as a run that is recorded."""

import os
import time
from argparse import REMAINDER
from typing import Any, NoReturn

import structlog
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.utils import timezone
from psycopg2.errors import QueryCanceled

from starview_app.maintenance.running.command import (
    EXIT_WRONG_OPTIONS,
    LOST_HINT,
    JobCommand,
    OneLineCommand,
    telling_errors,
)
from starview_app.maintenance.running.ledger import EXIT_RUNNING
from starview_app.maintenance.running.lock import (
    JobIsRunningError,
    job_lock,
    sessions_named,
)
from starview_app.maintenance.running.process import tell
from starview_app.maintenance.running.request import take_request
from starview_app.maintenance.running.stop import StopNow, StopRequest, stop_on_signals
from starview_app.maintenance.running.watcher import EXIT_FAILED, supervise

logger = structlog.get_logger(__name__)


class Command(OneLineCommand):
    help = (
        "Runs any management command as the schedule runs its own: once per slot, one"
        " at a time, recorded, with its deadline and its alerts."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="COMMAND", help="the command to run")
        parser.add_argument(
            "arguments", metavar="ARGS", nargs=REMAINDER, help="its arguments"
        )

    def run_from_argv(self, argv: list[str]) -> None:
        if len(argv) < 3 or argv[2].startswith("-"):
            super().run_from_argv(argv)  # ends with the help, or the error
            return
        program, _, name, *arguments = argv
        command = self._find(name)
        if command is None:
            request = take_request(name, arguments, now=timezone.now())
            if request.slot:
                supervise(request)  # a slot that fails is recorded, and heard of
            self._fail(f"no such command: {name!r}", EXIT_WRONG_OPTIONS)
        if isinstance(command, JobCommand):
            command.run_from_argv([program, name, *arguments])
            return
        if {"-h", "--help"} & set(arguments):
            command.run_from_argv([program, name, *arguments])
            return
        request = take_request(name, arguments, now=timezone.now())
        supervise(request)
        _tell_errors_of(command)
        self._run(request.job, command, [program, name, *arguments])

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError("run_job is for the command line")

    # -- internal helpers ---------------------------------------------------------

    def _find(self, name: str) -> BaseCommand | None:
        app = get_commands().get(name)
        if app is None or name == "run_job":
            return None
        return (
            app if isinstance(app, BaseCommand) else load_command_class(str(app), name)
        )

    def _run(self, job: str, command: BaseCommand, argv: list[str]) -> None:
        pid, started = os.getpid(), time.monotonic()
        outcome = "failed"
        try:
            with telling_errors():
                _run_locked(job, command, argv)
            outcome = "succeeded"
        except SystemExit as end:
            outcome = "failed" if end.code else "succeeded"
            raise
        except _StoppedError as error:
            outcome = error.outcome
            tell(interrupted=outcome == "interrupted")
            self._fail(str(error))
        except JobIsRunningError as error:
            outcome = "skipped"
            tell(refused=True)
            self._fail(str(error), EXIT_RUNNING)
        finally:
            if os.getpid() == pid:  # else the command has forked
                seconds = round(time.monotonic() - started, 3)
                write = logger.info if outcome == "succeeded" else logger.error
                write("job_finished", outcome=outcome, seconds=seconds)

    def _fail(self, text: str, code: int = EXIT_FAILED) -> NoReturn:
        tell(error=text)
        self.stderr.write(f"CommandError: {text}")
        raise SystemExit(code)


class _StoppedError(Exception):
    """The command was stopped before it was done."""

    def __init__(self, name: str, stop: StopRequest) -> None:
        if stop.failure:
            super().__init__(f"{name} {stop.failure} {LOST_HINT}")
            self.outcome = "failed"
        else:
            super().__init__(
                f"{name} was stopped by {stop.signal_name} before it was done"
            )
            self.outcome = "interrupted"


def _run_locked(job: str, command: BaseCommand, argv: list[str]) -> None:
    # Django's connection is each thread's own: the canceller needs this one.
    session = connections[DEFAULT_DB_ALIAS]

    def cancel_query() -> None:
        if session.connection:
            session.connection.cancel()

    # A command that is not ours asks nobody whether it should stop.
    with (
        sessions_named(job),
        stop_on_signals(cancel_query, grace_seconds=0.0) as stop,
    ):
        try:
            with job_lock(job, on_lost=stop.fail):
                logger.info("job_started")
                command.run_from_argv(argv)
        except StopNow:
            raise _StoppedError(argv[1], stop) from None
        except DatabaseError as error:
            if stop() and isinstance(error.__cause__, QueryCanceled):
                raise _StoppedError(argv[1], stop) from error
            raise
        except SystemExit:
            if not stop.failure:
                raise
        if stop.failure:
            raise _StoppedError(argv[1], stop)


def _tell_errors_of(command: BaseCommand) -> None:
    """Its `run_from_argv` makes an exit code of some errors."""
    execute = command.execute

    def execute_and_tell(*args: Any, **options: Any) -> str | None:
        with telling_errors():
            return execute(*args, **options)

    command.execute = execute_and_tell  # type: ignore[method-assign]

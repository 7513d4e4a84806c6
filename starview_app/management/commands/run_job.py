"""`run_job COMMAND [ARGS]`: runs any management command as a recorded run."""

import sys
from argparse import REMAINDER
from typing import Any, NoReturn

from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from starview_app.maintenance import exits
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.running.command import JobCommand, OneLineCommand
from starview_app.maintenance.running.lock import JobIsRunningError
from starview_app.maintenance.running.process import report
from starview_app.maintenance.running.request import RunRequest, take_request
from starview_app.maintenance.running.stop import StopRequest
from starview_app.maintenance.running.watcher import fork_run
from starview_app.maintenance.running.worker import (
    reporting_errors,
    work,
)


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
            super().run_from_argv(argv)  # exits after the help or the error
            return
        program, _, name, *arguments = argv
        command = self._find(name)
        is_help = bool({"-h", "--help"} & set(arguments))
        if isinstance(command, JobCommand) or (command and is_help):
            command.run_from_argv([program, name, *arguments])
            return
        request = take_request(name, arguments, now=timezone.now())
        if command or request.slot:  # a failed slot must be recorded and announced
            watcher = fork_run(request)
            if watcher:
                sys.exit(watcher.watch())
        if command is None:
            self._fail(f"no such command: {name!r}", exits.WRONG_OPTIONS)
        _report_errors_of(command)
        self._work(request, command, [program, name, *arguments])

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

    def _work(self, request: RunRequest, command: BaseCommand, argv: list[str]) -> None:
        def do(stop: StopRequest) -> JobResult:
            command.run_from_argv(argv)
            return JobResult()

        try:
            with reporting_errors():
                # Other commands do not check whether they should stop: no grace.
                work(request.job, do, name=argv[1], grace_seconds=0.0)
        except JobIsRunningError as error:
            report(refused=True)
            self._fail(str(error), exits.RUNNING)
        except JobError as error:
            self._fail(str(error))

    def _fail(self, text: str, code: int = exits.FAILED) -> NoReturn:
        report(error=text)
        self.stderr.write(f"CommandError: {text}")
        raise SystemExit(code)


def _report_errors_of(command: BaseCommand) -> None:
    """Report the command's errors before `run_from_argv` turns some into exit codes."""
    execute = command.execute

    def execute_and_report(*args: Any, **options: Any) -> str | None:
        with reporting_errors():
            return execute(*args, **options)

    command.execute = execute_and_report  # type: ignore[method-assign]

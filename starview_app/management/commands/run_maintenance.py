"""`run_maintenance`: runs the jobs of the crontab now, one after the other."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.core.management.base import CommandError, CommandParser

from starview_app.maintenance import exits
from starview_app.maintenance.catchup.launch import Launcher
from starview_app.maintenance.history.lines import table
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.running.command import OneLineCommand
from starview_app.maintenance.running.request import environment_of
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import has_dry_run, recorded_jobs
from starview_app.maintenance.text import one_line

_DRY_RUN = "--dry-run"
_OUTCOMES = {exits.DONE: "succeeded", exits.RUNNING: "refused: it is under way"}


class Command(OneLineCommand):
    help = (
        "Runs the jobs of the crontab now, in its order, each as a run of its own with"
        " its lock, deadline and record. One that fails does not stop the next; exit"
        " code 1 if any did. Not for schedules: there each job has a line of its own."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        for option, what in (("--only", "run only"), ("--skip", "leave out")):
            parser.add_argument(
                option,
                action="append",
                default=[],
                metavar="JOB[,JOB]",
                help=f"{what} these, by the name of the job or its command",
            )
        parser.add_argument(
            "--list",
            action="store_true",
            help="list what would be run, and run nothing",
        )
        parser.add_argument(
            _DRY_RUN,
            action="store_true",
            help="run each job with --dry-run, and leave out those that have none",
        )

    def handle(
        self,
        *,
        only: list[str],
        skip: list[str],
        list: bool,
        dry_run: bool,
        **options: Any,
    ) -> None:
        lines = _chosen(recorded_jobs(), _names("--only", only), _names("--skip", skip))
        if dry_run:
            lines = [
                replace(line, command=f"{line.command} {_DRY_RUN}")
                for line in lines
                if has_dry_run(line.arguments[0])
            ]
        if list:
            for line in lines:
                self.stdout.write(f"{one_line(line.name)}: {one_line(line.command)}")
            return
        codes = self._run(lines)
        if len(codes) < len(lines):
            left = len(lines) - len(codes)
            raise CommandError(f"stopped by a signal: {left} jobs were not begun")
        if failed := [name for name, code in codes if code]:
            raise CommandError(
                one_line(
                    f"{len(failed)} of {len(lines)} jobs failed: {', '.join(failed)}"
                )
            )

    def _run(self, lines: Sequence[ScheduledJob]) -> Sequence[tuple[str, int]]:
        """Run the lines; return name and exit code of each job that was begun."""
        launcher = Launcher()
        codes = []
        rows = [("JOB", "OUTCOME", "SECONDS")]
        with launcher.passing_signals_on():
            for number, line in enumerate(lines, 1):
                if launcher.should_stop:
                    break
                name = one_line(line.name)
                self.stdout.write(f"== {name} ({number} of {len(lines)})")
                self.stdout.flush()  # before the output of the job
                started = time.monotonic()
                code = launcher.run(line, environment_of(JobRun.Trigger.MANUAL))
                seconds = f"{time.monotonic() - started:.1f}"
                codes.append((name, code))
                outcome = _OUTCOMES.get(code, f"failed with exit code {code}")
                rows.append((name, outcome, seconds))
                self.stdout.write("")
        for row in table(rows, right=(2,)):
            self.stdout.write(row)
        return codes


def _names(option: str, values: Sequence[str]) -> list[str]:
    """Return the names in the values; an empty value, as of "$JOB", is an error."""
    names: list[str] = []
    for value in values:
        found = value.replace(",", " ").split()
        if not found:
            raise CommandError(
                f"{option} {value!r} names no job HINT: is a variable empty?",
                returncode=exits.WRONG_OPTIONS,
            )
        names += found
    return names


def _chosen(
    lines: Sequence[ScheduledJob], only: list[str], skip: list[str]
) -> list[ScheduledJob]:
    known = {name for line in lines for name in (line.name, line.django_command)}
    for name in (*only, *skip):
        if name not in known:
            names = ", ".join(line.name for line in lines)
            raise CommandError(
                one_line(f"there is no job {name!r} HINT: the names are {names}"),
                returncode=exits.WRONG_OPTIONS,
            )
    chosen = [
        line
        for line in lines
        if (not only or {line.name, line.django_command} & {*only})
        and not {line.name, line.django_command} & {*skip}
    ]
    if not chosen:
        raise CommandError("no job is left to run", returncode=exits.WRONG_OPTIONS)
    return chosen

"""Finds all the errors of a crontab at once, also those that supercronic accepts.

The arguments of a line are checked by the command's own parser. No database is used.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from typing import Any

from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError

from starview.redaction import SHORTEST_SECRET
from starview_app.maintenance.schedule.crontab import ScheduledJob, parse_crontab
from starview_app.maintenance.schedule.registry import (
    is_own_job,
    is_unknown,
    let_unknown_values_pass,
)
from starview_app.maintenance.text import one_line

CATCH_UP = "catch_up"
RUN_JOB = "run_job"
# The guide: "Do NOT create cron jobs for the manual/one-time commands."
MANUAL = {
    "audit_badges": "manual maintenance only",
    "award_pioneer_badges": "one-time retroactive setup",
    "diagnose_db": "manual debugging only",
    "run_maintenance": "it runs the jobs that have lines of their own here",
    "setup_google_oauth": "one-time initial setup",
}
# Never to be suggested: they empty tables, and are refused.
_REFUSED = {"flush", "remove_stale_contenttypes"}
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_CATCH_UP_LINE = "*/10 * * * *  JOB=starview-catch-up python manage.py catch_up"
_CATCH_UP_SECONDS = 3600
# (what is wrong, what to do)
_Wrong = tuple[str, str]
_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


@dataclass(frozen=True)
class Finding:
    """Something to fix. Line 0 stands for the whole file."""

    line: int
    text: str
    fix: str


def lint(text: str) -> list[Finding]:
    """Return everything that is wrong with `text`, in the order of its lines."""
    good, problems = parse_crontab(text)
    # The rest of a line with wrong times is checked too.
    badly_timed = [found.job for found in problems if found.job]
    jobs = sorted([*good, *badly_timed], key=lambda job: job.line)
    found = [(problem.line, problem.text, problem.fix) for problem in problems]
    for job in jobs:
        found += [(job.line, *wrong) for wrong in _of_the_line(job)]
    for job in good:
        found += [(job.line, *wrong) for wrong in _of_the_gap(job)]
    found += [*_of_the_names(jobs), *_of_catching_up(jobs, good)]
    if not jobs and not problems:
        found = [(0, "the crontab has no job", "take the crontab of the image")]
    return [
        Finding(line, one_line(text), one_line(fix))
        for line, text, fix in sorted(found, key=lambda each: each[0])
    ]


# -- one line ------------------------------------------------------------------------


def _of_the_line(job: ScheduledJob) -> Iterator[_Wrong]:
    if job.django_command == CATCH_UP:
        if job.deadline_seconds is not None:
            yield (
                "`timeout` in front of catch_up would stop the runs that it makes up"
                " for: each keeps its own deadline",
                "take the `timeout` away",
            )
    elif job.deadline_seconds is None:
        yield "no time limit", "write `timeout -k 60 1h` in front of python"
    yield from _of_the_command(job, job.arguments[0] == RUN_JOB)


def _of_the_gap(job: ScheduledJob) -> Iterator[_Wrong]:
    deadline = job.deadline_seconds
    if job.django_command == CATCH_UP or deadline is None:
        return
    gap = job.shortest_gap_seconds()
    if deadline >= gap:
        yield (
            f"it may take {_duration(deadline)}, but is due again after"
            f" {_duration(gap)}: the next run would be left out",
            f"give `timeout` less than {_duration(gap)}, or let it run less often",
        )


def _of_the_command(job: ScheduledJob, through_runner: bool) -> Iterator[_Wrong]:
    name = job.django_command
    if not name or name.startswith("-"):
        yield "names no command", "write it behind manage.py, or behind run_job"
    elif name in MANUAL:
        yield (
            f"{name} is run by hand, not on a schedule: {MANUAL[name]}",
            "take the line away",
        )
    elif name not in get_commands() or name == RUN_JOB:
        close = get_close_matches(name, get_commands().keys() - _REFUSED, 1)
        yield (
            f"unknown command {name!r}",
            f"did you mean {close[0]}?" if close else "`manage.py help` lists them",
        )
    elif through_runner and name == CATCH_UP:
        yield (
            "catch_up starts runs, and is none",
            "write `python manage.py catch_up`, without run_job",
        )
    else:
        yield from _of_the_options(name, job, through_runner)


def _of_the_options(
    name: str, job: ScheduledJob, through_runner: bool
) -> Iterator[_Wrong]:
    try:
        command = _load(name)
        parser = command.create_parser("manage.py", name)
    except Exception as error:  # an import may raise anything
        yield (
            f"{name} cannot be loaded: {type(error).__name__}: {error}",
            f"mend it until `python manage.py {name} --help` answers",
        )
        return
    if not through_runner and name != CATCH_UP and not is_own_job(name):
        yield (
            f"{name} is not run by the runner, so nothing records or repeats it",
            f"write `python manage.py run_job {name}`",
        )
    for option in ("--dry-run", "--report"):
        if option in job.arguments:
            yield (
                f"{name} {option} on a schedule: the work would never be done",
                f"take {option} away",
            )
    if reason := _refusal(command, parser, job.arguments[1 + through_runner :]):
        yield (
            f"{name}: {reason}",
            f"`python manage.py {name} --help` shows its options",
        )


def _load(name: str) -> BaseCommand:
    app = get_commands()[name]
    return app if isinstance(app, BaseCommand) else load_command_class(str(app), name)


def _refusal(command: BaseCommand, parser: Any, words: list[str]) -> str:
    """Return why the command would refuse these words, or an empty string.

    A variable that is set is replaced; one that is not is assumed to be valid.
    """
    let_unknown_values_pass(parser)
    used: dict[str, str] = {}

    def value_of(variable: re.Match[str]) -> str:
        value = os.environ.get(variable[1].strip("{}"), "")
        if len(value) >= SHORTEST_SECRET:
            used[value] = variable[0]
        return value or variable[0]

    words = [_VARIABLE.sub(value_of, word) for word in words]
    try:
        with redirect_stdout(StringIO()):  # hides the output of --help and --version
            options = vars(parser.parse_args(words))
        check_options = getattr(command, "check_options", None)  # JobCommand has it
        if check_options is None or any(map(is_unknown, words)):
            return ""
        reason = str(check_options(options))
    except SystemExit:
        return "--help and --version run nothing"
    except CommandError as error:
        reason = str(error).removeprefix("Error: ")
    for value, variable in used.items():  # a value may be a secret
        reason = reason.replace(value, variable)
    return reason


# -- lines together ------------------------------------------------------------------


def _of_the_names(jobs: Iterable[ScheduledJob]) -> Iterator[tuple[int, str, str]]:
    lines: dict[str, int] = {}
    for job in jobs:
        if job.job and job.job in lines:
            text = f"JOB={job.job} is the name of line {lines[job.job]} already"
            yield job.line, text, "give each line a name of its own"
        lines.setdefault(job.job, job.line)


def _of_catching_up(
    jobs: Iterable[ScheduledJob], good: Sequence[ScheduledJob]
) -> Iterator[tuple[int, str, str]]:
    found = [job for job in jobs if job.django_command == CATCH_UP]
    lines = [job.line for job in found]
    for job in found:
        if job in good and job.shortest_gap_seconds() > _CATCH_UP_SECONDS:
            text = "catch_up comes less than once an hour: too late to try again"
            yield job.line, text, f"write `{_CATCH_UP_LINE}`"
    if not lines:
        text = "no line runs catch_up: what was missed would stay missed"
        yield 0, text, f"add `{_CATCH_UP_LINE}`"
    for line in lines[1:]:
        yield line, f"line {lines[0]} runs catch_up already", "keep one of them"


def _duration(seconds: float) -> str:
    """Return the duration in the largest unit that divides it: 90 minutes, 1 day."""
    name, size = next(
        (unit for unit in _UNITS if seconds >= unit[1] and seconds % unit[1] == 0),
        _UNITS[-1],
    )
    count = seconds / size
    return f"{count:g} {name}{'' if count == 1 else 's'}"

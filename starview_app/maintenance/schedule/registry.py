"""The jobs of the crontab, and which of them are recorded."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.core.management import CommandError, get_commands, load_command_class

from starview_app.maintenance.schedule.crontab import (
    ScheduledJob,
    parse_crontab,
    read_text,
)

logger = structlog.get_logger(__name__)


def scheduled_jobs(*, must_exist: bool = True) -> list[ScheduledJob]:
    """Return the crontab's jobs; log a warning for each line that cannot be read."""
    path = Path(settings.CRONTAB)
    try:
        jobs, problems = parse_crontab(read_text(path))
    except OSError as error:
        if must_exist or path.exists():
            logger.warning("crontab_not_read", path=str(path), error=str(error))
        return []
    # One wrong line, which supercronic may even run, must not affect the others.
    for problem in problems:
        logger.warning("crontab_line_not_read", line=problem.line, error=problem.text)
    return jobs


def recorded_jobs() -> list[ScheduledJob]:
    """Return the named jobs whose runs are recorded.

    A job without records would always seem to have missed its slot.
    """
    return list(filter(is_recorded, scheduled_jobs()))


def names_of(command: str, lines: Iterable[ScheduledJob]) -> list[str]:
    """Return the names that runs of a management command have: those of its lines, its
    own where no line has it, and what the documentation calls such a line.
    """
    named = [line.job for line in lines if line.job and line.django_command == command]
    names = [*named, command, f"starview-{command.replace('_', '-')}"]
    return list(dict.fromkeys(names))


def is_recorded(job: ScheduledJob) -> bool:
    """Whether the line has a name, and runs a JobCommand or `run_job`."""
    if not job.job:
        return False
    name = job.arguments[0] if job.arguments else ""
    return name == "run_job" or is_own_job(name)


@cache
def is_own_job(name: str) -> bool:
    app = get_commands().get(name)
    if not isinstance(app, str) or not app.startswith("starview_app"):
        return False
    return hasattr(load_command_class(app, name), "job_name")  # a JobCommand


def has_dry_run(name: str) -> bool:
    if not is_own_job(name):
        return False
    return bool(getattr(load_command_class("starview_app", name), "has_dry_run", False))


def options_of(name: str, lines: Iterable[ScheduledJob]) -> dict[str, Any]:
    """Return the options of the first line for a command of ours, or its defaults.

    Where the line has a variable of the shell, the value is the default.
    """
    given = [
        line.arguments[line.arguments.index(name) + 1 :]
        for line in lines
        if line.django_command == name
    ]
    parser = load_command_class("starview_app", name).create_parser("manage.py", name)
    let_unknown_values_pass(parser)
    defaults = vars(parser.parse_args([]))
    options = defaults
    for arguments in given[:1]:
        with suppress(CommandError, SystemExit):
            options = vars(parser.parse_args(arguments))
    return {
        key: defaults[key] if is_unknown(str(value)) else value
        for key, value in options.items()
    }


def let_unknown_values_pass(parser: Any) -> None:
    """Let a parser take any value that is known only when the line runs."""
    convert, compare = parser._get_value, parser._check_value
    parser._get_value = lambda action, text: (
        text if is_unknown(text) else convert(action, text)
    )
    parser._check_value = lambda action, value: (
        None if is_unknown(str(value)) else compare(action, value)
    )


def is_unknown(text: str) -> bool:
    """Whether a value has a variable of the shell."""
    return "$" in text

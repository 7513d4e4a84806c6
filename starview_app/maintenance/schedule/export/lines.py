"""The crontab's lines as the templates show them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from django.template import Context, Engine

from starview_app.maintenance.schedule.crontab import ScheduledJob, parse_crontab
from starview_app.maintenance.schedule.lint import CATCH_UP, lint
from starview_app.maintenance.schedule.times import Times
from starview_app.maintenance.text import one_line

# Not those of the settings, whose templates are HTML.
_TEMPLATES = Engine(
    dirs=[str(Path(__file__).parent / "templates")],
    libraries={"yaml_text": f"{__package__}.yaml_text"},
)
# What a line without `timeout -k` gets between SIGTERM and SIGKILL: as in the crontab.
_KILL_AFTER_SECONDS = 60

# File name and text, in the order of the files.
Files = dict[str, str]
Export = Callable[[list["Line"]], Files]


class ExportError(ValueError):
    """A crontab, or a line of it, that a platform cannot have: what, and `fix`."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.fix = fix


@dataclass(frozen=True)
class Line:
    """A job of the crontab, and what the crontab says of it."""

    job: ScheduledJob
    comments: list[str]  # the lines above it, each from its # on

    @property
    def name(self) -> str:
        return self.job.job

    @property
    def command(self) -> str:
        """As the crontab has it, from JOB= on."""
        return self.job.command

    @property
    def bare_command(self) -> str:
        """From `python` on: without JOB= and `timeout`."""
        return self.command[self.command.index("python") :]

    @property
    def in_words(self) -> str:
        """The times for people, as the end of a sentence."""
        text = one_line(self.job.in_words)
        return text[0].lower() + text[1:]

    @cached_property
    def times(self) -> Times:
        return Times(self.job.times)

    @property
    def is_catch_up(self) -> bool:
        return self.job.django_command == CATCH_UP

    @property
    def kill_after_seconds(self) -> int:
        return round(self.job.kill_after_seconds or _KILL_AFTER_SECONDS)

    @property
    def longest_seconds(self) -> int | None:
        """When its own `timeout` has killed it; None for one without."""
        limit = self.job.deadline_seconds
        return round(limit) + self.kill_after_seconds if limit else None

    def cannot(self, text: str, fix: str) -> ExportError:
        return ExportError(f"crontab line {self.job.line}: {self.name} {text}", fix)


def read_lines(crontab: str) -> list[Line]:
    """The lines of a crontab that `jobs check` finds good, else ExportError."""
    for finding in lint(crontab):
        where = f" line {finding.line}" if finding.line else ""
        raise ExportError(f"crontab{where}: {finding.text}", finding.fix)
    rows = crontab.split("\n")
    return [
        Line(job, _comments_above(rows[: job.line - 1]))
        for job in parse_crontab(crontab)[0]
    ]


def render(template: str, **facts: object) -> str:
    return _TEMPLATES.get_template(template).render(Context(facts, autoescape=False))


def _comments_above(rows: list[str]) -> list[str]:
    found: list[str] = []
    # A job that is off is no comment.
    while rows and re.match(r"#\s", rows[-1]):
        found.insert(0, one_line(rows.pop().rstrip()))
    return found

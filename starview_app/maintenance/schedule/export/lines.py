"""The crontab's lines, with the values that the templates show."""

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

# Not the engine of the settings, which escapes HTML.
_TEMPLATES = Engine(
    dirs=[str(Path(__file__).parent / "templates")],
    libraries={"yaml_text": f"{__package__}.yaml_text"},
)
# Between SIGTERM and SIGKILL for a line without `timeout -k`: as in the crontab.
_KILL_AFTER_SECONDS = 60

# {file name: text}, in the order in which the files are shown.
Files = dict[str, str]
Export = Callable[[list["Line"]], Files]


class ExportError(ValueError):
    """The platform cannot express a line; the text says why, and `fix` what to do."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.fix = fix


@dataclass(frozen=True)
class Line:
    """A job of the crontab with its comments."""

    job: ScheduledJob
    comments: list[str]  # the comment lines above the job, with their #

    @property
    def name(self) -> str:
        return self.job.job

    @property
    def command(self) -> str:
        """The command as in the crontab, from JOB= on."""
        return self.job.command

    @property
    def bare_command(self) -> str:
        """The command from `python` on, without JOB= and `timeout`."""
        return self.command[self.command.index("python") :]

    @property
    def in_words(self) -> str:
        """The times in English, as the end of a sentence."""
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
        """The time after which its `timeout` has killed the job; None without one."""
        limit = self.job.deadline_seconds
        return round(limit) + self.kill_after_seconds if limit else None

    def cannot(self, text: str, fix: str) -> ExportError:
        return ExportError(f"crontab line {self.job.line}: {self.name} {text}", fix)


def read_lines(crontab: str) -> list[Line]:
    """Return the lines of a crontab; raise ExportError if `jobs check` refuses it."""
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
    # A job that is commented out is not a comment.
    while rows and re.match(r"#\s", rows[-1]):
        found.insert(0, one_line(rows.pop().rstrip()))
    return found

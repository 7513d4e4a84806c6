"""Reads the crontab, which is the only schedule; no other code parses it.

A line that the project records has one form, FORM: five time fields, `JOB=<name>`,
perhaps a `timeout`, and a management command with its arguments. Comments, empty lines
and NAME=VALUE lines schedule nothing. All times are UTC. `jobs check` refuses any other
line: supercronic may run it, but it would not be recorded, run again or announced.
"""

import re
import shlex
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from starview_app.maintenance.schedule.times import Times, TimesError

LONGEST_JOB = 50  # characters, of a monitor's slug
FORM = (
    "0 2 * * *  JOB=starview-NAME timeout -k 60 1h python manage.py COMMAND ARGUMENTS"
)
_FIELDS = "write minute, hour, day of month, month and day of week, such as 0 2 * * *"
_FIX = (
    f"write it as `{FORM}`: NAME in small letters, digits, - and _; `timeout` may be"
    " left out; an argument in quotation marks where it holds more than letters and"
    ' digits, a variable as "$NAME"'
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*)", re.ASCII)
# supercronic takes a line of the first form for an assignment, and the second for
# times.
_THEIR_ASSIGNMENT = re.compile(r"[^\s=]+\s*=")
_THEIR_TIMES = re.compile("@(yearly|annually|monthly|weekly|daily|hourly)")
_DURATION = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[smhd]?"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# No character with a meaning to a shell, except for variables.
_VARIABLE = r"\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\})"
_PLAIN = r"[A-Za-z0-9_@%+=:,./-]"
_WORD = rf"""(?:{_PLAIN}|{_VARIABLE}|'[^']*'|"(?:[^"\\`$]|{_VARIABLE})*")+"""
_COMMAND = re.compile(
    rf"""
    JOB=(?P<job>[a-z0-9_-]{{1,{LONGEST_JOB}}})[ \t]+
    (?:timeout[ \t]+(?:-k[ \t]+(?P<kill>{_DURATION})[ \t]+)?
        (?P<limit>{_DURATION})[ \t]+)?
    python[ \t]+manage\.py(?P<arguments>(?:[ \t]+{_WORD})+)
    """,
    re.VERBOSE | re.ASCII,
)
_LONGEST_LINE = 64 * 1024 - 1  # bytes, without the line end


class CrontabError(ValueError):
    """A line cannot be read; the text says what is wrong, and `fix` what to do.

    `job` is set if only the times of the line cannot be read.
    """

    def __init__(
        self, text: str, fix: str = _FIX, job: "ScheduledJob | None" = None
    ) -> None:
        super().__init__(text)
        self.fix = fix
        self.job = job


@dataclass(frozen=True)
class ScheduledJob:
    """One line of the crontab. `command` is passed to `/bin/sh -c` unchanged."""

    line: int
    times: str
    command: str

    @property
    def name(self) -> str:
        """The value of JOB=, or else the command."""
        return self.job or self.command

    @property
    def job(self) -> str:
        """The value of JOB=, or an empty string."""
        return self._part("job")

    @property
    def shell_command(self) -> str:
        """The command for `/bin/sh -c`, which passes no signal on unless it execs."""
        return f"exec env {self.command}"

    @property
    def in_words(self) -> str:
        """The times in English."""
        return self._times.in_words

    # -- what the command says --------------------------------------------------------

    @property
    def has_form(self) -> bool:
        """Whether the line has the form of a recorded line: see FORM."""
        return self._match is not None

    @property
    def arguments(self) -> list[str]:
        """The words after `manage.py`, unquoted; variables are not replaced."""
        return shlex.split(self._part("arguments"))

    @property
    def django_command(self) -> str:
        """The management command that does the work, which `run_job` may wrap."""
        name, *rest = (*self.arguments, "")
        return rest[0] if name == "run_job" and rest else name

    @property
    def deadline_seconds(self) -> float | None:
        """The time limit of `timeout`; None without one."""
        return _seconds(self._part("limit"))

    @property
    def kill_after_seconds(self) -> float | None:
        """The time between the signal of `timeout` and SIGKILL; None without `-k`."""
        return _seconds(self._part("kill"))

    @cached_property
    def _match(self) -> re.Match[str] | None:
        return _COMMAND.fullmatch(self.command)

    def _part(self, name: str) -> str:
        return (self._match[name] or "") if self._match else ""

    # -- when -------------------------------------------------------------------------

    @property
    def five_fields(self) -> str:
        return self.times

    def next_after(self, moment: datetime) -> datetime:
        """The first due time after `moment` (exclusive), in UTC."""
        return self._times.next_after(moment)

    def last_due(self, moment: datetime) -> datetime:
        """The last due time up to `moment` (inclusive), in UTC."""
        return self._times.last_due(moment)

    def shortest_gap_seconds(self) -> float:
        """The shortest time between two runs that follow each other."""
        return self._times.shortest_gap().total_seconds()

    @cached_property
    def _times(self) -> Times:
        return Times(self.times)


# -- the file ------------------------------------------------------------------------


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with a line that cannot be read, and how to fix it."""

    line: int
    text: str
    fix: str
    job: ScheduledJob | None  # as far as it could be read


def read_crontab(path: Path) -> list[ScheduledJob]:
    """Return the jobs of `path` in the order of its lines.

    Raises CrontabError for the first line that cannot be read, and OSError.
    """
    jobs, problems = parse_crontab(read_text(path))
    for problem in problems:
        raise CrontabError(
            f"{path.name} line {problem.line}: {problem.text}", problem.fix
        )
    return jobs


def read_text(path: Path) -> str:
    """Return the text as supercronic reads it: only a line feed ends a line.

    Bytes that are not UTF-8, which comments may have, become surrogates.
    """
    return path.read_bytes().decode(errors="surrogateescape")


def parse_crontab(text: str) -> tuple[list[ScheduledJob], list[LineProblem]]:
    """Return the jobs of the lines that can be read, and the problems of the others."""
    jobs, problems = [], []
    # splitlines() would also split at form feeds and Unicode's line separators.
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if job := _read_line(number, line):
                jobs.append(job)
        except CrontabError as error:
            problems.append(LineProblem(number, str(error), error.fix, error.job))
    return jobs, problems


def _read_line(number: int, line: str) -> ScheduledJob | None:
    if len(line.encode(errors="surrogateescape")) > _LONGEST_LINE:
        raise CrontabError(
            "longer than 64 KiB, which supercronic does not read", "write a script"
        )
    line = line.removesuffix("\r").lstrip(" \t")
    if not line or line.startswith("#"):
        return None
    for character in line:
        if not character.isprintable() and character != "\t":
            raise CrontabError(
                f"holds the invisible character U+{ord(character):04X}",
                "type the line anew, with plain blanks",
            )
    if assignment := _ASSIGNMENT.fullmatch(line):
        _check_assignment(*assignment.groups())
        return None
    if _THEIR_ASSIGNMENT.match(line):
        raise CrontabError(
            "supercronic takes it for NAME=VALUE", "use letters, digits and _ in NAME"
        )
    return _read_job(number, line)


def _check_assignment(name: str, value: str) -> None:
    if not value:
        raise CrontabError(
            f"{name}= with nothing after it makes supercronic panic",
            f'write {name}="" or take the line away',
        )
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    if name == "CRON_TZ" and value != "UTC":
        raise CrontabError(f"CRON_TZ={value}: all times are UTC", "write CRON_TZ=UTC")
    if name == "SHELL" and value != "/bin/sh":
        raise CrontabError(
            f"SHELL={value}: what is caught up with runs in /bin/sh",
            "take the line away, and write the command for /bin/sh",
        )
    if name == "JOB":
        raise CrontabError(
            f"JOB={value} on a line of its own would name all jobs",
            "write it in front of the command, in its line",
        )


def _read_job(number: int, line: str) -> ScheduledJob:
    *times, command = (*line.split(None, 5), "")[:6]
    if len(times) < 5 or not command:
        raise CrontabError(
            "no command after the times: a line has five time fields and a command"
        )
    job = ScheduledJob(number, " ".join(times), command.rstrip(" \t"))
    if not job.has_form:
        raise CrontabError("not a line that can be recorded, repeated and reported")
    try:
        if _THEIR_TIMES.search(job.times):
            raise TimesError(f"{job.times!r} holds a nickname")
        Times(job.times)
    except TimesError as error:
        raise CrontabError(f"bad times: {error}", _FIELDS, job) from None
    return job


def _seconds(duration: str) -> float | None:
    """Parse a duration as `timeout` does; None for 0, which means no limit."""
    unit = duration[-1:]
    number = duration.removesuffix(unit) if unit in _UNITS else duration
    return float(number or 0) * _UNITS.get(unit, 1) or None

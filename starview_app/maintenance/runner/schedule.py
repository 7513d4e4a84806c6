"""The one reader of `crontab`, in the grammar that supercronic runs it with.

A line is five time fields and a shell command; `JOB=<name>` in front of the command
names the job. Comments, empty lines and NAME=VALUE lines schedule nothing. All times
are UTC (design: the crontab is the only schedule).

What supercronic would read differently from cronsim is refused rather than guessed: it
takes lines with a year or seconds, and ends a week's ranges at Saturday.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from cronsim import CronSim, CronSimError

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*)")
_TIME_FIELD = re.compile(r"[\d*?,/#LW-]+")
# Of minute, hour, day of month, month, day of week: more would never come.
_LARGEST_STEP = (59, 23, 31, 12, 6)
_ANY_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_JOB = re.compile(r"(?:^|\s)JOB=([\w-]+)")
_MINUTE = timedelta(minutes=1)
# Of `timeout`, the program: with a value of their own, and its units in seconds.
_TIMEOUT_OPTIONS = {"-k", "--kill-after", "-s", "--signal"}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHELL_OPERATORS = set("();<>|&")
# How many runs are looked at for the shortest time between two: a year of daily ones.
_GAPS = 400


class CrontabError(ValueError):
    """A line that cannot be read; the text names file, line and what is wrong."""


@dataclass(frozen=True)
class ScheduledJob:
    """One line of the crontab. `command` goes to /bin/sh -c as it stands."""

    line: int
    times: str
    command: str

    @property
    def name(self) -> str:
        """What JOB= says, else the command itself."""
        return self.job or self.command

    @property
    def job(self) -> str:
        """What JOB= says, else nothing."""
        match = _JOB.search(self.command)
        return match.group(1) if match else ""

    @property
    def in_words(self) -> str:
        """The times for people, in English."""
        first, *second = self._either_day()
        words = CronSim(first, _ANY_MOMENT).explain()
        return (
            f"{words}, or {CronSim(second[0], _ANY_MOMENT).explain().split(' ', 2)[-1]}"
            if second
            else words
        )

    # -- what the command says --------------------------------------------------------

    @cached_property
    def words(self) -> list[str]:
        """The command's words, unexpanded; none where it is no simple command."""
        lexer = shlex.shlex(self.command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = ""
        try:
            return list(lexer)
        except ValueError:  # a quotation that does not end
            return []

    @property
    def is_simple(self) -> bool:
        """Whether it is one command, with no more of the shell than variables."""
        return bool(self.words) and not any(
            set(word) <= _SHELL_OPERATORS for word in self.words
        )

    @property
    def arguments(self) -> list[str]:
        """What follows `manage.py`, up to the end of that command; [] without it."""
        for position, word in enumerate(self.words):
            if word.rpartition("/")[2] == "manage.py":
                return list(_until_operator(self.words[position + 1 :]))
        return []

    @property
    def django_command(self) -> str:
        """The management command that does the work, also within `run_job`."""
        name, *rest = (*self.arguments, "")
        return rest[0] if name == "run_job" else name

    @property
    def deadline_seconds(self) -> float | None:
        """What `timeout` allows; None where there is none."""
        return self._timeout[0]

    @property
    def kill_after_seconds(self) -> float | None:
        """What `timeout -k` allows beyond that; None where there is none."""
        return self._timeout[1]

    @property
    def _timeout(self) -> tuple[float | None, float | None]:
        words = iter(self.words)
        kill_after = None
        if not any(word.rpartition("/")[2] == "timeout" for word in words):
            return None, None
        for word in words:
            option, separator, value = word.partition("=")
            if word.startswith("-k") and word != "-k":
                option, separator, value = "-k", "=", word[2:]
            if option in _TIMEOUT_OPTIONS:
                value = value if separator else next(words, "")
                if option in ("-k", "--kill-after"):
                    kill_after = _seconds(value)
            elif not word.startswith("-"):
                return _seconds(word), kill_after
        return None, None

    # -- when -------------------------------------------------------------------------

    def last_due(self, moment: datetime) -> datetime:
        """The last due time up to `moment` (inclusive), in UTC."""
        # The times are whole minutes; CronSim goes back from before its start.
        start = moment.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
        found = [
            next(CronSim(fields, start, reverse=True), None)
            for fields in self._either_day()
        ]
        return max(time for time in found if time)

    def shortest_gap_seconds(self) -> float:
        """The shortest time between two runs that follow each other."""
        times = [_ANY_MOMENT]
        for _ in range(_GAPS):
            times.append(self.next_after(times[-1]))
        gaps = [
            later - sooner for sooner, later in zip(times[1:], times[2:], strict=False)
        ]
        return min(gaps).total_seconds()

    def next_after(self, moment: datetime) -> datetime:
        """The first due time after `moment` (exclusive), in UTC.

        Raises CrontabError for times that never come.
        """
        start = moment.astimezone(UTC)
        try:
            return min(next(CronSim(fields, start)) for fields in self._either_day())
        except StopIteration:
            raise CrontabError(f"{self.times!r} never comes") from None

    def _either_day(self) -> list[str]:
        """The times as five fields; with both day fields set, once for each of them.

        supercronic runs the job when either matches, also when one begins with a star.
        """
        times = _NICKNAMES.get(self.times, self.times)
        minute, hour, day_of_month, month, day_of_week = times.split()
        if "*" in (day_of_month, day_of_week):
            return [times]
        return [
            f"{minute} {hour} {day_of_month} {month} *",
            f"{minute} {hour} * {month} {day_of_week}",
        ]


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with a line that cannot be read."""

    line: int
    text: str
    cause: Exception


def read_crontab(path: Path) -> list[ScheduledJob]:
    """The jobs of `path` in the order of its lines.

    Raises CrontabError for the first line that cannot be read, OSError without a file.
    """
    jobs, problems = parse_crontab(path.read_text(encoding="utf-8"))
    for problem in problems:
        raise CrontabError(
            f"{path.name} line {problem.line}: {problem.text}"
        ) from problem.cause
    return jobs


def parse_crontab(text: str) -> tuple[list[ScheduledJob], list[LineProblem]]:
    """The jobs of the lines that can be read, and what is wrong with the others."""
    jobs, problems = [], []
    # Not splitlines(), which also splits at form feeds and Unicode's line separators.
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if assignment := _ASSIGNMENT.match(line):
                _check_assignment(*assignment.groups())
            else:
                jobs.append(_read_job(number, line))
        except (ValueError, CronSimError) as error:
            problems.append(LineProblem(number, str(error), error))
    return jobs, problems


def _check_assignment(name: str, value: str) -> None:
    if not value:
        raise ValueError(f"{name}= with nothing after it makes supercronic panic")
    if name == "CRON_TZ" and value.strip("\"'") not in ("UTC", "Etc/UTC"):
        raise ValueError(f"CRON_TZ={value}: all times are UTC")


def _read_job(number: int, line: str) -> ScheduledJob:
    count = 1 if line.startswith("@") else 5
    *times, command = (*line.split(None, count), "")[: count + 1]
    if len(times) < count or not command:
        raise ValueError("no command after the times")
    if _TIME_FIELD.fullmatch(command.split(None, 1)[0]):
        raise ValueError(
            "more than five time fields: supercronic reads years and seconds"
        )
    if count == 5:
        _check_fields(times)
    job = ScheduledJob(number, " ".join(times), command.strip())
    job.next_after(_ANY_MOMENT)
    return job


def _check_fields(fields: list[str]) -> None:
    for field, largest_step in zip(fields, _LARGEST_STEP, strict=True):
        if re.search(r"\d{3}|(^|\D)0\d{2}", field):
            raise ValueError(f"bad times: {field!r} is out of range")
        for step in re.findall(r"/(\d+)", field):
            if not 1 <= int(step) <= largest_step:
                raise ValueError(f"bad times: the step of {field!r} is out of range")
    if "-7" in fields[4]:
        raise ValueError(f"bad times: {fields[4]!r}: a range ends on 6; Sunday is 0")


def _until_operator(words: list[str]) -> Iterator[str]:
    for word in words:
        if set(word) <= _SHELL_OPERATORS:
            return
        yield word


def _seconds(duration: str) -> float | None:
    """As `timeout` reads it; None for what it refuses, and for 0, which is no limit."""
    match = _DURATION.fullmatch(duration)
    if not match:
        return None
    return float(match[1]) * _UNITS[match[2]] or None

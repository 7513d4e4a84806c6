"""The one reader of `crontab`, in the grammar that supercronic runs it with.

A line is five time fields and a shell command; `JOB=<name>` in front of the command
names the job. Comments, empty lines and NAME=VALUE lines schedule nothing. All times
are UTC (design: the crontab is the only schedule).

What supercronic would read differently from cronsim is refused rather than guessed: it
takes lines with a year or seconds, and ends a week's ranges at Saturday.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from getopt import GetoptError, getopt
from itertools import dropwhile, pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

from cronsim import CronSim, CronSimError
from cronsim.cronsim import SYMBOLIC_DAYS, SYMBOLIC_MONTHS

from starview_app.maintenance.runner.crontab.shell import ShellLine, read_shell

LONGEST_JOB = 200  # characters that are kept of a name
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*)")
# A year, or a day of the week before a year.
_TIME_FIELD = re.compile(
    r"([\d*?,/#LW-]|(sun|mon|tue|wed|thu|fri|sat)((s|nes|rs|ur)?day)?)+", re.IGNORECASE
)
# Of minute, hour, day of month, month, day of week: more would never come.
_LARGEST_STEP = (59, 23, 31, 12, 6)
_NUMBERS = {name: str(number) for number, name in enumerate(SYMBOLIC_DAYS)}
_NUMBERS |= {name: str(number) for number, name in enumerate(SYMBOLIC_MONTHS, 1)}
_LONGEST_LINE = 64 * 1024 - 1  # bytes, without its end
_ANY_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
# After these years the days of the week and the leap years come round again.
_ROUND = timedelta(days=28 * 366)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIMEOUT_OPTIONS = [
    "foreground",
    "kill-after=",
    "preserve-status",
    "signal=",
    "verbose",
]
# These may stand between the words NAME=VALUE and the program.
_STARTERS = {"env", "exec"}
# No programs: `exec env` cannot start them.
_SHELL_ONLY = {
    *("!", "{", ".", "alias", "case", "cd", "command", "eval", "exec", "export", "for"),
    *("if", "read", "set", "trap", "ulimit", "umask", "unset", "until", "while"),
}
_FIVE_FIELDS = (
    "write minute, hour, day of month, month and day of week, such as 0 2 * * *"
)


class CrontabError(ValueError):
    """A line that cannot be read: what is wrong with it, and `fix`.

    `job` is there when all but its times can be read.
    """

    def __init__(
        self, text: str, fix: str = _FIVE_FIELDS, job: "ScheduledJob | None" = None
    ) -> None:
        super().__init__(text)
        self.fix = fix
        self.job = job


class _Start(NamedTuple):
    """How a command begins: what `timeout` allows it, and the program behind that."""

    deadline_seconds: float | None
    kill_after_seconds: float | None
    program: list[str]


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
        return self.job_names[-1][:LONGEST_JOB] if self.job_names else ""

    @property
    def job_names(self) -> list[str]:
        """What each JOB= in front of the program says; the last one counts."""
        leading = takewhile(_is_leading, self.words)
        return [word[4:] for word in leading if word.startswith("JOB=")]

    @property
    def in_words(self) -> str:
        """The times for people, in English."""
        first, *second = map(_explain, self._either_day())
        if not second:
            return first
        minute, hour, *_ = self._fields()
        time = _explain(f"{minute} {hour} * * *").removesuffix(" every day")
        return f"{first}, or {second[0].removeprefix(time).strip() or 'every day'}"

    @property
    def five_fields(self) -> str:
        """The times without a nickname such as @daily."""
        return " ".join(self._fields())

    # -- what the command says --------------------------------------------------------

    @property
    def words(self) -> list[str]:
        """The words of the command that runs manage.py, else of the first one.

        Without quotation marks and redirections; variables are left as they stand.
        """
        return next(filter(_manage, self._shell.commands), self._shell.commands[0])

    @property
    def is_whole(self) -> bool:
        """Whether every quotation of it ends, so that a shell can run it."""
        return self._shell.is_whole

    @property
    def is_simple(self) -> bool:
        """Whether `exec env` in front of it runs the same, in the shell's place."""
        program = next((word for word in self.words if not _is_assignment(word)), "")
        return (
            not self._shell.operators and bool(program) and program not in _SHELL_ONLY
        )

    @property
    def arguments(self) -> list[str]:
        """What follows `manage.py`, up to the end of that command; [] without it."""
        return self.words[_manage(self.words) :] if _manage(self.words) else []

    @property
    def django_command(self) -> str:
        """The management command that does the work, also within `run_job`."""
        name, *rest = (*self.arguments, "")
        return rest[0] if name == "run_job" else name

    @property
    def deadline_seconds(self) -> float | None:
        """What `timeout` allows; None where there is none."""
        return self._start.deadline_seconds

    @property
    def kill_after_seconds(self) -> float | None:
        """What `timeout -k` allows beyond that; None where there is none."""
        return self._start.kill_after_seconds

    @property
    def program(self) -> list[str]:
        """What runs manage.py, up to it and without `timeout`; [] where none does."""
        return self._start.program if _manage(self.words) else []

    @cached_property
    def _start(self) -> _Start:
        before = self.words[: _manage(self.words) or None]
        names = [word.rpartition("/")[2] for word in before]
        if "timeout" not in names:
            return _Start(None, None, list(dropwhile(_is_leading, before)))
        try:
            options, (duration, *program) = getopt(
                before[names.index("timeout") + 1 :], "fk:ps:v", _TIMEOUT_OPTIONS
            )
            kill_after = [
                _seconds(value)
                for option, value in options
                if option in ("-k", "--kill-after")
            ]
            seconds = _seconds(duration)
        except (GetoptError, ValueError):
            return _Start(None, None, [])
        return _Start(seconds, kill_after[-1] if kill_after else None, program)

    @cached_property
    def _shell(self) -> ShellLine:
        return read_shell(self.command)

    # -- when -------------------------------------------------------------------------

    def next_after(self, moment: datetime) -> datetime:
        """The first due time after `moment` (exclusive), in UTC."""
        start = moment.astimezone(UTC)
        return min(next(CronSim(fields, start)) for fields in self._either_day())

    def last_due(self, moment: datetime) -> datetime:
        """The last due time up to `moment` (inclusive), in UTC."""
        # The times are whole minutes; CronSim goes back from before its start.
        start = moment.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
        return max(
            next(CronSim(fields, start, reverse=True)) for fields in self._either_day()
        )

    def shortest_gap_seconds(self) -> float:
        """The shortest time between two runs that follow each other."""
        times = self._times_of_a_day()
        within_a_day = [later - sooner for sooner, later in pairwise(times)]
        over_night = self._fewest_days_between() - (times[-1] - times[0])
        return min([*within_a_day, over_night]).total_seconds()

    def _times_of_a_day(self) -> list[datetime]:
        minute, hour, *_ = self._fields()
        sim = CronSim(f"{minute} {hour} * * *", _ANY_MOMENT - _MINUTE)
        tomorrow = _ANY_MOMENT + timedelta(days=1)
        return list(takewhile(lambda time: time < tomorrow, sim))

    def _fewest_days_between(self) -> timedelta:
        days = ScheduledJob(self.line, " ".join(("0", "0", *self._fields()[2:])), "")
        fewest, day = _ROUND, days.next_after(_ANY_MOMENT)
        while day < _ANY_MOMENT + _ROUND and fewest > timedelta(days=1):
            following = days.next_after(day)
            fewest, day = min(fewest, following - day), following
        return fewest

    def _fields(self) -> list[str]:
        return _NICKNAMES.get(self.times, self.times).split()

    def _either_day(self) -> list[str]:
        """The times as five fields; with both day fields set, once for each of them.

        supercronic runs the job when either matches, also when one begins with a star.
        """
        minute, hour, day_of_month, month, day_of_week = self._fields()
        if "*" in (day_of_month, day_of_week):
            return [f"{minute} {hour} {day_of_month} {month} {day_of_week}"]
        return [
            f"{minute} {hour} {day_of_month} {month} *",
            f"{minute} {hour} * {month} {day_of_week}",
        ]


# -- the file ------------------------------------------------------------------------


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with a line that cannot be read, and how to mend it."""

    line: int
    text: str
    fix: str
    job: ScheduledJob | None  # as far as it could be read


def read_crontab(path: Path) -> list[ScheduledJob]:
    """The jobs of `path` in the order of its lines.

    Raises CrontabError for the first line that cannot be read, OSError without a file.
    """
    jobs, problems = parse_crontab(read_text(path))
    for problem in problems:
        raise CrontabError(
            f"{path.name} line {problem.line}: {problem.text}", problem.fix
        )
    return jobs


def read_text(path: Path) -> str:
    """The file as supercronic reads it: only a line feed ends a line.

    A comment need not be UTF-8; bytes that are not become surrogates.
    """
    return path.read_bytes().decode(errors="surrogateescape")


def parse_crontab(text: str) -> tuple[list[ScheduledJob], list[LineProblem]]:
    """The jobs of the lines that can be read, and what is wrong with the others."""
    jobs, problems = [], []
    # Not splitlines(), which also splits at form feeds and Unicode's line separators.
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
    count = 1 if line.startswith("@") else 5
    *times, command = (*line.split(None, count), "")[: count + 1]
    if len(times) < count or not command:
        raise CrontabError(
            "no command after the times: a line has five time fields and a command"
        )
    if _TIME_FIELD.fullmatch(command.split(None, 1)[0]):
        raise CrontabError(
            "more than five time fields: supercronic reads years and seconds"
        )
    job = ScheduledJob(number, " ".join(times), command.strip())
    if wrong := _problem_of_times(times):
        raise CrontabError(*wrong, job)
    return job


class _Wrong(NamedTuple):
    text: str
    fix: str = _FIVE_FIELDS


def _problem_of_times(times: list[str]) -> _Wrong | None:
    if len(times) == 1:
        if times[0] in _NICKNAMES:
            return None
        return _Wrong(
            f"bad times: supercronic does not know {times[0]!r}",
            f"write {', '.join(_NICKNAMES)} or five fields",
        )
    return next(_problems_of_fields(times), None)


def _problems_of_fields(fields: list[str]) -> Iterator[_Wrong]:
    for field, largest_step in zip(fields, _LARGEST_STEP, strict=True):
        if re.search(r"\d{3}|(^|\D)0\d{2}", field):
            yield _Wrong(f"bad times: {field!r} is out of range")
        for step in re.findall(r"/(\d+)", field):
            if not 1 <= int(step) <= largest_step:
                yield _Wrong(
                    f"bad times: the step of {field!r} is out of range",
                    f"write a step from 1 to {largest_step}",
                )
        if "," in field and "*" in field.split(","):
            yield _Wrong(f"bad times: {field!r} lists * and more", "write * alone")
        for first, last in re.findall(r"(\w+)-(\w+)/", field.upper()):
            if _number(first) == _number(last):
                yield _Wrong(
                    f"bad times: {field!r} has a step within one number",
                    "take the step away",
                )
    if re.search(r"LW?/", fields[2].upper()):
        yield _Wrong(f"bad times: {fields[2]!r}: the last day has no steps")
    if re.search(r"-7|(^|,)\w+/", fields[4]):
        yield _Wrong(
            f"bad times: {fields[4]!r}: a range ends on 6, and a step needs a range",
            "write Sunday as 0: 0,5,6 for 5-7, 1-6/2 for 1/2",
        )
    for alone in ScheduledJob(0, " ".join(fields), "")._either_day():
        try:
            CronSim(alone, _ANY_MOMENT)
        except CronSimError as error:
            yield _why(fields, str(error))


def _why(fields: list[str], refusal: str) -> _Wrong:
    """Why CronSim refuses the fields: it says the same of 31 in June as of 32."""
    try:
        CronSim(f"0 0 {fields[2]} * *", _ANY_MOMENT)
    except CronSimError:
        pass
    else:
        if "day-of-month" in refusal:
            return _Wrong(
                f"day {fields[2]} of month {fields[3]} never comes",
                "name a day that the month has; L is its last day",
            )
    return _Wrong(f"bad times {' '.join(fields)!r}: {refusal.lower()}")


def _number(text: str) -> str:
    """Of a name or a number, for comparison."""
    return _NUMBERS.get(text, text.lstrip("0") or "0")


def _manage(words: list[str]) -> int:
    """How many words there are up to and with `manage.py`; 0 where it does not come."""
    names = [word.rpartition("/")[2] for word in words]
    return names.index("manage.py") + 1 if "manage.py" in names else 0


def _is_leading(word: str) -> bool:
    """Whether the program comes behind it."""
    return word in _STARTERS or _is_assignment(word)


def _is_assignment(word: str) -> bool:
    return re.match(r"[A-Za-z_]\w*=", word) is not None


def _seconds(duration: str) -> float | None:
    """As `timeout` reads it; None for 0, which is no limit. Raises ValueError."""
    match = _DURATION.fullmatch(duration)
    if not match:
        raise ValueError(duration)
    return float(match[1]) * _UNITS[match[2]] or None


def _explain(fields: str) -> str:
    return CronSim(fields, _ANY_MOMENT).explain()

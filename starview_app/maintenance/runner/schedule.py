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
from datetime import UTC, datetime
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
        match = _JOB.search(self.command)
        return match.group(1) if match else self.command

    def next_after(self, moment: datetime) -> datetime:
        """The first due time after `moment` (exclusive), in UTC.

        Raises CrontabError for times that never come.
        """
        start = moment.astimezone(UTC)
        try:
            return min(next(CronSim(fields, start)) for fields in self._either_day())
        except StopIteration:
            raise CrontabError(
                f"line {self.line}: {self.times!r} never comes"
            ) from None

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


def read_crontab(path: Path) -> list[ScheduledJob]:
    """The jobs of `path` in the order of its lines. Raises CrontabError."""
    try:
        return list(_jobs(path.read_text(encoding="utf-8")))
    except CrontabError as error:
        raise CrontabError(f"{path.name} {error}") from error.__cause__


def _jobs(text: str) -> Iterator[ScheduledJob]:
    # Not splitlines(), which also splits at form feeds and Unicode's line separators.
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if assignment := _ASSIGNMENT.match(line):
                _check_assignment(*assignment.groups())
            else:
                yield _read_job(number, line)
        except (ValueError, CronSimError) as error:
            raise CrontabError(f"line {number}: {error}") from error


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

"""The one reader of `crontab`, in the grammar that supercronic runs it with.

A line is five time fields and a shell command; `JOB=<name>` in front of the command
names the job. Comments, empty lines and NAME=VALUE lines schedule nothing. All times
are UTC (design: the crontab is the only schedule).
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
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\s*=")
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
        try:
            return next(CronSim(self._fields, moment.astimezone(UTC)))
        except StopIteration:
            raise CrontabError(
                f"line {self.line}: {self.times!r} never comes"
            ) from None

    @property
    def _fields(self) -> str:
        return _NICKNAMES.get(self.times, self.times)


def read_crontab(path: Path) -> list[ScheduledJob]:
    """The jobs of `path` in the order of its lines. Raises CrontabError."""
    return [_checked(path, job) for job in _jobs(path)]


def _jobs(path: Path) -> Iterator[ScheduledJob]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = text.strip()
        if not line or line.startswith("#") or _ASSIGNMENT.match(line):
            continue
        fields = 1 if line.startswith("@") else 5
        *times, command = (*line.split(None, fields), "")[: fields + 1]
        yield ScheduledJob(number, " ".join(times), command.strip())


def _checked(path: Path, job: ScheduledJob) -> ScheduledJob:
    if not job.command:
        raise CrontabError(f"{path.name} line {job.line}: no command after the times")
    try:
        CronSim(job._fields, _ANY_MOMENT)
    except CronSimError as error:
        raise CrontabError(
            f"{path.name} line {job.line}: bad times {job.times!r}: {error}"
        ) from error
    return job

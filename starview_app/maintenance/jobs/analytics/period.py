"""The period of a report: the last whole week or month, and the one before it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

_DAY = timedelta(days=1)


class Kind(StrEnum):
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True)
class Period:
    """From `start` to `end` (exclusive); both are midnights of UTC."""

    kind: Kind
    start: datetime
    end: datetime

    @property
    def before(self) -> Period:
        """The period that ends at the start of this one."""
        return last_whole(self.kind, self.start)

    @property
    def days(self) -> list[datetime]:
        count = (self.end - self.start) // _DAY
        return [self.start + number * _DAY for number in range(count)]

    @property
    def name(self) -> str:
        """The period's name: `week 47 of 2026`, `October 2026`."""
        if self.kind is Kind.WEEK:
            year, week, _ = self.start.isocalendar()
            return f"week {week} of {year}"
        return f"{self.start:%B %Y}"

    @property
    def short_name(self) -> str:
        """The name for the head of a column: `week 47`, `Oct 2026`."""
        if self.kind is Kind.WEEK:
            return f"week {self.start.isocalendar().week}"
        return f"{self.start:%b %Y}"

    def __str__(self) -> str:
        """The first and the last day, both inclusive."""
        return f"{self.start:%Y-%m-%d} to {self.end - _DAY:%Y-%m-%d}"


def last_whole(kind: Kind, now: datetime) -> Period:
    """Return the last ISO week (from Monday) or calendar month that is over at `now`.

    A period that ends exactly at `now` is over.
    """
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind is Kind.WEEK:
        end = today - today.weekday() * _DAY
        return Period(kind, end - 7 * _DAY, end)
    end = today.replace(day=1)
    return Period(kind, (end - _DAY).replace(day=1), end)

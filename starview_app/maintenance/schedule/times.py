"""Five time fields, read exactly as supercronic reads them, and when they are due.

supercronic has oddities, which are copied here, since they decide when a job runs: `03`
as a day of the week is Sunday, the range 0-7 of these days is Sunday only, and the rest
of a list is ignored after a `*`. tests/test_schedule.py compares both parsers.
"""

import re
from calendar import monthrange
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field

_ANY_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
# Days of the week and leap years repeat after 28 years.
_ROUND = timedelta(days=28 * 366)
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august"),
    *("september", "october", "november", "december"),
)
_WEEKDAYS = (
    *("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"),
)


class TimesError(ValueError):
    """Fields that supercronic refuses, or that are never due."""


@dataclass(frozen=True)
class _Kind:
    """What a field may contain; `values` maps each spelling to its number."""

    name: str
    values: dict[str, int]
    first: int
    last: int
    takes_days: bool = False


def _numbers(first: int, last: int) -> dict[str, int]:
    spelled = {str(number): number for number in range(first, last + 1)}
    return spelled | {f"{number:02}": number for number in range(first, last + 1)}


def _names(names: tuple[str, ...], first: int) -> dict[str, int]:
    spelled = {name: number for number, name in enumerate(names, first)}
    return spelled | {name[:3]: number for name, number in spelled.items()}


_MINUTES = _Kind("minute", _numbers(0, 59), 0, 59)
_HOURS = _Kind("hour", _numbers(0, 23), 0, 23)
_DAYS_OF_MONTH = _Kind("day-of-month", _numbers(1, 31), 1, 31, takes_days=True)
_MONTHS_OF_YEAR = _Kind("month", _numbers(1, 12) | _names(_MONTHS, 1), 1, 12)
# supercronic knows no day of the week with two digits, and takes it for Sunday, like 7.
_DAYS_OF_WEEK = _Kind(
    "day-of-week",
    {str(number): number % 7 for number in range(8)}
    | {f"0{number}": 0 for number in range(8)}
    | _names(_WEEKDAYS, 0),
    0,
    6,
    takes_days=True,
)


@dataclass
class _Days:
    """The values of one field. `is_any`: it has a *, and does not restrict the days."""

    values: set[int] = field(default_factory=set)
    words: list[str] = field(default_factory=list)  # L, 15w, 5l, 5#2, in lower case
    is_any: bool = False


def _read(text: str, kind: _Kind) -> _Days:
    entries = [entry for entry in text.lower().split(",") if entry]
    if not entries:
        raise TimesError(f"bad {kind.name}: {text!r} holds no value")
    # supercronic parses all the entries first, and then ignores those after a *.
    parts = [_entry(entry, kind) for entry in entries]
    found = _Days()
    for entry, values in zip(entries, parts, strict=True):
        if entry in ("*", "?"):
            found.is_any = True
            if not kind.takes_days:
                return found
        elif values is not None:
            found.values |= values
        elif kind.takes_days:
            found.words.append(entry)
        else:
            raise TimesError(f"bad {kind.name}: {entry!r}")
    return found


def _entry(entry: str, kind: _Kind) -> set[int] | None:
    """Return the entry's values; None if it is a word for days, or wrong."""
    values = kind.values
    if entry in ("*", "?"):
        return set()
    if entry in values:
        return {values[entry]}
    match = re.fullmatch(r"(?:\*|([^-/]+?)(?:-([^-/]+))?)(?:/([0-9]+))?", entry)
    if not match:
        return None
    begin, end, step = match.groups()
    if not {begin, end} - {None} <= values.keys():
        return None
    first = values[begin] if begin else kind.first
    last = values[end] if end else kind.last
    if step is None:
        if last < first:
            raise TimesError(f"bad {kind.name}: {entry!r} ends before it begins")
        return set(range(first, last + 1))
    # supercronic refuses a step of more than two digits.
    if len(step) > 2 or not 1 <= int(step) <= kind.last:
        raise TimesError(
            f"bad {kind.name}: the step of {entry!r} is not from 1 to {kind.last}"
        )
    return set(range(first, last + 1, int(step)))


class Times:
    """When a line is due. Raises TimesError for fields that are never due."""

    def __init__(self, fields: str) -> None:
        minute, hour, day, month, weekday = fields.split()
        self.fields = fields
        self.minutes = _times_of(minute, _MINUTES)
        self.hours = _times_of(hour, _HOURS)
        self.days = _read(day, _DAYS_OF_MONTH)
        self.months = _times_of(month, _MONTHS_OF_YEAR)
        self.weekdays = _read(weekday, _DAYS_OF_WEEK)
        self._is_last = "l" in self.days.words
        self._is_last_workday = "lw" in self.days.words
        self._workdays = {
            _number_of(word, r"(.+)w", _DAYS_OF_MONTH)[0]
            for word in self.days.words
            if word not in ("l", "lw")
        }
        self.last_weekdays: set[int] = set()
        self.nth_weekdays: set[tuple[int, int]] = set()
        for word in self.weekdays.words:
            if word.endswith("l"):
                self.last_weekdays.add(_number_of(word, r"(.+)l", _DAYS_OF_WEEK)[0])
            else:
                number, nth = _number_of(word, r"(.+)#([1-5])", _DAYS_OF_WEEK)
                self.nth_weekdays.add((number, nth))
        try:
            self.next_after(_ANY_MOMENT)
        except StopIteration:
            raise TimesError(f"{fields!r} never comes") from None

    def next_after(self, moment: datetime) -> datetime:
        """The first due time after `moment` (exclusive), in UTC."""
        return next(_Sim(self, moment.astimezone(UTC)))

    def last_due(self, moment: datetime) -> datetime:
        """The last due time up to `moment` (inclusive), in UTC."""
        # Times are whole minutes; going back, CronSim begins before its start.
        start = moment.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
        return next(_Sim(self, start, reverse=True))

    def includes(self, day: date) -> bool:
        """Whether `day` is due; if both fields of days are set, either counts."""
        if self.days.is_any and self.weekdays.is_any:
            return True
        by_day = not self.days.is_any and self._is_day(day)
        return by_day or (not self.weekdays.is_any and self._is_weekday(day))

    def shortest_gap(self) -> timedelta:
        """The shortest time between two runs that follow each other."""
        times = [
            timedelta(hours=hour, minutes=minute)
            for hour in sorted(self.hours)
            for minute in sorted(self.minutes)
        ]
        within_a_day = [later - sooner for sooner, later in pairwise(times)]
        over_night = self._fewest_days_between() - (times[-1] - times[0])
        return min([*within_a_day, over_night])

    @property
    def in_words(self) -> str:
        """The times in English, or the fields themselves if CronSim has no words."""
        minute, hour, day, month, weekday = self._plain_fields()
        if self.days.is_any or self.weekdays.is_any:
            return _explain(" ".join((minute, hour, day, month, weekday)), self.fields)
        first = _explain(f"{minute} {hour} {day} {month} *", self.fields)
        time = _explain(f"{minute} {hour} * * *", "").removesuffix(" every day")
        second = _explain(f"{minute} {hour} * {month} {weekday}", "")
        if not second or first == self.fields:
            return self.fields
        return f"{first}, or {second.removeprefix(time).strip() or 'every day'}"

    # -- internal helpers ---------------------------------------------------------

    def _is_day(self, day: date) -> bool:
        last = monthrange(day.year, day.month)[1]
        return (
            day.day in self.days.values
            or (self._is_last and day.day == last)
            or (self._is_last_workday and day.day == _workday(day, last, last))
            or any(
                number <= last and day.day == _workday(day, number, last)
                for number in self._workdays
            )
        )

    def _is_weekday(self, day: date) -> bool:
        number = day.isoweekday() % 7
        last = monthrange(day.year, day.month)[1]
        return (
            number in self.weekdays.values
            or (number in self.last_weekdays and day.day + 7 > last)
            or (number, (day.day + 6) // 7) in self.nth_weekdays
        )

    def _fewest_days_between(self) -> timedelta:
        fewest, day = _ROUND, self.next_after(_ANY_MOMENT)
        while day < _ANY_MOMENT + _ROUND and fewest > _DAY:
            evening = day.replace(hour=23, minute=59)
            following = self.next_after(evening)
            fewest, day = min(fewest, following.date() - day.date()), following
        return fewest

    def _plain_fields(self) -> Iterator[str]:
        """The fields in a form that CronSim reads in the same way and can describe."""
        minute, hour, day, month, _ = self.fields.upper().split()
        yield _plain(minute, self.minutes, Field.MINUTE)
        yield _plain(hour, self.hours, Field.HOUR)
        if self.days.is_any:
            yield "*"
        else:
            yield day if self.days.words else _plain(day, self.days.values, Field.DAY)
        yield _plain(month, self.months, Field.MONTH)
        if self.weekdays.is_any or len(self.weekdays.values) == 7:
            yield "*"
        else:
            words = [f"{number}L" for number in sorted(self.last_weekdays)]
            words += [f"{day}#{nth}" for day, nth in sorted(self.nth_weekdays)]
            yield ",".join([*_ranges(self.weekdays.values), *words])


class _Sim(CronSim):
    """CronSim's steps through the calendar, with the values that supercronic reads."""

    def __init__(self, times: Times, start: datetime, *, reverse: bool = False) -> None:
        super().__init__("* * * * *", start, reverse)
        self.minutes, self.hours, self.months = times.minutes, times.hours, times.months
        self._times = times

    def match_day(self, d: date) -> bool:
        return self._times.includes(d)


def _times_of(text: str, kind: _Kind) -> set[int]:
    found = _read(text, kind)
    if not found.values and not found.is_any:
        raise TimesError(f"bad {kind.name}: {text!r} never comes")
    return set(range(kind.first, kind.last + 1)) if found.is_any else found.values


def _number_of(word: str, form: str, kind: _Kind) -> tuple[int, int]:
    match = re.fullmatch(form, word)
    if not match or match[1] not in kind.values:
        raise TimesError(f"bad {kind.name}: {word!r}")
    return kind.values[match[1]], int(match[2]) if form.endswith(")") else 0


def _workday(month: date, number: int, last: int) -> int:
    """Return the nearest day from Monday to Friday within the month."""
    weekday = month.replace(day=number).isoweekday()
    if weekday == 6:
        return number - 1 if number > 1 else number + 2
    if weekday == 7:
        return number + 1 if number < last else number - 2
    return number


def _plain(text: str, values: set[int], kind: Field) -> str:
    """Return `text` if CronSim reads the same values in it, else the values."""
    with suppress(CronSimError, AssertionError):
        if kind.parse(text) == values:
            return text
    return ",".join(_ranges(values))


def _ranges(values: set[int]) -> list[str]:
    """Return 1, 2, 3 and 5 as 1-3 and 5."""
    found: list[list[int]] = []
    for value in sorted(values):
        if found and value == found[-1][-1] + 1:
            found[-1].append(value)
        else:
            found.append([value])
    return [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run))
        for run in found
    ]


def _explain(fields: str, otherwise: str) -> str:
    try:
        return CronSim(fields, _ANY_MOMENT).explain()
    except CronSimError:
        return otherwise

"""The times in the syntax of systemd's timers: OnCalendar=, in UTC."""

from collections.abc import Iterable, Iterator

from starview_app.maintenance.schedule.export.cron_fields import (
    is_daily,
    runs_of,
    step_of,
)
from starview_app.maintenance.schedule.export.lines import Line

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def on_calendar(line: Line) -> list[str]:
    """Return the values for OnCalendar=; a timer elapses when any of them does.

    So a line with a day of the month and a day of the week, of which either counts,
    needs two. Raises ExportError for W, which systemd cannot express.
    """
    times = line.times
    month = _values(times.months, 12, first=1)
    hour, minute = _values(times.hours, 24), _values(times.minutes, 60)
    return [f"{day} {hour}:{minute}:00 UTC" for day in _days(line, f"*-{month}")]


def _days(line: Line, month: str) -> Iterator[str]:
    days, weekdays = line.times.days, line.times.weekdays
    if is_daily(line.times):
        yield f"{month}-*"
        return
    if not days.is_any:
        if days.values:
            yield f"{month}-{_ranges(days.values)}"
        for word in dict.fromkeys(days.words):
            if word != "l":
                raise line.cannot(
                    f"is due on {word.upper()!r}, which systemd cannot say",
                    "write the days as numbers, such as 28-31",
                )
            yield f"{month}~01"  # counted from the end
    if not weekdays.is_any:
        if weekdays.values:
            names = [_WEEKDAYS[number] for number in sorted(weekdays.values)]
            yield f"{','.join(names)} {month}-*"
        for number in sorted(line.times.last_weekdays):
            yield f"{_WEEKDAYS[number]} {month}~07/1"
        for number, nth in sorted(line.times.nth_weekdays):
            first, last = 7 * nth - 6, min(7 * nth, 31)
            yield f"{_WEEKDAYS[number]} {month}-{first:02}..{last:02}"


def _values(values: set[int], count: int, *, first: int = 0) -> str:
    if len(values) == count:
        return "*"
    step = None if first else step_of(values, count)
    return f"00/{step}" if step else _ranges(values)


def _ranges(values: Iterable[int]) -> str:
    return ",".join(
        f"{first:02}" if first == last else f"{first:02}..{last:02}"
        for first, last in runs_of(values)
    )

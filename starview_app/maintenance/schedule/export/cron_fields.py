"""The times in five fields that every cron reads in the same way.

supercronic's dialect has forms that other crons refuse or read differently: see
`schedule.times`. So the values are written out.
"""

from collections.abc import Iterable

from starview_app.maintenance.schedule.export.lines import Line
from starview_app.maintenance.schedule.times import Times


def five_fields(line: Line, platform: str) -> str:
    """Return minute, hour, day of month, month and day of week, in numbers.

    Raises ExportError for L, W and #, which other crons do not have.
    """
    times = line.times
    if words := [*times.days.words, *times.weekdays.words]:
        raise line.cannot(
            f"is due on {words[0].upper()!r}, which {platform} does not know",
            "write the days as numbers, such as 28-31",
        )
    day = weekday = "*"
    # Without steps: some crons treat */2 like *, as a field that restricts nothing.
    if not is_daily(times):
        # If a field contains no day at all, like 20-5/3, only the other field counts.
        day = "*" if times.days.is_any else _ranges(times.days.values) or "*"
        weekday = (
            "*" if times.weekdays.is_any else _ranges(times.weekdays.values) or "*"
        )
    month = "*" if len(times.months) == 12 else _ranges(times.months)
    minute, hour = _steps(times.minutes, 60), _steps(times.hours, 24)
    return " ".join((minute, hour, day, month, weekday))


def is_daily(times: Times) -> bool:
    """Whether every day is due: if both fields of days are set, either counts."""
    days, weekdays = times.days, times.weekdays
    return (
        (days.is_any and weekdays.is_any)
        or (not days.is_any and len(days.values) == 31)
        or (not weekdays.is_any and len(weekdays.values) == 7)
    )


def step_of(values: set[int], count: int) -> int | None:
    """Return the n for which `*/n` has these values of 0 to `count` - 1, or None."""
    for step in range(1, count):
        if values == set(range(0, count, step)) and len(values) > 2:
            return step
    return None


def runs_of(values: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each range: 1, 2, 3, 5 are (1, 3) and (5, 5)."""
    found: list[tuple[int, int]] = []
    for value in sorted(values):
        if found and value == found[-1][1] + 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found


def _steps(values: set[int], count: int) -> str:
    step = step_of(values, count)
    if step is None:
        return _ranges(values)
    return "*" if step == 1 else f"*/{step}"


def _ranges(values: set[int]) -> str:
    return ",".join(
        str(first) if first == last else f"{first}-{last}"
        for first, last in runs_of(values)
    )

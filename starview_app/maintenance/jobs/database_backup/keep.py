"""The rule for backups that are kept: the newest of each day, week and month."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

from starview_app.maintenance.models import Backup


class Keep(NamedTuple):
    """The numbers of days, weeks and months of which the newest backup is kept."""

    daily: int
    weekly: int
    monthly: int


def kept(backups: Iterable[Backup], keep: Keep) -> list[Backup]:
    """Return the backups that are kept, newest first; the newest of all is always kept.

    Days, weeks (ISO 8601) and months are those of UTC. Those without a backup do not
    count, so a month without backups does not lead to removals. The newest of all has
    the highest id, also if the clock was ahead when another one was made.
    """
    newest_first = sorted(backups, key=lambda b: (b.started_at, b.pk), reverse=True)
    stay = {max((backup.pk for backup in newest_first), default=0)}
    rules: list[tuple[int, Callable[[datetime], object]]] = [
        (keep.daily, lambda moment: moment.date()),
        (keep.weekly, lambda moment: moment.isocalendar()[:2]),
        (keep.monthly, lambda moment: (moment.year, moment.month)),
    ]
    for number, period_of in rules:
        newest: dict[object, int] = {}
        for backup in newest_first:
            newest.setdefault(period_of(backup.started_at), backup.pk)
        stay |= set(list(newest.values())[:number])
    return [backup for backup in newest_first if backup.pk in stay]

"""Which backups are kept: the newest of each day, week and month, as far as asked."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

from starview_app.maintenance.models import Backup


class Keep(NamedTuple):
    """How many days, weeks and months that have a backup keep their newest."""

    daily: int
    weekly: int
    monthly: int


def kept(backups: Iterable[Backup], keep: Keep) -> list[Backup]:
    """Those of `backups` that stay, the newest first; the newest of all always does.

    Days, weeks (of ISO 8601) and months are those of UTC. One without a backup does
    not count, so that a pause of a month removes nothing.
    """
    newest_first = sorted(backups, key=lambda b: (b.started_at, b.pk), reverse=True)
    stay = {backup.pk for backup in newest_first[:1]}
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

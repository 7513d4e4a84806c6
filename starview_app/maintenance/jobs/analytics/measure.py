"""Measures all the figures of a report at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import connection, transaction

from starview_app.maintenance.jobs.analytics import figures
from starview_app.maintenance.jobs.analytics.figures import (
    Figure,
    JobFigures,
    Standing,
)
from starview_app.maintenance.jobs.analytics.period import Period
from starview_app.maintenance.jobs.analytics.security import (
    OpenStore,
    Security,
    security_events,
)
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.models import SentReport
from starview_app.maintenance.own_tables import has_table

# One snapshot, in which rows that are archived meanwhile are still in the table.
_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

# The limit of the web service's own digest: a higher number is a warning.
MOST_PENDING_REPORTS = 10
MOST_UNVERIFIED_LOCATIONS = 50
MOST_HARD_BOUNCES = 100
MOST_COMPLAINTS = 10
MOST_RECENT_BOUNCES = 50

StoredFigures = dict[str, dict[str, int | None]]


@dataclass(frozen=True)
class Limit:
    """A number that is a warning if it is above `most`; `advice` is what to do then."""

    name: str
    number: int
    most: int
    advice: str

    @property
    def is_exceeded(self) -> bool:
        return self.number > self.most


@dataclass(frozen=True)
class Analytics:
    now: datetime
    period: Period
    members: tuple[Figure, ...]
    community: tuple[Figure, ...]
    mail: tuple[Figure, ...]
    security: Security
    maintenance: tuple[JobFigures, ...]
    standing: Standing
    sign_ups_by_day: tuple[list[int], list[int]]
    # Whether the figures of the period before are those of its own report.
    is_before_remembered: bool = False

    @property
    def limits(self) -> tuple[Limit, ...]:
        standing = self.standing
        bounces = sum(
            figure.this or 0 for figure in self.mail if figure.name.endswith(" bounces")
        )
        return (
            Limit(
                "pending reports",
                standing.pending_reports,
                MOST_PENDING_REPORTS,
                "somebody has to look at them, in the web service's admin",
            ),
            Limit(
                "unverified locations",
                standing.unverified_locations,
                MOST_UNVERIFIED_LOCATIONS,
                "verify them, in the web service's admin",
            ),
            Limit(
                "hard bounces on record",
                standing.hard_bounces,
                MOST_HARD_BOUNCES,
                "such addresses do not exist: see the weekly e-mail health report",
            ),
            Limit(
                "complaints on record",
                standing.complaints,
                MOST_COMPLAINTS,
                f"{standing.unreviewed_complaints} of them are not reviewed; see the"
                " weekly e-mail health report",
            ),
            Limit(
                f"bounces in {self.period.name}",
                bounces,
                MOST_RECENT_BOUNCES,
                "see the worst domains in the weekly e-mail health report",
            ),
        )

    @property
    def warnings(self) -> list[Limit]:
        return [limit for limit in self.limits if limit.is_exceeded]

    @property
    def stored(self) -> StoredFigures:
        """The figures with which the next report compares."""
        groups: dict[str, Iterable[Figure]] = {
            "members": self.members,
            "community": self.community,
            "mail": self.mail,
            "security": self.security.events,
        }
        return {
            name: {figure.name: figure.this for figure in group}
            for name, group in groups.items()
        }


def measure(
    *, now: datetime, period: Period, open_store: OpenStore, should_stop: ShouldStop
) -> Analytics:
    """Measure everything in one snapshot; changes nothing. Raises StopRequested."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_ONE_MOMENT)
        known = _remembered(period.before)
        registered = security_events(
            period, open_store=open_store, should_stop=should_stop
        )
        return Analytics(
            now=now,
            period=period,
            members=_compared(
                known,
                "members",
                [
                    *figures.sign_ups(period),
                    figures.active(period, registered.archived_logins),
                    replace(
                        registered.figure("registration_success"),
                        name="registrations logged",
                    ),
                ],
            ),
            community=_compared(known, "community", figures.community(period)),
            mail=_compared(known, "mail", figures.mail(period)),
            security=replace(
                registered,
                events=_compared(
                    known,
                    "security",
                    registered.events,
                    only_if=lambda figure: figure.before is None,
                ),
            ),
            maintenance=tuple(figures.maintenance(period)),
            standing=figures.standing(),
            sign_ups_by_day=figures.sign_ups_by_day(period),
            is_before_remembered=bool(known),
        )


def _remembered(period: Period) -> StoredFigures:
    if not has_table("maintenance_sentreport"):
        return {}
    sent = SentReport.objects.filter(kind=period.kind, period_start=period.start)
    return dict(sent.values_list("figures", flat=True).first() or {})


def _compared(
    known: StoredFigures,
    group: str,
    measured: Iterable[Figure],
    *,
    only_if: Callable[[Figure], bool] = lambda figure: True,
) -> tuple[Figure, ...]:
    """Replace the figures of the period before by those of its own report, if known.

    Unverified accounts and bounces are deleted after a while, so counting them later
    gives smaller numbers.
    """
    numbers = known.get(group, {})
    return tuple(
        replace(figure, before=number)
        if (number := numbers.get(figure.name)) is not None and only_if(figure)
        else figure
        for figure in measured
    )

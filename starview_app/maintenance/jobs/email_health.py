"""Measure bounces, complaints and suppressions, and write them up as a mail.

Two sources, named in the mail: the web service's tables say who bounced, Amazon SES
says how much was sent. Rates are SES's alone, as SES judges the account by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Any

from django.db import connection
from django.db.models import Count, Model, Q
from django.template.loader import render_to_string

from starview_app.maintenance.jobs.text import one_line
from starview_app.maintenance.ses import WEEK, SendingStatistics, SendingWeek
from starview_app.models import EmailBounce, EmailComplaint, EmailSuppression

DOMAIN_DAYS = 30
WORST_DOMAINS = 10
FEWEST_ATTEMPTS_TO_JUDGE = 200  # below, one bounce more or less changes the verdict


class State(StrEnum):
    HEALTHY = "healthy"
    REVIEW = "review"
    PAUSE = "sending may be paused"
    TOO_FEW = "too few mails to judge"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Limits:
    """From `review` on SES reviews the account, from `pause` on it may stop sending."""

    name: str
    review: Fraction
    pause: Fraction
    decimals: int


BOUNCE_LIMITS = Limits("bounce rate", Fraction("0.05"), Fraction("0.10"), 1)
COMPLAINT_LIMITS = Limits("complaint rate", Fraction("0.001"), Fraction("0.005"), 2)


@dataclass(frozen=True)
class Rate:
    """`events` of `attempts`, both SES's; unknown without attempts."""

    limits: Limits
    events: int = 0
    attempts: int = 0

    @property
    def state(self) -> State:
        if not self.attempts:
            return State.UNKNOWN
        share = Fraction(self.events, self.attempts)
        if share >= self.limits.pause:
            return State.PAUSE
        return State.REVIEW if share >= self.limits.review else State.HEALTHY

    def __str__(self) -> str:
        """Rounded down, so that a limit shows only once it is reached."""
        if not self.attempts:
            return "unknown"
        steps = 10**self.limits.decimals  # per percent
        shown = math.floor(Fraction(100 * steps * self.events, self.attempts))
        if self.events and not shown:
            return f"<{1 / steps} %"
        return f"{shown / steps:.{self.limits.decimals}f} %"


@dataclass(frozen=True)
class Row:
    """One kind of event. A week counts rows by the date of their (last) event."""

    kind: str
    total: int = 0
    this_week: int = 0
    last_week: int = 0

    @property
    def difference(self) -> str:
        change = self.this_week - self.last_week
        return f"{change:+d}" if change else "0"


@dataclass(frozen=True)
class SuppressionRow(Row):
    active: int = 0

    @property
    def inactive(self) -> int:
        return self.total - self.active


@dataclass(frozen=True)
class DomainRow:
    domain: str
    hard: int
    soft: int
    complaints: int


@dataclass(frozen=True)
class CleanupChanges:
    """What this run of the clean-up did: suppressions lifted, stale bounces deleted."""

    deactivated: int
    deleted: int


@dataclass(frozen=True)
class EmailHealth:
    now: datetime
    bounces: list[Row]
    complaints: list[Row]
    suppressions: list[SuppressionRow]
    domains: list[DomainRow]
    statistics: SendingStatistics
    changes: CleanupChanges

    @property
    def bounce_rates(self) -> tuple[Rate, Rate]:
        """Of this week and of the week before."""
        weeks = _weeks(self.statistics)
        first, second = (
            Rate(BOUNCE_LIMITS, week.bounces, week.attempts) for week in weeks
        )
        return first, second

    @property
    def complaint_rates(self) -> tuple[Rate, Rate]:
        weeks = _weeks(self.statistics)
        first, second = (
            Rate(COMPLAINT_LIMITS, week.complaints, week.attempts) for week in weeks
        )
        return first, second

    @property
    def state(self) -> State:
        """The worse of this week's two rates, if enough was sent to judge by."""
        rates = (self.bounce_rates[0], self.complaint_rates[0])
        if not rates[0].attempts:
            return State.UNKNOWN
        if rates[0].attempts < FEWEST_ATTEMPTS_TO_JUDGE:
            return State.TOO_FEW
        worst_first = (State.PAUSE, State.REVIEW, State.HEALTHY)
        return min((rate.state for rate in rates), key=worst_first.index)

    @property
    def headline(self) -> str:
        """The state and the rates that it rests on, for the subject."""
        rates = (self.bounce_rates[0], self.complaint_rates[0])
        if self.state is State.TOO_FEW:
            shown = ", ".join(f"{rate.limits.name} {rate}" for rate in rates)
            return f"{self.state}: {shown} of {rates[0].attempts}"
        reached = [
            f"{rate.limits.name} {rate}"
            for rate in rates
            if rate.state in (State.REVIEW, State.PAUSE)
        ]
        return ": ".join([self.state, ", ".join(reached)] if reached else [self.state])


@dataclass(frozen=True)
class RenderedReport:
    """One mail; `subject` is one line of ASCII."""

    subject: str
    text: str
    html: str


# -- Collecting ---------------------------------------------------------------------


def collect_email_health(
    *, now: datetime, statistics: SendingStatistics, changes: CleanupChanges
) -> EmailHealth:
    """Count what the tables hold at `now`; reads only.

    This week is (now - 7 days, now], last week the seven days before it. The domains
    are those of (now - 30 days, now], worst first: by hard bounces plus complaints,
    which SES judges by, then soft bounces, then name.
    """
    return EmailHealth(
        now=now,
        bounces=[
            Row(**counts)
            for counts in _count(
                EmailBounce, "bounce_type", "last_bounce_date", now=now
            )
        ],
        complaints=[
            Row(**counts)
            for counts in _count(
                EmailComplaint, "complaint_type", "complaint_date", now=now
            )
        ],
        suppressions=[
            SuppressionRow(**counts)
            for counts in _count(
                EmailSuppression,
                "reason",
                "added_date",
                now=now,
                active=Count("id", filter=Q(is_active=True)),
            )
        ],
        domains=_worst_domains(now),
        statistics=statistics,
        changes=changes,
    )


def _count(
    model: type[Model], kind: str, date: str, *, now: datetime, **also: Count
) -> list[dict[str, Any]]:
    """Rows by kind: every kind the model names, in its order, then any other by name."""

    def between(after: datetime, until: datetime) -> Count:
        return Count("id", filter=Q(**{f"{date}__gt": after, f"{date}__lte": until}))

    found = {
        counts.pop(kind): counts
        for counts in model._default_manager.values(kind).annotate(
            total=Count("id"),
            this_week=between(now - WEEK, now),
            last_week=between(now - 2 * WEEK, now - WEEK),
            **also,
        )
    }
    named = [name for name, _ in model._meta.get_field(kind).choices or ()]
    others = sorted(found.keys() - set(named))
    return [{"kind": one_line(name), **found.get(name, {})} for name in named + others]


_WORST_DOMAINS = """
    SELECT
        lower(substring(email FROM '[^@]*$')) COLLATE "C" AS domain,
        count(*) FILTER (WHERE kind = 'hard') AS hard,
        count(*) FILTER (WHERE kind IN ('soft', 'transient')) AS soft,
        count(*) FILTER (WHERE kind = 'complaint') AS complaints
    FROM (
        SELECT email, bounce_type AS kind, last_bounce_date AS at
        FROM starview_email_bounce
        UNION ALL
        SELECT email, 'complaint', complaint_date
        FROM starview_email_complaint
    ) AS event
    WHERE at > %(now)s - make_interval(days => %(days)s) AND at <= %(now)s
    GROUP BY 1
    ORDER BY
        count(*) FILTER (WHERE kind IN ('hard', 'complaint')) DESC,
        soft DESC,
        domain
    LIMIT %(limit)s
"""


def _worst_domains(now: datetime) -> list[DomainRow]:
    with connection.cursor() as cursor:
        cursor.execute(
            _WORST_DOMAINS, {"now": now, "days": DOMAIN_DAYS, "limit": WORST_DOMAINS}
        )
        return [
            DomainRow(one_line(domain), hard, soft, complaints)
            for domain, hard, soft, complaints in cursor.fetchall()
        ]


def _weeks(statistics: SendingStatistics) -> tuple[SendingWeek, SendingWeek]:
    """What SES did not tell counts as nothing sent: the rate is unknown either way."""
    return (
        statistics.this_week or SendingWeek(),
        statistics.last_week or SendingWeek(),
    )


# -- Rendering ----------------------------------------------------------------------


_ADVICE = {
    State.HEALTHY: "Nothing to do.",
    State.REVIEW: (
        "SES puts accounts with such a rate under review. Look at the domains below,"
        " and at Reputation metrics in the SES console."
    ),
    State.PAUSE: (
        "SES may stop all mail of this account. Stop sending to the domains below"
        " until their addresses are checked; see Reputation metrics in the SES console."
    ),
    State.TOO_FEW: (
        f"Rates are judged from {FEWEST_ATTEMPTS_TO_JUDGE} delivery attempts a week on;"
        " below that, one bounce more or less decides."
    ),
}
_COLOURS = {  # white text on each has a contrast of 4.5 or more
    State.HEALTHY: "#1a7f37",
    State.REVIEW: "#9a6700",
    State.PAUSE: "#b42318",
}
_GREY = "#57606a"


def render_email_health(health: EmailHealth) -> RenderedReport:
    """The mail as text (80 columns) and as HTML; everything from outside is escaped."""
    start, end = (at.astimezone(UTC) for at in (health.now - WEEK, health.now))
    context = {
        "health": health,
        "start": f"{start:%Y-%m-%d %H:%M}",
        "end": f"{end:%Y-%m-%d %H:%M}",
        "advice": _ADVICE.get(health.state) or _why_unknown(health.statistics),
        "colour": _COLOURS.get(health.state, _GREY),
        "ses_rows": _ses_rows(health),
        "tables": [
            ("Bounces, by address", health.bounces, _total(health.bounces)),
            ("Complaints", health.complaints, _total(health.complaints)),
        ],
        "suppressed": sum(row.active for row in health.suppressions),
        "domain_days": DOMAIN_DAYS,
    }
    return RenderedReport(
        subject=f"[Starview] E-mail health {start:%Y-%m-%d} to {end:%Y-%m-%d}:"
        f" {health.headline}",
        text=render_to_string("maintenance/email_health.txt", context),
        html=render_to_string("maintenance/email_health.html", context),
    )


def _why_unknown(statistics: SendingStatistics) -> str:
    if statistics.unknown_because:
        return f"SES gave no numbers: {statistics.unknown_because}"
    return "SES counted no delivery attempts this week, so there is no rate."


def _ses_rows(health: EmailHealth) -> list[tuple[str, str, str]]:
    this_week, last_week = health.statistics.this_week, health.statistics.last_week
    counts = ("attempts", "bounces", "complaints", "rejects")
    names = ("Delivery attempts", "Hard bounces", "Complaints", "Rejected by SES")
    return [
        *(
            (name, *(str(getattr(week, count, "unknown")) for week in weeks))
            for name, count in zip(names, counts, strict=True)
            for weeks in [(this_week, last_week)]
        ),
    ]


def _total(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return Row(
        "total",
        sum(row.total for row in rows),
        sum(row.this_week for row in rows),
        sum(row.last_week for row in rows),
    )

"""The weekly report on bounces, complaints and suppressions, as a mail.

It has two sources, named in the mail: the web service's tables have the bounces, Amazon
SES has the numbers of mails sent. Rates come from SES only, which judges the account by
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from django.db import connection
from django.db.models import Count, Model, Q
from django.template.loader import render_to_string

from starview_app.maintenance.jobs.email_suppressions.at_ses import (
    Comparison,
    compare,
)
from starview_app.maintenance.jobs.email_suppressions.rates import (
    FEWEST_ATTEMPTS_TO_JUDGE,
    State,
    rates,
)
from starview_app.maintenance.ses import WEEK, SendingStatistics, SuppressedAtSes
from starview_app.maintenance.text import one_line
from starview_app.models import EmailBounce, EmailComplaint, EmailSuppression

DOMAIN_DAYS = 30
WORST_DOMAINS = 10


@dataclass(frozen=True)
class Row:
    """One kind of event. A record counts in the week of its (last) event."""

    kind: str
    total: int = 0
    this_week: int = 0
    last_week: int = 0


@dataclass(frozen=True)
class SuppressionRow(Row):
    active: int = 0


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class DomainRow:
    domain: str
    hard: int
    soft: int
    complaints: int


@dataclass(frozen=True)
class CleanupChanges:
    """The suppressions that this run lifted, and the stale bounces that it deleted."""

    deactivated: int
    deleted: int


@dataclass(frozen=True)
class EmailHealth:
    now: datetime
    bounces: tuple[Row, ...]
    complaints: tuple[Row, ...]
    suppressions: tuple[SuppressionRow, ...]
    domains: tuple[DomainRow, ...]
    statistics: SendingStatistics
    changes: CleanupChanges | None  # None without a clean-up
    at_ses: Comparison | None = None  # None if it was not requested

    @property
    def state(self) -> State:
        """The state of the worse of this week's two rates, if enough mail was sent."""
        bounces, complaints = rates(self.statistics.this_week)
        if not bounces.attempts:
            return State.UNKNOWN
        if bounces.attempts < FEWEST_ATTEMPTS_TO_JUDGE:
            return State.TOO_FEW
        worst_first = (State.PAUSE, State.REVIEW, State.HEALTHY)
        return min(bounces.state, complaints.state, key=worst_first.index)

    @property
    def headline(self) -> str:
        """The state and the rates that it is based on, for the subject."""
        both = rates(self.statistics.this_week)
        if self.state is State.TOO_FEW:
            shown = [f"{rate.name} {rate}" for rate in both]
            return f"{self.state}: {', '.join(shown)} of {both[0].attempts}"
        reached = [
            f"{rate.name} {rate}"
            for rate in both
            if rate.state in (State.REVIEW, State.PAUSE)
        ]
        return f"{self.state}: {', '.join(reached)}" if reached else str(self.state)


@dataclass(frozen=True)
class RenderedReport:
    """One mail. `subject` is one line of ASCII.

    `counts` are SES's figures of this week, for the record of the run; may be empty.
    """

    subject: str
    text: str
    html: str
    counts: dict[str, int]


# -- Collecting ---------------------------------------------------------------------


def collect_email_health(
    *,
    now: datetime,
    statistics: SendingStatistics,
    changes: CleanupChanges | None,
    at_ses: SuppressedAtSes | None = None,
) -> EmailHealth:
    """Count the rows of the tables at `now`; changes nothing.

    This week is (now - 7 days, now], last week the seven days before it. The domains
    are those of (now - 30 days, now], worst first: by hard bounces plus complaints,
    which SES judges by, then soft bounces, then name.
    """
    return EmailHealth(
        now=now,
        bounces=_count(Row, EmailBounce, "bounce_type", "last_bounce_date", now),
        complaints=_count(Row, EmailComplaint, "complaint_type", "complaint_date", now),
        suppressions=_count(
            SuppressionRow,
            EmailSuppression,
            "reason",
            "added_date",
            now,
            active=Count("id", filter=Q(is_active=True)),
        ),
        domains=_worst_domains(now),
        statistics=statistics,
        changes=changes,
        at_ses=compare(at_ses) if at_ses else None,
    )


def _count(
    row: Callable[..., AnyRow],
    model: type[Model],
    kind: str,
    date: str,
    now: datetime,
    **also: Count,
) -> tuple[AnyRow, ...]:
    """Return a row for each kind of the model, in its order, then others by name."""

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
    choices = getattr(model._meta.get_field(kind), "choices", None) or ()
    named = [name for name, _ in choices]
    others = sorted(found.keys() - set(named))
    return tuple(
        row(kind=one_line(name), **found.get(name, {})) for name in named + others
    )


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


def _worst_domains(now: datetime) -> tuple[DomainRow, ...]:
    with connection.cursor() as cursor:
        cursor.execute(
            _WORST_DOMAINS, {"now": now, "days": DOMAIN_DAYS, "limit": WORST_DOMAINS}
        )
        return tuple(
            DomainRow(one_line(domain), *counts)
            for domain, *counts in cursor.fetchall()
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

_ONE_ROW_PER_ADDRESS = (
    "Addresses by the date of their last bounce: one that bounced in both weeks counts"
    " in this week only."
)
_NOT_FROM_GMAIL = "Gmail reports no complaints to SES."
_LIMITS = (
    "SES reviews an account from a bounce rate of 5 % or a complaint rate of 0.1 % on,"
    " and may pause its sending from 10 % or 0.5 % on."
)


@dataclass(frozen=True)
class Table:
    """A table for both templates: the first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    note: str
    text_width: int = 25  # of the first column, in characters


def render_email_health(health: EmailHealth) -> RenderedReport:
    """Write the mail as text (80 columns) and HTML; all data is escaped."""
    start, end = (health.now - WEEK).astimezone(UTC), health.now.astimezone(UTC)
    context = {
        "start": f"{start:%Y-%m-%d %H:%M}",
        "end": f"{end:%Y-%m-%d %H:%M}",
        "headline": health.headline,
        "advice": _ADVICE.get(health.state) or _why_unknown(health.statistics),
        "colour": _COLOURS.get(health.state, _GREY),
        "tables": [
            _sending_table(health.statistics),
            _events_table("Bounces", health.bounces, _ONE_ROW_PER_ADDRESS),
            _events_table("Complaints", health.complaints, _NOT_FROM_GMAIL),
            _suppressions_table(health.suppressions),
            _domains_table(health.domains),
        ],
        "changes": health.changes,
        "at_ses": health.at_ses,
    }
    return RenderedReport(
        subject=f"[Starview] E-mail health {start:%Y-%m-%d} to {end:%Y-%m-%d}:"
        f" {health.headline}",
        text=render_to_string("maintenance/email_health.txt", context),
        html=render_to_string("maintenance/email_health.html", context),
        counts=health.statistics.counts,
    )


def _why_unknown(statistics: SendingStatistics) -> str:
    if statistics.unknown_because:
        return f"SES gave no numbers: {statistics.unknown_because}"
    return "SES counted no delivery attempts this week, so there is no rate."


def _sending_table(statistics: SendingStatistics) -> Table:
    weeks = (statistics.this_week, statistics.last_week)

    def counts(name: str, field: str) -> tuple[object, ...]:
        return (name, *(getattr(week, field, "unknown") for week in weeks))

    bounce_rates, complaint_rates = zip(*map(rates, weeks), strict=True)
    return Table(
        "Sending, as Amazon SES counts it",
        ("", "this week", "last week"),
        [
            counts("delivery attempts", "attempts"),
            counts("hard bounces", "bounces"),
            ("bounce rate", *bounce_rates),
            counts("complaints", "complaints"),
            ("complaint rate", *complaint_rates),
            counts("rejected by SES", "rejects"),
        ],
        _LIMITS,
    )


def _events_table(title: str, rows: Iterable[Row], note: str) -> Table:
    """Return a table of the kinds that have rows, and their total."""
    found = [row for row in rows if row.total]
    total = Row(
        "total",
        sum(row.total for row in found),
        sum(row.this_week for row in found),
        sum(row.last_week for row in found),
    )
    return Table(
        title,
        ("type", "this week", "last week", "change", "in all"),
        [(*_weeks(row), row.total) for row in (*found, total)],
        note,
    )


def _suppressions_table(rows: Iterable[SuppressionRow]) -> Table:
    return Table(
        "Suppressions",
        ("reason", "this week", "last week", "change", "active", "inactive"),
        [(*_weeks(row), row.active, row.total - row.active) for row in rows],
        "The weeks count what was added. This is Starview's list, not the one of SES.",
    )


def _weeks(row: Row) -> tuple[object, ...]:
    change = row.this_week - row.last_week
    return (
        row.kind.replace("_", " "),
        row.this_week,
        row.last_week,
        f"{change:+d}" if change else "0",
    )


def _domains_table(rows: Iterable[DomainRow]) -> Table:
    return Table(
        f"Worst domains of the last {DOMAIN_DAYS} days",
        ("domain", "hard", "soft", "complaints"),
        [(row.domain, row.hard, row.soft, row.complaints) for row in rows],
        "Worst first: by hard bounces plus complaints. Soft includes transient.",
        text_width=47,
    )

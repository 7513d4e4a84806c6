"""Writes the report as a mail: text of 80 columns, and HTML with pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from django.template.loader import render_to_string

from starview_app.maintenance.jobs.analytics.figures import Figure, JobFigures
from starview_app.maintenance.jobs.analytics.measure import Analytics
from starview_app.maintenance.jobs.analytics.period import Kind
from starview_app.maintenance.text import one_line

if TYPE_CHECKING:
    from starview_app.maintenance.jobs.analytics.charts import Chart

logger = structlog.get_logger(__name__)

_RED, _GREEN = "#b42318", "#1a7f37"  # white text on each has a contrast of 4.5 or more
_JOB_PREFIX = "starview-"

_MEMBERS = (
    "Sign-ups are accounts that are still there, of them verified those with a verified"
    " address or a social account; an account that never verifies is deleted after some"
    " days. Registrations are what the audit log has. Active is who logged in, or"
    " added a location, review, comment, photo, visit, favorite, follow, vote or"
    " report. System accounts are left out."
)
_REMEMBERED = (
    "The period before is as its own report measured it, before anything was deleted."
)
_COMMUNITY = "What is still there of what members made in the period."
_MAIL = (
    "Addresses by the date of their last bounce. Rates, domains and Amazon SES's own"
    " list are in the weekly e-mail health report."
)
_MAINTENANCE = (
    "From the history of the runs: those that were skipped are left out, also the ticks"
    " of catch-up. What a job counted is added up."
)


@dataclass(frozen=True)
class Section:
    """A table, perhaps with a chart above: the first column is text, others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]
    chart: Chart | None = None
    text_width: int = 47  # of the first column, in characters
    nothing: str = "none"


@dataclass(frozen=True)
class Mail:
    """`subject` is one line of ASCII. The HTML refers to its pictures by `cid:`."""

    subject: str
    text: str
    html: str
    charts: tuple[Chart, ...] = field(default=())

    @property
    def html_alone(self) -> str:
        """The HTML with embedded pictures, for a file."""
        html = self.html
        for chart in self.charts:
            data = base64.b64encode(chart.png).decode("ascii")
            html = html.replace(
                f"cid:{chart.content_id}", f"data:image/png;base64,{data}"
            )
        return html


def write_report(analytics: Analytics) -> Mail:
    """Write the mail. All data is escaped, and the text has all that pictures show."""
    period = analytics.period
    charts, why_no_charts = _charts(analytics)
    warnings = analytics.warnings
    headline = _headline(analytics)
    context = {
        "name": period.name,
        "period": str(period),
        "before": f"{period.before.name}, {period.before}",
        "headline": headline,
        "colour": _RED if warnings else _GREEN,
        "warnings": warnings,
        "sections": _sections(analytics, charts),
        "why_no_charts": why_no_charts,
        "now": f"{analytics.now:%Y-%m-%d %H:%M}",
    }
    joined = analytics.members[0].this
    return Mail(
        subject=f"[Starview] {period.name[0].upper()}{period.name[1:]}:"
        f" {_many(joined or 0, 'sign-up')}, {headline}",
        text="\n".join(
            line.rstrip()
            for line in render_to_string(
                "maintenance/analytics.txt", context
            ).splitlines()
        ),
        html=render_to_string("maintenance/analytics.html", context),
        charts=tuple(charts.values()),
    )


def _headline(analytics: Analytics) -> str:
    count = len(analytics.warnings)
    return _many(count, "warning") if count else "no warnings"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# -- charts ---------------------------------------------------------------------------


def _charts(analytics: Analytics) -> tuple[dict[str, Chart], str]:
    """Return the charts that are not empty, and why there are none after an error."""
    # Imported here, since it takes 0.2 s, and only a report needs it.
    try:
        from starview_app.maintenance.jobs.analytics.charts import bar_chart

        names = (analytics.period.short_name, analytics.period.before.short_name)
        found = {
            "members": bar_chart(
                name="members",
                title="Sign-ups of each day",
                labels=_day_labels(analytics),
                series=list(zip(names, analytics.sign_ups_by_day, strict=True)),
            ),
            "community": _figures_chart(
                bar_chart,
                "community",
                "What members added",
                names,
                {
                    "locations": "locations",
                    "reviews": "reviews",
                    "comments": "comments",
                    "photos": "photos",
                    "visits": "visits",
                    "badges earned": "badges",
                },
                _with_photos(analytics.community),
            ),
            "security": _figures_chart(
                bar_chart,
                "security",
                "Security events",
                names,
                {
                    "login_failed": "failed log-ins",
                    "login_locked": "lock-outs",
                    "permission_denied": "denied",
                    "access_forbidden": "forbidden",
                },
                analytics.security.events,
            ),
        }
        return {name: chart for name, chart in found.items() if chart}, ""
    except Exception as error:  # an error in a picture must not fail the report
        reason = one_line(f"{type(error).__name__}: {error}")
        logger.warning("charts_not_drawn", reason=reason)
        return {}, reason


def _figures_chart(
    bar_chart: Callable[..., Chart],
    name: str,
    title: str,
    series: tuple[str, str],
    labels: dict[str, str],
    figures: Iterable[Figure],
) -> Chart | None:
    """Draw a chart, without the period before if unknown; None if the period is."""
    shown = {figure.name: figure for figure in figures if figure.name in labels}
    this = [shown[label].this for label in labels]
    before = [shown[label].before for label in labels]
    known = [
        (label, [value or 0 for value in values])
        for label, values in zip(series, (this, before), strict=True)
        if None not in values
    ]
    if None in this or not any(any(values) for _, values in known):
        return None
    return bar_chart(name=name, title=title, labels=list(labels.values()), series=known)


def _with_photos(figures: Sequence[Figure]) -> list[Figure]:
    """Add a figure for both kinds of photos together."""
    photos = [figure for figure in figures if figure.name.startswith("photos of ")]
    this = sum(figure.this or 0 for figure in photos)
    before = sum(figure.before or 0 for figure in photos)
    return [*figures, Figure("photos", this, before)]


def _day_labels(analytics: Analytics) -> list[str]:
    if analytics.period.kind is Kind.WEEK:
        return [f"{day:%a} {day.day}" for day in analytics.period.days]
    longest = max(map(len, analytics.sign_ups_by_day))
    return [str(number) for number in range(1, longest + 1)]


# -- tables ---------------------------------------------------------------------------


def _sections(analytics: Analytics, charts: dict[str, Chart]) -> list[Section]:
    period, standing = analytics.period, analytics.standing
    columns = ("", period.short_name, period.before.short_name, "change")
    remembered = [_REMEMBERED] if analytics.is_before_remembered else []
    return [
        Section(
            "Members",
            columns,
            [
                *map(_row, analytics.members),
            ],
            [_by_day(analytics), _MEMBERS, *_too_low(analytics), *remembered],
            charts.get("members"),
        ),
        Section(
            "What members added",
            columns,
            [*map(_row, analytics.community)],
            [_COMMUNITY],
            charts.get("community"),
        ),
        Section(
            "As of now",
            ("", "number", "limit"),
            [
                *(
                    (limit.name, str(limit.number), str(limit.most))
                    for limit in analytics.limits
                ),
                ("accounts", str(standing.accounts), ""),
                ("of them verified", str(standing.verified), ""),
                ("addresses suppressed", str(standing.active_suppressions), ""),
            ],
            ["A number above its limit is a warning."],
        ),
        Section(
            "Security events",
            columns,
            [
                _row(figure)
                for figure in analytics.security.events
                if figure.name != "registration_success"
            ],
            [*analytics.security.notes],
            charts.get("security"),
        ),
        Section(
            "E-mail",
            columns,
            [*map(_row, analytics.mail)],
            [_MAIL],
        ),
        Section(
            "What maintenance did",
            columns,
            [row for job in analytics.maintenance for row in _job_rows(job)],
            [_MAINTENANCE],
            nothing="nothing on record",
        ),
    ]


def _too_low(analytics: Analytics) -> list[str]:
    names = [part.name for part in analytics.security.unknown]
    if not names:
        return []
    return [
        f"Who did nothing but log in is missing among the active of"
        f" {' and '.join(names)}: see the security events."
    ]


def _row(figure: Figure) -> tuple[str, ...]:
    change = figure.change
    return (
        figure.name.replace("_", " "),
        _shown(figure.this),
        _shown(figure.before),
        "" if change is None else f"{change:+d}" if change else "0",
    )


def _shown(number: int | None) -> str:
    return "not known" if number is None else str(number)


def _job_rows(job: JobFigures) -> list[tuple[str, ...]]:
    name = job.job.removeprefix(_JOB_PREFIX)
    figures = [job.runs]
    if job.failed.this or job.failed.before:
        figures.append(job.failed)
    return [
        (f"{name}: {label.replace('_', ' ')}", *numbers)
        for label, *numbers in map(_row, [*figures, *job.counts])
    ]


def _by_day(analytics: Analytics) -> str:
    """Return the contents of the picture as text, without days that have none."""
    days = zip(_day_labels(analytics), analytics.sign_ups_by_day[0], strict=False)
    found = [f"{day}: {number}" for day, number in days if number]
    return f"Sign-ups by day: {', '.join(found) or 'none'}."

"""The report page: HTML with texts and pictures for the data of `report`.

The page is one file, without scripts or requests. All text is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.http import HttpRequest
from django.template.loader import render_to_string

from starview_app.maintenance.history.lines import duration, utc
from starview_app.maintenance.history.report import (
    DAYS_AHEAD,
    JobOnPage,
    MailWeek,
    PastRun,
    Report,
)
from starview_app.maintenance.jobs.email_suppressions.rates import (
    FEWEST_ATTEMPTS_TO_JUDGE,
    Rate,
    State,
    rates,
)
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.text import one_line, printable

Outcome = JobRun.Outcome

# Each outcome has a shape besides its colour: an SVG path in a square of 10 by 10.
_SHAPES: dict[str, str] = {
    Outcome.SUCCEEDED: "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z",
    Outcome.FAILED: "M1 1h8v8h-8z",
    Outcome.TIMED_OUT: "M5 1l4 8h-8z",
    Outcome.CRASHED: "M2 1l3 3l3-3l1 1l-3 3l3 3l-1 1l-3-3l-3 3l-1-1l3-3l-3-3z",
    Outcome.INTERRUPTED: "M5 0l5 5l-5 5l-5-5z",
    Outcome.SKIPPED: "M2 4h6v2h-6z",
    Outcome.RUNNING: "M2 1l7 4l-7 4z",
}
_KINDS: dict[str, str] = {
    Outcome.SUCCEEDED: "good",
    Outcome.RUNNING: "quiet",
    Outcome.SKIPPED: "quiet",
    Outcome.INTERRUPTED: "warn",
}
_BAD = "bad"
_REVIEWED = (State.REVIEW, State.PAUSE)
_CHART_HEIGHT = 60.0
_BAR_WIDTH = 18.0
_BAR_STEP = 24.0


@dataclass(frozen=True)
class Mark:
    """One run in a strip."""

    x: int
    path: str
    kind: str
    title: str


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str
    label: str


@dataclass(frozen=True)
class Chart:
    title: str
    bars: list[Bar]
    width: float
    limit_y: float | None
    limit: str


def render(
    report: Report,
    template: str = "maintenance/report.html",
    request: HttpRequest | None = None,
) -> str:
    """Return the HTML. `template` may be one that extends the page's own.

    Its context processors get the `request`, where there is one.
    """
    context = {
        "now": utc(report.now, "%Y-%m-%d %H:%M UTC"),
        "verdict": _verdict(report),
        "kind": _kind_of_verdict(report),
        "jobs": [_job(job, report.now) for job in report.jobs],
        "troubles": [_trouble(job) for job in report.jobs if _is_trouble(job)],
        "runs": [
            _run(run) | {"job": run.job, "output": printable(run.output.expandtabs())}
            for run in report.runs
        ],
        "days": [
            {
                "label": f"{day:%d}",
                "is_monday": day.weekday() == 0,
                "month": f"{day:%b}" if number == 0 or day.day == 1 else "",
            }
            for number, day in (
                (number, report.now.astimezone(UTC) + timedelta(days=number))
                for number in range(DAYS_AHEAD)
            )
        ],
        "archive": [
            {
                "month": f"{month.month:%Y-%m}",
                "rows": f"{month.rows:,}",
                "segments": month.segments,
                "size": f"{month.size_bytes / 1e6:,.1f}",
            }
            for month in report.archive
        ],
        "archived_rows": f"{sum(month.rows for month in report.archive):,}",
        "verified": utc(report.verified_at, "%Y-%m-%d %H:%M UTC"),
        "verify_failed": utc(report.verify_failed_at, "%Y-%m-%d %H:%M UTC"),
        "charts": _charts(report.mail),
        "legend": [
            {"path": path, "kind": _kind(outcome), "name": str(outcome)}
            for outcome, path in _SHAPES.items()
        ],
    }
    return render_to_string(template, context, request)


# -- internal helpers -----------------------------------------------------------------


def _verdict(report: Report) -> str:
    names = [one_line(job.overview.name) for job in report.failing]
    late = [one_line(job.overview.name) for job in report.overdue]
    if not report.jobs:
        return "The crontab has no job, or cannot be read."
    if names or late:
        parts = [f"{_count(names)} failing: {', '.join(names)}"] if names else []
        parts += [f"{_count(late)} overdue: {', '.join(late)}"] if late else []
        return f"{'; '.join(parts)}."
    well = f"{len(report.jobs)} jobs, none failing, none overdue."
    warning = _mail_warning(report.mail)
    return f"{well} {warning}" if warning else f"All is well: {well}"


def _kind_of_verdict(report: Report) -> str:
    if report.failing or report.overdue or not report.jobs:
        return _BAD
    return "warn" if _mail_warning(report.mail) else "good"


def _mail_warning(weeks: list[MailWeek]) -> str:
    """Return a warning about the newest week, if enough was sent to judge by."""
    if not weeks or weeks[-1].attempts < FEWEST_ATTEMPTS_TO_JUDGE:
        return ""
    bounces, complaints = rates(weeks[-1])
    if bounces.state in _REVIEWED:
        return f"But {bounces.percent:g} % of the mails bounced last week."
    if complaints.state in _REVIEWED:
        percent = f"{complaints.percent:g} %"
        return f"But {percent} of the mails were complained about last week."
    return ""


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} job is" if len(names) == 1 else f"{len(names)} jobs are"


def _job(job: JobOnPage, now: datetime) -> dict[str, Any]:
    found, last = job.overview, job.runs[-1] if job.runs else None
    usual = duration(job.usual_seconds) if job.usual_seconds is not None else ""
    return {
        "name": found.name,
        "when": found.schedule,
        "marks": [_mark(place, run) for place, run in enumerate(job.runs)],
        "last": _run(last) if last else None,
        "usual": usual,
        "next": utc(found.next_run_at, "%a %d %b, %H:%M"),
        "in": _until(found.next_run_at - now),
        "paused": utc(found.paused_until) if found.paused_until else "",
        "days": job.days_ahead,
        "is_frequent": job.is_frequent,
    }


def _run(run: PastRun) -> dict[str, Any]:
    return {
        "id": run.id,
        "outcome": str(run.outcome),
        "kind": _kind(run.outcome),
        "started": utc(run.started_at),
        "seconds": duration(run.seconds) if run.seconds is not None else "under way",
        "counts": _counts(run.counts),
        "error": run.error,
    }


def _counts(counts: dict[str, Any]) -> str:
    """Return the counts, without those that are part of another: `kept_x` of `kept`."""
    parts = {
        name
        for name in counts
        if any(name.startswith(f"{whole}_") for whole in (*counts, "ses"))
    }
    return ", ".join(
        f"{name} {count}" for name, count in counts.items() if name not in parts
    )


def _mark(place: int, run: PastRun) -> Mark:
    title = f"{utc(run.started_at)}: {run.outcome}"
    path = _SHAPES.get(run.outcome, _SHAPES[Outcome.FAILED])
    return Mark(11 * place, path, _kind(run.outcome), title)


def _kind(outcome: str) -> str:
    return _KINDS.get(outcome, _BAD)


def _is_trouble(job: JobOnPage) -> bool:
    return bool(job.overview.failing_run or job.overview.overdue)


def _trouble(job: JobOnPage) -> dict[str, str]:
    """Return the job's error and what to do: the HINT, and a command for more."""
    number = job.overview.failing_run
    failed = next((run for run in job.runs if run.id == number), None)
    text, _, hint = (failed.error if failed else "").partition(" HINT: ")
    command = f"python manage.py jobs show {number}" if number else ""
    run_again = f"python manage.py jobs run {job.overview.name}"
    return {
        "name": job.overview.name,
        "what": text or job.overview.overdue,
        "hint": hint,
        "command": command or run_again,
    }


def _until(span: timedelta) -> str:
    minutes = max(round(span.total_seconds() / 60), 0)
    if minutes < 90:
        return f"in {minutes} min"
    hours = round(minutes / 60)
    return f"in {hours} h" if hours < 48 else f"in {round(hours / 24)} days"


def _charts(weeks: list[MailWeek]) -> list[Chart]:
    """Return charts of the bounce and complaint rates; none without a recorded week."""
    weeks = [week for week in weeks if week.attempts]
    if not weeks:
        return []
    return [
        _chart(list(zip(weeks, found, strict=True)))
        for found in zip(*map(rates, weeks), strict=True)
    ]


def _chart(values: list[tuple[MailWeek, Rate]]) -> Chart:
    kind = values[0][1]
    limit, digits = float(100 * kind.review), kind.decimals
    top = max(limit * 1.2, *(rate.percent for _, rate in values))
    bars = []
    for place, (week, rate) in enumerate(values):
        value = rate.percent
        height = max(_CHART_HEIGHT * value / top, 1.0)
        bars.append(
            Bar(
                x=place * _BAR_STEP,
                y=round(_CHART_HEIGHT - height, 1),
                width=_BAR_WIDTH,
                height=round(height, 1),
                title=f"week to {week.until:%Y-%m-%d}: {value:.{digits}f} %"
                f" of {week.attempts:,}",
                label=f"{value:.{digits}f}",
            )
        )
    return Chart(
        title=kind.name.capitalize(),
        bars=bars,
        width=len(bars) * _BAR_STEP,
        limit_y=round(_CHART_HEIGHT * (1 - limit / top), 1),
        limit=f"{limit:g} %",
    )

"""The output of `jobs`: texts and tables."""

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starview_app.maintenance.history.runs import JobOverview, Run, RunWithOutput
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.text import one_line

WIDTH = 100  # of a line
_CELL_WIDTH = 36
_TERMINAL_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Control and format characters, line and paragraph separators.
_UNPRINTABLE = {"Cc", "Cf", "Zl", "Zp"}


def last_run(job: JobOverview) -> str:
    if not job.is_recorded:
        return "not recorded"
    if job.last_run is None:
        return "never"
    running = job.last_run.outcome == JobRun.Outcome.RUNNING
    since = " since" if running else ""
    return f"{job.last_run.outcome}{since} {utc(job.last_run.started_at)}"


def notes(job: JobOverview) -> str:
    """Return the notes on a job, problems first, since a long line is cut off."""
    notes = [f"OVERDUE: {job.overdue}"] if job.overdue else []
    if job.failing_run:
        notes.append(f"FAILING: see `jobs show {job.failing_run}`")
    if job.paused_until:
        notes.append(f"PAUSED until {utc(job.paused_until)}")
    return "; ".join([*notes, job.schedule])


def circumstances(run: Run) -> str:
    attempt = f", attempt {run.attempt}" if run.attempt > 1 else ""
    facts = [_counts(run), run.error]
    return ": ".join([f"{run.trigger}{attempt}", *filter(None, facts)])


def _counts(run: Run) -> str:
    return ", ".join(f"{name} {number}" for name, number in run.counts.items())


def all_of(run: RunWithOutput) -> list[str]:
    ended = run.outcome
    if run.exit_code is not None:
        ended += f", exit code {run.exit_code}"
    facts = {
        "run": str(run.id),
        "run id": run.run_id,
        "job": run.job,
        "outcome": ended,
        "started": utc(run.started_at, "%Y-%m-%d %H:%M:%S UTC"),
        "finished": utc(run.finished_at, "%Y-%m-%d %H:%M:%S UTC"),
        "duration": duration(run.seconds),
        "cost": dollars(run.cost),
        "trigger": f"{run.trigger}, attempt {run.attempt}",
        "slot": utc(run.slot, "%Y-%m-%d %H:%M UTC"),
        "command": run.command,
        "process": f"{run.pid} on {run.host}",
        "counts": _counts(run),
        "error": run.error,
    }
    lines = [f"{name:<9} {one_line(text)}" for name, text in facts.items() if text]
    title = "output:" if run.finished_at else "output so far, as it was last saved:"
    return [*lines, "", title, _printable(run.output) or "(none)"]


def _printable(text: str) -> str:
    return "".join(
        character
        for character in _TERMINAL_CODE.sub("", text).rstrip()
        if character in "\n\t" or unicodedata.category(character) not in _UNPRINTABLE
    )


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return lines with aligned columns, those in `right` to the right.

    Line breaks in cells are replaced.
    """
    clean = [[clipped(cell, _CELL_WIDTH) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if position in right else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in clean
    ]


def clipped(text: str, width: int) -> str:
    text = one_line(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def utc(moment: datetime | None, layout: str = "%Y-%m-%d %H:%M") -> str:
    return moment.astimezone(UTC).strftime(layout) if moment else ""


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m {rest:02}s" if hours else f"{minutes}m {rest:02}s"


def dollars(amount: float) -> str:
    return f"${amount:.6f}"


def as_json_line(facts: dict[str, Any]) -> str:
    """Return JSON on one line and in ASCII, which LOG_FORMAT=json leaves unchanged."""

    def iso(value: datetime) -> str:
        return value.astimezone(UTC).isoformat()

    return json.dumps(facts, default=iso)

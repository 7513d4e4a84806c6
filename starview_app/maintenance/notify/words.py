"""The texts of the alerts: what happened, since when, what comes next, what to do."""

import socket
from datetime import datetime, timedelta
from typing import Any

from django.db.models.functions import Right

from starview.redaction import redact
from starview_app.maintenance.catchup.slots import RETRY_AFTER, SOON
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify.message import (
    Alert,
    News,
    Notice,
    Outage,
    Section,
)
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.text import end_of, one_line, printable

OUTPUT_LINES = 40
OUTPUT_CHARACTERS = 4000
_READ_CHARACTERS = 5 * OUTPUT_CHARACTERS  # more, since a progress bar repeats itself
# If more jobs fail, only the first ones are described in full; all are listed.
DETAILED_JOBS = 10
# How many runs of a job are searched for the last one that succeeded.
_RUNS_BACK = 1000
_LONGEST_VALUE = 500  # characters
_LONGEST_SUBJECT = 200

Outcome = JobRun.Outcome


def alert_of(news: News) -> Alert:
    headlines = [
        "the database works again" if news.outage else "",
        _headline(news.troubles, "need attention"),
        _headline(news.recoveries, "work again"),
    ]
    paragraphs: list[Section | str] = [_over(news.outage)] if news.outage else []
    paragraphs += [_recovered(notice) for notice in news.recoveries]
    if len(news.troubles) > 1:
        listed = [_in_one_line(notice) for notice in news.troubles]
        paragraphs.append(
            "\n".join([f"{_headline(news.troubles, 'need attention')}:", *listed])
        )
    paragraphs += [
        _in_full(notice, news.now) for notice in news.troubles[:DETAILED_JOBS]
    ]
    subject = ", ".join(headline for headline in headlines if headline)
    return _alert(subject, paragraphs, news.now)


def database_down(job: str, text: str, *, now: datetime) -> Alert:
    fields = {
        "job": f"{job} could not begin, or its end could not be recorded",
        "error": text,
        "host": socket.gethostname(),
        "at": _utc(now),
        "next": "catch-up runs what is missed when the database is back",
    }
    todo = ["see whether the database runs and has room (Render: its page, Logs)"]
    section = _section("The database does not answer.", fields, todo)
    last = "This outage is announced once, and so is its end."
    return _alert("the database does not answer", [section, last], now)


def unrecorded(request: RunRequest, ending: Ending, reason: str) -> Alert:
    fields = {
        "slot": _utc(request.slot),
        "command": request.command,
        "outcome": f"{ending.outcome}, exit code {ending.exit_code}",
        "host": socket.gethostname(),
        "error": ending.error,
        "not recorded": reason,
        "next": "its slot is not claimed, so catch-up runs it once more",
    }
    todo = [
        "mend what kept it from being recorded (tables, rights, room, locks)",
        f"python manage.py jobs run {request.job}",
    ]
    headline = f"{request.job} {ending.outcome}, and could not be recorded"
    section = _section(f"{headline}.", fields, todo, ending.output)
    return _alert(headline, [section], ending.finished_at)


# -- internal helpers ----------------------------------------------------------------


def _alert(headline: str, parts: list[Section | str], now: datetime) -> Alert:
    """Build an alert without secrets and control characters; its subject is a line."""
    footer = f"-- \nStarview maintenance on {socket.gethostname()}, {_utc(now)}\n"
    return Alert(
        one_line(redact(f"[Starview] {headline}"))[:_LONGEST_SUBJECT],
        _clean("\n\n\n".join([*map(_text_of, parts), footer])),
        tuple(map(_clean_part, parts)),
    )


def _clean(text: str) -> str:
    return printable(redact(text))


def _clean_part(part: Section | str) -> Section | str:
    if isinstance(part, str):
        return _clean(part)
    return Section(
        _clean(part.title),
        {name: _clean(value) for name, value in part.facts.items()},
        tuple(map(_clean, part.todo)),
        _clean(part.output),
    )


def _text_of(part: Section | str) -> str:
    if isinstance(part, str):
        return part
    lines = [f"    {name:<13} {value}" for name, value in part.facts.items()]
    lines += ["", "What to do:", *(f"    {line}" for line in part.todo)]
    if part.output:
        quoted = [f"    | {line}" for line in part.output.split("\n")]
        lines += ["", "The end of its output:", *quoted]
    return "\n".join([part.title, "", *lines])


def _over(outage: Outage) -> str:
    what = (
        f"That it did not answer was announced at {_utc(outage.since)}."
        if outage.is_known
        else f"Nothing was run after {_utc(outage.since)}, and this container is new"
        " since: if it was announced that the database does not answer, that is over."
    )
    return f"The database works again. {what} Catch-up runs what was missed since."


def _headline(notices: list[Notice], what: str) -> str:
    if len(notices) == 1:
        return f"{notices[0].job} {notices[0].what}"
    return f"{len(notices)} jobs {what}" if notices else ""


def _recovered(notice: Notice) -> str:
    run = notice.run
    success = f": run {run.id} succeeded at {_utc(run.finished_at)}" if run else ""
    return (
        f"{notice.job} works again{success}. It had failed since {_utc(notice.since)}."
    )


def _in_one_line(notice: Notice) -> str:
    error = notice.error.partition(" HINT: ")[0]
    reason = f": {_cut(error)}" if error else ""
    return f"    {notice.job} {notice.what}, slot {_utc(notice.slot)}{reason}"


def _in_full(notice: Notice, now: datetime) -> Section:
    fields = {
        "slot": _utc(notice.slot),
        **_fields(notice, now),
        "error": notice.error,
        "since": _utc(notice.since),
        "last success": _last_success(notice.job),
        "next": _next(notice, now),
    }
    look = "see whether the container runs, and what its log says"
    if notice.run:
        look = f"python manage.py jobs show {notice.run.id}"
    todo = [look, f"python manage.py jobs run {notice.job}"]
    output = _output(notice.run.id) if notice.run else ""
    return _section(f"{notice.job} {notice.what}.", fields, todo, output)


def _section(
    title: str, fields: dict[str, str], todo: list[str], output: str = ""
) -> Section:
    """Return a section; the HINT of its "error" becomes the first thing to do."""
    error, _, hint = fields["error"].partition(" HINT: ")
    facts = {**fields, "error": error}
    return Section(
        title,
        {name: one_line(_cut(value)) for name, value in facts.items() if value},
        tuple(one_line(_cut(line)) for line in ([hint, *todo] if hint else todo)),
        _end_of(output),
    )


def _fields(notice: Notice, now: datetime) -> dict[str, str]:
    state, run = notice.state, notice.run
    if run is None:
        return {"command": state.schedule.command, "outcome": state.overdue}
    columns = ("command", "host", "pid", "trigger")
    row: Any = JobRun.objects.values(*columns).get(id=run.id)
    code = "" if run.exit_code is None else f", exit code {run.exit_code}"
    outcome = run.outcome if run.finished_at else state.overdue
    duration = (run.finished_at or now) - run.started_at
    return {
        "command": row["command"],
        "run": f"{run.id}, attempt {run.attempt}, {row['trigger']}",
        "outcome": f"{outcome}{code}, after {_duration(duration)}",
        "host": f"{row['host']}, pid {row['pid']}",
    }


def _last_success(job: str) -> str:
    """Return when the job last succeeded, if that is among its last _RUNS_BACK runs.

    Uses the index jobrun_of_job.
    """
    runs = JobRun.objects.filter(job=job).order_by("-started_at")
    for outcome, started_at in runs.values_list("outcome", "started_at")[:_RUNS_BACK]:
        if outcome == Outcome.SUCCEEDED:
            return _utc(started_at)
    return "none is recorded"


def _next(notice: Notice, now: datetime) -> str:
    state = notice.state
    following = state.schedule.next_after(now)
    its_time = f"its next time is {_utc(following)}"
    if notice.run and notice.run.finished_at is None:
        return "nothing until it ends"
    if state.is_paused:
        return f"it is paused until {_utc(state.paused_until)}"
    if state.failures > len(RETRY_AFTER) and not state.is_done:
        return f"it is left to you: {state.failures} attempts failed; {its_time}"
    is_newest = state.schedule.last_due(now) == state.slot
    retry_at = max(state.retry_at, now) if state.retry_at and is_newest else None
    if retry_at is None or following <= retry_at + SOON:
        return its_time
    runs_it = "tries it again" if state.last else "runs it"
    return f"catch-up {runs_it} at about {_utc(retry_at)}"


def _output(run_id: int) -> str:
    rows = JobRun.objects.filter(id=run_id)
    (output,) = rows.values_list(Right("output", _READ_CHARACTERS + 1), flat=True)
    return end_of(str(output), _READ_CHARACTERS)


def _end_of(output: str) -> str:
    """Return the last lines; of a progress bar, what it shows at the end."""
    lines = [
        line.rstrip("\r").rpartition("\r")[2] for line in output.rstrip().split("\n")
    ]
    end = "\n".join(lines[-OUTPUT_LINES:]).expandtabs()
    return end_of(printable(end), OUTPUT_CHARACTERS)


def _duration(length: timedelta) -> str:
    seconds = length.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _utc(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else ""

"""What there is to tell of the jobs, and the words of the mails."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models.functions import Right

from starview.redaction import redact
from starview_app.maintenance.catchup.slots import (
    OVERDUE_AFTER,
    RETRY_AFTER,
    SOON,
    SlotRun,
    SlotState,
)
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.text import one_line

OUTPUT_LINES = 40
OUTPUT_CHARACTERS = 4000
_READ_CHARACTERS = 5 * OUTPUT_CHARACTERS  # a progress bar is written many times
# Of a storm the first ones are told in full; all are listed.
DETAILED_JOBS = 10
# How many runs are looked at for the last that succeeded.
_RUNS_BACK = 1000
_LONGEST_VALUE = 500  # characters
_LONGEST_SUBJECT = 200

Outcome = JobRun.Outcome


@dataclass(frozen=True)
class Message:
    subject: str
    text: str


@dataclass(frozen=True)
class Outage:
    """Of the database. Not known: a container that is gone may have mailed it."""

    since: datetime
    is_known: bool


@dataclass(frozen=True)
class Notice:
    """What is to be told of one job."""

    state: SlotState
    slot: datetime
    since: datetime  # it fails, or failed
    what: str  # "failed", "is overdue", "works again"
    run: SlotRun | None  # None: it was not run

    @property
    def job(self) -> str:
        return self.state.job

    @property
    def mark(self) -> datetime:
        """What is remembered of it: that a slot was not run hides no failure of it."""
        has_failed = self.run is not None and self.run.has_failed
        return self.slot if has_failed else self.slot - timedelta(seconds=1)

    @property
    def error(self) -> str:
        return self.run.error if self.run else ""


@dataclass(frozen=True)
class News:
    """All that one mail tells. True when there is something."""

    now: datetime
    troubles: list[Notice]
    recoveries: list[Notice]
    outage: Outage | None  # of the database, which answers again

    def __bool__(self) -> bool:
        return bool(self.troubles or self.recoveries or self.outage)

    @property
    def keys(self) -> list[str]:
        """What it is about: the same as long as nothing new happens."""
        return [
            f"{notice.job} {notice.what} {_utc(notice.slot)}"
            for notice in self.troubles + self.recoveries
        ]

    def message(self) -> Message:
        headlines = [
            "the database works again" if self.outage else "",
            _headline(self.troubles, "need attention"),
            _headline(self.recoveries, "work again"),
        ]
        paragraphs = [_recovered(notice) for notice in self.recoveries]
        if self.outage:
            paragraphs.insert(0, _over(self.outage))
        if len(self.troubles) > 1:
            listed = [_in_one_line(notice) for notice in self.troubles]
            paragraphs.append(
                "\n".join([f"{_headline(self.troubles, 'need attention')}:", *listed])
            )
        paragraphs += [
            _in_full(notice, self.now) for notice in self.troubles[:DETAILED_JOBS]
        ]
        subject = ", ".join(headline for headline in headlines if headline)
        return _message(subject, paragraphs, self.now)


def news_of(states: Iterable[SlotState], outage: Outage | None, now: datetime) -> News:
    """What is to be told: of each slot once, until the job works, and that it does.

    The newest run that succeeded or failed decides; interrupted and skipped ones say
    nothing about the job.
    """
    troubles, recoveries = [], []
    for state in states:
        notice = _overdue(state) or _ended(state)
        if notice is None:
            continue
        if notice.run and notice.run.outcome == Outcome.SUCCEEDED:
            if state.failing_since:
                recoveries.append(notice)
        elif not _is_told(notice):
            troubles.append(notice)
    return News(now, troubles, recoveries, outage)


def _is_told(notice: Notice) -> bool:
    """Whether it was mailed of this slot, and the job has not worked since."""
    state = notice.state
    if not (state.alerted_slot and state.alerted_at):
        return False
    if state.alerted_slot < notice.mark:
        return False
    has_failed = notice.run is not None and notice.run.has_failed
    is_recovered = state.failing_since is None or any(
        run.outcome == Outcome.SUCCEEDED
        and run.finished_at is not None
        and run.finished_at > state.alerted_at
        for run in state.telling_runs
    )
    return not (has_failed and is_recovered)


def database_down(job: str, text: str, *, now: datetime) -> Message:
    fields = {
        "job": f"{job} could not begin, or its end could not be recorded",
        "error": text,
        "host": socket.gethostname(),
        "at": _utc(now),
        "next": "catch-up runs what is missed when the database is back",
    }
    todo = ["see whether the database runs and has room (Render: its page, Logs)"]
    section = _section("The database does not answer.", fields, todo)
    last = "This outage is mailed once; another mail says when it is over."
    return _message("the database does not answer", [section, last], now)


def unrecorded(request: RunRequest, ending: Ending, reason: str) -> Message:
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
    section = _section(f"{headline}.", fields, todo)
    return _message(headline, [section + _quoted(ending.output)], ending.finished_at)


# -- what has happened ---------------------------------------------------------------


def _overdue(state: SlotState) -> Notice | None:
    if not state.overdue:
        return None
    run = next((run for run in state.since if run.finished_at is None), None)
    slot = (
        _slot(state, run) if run else state.schedule.last_due(state.now - OVERDUE_AFTER)
    )
    since = state.failing_since or (run.started_at if run else slot)
    if run is None and state.since:  # it was interrupted, or refused
        run = state.since[-1]
    return Notice(state, slot, since, "is overdue", run)


def _ended(state: SlotState) -> Notice | None:
    """What the newest run says that succeeded or failed, and since when it is so."""
    runs = state.telling_runs
    if not runs:
        return None
    first = run = runs[-1]
    has_worked = False
    for earlier in reversed(runs):
        if not earlier.has_failed:
            has_worked = run.has_failed
            break
        first = earlier
    known_since = None if has_worked else state.failing_since
    since = known_since or first.finished_at or first.started_at
    what = run.outcome if run.has_failed else "works again"
    return Notice(state, _slot(state, run), since, what, run)


def _slot(state: SlotState, run: SlotRun) -> datetime:
    """Its own; of a run that people started the one it stands for."""
    return run.slot or state.schedule.last_due(run.started_at)


# -- the words -----------------------------------------------------------------------


def _message(headline: str, paragraphs: list[str], now: datetime) -> Message:
    """Without secrets, control characters and further headers, whatever was put in."""
    footer = f"-- \nStarview maintenance on {socket.gethostname()}, {_utc(now)}\n"
    text = redact("\n\n\n".join([*paragraphs, footer]))
    return Message(
        one_line(redact(f"[Starview] {headline}"))[:_LONGEST_SUBJECT],
        "\n".join(one_line(line) for line in text.split("\n")),
    )


def _over(outage: Outage) -> str:
    what = (
        f"That it did not answer was mailed at {_utc(outage.since)}."
        if outage.is_known
        else f"Nothing was run after {_utc(outage.since)}, and this container is new"
        " since: if it was mailed that the database does not answer, that is over."
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


def _in_full(notice: Notice, now: datetime) -> str:
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
    text = _section(f"{notice.job} {notice.what}.", fields, todo)
    return text + (_quoted(_output(notice.run.id)) if notice.run else "")


def _section(title: str, fields: dict[str, str], todo: list[str]) -> str:
    """The HINT of its "error" is the first thing to do."""
    error, _, hint = fields["error"].partition(" HINT: ")
    fields = {**fields, "error": error}
    todo = [hint, *todo] if hint else todo
    lines = [
        f"    {name:<13} {one_line(_cut(value))}"
        for name, value in fields.items()
        if value
    ]
    todo = [f"    {one_line(_cut(line))}" for line in todo]
    return "\n".join([title, "", *lines, "", "What to do:", *todo])


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
    """By the index jobrun_of_job, and not through a million runs that failed."""
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
    (output,) = rows.values_list(Right("output", _READ_CHARACTERS), flat=True)
    return str(output)


def _quoted(output: str) -> str:
    text = output.rstrip()
    # Of a progress bar what it shows at last.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    end = "\n".join(one_line(line.expandtabs()) for line in lines[-OUTPUT_LINES:])
    if not end:
        return ""
    quoted = [f"    | {line}" for line in end[-OUTPUT_CHARACTERS:].split("\n")]
    return "\n".join(["\n\nThe end of its output:", *quoted])


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

"""The messages that a channel may get, and the news that is worth an alert."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from starview.people import without_people
from starview.redaction import redact
from starview_app.maintenance.catchup.slots import (
    FAILURES,
    OVERDUE_AFTER,
    SlotRun,
    SlotState,
)
from starview_app.maintenance.models import Announcement, JobRun
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest

Outcome = JobRun.Outcome


# -- what a channel may get ----------------------------------------------------------


@dataclass(frozen=True)
class RunStarted:
    """A scheduled run is claimed, and its command is about to begin."""

    request: RunRequest
    run_id: uuid.UUID

    def for_strangers(self) -> Self:
        return self


@dataclass(frozen=True)
class RunEnded:
    """A scheduled run has ended, or could not begin because the database was away."""

    request: RunRequest
    run_id: uuid.UUID
    ending: Ending

    def for_strangers(self) -> Self:
        """Return a copy without what a service outside should not get: the output of a
        run that did not fail.
        """
        has_failed = self.ending.outcome in FAILURES
        ending = replace(
            self.ending,
            error=without_people(redact(self.ending.error)),
            output=without_people(self.ending.output) if has_failed else "",
        )
        return replace(self, ending=ending)


@dataclass(frozen=True)
class Section:
    """A part of an alert, about one problem. Only the output may have several lines."""

    title: str
    facts: dict[str, str]  # by name; "error" is one of them
    todo: tuple[str, ...]  # the error's HINT, then commands
    output: str = ""


@dataclass(frozen=True)
class Alert:
    """An alert, as `text` and as the `parts` that make up the text."""

    subject: str  # one line
    text: str
    parts: tuple[Section | str, ...] = ()

    def for_strangers(self) -> Self:
        return replace(
            self,
            subject=without_people(self.subject),
            text=without_people(self.text),
            parts=(),
        )


Message = RunStarted | RunEnded | Alert


class NotDelivered(Exception):
    """A message was not accepted; the text has the reason, without the address."""


class NeedsYou(Exception):
    """The message was delivered, but an operator must act; the text says how."""


# -- what is worth an alert ----------------------------------------------------------


@dataclass(frozen=True)
class Outage:
    """An outage of the database.

    If it is not known, an earlier container may have announced it.
    """

    since: datetime
    is_known: bool


@dataclass(frozen=True)
class Notice:
    """What must be announced about one job."""

    state: SlotState
    slot: datetime
    since: datetime  # the begin of the failures
    what: str  # "failed", "is overdue", "works again"
    run: SlotRun | None  # None: the slot was not run

    @property
    def job(self) -> str:
        return self.state.job

    @property
    def mark(self) -> datetime:
        """The key under which this is recorded.

        A slot that was announced as overdue may fail later: that has another key.
        """
        has_failed = self.run is not None and self.run.has_failed
        return self.slot if has_failed else self.slot - timedelta(seconds=1)

    @property
    def error(self) -> str:
        return self.run.error if self.run else ""


@dataclass(frozen=True)
class News:
    """All that one alert announces; false if that is nothing."""

    now: datetime
    troubles: list[Notice]
    recoveries: list[Notice]
    outage: Outage | None  # one that is over

    def __bool__(self) -> bool:
        return bool(self.troubles or self.recoveries or self.outage)


def news_of(
    states: Iterable[SlotState],
    announced: Mapping[str, Announcement],
    outage: Outage | None,
    now: datetime,
) -> News:
    """Return what a channel must announce now, after it has announced `announced`.

    Each slot that failed or is overdue is announced once, and so is that the job works
    again. The newest run that succeeded or failed decides; interrupted and skipped runs
    do not count.
    """
    troubles, recoveries = [], []
    for state in states:
        last = announced.get(state.job)
        failing_since = last.failing_since if last else None
        notice = _overdue(state, failing_since) or _ended(state, failing_since)
        if notice is None:
            continue
        if notice.run and notice.run.outcome == Outcome.SUCCEEDED:
            if failing_since:
                recoveries.append(notice)
        elif not (last and _covers(last, notice, now)):
            troubles.append(notice)
    return News(now, troubles, recoveries, outage)


def _covers(last: Announcement, notice: Notice, now: datetime) -> bool:
    """Whether `last` was about this slot, and the job has not worked since.

    A slot of the future was announced by a wrong clock, and covers nothing.
    """
    if not notice.mark <= last.announced_slot <= now:
        return False
    has_failed = notice.run is not None and notice.run.has_failed
    is_recovered = last.failing_since is None or any(
        run.outcome == Outcome.SUCCEEDED
        and run.finished_at is not None
        and run.finished_at > last.announced_at
        for run in notice.state.telling_runs
    )
    return not (has_failed and is_recovered)


def _overdue(state: SlotState, failing_since: datetime | None) -> Notice | None:
    if not state.overdue:
        return None
    run = next((run for run in state.since if run.finished_at is None), None)
    slot = (
        _slot(state, run) if run else state.schedule.last_due(state.now - OVERDUE_AFTER)
    )
    since = failing_since or (run.started_at if run else slot)
    if run is None and state.since:  # all runs were interrupted or refused
        run = state.since[-1]
    return Notice(state, slot, since, "is overdue", run)


def _ended(state: SlotState, failing_since: datetime | None) -> Notice | None:
    """Return the notice that follows from the newest run that succeeded or failed."""
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
    known_since = None if has_worked else failing_since
    since = known_since or first.finished_at or first.started_at
    what = run.outcome if run.has_failed else "works again"
    return Notice(state, _slot(state, run), since, what, run)


def _slot(state: SlotState, run: SlotRun) -> datetime:
    """Return the run's slot; for a manual run, the slot whose work it did."""
    return run.slot or state.schedule.last_due(run.started_at)

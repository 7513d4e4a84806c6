"""Catch-up: runs missed slots, and runs again those that failed."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog
from django.db import Error as DatabaseError
from django.db import connection

from starview_app.maintenance.catchup.memory import remember
from starview_app.maintenance.catchup.slots import SlotState, slot_states
from starview_app.maintenance.running.gone import mark_crashed, settle
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.text import one_line

logger = structlog.get_logger(__name__)

Clock = Callable[[], datetime]
Launch = Callable[[SlotState], None]


@dataclass(frozen=True)
class Due:
    """A slot that must be run now, and the reason."""

    state: SlotState
    reason: str


def due_now(jobs: list[ScheduledJob], now: datetime) -> list[Due]:
    """Return the slots that must be run now, newest first."""
    found = [
        Due(state, reason)
        for state in slot_states(jobs, now)
        if (reason := state.reason_to_run)
    ]
    return sorted(found, key=lambda due: due.state.slot, reverse=True)


def _look_at_runs(now: datetime) -> None:
    settle()  # first, or a run whose end was kept would be marked as crashed
    mark_crashed(now)


class Announce(Protocol):
    """Announces the news of `jobs`: see `notify.alerts.dispatch`."""

    def __call__(
        self, jobs: list[ScheduledJob], now: datetime, *, at_once: bool
    ) -> None: ...


def look_after(
    jobs: list[ScheduledJob], now: datetime, announce: Announce, *, at_once: bool
) -> None:
    """Record a tick, mark crashed runs, and announce the news; never raises.

    Without `at_once` nothing is announced soon after another alert: see
    `notify.alerts.dispatch`.
    """
    try:
        remember(jobs, now)
        _look_at_runs(now)
    except DatabaseError as error:
        connection.close()
        logger.error("runs_not_looked_after", error=one_line(error))
    announce(jobs, now, at_once=at_once)


def catch_up(
    jobs: list[ScheduledJob],
    *,
    clock: Clock,
    launch: Launch,
    announce: Announce,
    should_stop: Callable[[], bool],
) -> int:
    """Run the slots that are due, one after the other; return the number of runs.

    `jobs` must be all the crontab's jobs: see `memory.remember`.

    Each slot is run once; if it fails, its next attempt is left to a later catch-up.
    After each run, which may have taken hours, the due slots are looked up again. News
    is announced after the runs and during a long one, so that a slot that is run now is
    not announced as overdue before.
    """
    begun: set[tuple[str, datetime]] = set()
    now = clock()
    remember(jobs, now)
    _look_at_runs(now)
    while not should_stop():
        left = [
            due
            for due in due_now(jobs, clock())
            if (due.state.job, due.state.slot) not in begun
        ]
        if not left:
            break
        state = left[0].state
        begun.add((state.job, state.slot))
        logger.info(
            "catching_up",
            job=state.job,
            slot=state.slot.isoformat(),
            reason=left[0].reason,
        )
        launch(state)
        look_after(jobs, clock(), announce, at_once=False)
    look_after(jobs, clock(), announce, at_once=True)
    return len(begun)

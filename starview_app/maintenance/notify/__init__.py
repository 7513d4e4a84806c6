"""Announcements of runs to the channels; they are connected to `running.events`."""

import uuid
from datetime import datetime
from typing import Any

from starview_app.maintenance.notify import alerts, monitors
from starview_app.maintenance.running import events
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest


def listen() -> None:
    events.run_started.connect(_started)
    events.run_ended.connect(_ended)
    events.database_went_away.connect(_database_went_away)


def _started(*, request: RunRequest, run_id: uuid.UUID, **_: Any) -> None:
    # Commands that a person typed, with options of their own, are not announced.
    if request.schedule is not None:
        monitors.run_started(request, run_id)


def _ended(
    *,
    request: RunRequest,
    run_id: uuid.UUID,
    ending: Ending,
    is_recorded: bool,
    why_unrecorded: str,
    **_: Any,
) -> None:
    if is_recorded:
        alerts.after_run(request, ending)
    elif why_unrecorded:
        alerts.after_unrecorded_run(request, ending, why_unrecorded)
    if request.schedule is not None:
        monitors.run_ended(request, run_id, ending)


def _database_went_away(*, job: str, error: str, now: datetime, **_: Any) -> None:
    alerts.database_is_down(job, error, now=now)

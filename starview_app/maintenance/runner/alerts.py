"""Mails to ADMIN_EMAIL."""

from datetime import datetime

from starview_app.maintenance.runner.record import Ending
from starview_app.maintenance.runner.request import RunRequest
from starview_app.maintenance.runner.schedule import ScheduledJob


def after_run(request: RunRequest, ending: Ending) -> None: ...


def database_is_down(job: str, text: str, *, now: datetime) -> None: ...


def dispatch(jobs: list[ScheduledJob], now: datetime) -> None: ...

"""Pings to the monitors that watch from outside."""

import uuid

from starview_app.maintenance.runner.record import Ending
from starview_app.maintenance.runner.request import RunRequest


class Monitors:
    def __init__(self, request: RunRequest, run_id: uuid.UUID) -> None: ...

    def started(self) -> None: ...

    def finished(self, ending: Ending) -> None: ...

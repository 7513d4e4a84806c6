"""A Celery task that runs a job, for a web service that already uses Celery.

The task only starts the crontab's line in a process of its own; the run is claimed,
locked, recorded and announced like any other. Nothing in this image imports this
module, and it can be imported without Celery.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.utils import timezone

from starview_app.maintenance import exits
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.schedule.registry import is_recorded, scheduled_jobs

try:
    from celery import shared_task
except ImportError:

    def shared_task(**options: Any) -> Callable[..., Any]:
        """Replace Celery's decorator if Celery is missing; changes nothing."""
        return lambda function: function


logger = structlog.get_logger(__name__)


def run_named_job(job: str, slot: str | None = None) -> int:
    """Run the line of the crontab named `job` to its end, for its newest slot.

    The slot is claimed in PostgreSQL, so a task that is delivered twice, or is also
    started by supercronic, runs once. `slot` is a time in ISO 8601 with its zone; if it
    is no longer the newest slot, nothing is run, since `catch_up` runs missed slots.
    Returns 0. Raises JobError if the run failed, or if there is no such job.
    """
    line = next((line for line in scheduled_jobs() if job and line.job == job), None)
    if line is None:
        raise JobError(f"the crontab has no job {job!r} HINT: see `manage.py jobs`")
    # Catch-up claims nothing, and two at once do no harm.
    if not is_recorded(line) and line.django_command != "catch_up":
        raise JobError(
            f"{job} is not recorded, so it could run twice HINT: write run_job in front"
            " of its command"
        )
    if slot is not None and _moment(slot) != line.last_due(timezone.now()):
        logger.warning("task_dropped", job=job, slot=slot, reason="not its newest time")
        return exits.DONE
    here = Path(sys.executable).parent  # the crontab's lines call `python`
    path = f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    command = ["/bin/sh", "-c", line.shell_command]
    environment = {**os.environ, "PATH": path}
    ended = subprocess.run(
        command, cwd=settings.BASE_DIR, env=environment, check=False
    ).returncode
    code = exits.as_shell_shows(ended)
    if code:
        raise JobError(f"{job} ended with {code} HINT: see `manage.py jobs history`")
    return code


def _moment(slot: str) -> datetime:
    try:
        moment = datetime.fromisoformat(slot)
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise JobError(f"slot={slot!r} is no time with its zone") from None
    return moment


run_job = shared_task(name="starview_app.maintenance.run_job")(run_named_job)

"""Which lines of the crontab go through the runner."""

from functools import cache

from django.core.management import get_commands, load_command_class

from starview_app.maintenance.runner.request import scheduled_jobs
from starview_app.maintenance.runner.schedule import ScheduledJob


def recorded_jobs() -> list[ScheduledJob]:
    """The named jobs of the crontab whose runs are recorded.

    What the runner does not see must not be taken for missed.
    """
    return [job for job in scheduled_jobs() if job.job and is_recorded(job)]


def is_recorded(job: ScheduledJob) -> bool:
    """Whether the line runs a command of ours, or any other through `run_job`."""
    name = job.arguments[0] if job.arguments else ""
    return name == "run_job" or is_own_job(name)


@cache
def is_own_job(name: str) -> bool:
    app = get_commands().get(name)
    if not isinstance(app, str) or not app.startswith("starview_app"):
        return False
    return hasattr(load_command_class(app, name), "job_name")  # a JobCommand

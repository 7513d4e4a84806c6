"""The request for a run: its job, its slot and what triggered it."""

import os
import shlex
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from datetime import datetime

import structlog
from django.core.exceptions import ImproperlyConfigured

from starview.redaction import redact
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.schedule.crontab import LONGEST_JOB, ScheduledJob
from starview_app.maintenance.schedule.registry import scheduled_jobs
from starview_app.maintenance.text import one_line

logger = structlog.get_logger(__name__)

# The crontab sets JOB; `catch_up` and `jobs run` set the others for the command.
JOB = "JOB"
TRIGGER = "STARVIEW_JOB_TRIGGER"
SLOT = "STARVIEW_JOB_SLOT"
ATTEMPT = "STARVIEW_JOB_ATTEMPT"
_PASSED_ON = (JobRun.Trigger.CATCH_UP.value, JobRun.Trigger.MANUAL.value)
_MOST_ATTEMPTS = 32_767  # that the table's column holds


@dataclass(frozen=True)
class RunRequest:
    job: str
    command: str  # as it was typed, from the command's name on
    trigger: JobRun.Trigger
    slot: datetime | None = None  # None: the run stands for no slot and claims none
    attempt: int = 1
    # The line of the crontab; None for a command that a person typed.
    schedule: ScheduledJob | None = None

    @property
    def deadline_seconds(self) -> float | None:
        return self.schedule.deadline_seconds if self.schedule else None

    @property
    def kill_after_seconds(self) -> float | None:
        return self.schedule.kill_after_seconds if self.schedule else None


def take_request(
    command: str,
    arguments: Iterable[str],
    *,
    now: datetime,
    environ: MutableMapping[str, str] = os.environ,
) -> RunRequest:
    """Return the request for `command`, from the environment and the crontab.

    JOB and its companions are removed from `environ`, so that commands which the job
    starts are not taken for the same run. JOB counts only if its line of the crontab
    runs this command: where JOB is set for a whole container, another command must not
    claim the slot. Raises ImproperlyConfigured for values that this project never sets.
    """
    name = _taken(environ, JOB, str.isprintable, "is no name of a job")
    trigger = _taken(environ, TRIGGER, _PASSED_ON.__contains__, "is no trigger")
    slot = _taken(environ, SLOT, _is_moment, "is no time with its zone")
    attempt = _taken(environ, ATTEMPT, _is_attempt, "is no number of an attempt")
    if (trigger == JobRun.Trigger.CATCH_UP, bool(slot)) != (bool(slot), bool(attempt)):
        raise _forged(f"{TRIGGER}, {SLOT} and {ATTEMPT} do not belong together")
    name = name[:LONGEST_JOB]
    text = redact(shlex.join([command, *arguments]))
    jobs = scheduled_jobs(must_exist=bool(name))
    lines = [job for job in jobs if job.django_command == command]
    own_name = lines[0].job if len(lines) == 1 and lines[0].job else command
    if not name:
        return RunRequest(own_name, text, JobRun.Trigger.HAND)
    line = next((job for job in lines if job.job == name), None)
    if line is None:
        logger.warning("job_not_in_crontab", job=name, command=command)
        # The run of another command must not count as a run of that job.
        is_another = any(job.job == name for job in jobs)
        by_name = own_name if is_another else name
        return RunRequest(by_name, text, JobRun.Trigger.HAND)
    if trigger == JobRun.Trigger.MANUAL:
        return RunRequest(name, text, JobRun.Trigger.MANUAL, schedule=line)
    newest = line.last_due(now)
    if slot and datetime.fromisoformat(slot) != newest:
        raise _forged(f"{SLOT}={slot} is not the newest time of {name}")
    return RunRequest(
        name,
        text,
        JobRun.Trigger(trigger or JobRun.Trigger.SCHEDULE),
        slot=newest,
        attempt=int(attempt or 1),
        schedule=line,
    )


def environment_of(
    trigger: JobRun.Trigger, *, slot: datetime | None = None, attempt: int = 1
) -> dict[str, str]:
    """Return the variables that start a line of the crontab as this run, without JOB.

    The line sets JOB itself.
    """
    variables = {TRIGGER: trigger.value}
    if slot:
        variables |= {SLOT: slot.isoformat(), ATTEMPT: str(attempt)}
    return variables


def _taken(
    environ: MutableMapping[str, str],
    variable: str,
    is_good: Callable[[str], bool],
    wrong: str,
) -> str:
    """Remove `variable` from `environ` and return its value, or an empty string."""
    value = environ.pop(variable, "")
    if value and not is_good(value):
        raise _forged(f"{variable}={value!r} {wrong}")
    return value


def _forged(text: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        one_line(
            f"{text} HINT: JOB is for the lines of the crontab, STARVIEW_JOB_* for"
            " catch_up and `jobs run`: unset them here; nothing was run"
        )
    )


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is_attempt(text: str) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= len("32767")
    return is_number and 1 <= int(text) <= _MOST_ATTEMPTS

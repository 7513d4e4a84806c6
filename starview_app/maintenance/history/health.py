"""The health of this container: whether its scheduler runs and no job is overdue."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from django.db import DatabaseError

from starview_app.maintenance.catchup.slots import slot_states
from starview_app.maintenance.database_errors import in_one_line
from starview_app.maintenance.history.lines import utc
from starview_app.maintenance.history.runs import failing_run
from starview_app.maintenance.own_tables import rows_of
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import is_recorded
from starview_app.maintenance.text import one_line

PROC = Path("/proc")
_SCHEDULER = "supercronic"
# In any store: the database does not know which one the settings name.
_BACKUPS = """
    SELECT
        (array_agg(started_at ORDER BY id DESC) FILTER (WHERE state = 'good'))[1],
        max(proved_at)
    FROM maintenance_backup
"""
_NOT_ALIVE = "TtXZ"  # stopped, traced, dead, zombie: see proc(5)


class Scheduler(StrEnum):
    RUNS = "the scheduler runs"
    DEAD = "the scheduler is dead: no process supercronic runs"
    # The container was started for one command only.
    NOT_HERE = "no scheduler belongs to this container"


@dataclass(frozen=True)
class Health:
    scheduler: Scheduler
    problems: list[str]  # one line each; empty when healthy
    jobs: int
    # Shown, but not as a problem: to restart the container would not help a failing
    # job.
    failing: list[str]
    # Overdue, but left to a time within the hour: a container that is started then,
    # after a night without any, is not called unhealthy until that time.
    waiting: list[str] = field(default_factory=list)
    # The times of the last good backup and the last drill; empty without a record.
    backups: str = ""

    @property
    def is_healthy(self) -> bool:
        return not self.problems

    @property
    def late(self) -> str:
        waiting = one_line(", ".join(self.waiting))
        return f"left to the next time: {waiting}" if waiting else "none overdue"


def check_health(
    lines: Sequence[ScheduledJob], now: datetime, proc: Path = PROC
) -> Health:
    """Check the scheduler, and the recorded jobs among the crontab's `lines`."""
    scheduler = find_scheduler(proc)
    jobs = list(filter(is_recorded, lines))
    problems = [scheduler.value] if scheduler is Scheduler.DEAD else []
    failing: list[str] = []
    waiting: list[str] = []
    backups = ""
    if not lines:  # without lines no job could ever be overdue
        problems.append("the crontab has no job, or cannot be read HINT: jobs check")
    try:
        for state in slot_states(jobs, now):
            if state.overdue:
                found = waiting if state.is_left_to_next else problems
                found.append(f"{state.job}: {state.overdue}")
            if failed := failing_run(state):
                failing.append(f"{state.job} (run {failed.id})")
        backups = _last_backups()
    except DatabaseError as error:
        problems.append(in_one_line(error))
    return Health(scheduler, problems, len(jobs), failing, waiting, backups)


def _last_backups() -> str:
    """Return a text about the last backups; that they are old is not a problem here,
    since a failed run of the backup is announced itself.
    """
    for made_at, proved_at in rows_of(_BACKUPS, {}):
        if made_at:
            drill = f"last drill {utc(proved_at)}" if proved_at else "no drill yet"
            return f"last good backup {utc(made_at)}, {drill}"
    return ""


def find_scheduler(proc: Path = PROC) -> Scheduler:
    """Look in `proc` for a supercronic that is neither stopped nor dead.

    NOT_HERE if this container was started for one command.
    """
    if any(_is_scheduler(stat) for stat in proc.glob("[0-9]*/stat")):
        return Scheduler.RUNS
    try:
        first = (proc / "1" / "cmdline").read_bytes()
    except OSError:
        return Scheduler.NOT_HERE
    # Without arguments the entrypoint, as process 1 or under tini, runs the schedule.
    is_expected = first.rstrip(b"\0 ").endswith(b"entrypoint.sh")
    return Scheduler.DEAD if is_expected else Scheduler.NOT_HERE


def _is_scheduler(stat: Path) -> bool:
    try:
        line = stat.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has just ended
        return False
    # The name, in brackets, may hold blanks and brackets.
    name, _, fields = line.partition("(")[2].rpartition(") ")
    return name == _SCHEDULER and fields[:1] not in _NOT_ALIVE

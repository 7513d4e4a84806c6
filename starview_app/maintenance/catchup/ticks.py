"""Catch-up's own records: its ticks, and lines that ended without a record."""

import uuid
from datetime import datetime

from starview_app.maintenance import exits
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.running.ledger import Ending, RunRecord, Taken, execute
from starview_app.maintenance.running.request import RunRequest

# Uses the index jobrun_of_job.
_TICK = """
    WITH last AS (
        SELECT id, outcome, error, counts
        FROM maintenance_jobrun
        WHERE job = %(job)s
        ORDER BY job, started_at DESC
        LIMIT 1
    ),
    tick AS (
        UPDATE maintenance_jobrun AS run
        SET
            run_id = %(run_id)s,
            trigger = %(trigger)s,
            host = %(host)s,
            pid = %(pid)s,
            started_at = %(now)s,
            finished_at = %(finished_at)s,
            seconds = %(seconds)s,
            counts = jsonb_build_object(
                'runs', 0, 'ticks', (last.counts ->> 'ticks')::bigint + 1
            )
        FROM last
        WHERE
            run.id = last.id
            AND last.outcome = %(outcome)s
            AND last.error = %(error)s
            AND (last.counts ->> 'runs')::bigint = 0
            AND %(runs)s = 0
        RETURNING run.id
    )
    INSERT INTO maintenance_jobrun (
        run_id, job, attempt, trigger, command, host, pid, started_at,
        outcome, finished_at, seconds, exit_code, counts, output, error
    )
    SELECT
        %(run_id)s, %(job)s, 1, %(trigger)s, %(command)s, %(host)s, %(pid)s, %(now)s,
        %(outcome)s, %(finished_at)s, %(seconds)s, %(exit_code)s,
        jsonb_build_object('runs', %(runs)s, 'ticks', 1), '', %(error)s
    WHERE NOT EXISTS (SELECT FROM tick)
"""


def record_unbegun(
    request: RunRequest, *, exit_code: int, started_at: datetime, now: datetime
) -> None:
    """Record a line that ended, unless it has recorded its run itself.

    It has not if, for example, the shell did not find the program.
    """
    what = (
        f"its line in the crontab ended with {exit_code} before the job began"
        if exit_code in exits.NOT_STARTED
        else f"it ended with {exit_code} and left no record"
    )
    error = f"{what}: the container's log says why HINT: python manage.py jobs check"
    record = RunRecord(request, uuid.uuid4())
    if isinstance(record.begin(started_at), Taken):
        return
    seconds = round((now - started_at).total_seconds(), 3)
    record.finish(Ending(JobRun.Outcome.FAILED, exit_code, seconds, now, error, {}, ""))


def record_tick(
    request: RunRequest, ending: Ending, *, started_at: datetime, runs: int
) -> None:
    """Record a tick of catch-up, which has begun `runs` runs.

    There are 144 ticks a day, most of which do nothing and would hide the other runs.
    So equal ticks in a row share one row, with their number and the time of the last.
    """
    record = RunRecord(request, uuid.uuid4())
    parameters = {
        **record.row(started_at),
        **record.columns(ending),
        "runs": runs,
    }
    execute(_TICK, parameters)

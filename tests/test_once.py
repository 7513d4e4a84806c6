"""Of any number of replicas one runs a slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from starview_app.maintenance.models import JobRun
from tests.archive_processes import Commands, commands, kept
from tests.factories import session, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

__all__ = ["commands", "kept"]

PROCESSES = 20
TIMES = 50
LINE = "0 0 * * * JOB=starview-print timeout 1h python manage.py run_job print\n"


def waiting(holder: Any) -> int:
    """How many sessions wait for a lock of `holder`."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE %s = ANY(pg_blocking_pids(pid))",
            [holder.info.backend_pid],
        )
        (count,) = cursor.fetchone()
    return int(count)


def test_of_20_processes_with_one_slot_one_runs_50_times_over(
    commands: Commands, tmp_path: Path
) -> None:
    """All of them stand before the claim, and are let go at one moment."""
    crontab = tmp_path / "crontab"
    crontab.write_text(LINE)
    for _ in range(TIMES):
        JobRun.objects.all().delete()
        with session() as holder:
            holder.cursor().execute("LOCK TABLE maintenance_jobrun IN EXCLUSIVE MODE")
            processes = [
                commands.start(
                    *("run_job", "print", "hello"),
                    settings={"CRONTAB": str(crontab)},
                    environment={"JOB": "starview-print"},
                    commands={"print": "tests.commands_for_runs.Print"},
                    constants={
                        "starview_app.maintenance.runner.record.LOCK_TIMEOUT": "60s"
                    },
                    supervised=True,
                )
                for _ in range(PROCESSES)
            ]
            wait_until(lambda: waiting(holder) == PROCESSES, "all stand at the claim")  # noqa: B023
        ended = [process.finish() for process in processes]

        assert [done.code for done in ended] == PROCESSES * [0], ended
        assert sorted(done.out for done in ended) == [*([""] * 19), "hello\n"]
        assert sum("is taken: run " in done.err for done in ended) == PROCESSES - 1
        assert JobRun.objects.get().outcome == "succeeded"

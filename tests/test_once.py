"""Of any number of replicas one runs a slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from starview_app.maintenance.models import JobRun
from tests.archive_processes import Commands
from tests.factories import session, wait_until
from tests.sizes import IS_LONG

pytestmark = pytest.mark.django_db(transaction=True)

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


@pytest.mark.parametrize(
    ("processes", "times"),
    [
        (5, 1),
        pytest.param(20, 50 if IS_LONG else 10, marks=pytest.mark.soak),
    ],
)
def test_of_many_processes_with_one_slot_one_runs_however_often_it_is_tried(
    commands: Commands, tmp_path: Path, processes: int, times: int
) -> None:
    """All of them stand before the claim, and are let go at one moment."""
    crontab = tmp_path / "crontab"
    crontab.write_text(LINE)
    for _ in range(times):
        JobRun.objects.all().delete()
        with session() as holder:
            holder.cursor().execute("LOCK TABLE maintenance_jobrun IN EXCLUSIVE MODE")
            started = [
                commands.start(
                    *("run_job", "print", "hello"),
                    settings={"CRONTAB": str(crontab)},
                    environment={"JOB": "starview-print"},
                    commands={"print": "tests.commands_for_runs.Print"},
                    constants={
                        "starview_app.maintenance.running.ledger.LOCK_TIMEOUT": "60s"
                    },
                    supervised=True,
                )
                for _ in range(processes)
            ]
            wait_until(lambda: waiting(holder) == processes, "all stand at the claim")  # noqa: B023
        ended = [process.finish() for process in started]

        assert [done.code for done in ended] == processes * [0], ended
        assert sorted(done.out for done in ended)[-2:] == ["", "hello\n"]
        assert sum("is taken: run " in done.err for done in ended) == processes - 1
        assert JobRun.objects.get().outcome == "succeeded"

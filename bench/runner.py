"""The time that the runner adds to a command, with a small and a large history.

Each command is a fresh process. Those with an empty history and those with a large one
take turns, on two databases of one server and with the same crontab of 200 jobs.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from bench.laboratory import PYTHON, Laboratory, measured, median_multiple

JOBS = 200
ADDED_LIMIT_SECONDS = 0.150
GROWTH_LIMIT = 1.2  # with the large history, as a multiple of without

_JOB = "bench-{:03}"
_NOTHING = ("check", "--list-tags")
_LINE = "{minute} {hour} * * * JOB={job} timeout 30m python manage.py run_job " + (
    " ".join(_NOTHING)
)
# One run of each job a day and more, over 400 days; one in 50 has failed.
_HISTORY = """
    INSERT INTO maintenance_jobrun (
        run_id, job, slot, attempt, trigger, command, host, pid, started_at,
        finished_at, outcome, exit_code, seconds, counts, output, error
    )
    SELECT
        gen_random_uuid(),
        'bench-' || lpad((number % {jobs})::text, 3, '0'),
        now() - interval '400 days' * number / {rows},
        1, 'schedule', 'check', 'bench', 1,
        now() - interval '400 days' * number / {rows},
        now() - interval '400 days' * number / {rows} + interval '2 s',
        CASE WHEN number % 50 = 0 THEN 'failed' ELSE 'succeeded' END,
        0, 2.0, '{{"deleted": 1}}', repeat('a line of the output ', 10), ''
    FROM generate_series(1, {rows}) AS number
"""
COMMANDS = {
    "`catch_up --dry-run`": ["catch_up", "--dry-run"],
    "`jobs`": ["jobs"],
    "`jobs history`": ["jobs", "history"],
    "`jobs history --failed`": ["jobs", "history", "--failed"],
    "`jobs history NAME`": ["jobs", "history", _JOB.format(7)],
    "`jobs health`": ["jobs", "health"],
    "`jobs report`": [
        "jobs",
        "report",
        "--html",
        f"{gettempdir()}/starview-bench.html",
    ],
}
ALONE = "the command alone"
RUN = "the command in the runner"


@dataclass(frozen=True)
class RunnerFigures:
    """Seconds by command and history ("none", "large"), one per turn."""

    rows: int
    turns: int
    times: dict[str, dict[str, list[float]]]

    def seconds(self, name: str, history: str) -> float:
        return statistics.median(self.times[name][history])

    def added_seconds(self, history: str) -> float:
        """By the runner, to the command that does nothing."""
        pairs = zip(self.times[RUN][history], self.times[ALONE][history], strict=True)
        return statistics.median(run - alone for run, alone in pairs)

    def growth(self, name: str) -> float:
        times = self.times[name]
        return median_multiple(times["large"], times["none"])


def measure(
    laboratory: Laboratory, folder: Path, *, rows: int, turns: int
) -> RunnerFigures:
    """The first turn warms the file cache and does not count."""
    crontab = folder / "crontab"
    crontab.write_text(
        "".join(
            _LINE.format(minute=number % 60, hour=number // 60, job=_JOB.format(number))
            + "\n"
            for number in range(JOBS)
        )
    )
    environments = {
        history: {
            **laboratory.services.environment,
            "DATABASE_URL": laboratory.url(
                laboratory.prepare_history(_HISTORY, rows=size, jobs=JOBS)
            ),
            "DJANGO_SETTINGS_MODULE": "bench.runner_settings",
            "BENCH_CRONTAB": str(crontab),
        }
        for history, size in (("none", 0), ("large", rows))
    }
    names = [ALONE, RUN, *COMMANDS]
    times: dict[str, dict[str, list[float]]] = {
        name: {history: [] for history in environments} for name in names
    }
    for turn in range(turns + 1):
        for name in names:
            for history, environment in environments.items():
                usage = measured(*_command(name, turn, environment))
                if turn:
                    times[name][history].append(usage.seconds)
    return RunnerFigures(rows, turns, times)


def _command(
    name: str, turn: int, environment: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    if name == ALONE:
        return [PYTHON, "manage.py", *_NOTHING], environment
    if name != RUN:
        return [PYTHON, "manage.py", *COMMANDS[name]], environment
    # A job, and so a slot, of its own for each turn: claimed, run, recorded.
    job = {"JOB": _JOB.format(turn % JOBS)}
    return [PYTHON, "manage.py", "run_job", "check", "--list-tags"], {
        **environment,
        **job,
    }

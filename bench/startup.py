"""The time of a job with nothing to do, compared with a bare `django.setup()`.

Each command is a fresh process with the same apps, against the same embedded
PostgreSQL. They take turns in one run, so that a machine that becomes slower does so
for all. The ratio of each turn counts.
"""

import statistics
from dataclasses import dataclass

from bench.laboratory import PYTHON, Laboratory, measured, median_multiple

LIMIT = 1.6  # a job with nothing to do, as a multiple of the bare set-up

BARE = [
    PYTHON,
    "-c",
    "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'starview.settings';"
    " import django; django.setup()",
]
JOBS = {
    "cleanup_unverified_users": ["cleanup_unverified_users", "--days=7"],
    "cleanup_email_suppressions (no report)": ["cleanup_email_suppressions"],
    "archive_audit_logs": ["archive_audit_logs", "--days=30"],
    "clearsessions": ["clearsessions"],
}


@dataclass(frozen=True)
class StartUp:
    """Seconds by command, one per turn, with `bare` among the commands."""

    turns: int
    times: dict[str, list[float]]

    def seconds(self, name: str) -> float:
        return statistics.median(self.times[name])

    def multiple(self, name: str) -> float:
        return median_multiple(self.times[name], self.times["bare"])


def measure(laboratory: Laboratory, *, turns: int) -> StartUp:
    """The first turn warms the file cache and does not count."""
    commands = {"bare": BARE} | {
        name: [PYTHON, "manage.py", *arguments] for name, arguments in JOBS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, command in commands.items():
            usage = measured(command, laboratory.services.environment)
            if turn:
                times[name].append(usage.seconds)
    return StartUp(turns, times)

"""What a job with nothing to do costs beside a bare `django.setup()`.

    make bench

Each command is a fresh process with the same apps, against the same embedded
PostgreSQL. They take turns in one run, so that a machine that becomes slower does so
for all. The ratio of each turn counts.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from demo.services import LocalServices

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "benchmarks.md"
TURNS = 15
LIMIT = 1.6  # a job with nothing to do, as a multiple of the bare set-up

BARE = [
    sys.executable,
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


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="starview-bench-") as folder,
        LocalServices(Path(folder)) as services,
    ):
        environment = {**os.environ, **services.environment}
        _run([sys.executable, "manage.py", "migrate", "-v0"], environment)
        times = _measure(environment)
    text = _report(times)
    print(text)
    REPORT.write_text(text, encoding="utf-8")


def _measure(environment: dict[str, str]) -> dict[str, list[float]]:
    """Seconds by command; the first turn warms the file cache and does not count."""
    commands = {"bare": BARE} | {
        name: [sys.executable, "manage.py", *arguments]
        for name, arguments in JOBS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(TURNS + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            _run(command, environment)
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def _run(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def _ratio(times: dict[str, list[float]], name: str) -> float:
    pairs = zip(times[name], times["bare"], strict=True)
    return statistics.median(job / bare for job, bare in pairs)


def _verdict(ratio: float) -> str:
    return " (over the limit)" if ratio > LIMIT else ""


def _report(times: dict[str, list[float]]) -> str:
    rows = "\n".join(
        f"| `{name}` | {statistics.median(times[name]):.3f}"
        f" | {_ratio(times, name):.2f}{_verdict(_ratio(times, name))} |"
        for name in JOBS
    )
    return f"""# Benchmarks

What `make bench` printed on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores,
{platform.system()} {platform.machine()}, Python {platform.python_version()}.

## Start-up: a job with nothing to do

Whole processes, {TURNS} turns, medians. The bare set-up is `python -c "django.setup()"`
with the same settings and apps: {statistics.median(times["bare"]):.3f} s. At most
{LIMIT} times that is allowed.

| job | seconds | multiple of the bare set-up |
| --- | --- | --- |
{rows}
"""


if __name__ == "__main__":
    main()

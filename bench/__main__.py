"""Measure start-up, runner, jobs and archive, and write docs/benchmarks.md.

    make bench                      all of it, some twenty minutes
    make bench BENCH_ROWS=20000     smaller and once, into .bench/benchmarks.md

Nothing here fails because a machine is slow: what is over its limit is marked.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import accounts, badges, runner, sessions, startup
from bench.archive import ArchiveBenchmark
from bench.laboratory import ROOT, Laboratory
from bench.machine import machine, today, versions
from bench.report import Heading, Jobs, report
from demo.services import LocalServices

STARTUP_TURNS = 5  # to one turn of the archive: they are short
HISTORY_ROWS = 1_000_000
MEMBERS = 100_000
SESSIONS = 1_000_000
MINIO = ROOT / ".tools" / "minio"  # which `make minio` built, where there is Go


def main() -> None:
    options = _options()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr)

    minio = MINIO if MINIO.exists() else None
    with (
        tempfile.TemporaryDirectory(prefix="starview-bench-") as folder,
        LocalServices(Path(folder) / "services", minio=minio) as services,
    ):
        laboratory = Laboratory(services)
        laboratory.migrate()
        heading = Heading(
            today(), machine(), versions(laboratory, has_minio=bool(minio))
        )
        say("start-up")
        start_up = startup.measure(laboratory, turns=STARTUP_TURNS * options.turns)
        say("the runner")
        runs = runner.measure(
            laboratory,
            Path(folder),
            rows=min(HISTORY_ROWS, options.rows),
            turns=STARTUP_TURNS * options.turns,
        )
        say("badges")
        audits = badges.measure(
            laboratory, members=min(MEMBERS, options.rows), turns=options.turns
        )
        say("accounts")
        deletions = accounts.measure(
            laboratory, accounts=min(MEMBERS, options.rows), turns=options.turns
        )
        say("sessions")
        looks = sessions.measure(
            laboratory, sessions=min(SESSIONS, options.rows), turns=options.turns
        )
        figures = ArchiveBenchmark(laboratory, Path(folder), say=say).run(
            rows=options.rows, large_rows=options.large_rows, turns=options.turns
        )
    say("done")
    text = report(heading, start_up, runs, Jobs(audits, deletions, looks), figures)
    print(text)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--large-rows", type=int, help="default: three times --rows")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    options.large_rows = options.large_rows or 3 * options.rows
    return options


if __name__ == "__main__":
    main()

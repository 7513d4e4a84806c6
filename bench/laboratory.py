"""Equal databases, and processes that are measured."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rows import DROP_INDEXES, MAKE_INDEXES, ROWS, USERS
from demo.services import LocalServices

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
MIGRATED = "starview"  # what the services start with
_WORK = "work"  # the measured database, created for each measurement


@dataclass(frozen=True)
class Usage:
    """The time, memory and output of a process. A MB is 1,000,000 bytes."""

    seconds: float
    peak_mb: float
    output: str


def median_multiple(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of the multiples of the turns."""
    return statistics.median(
        one / other for one, other in zip(ours, others, strict=True)
    )


def measured(command: Sequence[str], environment: Mapping[str, str]) -> Usage:
    """Run one process to its end; exits with its output when it fails.

    The kernel counts the parent's memory at the start of a child as the child's, so the
    benchmark must stay smaller than what it measures, and does not import boto3.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"{' '.join(command)[:300]} failed:\n{text}")
    return Usage(seconds, usage.ru_maxrss * 1024 / 1e6, text)


class Laboratory:
    """One server for all; every measurement begins with a copy of the same files."""

    def __init__(self, services: LocalServices) -> None:
        self.services = services

    def migrate(self) -> None:
        measured(
            [PYTHON, "manage.py", "migrate", "-v0"],
            self.services.environment,
        )
        self.psql(MIGRATED, USERS, "VACUUM ANALYZE")

    def prepare_rows(self, rows: int) -> str:
        """Return a template database with `rows` audit rows, created if need be."""
        name = f"rows_{rows}"
        if not self._exists(name):
            self._copy(MIGRATED, name)
            drop, make = self.ask(name, DROP_INDEXES), self.ask(name, MAKE_INDEXES)
            fill = ROWS.format(rows=rows)
            no_checks = "SET session_replication_role = replica"  # of the users
            self.psql(name, drop, no_checks, fill, make, "VACUUM ANALYZE")
        return name

    def prepare_history(self, statement: str, *, rows: int, jobs: int) -> str:
        """Return a template database with a history of `rows` runs."""
        name = f"history_{rows}"
        if not self._exists(name):
            self._copy(MIGRATED, name)
            fill = statement.format(rows=rows, jobs=jobs) if rows else "SELECT 1"
            self.psql(name, fill, "VACUUM ANALYZE")
        return name

    def prepare(self, name: str, *statements: str) -> str:
        """Return a template database made by `statements`, created if need be."""
        if not self._exists(name):
            self._copy(MIGRATED, name)
            self.psql(name, *statements)
            self.psql(name, "VACUUM ANALYZE")
        return name

    def fresh(self, template: str) -> str:
        """Return a work database equal to `template`, when the server is idle."""
        self.psql("postgres", f"DROP DATABASE IF EXISTS {_WORK} WITH (FORCE)")
        self._copy(template, _WORK)
        return _WORK

    def keep(self, name: str) -> str:
        """Make a template of the work database, with an emptied audit log."""
        self.psql(_WORK, "TRUNCATE starview_app_auditlog", "VACUUM ANALYZE")
        self.psql("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._copy(_WORK, name)
        return name

    def drop(self, name: str) -> None:
        self.psql("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def psql(self, database: str, *commands: str) -> Usage:
        words = [str(self.services.psql_path), self.url(database), "-XAtq"]
        words += ["-v", "ON_ERROR_STOP=1", "-c", r"\timing on"]
        for command in commands:
            words += ["-c", command]
        return measured(words, {})

    def ask(self, database: str, query: str) -> str:
        """Return the only value of `query`."""
        return self.psql(database, query).output.splitlines()[0]

    def url(self, database: str) -> str:
        return f"{self.services.database_url.rpartition('/')[0]}/{database}"

    def environment(self, database: str, *, bucket: str) -> dict[str, str]:
        """Production's, with that bucket."""
        return {
            **self.services.environment,
            "DATABASE_URL": self.url(database),
            "AWS_STORAGE_BUCKET_NAME": bucket,
        }

    def folder_environment(self, database: str, *, folder: Path) -> dict[str, str]:
        """Development's, with that folder."""
        return {
            "DEBUG": "True",
            "DATABASE_URL": self.url(database),
            "DJANGO_SETTINGS_MODULE": "bench.folder_settings",
            "BENCH_ARCHIVE_FOLDER": str(folder),
        }

    def _exists(self, name: str) -> bool:
        query = f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"
        return self.ask("postgres", query) == "1"

    def _copy(self, template: str, name: str) -> None:
        """Copy the files; the server and the system write out what they have first."""
        self.psql(
            "postgres",
            f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy",
        )
        os.sync()

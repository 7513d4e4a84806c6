"""The audit archive compared with psql and bare boto3, on the same rows."""

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from bench.laboratory import (
    MIGRATED,
    PYTHON,
    Laboratory,
    Usage,
    measured,
    median_multiple,
)
from starview_app.maintenance.jobs.audit_archive.format import (
    DELETE,
    ESCAPED_LINE,
    copy_sql,
)
from starview_app.maintenance.jobs.audit_archive.table import read_columns

ARCHIVE = ["archive_audit_logs", "--days=30"]
VERIFY = ["verify_audit_archives"]
RESTORE = ["restore_audit_logs", "--from=2000-01-01", "--to=2999-12-31"]
SMALL_ROWS = 100_000  # one segment
_EVERY_ROW = {
    "first_timestamp": "1900-01-01 00:00:00+00",
    "first_id": 0,
    "last_timestamp": "2999-12-31 00:00:00+00",
    "last_id": 0,
}


@dataclass
class Comparison:
    """Our command and a reference, run in turns; the multiple of each turn counts."""

    what: str
    reference: str
    limit: float
    ours: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)

    def add(self, ours: float, reference: float) -> None:
        self.ours.append(ours)
        self.references.append(reference)

    @property
    def multiple(self) -> float:
        return median_multiple(self.ours, self.references)


@dataclass(frozen=True)
class Peak:
    """MB of the archive's process, at a small and at a large number of rows."""

    where: str
    small: float
    large: float


@dataclass(frozen=True)
class Figures:
    """All that was measured. Parts are {name: seconds}."""

    rows: int
    small_rows: int
    large_rows: int
    turns: int
    megabytes: dict[str, float]  # {json, txt: of all objects}
    comparisons: list[Comparison]
    psql_parts: dict[str, float]
    server_parts: dict[str, float]
    stages: dict[str, dict[str, float]]  # by place
    peaks: list[Peak]


class ArchiveBenchmark:
    def __init__(
        self, laboratory: Laboratory, folder: Path, *, say: Callable[[str], None]
    ) -> None:
        self._laboratory = laboratory
        self._say = say
        self._scratch = folder / "psql"  # what psql writes
        self._archives = folder / "archives"
        self._stages = folder / "stages.json"
        self._s3_url = laboratory.services.aws_url
        self._scratch.mkdir()
        self._buckets = 0
        self._statements = _statements(laboratory.url(MIGRATED), self._scratch)

    def run(self, *, rows: int, large_rows: int, turns: int) -> Figures:
        lab = self._laboratory
        self._say(f"making {rows} rows")
        template = lab.prepare_rows(rows)
        moves = self._compare_archiving(template, turns)
        comparisons, psql_parts, megabytes = moves
        comparisons += self._compare_reading(template, turns)
        server_parts = self._server_parts()
        stages = {
            "a folder": self._folder_stages(template),
            "S3": self._s3_stages(template),
        }
        lab.drop(template)
        small_rows = min(SMALL_ROWS, rows)
        peaks = self._peaks(small_rows, large_rows)
        return Figures(
            rows=rows,
            small_rows=small_rows,
            large_rows=large_rows,
            turns=turns,
            megabytes=megabytes,
            comparisons=comparisons,
            psql_parts=psql_parts,
            server_parts=server_parts,
            stages=stages,
            peaks=peaks,
        )

    # -- what is compared ---------------------------------------------------------

    def _compare_archiving(
        self, template: str, turns: int
    ) -> tuple[list[Comparison], dict[str, float], dict[str, float]]:
        """Return comparisons, the seconds of psql's parts, and its output's sizes."""
        psql = r"psql: `\copy` of the JSON, `\copy` of the TXT unescaped, the `DELETE`"
        to_folder = Comparison(
            "archive to a folder, JSON and TXT, read back, delete", psql, 1.2
        )
        to_s3 = Comparison(
            "archive to a local S3, JSON and TXT, read back, delete", psql, 1.3
        )
        parts: dict[str, list[float]] = {name: [] for name in self._statements}
        for turn in range(1, turns + 1):
            self._say(f"archive, turn {turn} of {turns}")
            reference = self._laboratory.psql(
                self._laboratory.fresh(template), *self._statements.values()
            )
            for name, seconds in zip(parts, _timings(reference), strict=True):
                parts[name].append(seconds)
            to_folder.add(self._archive_to_folder(template), reference.seconds)
            usage, bucket = self._archive_to_s3(template)
            to_s3.add(usage.seconds, reference.seconds)
            self._bare("remove-bucket", self._s3_url, bucket)
            self._tell(to_folder, to_s3)
        megabytes = {
            kind: (self._scratch / f"audit.{kind}").stat().st_size / 1e6
            for kind in ("json", "txt")
        }
        medians = {name: statistics.median(times) for name, times in parts.items()}
        return [to_folder, to_s3], medians, megabytes

    def _compare_reading(self, template: str, turns: int) -> list[Comparison]:
        lab = self._laboratory
        rows_file = self._scratch / "rows"
        restore = Comparison(
            "restore from a folder",
            r"psql: `\copy` of the same rows into the same empty table",
            2.5,
        )
        in_folder = Comparison(
            "verify a folder", "Python: read the same bytes, SHA-256", 1.5
        )
        in_s3 = Comparison(
            "verify a local S3", "boto3: get the same bytes, SHA-256", 1.5
        )
        table = "starview_app_auditlog"
        lab.psql(template, rf"\copy {table} to '{rows_file}'")
        _, bucket = self._archive_to_s3(template)
        in_bucket = lab.keep("archived_in_bucket")
        self._archive_to_folder(template)
        archived = lab.keep("archived")
        for turn in range(1, turns + 1):
            self._say(f"restore and verify, turn {turn} of {turns}")
            copied = lab.psql(lab.fresh(archived), rf"\copy {table} from '{rows_file}'")
            restored = self._in_folder(lab.fresh(archived), RESTORE)
            restore.add(restored.seconds, copied.seconds)
            hashed = self._bare("hash-folder", str(self._archives))
            in_folder.add(self._in_folder(archived, VERIFY).seconds, hashed.seconds)
            hashed = self._bare("hash-bucket", self._s3_url, bucket)
            verified = self._in_bucket(in_bucket, VERIFY, bucket)
            in_s3.add(verified.seconds, hashed.seconds)
            self._tell(restore, in_folder, in_s3)
        self._bare("remove-bucket", self._s3_url, bucket)
        lab.drop(in_bucket)
        lab.drop(archived)
        rows_file.unlink()
        return [restore, in_folder, in_s3]

    def _tell(self, *comparisons: Comparison) -> None:
        for row in comparisons:
            self._say(f"  {row.what}: {row.ours[-1]:.2f} s, {row.references[-1]:.2f} s")

    # -- where the time goes ------------------------------------------------------

    def _server_parts(self) -> dict[str, float]:
        """Return the seconds of S3's server and boto3 for the last archive's files."""
        self._say("the S3 server by itself")
        bucket = self._new_bucket()
        usage = self._bare("send-folder", str(self._archives), self._s3_url, bucket)
        self._bare("remove-bucket", self._s3_url, bucket)
        parts: dict[str, float] = json.loads(usage.output)
        return parts

    def _folder_stages(self, template: str) -> dict[str, float]:
        self._say("the stages of an archive run")
        self._clear_archives()
        lab = self._laboratory
        environment = lab.folder_environment(lab.fresh(template), folder=self._archives)
        return self._timed_stages(environment)

    def _s3_stages(self, template: str) -> dict[str, float]:
        bucket = self._new_bucket()
        lab = self._laboratory
        environment = lab.environment(lab.fresh(template), bucket=bucket)
        stages = self._timed_stages(environment)
        self._bare("remove-bucket", self._s3_url, bucket)
        return stages

    def _timed_stages(self, environment: dict[str, str]) -> dict[str, float]:
        command = [PYTHON, "-m", "bench.stages", str(self._stages), *ARCHIVE]
        usage = measured(command, environment)
        stages: dict[str, float] = json.loads(self._stages.read_text(encoding="utf-8"))
        # Before its clock starts, the process loads Python.
        stages[next(iter(stages))] += usage.seconds - sum(stages.values())
        return stages

    # -- memory, and the first version --------------------------------------------

    def _peaks(self, small_rows: int, large_rows: int) -> list[Peak]:
        folder, s3 = [], []
        for rows in (small_rows, large_rows):
            self._say(f"memory with {rows} rows")
            template = self._laboratory.prepare_rows(rows)
            self._clear_archives()
            work = self._laboratory.fresh(template)
            folder.append(self._in_folder(work, ARCHIVE).peak_mb)
            self._clear_archives()
            usage, bucket = self._archive_to_s3(template)
            s3.append(usage.peak_mb)
            self._bare("remove-bucket", self._s3_url, bucket)
            self._laboratory.drop(template)
        return [Peak("a folder", *folder), Peak("S3", *s3)]

    # -- runs ---------------------------------------------------------------------

    def _archive_to_folder(self, template: str) -> float:
        self._clear_archives()
        work = self._laboratory.fresh(template)
        return self._in_folder(work, ARCHIVE).seconds

    def _archive_to_s3(self, template: str) -> tuple[Usage, str]:
        """The run, and the new bucket that it has filled."""
        bucket = self._new_bucket()
        work = self._laboratory.fresh(template)
        return self._in_bucket(work, ARCHIVE, bucket), bucket

    def _in_folder(self, database: str, arguments: list[str]) -> Usage:
        environment = self._laboratory.folder_environment(
            database, folder=self._archives
        )
        return measured([PYTHON, "manage.py", *arguments], environment)

    def _in_bucket(self, database: str, arguments: list[str], bucket: str) -> Usage:
        environment = self._laboratory.environment(database, bucket=bucket)
        return measured([PYTHON, "manage.py", *arguments], environment)

    def _bare(self, *arguments: str) -> Usage:
        environment = self._laboratory.services.environment
        return measured([PYTHON, "-m", "bench.bare", *arguments], environment)

    def _new_bucket(self) -> str:
        self._buckets += 1
        name = f"bench-{self._buckets}"
        self._bare("make-bucket", self._s3_url, name)
        return name

    def _clear_archives(self) -> None:
        if self._archives.is_dir():
            for path in self._archives.iterdir():
                path.unlink()


def _statements(url: str, folder: Path) -> dict[str, str]:
    """Return the engine's own SQL for psql, for all rows at once.

    The TXT is not escaped, since nobody would do that in a statement typed by hand.
    """
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        columns = read_columns(cursor)
        texts = {
            name: cursor.mogrify(statement, _EVERY_ROW).decode()
            for name, statement in (
                *((kind, copy_sql(kind, columns)) for kind in ("json", "txt")),
                ("delete", DELETE),
            )
        }
    connection.close()
    statements = {}
    for kind in ("json", "txt"):
        plain = texts[kind].replace(ESCAPED_LINE, "line")
        copy = plain.replace("\n", " ").strip().removeprefix("COPY ")
        path = folder / f"audit.{kind}"
        statements[kind.upper()] = r"\copy " + copy.replace("STDOUT", f"'{path}'")
    return {**statements, "DELETE": texts["delete"]}


def _timings(usage: Usage) -> list[float]:
    r"""Return the times of psql's `\timing`, in seconds."""
    return [
        float(ms) / 1000 for ms in re.findall(r"^Time: ([\d.]+) ms", usage.output, re.M)
    ]

"""The figures as a page of documentation."""

import statistics
from dataclasses import dataclass

from bench import accounts, badges, runner, sessions, startup
from bench.archive import Comparison, Figures, Peak
from bench.stages import COPYING, DELETING

PEAK_LIMIT = 110.0  # MB
GROWTH_LIMIT = 5.0  # MB more with the large number of rows
OVER = " (over the limit)"


@dataclass(frozen=True)
class Heading:
    date: str
    machine: str
    versions: str


@dataclass(frozen=True)
class Jobs:
    """The jobs but for the archive."""

    audits: badges.BadgeFigures
    deletions: accounts.AccountFigures
    looks: sessions.SessionFigures


def report(
    heading: Heading,
    start_up: startup.StartUp,
    runs: runner.RunnerFigures,
    jobs: Jobs,
    figures: Figures,
) -> str:
    parts = (
        _heading(heading),
        _start_up(start_up),
        _runner(runs),
        _jobs(jobs),
        _comparisons(figures),
        _stages(figures),
        _server(figures),
        _memory(figures),
    )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _heading(heading: Heading) -> str:
    return f"""# Benchmarks

What `make bench` printed on {heading.date}.

- Machine: {heading.machine}
- Versions: {heading.versions}

Seconds are of this machine; what counts are the multiples. What is compared runs in
turns, as whole processes with their start-up, and a multiple is the median of those of
the turns. A MB is 1,000,000 bytes."""


def _start_up(start_up: startup.StartUp) -> str:
    rows = "\n".join(
        f"| `{name}` | {start_up.seconds(name):.3f} | {start_up.multiple(name):.2f}"
        f"{_mark(start_up.multiple(name), startup.LIMIT)} |"
        for name in startup.JOBS
    )
    return f"""## Start-up: a job with nothing to do

Turns: {start_up.turns}, medians. The bare set-up is `python -c "django.setup()"` with
the same settings and apps: {start_up.seconds("bare"):.3f} s. At most
{startup.LIMIT} times that is allowed.

| job | seconds | multiple of the bare set-up |
| --- | --- | --- |
{rows}"""


def _runner(runs: runner.RunnerFigures) -> str:
    rows = "\n".join(
        f"| {name} | {runs.seconds(name, 'none'):.3f}"
        f" | {runs.seconds(name, 'large'):.3f}"
        f" | {runs.growth(name):.2f}{_mark(runs.growth(name), runner.GROWTH_LIMIT)} |"
        for name in runs.times
    )
    added = " and ".join(
        f"{1000 * runs.added_seconds(history):.0f} ms"
        f"{_mark(runs.added_seconds(history), runner.ADDED_LIMIT_SECONDS)}"
        for history in ("none", "large")
    )
    return f"""## The runner, and what grows with its history

Turns: {runs.turns}, medians of whole processes, start-up included; a crontab of
{runner.JOBS} jobs; no run on record, or {runs.rows:,}. The command that does nothing is
`check --list-tags`. The runner (claim, a second process, lock,
record) adds {added}; at most
{1000 * runner.ADDED_LIMIT_SECONDS:.0f} ms are allowed, and a multiple of
{runner.GROWTH_LIMIT}.

| what | seconds with none | seconds with {runs.rows:,} | multiple |
| --- | --- | --- | --- |
{rows}"""


def _jobs(jobs: Jobs) -> str:
    audits, deletions, looks = jobs.audits, jobs.deletions, jobs.looks
    held = audits.members * badges.BADGES_EACH
    rows = "\n".join(
        f"| {what} | {statistics.median(ours):.2f} | {against}"
        f" | {statistics.median(others):.2f} | {multiple:.2f}{_mark(multiple, limit)}"
        f" | {limit} |"
        for what, ours, against, others, multiple, limit in (
            (
                f"`cleanup_unverified_users` deletes {deletions.accounts:,} accounts",
                deletions.command,
                "psql: five statements that do the same",
                deletions.psql,
                deletions.multiple,
                accounts.LIMIT,
            ),
            (
                f"`audit_badges` of {audits.members:,} members with {held:,} badges",
                audits.audit,
                "psql: two statements for each thing that is counted",
                audits.psql,
                audits.multiple,
                badges.LIMIT,
            ),
            (
                f"`clearsessions` of {looks.sessions:,} sessions",
                looks.command,
                "redis-py: a bare SCAN of them",
                looks.scan,
                looks.multiple,
                sessions.LIMIT,
            ),
        )
    )
    return f"""## The other jobs beside what a person would type

Whole processes, start-up and report included; turns: {deletions.turns}, medians.
`clearsessions` needs {looks.peak_mb:.0f} MB, and {looks.peak_mb_of_none:.0f} MB without
a session.

| what | seconds | against | seconds | multiple | limit |
| --- | --- | --- | --- | --- | --- |
{rows}"""


def _comparisons(figures: Figures) -> str:
    rows = "\n".join(map(_comparison, figures.comparisons))
    json_mb, txt_mb = (figures.megabytes[kind] for kind in ("json", "txt"))
    return f"""## The audit archive beside PostgreSQL's own tools

{figures.rows:,} rows of eleven months, {json_mb:.0f} MB of JSON and {txt_mb:.0f} MB of
TXT; turns: {figures.turns}, medians. Each run begins with a copy of the same database
files. psql runs the engine's own SQL for the whole range in one statement. Both
archives are read back and compared before the rows are deleted.

| what | seconds | against | seconds | multiple | limit |
| --- | --- | --- | --- | --- | --- |
{rows}

psql's medians: {_parts(figures.psql_parts)}."""


def _comparison(row: Comparison) -> str:
    return (
        f"| {row.what} | {statistics.median(row.ours):.2f} | {row.reference}"
        f" | {statistics.median(row.references):.2f}"
        f" | {row.multiple:.2f}{_mark(row.multiple, row.limit)} | {row.limit} |"
    )


def _stages(figures: Figures) -> str:
    folder, s3 = figures.stages["a folder"], figures.stages["S3"]
    psql = {
        COPYING: figures.psql_parts["JSON"] + figures.psql_parts["TXT"],
        DELETING: figures.psql_parts["DELETE"],
    }
    rows = "\n".join(
        f"| {stage} | {folder.get(stage, 0.0):.2f} | {s3.get(stage, 0.0):.2f}"
        f" | {psql.get(stage, 0.0):.2f} |"
        for stage in sorted(folder | s3, key=lambda name: -s3.get(name, 0.0))
    )
    return f"""### Where an archive's time goes

Another run of each, with a clock around the engine's stages (`bench/stages.py`).

| stage | seconds to a folder | seconds to S3 | psql's seconds |
| --- | --- | --- | --- |
{rows}
| together | {_total(folder)} | {_total(s3)} | {_total(psql)} |"""


def _server(figures: Figures) -> str:
    seconds = sum(figures.server_parts.values())
    in_s3 = figures.comparisons[1]
    psql = statistics.median(in_s3.references)
    ours = statistics.median(in_s3.ours)
    return f"""### What the S3 server costs by itself

The same objects sent and read back by bare boto3, in parts of the same size, without a
database: {seconds:.2f} s ({_parts(figures.server_parts)}). That is
{seconds / psql:.2f} times what psql takes. One after the other, that and psql's
work take {psql + seconds:.2f} s; the archive to S3, which does both, takes
{ours:.2f} s."""


def _memory(figures: Figures) -> str:
    rows = "\n".join(map(_peak, figures.peaks))
    small, large = f"{figures.small_rows:,}", f"{figures.large_rows:,}"
    return f"""## Memory of an archive run

The peak of the whole process; at most {PEAK_LIMIT:.0f} MB, and with more rows at most
{GROWTH_LIMIT:.0f} MB more.

| to | MB with {small} rows | MB with {large} rows | more |
| --- | --- | --- | --- |
{rows}"""


def _peak(peak: Peak) -> str:
    more = peak.large - peak.small
    return (
        f"| {peak.where} | {peak.small:.1f}{_mark(peak.small, PEAK_LIMIT)}"
        f" | {peak.large:.1f}{_mark(peak.large, PEAK_LIMIT)}"
        f" | {more:+.1f}{_mark(more, GROWTH_LIMIT)} |"
    )


def _total(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()):.2f}"


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())


def _mark(value: float, limit: float) -> str:
    return OVER if value > limit else ""

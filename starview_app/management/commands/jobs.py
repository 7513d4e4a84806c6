"""`jobs`: shows the jobs of the crontab and their runs, and runs or pauses a job."""

import os
import re
import socket
import sys
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseError
from django.utils import timezone

from starview_app.maintenance import exits
from starview_app.maintenance.catchup.launch import Launcher
from starview_app.maintenance.files import write_file
from starview_app.maintenance.history import costs
from starview_app.maintenance.history import runs as history
from starview_app.maintenance.history.health import check_health
from starview_app.maintenance.history.lines import (
    WIDTH,
    all_of,
    as_json_line,
    circumstances,
    clipped,
    dollars,
    duration,
    last_run,
    notes,
    table,
    utc,
)
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.running.command import (
    OneLineCommand,
    OneLineParser,
    whole_number,
)
from starview_app.maintenance.running.ledger import short_waits
from starview_app.maintenance.running.request import environment_of
from starview_app.maintenance.running.worker import clear_errors
from starview_app.maintenance.schedule.crontab import (
    ScheduledJob,
    parse_crontab,
    read_text,
)
from starview_app.maintenance.schedule.lint import lint
from starview_app.maintenance.schedule.registry import is_recorded, scheduled_jobs
from starview_app.maintenance.text import one_line

MAX_PAUSE = timedelta(days=400)
_RUN_ID = re.compile(r"(?=.{12,36}\Z)[0-9a-f]+(-[0-9a-f]+)*", re.IGNORECASE)

_SUBCOMMANDS = {
    "list": "List the crontab's jobs: their times, last run, next run and troubles.",
    "history": "Show the run history, newest first: duration, outcome and cost.",
    "show": "Show everything about one run, with its output; also while it runs.",
    "run": "Run a job now, as its line of the crontab does, and end as it ends.",
    "costs": "Show what the runs of this month cost at Render's price per minute.",
    "pause": "Keep the schedule from running a job until a moment.",
    "resume": "End the pause of a job.",
    "health": "Say whether the scheduler lives and no job is overdue; exits 1 if not.",
    "report": "Write one page of HTML that shows it all; for a browser, or to print.",
    "check": "Read the crontab over for mistakes; needs no database.",
}


@dataclass(frozen=True)
class _Report:
    """The output of a subcommand: `facts` as JSON, or the same as lines for people."""

    facts: dict[str, Any]
    lines: Sequence[str] = field(default_factory=list)
    exit_code: int = 0


class Command(OneLineCommand):
    help = (
        "Shows the crontab's jobs, their runs and their costs; runs, pauses and resumes"
        " a job. Without a subcommand it lists the jobs. All times are UTC."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        _add_json(parser, default=False)
        subparsers = parser.add_subparsers(
            dest="subcommand", metavar="SUBCOMMAND", parser_class=OneLineParser
        )
        parsers = {}
        for name, text in _SUBCOMMANDS.items():
            parsers[name] = subparsers.add_parser(name, help=text, description=text)
            _add_json(parsers[name], default=SUPPRESS)
        for name in ("run", "pause", "resume"):
            parsers[name].add_argument("name", metavar="NAME", help="the job's name")
        add = parsers["history"].add_argument
        add("name", metavar="NAME", nargs="?", help="of this job only")
        add("--failed", action="store_true", help="only runs that failed")
        add(
            "--limit",
            type=whole_number(1, "runs", maximum=10_000),
            default=20,
            help="how many, 20 by default",
        )
        parsers["show"].add_argument(
            "run",
            metavar="RUN",
            type=_run_key,
            help="the run's number, or its id in the log",
        )
        parsers["pause"].add_argument(
            "--until",
            metavar="WHEN",
            type=_moment,
            required=True,
            help="YYYY-MM-DD or YYYY-MM-DDTHH:MM, UTC",
        )
        parsers["report"].add_argument(
            "--html",
            metavar="FILE",
            type=Path,
            required=True,
            help="the file to write; one that is there is replaced",
        )
        parsers["check"].add_argument(
            "file", metavar="FILE", nargs="?", help="by default the image's crontab"
        )

    def handle(self, *, subcommand: str | None, as_json: bool, **options: Any) -> None:
        report_on = getattr(self, f"_{subcommand or 'list'}")
        options |= {"as_json": as_json, "now": timezone.now()}
        with clear_errors(), short_waits():
            report: _Report = report_on(**options)
        for line in [as_json_line(report.facts)] if as_json else report.lines:
            self.stdout.write(line)
        if report.exit_code:
            raise SystemExit(report.exit_code)

    # -- subcommands ------------------------------------------------------------------

    def _list(self, *, now: datetime, **options: Any) -> _Report:
        jobs = history.overview(scheduled_jobs(), now)
        rows = [("JOB", "LAST RUN (UTC)", "NEXT RUN (UTC)")]
        rows += [(job.name, last_run(job), utc(job.next_run_at)) for job in jobs]
        head, *lines = table(rows)
        for position, job in enumerate(jobs):
            lines[position] += f"\n    {clipped(notes(job), WIDTH - 4)}"
        facts = {"jobs": [asdict(job) for job in jobs]}
        return _Report(facts, [head, *lines] if jobs else ["No jobs"])

    def _history(
        self,
        *,
        name: str | None,
        failed: bool,
        limit: int,
        now: datetime,
        **options: Any,
    ) -> _Report:
        runs = history.history(name, only_failed=failed, limit=limit, now=now)
        if name and not runs:
            known = [job.name for job in scheduled_jobs()] + history.names_with_runs()
            if name not in known:
                _fail_unknown(name, known)
        rows = [("RUN", "STARTED (UTC)", "JOB", "DURATION", "OUTCOME", "COST")]
        rows += [
            (
                str(run.id),
                utc(run.started_at),
                run.job,
                duration(run.seconds),
                run.outcome,
                dollars(run.cost),
            )
            for run in runs
        ]
        head, *lines = table(rows, right=(0, 3, 5))
        for position, run in enumerate(runs):
            lines[position] += f"\n    {clipped(circumstances(run), WIDTH - 4)}"
        facts = {"runs": [asdict(run) for run in runs]}
        return _Report(facts, [head, *lines] if runs else ["No runs"])

    def _show(self, *, run: str, now: datetime, **options: Any) -> _Report:
        found = history.find_run(run, now)
        if found is None:
            raise CommandError(f"there is no run {run} HINT: jobs history lists them")
        return _Report({"run": asdict(found)}, all_of(found))

    def _run(
        self, *, name: str, as_json: bool, now: datetime, **options: Any
    ) -> _Report:
        line = _line_of(name)
        launcher = Launcher()
        variables = environment_of(JobRun.Trigger.MANUAL)
        with _stdout_is_for_the_report(as_json), launcher.passing_signals_on():
            exit_code = launcher.run(line, variables)
        record = None
        with suppress(DatabaseError):  # the run itself has reported the outage
            if as_json:
                record = history.last_manual_run(
                    line.job, host=socket.gethostname(), since=now, now=timezone.now()
                )
        run = asdict(record) if record else None
        return _Report({"run": run, "exit_code": exit_code}, exit_code=exit_code)

    def _costs(self, *, now: datetime, **options: Any) -> _Report:
        month = costs.month_costs(now, lines=len(scheduled_jobs()))
        rows = [("JOB", "RUNS", "COST")]
        rows += [(job.name, str(job.runs), dollars(job.cost)) for job in month.jobs]
        rows.append(("total", "", dollars(month.cost)))
        report = [
            f"{month.month} (UTC) until now, at ${costs.PER_MINUTE} a minute:",
            *table(rows, right=(1, 2)),
            f"Render bills at least ${month.as_cron_jobs:.2f} a month for these as cron"
            f" jobs, and ${month.as_worker:.2f} for one worker that runs them all.",
        ]
        return _Report({**asdict(month), "per_minute": costs.PER_MINUTE}, report)

    def _pause(
        self, *, name: str, until: datetime, now: datetime, **options: Any
    ) -> _Report:
        line = _recorded_line_of(name)
        history.pause(name, until=until, now=now)
        next_run_at = history.next_run(line, now, until)
        text = (
            f"{one_line(name)} is paused until {utc(until)} UTC;"
            f" its next run is at {utc(next_run_at)} UTC"
        )
        facts = {"job": name, "paused_until": until, "next_run_at": next_run_at}
        return _Report(facts, [text])

    def _resume(self, *, name: str, now: datetime, **options: Any) -> _Report:
        was_paused = history.resume(name, now=now)
        if not was_paused:
            _recorded_line_of(name)
        text = f"{one_line(name)} {'is resumed' if was_paused else 'is not paused'}"
        facts = {"job": name, "paused_until": None, "was_paused": was_paused}
        return _Report(facts, [text])

    def _health(self, *, now: datetime, **options: Any) -> _Report:
        health = check_health(scheduled_jobs(), now)
        failing = [f"failing: {text}" for text in health.failing]
        facts = {"healthy": health.is_healthy, **asdict(health)}
        if not health.is_healthy:
            lines = [f"unhealthy: {one_line(text)}" for text in health.problems]
            return _Report(facts, [*lines, *failing], exit_code=1)
        text = f"healthy: {health.scheduler.value}; {health.jobs} jobs, {health.late}"
        backups = [health.backups] if health.backups else []
        return _Report(facts, ["; ".join([text, *backups, *failing])])

    def _report(self, *, html: Path, now: datetime, **options: Any) -> _Report:
        # Imported here, since Django's templates take longer than other subcommands.
        from starview_app.maintenance.history import page
        from starview_app.maintenance.history.report import collect

        try:
            write_file(html, page.render(collect(scheduled_jobs(), now)))
        except OSError as error:
            raise CommandError(one_line(f"cannot write {html}: {error}")) from error
        return _Report({"file": str(html)}, [f"Report written to {html}"])

    def _check(self, *, file: str | None, **options: Any) -> _Report:
        path = Path(file or settings.CRONTAB)
        try:
            text = read_text(path)
        except OSError as error:
            raise CommandError(one_line(f"cannot read {path}: {error}")) from error
        findings = lint(text)
        count = len(parse_crontab(text)[0])
        facts = {"jobs": count, "findings": [asdict(found) for found in findings]}
        lines = [
            one_line(
                f"crontab{f' line {found.line}' if found.line else ''}:"
                f" {found.text} HINT: {found.fix}"
            )
            for found in findings
        ]
        good = f"crontab is good: {count} job{'' if count == 1 else 's'}"
        return _Report(facts, lines or [good], exit_code=1 if findings else 0)


# -- which job ----------------------------------------------------------------------


def _line_of(name: str) -> ScheduledJob:
    lines = {line.name: line for line in reversed(scheduled_jobs())}
    if name not in lines:
        _fail_unknown(name, reversed(lines))
    return lines[name]


def _recorded_line_of(name: str) -> ScheduledJob:
    line = _line_of(name)
    if not is_recorded(line):
        raise CommandError(
            f"{one_line(name)} cannot be paused: it does not ask before it runs HINT:"
            " run it through `run_job`, or put a # in front of its line",
            returncode=exits.WRONG_OPTIONS,
        )
    return line


def _fail_unknown(name: str, known: Iterable[str]) -> NoReturn:
    names = ", ".join(dict.fromkeys(known)) or "none"
    raise CommandError(
        one_line(f"there is no job {name!r} HINT: the names are {names}"),
        returncode=exits.WRONG_OPTIONS,
    )


# -- options ------------------------------------------------------------------------


def _add_json(parser: CommandParser, *, default: Any) -> None:
    text = "print the same facts as one JSON object"
    parser.add_argument(
        "--json", dest="as_json", action="store_true", default=default, help=text
    )


def _run_key(text: str) -> str:
    """An argparse type: a run's number, or at least 12 digits of its id."""
    is_number = text.isascii() and text.isdigit() and len(text) <= 19
    if not is_number and not _RUN_ID.fullmatch(text):
        raise ArgumentTypeError(
            f"{text!r} is neither a run's number nor its id, of which the log has the"
            f" first {history.RUN_ID_DIGITS} digits"
        )
    return text


def _moment(text: str) -> datetime:
    """An argparse type: the end of a pause, a moment in the future."""
    layout = "%Y-%m-%dT%H:%M" if "T" in text else "%Y-%m-%d"
    try:
        moment = datetime.strptime(text, layout).replace(tzinfo=UTC)
        if moment.strftime(layout) != text:  # strptime also accepts T1:5
            raise ValueError
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is neither YYYY-MM-DD nor YYYY-MM-DDTHH:MM (UTC)"
        ) from None
    now = timezone.now()
    if not now < moment <= now + MAX_PAUSE:
        raise ArgumentTypeError(
            f"{text!r} is not within the next {MAX_PAUSE.days} days (UTC)"
        )
    return moment


@contextmanager
def _stdout_is_for_the_report(is_so: bool) -> Iterator[None]:
    """If `is_so`, send to stderr what the job writes to stdout while the block runs."""
    if not is_so:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)

"""`make demo`: every job of the crontab against real services, and what it did.

Starts PostgreSQL, Redis, S3 and SES on this machine with a year of made-up data, runs
each job as the scheduler would, and shows what changed, what was archived and what was
mailed. Everything is in `.demo/` afterwards; nothing is left running. With the argument
`clean` it removes that folder.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import psycopg2

from demo.processes import (
    ServiceError,
    Terminated,
    end_descendants,
    ends_with_us,
    signals_deferred,
)
from demo.services import LocalServices
from starview_app.maintenance.schedule.crontab import ScheduledJob, read_crontab

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / ".demo"
RULE = "=" * 80

_NEXT_RUNS = 3
_LINES_OF_AN_ARCHIVE = 16
_LINE_WIDTH = 100
# What a job gets from this machine; the rest is the developer's, not production's.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")

_COUNTED = {
    "accounts": "SELECT count(*) FROM auth_user",
    "e-mail addresses": "SELECT count(*) FROM account_emailaddress",
    "e-mail confirmations": "SELECT count(*) FROM account_emailconfirmation",
    "locations": "SELECT count(*) FROM starview_app_location",
    "reviews": "SELECT count(*) FROM starview_app_review",
    "audit rows": "SELECT count(*) FROM starview_app_auditlog",
    "bounces": "SELECT count(*) FROM starview_email_bounce",
    "complaints": "SELECT count(*) FROM starview_email_complaint",
    "suppressions": "SELECT count(*) FROM starview_email_suppression",
    "active suppressions": (
        "SELECT count(*) FROM starview_email_suppression WHERE is_active"
    ),
}


@dataclass(frozen=True)
class Run:
    """How a job ended."""

    job: ScheduledJob
    exit_code: int


def main(arguments: Sequence[str] = ()) -> int:
    try:
        if list(arguments) == ["clean"]:
            LocalServices(FOLDER).remove()
            return 0
        return _demo()
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Terminated as end:
        return 128 + end.number
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _demo() -> int:
    jobs = read_crontab(CHECKOUT / "crontab")
    _heading("Starting PostgreSQL, Redis, S3 and SES on this machine")
    with LocalServices(FOLDER) as services:
        for name in ("mail", "archive"):
            shutil.rmtree(FOLDER / name, ignore_errors=True)
        environment = _environment(services)
        if _run_command([sys.executable, "demo/setup.py"], environment):
            raise ServiceError(f"the data could not be loaded; logs are in {FOLDER}")
        before = _count(services)
        runs = [_run_job(job, environment) for job in jobs]
        _show_changes(before, _count(services))
        _show_archive(services)
        _heading("Is every archived object what was archived?")
        _run_command(
            [sys.executable, "manage.py", "verify_audit_archives"], environment
        )
        _show_mail(services)
        _heading("How the last week was, compared with the one before")
        preview = ["--preview", ".demo/mail/analytics.html"]
        _run_command(
            [sys.executable, "manage.py", "send_analytics_report", *preview],
            environment,
        )
        _heading("All of it on one page")
        report = ["jobs", "report", "--html", ".demo/report.html"]
        _run_command([sys.executable, "manage.py", *report], environment)
        _heading("Which badges are not as the rules say")
        _run_command([sys.executable, "manage.py", "audit_badges"], environment)
        _heading("What is on record of these runs")
        _run_command([sys.executable, "manage.py", "jobs", "history"], environment)
    _show_next_runs(jobs)
    return _show_end(runs)


# -- Running --------------------------------------------------------------------------


def _environment(services: LocalServices) -> dict[str, str]:
    """Production's variables; `python` is the one that runs this."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]
    )
    return {**inherited, "PATH": path, **services.environment}


def _run_job(job: ScheduledJob, environment: dict[str, str]) -> Run:
    """Run a line of the crontab as supercronic does: its text, by /bin/sh."""
    _heading(f"{job.name}  (crontab line {job.line}: {job.times})")
    print(f"$ {job.command}\n")
    started = time.monotonic()
    code = _run_command(["/bin/sh", "-c", job.command], environment)
    print(f"\nexit code {code} after {time.monotonic() - started:.1f} s")
    return Run(job, code)


def _run_command(command: list[str], environment: dict[str, str]) -> int:
    """Run it in the checkout, its output between ours; end it when we are ended."""
    sys.stdout.flush()
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.DEVNULL,
        # `timeout` leaves the terminal's process group in any case, and so would not
        # hear of a Ctrl-C: we pass it on to all of them.
        start_new_session=True,
        preexec_fn=ends_with_us(signal.SIGTERM),
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            with signals_deferred():
                end_descendants(process.pid)
                process.wait()


# -- Showing --------------------------------------------------------------------------


def _count(services: LocalServices) -> dict[str, int]:
    """The rows of the tables that the jobs change, and of some that they must not."""
    counts = {}
    connection = psycopg2.connect(services.database_url)
    with contextlib.closing(connection), connection.cursor() as cursor:
        for label, statement in _COUNTED.items():
            cursor.execute(statement)
            row = cursor.fetchone()
            counts[label] = int(row[0]) if row else 0
    return counts


def _show_changes(before: dict[str, int], after: dict[str, int]) -> None:
    _heading("What changed in the database")
    print(f"{'':<28}{'before':>10}{'after':>10}{'change':>10}")
    for label, count in after.items():
        change = count - before.get(label, 0)
        shown = f"{change:+d}" if change else "-"
        print(f"{label:<28}{before.get(label, 0):>10}{count:>10}{shown:>10}")


def _show_archive(services: LocalServices) -> None:
    """List the bucket, and save its objects where they can be opened."""
    found = services.archived_objects()
    _heading(f"What is in the bucket: {len(found)} object(s)")
    for item in found:
        path = FOLDER / "archive" / Path(item.key).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(services.read_object(item.key))
        print(f"{item.size_bytes:>12,} bytes  {item.key}")
        print(f"{'':>20}{_shown(path)}")
    texts = [item.key for item in found if item.key.endswith(".txt")]
    if texts:
        print(f"\n{texts[0]} begins:")
        _show_beginning(services.read_object(texts[0]).decode())


def _show_beginning(text: str) -> None:
    for line in text.split("\n")[:_LINES_OF_AN_ARCHIVE]:
        # What an attacker typed must not reach the terminal as it is.
        safe = "".join(
            character if character.isprintable() else ascii(character)[1:-1]
            for character in line
        )
        cut = "..." if len(safe) > _LINE_WIDTH else ""
        print(f"  | {safe[:_LINE_WIDTH]}{cut}")


def _show_mail(services: LocalServices) -> None:
    messages = services.sent_mail()
    _heading(f"What was mailed: {len(messages)} message(s)")
    for number, raw in enumerate(messages, 1):
        message = email.message_from_string(raw, policy=email.policy.default)
        print(f"To:      {message['To']}\nSubject: {message['Subject']}")
        for path in _save_mail(FOLDER / "mail", number, raw, message):
            print(f"         {_shown(path)}")


def _save_mail(
    folder: Path, number: int, raw: str, message: EmailMessage
) -> Iterator[Path]:
    """Write the message and its bodies as files; yields their paths."""
    folder.mkdir(exist_ok=True)
    contents = {".eml": raw}
    for suffix, kind in ((".txt", "plain"), (".html", "html")):
        body = message.get_body((kind,))
        if body:
            contents[suffix] = body.get_content()
    for suffix, content in contents.items():
        path = folder / f"{number:02d}{suffix}"
        path.write_text(content, encoding="utf-8")
        yield path


def _show_next_runs(jobs: list[ScheduledJob]) -> None:
    _heading("When the schedule runs them next (UTC)")
    for job in jobs:
        moment, moments = datetime.now(UTC), []
        for _ in range(_NEXT_RUNS):
            moment = job.next_after(moment)
            moments.append(f"{moment:%a %Y-%m-%d %H:%M}")
        print(f"{job.name:<38}{', '.join(moments)}")


def _show_end(runs: list[Run]) -> int:
    failed = [run for run in runs if run.exit_code]
    _heading(
        f"{len(failed)} of {len(runs)} jobs FAILED: "
        + ", ".join(run.job.name for run in failed)
        if failed
        else f"All {len(runs)} jobs succeeded"
    )
    print(
        f"In {_shown(FOLDER)}: report.html (open it in a browser), mail/, archive/,"
        " the services' *.log; nothing is left running."
    )
    return 1 if failed else 0


def _heading(text: str) -> None:
    print(f"\n{RULE}\n{text}\n{RULE}", flush=True)


def _shown(path: Path) -> str:
    """The path as one would type it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

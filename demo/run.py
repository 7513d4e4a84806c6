"""`make demo`: every job of the crontab against real services, and what it did.

Starts PostgreSQL, Redis, S3 and SES on this machine with a year of made-up data, runs
each job as the scheduler would, and shows in short what changed, what was archived and
what was mailed. All of it is in `.demo/` afterwards; nothing is left running. With the
argument `clean` it removes that folder.
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
from demo.terminal import heading, in_short, say, styled
from starview_app.maintenance.schedule.crontab import ScheduledJob, read_crontab

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / ".demo"

_LINES_OF_AN_ARCHIVE = 3
_OBJECTS = 2
# The variables that a job gets from this machine; all others are like in production.
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
    """A command that has ended; its output is in a file."""

    exit_code: int
    output: str
    seconds: float


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
    except BrokenPipeError:  # nobody reads on: `make demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _demo() -> int:
    jobs = read_crontab(CHECKOUT / "crontab")
    heading("Starview maintenance: each job once, against real services")
    say("Starting PostgreSQL, Redis, S3 and SES on this machine ...", "dim")
    with LocalServices(FOLDER, has_ses_figures=True) as services:
        for name in ("mail", "archive", "output"):
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            (FOLDER / name).mkdir()
        environment = _environment(services)
        _prepare(environment)
        before = _count(services)
        failed = [job.name for job in jobs if _run_job(job, environment).exit_code]
        _show_changes(before, _count(services))
        _show_archive(services, environment)
        _show_mail(services)
        heading("What people look at")
        _look(environment, "badges", "audit_badges")
        preview = ["--preview", ".demo/mail/analytics.html"]
        _look(environment, "analytics", "send_analytics_report", *preview)
        _look(environment, "report", "jobs", "report", "--html", ".demo/report.html")
        heading("The jobs, their last and next times")
        _show(_manage(environment, "jobs", "jobs").output, short=False)
    return _show_end(failed, len(jobs))


# -- Running --------------------------------------------------------------------------


def _environment(services: LocalServices) -> dict[str, str]:
    """Return production's variables, with this Python first on PATH."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]
    )
    return {**inherited, "PATH": path, **services.environment}


def _prepare(environment: dict[str, str]) -> None:
    run = _run_command("setup", [sys.executable, "demo/setup.py"], environment)
    if run.exit_code:
        _show(run.output)
        raise ServiceError(f"the data could not be loaded; logs are in {FOLDER}")
    say(next(line for line in run.output.splitlines() if line.startswith("Loaded")))


def _run_job(job: ScheduledJob, environment: dict[str, str]) -> Run:
    """Run a line of the crontab as supercronic does: its text, by /bin/sh."""
    heading(f"{job.name}  ({job.times})")
    run = _run_command(job.name, ["/bin/sh", "-c", job.command], environment)
    _show(run.output)
    if run.exit_code:
        say(f"✗ exit code {run.exit_code} after {run.seconds:.1f} s", "red")
    else:
        say(f"✓ succeeded in {run.seconds:.1f} s", "green")
    return run


def _manage(environment: dict[str, str], name: str, *words: str) -> Run:
    return _run_command(name, [sys.executable, "manage.py", *words], environment)


def _look(environment: dict[str, str], name: str, *words: str) -> None:
    """Run a command that only reads; show the end of its output."""
    run = _manage(environment, name, *words)
    for line in list(in_short(run.output))[-2:]:
        say(line.replace("⚠️", "⚠"), *(["red"] if run.exit_code else []))


def _run_command(name: str, command: list[str], environment: dict[str, str]) -> Run:
    """Run a command in the checkout, which ends when this process does."""
    path, started = FOLDER / "output" / f"{name}.txt", time.monotonic()
    with path.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # `timeout` leaves the terminal's process group, and so would not get a
            # Ctrl-C. This process passes it on to all of them.
            start_new_session=True,
            preexec_fn=ends_with_us(signal.SIGTERM),
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                with signals_deferred():
                    end_descendants(process.pid)
                    process.wait()
    text = path.read_text(encoding="utf-8", errors="replace")
    return Run(code, text, time.monotonic() - started)


# -- Showing --------------------------------------------------------------------------


def _show(output: str, *, short: bool = True) -> None:
    for line in in_short(output) if short else output.splitlines():
        say(line, *(["dim"] if line.startswith(" ") else []))


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
    heading("What changed in the database")
    say(f"{'':<22}{'before':>10}{'after':>10}{'change':>10}", "dim")
    for label, count in after.items():
        change = count - before.get(label, 0)
        shown = f"{change:+,d}" if change else "-"
        say(f"{label:<22}{before.get(label, 0):>10,}{count:>10,}{shown:>10}")


def _show_archive(services: LocalServices, environment: dict[str, str]) -> None:
    """Adopt, list the bucket, save its objects where they can be opened, and verify."""
    adopted = _manage(environment, "adopt", "adopt_audit_archives")
    found = services.archived_objects()
    heading(f"The archive: {len(found)} objects in the bucket")
    say("The web service's first version had left an archive there:")
    say(
        next(
            line for line in adopted.output.splitlines() if line.startswith("Adopted 1")
        )
    )
    for item in found:
        path = FOLDER / "archive" / Path(item.key).name
        path.write_bytes(services.read_object(item.key))
    own = [item for item in found if Path(item.key).name not in adopted.output]
    for item in own[:_OBJECTS]:
        say(f"{item.size_bytes:>9,} bytes  {item.key}")
    say(f"… all of them in {_shown(FOLDER / 'archive')}/", "dim")
    texts = [item.key for item in own if item.key.endswith(".txt")]
    for key in texts[:1]:
        lines = services.read_object(key).decode().splitlines()
        for line in lines[-_LINES_OF_AN_ARCHIVE:]:
            say(f"| {line}", "dim")
    run = _manage(environment, "verify", "verify_audit_archives")
    last = list(in_short(run.output))[-1]
    say(f"{'✗' if run.exit_code else '✓'} {last}", "red" if run.exit_code else "green")


def _show_mail(services: LocalServices) -> None:
    messages = services.sent_mail()
    heading(f"The mails: {len(messages)}")
    for number, raw in enumerate(messages, 1):
        message = email.message_from_string(raw, policy=email.policy.default)
        paths = list(_save_mail(FOLDER / "mail", number, raw, message))
        say(f"To {message['To']}: {message['Subject']}")
        say(f"  {_shown(paths[-1])}", "dim")


def _save_mail(
    folder: Path, number: int, raw: str, message: EmailMessage
) -> Iterator[Path]:
    """Write the message and its bodies as files; yields their paths."""
    contents = {".eml": raw}
    for suffix, kind in ((".txt", "plain"), (".html", "html")):
        body = message.get_body((kind,))
        if body:
            contents[suffix] = body.get_content()
    for suffix, content in contents.items():
        path = folder / f"{number:02d}{suffix}"
        path.write_text(content, encoding="utf-8")
        yield path


def _show_end(failed: list[str], jobs: int) -> int:
    heading(
        f"{len(failed)} of {jobs} jobs FAILED: {', '.join(failed)}"
        if failed
        else f"All {jobs} jobs succeeded. Nothing is left running."
    )
    page = styled(_shown(FOLDER / "report.html"), "bold")
    print(f"  Open {page} in a browser: all of it on one page.")
    say("Beside it: mail/, archive/, and in output/ all that each command wrote")
    return 1 if failed else 0


def _shown(path: Path) -> str:
    """The path as one would type it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`jobs report --html`: one page that needs nothing else and shows no name."""

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.utils import timezone

from starview_app.maintenance.files import write_file
from starview_app.maintenance.history.report import RUNS, RUNS_OF_A_JOB, collect
from starview_app.maintenance.history.runs import pause
from starview_app.maintenance.models import AuditArchive, JobRun
from starview_app.maintenance.schedule.crontab import parse_crontab
from starview_app.maintenance.schedule.registry import scheduled_jobs
from tests.conftest import Manage
from tests.factories import CLEANUP, contents, make_run

pytestmark = pytest.mark.django_db(transaction=True)

Outcome = JobRun.Outcome

HOSTILE = '<script>alert(1)</script> & "quoted"'
MINUTE = timedelta(minutes=1)


@pytest.fixture
def page(manage: Manage, tmp_path: Path) -> "Page":
    return Page(manage, tmp_path / "report.html")


class Page:
    def __init__(self, manage: Manage, path: Path) -> None:
        self._manage = manage
        self.path = path

    def write(self) -> str:
        done = self._manage("jobs", "report", "--html", str(self.path))
        assert (done.returncode, done.stdout) == (0, f"Report written to {self.path}\n")
        return self.path.read_text(encoding="utf-8")


class Text(HTMLParser):
    """What a reader sees, and what the page would ask others for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        self.tags.add(tag)
        self.addresses += [
            value or "" for name, value in attributes if name in ("src", "href")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def verdict(page: str) -> str:
    match = re.search(r"<h1[^>]*>(.*?)</h1>", page)
    assert match
    return match[1]


def test_the_first_sentence_says_that_all_is_well(page: Page) -> None:
    make_run(CLEANUP, started_at=timezone.now() - MINUTE)

    assert verdict(page.write()) == "All is well: 5 jobs, none failing, none overdue."


def test_what_fails_is_named_first_with_its_error_and_what_to_do(page: Page) -> None:
    failed = make_run(
        CLEANUP,
        outcome="failed",
        trigger="manual",
        slot=None,
        started_at=timezone.now(),
        error="nothing was deleted HINT: connect as the owner",
    )

    text = page.write()

    assert verdict(text) == f"1 job is failing: {CLEANUP}."
    assert "nothing was deleted<br><strong>What to do:</strong> connect as the" in text
    assert f"python manage.py jobs show {failed.pk}" in text


def test_a_run_whose_process_is_gone_is_shown_as_crashed(page: Page) -> None:
    make_run(
        CLEANUP,
        outcome=Outcome.RUNNING,
        trigger="manual",
        started_at=timezone.now() - 5 * MINUTE,
    )

    text = page.write()

    assert verdict(text) == f"1 job is failing: {CLEANUP}."
    assert "its process is gone: it, or its container, was killed" in text
    assert "under way" not in text
    assert text.count(": crashed</title>") == 1


def test_the_page_asks_nobody_for_anything_and_runs_no_script(page: Page) -> None:
    make_run(CLEANUP, output=HOSTILE, error=HOSTILE, counts={HOSTILE: 1})

    text = page.write()

    seen = Text(text)
    assert not seen.tags & {"script", "link", "img", "iframe", "object"}
    assert seen.addresses == []
    assert "url(" not in text
    assert HOSTILE in seen.text


def test_names_and_addresses_are_left_out(page: Page) -> None:
    make_run(
        CLEANUP,
        output="  - bob (bob@example.com) - registered 9 days ago\n",
        error="to bob@example.com",
    )

    text = page.write()

    assert "bob" not in text
    assert "*** - registered 9 days ago" in text


def test_a_name_is_left_out_where_the_output_is_cut_in_its_line(page: Page) -> None:
    kept = "nabel (anna@example.com)\ny\n"  # and the last line, of 8,000 characters
    last = "x" * (8000 - len(kept))
    make_run(CLEANUP, output=f"  ✓ Deleted: an{kept}{last}")

    text = page.write()

    assert "nabel" not in text
    assert f"<pre>y\n{last}</pre>" in text


def test_what_a_job_wrote_hides_nothing_and_turns_nothing_round(page: Page) -> None:
    make_run(CLEANUP, output="\x1b[2Jred\x07 \u202eevil\nnext\n")

    text = page.write()

    assert "\\u001b[2Jred\\u0007 \\u202eevil\nnext\n" in text
    assert not set("\x1b\x07\u202e") & set(text)


def test_a_link_stays_and_a_pipe_is_written_into(page: Page, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to("report.html")
    page.path = tmp_path / "link.html"
    assert page.write().startswith("<!DOCTYPE html>")
    assert page.path.is_symlink()
    assert not (tmp_path / "report.html").is_symlink()

    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reader, "rb") as read:  # there is room for it in the pipe
        write_file(pipe, "<!DOCTYPE html>")
        assert read.read() == b"<!DOCTYPE html>"
    assert pipe.is_fifo()


def test_a_name_that_is_none_is_one_line(manage: Manage) -> None:
    done = manage("jobs", "report", "--html", "")

    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_shows_the_newest_runs_and_no_more() -> None:
    now = timezone.now()
    for number in range(RUNS + 5):
        make_run(CLEANUP, started_at=now - number * MINUTE, seconds=float(number))

    report = collect(scheduled_jobs(), now)

    job = next(job for job in report.jobs if job.overview.name == CLEANUP)
    assert [run.seconds for run in job.runs] == list(range(RUNS_OF_A_JOB))[::-1]
    assert [run.seconds for run in report.runs] == list(range(RUNS))
    assert job.usual_seconds == (RUNS_OF_A_JOB - 1) / 2


def test_the_archive_is_shown_by_month_with_its_last_proof(page: Page) -> None:
    at = timezone.now() - timedelta(days=40)
    for number in range(2):
        AuditArchive.objects.create(
            location="s3",
            stem=f"a{number}",
            state="archived",
            archived_at=at,
            retention_days=30,
            first_timestamp=at.replace(year=2025, month=3),
            first_id=1,
            last_timestamp=at,
            last_id=2,
            names=[],
            row_count=1500,
            objects_written=[{"size_bytes": 2_000_000}],
        )

    text = page.write()
    make_run("verify_audit_archives", finished_at=at)
    proved = page.write()
    make_run("verify_audit_archives", outcome="failed", finished_at=at + MINUTE)
    failed = page.write()

    cells = re.sub(r"<[^>]+>", " ", text)
    assert re.search(r"2025-03 +3,000 +2 +4\.0", cells)
    assert "Nobody has verified the chain yet" in text
    assert f"last verified on {at:%Y-%m-%d %H:%M}" in proved
    assert f"The verification of {at + MINUTE:%Y-%m-%d %H:%M} UTC failed" in failed


def test_a_verification_that_failed_since_is_said_with_its_date() -> None:
    (line,), _ = parse_crontab(
        "0 6 2 * * JOB=chain-proof timeout 1h python manage.py verify_audit_archives\n"
    )
    now = timezone.now()
    make_run("verify_audit_archives", started_at=now - 9 * MINUTE)
    make_run("chain-proof", started_at=now - 6 * MINUTE, outcome=Outcome.FAILED)
    make_run("chain-proof", started_at=now - 3 * MINUTE, outcome=Outcome.INTERRUPTED)
    failed = collect([line], now)
    make_run("chain-proof", started_at=now - MINUTE)
    proved = collect([line], now)

    half = timedelta(seconds=30)
    assert failed.verified_at == now - 9 * MINUTE + half
    assert failed.verify_failed_at == now - 6 * MINUTE + half
    assert proved.verified_at == now - MINUTE + half
    assert proved.verify_failed_at is None


def test_the_rates_of_the_weekly_reports_are_drawn(page: Page) -> None:
    for week in range(15):
        make_run(
            "starview-cleanup-email-suppressions",
            started_at=timezone.now() - timedelta(weeks=week, hours=1),
            counts={"ses_attempts": 1000, "ses_bounces": 60, "ses_complaints": 1},
        )

    text = page.write()

    assert text.count(": 6.0 % of 1,000</title>") == 12
    assert text.count(": 0.10 % of 1,000</title>") == 12
    assert len(set(re.findall(r"week to (\S+): 6.0 %", text))) == 12


@pytest.mark.parametrize(
    ("attempts", "bounces", "complaints", "said"),
    [
        (1000, 57, 0, "But 5.7 % of the mails bounced last week."),
        (1000, 0, 1, "But 0.1 % of the mails were complained about last week."),
        (10_000, 499, 9, ""),
        (199, 100, 100, ""),  # too few to judge by
    ],
)
def test_a_rate_that_ses_reviews_an_account_for_is_in_the_first_sentence(
    attempts: int, bounces: int, complaints: int, said: str, page: Page
) -> None:
    make_run(
        "starview-cleanup-email-suppressions",
        started_at=timezone.now() - MINUTE,
        counts={
            "ses_attempts": attempts,
            "ses_bounces": bounces,
            "ses_complaints": complaints,
        },
    )

    well = "5 jobs, none failing, none overdue."
    found = verdict(page.write())
    assert found == (f"{well} {said}" if said else f"All is well: {well}")


def test_looking_changes_nothing_and_needs_no_table_of_ours(page: Page) -> None:
    before = contents()

    page.write()

    assert contents() == before
    assert not JobRun.objects.exists()


def test_a_file_that_cannot_be_written_is_one_line(manage: Manage) -> None:
    done = manage("jobs", "report", "--html", "/nowhere/report.html")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot write /nowhere/report.html: " in line


@pytest.mark.parametrize(
    ("times", "days"),
    [
        ("0 2 * * *", range(1, 35)),
        ("0 13 * * *", range(35)),
        ("0 3 * * 0", [2, 9, 16, 23, 30]),
        ("0 4 1 * *", [26]),
        ("0,30 4 1 * *", [26]),
        ("*/10 * * * *", range(35)),
        ("0 */2 * * *", range(35)),
    ],
)
def test_the_coming_days_are_those_of_the_crontab(
    times: str, days: Iterable[int]
) -> None:
    friday = datetime(2026, 3, 6, 12, tzinfo=UTC)
    (line,), _ = parse_crontab(f"{times} JOB=a timeout 1h python manage.py a\n")

    (job,) = collect([line], friday).jobs

    assert [number for number, due in enumerate(job.days_ahead) if due] == [*days]


def test_a_paused_job_is_due_on_no_day_of_its_pause() -> None:
    friday = datetime(2026, 3, 6, 12, tzinfo=UTC)
    text = "0 2 * * * JOB=a timeout 1h python manage.py run_job clearsessions\n"
    (line,), _ = parse_crontab(text)
    monday = friday.replace(day=9, hour=2)
    pause("a", until=monday, now=friday)

    (job,) = collect([line], friday).jobs

    days = [number for number, due in enumerate(job.days_ahead) if due]
    assert days == [*range(3, 35)]  # the end of a pause is not in it

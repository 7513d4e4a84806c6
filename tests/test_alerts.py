"""Alerts: what is mailed to ADMIN_EMAIL, how often, and what is never lost."""

import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from demo.services import ADMIN, SENDER, LocalServices
from starview.env import Environment
from starview_app.maintenance import ses as ses_module
from starview_app.maintenance.catchup.memory import last_tick, remember
from starview_app.maintenance.models import Announcement, JobRun, ScheduleLine
from starview_app.maintenance.notify import alerts, words
from starview_app.maintenance.running.gone import mark_crashed
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.lock import lock_if_free
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import scheduled_jobs
from tests.conftest import Manage
from tests.factories import (
    DEADLINE_SECONDS,
    execute,
    in_thread,
    make_known,
    make_run,
    session,
)

pytestmark = pytest.mark.django_db(transaction=True)

Outcome = JobRun.Outcome
Trigger = JobRun.Trigger
Mails = Callable[[], list[EmailMessage]]
Said = Callable[[], list[dict[str, Any]]]

SLOT = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
DAY = timedelta(days=1)
# The next catch-up after a failure at SLOT, and one after the pause between mails.
NOW = SLOT + timedelta(minutes=10)
# Nothing is listening there.
CLOSED = "http://127.0.0.1:9"
COMMAND = "cleanup_email_suppressions"
WEEKLY = "starview-cleanup-email-suppressions"
DAILY = "starview-cleanup-unverified-users"


def line(name: str = "job-a", times: str = "0 2 * * *") -> ScheduledJob:
    command = f"JOB={name} timeout -k 60 1h python manage.py run_job clearsessions"
    return ScheduledJob(1, times, command)


A, B, C = line("job-a"), line("job-b"), line("job-c")


@pytest.fixture
def mails(
    services: LocalServices,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Mails:
    """What SES was sent since; files are kept in a folder of the test's own."""
    settings.EMAIL_BACKEND = "starview_app.maintenance.ses.Backend"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(services.sent_mail())

    def sent() -> list[EmailMessage]:
        return [
            message_from_string(raw, policy=policy.default)
            for raw in services.sent_mail()[before:]
        ]

    return sent


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What the log says of mails that could not be sent."""

    def find() -> list[dict[str, Any]]:
        events: list[Any] = [record.msg for record in caplog.records]
        return [
            event
            for event in events
            if isinstance(event, dict) and event["event"] == "alert_not_sent"
        ]

    return find


def record(
    job: ScheduledJob = A,
    outcome: Outcome = Outcome.FAILED,
    *,
    slot: datetime | None = SLOT,
    after_minutes: int = 0,
    **columns: Any,
) -> JobRun:
    """A run that lasted a minute."""
    if not ScheduleLine.objects.filter(job=job.job).exists():
        make_known(job, since=SLOT - timedelta(hours=1))
    is_running = outcome == Outcome.RUNNING
    is_good = is_running or outcome == Outcome.SUCCEEDED
    return make_run(
        job.job,
        **{
            "slot": slot,
            "trigger": Trigger.SCHEDULE if slot else Trigger.MANUAL,
            "command": "clearsessions",
            "started_at": (slot or SLOT) + timedelta(minutes=after_minutes),
            "outcome": outcome,
            "seconds": None if is_running else 60.0,
            "error": "" if is_good else "it broke HINT: mend it.",
            **columns,
        },
    )


def end(run: JobRun, schedule: ScheduledJob | None) -> None:
    """What the watching process does at the end of a run."""
    assert run.finished_at
    request = RunRequest(
        run.job,
        run.command,
        Trigger(run.trigger),
        slot=run.slot,
        attempt=run.attempt,
        schedule=schedule,
    )
    outcome = Outcome(run.outcome)
    ending = Ending(
        outcome, run.exit_code or 0, 60.0, run.finished_at, run.error, {}, run.output
    )
    alerts.after_run(request, ending)


def run(job: ScheduledJob = A, *arguments: Any, **changes: Any) -> JobRun:
    """A run, recorded and ended."""
    row = record(job, *arguments, **changes)
    end(row, job)
    return row


def subjects(mails: Mails) -> list[str]:
    return [mail["Subject"] for mail in mails()]


def text_of(mail: EmailMessage) -> str:
    return body_of(mail, "plain")


def body_of(mail: EmailMessage, kind: str) -> str:
    body = mail.get_body((kind,))
    assert body
    return str(body.get_content()).replace("\r\n", "\n")


def states() -> dict[str, tuple[datetime | None, datetime | None]]:
    rows = Announcement.objects.filter(channel="mail")
    return {row.job: (row.announced_slot, row.failing_since) for row in rows}


# -- one job -------------------------------------------------------------------------


def test_a_failed_run_is_mailed_with_all_that_is_needed_to_act(mails: Mails) -> None:
    record(A, Outcome.SUCCEEDED, slot=SLOT - DAY)
    failed = run(A, output="first line\n\tsecond line\n")

    (mail,) = mails()
    text, _, footer = text_of(mail).partition("\n\n\n-- \n")
    assert (mail["From"], mail["To"]) == (SENDER, ADMIN)
    assert mail["Subject"] == "[Starview] job-a failed"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].endswith("@starview.app>")
    assert (
        text
        == f"""job-a failed.

    slot          2026-03-01 02:00 UTC
    command       clearsessions
    run           {failed.id}, attempt 1, schedule
    outcome       failed, exit code 1, after 1 min
    host          a-container, pid 7
    error         it broke
    since         2026-03-01 02:01 UTC
    last success  2026-02-28 02:00 UTC
    next          catch-up tries it again at about 2026-03-01 02:11 UTC

What to do:
    mend it.
    python manage.py jobs show {failed.id}
    python manage.py jobs run job-a

The end of its output:
    | first line
    |         second line"""
    )
    assert footer.endswith(", 2026-03-01 02:01 UTC\n")


def test_the_mail_has_the_same_as_html_and_what_a_job_wrote_stays_text(
    mails: Mails,
) -> None:
    failed = run(
        A, error="<b>it</b> broke HINT: mend it.", output="<i>wrote</i> this\n"
    )

    (mail,) = mails()
    html = body_of(mail, "html")
    assert "&lt;b&gt;it&lt;/b&gt; broke</p>" in html
    assert ">mend it.</p>" in html
    assert f">python manage.py jobs show {failed.id}</p>" in html
    assert ">2026-03-01 02:00 UTC</td>" in html
    assert "&lt;i&gt;wrote&lt;/i&gt; this</pre>" in html
    assert not re.search(r"<(b|i|script|img|link)\b|https?:", html)


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.CRASHED])
def test_a_run_that_timed_out_or_crashed_is_mailed_as_what_it_is(
    outcome: Outcome, mails: Mails
) -> None:
    run(A, outcome)

    assert subjects(mails) == [f"[Starview] job-a {outcome.value}"]


@pytest.mark.parametrize("outcome", [Outcome.INTERRUPTED, Outcome.SKIPPED])
def test_a_run_that_was_interrupted_or_skipped_is_no_failure(
    outcome: Outcome, mails: Mails
) -> None:
    run(A, outcome, exit_code=75)
    alerts.dispatch([A], NOW)

    assert mails() == []


def test_a_command_that_people_try_by_hand_is_never_mailed(mails: Mails) -> None:
    end(record(A, slot=None, trigger=Trigger.HAND), None)
    alerts.dispatch([A], NOW)

    assert mails() == []


def test_jobs_run_that_fails_is_mailed_for_the_slot_it_stands_for(
    mails: Mails,
) -> None:
    run(A, slot=None, after_minutes=5)
    alerts.dispatch([A], NOW)

    assert subjects(mails) == ["[Starview] job-a failed"]
    assert states() == {"job-a": (SLOT, SLOT + timedelta(minutes=6))}


def test_retries_of_a_slot_that_fail_again_send_nothing_more(mails: Mails) -> None:
    run(A)
    for attempt, minutes in ((2, 10), (3, 70), (4, 430)):
        run(A, attempt=attempt, after_minutes=minutes)
        alerts.dispatch([A], SLOT + timedelta(minutes=minutes + 10))

    assert subjects(mails) == ["[Starview] job-a failed"]


def test_a_new_slot_that_fails_is_mailed_again_and_says_since_when(
    mails: Mails,
) -> None:
    run(A)
    run(A, slot=SLOT + DAY)

    assert subjects(mails) == ["[Starview] job-a failed"] * 2
    assert "since         2026-03-01 02:01 UTC" in text_of(mails()[1])
    assert states() == {"job-a": (SLOT + DAY, SLOT + timedelta(minutes=1))}


@pytest.mark.parametrize("is_recovery_mailed", [True, False])
def test_a_job_that_fails_again_after_a_success_in_its_slot_is_mailed_again(
    is_recovery_mailed: bool, mails: Mails
) -> None:
    run(A)
    success = record(A, Outcome.SUCCEEDED, slot=None, after_minutes=10)
    if is_recovery_mailed:
        end(success, A)
    run(A, slot=None, after_minutes=20)
    for minutes in (30, 40):
        alerts.dispatch([A], SLOT + timedelta(minutes=minutes))

    works_again = ["[Starview] job-a works again"] if is_recovery_mailed else []
    failed = "[Starview] job-a failed"
    assert subjects(mails) == [failed, *works_again, failed]
    assert "since         2026-03-01 02:21 UTC" in text_of(mails()[-1])


def test_a_failure_that_a_clock_ahead_has_mailed_covers_no_later_one(
    mails: Mails,
) -> None:
    run(A, slot=SLOT + 400 * DAY)

    run(A)
    alerts.dispatch([A], NOW)

    assert subjects(mails) == 2 * ["[Starview] job-a failed"]


def test_a_job_that_works_again_is_mailed_once(mails: Mails) -> None:
    run(A)
    success = run(A, Outcome.SUCCEEDED, attempt=2, after_minutes=10)
    alerts.dispatch([A], SLOT + timedelta(minutes=20))
    run(A, Outcome.SUCCEEDED, slot=SLOT + DAY)

    failed, recovered = mails()
    assert recovered["Subject"] == "[Starview] job-a works again"
    assert text_of(recovered).startswith(
        f"job-a works again: run {success.id} succeeded at 2026-03-01 02:11 UTC."
        " It had failed since 2026-03-01 02:01 UTC.\n"
    )
    assert states() == {"job-a": (SLOT, None)}


def test_a_recovery_is_told_at_once_although_a_mail_has_just_gone_out(
    mails: Mails,
) -> None:
    run(A)
    run(A, Outcome.SUCCEEDED, slot=None, after_minutes=2)

    assert subjects(mails)[1:] == ["[Starview] job-a works again"]


@pytest.mark.parametrize("outcome", [Outcome.INTERRUPTED, Outcome.SKIPPED])
def test_a_failing_job_has_not_recovered_by_being_paused_or_interrupted(
    outcome: Outcome, mails: Mails
) -> None:
    run(A)
    run(A, outcome, slot=SLOT + DAY, exit_code=0)
    alerts.dispatch([A], NOW + DAY)

    assert subjects(mails) == ["[Starview] job-a failed"]
    assert states()["job-a"][1] is not None


def test_a_run_that_succeeds_as_usual_costs_one_query_and_no_mail(
    mails: Mails, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    success = record(A, Outcome.SUCCEEDED)

    with django_assert_num_queries(1):
        end(success, A)

    assert mails() == []


def test_a_run_that_lasted_beyond_its_next_slots_is_mailed(mails: Mails) -> None:
    often = line("job-often", times="*/10 * * * *")

    run(often, finished_at=SLOT + timedelta(hours=3))

    assert subjects(mails) == ["[Starview] job-often failed"]
    assert "next          its time is" not in text_of(mails()[0])
    assert "next          its next time is 2026-03-01 05:10" in text_of(mails()[0])


def test_after_the_fourth_failure_the_mail_says_that_it_is_left_to_people(
    mails: Mails,
) -> None:
    for attempt in (1, 2, 3, 4):
        record(A, attempt=attempt, after_minutes=attempt)

    alerts.dispatch([A], NOW)

    assert (
        "next          it is left to you: 4 attempts failed; its next time is"
        " 2026-03-02 02:00 UTC\n"
    ) in text_of(mails()[0])
    assert "since         2026-03-01 02:02 UTC\n" in text_of(mails()[0])


# -- what only `dispatch` sees -------------------------------------------------------


def test_a_job_that_was_not_run_is_overdue_after_an_hour_and_mailed_once(
    mails: Mails,
) -> None:
    make_known(A, since=SLOT - DAY)
    hour = SLOT + timedelta(hours=1)
    alerts.dispatch([A], hour - timedelta(minutes=1))
    assert mails() == []

    alerts.dispatch([A], hour)
    alerts.dispatch([A], hour + timedelta(minutes=10))
    run(A, Outcome.SUCCEEDED, after_minutes=90, trigger=Trigger.CATCH_UP)

    assert subjects(mails) == [
        "[Starview] job-a is overdue",
        "[Starview] job-a works again",
    ]
    assert "outcome       not run since 2026-03-01 02:00 UTC\n" in text_of(mails()[0])
    assert "    python manage.py jobs run job-a\n" in text_of(mails()[0])
    assert "next          catch-up runs it at about " in text_of(mails()[0])


def test_a_failing_job_that_is_then_not_run_has_failed_since_its_first_failure(
    mails: Mails,
) -> None:
    run(A)
    alerts.dispatch([A], SLOT + DAY + timedelta(hours=1))

    assert subjects(mails)[1:] == ["[Starview] job-a is overdue"]
    mark = SLOT + DAY - timedelta(seconds=1)  # before the slot: it may still fail
    assert states() == {"job-a": (mark, SLOT + timedelta(minutes=1))}


def test_a_slot_that_was_overdue_and_then_fails_is_mailed_as_that_too(
    mails: Mails,
) -> None:
    run(A)
    for minutes in (60, 70, 80):
        alerts.dispatch([A], SLOT + DAY + timedelta(minutes=minutes))
    record(A, Outcome.FAILED, slot=SLOT + DAY)

    for minutes in (180, 190):
        alerts.dispatch([A], SLOT + DAY + timedelta(minutes=minutes))

    assert subjects(mails)[1:] == [
        "[Starview] job-a is overdue",
        "[Starview] job-a failed",
    ]


def test_a_run_that_does_not_end_is_mailed_once_an_hour_after_its_deadline(
    mails: Mails,
) -> None:
    record(A, Outcome.RUNNING, seen_at=timezone.now())

    for minutes in (120, 121, 131):
        alerts.dispatch([A], SLOT + timedelta(minutes=minutes))

    assert subjects(mails) == ["[Starview] job-a is overdue"]
    assert (
        "outcome       running since 2026-03-01 02:00 UTC, after 2 h 1 min\n"
    ) in text_of(mails()[0])


def test_a_run_whose_process_is_gone_is_mailed_by_catch_up(mails: Mails) -> None:
    record(A, Outcome.RUNNING, output="half of it\n")

    mark_crashed(NOW)
    alerts.dispatch([A], NOW)

    (mail,) = mails()
    assert mail["Subject"] == "[Starview] job-a crashed"
    assert "error         its process is gone" in text_of(mail)
    assert "    | half of it\n" in text_of(mail)


# -- storms --------------------------------------------------------------------------


def test_three_jobs_that_fail_at_the_same_moment_are_two_mails(mails: Mails) -> None:
    for job in (A, B, C):
        run(job)
    alerts.dispatch([A, B, C], NOW)
    alerts.dispatch([A, B, C], NOW + timedelta(minutes=10))

    first, second = mails()
    assert first["Subject"] == "[Starview] job-a failed"
    assert second["Subject"] == "[Starview] 2 jobs need attention"
    assert (
        "2 jobs need attention:\n"
        "    job-b failed, slot 2026-03-01 02:00 UTC: it broke\n"
        "    job-c failed, slot 2026-03-01 02:00 UTC: it broke\n"
    ) in text_of(second)


def test_three_jobs_that_dispatch_finds_failed_are_one_mail(mails: Mails) -> None:
    for job in (A, B, C):
        record(job)

    alerts.dispatch([A, B, C], NOW)

    assert subjects(mails) == ["[Starview] 3 jobs need attention"]


def test_a_mail_that_went_out_a_moment_ago_counts_as_well(
    mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def just_after_another_run(name: str) -> Iterator[bool]:
        monkeypatch.setattr(alerts, "lock_if_free", lock_if_free)
        run(A)
        with lock_if_free(name) as is_ours:
            yield is_ours

    monkeypatch.setattr(alerts, "lock_if_free", just_after_another_run)
    run(B)

    assert subjects(mails) == ["[Starview] job-a failed"]


def test_jobs_that_recover_together_are_two_mails(mails: Mails) -> None:
    for job in (A, B, C):
        record(job)
    alerts.dispatch([A, B, C], NOW)

    for job in (A, B, C):
        run(job, Outcome.SUCCEEDED, attempt=2, after_minutes=20)
    alerts.dispatch([A, B, C], NOW + timedelta(minutes=20))

    assert subjects(mails)[1:] == [
        "[Starview] job-a works again",
        "[Starview] 2 jobs work again",
    ]


def test_between_the_runs_of_a_catch_up_mails_are_collected(mails: Mails) -> None:
    run(A)
    record(B)

    alerts.dispatch([A, B], SLOT + timedelta(minutes=5), at_once=False)
    assert len(mails()) == 1

    alerts.dispatch([A, B], SLOT + timedelta(minutes=6), at_once=False)
    assert subjects(mails)[1:] == ["[Starview] job-b failed"]


def test_failures_and_recoveries_go_into_one_mail(mails: Mails) -> None:
    run(A)
    record(A, Outcome.SUCCEEDED, attempt=2, after_minutes=5)
    record(B)

    alerts.dispatch([A, B], NOW)

    assert subjects(mails)[1:] == ["[Starview] job-b failed, job-a works again"]


def test_two_hundred_failing_jobs_are_one_mail_that_lists_them_all(
    mails: Mails,
) -> None:
    jobs = [line(f"job-{number}") for number in range(200)]
    for job in jobs:
        record(job, output="x" * 20_000)

    alerts.dispatch(jobs, NOW)

    (mail,) = mails()
    assert mail["Subject"] == "[Starview] 200 jobs need attention"
    assert text_of(mail).count(" failed, slot ") == 200
    assert text_of(mail).count("What to do:") == words.DETAILED_JOBS
    assert len(text_of(mail)) < 100_000


def test_two_that_dispatch_at_once_send_one_mail(
    mails: Mails, settings: Settings
) -> None:
    record(A)

    def dispatch_in_thread() -> None:
        try:
            alerts.dispatch([A], NOW)
        finally:
            connection.close()

    with slow_ses() as ses:
        settings.AWS_SES_REGION_ENDPOINT_URL = ses.url
        with in_thread(dispatch_in_thread):
            assert ses.is_asked.wait(DEADLINE_SECONDS)

            alerts.dispatch([A], NOW)
            run(A, attempt=2)

            ses.go_on.set()
    alerts.dispatch([A], NOW)

    assert ses.requests == 1
    assert states()["job-a"][0] == SLOT


def test_the_lock_is_free_again_after_a_mail(mails: Mails) -> None:
    record(A)

    alerts.dispatch([A], NOW)

    with session() as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))",
            ["starview-maintenance:alerts"],
        )
        assert cursor.fetchone() == (True,)


# -- mail that cannot be sent --------------------------------------------------------


def test_a_mail_that_ses_refuses_is_said_and_sent_later(
    mails: Mails, said: Said, settings: Settings
) -> None:
    settings.DEFAULT_FROM_EMAIL = "nobody@unverified.example"
    run(A)
    assert [event["subject"] for event in said()] == ["[Starview] job-a failed"]
    assert "MessageRejected" in said()[0]["reason"]
    assert states() == {}

    settings.DEFAULT_FROM_EMAIL = SENDER
    alerts.dispatch([A], NOW)

    assert subjects(mails) == ["[Starview] job-a failed"]


def test_a_recovery_that_could_not_be_sent_is_sent_later(
    mails: Mails, said: Said, settings: Settings
) -> None:
    run(A)
    endpoint = settings.AWS_SES_REGION_ENDPOINT_URL
    settings.AWS_SES_REGION_ENDPOINT_URL = CLOSED
    run(A, Outcome.SUCCEEDED, attempt=2, after_minutes=10)
    assert "Could not connect" in said()[0]["reason"]

    settings.AWS_SES_REGION_ENDPOINT_URL = endpoint
    alerts.dispatch([A], NOW)

    assert subjects(mails)[1:] == ["[Starview] job-a works again"]


def test_an_ses_that_never_answers_is_given_up_in_time(
    mails: Mails,
    said: Said,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ses_module, "SEND_SECONDS", 0.2)
    started = time.monotonic()

    with slow_ses() as ses:
        settings.AWS_SES_REGION_ENDPOINT_URL = ses.url
        run(A)

    assert time.monotonic() - started < 10
    assert ses.requests == 1
    assert "Read timeout" in said()[0]["reason"]


def test_a_crash_after_the_mail_leads_to_a_second_one_rather_than_to_none(
    mails: Mails, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    def crash(channel: str, news: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(alerts, "_remember", crash)
        run(A)
    alerts.dispatch([A], NOW)

    assert subjects(mails) == ["[Starview] job-a failed"] * 2
    assert [event["reason"] for event in said()] == ["MemoryError"]


def test_without_an_address_it_is_said_once_and_mailed_when_there_is_one(
    mails: Mails, said: Said, settings: Settings
) -> None:
    settings.ADMIN_EMAIL = []
    run(A)
    for minutes in (10, 20):
        alerts.dispatch([A], SLOT + timedelta(minutes=minutes))
    assert [event["reason"] for event in said()] == ["ADMIN_EMAIL is not set"]
    assert "job-a failed" in said()[0]["subject"]
    run(A, slot=SLOT + DAY)
    assert len(said()) == 2

    settings.ADMIN_EMAIL = [ADMIN, "second@example.com", ADMIN]
    alerts.dispatch([A], NOW + DAY)

    (mail,) = mails()
    assert mail["To"] == f"{ADMIN}, second@example.com"


def test_while_variables_of_mail_are_missing_it_says_which(
    mails: Mails, said: Said, settings: Settings
) -> None:
    environment = Environment({})
    environment.text("AWS_SES_ACCESS_KEY_ID", needed_by="the e-mail report", required=1)  # type: ignore[arg-type]
    environment.text("ALLOWED_HOSTS", required=True)
    settings.ENVIRONMENT = environment

    run(A)

    assert [event["reason"] for event in said()] == [
        "AWS_SES_ACCESS_KEY_ID is required but not set"
    ]
    assert mails() == []


def test_an_alert_never_raises_without_a_database(
    mails: Mails, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_that_failed = record(A)
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connection.settings_dict, "PORT", "9")

    end(run_that_failed, A)
    alerts.dispatch([A], NOW)

    assert ["Connection refused" in event["reason"] for event in said()] == [True] * 2


# -- the database is down ------------------------------------------------------------

DOWN = "database: connection refused HINT: is the database running?"


def test_an_outage_of_the_database_is_one_mail_and_one_when_it_is_over(
    mails: Mails, tmp_path: Path
) -> None:
    for job in ("job-a", "job-b", "job-c"):
        alerts.database_is_down(job, DOWN, now=SLOT)
    (mail,) = mails()
    assert mail["Subject"] == "[Starview] the database does not answer"
    assert "error         database: connection refused\n" in text_of(mail)
    assert "    is the database running?\n" in text_of(mail)
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    record(A, Outcome.RUNNING)
    record(B)
    mark_crashed(NOW)
    alerts.dispatch([A, B], NOW)
    alerts.dispatch([A, B], NOW)

    (over,) = mails()[1:]
    assert over["Subject"] == (
        "[Starview] the database works again, 2 jobs need attention"
    )
    assert text_of(over).startswith("The database works again. That it did not answer")
    assert "job-a crashed" in text_of(over)

    alerts.database_is_down("job-a", DOWN, now=SLOT + DAY)
    assert len(mails()) == 3


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.INTERRUPTED])
def test_the_first_run_that_ends_with_a_database_tells_that_it_is_back(
    outcome: Outcome, mails: Mails
) -> None:
    alerts.database_is_down("job-a", DOWN, now=SLOT)

    run(A, outcome)
    run(A, outcome, slot=SLOT + DAY)

    assert subjects(mails)[1:] == ["[Starview] the database works again"]


def test_jobs_that_find_the_database_down_at_once_send_one_mail(
    mails: Mails, settings: Settings
) -> None:
    def report() -> None:
        alerts.database_is_down("job-a", DOWN, now=SLOT)

    with slow_ses() as ses:
        settings.AWS_SES_REGION_ENDPOINT_URL = ses.url
        with in_thread(report):
            assert ses.is_asked.wait(DEADLINE_SECONDS)

            alerts.database_is_down("job-b", DOWN, now=SLOT)

            ses.go_on.set()
    alerts.database_is_down("job-c", DOWN, now=SLOT)

    assert ses.requests == 1


def test_a_mail_about_the_database_that_was_not_sent_is_tried_by_the_next_job(
    mails: Mails, said: Said, settings: Settings
) -> None:
    settings.DEFAULT_FROM_EMAIL = "nobody@unverified.example"
    alerts.database_is_down("job-a", DOWN, now=SLOT)
    assert len(said()) == 1

    settings.DEFAULT_FROM_EMAIL = SENDER
    alerts.database_is_down("job-b", DOWN, now=SLOT)

    assert subjects(mails) == ["[Starview] the database does not answer"]


@pytest.mark.parametrize(
    ("is_new", "ticked_before", "subject"),
    [
        (True, timedelta(minutes=30), ["[Starview] the database works again"]),
        (True, timedelta(minutes=20), []),  # a deploy
        (False, timedelta(minutes=30), []),  # this container mailed no outage
    ],
)
def test_an_outage_that_a_container_mailed_that_is_gone_is_mailed_as_over(
    is_new: bool, ticked_before: timedelta, subject: list[str], mails: Mails
) -> None:
    now = timezone.now() + timedelta(days=1)  # the server was started before
    remember([A], now - ticked_before)
    if not is_new:
        alerts.recall_outage(now - ticked_before)

    for _ in range(2):
        alerts.recall_outage(now)
        alerts.dispatch([A], now)

    assert subjects(mails) == subject


def test_where_nothing_was_due_while_the_server_was_away_nobody_announced_it(
    mails: Mails,
) -> None:
    started_at = last_tick()[1]
    due = next(line for line in scheduled_jobs() if "catch_up" in line.command)
    ticked_at = due.next_after(started_at - timedelta(minutes=10))  # the last before it
    remember([A], ticked_at)

    alerts.recall_outage(started_at + timedelta(minutes=1))
    alerts.dispatch([A], started_at + timedelta(minutes=1))

    assert mails() == []


def test_a_server_that_was_started_since_the_last_tick_may_have_been_away(
    mails: Mails,
) -> None:
    started_at = last_tick()[1]
    remember([A], started_at - timedelta(minutes=15))  # a tick was due meanwhile

    alerts.recall_outage(started_at + timedelta(minutes=1))
    alerts.dispatch([A], started_at + timedelta(minutes=1))

    (mail,) = mails()
    assert mail["Subject"] == "[Starview] the database works again"
    assert "if it was announced that the database does not answer, that is over" in (
        " ".join(text_of(mail).split())
    )


def test_the_memory_of_an_outage_belongs_to_one_database(
    mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts.database_is_down("job-a", DOWN, now=SLOT)
    here = connection.settings_dict["NAME"]
    monkeypatch.setitem(connection.settings_dict, "NAME", "another")
    alerts.database_is_down("job-b", DOWN, now=SLOT)
    monkeypatch.setitem(connection.settings_dict, "NAME", here)

    for _ in range(2):
        alerts.dispatch([A], NOW)

    assert subjects(mails) == [
        *["[Starview] the database does not answer"] * 2,
        "[Starview] the database works again",
    ]


def test_where_no_file_can_be_kept_every_job_mails(
    mails: Mails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_folder = tmp_path / "file"
    no_folder.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(no_folder))

    for job in ("job-a", "job-b"):
        alerts.database_is_down(job, DOWN, now=SLOT)
    alerts.dispatch([A], NOW)

    assert subjects(mails) == ["[Starview] the database does not answer"] * 2


def test_a_folder_that_others_may_write_to_is_not_used(
    mails: Mails, tmp_path: Path
) -> None:
    alerts.database_is_down("job-a", DOWN, now=SLOT)
    (folder,) = tmp_path.iterdir()
    folder.chmod(0o777)

    alerts.database_is_down("job-b", DOWN, now=SLOT)

    assert len(mails()) == 2


def test_without_an_address_an_outage_is_said_once(
    mails: Mails, said: Said, settings: Settings
) -> None:
    settings.ADMIN_EMAIL = []

    for job in ("job-a", "job-b"):
        alerts.database_is_down(job, DOWN, now=SLOT)

    assert [event["reason"] for event in said()] == ["ADMIN_EMAIL is not set"]


# -- hostile text --------------------------------------------------------------------


def test_secrets_are_taken_out_of_every_part_of_a_mail(mails: Mails) -> None:
    secret = "demo-ses-secret"
    run(
        line(secret),
        output=f"key {secret}\n",
        error=f"it broke with {secret} HINT: not {secret}.",
        command=f"clearsessions --key={secret}",
    )
    alerts.database_is_down(secret, f"database: {secret}", now=SLOT)

    for mail in mails():
        assert secret not in mail.as_string()
        for kind in ("plain", "html"):
            assert secret[:8] not in body_of(mail, kind)
            assert secret[-8:] not in body_of(mail, kind)
    assert mails()[0]["Subject"] == "[Starview] *** failed"
    assert "***" in text_of(mails()[0]).partition("The end of its output:\n")[2]


def test_output_of_a_hostile_job_forges_neither_headers_nor_text(
    mails: Mails,
) -> None:
    run(
        A,
        output="\r\n\r\nBcc: evil@example.com\r\n.\r\n\x1b[2J\x07\u202eabc\r\n"
        "10%\r20%\r100%\n",
        error="broken\r\nBcc: evil@example.com\u2028HINT: none",
    )
    alerts.database_is_down("a\r\nBcc: evil@example.com", "b\nCc: x@y.zz", now=SLOT)

    failed, down = mails()
    for mail in (failed, down):
        assert mail["Bcc"] is mail["Cc"] is None
        assert mail["To"] == ADMIN
        assert all(
            character.isprintable() or character == "\n" for character in text_of(mail)
        )
    assert "    error         broken\\u000d\\u000aBcc: evil@example.com" in text_of(
        failed
    )
    assert (
        text_of(failed)
        .partition("The end of its output:\n")[2]
        .startswith(
            "    | \n    | \n    | Bcc: evil@example.com\n    | .\n"
            "    | \\u001b[2J\\u0007\\u202eabc\n    | 100%\n"
        )
    )


def test_of_a_megabyte_of_output_the_last_forty_lines_are_mailed(
    mails: Mails,
) -> None:
    run(A, output="".join(f"line {number}\n" for number in range(100_000)))

    output = text_of(mails()[0]).partition("The end of its output:\n")[2]
    assert output.splitlines()[0] == "    | line 99960"
    assert "    | line 99999\n" in output


def test_of_one_endless_line_the_last_four_thousand_characters_are_mailed(
    mails: Mails,
) -> None:
    run(A, output="x" * 1_000_000)

    output = text_of(mails()[0]).partition("The end of its output:\n")[2]
    assert output.startswith("    | " + "x" * 4000 + "\n")


# -- processes -----------------------------------------------------------------------


def test_a_scheduled_command_that_fails_mails_once_and_once_when_it_works_again(
    mails: Mails, manage: Manage, tmp_path: Path, test_environment: dict[str, str]
) -> None:
    env: dict[str, str | None] = {"JOB": WEEKLY, "TMPDIR": str(tmp_path)}
    failed = manage(COMMAND, "--email-report", "", env=env)
    (row,) = JobRun.objects.all()
    assert row.slot
    again = {
        **env,
        "STARVIEW_JOB_TRIGGER": "catch-up",
        "STARVIEW_JOB_SLOT": row.slot.isoformat(),
    }
    retried = manage(
        COMMAND, "--email-report", "", env={**again, "STARVIEW_JOB_ATTEMPT": "2"}
    )
    worked = manage(COMMAND, env={**again, "STARVIEW_JOB_ATTEMPT": "3"})

    assert [run.returncode for run in (failed, retried, worked)] == [1, 1, 0]
    assert subjects(mails) == [
        f"[Starview] {WEEKLY} failed",
        f"[Starview] {WEEKLY} works again",
    ]
    text = text_of(mails()[0])
    assert f"    command       {COMMAND} --email-report ''\n" in text
    assert "    set ADMIN_EMAIL, which the schedule passes on\n" in text
    assert f"    python manage.py jobs show {row.id}\n" in text
    assert "    | CommandError: the clean-up is done" in text


def test_a_mail_that_a_run_could_not_send_is_sent_by_catch_up(
    mails: Mails, manage: Manage, tmp_path: Path, test_environment: dict[str, str]
) -> None:
    env: dict[str, str | None] = {"JOB": WEEKLY, "TMPDIR": str(tmp_path)}

    failed = manage(
        COMMAND, "--email-report", "", env={**env, "AWS_SES_ENDPOINT_URL": CLOSED}
    )
    assert failed.returncode == 1
    assert "alert_not_sent" in failed.stderr
    assert mails() == []

    caught_up = manage("catch_up", env={**env, "JOB": "starview-catch-up"})
    assert caught_up.returncode == 0, caught_up.stderr
    assert subjects(mails) == [f"[Starview] {WEEKLY} failed"]


def test_jobs_without_a_database_mail_once_and_once_when_it_is_back(
    mails: Mails, manage: Manage, tmp_path: Path, test_environment: dict[str, str]
) -> None:
    env: dict[str, str | None] = {"TMPDIR": str(tmp_path)}
    url = test_environment["DATABASE_URL"].partition("@")[2]
    down = {**env, "DATABASE_URL": f"postgresql://nobody-here:pass-word@{url}"}
    commands = [(WEEKLY, COMMAND), (DAILY, "cleanup_unverified_users")]

    for job, command in commands:
        assert manage(command, env={**down, "JOB": job}).returncode == 69
    assert subjects(mails) == ["[Starview] the database does not answer"]
    assert "pass-word" not in mails()[0].as_string()

    for job, command in commands:
        assert manage(command, env={**env, "JOB": job}).returncode == 0
    assert subjects(mails)[1:] == ["[Starview] the database works again"]


def test_a_run_by_hand_that_fails_mails_nobody(mails: Mails, manage: Manage) -> None:
    failed = manage(COMMAND, "--email-report", "")

    assert failed.returncode == 1
    assert mails() == []
    assert not Announcement.objects.exists()


def test_a_failure_of_the_schedule_that_cannot_be_recorded_is_mailed_all_the_same(
    mails: Mails, manage: Manage
) -> None:
    execute("ALTER TABLE maintenance_jobrun RENAME COLUMN host TO hosts")
    try:
        failed = manage(COMMAND, "--email-report", "", env={"JOB": WEEKLY})
        good = manage("cleanup_unverified_users", env={"JOB": DAILY})
    finally:
        execute("ALTER TABLE maintenance_jobrun RENAME COLUMN hosts TO host")

    (mail,) = mails()
    assert (failed.returncode, good.returncode) == (1, 0)
    assert mail["Subject"] == f"[Starview] {WEEKLY} failed, and could not be recorded"
    assert "not recorded  ProgrammingError: column" in text_of(mail)
    assert "error         the clean-up is done, but --email-report" in text_of(mail)
    assert "    | " in text_of(mail)


# -- stand-ins -----------------------------------------------------------------------

_ACCEPTED = b"""<SendRawEmailResponse xmlns="http://ses.amazonaws.com/doc/2010-12-01/">
<SendRawEmailResult><MessageId>1</MessageId></SendRawEmailResult>
<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>
</SendRawEmailResponse>"""


class SlowSes:
    """Accepts each mail when `go_on` is set."""

    def __init__(self) -> None:
        self.is_asked, self.go_on = threading.Event(), threading.Event()
        self.requests = 0
        self.url = ""


@contextmanager
def slow_ses() -> Iterator[SlowSes]:
    ses = SlowSes()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            ses.requests += 1
            ses.is_asked.set()
            if ses.go_on.wait(DEADLINE_SECONDS):
                self.send_response(200)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(_ACCEPTED)))
                self.end_headers()
                self.wfile.write(_ACCEPTED)

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    ses.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ses
    finally:
        ses.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()

"""`cleanup_email_suppressions`: what expires, what goes, what stays for ever."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email import message_from_string, policy
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from django.db import DatabaseError, connection
from django.utils import timezone

from demo.services import LocalServices
from starview_app.maintenance.database_errors import explain
from starview_app.maintenance.jobs.email_suppressions import cleanup as job
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import JobRun
from starview_app.models import EmailBounce, EmailSuppression
from tests.archive_processes import Commands
from tests.conftest import REFUSALS, Manage, Trigger, kill_run, started
from tests.factories import (
    DEADLINE_SECONDS,
    NOW,
    contents,
    days_ago,
    execute,
    make_bounce,
    make_complaint,
    make_soft_suppression,
    make_suppression,
    rows_hidden,
    session,
    wait_until,
    wait_until_blocked_by,
)

pytestmark = pytest.mark.django_db(transaction=True)

MOMENT = timedelta(microseconds=1)  # the shortest time PostgreSQL knows
COMMAND = "cleanup_email_suppressions"
ADDRESS = "user@example.com"


def clean_up(**changes: Any) -> tuple[JobResult, list[job.Event]]:
    events: list[job.Event] = []
    options = {
        "now": NOW,
        "soft_bounce_days": 30,
        "stale_days": 90,
        "report": events.append,
        "should_stop": lambda: False,
        **changes,
    }
    return job.cleanup_email_suppressions(**options), events


def result(
    *, deactivated: int = 0, deleted: int = 0, interrupted: bool = False
) -> JobResult:
    return JobResult(
        {"deactivated": deactivated, "deleted": deleted}, interrupted=interrupted
    )


def rows(model: type[EmailBounce] | type[EmailSuppression]) -> list[dict[str, Any]]:
    found: Any = model.objects.order_by("id").values()
    return list(found)


def active() -> set[str]:
    return set(
        EmailSuppression.objects.filter(is_active=True).values_list("email", flat=True)
    )


# -- soft bounces -------------------------------------------------------------------


def test_a_soft_bounce_suppression_is_deactivated_and_its_record_starts_anew() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    [bounce], [suppression] = rows(EmailBounce), rows(EmailSuppression)

    outcome, _ = clean_up()

    assert outcome == result(deactivated=1)
    assert rows(EmailSuppression) == [{**suppression, "is_active": False}]
    assert rows(EmailBounce) == [{**bounce, "bounce_count": 0, "suppressed": False}]


@pytest.mark.parametrize(
    ("last", "left"),
    [
        pytest.param(days_ago(30) - MOMENT, set(), id="just outside"),
        pytest.param(days_ago(30), {ADDRESS}, id="exactly on the limit"),
        pytest.param(days_ago(30) + MOMENT, {ADDRESS}, id="just inside"),
    ],
)
def test_a_suppression_ends_when_its_last_bounce_is_older_than_the_limit(
    last: datetime, left: set[str]
) -> None:
    bounce = make_bounce(ADDRESS, last=last, suppressed=True)
    make_suppression(ADDRESS, added=days_ago(300), bounce=bounce)

    clean_up()

    assert active() == left


@pytest.mark.parametrize(
    ("added", "left"),
    [
        pytest.param(days_ago(30) - MOMENT, set(), id="just outside"),
        pytest.param(days_ago(30), {ADDRESS}, id="exactly on the limit"),
        pytest.param(days_ago(30) + MOMENT, {ADDRESS}, id="just inside"),
    ],
)
def test_without_a_bounce_record_the_day_it_was_added_counts(
    added: datetime, left: set[str]
) -> None:
    make_suppression(ADDRESS, added=added)

    _, events = clean_up()

    listed = [] if left else [job.SoftBounce(ADDRESS, None, None, added)]
    assert active() == left
    assert events[0] == job.ExpiredFound(len(listed), listed)


def test_a_record_that_only_the_address_links_counts_and_is_reset_too() -> None:
    make_bounce(ADDRESS.upper(), last=days_ago(31), suppressed=True)
    make_suppression(ADDRESS, added=days_ago(40))
    [bounce] = rows(EmailBounce)

    outcome, _ = clean_up()

    assert outcome == result(deactivated=1)
    assert rows(EmailBounce) == [{**bounce, "bounce_count": 0, "suppressed": False}]


def test_a_newer_bounce_of_the_address_keeps_the_suppression() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    make_bounce(ADDRESS.upper(), last=days_ago(1))
    before = contents()

    clean_up()

    assert contents() == before


def test_the_newest_bounce_is_listed_first_and_those_without_a_record_last() -> None:
    make_suppression("none@example.com", added=days_ago(31))
    make_soft_suppression("old@example.com", last=days_ago(50))
    make_soft_suppression("new@example.com", last=days_ago(40))

    _, events = clean_up()

    assert events == [
        job.ExpiredFound(
            3,
            [
                job.SoftBounce("new@example.com", days_ago(40), 3, ANY),
                job.SoftBounce("old@example.com", days_ago(50), 3, ANY),
                job.SoftBounce("none@example.com", None, None, days_ago(31)),
            ],
        ),
        job.Deactivated(3),
        job.StaleFound(0),
        job.StaleDeleted(0),
    ]


def test_a_suppression_that_has_ended_already_is_left_as_it_is() -> None:
    bounce = make_bounce(ADDRESS, last=days_ago(40), suppressed=True)
    make_suppression(ADDRESS, added=days_ago(40), bounce=bounce, is_active=False)
    before = contents()

    outcome, _ = clean_up()

    assert (outcome, contents()) == (result(), before)


# -- what is never touched ----------------------------------------------------------


@pytest.mark.parametrize(
    "reason", ["hard_bounce", "complaint", "manual", "unsubscribe"]
)
@pytest.mark.parametrize("bounce_type", ["soft", "transient", "hard"])
def test_a_suppression_for_another_reason_never_ends_nor_does_its_record(
    reason: str, bounce_type: str
) -> None:
    bounce = make_bounce(ADDRESS, last=days_ago(400), bounce_type=bounce_type)
    make_suppression(ADDRESS, added=days_ago(400), reason=reason, bounce=bounce)
    before = contents()

    outcome, _ = clean_up()

    assert (outcome, contents()) == (result(), before)


def test_a_soft_suppression_stays_while_its_address_has_a_complaint() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    make_complaint(ADDRESS.upper(), at=days_ago(300))
    before = contents()

    clean_up()

    assert contents() == before


def test_a_soft_suppression_stays_while_it_is_linked_to_a_complaint() -> None:
    complaint = make_complaint("other@example.com", at=days_ago(300))
    make_suppression(ADDRESS, added=days_ago(40), complaint=complaint)
    before = contents()

    clean_up()

    assert contents() == before


def test_a_soft_suppression_stays_while_its_record_has_become_a_hard_bounce() -> None:
    bounce = make_bounce(
        ADDRESS, last=days_ago(31), bounce_type="hard", suppressed=True
    )
    make_suppression(ADDRESS, added=days_ago(40), bounce=bounce)
    before = contents()

    clean_up()

    assert contents() == before


def test_a_soft_suppression_stays_while_its_address_has_a_hard_bounce() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    make_bounce(ADDRESS.upper(), last=days_ago(400), bounce_type="hard")
    before = contents()

    clean_up()

    assert contents() == before


@pytest.mark.parametrize(
    "reason", ["hard_bounce", "complaint", "manual", "unsubscribe"]
)
def test_a_soft_suppression_stays_while_its_address_is_suppressed_otherwise(
    reason: str,
) -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    make_suppression(ADDRESS.upper(), added=days_ago(400), reason=reason)
    before = contents()

    clean_up()

    assert contents() == before


def test_the_record_of_another_suppression_is_not_reset_with_a_soft_one() -> None:
    bounce = make_bounce("other@example.com", last=days_ago(31), suppressed=True)
    make_suppression(ADDRESS, added=days_ago(40), bounce=bounce)
    make_suppression(
        "other@example.com", added=days_ago(40), reason="manual", bounce=bounce
    )
    before = rows(EmailBounce)

    clean_up()

    assert rows(EmailBounce) == before


# -- stale records ------------------------------------------------------------------


@pytest.mark.parametrize("bounce_type", ["soft", "transient"])
@pytest.mark.parametrize(
    ("last", "left"),
    [
        pytest.param(days_ago(90) - MOMENT, 0, id="just outside"),
        pytest.param(days_ago(90), 1, id="exactly on the limit"),
        pytest.param(days_ago(90) + MOMENT, 1, id="just inside"),
    ],
)
def test_a_record_is_deleted_when_its_last_bounce_is_older_than_the_limit(
    bounce_type: str, last: datetime, left: int
) -> None:
    make_bounce(ADDRESS, last=last, bounce_type=bounce_type)

    outcome, events = clean_up()

    assert outcome == result(deleted=1 - left)
    assert events[2:] == [job.StaleFound(1 - left), job.StaleDeleted(1 - left)]
    assert EmailBounce.objects.count() == left


def test_a_hard_bounce_record_is_never_deleted() -> None:
    make_bounce(ADDRESS, last=days_ago(4000), bounce_type="hard")
    before = contents()

    outcome, _ = clean_up()

    assert (outcome, contents()) == (result(), before)


@pytest.mark.parametrize("bounce_type", ["soft", "transient"])
def test_a_record_that_is_marked_as_suppressed_is_not_stale(bounce_type: str) -> None:
    make_bounce(ADDRESS, last=days_ago(4000), bounce_type=bounce_type, suppressed=True)
    before = contents()

    outcome, _ = clean_up()

    assert (outcome, contents()) == (result(), before)


def test_an_ended_suppression_stays_when_its_stale_record_goes() -> None:
    bounce = make_bounce(ADDRESS, last=days_ago(91))
    make_suppression(ADDRESS, added=days_ago(200), bounce=bounce, is_active=False)
    [suppression] = rows(EmailSuppression)

    outcome, _ = clean_up()

    assert outcome == result(deleted=1)
    assert rows(EmailSuppression) == [{**suppression, "bounce_id": None}]


def test_a_suppression_that_ends_today_takes_its_stale_record_along() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(91))

    outcome, _ = clean_up()

    assert outcome == result(deactivated=1, deleted=1)
    assert rows(EmailBounce) == []


# -- batches, stops and second runs -------------------------------------------------


@pytest.fixture
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "BATCH_ROWS", 2)


def _five_of_each() -> None:
    for number in range(5):
        make_soft_suppression(f"soft{number}@example.com", last=days_ago(31 + number))
        make_bounce(f"stale{number}@example.com", last=days_ago(91 + number))


@pytest.mark.usefixtures("batches_of_two")
def test_it_works_through_more_than_one_batch() -> None:
    _five_of_each()

    outcome, events = clean_up()

    assert outcome == result(deactivated=5, deleted=5)
    assert (active(), EmailBounce.objects.count()) == (set(), 5)
    assert events[1:] == [job.Deactivated(5), job.StaleFound(5), job.StaleDeleted(5)]


def test_more_stale_records_than_a_batch_holds_are_deleted() -> None:
    _many_stale(job.BATCH_ROWS + 1)

    outcome, _ = clean_up()

    assert outcome == result(deleted=job.BATCH_ROWS + 1)
    assert rows(EmailBounce) == []


@pytest.mark.usefixtures("batches_of_two")
def test_a_stop_request_ends_the_run_between_two_batches() -> None:
    _five_of_each()

    outcome, events = clean_up(should_stop=iter([False, True]).__next__)

    assert outcome == result(deactivated=2, interrupted=True)
    assert len(active()) == 3
    assert events[1:] == [job.Deactivated(2)]


def test_a_stop_request_between_the_parts_keeps_the_first() -> None:
    _five_of_each()

    outcome, _ = clean_up(should_stop=iter([False, True]).__next__)

    assert outcome == result(deactivated=5, interrupted=True)
    assert (active(), EmailBounce.objects.count()) == (set(), 10)


@pytest.mark.usefixtures("batches_of_two")
def test_after_a_stop_the_next_run_does_the_rest() -> None:
    _five_of_each()
    clean_up(should_stop=iter([False, True]).__next__)

    outcome, _ = clean_up()

    assert outcome == result(deactivated=3, deleted=5)


@pytest.mark.parametrize(("how", "why"), REFUSALS)
def test_a_suppression_that_the_database_keeps_does_not_stop_the_rest(
    how: str, why: str, trigger: Trigger
) -> None:
    _five_of_each()
    kept = EmailSuppression.objects.filter(is_active=True).order_by("id")[2]
    trigger("UPDATE ON starview_email_suppression", kept.pk, how)

    outcome, _ = clean_up()

    assert outcome.counts == {"deactivated": 4, "deleted": 5}
    assert outcome.problems == [f"suppression {kept.pk} was not deactivated: {why}"]
    assert active() == {kept.email}


@pytest.mark.parametrize(("how", "why"), REFUSALS)
def test_a_stale_record_that_the_database_keeps_does_not_stop_the_rest(
    how: str, why: str, trigger: Trigger
) -> None:
    _five_of_each()
    kept = make_bounce(ADDRESS, last=days_ago(91))
    ended = make_suppression(ADDRESS, added=NOW, is_active=False, bounce=kept)
    trigger("DELETE ON starview_email_bounce", kept.pk, how)

    outcome, _ = clean_up()

    assert outcome.counts == {"deactivated": 5, "deleted": 5}
    assert outcome.problems == [f"bounce {kept.pk} was not deleted: {why}"]
    ended.refresh_from_db()
    assert ended.bounce == kept


def test_a_second_run_changes_nothing() -> None:
    _five_of_each()
    clean_up()
    before = contents()

    outcome, _ = clean_up()

    assert (outcome, contents()) == (result(), before)


def test_with_nothing_to_do_it_says_so_and_changes_nothing() -> None:
    before = contents()

    outcome, events = clean_up()

    assert (outcome, contents()) == (result(), before)
    assert events == [
        job.ExpiredFound(0, []),
        job.Deactivated(0),
        job.StaleFound(0),
        job.StaleDeleted(0),
    ]


def test_a_dry_run_reports_the_real_figures_and_changes_nothing() -> None:
    _five_of_each()
    make_soft_suppression("both@example.com", last=days_ago(91))
    before = contents()

    dry, events = clean_up(dry_run=True)

    would = {"would_deactivate": 6, "would_delete": 6}
    assert (dry.counts, contents()) == (result().counts | would, before)
    assert events == clean_up()[1]


def test_a_dry_run_waits_for_nobody_and_needs_no_right_to_write() -> None:
    _five_of_each()

    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        try:
            outcome, _ = clean_up(dry_run=True)
        finally:
            cursor.execute("RESET default_transaction_read_only")

    assert outcome.counts["would_deactivate"] == 5


def test_rows_that_a_policy_hides_are_not_taken_for_absent() -> None:
    make_complaint("both@example.com", at=days_ago(100))
    make_soft_suppression("both@example.com", last=days_ago(31))

    with (
        rows_hidden("starview_email_complaint"),
        pytest.raises(DatabaseError, match="row-level security") as failure,
    ):
        clean_up()

    assert "a user with BYPASSRLS" in (explain(failure.value) or "")
    assert active() == {"both@example.com"}


# -- the command --------------------------------------------------------------------


def _days_ago(days: float) -> datetime:
    return days_ago(days, now=timezone.now())


def _as_in_the_guide() -> None:
    for email, days, count in (
        ("user1@example.com", 35, 2),
        ("user2@example.com", 40, 1),
    ):
        bounce = make_bounce(
            email, last=_days_ago(days), bounce_count=count, suppressed=True
        )
        make_suppression(email, added=_days_ago(days), bounce=bounce)
    make_suppression("user3@example.com", added=_days_ago(50))
    for number in range(5):
        make_bounce(f"stale{number}@example.com", last=_days_ago(100))


def _without_dates(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<time>", text)
    return re.sub(r"\d{4}-\d\d-\d\d", "<date>", text)


def test_without_an_address_the_clean_up_is_done_and_the_run_fails(
    commands: Commands,
) -> None:
    _as_in_the_guide()

    run = commands.run(COMMAND, "--email-report", "", supervised=True)

    assert run.code == 1
    assert "Deactivated 3 soft bounce suppressions" in run.out
    assert run.err.splitlines()[-1] == (
        "CommandError: the clean-up is done, but --email-report names no address"
        " HINT: set ADMIN_EMAIL, which the schedule passes on"
    )


def test_the_command_prints_what_the_guide_shows(
    manage: Manage, services: LocalServices
) -> None:
    _as_in_the_guide()
    mails = len(services.sent_mail())

    run = manage(COMMAND, "--email-report", "your-admin@example.com")

    assert (run.returncode, _without_dates(run.stdout)) == (
        0,
        """\
SOFT BOUNCE CLEANUP
================================================================================
Found 3 soft bounce suppressions older than 30 days
  - user1@example.com: Last bounce <date> (2x)
  - user2@example.com: Last bounce <date> (1x)
  - user3@example.com: No bounce on record, suppressed <date>

Deactivated 3 soft bounce suppressions

STALE BOUNCE CLEANUP
================================================================================
Found 5 stale bounce records (inactive for 90+ days)
Deleted 5 stale bounce records

Email report sent to your-admin@example.com
""",
    )
    assert len(services.sent_mail()) == mails + 1


def test_the_mail_has_the_page_about_all_jobs_attached(
    manage: Manage, services: LocalServices
) -> None:
    manage(COMMAND, "--email-report", "your-admin@example.com")

    mail = message_from_string(services.sent_mail()[-1], policy=policy.default)
    (page,) = mail.iter_attachments()
    assert page.get_filename() == "report.html"
    assert "5 jobs, none failing, none overdue." in page.get_content()


def test_the_mail_goes_without_the_page_where_that_cannot_be_made(
    manage: Manage, services: LocalServices
) -> None:
    execute("ALTER TABLE maintenance_auditarchive RENAME COLUMN row_count TO other")
    try:
        run = manage(COMMAND, "--email-report", "your-admin@example.com")
    finally:
        execute("ALTER TABLE maintenance_auditarchive RENAME COLUMN other TO row_count")

    mail = message_from_string(services.sent_mail()[-1], policy=policy.default)
    assert run.returncode == 0
    assert "report_not_attached" in run.stderr
    assert list(mail.iter_attachments()) == []


def test_a_dry_run_of_the_command_sends_and_changes_nothing(
    commands: Commands, services: LocalServices
) -> None:
    _as_in_the_guide()
    before, mails = contents(), services.sent_mail()

    run = commands.run(
        COMMAND,
        "--email-report",
        "your-admin@example.com",
        "--dry-run",
        supervised=True,
    )

    assert (run.code, _without_dates(run.out)) == (
        0,
        """\
SOFT BOUNCE CLEANUP
================================================================================
Found 3 soft bounce suppressions older than 30 days
  - user1@example.com: Last bounce <date> (2x)
  - user2@example.com: Last bounce <date> (1x)
  - user3@example.com: No bounce on record, suppressed <date>

Dry run: would have deactivated 3 soft bounce suppressions

STALE BOUNCE CLEANUP
================================================================================
Found 5 stale bounce records (inactive for 90+ days)
Dry run: would have deleted 5 stale bounce records

Dry run: the email report would go to your-admin@example.com
""",
    )
    assert (contents(), services.sent_mail()) == (before, mails)


def test_the_limits_can_be_chosen(commands: Commands) -> None:
    make_soft_suppression("expired@example.com", last=_days_ago(11))
    make_soft_suppression("recent@example.com", last=_days_ago(9))
    make_bounce("stale@example.com", last=_days_ago(21))
    make_bounce("fresh@example.com", last=_days_ago(19))

    commands.run(COMMAND, "--soft-bounce-days=10", "--stale-days=20", supervised=True)

    left = set(EmailBounce.objects.values_list("email", flat=True))
    assert active() == {"recent@example.com"}
    assert left == {"expired@example.com", "recent@example.com", "fresh@example.com"}


def test_a_hostile_address_cannot_forge_a_line_of_the_report(
    commands: Commands,
) -> None:
    hostile = "a\nDeactivated 9 soft bounce suppressions\r\x1b[2K\u2028\u202e@x.org"
    make_soft_suppression(hostile, last=_days_ago(31))

    run = commands.run(COMMAND, supervised=True)

    assert _without_dates(run.out).splitlines()[2:6] == [
        "Found 1 soft bounce suppressions older than 30 days",
        r"  - a\u000aDeactivated 9 soft bounce suppressions\u000d\u001b[2K\u2028\u202e"
        "@x.org: Last bounce <date> (3x)",
        "",
        "Deactivated 1 soft bounce suppressions",
    ]


def test_a_list_has_as_many_lines_as_were_found(commands: Commands) -> None:
    make_soft_suppression("bounced@example.com", last=_days_ago(31))
    make_suppression("added@example.com", added=_days_ago(32))

    run = commands.run(COMMAND, supervised=True)

    assert _without_dates(run.out).splitlines()[2:5] == [
        "Found 2 soft bounce suppressions older than 30 days",
        "  - bounced@example.com: Last bounce <date> (3x)",
        "  - added@example.com: No bounce on record, suppressed <date>",
    ]


def test_the_report_alone_is_printed_and_nothing_is_changed_mailed_or_recorded(
    manage: Manage, services: LocalServices
) -> None:
    _as_in_the_guide()
    before, mails = contents(), len(services.sent_mail())

    run = manage(
        COMMAND, "--report", env={"JOB": "starview-cleanup-email-suppressions"}
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("STARVIEW E-MAIL HEALTH\n")
    assert "THIS CLEAN-UP" not in run.stdout
    assert contents() == before
    assert not JobRun.objects.exists()
    assert len(services.sent_mail()) == mails


@pytest.mark.parametrize(
    "options",
    [
        ["--report", "--email-report=a@example.com"],
        ["--soft-bounce-days=0"],
        ["--soft-bounce-days=\u0663"],
        ["--stale-days=-1"],
        ["--stale-days=x"],
        ["--email-report", "not an address"],
        ["--email-report", "a@example.com\nBcc: b@example.com"],
    ],
    ids=lambda options: " ".join(options)[:24],
)
def test_wrong_options_end_with_2_and_one_line(
    options: list[str], commands: Commands
) -> None:
    make_soft_suppression(ADDRESS, last=_days_ago(31))
    before = contents()

    run = commands.run(COMMAND, *options, supervised=True)

    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert contents() == before


# -- signals ------------------------------------------------------------------------


def _many_suppressions(count: int, *, last: datetime, prefix: str) -> None:
    EmailSuppression.objects.bulk_create(
        EmailSuppression(
            email=f"{prefix}{number}@example.com",
            reason="soft_bounce",
            added_date=last,
            bounce=bounce,
        )
        for number, bounce in enumerate(
            EmailBounce.objects.bulk_create(
                EmailBounce(
                    email=f"{prefix}{number}@example.com",
                    bounce_type="soft",
                    bounce_count=3,
                    first_bounce_date=last,
                    last_bounce_date=last,
                    sns_message_id=f"{prefix}{number}",
                    suppressed=True,
                )
                for number in range(count)
            )
        )
    )


def _many_stale(count: int) -> None:
    _many_suppressions(count, last=days_ago(91), prefix="stale")
    EmailSuppression.objects.all().delete()
    EmailBounce.objects.update(suppressed=False)


def _counts() -> dict[str, int]:
    return {
        group: EmailSuppression.objects.filter(
            email__startswith=group, is_active=True, bounce__suppressed=True
        ).count()
        for group in ("first", "second", "third")
    }


def _three_batches() -> None:
    _many_suppressions(job.BATCH_ROWS, last=_days_ago(31), prefix="first")
    _many_suppressions(job.BATCH_ROWS, last=_days_ago(41), prefix="second")
    _many_suppressions(5, last=_days_ago(51), prefix="third")


@contextmanager
def _held_in_the_second_batch() -> Iterator[Any]:
    with session() as holder:
        holder.cursor().execute(
            "SELECT id FROM starview_email_suppression"
            " WHERE email = 'second7@example.com' FOR UPDATE"
        )
        yield holder


def _no_run_is_connected() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s",
            [f"{COMMAND} %"],
        )
        return bool(cursor.fetchone() == (0,))


def test_a_run_that_is_killed_leaves_whole_batches_and_the_next_run_finishes(
    test_environment: dict[str, str], commands: Commands, tmp_path: Path
) -> None:
    _three_batches()
    with (
        _held_in_the_second_batch() as holder,
        started(COMMAND, test_environment, tmp_path) as process,
    ):
        wait_until_blocked_by(holder)
        kill_run(process)
        process.wait(DEADLINE_SECONDS)
    wait_until(_no_run_is_connected, "the server noticed that the run is gone")
    after_the_kill = _counts()

    run = commands.run(COMMAND, supervised=True)

    assert after_the_kill == {"first": 0, "second": 1000, "third": 5}
    assert (run.code, _counts()) == (0, {"first": 0, "second": 0, "third": 0})
    assert active() == set()


def test_a_signal_ends_the_run_after_its_batch_and_keeps_what_is_done(
    test_environment: dict[str, str], tmp_path: Path
) -> None:
    _three_batches()
    with (
        _held_in_the_second_batch() as holder,
        started(COMMAND, test_environment, tmp_path) as process,
    ):
        wait_until_blocked_by(holder)
        process.send_signal(signal.SIGTERM)
        holder.rollback()
        process.wait(DEADLINE_SECONDS)

    assert process.returncode == 1
    assert _counts() == {"first": 0, "second": 0, "third": 5}
    assert (tmp_path / "stdout").read_text().splitlines()[-3:] == [
        "",
        "Deactivated 2000 soft bounce suppressions",
        "",
    ]
    assert (tmp_path / "stderr").read_text().splitlines()[-1] == (
        f"CommandError: {COMMAND} was stopped by SIGTERM before it was done;"
        " what was finished is kept, the next run does the rest"
    )

"""What happens when the web service writes while a clean-up deletes.

Whichever commits first wins, and nothing is lost or left dangling. The other side is a
real second session; both are brought to a known point by locks, never by waiting.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from django.contrib.auth.models import User
from django.db import connection

from starview_app.maintenance.jobs.email_suppressions import cleanup as email_job
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.jobs.unverified_users import cleanup as user_job
from starview_app.models import EmailBounce, EmailSuppression
from tests.factories import (
    NOW,
    contents,
    days_ago,
    execute,
    in_thread,
    make_account,
    make_complaint,
    make_location,
    make_member,
    make_soft_suppression,
    session,
    usernames,
    wait_until,
    wait_until_blocked_by,
)

pytestmark = pytest.mark.django_db(transaction=True)

ADDRESS = "user@example.com"


def delete_users(
    report: Callable[[user_job.Event], None] = lambda event: None,
) -> JobResult:
    return user_job.cleanup_unverified_users(
        now=NOW, days=7, link_days=3, report=report, should_stop=lambda: False
    )


def deleted(count: int, *, found: int = 1) -> JobResult:
    counts = {"found": found, "deleted": count, "kept": found - count}
    changed = {"kept_changed_meanwhile": found - count} if found > count else {}
    return JobResult({**counts, "confirmations": 0, **changed})


def clean_suppressions(
    report: Callable[[email_job.Event], None] = lambda event: None,
) -> JobResult:
    return email_job.cleanup_email_suppressions(
        now=NOW,
        soft_bounce_days=30,
        stale_days=90,
        report=report,
        should_stop=lambda: False,
    )


def run(opened: Any, statement: str) -> int:
    with opened.cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.rowcount)


VERIFY = """
    UPDATE account_emailaddress SET verified = true
    WHERE email = 'newcomer@example.com'
"""
LOG_IN = "UPDATE auth_user SET last_login = now() WHERE username = 'newcomer'"
DEACTIVATE = "UPDATE auth_user SET is_active = false WHERE username = 'newcomer'"
MAKE_SYSTEM_ACCOUNT = """
    UPDATE starview_app_userprofile SET is_system_account = true
    WHERE user_id = (SELECT id FROM auth_user WHERE username = 'newcomer')
"""
ADD_VERIFIED_ADDRESS = """
    INSERT INTO account_emailaddress (email, verified, "primary", user_id)
    SELECT 'second@example.com', true, false, id
    FROM auth_user WHERE username = 'newcomer'
"""
WRITE_REVIEW = """
    INSERT INTO starview_app_review (
        created_at, updated_at, location_id, user_id, rating
    )
    SELECT now(), now(), location.id, account.id, 5
    FROM auth_user AS account, starview_app_location AS location
    WHERE account.username = 'newcomer'
"""
LINK_SOCIAL_ACCOUNT = """
    INSERT INTO socialaccount_socialaccount (
        provider, uid, last_login, date_joined, extra_data, user_id
    )
    SELECT 'google', '1', now(), now(), '{}', id
    FROM auth_user WHERE username = 'newcomer'
"""
ASK_FOR_NEW_LINK = """
    INSERT INTO account_emailconfirmation (created, sent, key, email_address_id)
    SELECT '2026-02-28', '2026-02-28', 'new', id
    FROM account_emailaddress WHERE email = 'newcomer@example.com'
"""

UPDATES = {
    "verifies": VERIFY,
    "logs in": LOG_IN,
    "is deactivated": DEACTIVATE,
    "becomes a system account": MAKE_SYSTEM_ACCOUNT,
}
INSERTS = {
    "verifies a second address": ADD_VERIFIED_ADDRESS,
    "writes a review": WRITE_REVIEW,
    "gets a social account": LINK_SOCIAL_ACCOUNT,
    "asks for a new link": ASK_FOR_NEW_LINK,
}
ALL = {**UPDATES, **INSERTS}
each_change = pytest.mark.parametrize("change", ALL.values(), ids=ALL)
each_update = pytest.mark.parametrize("change", UPDATES.values(), ids=UPDATES)
each_insert = pytest.mark.parametrize("change", INSERTS.values(), ids=INSERTS)


@pytest.fixture(autouse=True)
def location() -> None:
    make_location(make_member("member"))
    make_account("newcomer")


# -- the web service commits first --------------------------------------------------


@each_change
def test_a_change_between_listing_and_deleting_keeps_the_account(change: str) -> None:
    def react(event: user_job.Event) -> None:
        if isinstance(event, user_job.Deleting):
            with session() as web:
                run(web, change)
                web.commit()

    outcome = delete_users(report=react)

    assert (outcome, usernames()) == (deleted(0), {"member", "newcomer"})


@each_change
def test_an_uncommitted_change_is_waited_for_and_keeps_the_account(
    change: str,
) -> None:
    with session() as web:
        run(web, change)
        run(web, "SET CONSTRAINTS ALL IMMEDIATE")

        def commit_when_waited_for() -> None:
            wait_until_blocked_by(web)
            web.commit()

        with in_thread(commit_when_waited_for):
            outcome = delete_users()

    assert (outcome, usernames()) == (deleted(0), {"member", "newcomer"})


@each_change
def test_a_change_that_is_rolled_back_does_not_keep_the_account(change: str) -> None:
    with session() as web:
        run(web, change)
        run(web, "SET CONSTRAINTS ALL IMMEDIATE")

        def roll_back_when_waited_for() -> None:
            wait_until_blocked_by(web)
            web.rollback()

        with in_thread(roll_back_when_waited_for):
            outcome = delete_users()

    assert (outcome, usernames()) == (deleted(1), {"member"})


def test_one_changed_account_does_not_keep_the_others_of_its_batch() -> None:
    make_account("other")
    with session() as web:
        run(web, VERIFY)

        def commit_when_waited_for() -> None:
            wait_until_blocked_by(web)
            web.commit()

        with in_thread(commit_when_waited_for):
            outcome = delete_users()

    assert outcome == deleted(1, found=2)
    assert usernames() == {"member", "newcomer"}


def test_an_account_that_somebody_else_deleted_meanwhile_is_no_failure() -> None:
    def react(event: user_job.Event) -> None:
        if isinstance(event, user_job.Deleting):
            User.objects.get(username="newcomer").delete()

    outcome = delete_users(report=react)

    assert (outcome, usernames()) == (deleted(0), {"member"})


# -- the clean-up commits first -----------------------------------------------------


@contextmanager
def held_at_the_delete() -> Iterator[Any]:
    """A session that holds every DELETE of an account until it ends its transaction."""
    execute(
        """
        CREATE FUNCTION test_hold() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(4711);
            RETURN OLD;
        END $$;
        CREATE TRIGGER test_hold BEFORE DELETE ON auth_user
        FOR EACH ROW EXECUTE FUNCTION test_hold()
        """
    )
    try:
        with session() as holder:
            run(holder, "SELECT pg_advisory_xact_lock(4711)")
            yield holder
    finally:
        execute("DROP FUNCTION test_hold CASCADE")


@each_update
def test_a_change_that_comes_after_the_delete_finds_no_account(change: str) -> None:
    changed: list[int] = []
    with held_at_the_delete() as holder, session() as web:

        def change_while_it_deletes() -> None:
            wait_until_blocked_by(holder)
            worker = connection_of_the_job(holder)
            with in_thread(lambda: changed.append(run(web, change))):
                wait_until_blocked_by(worker)
                holder.rollback()

        with in_thread(change_while_it_deletes):
            outcome = delete_users()
        web.commit()

    assert (outcome, changed, usernames()) == (deleted(1), [0], {"member"})


class _Pid:
    """Looks like a session to `wait_until_blocked_by`."""

    def __init__(self, backend_pid: int) -> None:
        self.backend_pid = backend_pid
        self.info = self


def connection_of_the_job(holder: Any) -> _Pid:
    with session() as observer, observer.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))",
            [holder.info.backend_pid],
        )
        [(pid,)] = cursor.fetchall()
        return _Pid(pid)


@each_insert
def test_a_row_added_before_but_committed_after_the_delete_is_refused(
    change: str,
) -> None:
    with session() as web:
        run(web, change)

        outcome = delete_users()

        with pytest.raises(psycopg2.errors.ForeignKeyViolation):
            web.commit()
    assert (outcome, usernames()) == (deleted(1), {"member"})
    assert dangling() == []


def dangling() -> list[str]:
    """Tables with a row whose account, address or location is not there."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT
                conrelid::regclass::text,
                (SELECT attname FROM pg_attribute
                 WHERE attrelid = conrelid AND attnum = conkey[1]),
                confrelid::regclass::text
            FROM pg_constraint
            WHERE contype = 'f'
            """
        )
        keys = cursor.fetchall()
        found = []
        for table, column, target in keys:
            cursor.execute(
                f"SELECT count(*) FROM {table} AS owned"
                f" WHERE owned.{column} NOT IN (SELECT id FROM {target})"
            )
            if cursor.fetchone() != (0,):
                found.append(f"{table}.{column}")
        return found


# -- deadlocks and long waits -------------------------------------------------------


WRITE_AUDIT_ROW = """
    INSERT INTO starview_app_auditlog (
        event_type, timestamp, success, message, user_id, username, user_agent, metadata
    )
    SELECT 'registration_success', now(), true, '', id, username, '', '{}'
    FROM auth_user WHERE username = 'newcomer'
"""


def test_a_web_request_that_verifies_and_logs_is_never_the_one_that_fails() -> None:
    """The audit row asks for the account's row at the commit: a circle of waits.

    PostgreSQL ends whoever looks for a circle last. A session looks once, a second
    (deadlock_timeout) after it began to wait.
    """
    make_account("other")
    with session() as web:
        run(web, VERIFY)
        run(web, WRITE_AUDIT_ROW)

        def commit_after_the_job_has_looked() -> None:
            wait_until_blocked_by(web)
            wait_until(lambda: not _wait_is_young(web), "the job looked for a circle")
            web.commit()

        with in_thread(commit_after_the_job_has_looked):
            delete_users()

    assert usernames() == {"member", "newcomer"}


def _wait_is_young(holder: Any) -> bool:
    """Whether somebody waits for `holder`, and has not looked for a circle yet."""
    with session() as observer, observer.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks"
            " WHERE NOT granted AND %s = ANY(pg_blocking_pids(pid))"
            " AND clock_timestamp() - waitstart < interval '1.1 s'",
            [holder.info.backend_pid],
        )
        return bool(cursor.fetchone() != (0,))


def test_an_account_that_stays_locked_is_reported_and_the_rest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_job, "LOCK_TIMEOUT_MS", 100)
    locked = User.objects.get(username="newcomer")
    for name in ("a", "b", "c"):
        make_account(name)
    with session() as web:
        run(web, LOG_IN)

        outcome = delete_users()

    assert outcome == JobResult(
        {"found": 4, "deleted": 3, "kept": 0, "confirmations": 0},
        [
            f"account {locked.pk} was not deleted:"
            " canceling statement due to lock timeout"
        ],
    )
    assert usernames() == {"member", "newcomer"}


# -- suppressions -------------------------------------------------------------------


def active() -> set[str]:
    return set(
        EmailSuppression.objects.filter(is_active=True).values_list("email", flat=True)
    )


COMPLAIN = """
    INSERT INTO starview_email_complaint (
        email, complaint_type, user_agent, complaint_date, sns_message_id, feedback_id,
        raw_notification, suppressed, reviewed
    )
    VALUES ('User@example.com', 'abuse', '', now(), 'new', '', '{}', true, false)
"""
BOUNCE_AGAIN = """
    UPDATE starview_email_bounce
    SET bounce_count = bounce_count + 1, last_bounce_date = '2026-03-01'
    WHERE email = 'user@example.com'
"""
BOUNCE_HARD = """
    UPDATE starview_email_bounce SET bounce_type = 'hard'
    WHERE email = 'user@example.com'
"""
UNSUBSCRIBE = """
    UPDATE starview_email_suppression SET reason = 'unsubscribe'
    WHERE email = 'user@example.com'
"""
EVENTS = {
    "a complaint": COMPLAIN,
    "a new soft bounce": BOUNCE_AGAIN,
    "a hard bounce": BOUNCE_HARD,
    "an unsubscribe": UNSUBSCRIBE,
}
each_event = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)


@each_event
def test_what_arrives_between_listing_and_deactivating_keeps_the_suppression(
    event: str,
) -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    after: dict[str, list[str]] = {}

    def react(reported: email_job.Event) -> None:
        if isinstance(reported, email_job.ExpiredFound):
            with session() as web:
                run(web, event)
                web.commit()
            after.update(contents())

    outcome = clean_suppressions(report=react)

    assert outcome == JobResult({"deactivated": 0, "deleted": 0})
    assert contents() == after


@each_event
def test_what_arrives_uncommitted_is_waited_for_and_keeps_the_suppression(
    event: str,
) -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    with session() as web:
        run(web, event)

        def commit_when_waited_for() -> None:
            wait_until_blocked_by(web)
            web.commit()

        with in_thread(commit_when_waited_for):
            outcome = clean_suppressions()

    assert outcome == JobResult({"deactivated": 0, "deleted": 0})
    assert active() == {ADDRESS}


def test_a_complaint_that_comes_while_it_deactivates_waits_and_is_not_lost() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    suppress = (
        "UPDATE starview_email_suppression SET reason = 'complaint', is_active = true"
        " WHERE email = 'user@example.com'"
    )
    with session() as holder, session() as web:
        run(holder, "SELECT id FROM starview_email_suppression FOR UPDATE")

        def complain() -> None:
            run(web, COMPLAIN)
            run(web, suppress)
            web.commit()

        def complain_while_it_deactivates() -> None:
            wait_until_blocked_by(holder)
            worker = connection_of_the_job(holder)
            with in_thread(complain):
                wait_until_blocked_by(worker)
                holder.rollback()

        with in_thread(complain_while_it_deactivates):
            clean_suppressions()

    assert active() == {ADDRESS}
    assert EmailSuppression.objects.get().reason == "complaint"


def test_a_bounce_that_comes_while_stale_records_go_keeps_its_record() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(91))
    EmailSuppression.objects.all().delete()
    EmailBounce.objects.update(suppressed=False)
    with session() as web:

        def react(reported: email_job.Event) -> None:
            if isinstance(reported, email_job.StaleFound):
                run(web, BOUNCE_AGAIN)
                web.commit()

        outcome = clean_suppressions(report=react)

    assert outcome == JobResult({"deactivated": 0, "deleted": 0})
    assert EmailBounce.objects.get().bounce_count == 4


def test_a_complaint_of_another_address_keeps_nobody_else() -> None:
    make_soft_suppression(ADDRESS, last=days_ago(31))
    make_complaint("other@example.com", at=days_ago(1))

    outcome = clean_suppressions()

    assert outcome == JobResult({"deactivated": 1, "deleted": 0})

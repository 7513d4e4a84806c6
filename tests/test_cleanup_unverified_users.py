"""`cleanup_unverified_users`: who goes, who never goes, and what is said about it."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from allauth.account.models import EmailAddress, EmailConfirmation
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.db.models import Model
from django.utils import timezone

from starview_app.maintenance.jobs import references as catalog
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.jobs.unverified_users import cleanup as job
from starview_app.models import (
    AuditLog,
    Badge,
    FavoriteLocation,
    Follow,
    LocationPhoto,
    LocationVisit,
    Report,
    Review,
    ReviewComment,
    SummaryFeedback,
    UserBadge,
    UserProfile,
    Vote,
)
from tests.archive_processes import Commands
from tests.conftest import REFUSALS, Manage, Trigger, kill_run, started
from tests.factories import (
    DEADLINE_SECONDS,
    NOW,
    contents,
    days_ago,
    execute,
    make_account,
    make_accounts,
    make_bounce,
    make_complaint,
    make_confirmation,
    make_location,
    make_member,
    make_suppression,
    rows_hidden,
    session,
    usernames,
    wait_until,
    wait_until_blocked_by,
    wide_user_ids,
)

pytestmark = pytest.mark.django_db(transaction=True)

MOMENT = timedelta(microseconds=1)  # the shortest time PostgreSQL knows
COMMAND = "cleanup_unverified_users"


def clean_up(**changes: Any) -> tuple[JobResult, list[job.Event]]:
    events: list[job.Event] = []
    options = {
        "now": NOW,
        "days": 7,
        "link_days": 3,
        "report": events.append,
        "should_stop": lambda: False,
        **changes,
    }
    return job.cleanup_unverified_users(**options), events


def result(
    *,
    found: int = 0,
    deleted: int | None = None,
    kept: str = "",
    confirmations: int = 0,
    problems: tuple[str, ...] = (),
    interrupted: bool = False,
) -> JobResult:
    return JobResult(
        {
            "found": found,
            "deleted": found if deleted is None else deleted,
            "kept": 1 if kept else 0,
            "confirmations": confirmations,
            **({kept: 1} if kept else {}),
        },
        list(problems),
        interrupted,
    )


NEW_LINK = "a link newer than the cut-off"


def counted(reason: str) -> str:
    """The name of its count; none where nobody is kept."""
    return "kept_" + reason.replace(" ", "_").replace("-", "_") if reason else ""


def kept_by_reason(events: list[job.Event]) -> dict[str, int]:
    return next((e.by_reason for e in events if isinstance(e, job.Kept)), {})


# -- who goes -----------------------------------------------------------------------


def test_it_deletes_an_account_that_never_verified_its_address() -> None:
    make_account("newcomer")
    make_member("member")

    outcome, _ = clean_up()

    assert (outcome, usernames()) == (result(found=1), {"member"})


@pytest.mark.parametrize(
    ("joined", "left"),
    [
        pytest.param(days_ago(7) - MOMENT, set(), id="just outside"),
        pytest.param(days_ago(7), {"newcomer"}, id="exactly on the limit"),
        pytest.param(days_ago(7) + MOMENT, {"newcomer"}, id="just inside"),
    ],
)
def test_an_account_goes_when_it_is_older_than_the_limit(
    joined: datetime, left: set[str]
) -> None:
    make_account("newcomer", joined=joined)

    clean_up()

    assert usernames() == left


def test_an_account_with_two_unverified_addresses_is_counted_once() -> None:
    user = make_account("newcomer")
    EmailAddress.objects.create(user=user, email="other@example.com")

    outcome, events = clean_up()

    account = job.Account(
        user.pk, "newcomer", "newcomer@example.com", joined=user.date_joined
    )
    assert outcome == result(found=1)
    assert events == [
        job.Found(1, days_ago(7)),
        job.Listed([account]),
        job.Deleting(),
        job.Deleted([account]),
    ]


def test_the_newest_account_is_listed_first() -> None:
    for username, days in (("old", 30), ("newest", 8), ("new", 9)):
        make_account(username, joined=days_ago(days))

    _, events = clean_up(dry_run=True)

    (listed,) = [e.accounts for e in events if isinstance(e, job.Listed)]
    assert [account.username for account in listed] == ["newest", "new", "old"]


def test_an_account_without_its_own_email_is_shown_with_its_primary_address() -> None:
    user = make_account("newcomer", email="")
    EmailAddress.objects.filter(user=user).update(email="a@example.com", primary=False)
    EmailAddress.objects.create(user=user, email="b@example.com", primary=True)

    _, events = clean_up(dry_run=True)

    (shown,) = [e.accounts for e in events if isinstance(e, job.Listed)]
    assert [account.email for account in shown] == ["b@example.com"]


def test_an_account_without_a_profile_goes_too() -> None:
    user = make_account("newcomer")
    UserProfile.objects.filter(user=user).delete()

    clean_up()

    assert usernames() == set()


def test_its_addresses_confirmations_and_profile_go_with_the_account() -> None:
    user = make_account("newcomer")
    EmailAddress.objects.create(user=user, email="other@example.com")
    make_account("member", verified=True)
    before = contents()
    for address in EmailAddress.objects.filter(user=user):
        EmailConfirmation.objects.create(
            email_address=address,
            created=days_ago(10),
            sent=days_ago(10),
            key=address.email,
        )

    outcome, _ = clean_up()

    own = ("auth_user", "account_emailaddress", "starview_app_userprofile")
    expected = {
        table: [row for row in rows if table not in own or '"member' in row]
        for table, rows in before.items()
    }
    expected["starview_app_userprofile"] = [
        row
        for row in before["starview_app_userprofile"]
        if f'"user_id": {user.pk}' not in row
    ]
    assert (outcome, contents()) == (result(found=1), expected)


# -- who never goes -----------------------------------------------------------------


def _verify_second_address(user: User) -> None:
    EmailAddress.objects.create(user=user, email="second@example.com", verified=True)


def _remove_addresses(user: User) -> None:
    EmailAddress.objects.filter(user=user).delete()


def _profile(**columns: Any) -> Callable[[User], None]:
    def change(user: User) -> None:
        UserProfile.objects.filter(user=user).update(**columns)

    return change


def _account(**columns: Any) -> Callable[[User], None]:
    def change(user: User) -> None:
        User.objects.filter(pk=user.pk).update(**columns)

    return change


def _confirmation(
    created: datetime, sent: datetime | None = None
) -> Callable[[User], None]:
    def change(user: User) -> None:
        make_confirmation(user, created=created, sent=sent)

    return change


# What makes an account one that is kept, and the reason that is given.
PROTECTED: dict[str, tuple[Callable[[User], None], str]] = {
    "staff": (_account(is_staff=True), "staff"),
    "a superuser": (_account(is_superuser=True), "staff"),
    "a system account": (_profile(is_system_account=True), "a system account"),
    "a member verified by the team": (
        _profile(is_verified=True),
        "a verified profile",
    ),
    "an account with a profile picture": (
        _profile(profile_picture="me.jpg"),
        "a profile picture",
    ),
    "an account that has logged in": (
        _account(last_login=days_ago(9)),
        "has logged in",
    ),
    "a deactivated account": (_account(is_active=False), "deactivated"),
    "an account without an address": (_remove_addresses, "no address"),
    "a verified account that is changing its address": (_verify_second_address, ""),
    "an account whose link is live": (
        _confirmation(days_ago(1), days_ago(1)),
        NEW_LINK,
    ),
    "an account with a link that was sent again": (
        _confirmation(days_ago(10), days_ago(1)),
        NEW_LINK,
    ),
    "an account with a new link that is not yet sent": (
        _confirmation(days_ago(1)),
        NEW_LINK,
    ),
    "an account that added an address after the cut-off": (
        _confirmation(days_ago(6), days_ago(6)),
        NEW_LINK,
    ),
}


@pytest.mark.parametrize(("protect", "reason"), PROTECTED.values(), ids=PROTECTED)
def test_it_never_deletes(protect: Callable[[User], None], reason: str) -> None:
    user = make_account("protected")
    make_account("newcomer")
    protect(user)

    outcome, events = clean_up()

    assert usernames() == {"protected"}
    assert outcome == result(found=1, kept=counted(reason))
    assert kept_by_reason(events) == ({reason: 1} if reason else {})


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        pytest.param(days_ago(3) - MOMENT, set(), id="just expired"),
        pytest.param(days_ago(3), {"newcomer"}, id="exactly on the limit"),
        pytest.param(days_ago(3) + MOMENT, {"newcomer"}, id="still live"),
    ],
)
def test_a_live_link_protects_also_when_the_account_age_limit_is_shorter(
    sent: datetime, left: set[str]
) -> None:
    user = make_account("newcomer", joined=days_ago(5))
    make_confirmation(user, created=sent, sent=sent)

    clean_up(days=1)

    assert usernames() == left


@pytest.mark.parametrize(
    ("added", "left"),
    [
        pytest.param(days_ago(7) - MOMENT, set(), id="before the cut-off"),
        pytest.param(days_ago(7), {"newcomer"}, id="exactly on the cut-off"),
        pytest.param(days_ago(7) + MOMENT, {"newcomer"}, id="after the cut-off"),
    ],
)
def test_an_address_added_after_the_cut_off_protects(
    added: datetime, left: set[str]
) -> None:
    user = make_account("newcomer", joined=days_ago(20))
    make_confirmation(user, created=added, sent=added)

    clean_up()

    assert usernames() == left


def test_an_address_protects_for_the_whole_limit_when_the_job_runs_every_day() -> None:
    user = make_account("newcomer", joined=days_ago(6.5))
    make_confirmation(user, created=days_ago(3.5), sent=days_ago(3.5))

    clean_up(now=NOW)
    clean_up(now=NOW + timedelta(days=1))
    kept = usernames()
    clean_up(now=NOW + timedelta(days=4))

    assert (kept, usernames()) == ({"newcomer"}, set())


# -- content ------------------------------------------------------------------------


def _review(owner: User) -> Review:
    return Review.objects.create(location=make_location(owner), user=owner, rating=5)


def _badge() -> Badge:
    return Badge.objects.create(
        name="Pioneer", slug="pioneer", category="TENURE", criteria_type="TENURE"
    )


def _user_type() -> ContentType:
    return ContentType.objects.get_for_model(User)


# (table, column) -> what makes a row of it that `user` owns; `member` owns the rest.
CONTENT: dict[tuple[str, str], Callable[[User, User], Model]] = {
    ("starview_app_location", "added_by_id"): lambda user, member: make_location(user),
    ("starview_app_location", "verified_by_id"): lambda user, member: make_location(
        member, verified_by=user
    ),
    ("starview_app_summaryfeedback", "user_id"): lambda user, member: (
        SummaryFeedback.objects.create(location=make_location(member), user=user)
    ),
    ("starview_app_review", "user_id"): lambda user, member: Review.objects.create(
        location=make_location(member), user=user, rating=4
    ),
    ("starview_app_reviewcomment", "user_id"): lambda user, member: (
        ReviewComment.objects.create(review=_review(member), user=user, content="Hi")
    ),
    ("starview_app_locationphoto", "uploaded_by_id"): lambda user, member: (
        LocationPhoto.objects.create(
            location=make_location(member), uploaded_by=user, image="hill.jpg"
        )
    ),
    ("starview_app_vote", "user_id"): lambda user, member: Vote.objects.create(
        content_type=_user_type(), object_id=1, user=user, is_upvote=True
    ),
    ("starview_app_locationvisit", "user_id"): lambda user, member: (
        LocationVisit.objects.create(location=make_location(member), user=user)
    ),
    ("starview_app_favoritelocation", "user_id"): lambda user, member: (
        FavoriteLocation.objects.create(location=make_location(member), user=user)
    ),
    ("starview_app_follow", "follower_id"): lambda user, member: Follow.objects.create(
        follower=user, following=member
    ),
    ("starview_app_report", "reported_by_id"): lambda user, member: (
        Report.objects.create(
            content_type=_user_type(), object_id=1, reported_by=user, report_type="SPAM"
        )
    ),
    ("starview_app_report", "reviewed_by_id"): lambda user, member: (
        Report.objects.create(
            content_type=_user_type(),
            object_id=1,
            reported_by=member,
            reviewed_by=user,
            report_type="SPAM",
        )
    ),
    ("socialaccount_socialaccount", "user_id"): lambda user, member: (
        SocialAccount.objects.create(user=user, provider="google", uid="1")
    ),
    ("auth_user_groups", "user_id"): lambda user, member: (
        User.groups.through.objects.create(
            user=user, group=Group.objects.create(name="moderators")
        )
    ),
    ("auth_user_user_permissions", "user_id"): lambda user, member: (
        User.user_permissions.through.objects.create(
            user=user, permission=Permission.objects.all()[0]
        )
    ),
}


@pytest.mark.parametrize(
    "add", CONTENT.values(), ids=[f"{table}.{column}" for table, column in CONTENT]
)
def test_a_row_of_content_alone_protects_its_owner(
    add: Callable[[User, User], Model],
) -> None:
    content = add(make_account("author"), make_member("member"))

    with_content, events = clean_up()
    content.delete()
    without_content, _ = clean_up()

    (reason,) = kept_by_reason(events)
    name = str(content._meta.verbose_name)
    expected = "signs in with Google" if name == "social account" else f" {name}"
    assert reason.endswith(expected)
    assert with_content == result(kept=counted(reason).lower())
    assert without_content == result(found=1)


def test_the_content_above_is_all_that_refers_to_an_account() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT conrelid::regclass::text, attname
            FROM pg_constraint
            JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
            WHERE contype = 'f' AND confrelid = 'auth_user'::regclass
            """
        )
        references = set(cursor.fetchall())

    aside = {*catalog.BOOKKEEPING, *catalog.MADE_BY_OTHERS, *catalog.HISTORY}
    assert references == {*CONTENT, *aside}


@pytest.fixture
def unknown_table() -> Iterator[Callable[[str], None]]:
    """Make tables that no model knows; whatever was made is dropped again."""

    def tables() -> set[str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname IN ('public', 'elsewhere')"
            )
            return {name for (name,) in cursor.fetchall()}

    before = tables()
    yield execute
    for name in tables() - before:
        execute(f"DROP TABLE IF EXISTS {name} CASCADE")
    execute("DROP SCHEMA IF EXISTS elsewhere CASCADE")
    execute("ALTER TABLE auth_user DROP CONSTRAINT IF EXISTS test_key")


UNKNOWN = {
    "a plain key": """
        CREATE TABLE note (owner integer REFERENCES auth_user);
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "a key that would cascade": """
        CREATE TABLE note (owner integer REFERENCES auth_user ON DELETE CASCADE);
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "a key that would be set to null": """
        CREATE TABLE note (owner integer REFERENCES auth_user ON DELETE SET NULL);
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "a key that is not validated": """
        CREATE TABLE note (owner integer);
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author';
        ALTER TABLE note ADD FOREIGN KEY (owner) REFERENCES auth_user NOT VALID
    """,
    "another schema": """
        CREATE SCHEMA elsewhere;
        CREATE TABLE elsewhere.note (owner integer REFERENCES auth_user);
        INSERT INTO elsewhere.note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "another schema's table that is named as a bookkeeping table": """
        CREATE SCHEMA elsewhere;
        CREATE TABLE elsewhere.account_emailaddress (
            user_id integer REFERENCES auth_user ON DELETE CASCADE
        );
        INSERT INTO elsewhere.account_emailaddress
        SELECT id FROM auth_user WHERE username = 'author'
    """,
    "another schema's table that is named as a history table": """
        CREATE SCHEMA elsewhere;
        CREATE TABLE elsewhere.starview_app_auditlog (
            user_id integer REFERENCES auth_user ON DELETE CASCADE
        );
        INSERT INTO elsewhere.starview_app_auditlog
        SELECT id FROM auth_user WHERE username = 'author'
    """,
    "a second key of a history table": """
        ALTER TABLE starview_app_auditlog
        ADD COLUMN moderator integer REFERENCES auth_user;
        INSERT INTO starview_app_auditlog (
            event_type, timestamp, success, message, username, user_agent, metadata,
            moderator
        )
        SELECT 'logout', now(), true, '', '', '', '{}', id
        FROM auth_user WHERE username = 'author'
    """,
    "a unique key other than the id": """
        CREATE TABLE note (owner varchar(150) REFERENCES auth_user (username));
        INSERT INTO note VALUES ('author')
    """,
    "a composite key": """
        ALTER TABLE auth_user ADD CONSTRAINT test_key UNIQUE (username, id);
        CREATE TABLE note (
            name varchar(150),
            owner integer,
            FOREIGN KEY (name, owner) REFERENCES auth_user (username, id)
        );
        INSERT INTO note
        SELECT username, id FROM auth_user WHERE username = 'author'
    """,
    "a partitioned table": """
        CREATE TABLE note (owner integer REFERENCES auth_user)
        PARTITION BY HASH (owner);
        CREATE TABLE note_0 PARTITION OF note FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "a key of one partition only": """
        CREATE TABLE note (owner integer) PARTITION BY HASH (owner);
        CREATE TABLE note_0 PARTITION OF note FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        ALTER TABLE note_0 ADD FOREIGN KEY (owner) REFERENCES auth_user;
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "odd names": """
        CREATE TABLE "100% ""odd"" tAble" (
            "the %s own""er" integer REFERENCES auth_user
        );
        INSERT INTO "100% ""odd"" tAble"
        SELECT id FROM auth_user WHERE username = 'author'
    """,
    "the profile": """
        CREATE TABLE note (profile bigint REFERENCES starview_app_userprofile);
        INSERT INTO note
        SELECT profile.id
        FROM starview_app_userprofile AS profile
        JOIN auth_user ON auth_user.id = profile.user_id
        WHERE username = 'author'
    """,
    "the profile's account": """
        CREATE TABLE note (
            owner integer
            REFERENCES starview_app_userprofile (user_id) ON DELETE CASCADE
        );
        INSERT INTO note SELECT id FROM auth_user WHERE username = 'author'
    """,
    "the address": """
        CREATE TABLE note (
            address integer REFERENCES account_emailaddress ON DELETE CASCADE
        );
        INSERT INTO note
        SELECT id FROM account_emailaddress WHERE email = 'author@example.com'
    """,
    "the confirmation": """
        CREATE TABLE note (
            confirmation integer REFERENCES account_emailconfirmation ON DELETE CASCADE
        );
        INSERT INTO account_emailconfirmation (created, key, email_address_id)
        SELECT '2026-01-01', 'key', id
        FROM account_emailaddress WHERE email = 'author@example.com';
        INSERT INTO note SELECT id FROM account_emailconfirmation
    """,
}


@pytest.fixture
def plain_audit_log() -> Iterator[None]:
    yield
    execute("ALTER TABLE starview_app_auditlog DROP COLUMN IF EXISTS moderator")


@pytest.mark.parametrize("statements", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.usefixtures("plain_audit_log")
def test_a_table_that_the_project_has_never_heard_of_protects_through(
    statements: str, unknown_table: Callable[[str], None]
) -> None:
    make_account("author")
    make_account("newcomer")
    unknown_table(statements)

    outcome, events = clean_up()

    (reason,) = kept_by_reason(events)
    assert reason.startswith("a row of ") or "moderator" in statements
    assert (outcome.counts["found"], outcome.counts["kept"]) == (1, 1)
    assert usernames() == {"author"}


def test_what_only_others_can_make_goes_with_the_account() -> None:
    user, member = make_account("newcomer"), make_member("member")
    Follow.objects.create(follower=member, following=user)
    UserBadge.objects.create(user=user, badge=_badge())
    UserBadge.objects.create(user=member, badge=Badge.objects.get())

    outcome, events = clean_up()

    assert outcome == result(found=1)
    assert kept_by_reason(events) == {}
    assert not Follow.objects.exists()
    assert UserBadge.objects.get().user == member


def test_a_row_that_refers_to_what_others_made_protects(
    unknown_table: Callable[[str], None],
) -> None:
    user = make_account("newcomer")
    UserBadge.objects.create(user=user, badge=_badge())
    unknown_table(
        "CREATE TABLE note (badge bigint REFERENCES starview_app_userbadge);"
        "INSERT INTO note SELECT id FROM starview_app_userbadge"
    )

    outcome, _ = clean_up()

    assert outcome == result(kept="kept_a_row_of_note")


def test_an_account_that_staff_made_without_an_address_is_no_news() -> None:
    for change in (_account(is_staff=True), _profile(is_system_account=True)):
        user = make_account(f"made{User.objects.count()}")
        _remove_addresses(user)
        change(user)

    outcome, events = clean_up()

    assert outcome == result()
    assert kept_by_reason(events) == {}


@pytest.mark.parametrize("way", [["--dry-run"], []])
def test_who_is_kept_is_printed_up_to_20_names_and_then_numbers(
    way: list[str], manage: Manage
) -> None:
    member = make_member("member")
    for number in range(22):
        user = make_account(f"kept{number:02d}", joined=days_ago(100 + number))
        if number < 3:
            Review.objects.create(location=make_location(member), user=user, rating=4)
        else:
            SocialAccount.objects.create(user=user, provider="google", uid=str(number))

    done = manage("cleanup_unverified_users", *way)

    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "Found 0 unverified user(s) older than 7 days:",
        "No unverified users found to delete.",
        "",
    ]
    assert lines[3] == "  - Kept: kept00 (kept00@example.com) (a review)"
    assert lines[22] == ("  - Kept: kept19 (kept19@example.com) (signs in with Google)")
    assert lines[23:] == [
        "  - and 2 more",
        "Kept 22: signs in with Google 19, a review 3",
    ]


def test_an_empty_table_that_refers_to_accounts_protects_nobody(
    unknown_table: Callable[[str], None],
) -> None:
    make_account("newcomer")
    unknown_table("CREATE TABLE note (owner integer REFERENCES auth_user)")

    clean_up()

    assert usernames() == set()


def test_content_protects_also_where_the_database_does_not_enforce_its_key() -> None:
    author, member = make_account("author"), make_member("member")
    Review.objects.create(location=make_location(member), user=author, rating=4)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'starview_app_review'::regclass"
            " AND confrelid = 'auth_user'::regclass"
        )
        name, definition = cursor.fetchone()
    execute(f'ALTER TABLE starview_app_review DROP CONSTRAINT "{name}"')

    outcome, _ = clean_up()

    kept = usernames()
    Review.objects.all().delete()
    execute(f'ALTER TABLE starview_app_review ADD CONSTRAINT "{name}" {definition}')
    assert (outcome, kept) == (result(kept="kept_a_review"), {"author", "member"})


# -- history ------------------------------------------------------------------------


def _history(user: User) -> list[Model]:
    bounce = make_bounce(user.email, last=days_ago(9), user=user)
    complaint = make_complaint(user.email, at=days_ago(9), user=user)
    return [
        AuditLog.objects.create(
            event_type="registration_success",
            timestamp=days_ago(10),
            message="Registered",
            user=user,
            username=user.username,
            ip_address="192.0.2.7",
            user_agent="Mozilla",
            metadata={"email": user.email},
        ),
        bounce,
        complaint,
        make_suppression(
            user.email,
            added=days_ago(9),
            reason="complaint",
            user=user,
            bounce=bounce,
            complaint=complaint,
        ),
    ]


def _columns(row: Model) -> dict[str, Any]:
    columns: dict[str, Any] = type(row)._default_manager.values().get(pk=row.pk)
    return columns


def test_audit_and_email_history_stay_as_they_are_and_lose_only_the_link() -> None:
    rows = _history(make_account("newcomer"))
    before = [_columns(row) for row in rows]

    outcome, _ = clean_up()

    after = [_columns(row) for row in rows]
    assert outcome == result(found=1)
    assert after == [{**columns, "user_id": None} for columns in before]


def test_history_alone_protects_nobody_and_that_of_others_keeps_its_link() -> None:
    make_account("newcomer")
    rows = _history(make_member("member"))
    before = [_columns(row) for row in rows]

    clean_up()

    assert [_columns(row) for row in rows] == before


# -- batches, stops and second runs -------------------------------------------------


def test_it_works_through_more_than_one_batch() -> None:
    make_accounts(5, joined=days_ago(10))

    outcome, events = clean_up(batch_accounts=2)

    deleted = {
        account.username
        for event in events
        if isinstance(event, job.Deleted)
        for account in event.accounts
    }
    assert outcome == result(found=5)
    assert deleted == {f"bulk{number}" for number in range(5)}
    assert usernames() == set()


def test_each_batch_is_a_transaction_of_its_own() -> None:
    make_accounts(5, joined=days_ago(10))
    left_for_others: list[int] = []

    def watch(event: job.Event) -> None:
        if isinstance(event, job.Deleted):
            with session() as other, other.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM auth_user")
                left_for_others.append(cursor.fetchone()[0])

    clean_up(batch_accounts=2, report=watch)

    assert left_for_others == [3, 1, 0]


def test_a_stop_request_ends_the_run_between_two_batches() -> None:
    make_accounts(5, joined=days_ago(10))
    answers = iter([False, True])

    outcome, _ = clean_up(batch_accounts=2, should_stop=lambda: next(answers))

    assert outcome == result(found=5, deleted=2, interrupted=True)
    assert len(usernames()) == 3


def test_after_a_stop_the_next_run_does_the_rest() -> None:
    make_accounts(5, joined=days_ago(10))
    clean_up(batch_accounts=2, should_stop=iter([False, True]).__next__)

    outcome, _ = clean_up(batch_accounts=2)

    assert (outcome, usernames()) == (result(found=3), set())


def test_a_second_run_changes_nothing() -> None:
    _history(make_account("newcomer"))
    make_confirmation(make_member("member"), created=days_ago(4))
    clean_up()
    before = contents()

    outcome, events = clean_up()

    assert outcome == result()
    assert events == [job.Found(0, days_ago(7))]
    assert contents() == before


def test_with_nothing_to_do_it_says_so_and_changes_nothing() -> None:
    make_member("member")
    before = contents()

    outcome, events = clean_up()

    assert (outcome, events) == (result(), [job.Found(0, days_ago(7))])
    assert contents() == before


def test_a_dry_run_reports_what_would_go_and_changes_nothing() -> None:
    user = make_account("newcomer")
    _history(user)
    make_confirmation(user, created=days_ago(10))
    make_confirmation(make_member("member"), created=days_ago(4))
    before = contents()

    outcome, events = clean_up(dry_run=True)

    account = job.Account(
        user.pk, "newcomer", "newcomer@example.com", joined=user.date_joined
    )
    assert outcome == result(found=1, deleted=0, confirmations=1)
    assert events == [job.Found(1, days_ago(7)), job.Listed([account])]
    assert contents() == before


# -- accounts that cannot be deleted ------------------------------------------------


@pytest.fixture
def refuse() -> Iterator[Callable[[str], None]]:
    """Let the database refuse to delete the account `refused`, in a given way."""

    def install(action: str) -> None:
        execute(
            f"""
            CREATE FUNCTION test_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF OLD.username = 'refused' THEN {action}; END IF;
                RETURN OLD;
            END $$;
            CREATE TRIGGER test_refuse BEFORE DELETE ON auth_user
            FOR EACH ROW EXECUTE FUNCTION test_refuse()
            """
        )

    yield install
    execute("DROP FUNCTION IF EXISTS test_refuse CASCADE")


def _five_with_one_refused() -> User:
    """Five due accounts; the third of them, as listed, is `refused`."""
    users = [
        make_account(name, joined=days_ago(10 + number))
        for number, name in enumerate(["a", "b", "refused", "d", "e"])
    ]
    return users[2]


@pytest.mark.parametrize(
    "code",
    [
        "raise_exception",
        "foreign_key_violation",
        "insufficient_privilege",  # what guards of immutable rows like to raise
        "undefined_function",  # what a broken trigger raises
    ],
)
def test_an_account_that_the_database_refuses_is_reported_and_the_rest_goes(
    code: str, refuse: Callable[[str], None]
) -> None:
    user = _five_with_one_refused()
    refuse(f"RAISE EXCEPTION 'it is under audit' USING ERRCODE = '{code}'")
    before = _rows_of(user)

    outcome, events = clean_up()

    assert outcome == result(
        found=5,
        deleted=4,
        problems=(f"account {user.pk} was not deleted: it is under audit",),
    )
    assert [e for e in events if isinstance(e, job.Failed)] == [
        job.Failed("refused", "it is under audit")
    ]
    assert (usernames(), _rows_of(user)) == ({"refused"}, before)


def test_an_account_that_the_database_silently_keeps_is_reported_and_left_whole(
    refuse: Callable[[str], None],
) -> None:
    user = _five_with_one_refused()
    refuse("RETURN NULL")
    before = _rows_of(user)

    outcome, events = clean_up()

    deleted = {
        account.username
        for event in events
        if isinstance(event, job.Deleted)
        for account in event.accounts
    }
    assert (usernames(), _rows_of(user)) == ({"refused"}, before)
    assert deleted == {"a", "b", "d", "e"}
    assert [problem.split(":")[0] for problem in outcome.problems] == [
        f"account {user.pk} was not deleted"
    ]


def _rows_of(user: User) -> list[list[dict[str, Any]]]:
    return [
        list(User.objects.filter(pk=user.pk).values()),
        list(EmailAddress.objects.filter(user_id=user.pk).values()),
        list(UserProfile.objects.filter(user_id=user.pk).values()),
    ]


def test_a_refusal_with_a_hostile_text_stays_one_line(
    refuse: Callable[[str], None],
) -> None:
    make_account("refused")
    refuse(r"RAISE EXCEPTION E'no \x1b[2Kmore'")

    _, events = clean_up()

    assert events[-1] == job.Failed("refused", r"no \u001b[2Kmore")


def test_what_concerns_every_account_ends_the_run_without_naming_each() -> None:
    make_accounts(4, joined=days_ago(10))
    events: list[job.Event] = []
    execute("SET default_transaction_read_only = on")

    try:
        with pytest.raises(DatabaseError, match="read-only transaction"):
            clean_up(report=events.append)
    finally:
        execute("SET default_transaction_read_only = off")

    assert [e for e in events if isinstance(e, job.Failed)] == []


@pytest.mark.parametrize(
    "table", ["starview_app_review", "starview_app_userprofile", "auth_user"]
)
def test_rows_that_a_policy_hides_are_not_taken_for_absent(table: str) -> None:
    make_account("newcomer")

    with (
        rows_hidden(table),
        pytest.raises(DatabaseError, match="row-level security"),
    ):
        clean_up()

    assert usernames() == {"newcomer"}


# -- confirmations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("created", "sent", "left"),
    [
        pytest.param(days_ago(3) - MOMENT, days_ago(3) - MOMENT, 0, id="just expired"),
        pytest.param(days_ago(3), days_ago(3), 1, id="exactly on the limit"),
        pytest.param(days_ago(2), days_ago(2), 1, id="live"),
        pytest.param(days_ago(30), None, 0, id="never sent"),
        pytest.param(days_ago(1), None, 1, id="not yet sent"),
        pytest.param(days_ago(30), days_ago(1), 1, id="sent again"),
    ],
)
def test_a_confirmation_is_removed_when_its_link_has_expired(
    created: datetime, sent: datetime | None, left: int
) -> None:
    make_confirmation(make_member("member"), created=created, sent=sent)

    outcome, _ = clean_up()

    assert outcome == result(confirmations=1 - left)
    assert EmailConfirmation.objects.count() == left


def test_an_expired_confirmation_leaves_its_address_as_it_is() -> None:
    make_confirmation(make_member("member"), created=days_ago(30))
    before = contents()

    clean_up()

    assert contents() == {**before, "account_emailconfirmation": []}


def test_the_confirmations_of_a_deleted_account_are_not_counted_as_expired() -> None:
    make_confirmation(make_account("newcomer"), created=days_ago(10))

    outcome, _ = clean_up()

    assert outcome == result(found=1)
    assert EmailConfirmation.objects.count() == 0


# -- the command --------------------------------------------------------------------


def _listed(days: int) -> datetime:
    """A time of joining that is shown as `days` while a test runs."""
    return timezone.now() - timedelta(days=days, hours=1)


def _without_dates(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<time>", text)


def test_the_command_prints_what_the_guide_shows(manage: Manage) -> None:
    make_account("testuser", email="test@example.com", joined=_listed(10))
    make_account("spammer", email="spam@fake.com", joined=_listed(15))

    run = manage(COMMAND, "--days=7")

    assert (run.returncode, _without_dates(run.stdout)) == (
        0,
        """\
Found 2 unverified user(s) older than 7 days:
Cutoff date: <time>

  - testuser (test@example.com) - registered 10 days ago
  - spammer (spam@fake.com) - registered 15 days ago

Deleting unverified users...
  ✓ Deleted: testuser (test@example.com)
  ✓ Deleted: spammer (spam@fake.com)

✓ Successfully deleted 2 unverified user(s)
""",
    )


def test_the_command_shows_the_cut_off_in_utc(manage: Manage) -> None:
    make_account("newcomer", joined=_listed(10))
    before = timezone.now() - timedelta(days=7)

    run = manage(COMMAND, env={"TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo"})

    shown = re.search(r"Cutoff date: (.{19})\n", run.stdout)
    assert shown
    cutoff = datetime.fromisoformat(shown[1] + "+00:00")
    assert before.replace(microsecond=0) <= cutoff <= timezone.now() - timedelta(days=7)


def test_the_command_prints_what_the_guide_shows_when_there_is_nothing_to_do(
    manage: Manage,
) -> None:
    make_account("member", verified=True, joined=_listed(10))

    run = manage(COMMAND, "--days=7")

    assert (run.returncode, run.stdout) == (
        0,
        "Found 0 unverified user(s) older than 7 days:\n"
        "No unverified users found to delete.\n",
    )


def test_the_command_says_what_a_dry_run_would_do(commands: Commands) -> None:
    make_account("testuser", email="test@example.com", joined=_listed(10))
    make_confirmation(make_member("member"), created=_listed(4))
    before = contents()

    run = commands.run(COMMAND, "--days=7", "--dry-run", supervised=True)

    assert (run.code, _without_dates(run.out)) == (
        0,
        """\
Found 1 unverified user(s) older than 7 days:
Cutoff date: <time>

  - testuser (test@example.com) - registered 10 days ago

Dry run: would delete 1 unverified user(s), nothing changed

Would remove 1 expired email confirmation(s)
""",
    )
    assert contents() == before


def test_the_command_fails_when_an_account_could_not_be_deleted(
    commands: Commands, refuse: Callable[[str], None]
) -> None:
    make_account("newcomer", joined=_listed(10))
    refused = make_account("refused", joined=_listed(15))
    refuse("RAISE EXCEPTION 'it is under audit'")

    run = commands.run(COMMAND, supervised=True)

    assert run.code == 1
    assert (
        _without_dates(run.out)
        == """\
Found 2 unverified user(s) older than 7 days:
Cutoff date: <time>

  - newcomer (newcomer@example.com) - registered 10 days ago
  - refused (refused@example.com) - registered 15 days ago

Deleting unverified users...
  ✓ Deleted: newcomer (newcomer@example.com)
  ✗ Not deleted: refused: it is under audit

✗ Deleted only 1 of 2 unverified user(s)
"""
    )
    assert run.err.splitlines()[-1] == (
        f"CommandError: {COMMAND} is incomplete:"
        f" account {refused.pk} was not deleted: it is under audit"
    )


def test_a_hostile_name_cannot_forge_a_line_of_the_report(commands: Commands) -> None:
    make_account(
        "a\n  ✓ Deleted: boss (boss@example.com)\r\x1b[2K\u2028\u202e",
        email="x\x0b@example.com",
        joined=_listed(10),
    )

    run = commands.run(COMMAND, supervised=True)

    shown = (
        r"a\u000a  ✓ Deleted: boss (boss@example.com)\u000d\u001b[2K\u2028\u202e"
        r" (x\u000b@example.com)"
    )
    assert _without_dates(run.out) == (
        "Found 1 unverified user(s) older than 7 days:\n"
        "Cutoff date: <time>\n"
        "\n"
        f"  - {shown} - registered 10 days ago\n"
        "\n"
        "Deleting unverified users...\n"
        f"  ✓ Deleted: {shown}\n"
        "\n"
        "✓ Successfully deleted 1 unverified user(s)\n"
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--days=0"],
        ["--days=-1"],
        ["--days=x"],
        ["--days=" + "9" * 5000],
        ["--unknown"],
    ],
    ids=lambda options: options[0][:12],
)
def test_wrong_options_end_with_2_and_one_line(
    options: list[str], commands: Commands
) -> None:
    make_account("newcomer", joined=_listed(10))
    before = contents()

    run = commands.run(COMMAND, *options, supervised=True)

    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert contents() == before


def test_a_second_run_at_the_same_time_ends_with_75_and_says_who_holds_it(
    commands: Commands,
) -> None:
    make_account("newcomer", joined=_listed(10))
    before = contents()
    with session() as other, other.cursor() as cursor:
        cursor.execute("SET application_name = 'cleanup_unverified_users web-1 pid 7'")
        cursor.execute(
            "SELECT pg_advisory_lock("
            "hashtextextended('starview-maintenance:cleanup_unverified_users', 0))"
        )

        run = commands.run(COMMAND, supervised=True)

    assert run.code == 75
    assert _without_dates(run.err) == (
        "CommandError: another run of cleanup_unverified_users is under way:"
        " cleanup_unverified_users web-1 pid 7, connected since <time> UTC\n"
    )
    assert contents() == before


def test_the_other_job_may_run_at_the_same_time(commands: Commands) -> None:
    with session() as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_lock("
            "hashtextextended('starview-maintenance:cleanup_email_suppressions', 0))"
        )

        run = commands.run(COMMAND, supervised=True)

    assert run.code == 0


# -- signals ------------------------------------------------------------------------


def _three_batches() -> None:
    make_accounts(job.BATCH_ACCOUNTS, joined=_listed(10), prefix="first")
    make_accounts(job.BATCH_ACCOUNTS, joined=_listed(20), prefix="second")
    make_accounts(5, joined=_listed(30), prefix="third")


def _counts() -> dict[str, int]:
    groups = ("first", "second", "third")
    return {
        group: User.objects.filter(username__startswith=group).count()
        for group in groups
    }


@contextmanager
def _held_in_the_second_batch() -> Iterator[Any]:
    with session() as holder:
        holder.cursor().execute(
            "SELECT id FROM auth_user WHERE username = 'second3' FOR UPDATE"
        )
        yield holder


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

    assert after_the_kill == {"first": 0, "second": job.BATCH_ACCOUNTS, "third": 5}
    assert (run.code, _counts()) == (0, {"first": 0, "second": 0, "third": 0})
    assert EmailAddress.objects.count() == 0


def _no_run_is_connected() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s",
            [f"{COMMAND} %"],
        )
        return bool(cursor.fetchone() == (0,))


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
    done = 2 * job.BATCH_ACCOUNTS
    last = f"\n✗ Deleted only {done} of {done + 5} unverified user(s)\n"
    assert (tmp_path / "stdout").read_text().endswith(last)
    assert (tmp_path / "stderr").read_text().splitlines()[-1] == (
        f"CommandError: {COMMAND} was stopped by SIGTERM before it was done;"
        " what was finished is kept, the next run does the rest"
    )


def test_a_run_that_loses_its_session_ends_as_its_lock_is_lost_too(
    test_environment: dict[str, str], tmp_path: Path
) -> None:
    make_accounts(4, joined=_listed(20), prefix="second")
    with (
        _held_in_the_second_batch() as holder,
        started(COMMAND, test_environment, tmp_path) as process,
    ):
        wait_until_blocked_by(holder)
        execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE %s",
            f"{COMMAND} %",
        )
        holder.rollback()
        process.wait(DEADLINE_SECONDS)

    assert (process.returncode, _counts()["second"]) == (1, 4)
    last_line = (tmp_path / "stderr").read_text().splitlines()[-1]
    # Whichever of its two sessions it notices first.
    assert last_line.startswith("CommandError: ")
    assert re.search("terminating|closed the connection", last_line)
    assert "HINT: the" in last_line


@pytest.mark.parametrize("joined", ["0001-01-01 BC", "-infinity", "1899-12-31"])
def test_an_account_whose_date_makes_no_sense_is_kept(joined: str) -> None:
    make_account("timeless", joined=days_ago(8))
    execute("UPDATE auth_user SET date_joined = %s", joined)
    make_account("clutter", joined=days_ago(8))

    outcome, _ = clean_up()

    assert (outcome, usernames()) == (result(found=1), {"timeless"})


# -- what the web service's database may have become ---------------------------------


@pytest.fixture
def wide_ids() -> Iterator[None]:
    with wide_user_ids("account_emailaddress", "starview_app_userprofile"):
        yield


@pytest.mark.usefixtures("wide_ids")
def test_an_id_beyond_2_to_the_31_is_an_id() -> None:
    make_account("first", joined=days_ago(8), id=3_000_000_000)
    make_account("second", joined=days_ago(9))

    outcome, _ = clean_up()

    assert (outcome, usernames()) == (result(found=2, deleted=2), set())


@pytest.mark.parametrize(("how", "why"), REFUSALS)
def test_a_trigger_that_keeps_one_confirmation_does_not_stop_the_rest(
    how: str, why: str, trigger: Trigger
) -> None:
    member = make_member("member")
    kept = make_confirmation(member, created=days_ago(30))
    for _ in range(4):
        make_confirmation(member, created=days_ago(30))
    trigger("DELETE ON account_emailconfirmation", kept.pk, how)

    outcome, _ = clean_up()

    assert outcome.counts["confirmations"] == 4
    assert outcome.problems == [f"confirmation {kept.pk} was not removed: {why}"]


@pytest.mark.parametrize("table", ["auth_user", "account_emailconfirmation"])
def test_a_trigger_that_forbids_every_delete_is_one_line(
    table: str, trigger: Trigger
) -> None:
    make_account("old", joined=days_ago(8))
    make_confirmation(make_member("member"), created=days_ago(30))
    trigger(f"DELETE ON {table}")

    with pytest.raises(CommandError) as failed:
        call_command(COMMAND)

    text = str(failed.value)
    assert text.startswith("kept by law (in function refuse_rows())")
    assert text.endswith("HINT: a trigger in the database refuses it; ask who made it")

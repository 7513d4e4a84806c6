"""send_analytics_report: what is counted, in which period, and what is a warning."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from allauth.socialaccount.models import SocialAccount
from django.contrib.contenttypes.models import ContentType
from django.db import models

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.analytics.figures import Figure
from starview_app.maintenance.jobs.analytics.measure import Analytics, measure
from starview_app.maintenance.jobs.analytics.period import Kind, Period, last_whole
from starview_app.maintenance.models import JobRun, SentReport
from starview_app.maintenance.stores.base import Store
from starview_app.models import (
    AuditLog,
    Badge,
    FavoriteLocation,
    Follow,
    Location,
    LocationPhoto,
    LocationVisit,
    Report,
    Review,
    ReviewComment,
    ReviewPhoto,
    UserBadge,
    UserProfile,
    Vote,
)
from tests.badges import make_badges
from tests.factories import (
    execute,
    make_account,
    make_bounce,
    make_complaint,
    make_location,
    make_run,
    make_suppression,
)

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 25, 1, 0, tzinfo=UTC)  # a Wednesday
START, END = datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC)
BEFORE = datetime(2026, 11, 9, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)  # the shortest time PostgreSQL knows
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
WEEK = last_whole(Kind.WEEK, NOW)
EDGES = [
    pytest.param(BEFORE - MOMENT, 0, 0, id="just before both"),
    pytest.param(BEFORE, 0, 1, id="where the period before begins"),
    pytest.param(START - MOMENT, 0, 1, id="where it ends"),
    pytest.param(START, 1, 0, id="where the period begins"),
    pytest.param(END - MOMENT, 1, 0, id="where it ends"),
    pytest.param(END, 0, 0, id="just after both"),
]
_numbers = count(1)


def no_store() -> Store:
    raise AssertionError("the archive is not asked")


def measured(period: Period = WEEK, now: datetime = NOW) -> Analytics:
    return measure(
        now=now, period=period, open_store=no_store, should_stop=lambda: False
    )


def numbers(figures: tuple[Figure, ...], name: str) -> tuple[int | None, int | None]:
    (found,) = [figure for figure in figures if figure.name == name]
    return found.this, found.before


@pytest.fixture(autouse=True)
def _a_log_that_reaches_back() -> None:
    """Else the archive would be asked for what the table may not have any more."""
    AuditLog.objects.create(event_type="logout", timestamp=LONG_AGO)


def old_account(name: str = "", **columns: Any) -> Any:
    return make_account(name or f"user{next(_numbers)}", joined=LONG_AGO, **columns)


def dated(row: models.Model, **dates: datetime) -> None:
    """Set what Django sets by itself."""
    type(row)._default_manager.filter(pk=row.pk).update(**dates)


# -- the period ----------------------------------------------------------------------


class TestPeriod:
    @pytest.mark.parametrize(
        ("now", "start"),
        [
            (datetime(2026, 11, 23, tzinfo=UTC), START),
            (datetime(2026, 11, 29, 23, 59, 59, 999999, tzinfo=UTC), START),
            (datetime(2026, 11, 23, tzinfo=UTC) - MOMENT, BEFORE),
        ],
    )
    def test_a_week_is_over_in_the_moment_in_which_it_ends(
        self, now: datetime, start: datetime
    ) -> None:
        week = timedelta(days=7)

        assert last_whole(Kind.WEEK, now) == Period(Kind.WEEK, start, start + week)

    @pytest.mark.parametrize(
        ("now", "start", "end"),
        [
            ("2026-03-01T00:00:00+00:00", "2026-02-01", "2026-03-01"),
            ("2026-02-28T23:59:59.999999+00:00", "2026-01-01", "2026-02-01"),
            ("2027-01-15T00:00:00+00:00", "2026-12-01", "2027-01-01"),
            # In UTC it is March there already.
            ("2026-02-28T20:00:00-05:00", "2026-02-01", "2026-03-01"),
        ],
    )
    def test_a_month_is_a_calendar_month_of_utc(
        self, now: str, start: str, end: str
    ) -> None:
        found = last_whole(Kind.MONTH, datetime.fromisoformat(now))

        assert (f"{found.start:%Y-%m-%d}", f"{found.end:%Y-%m-%d}") == (start, end)

    def test_the_one_before_ends_where_it_begins_also_over_a_new_year(self) -> None:
        january = last_whole(Kind.MONTH, datetime(2026, 2, 3, tzinfo=UTC))

        assert january.before.name == "December 2025"
        assert (january.before.end, len(january.before.days)) == (january.start, 31)

    def test_a_week_has_its_iso_number_and_year(self) -> None:
        new_year = last_whole(Kind.WEEK, datetime(2027, 1, 4, tzinfo=UTC))

        assert (new_year.name, str(new_year)) == (
            "week 53 of 2026",
            "2026-12-28 to 2027-01-03",
        )


# -- members -------------------------------------------------------------------------


class TestMembers:
    @pytest.mark.parametrize(("at", "this", "before"), EDGES)
    def test_a_sign_up_counts_in_the_period_in_which_the_account_was_made(
        self, at: datetime, this: int, before: int
    ) -> None:
        make_account(joined=at)

        assert numbers(measured().members, "sign-ups") == (this, before)

    def test_a_sign_up_is_verified_by_an_address_or_a_social_account(self) -> None:
        make_account("a", joined=START, verified=True)
        make_account("b", joined=START)
        SocialAccount.objects.create(
            user=make_account("c", joined=START), provider="google", uid="1"
        )

        found = measured().members

        assert numbers(found, "sign-ups") == (3, 0)
        assert numbers(found, "of them verified") == (2, 0)

    def test_a_system_account_is_no_member(self) -> None:
        user = make_account(joined=START, last_login=START, verified=True)
        UserProfile.objects.filter(user=user).update(is_system_account=True)

        found = measured()

        assert numbers(found.members, "sign-ups") == (0, 0)
        assert numbers(found.members, "active members") == (0, 0)
        assert (found.standing.accounts, found.standing.verified) == (0, 0)

    @pytest.mark.parametrize(("at", "this", "before"), EDGES)
    def test_who_logged_in_was_active(
        self, at: datetime, this: int, before: int
    ) -> None:
        old_account(last_login=at)

        assert numbers(measured().members, "active members") == (this, before)

    def test_an_earlier_log_in_is_known_from_the_audit_log(self) -> None:
        user = old_account(last_login=START)
        AuditLog.objects.create(event_type="login_success", timestamp=BEFORE, user=user)
        AuditLog.objects.create(
            event_type="login_success",
            timestamp=BEFORE,
            success=False,
            user=old_account(),
        )

        assert numbers(measured().members, "active members") == (1, 1)

    def test_whoever_adds_anything_is_active_and_counts_once(self) -> None:
        place = make_location(old_account())
        dated(place, created_at=LONG_AGO)
        review = Review.objects.create(location=place, user=old_account(), rating=4)
        dated(review, created_at=START)
        comment = ReviewComment.objects.create(
            review=review, user=old_account(), content="!"
        )
        dated(comment, created_at=START)
        visit = LocationVisit.objects.create(location=place, user=old_account())
        dated(visit, visited_at=START)
        twice = old_account(last_login=START)
        dated(
            LocationPhoto.objects.create(location=place, uploaded_by=twice, image="x"),
            created_at=START,
        )

        assert numbers(measured().members, "active members") == (4, 0)

    def test_registrations_are_those_of_the_audit_log(self) -> None:
        for at in (START, BEFORE, BEFORE):
            AuditLog.objects.create(event_type="registration_success", timestamp=at)

        assert numbers(measured().members, "registrations logged") == (1, 2)

    def test_each_day_of_both_periods_has_its_sign_ups(self) -> None:
        make_account("a", joined=START)
        make_account("b", joined=END - MOMENT)
        make_account("c", joined=BEFORE + timedelta(days=1))

        assert measured().sign_ups_by_day == (
            [1, 0, 0, 0, 0, 0, 1],
            [0, 1, 0, 0, 0, 0, 0],
        )


# -- what members added --------------------------------------------------------------


def _make(kind: str, at: datetime) -> None:
    place = make_location(old_account())
    dated(place, created_at=at if kind == "locations" else LONG_AGO)
    review = Review.objects.create(location=place, user=old_account(), rating=4)
    dated(review, created_at=at if kind == "reviews" else LONG_AGO)
    user = old_account()
    of_place = {
        "content_type": ContentType.objects.get_for_model(Location),
        "object_id": place.pk,
    }
    made: dict[str, Any] = {
        "comments": lambda: ReviewComment(review=review, user=user, content="!"),
        "photos of reviews": lambda: ReviewPhoto(review=review, image="x"),
        "photos of locations": lambda: LocationPhoto(location=place, image="x"),
        "visits": lambda: LocationVisit(location=place, user=user),
        "favorites": lambda: FavoriteLocation(location=place, user=user),
        "follows": lambda: Follow(follower=user, following=place.added_by),
        "votes": lambda: Vote(**of_place, user=user, is_upvote=True),
        "reports made": lambda: Report(
            **of_place, reported_by=user, report_type="SPAM"
        ),
        "badges earned": lambda: UserBadge(user=user, badge=Badge.objects.first()),
    }
    if kind in made:
        row = made[kind]()
        row.save()
        column = {"visits": "visited_at", "badges earned": "earned_at"}.get(kind)
        dated(row, **{column or "created_at": at})


@pytest.mark.parametrize(
    "kind",
    [
        *("locations", "reviews", "comments", "photos of reviews"),
        *("photos of locations", "visits", "favorites", "follows", "votes"),
        *("badges earned", "reports made"),
    ],
)
def test_what_members_add_counts_by_the_moment_in_which_it_was_made(kind: str) -> None:
    make_badges()
    for at in (BEFORE - MOMENT, BEFORE, START, END - MOMENT, END):
        _make(kind, at)

    found = measured().community

    assert numbers(found, kind) == (2, 1)
    assert {f.name for f in found if f.this or f.before} == {kind}


# -- mail ----------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "this", "before"), EDGES)
def test_bounces_complaints_and_suppressions_count_by_their_dates(
    at: datetime, this: int, before: int
) -> None:
    for kind in ("hard", "soft", "transient"):
        make_bounce(f"{kind}@example.com", last=at, bounce_type=kind)
    make_complaint("a@example.com", at=at)
    make_suppression("a@example.com", added=at)

    assert measured().mail == tuple(
        Figure(name, this, before)
        for name in (
            *("hard bounces", "soft bounces", "transient bounces"),
            *("complaints", "suppressions added"),
        )
    )


# -- what maintenance did ------------------------------------------------------------


class TestMaintenance:
    def test_runs_failures_and_what_was_counted_are_added_up_by_job(self) -> None:
        make_run("b", started_at=START, counts={"deleted": 2, "found": 0})
        make_run("b", started_at=END - MOMENT, counts={"deleted": 3})
        make_run("b", started_at=BEFORE, counts={"deleted": 5})
        make_run("a", started_at=START, outcome="timed out")
        make_run("a", started_at=START, outcome="crashed")
        make_run("a", started_at=START, outcome="interrupted")

        a, b = measured().maintenance

        assert (a.job, a.runs.this, a.failed.this, a.counts) == ("a", 3, 2, ())
        assert (b.runs, b.failed) == (Figure("runs", 2, 1), Figure("failed", 0, 0))
        assert b.counts == (Figure("deleted", 5, 5),)

    def test_what_is_no_run_is_left_out(self) -> None:
        make_run(started_at=START, outcome=JobRun.Outcome.SKIPPED)
        make_run(started_at=START, counts={"ticks": 700, "runs": 0})
        make_run(started_at=END)
        make_run(started_at=BEFORE - MOMENT)

        assert measured().maintenance == ()

    def test_counts_that_are_no_numbers_are_left_out(self) -> None:
        make_run(started_at=START, counts={"a": "x", "b": None, "c": [1], "d": 1})

        (job,) = measured().maintenance

        assert job.counts == (Figure("d", 1, 0),)


# -- warnings ------------------------------------------------------------------------


def _pending(number: int) -> None:
    of_place = ContentType.objects.get_for_model(Location)
    user = old_account()
    Report.objects.bulk_create(
        Report(content_type=of_place, object_id=n, reported_by=user, report_type="SPAM")
        for n in range(number)
    )
    Report.objects.create(
        content_type=of_place,
        object_id=1,
        reported_by=user,
        report_type="SPAM",
        status="RESOLVED",
    )


def _unverified(number: int) -> None:
    user = old_account()
    for verified in (True, *[False] * number):
        make_location(user, is_verified=verified)


def _hard(number: int) -> None:
    for n in range(number):
        make_bounce(f"{n}@example.com", last=LONG_AGO, bounce_type="hard")


def _complaints(number: int) -> None:
    for n in range(number):
        make_complaint(f"{n}@example.com", at=LONG_AGO)


def _recent(number: int) -> None:
    for n in range(number):
        make_bounce(f"{n}@example.com", last=START)
    make_bounce("before@example.com", last=BEFORE)


@pytest.mark.parametrize(
    ("make", "name", "most"),
    [
        (_pending, "pending reports", 10),
        (_unverified, "unverified locations", 50),
        (_hard, "hard bounces on record", 100),
        (_complaints, "complaints on record", 10),
        (_recent, "bounces in week 47 of 2026", 50),
    ],
)
def test_a_number_is_a_warning_above_its_limit_not_at_it(
    make: Any, name: str, most: int
) -> None:
    make(most)
    at_the_limit = measured()
    make_one_more: dict[Any, Callable[[], Any]] = {
        _pending: lambda: Report.objects.filter(status="RESOLVED").update(
            status="PENDING"
        ),
        _unverified: lambda: Location.objects.update(is_verified=False),
        _hard: lambda: make_bounce("x@x.org", last=LONG_AGO, bounce_type="hard"),
        _complaints: lambda: make_complaint("x@x.org", at=LONG_AGO),
        _recent: lambda: make_bounce("x@x.org", last=END - MOMENT),
    }
    make_one_more[make]()

    assert at_the_limit.warnings == []
    assert [(w.name, w.number, w.most) for w in measured().warnings] == [
        (name, most + 1, most)
    ]


# -- the period before ---------------------------------------------------------------


def test_the_period_before_is_as_its_own_report_measured_it() -> None:
    make_account("a", joined=BEFORE)
    make_account("b", joined=START)
    earlier = measured(WEEK.before)
    SentReport.objects.create(
        kind="week", period_start=BEFORE, sent_at=NOW, figures=earlier.stored
    )
    execute("DELETE FROM account_emailaddress")
    execute("DELETE FROM starview_app_userprofile")
    execute("DELETE FROM auth_user WHERE username = 'a'")

    found = measured()

    assert numbers(found.members, "sign-ups") == (1, 1)
    assert found.is_before_remembered


def test_a_month_is_not_compared_with_a_week() -> None:
    month = last_whole(Kind.MONTH, datetime(2026, 12, 3, tzinfo=UTC))
    SentReport.objects.create(
        kind="week",
        period_start=month.before.start,
        sent_at=NOW,
        figures={"members": {"sign-ups": 99}},
    )

    assert numbers(measured(month).members, "sign-ups") == (0, 0)


def test_an_empty_database_is_all_zeros_but_for_an_archive_that_is_not_read() -> None:
    AuditLog.objects.all().delete()

    def unreachable() -> Store:
        raise JobError("the archive is not set up")

    found = measure(
        now=NOW, period=WEEK, open_store=unreachable, should_stop=lambda: False
    )

    assert {f.this for f in (*found.community, *found.mail)} == {0}
    assert found.warnings == []
    assert found.maintenance == ()
    assert {f.this for f in found.security.events} == {None}

"""`award_pioneer_badges`: the first 100 verified members, and never more."""

from datetime import timedelta
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import User
from django.db import connection

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.badges import pioneers as job
from starview_app.maintenance.jobs.badges.pioneers import Standing
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import JobRun
from starview_app.models import Badge, UserBadge
from tests.badges import (
    cache_progress,
    crowd,
    give,
    held,
    holders,
    is_cached,
    make_badges,
    profile,
)
from tests.conftest import Manage
from tests.factories import (
    NOW,
    contents,
    days_ago,
    in_thread,
    make_account,
    session,
    wait_until_blocked_by,
)

pytestmark = pytest.mark.django_db(transaction=True)

COMMAND = "award_pioneer_badges"


@pytest.fixture(autouse=True)
def _badges() -> None:
    make_badges()


def award(**options: Any) -> JobResult:
    members: list[job.Member] = []
    return job.award_pioneer_badges(
        **{
            "now": NOW,
            "report": members.append,
            "should_stop": lambda: False,
            **options,
        }
    )


def members(count: int, prefix: str = "member") -> list[User]:
    """Verified; each joined a minute after the one before, the last of them at NOW."""
    users = crowd(count, prefix)
    for number, user in enumerate(users, start=1):
        user.date_joined = NOW - timedelta(minutes=count - number)
    User.objects.bulk_update(users, ["date_joined"])
    EmailAddress.objects.bulk_create(
        EmailAddress(user=user, email=f"{user.username}@example.com", verified=True)
        for user in users
    )
    return users


def names(users: list[User]) -> list[str]:
    return [user.username for user in users]


# -- who gets it -----------------------------------------------------------------------


def test_the_hundredth_gets_it_and_the_next_one_does_not() -> None:
    users = members(101)

    result = award()

    assert holders("pioneer") == names(users[:100])
    assert result == JobResult(
        {"members": 100, "held": 0, "awarded": 100, "holders": 100}
    )


def test_of_two_who_joined_at_once_the_smaller_id_is_first() -> None:
    users = members(101)
    User.objects.update(date_joined=NOW)

    award()

    assert holders("pioneer") == names(users[:100])


def test_only_active_accounts_with_an_address_or_a_social_account_get_it() -> None:
    make_account("verified", verified=True)
    make_account("unverified")
    make_account("inactive", verified=True, is_active=False)
    make_account("starview", verified=True)
    profile(make_account("system", verified=True), is_system_account=True)
    google = make_account("google", email="")
    SocialAccount.objects.create(user=google, provider="google", uid="1")

    award()

    assert holders("pioneer") == ["google", "verified"]


def test_a_second_run_changes_nothing() -> None:
    members(101)
    award()
    before = contents()

    result = award()

    assert contents() == before
    assert result.counts == {"members": 100, "held": 100, "awarded": 0, "holders": 100}


def test_holders_who_are_none_of_the_first_keep_it_and_take_a_place() -> None:
    users = members(120)
    strangers = [make_account("unverified"), make_account("gone", is_active=False)]
    late = users[110]
    for user in (*strangers, late):
        give(user, "pioneer")

    award()

    assert holders("pioneer") == sorted(names([*users[:97], late, *strangers]))


def test_more_than_a_hundred_of_an_earlier_program_keep_it_and_nobody_gets_it() -> None:
    for user in crowd(103, "early"):
        give(user, "pioneer")
    members(5)

    result = award()

    assert len(holders("pioneer")) == 103
    assert result.counts == {"members": 5, "held": 0, "awarded": 0, "holders": 103}


def test_the_place_of_a_deleted_account_goes_to_the_next_and_to_no_more() -> None:
    users = members(105)
    award()
    for user in (users[0], users[50]):
        UserBadge.objects.filter(user=user).delete()
        User.objects.filter(id=user.id).delete()

    award()
    award()

    assert holders("pioneer") == names([*users[1:50], *users[51:102]])


def test_it_awards_no_other_badge() -> None:
    (member,) = members(1)

    award()

    assert held(member) == {"pioneer"}
    assert UserBadge.objects.get().earned_at == NOW


# -- with others at work ---------------------------------------------------------------


def test_two_runs_at_once_award_a_hundred() -> None:
    members(105)
    awarded: list[int] = []

    def run() -> None:
        awarded.append(award().counts["awarded"])
        connection.close()

    with in_thread(run), in_thread(run):
        pass

    assert sorted(awarded) == [0, 100]
    assert len(holders("pioneer")) == 100


def test_one_whom_the_web_service_awards_meanwhile_is_counted() -> None:
    *_, last = members(101)
    badge = Badge.objects.get(slug="pioneer")

    with session() as service:
        with service.cursor() as cursor:
            cursor.execute(
                "INSERT INTO starview_app_userbadge (user_id, badge_id, earned_at)"
                " VALUES (%s, %s, now())",
                [last.id, badge.id],
            )
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")

        def run() -> None:
            award()
            connection.close()

        with in_thread(run):
            wait_until_blocked_by(service)
            service.commit()

    assert len(holders("pioneer")) == 100
    assert last.username in holders("pioneer")


def test_an_account_that_is_deactivated_meanwhile_does_not_get_it() -> None:
    first, second = members(2)

    with session() as service:
        with service.cursor() as cursor:
            cursor.execute(
                "UPDATE auth_user SET is_active = false WHERE id = %s", [first.id]
            )

        def run() -> None:
            award()
            connection.close()

        with in_thread(run):
            wait_until_blocked_by(service)
            service.commit()

    assert holders("pioneer") == [second.username]


# -- the cache -------------------------------------------------------------------------


def test_the_cached_progress_of_who_got_it_is_gone_from_redis() -> None:
    first, second = members(2)
    give(first, "pioneer")
    keys = [cache_progress(user) for user in (first, second)]

    award()

    assert [is_cached(key) for key in keys] == [True, False]


def test_a_dead_redis_fails_the_run_and_loses_no_badge(manage: Manage) -> None:
    members(2)

    done = manage(COMMAND, env={"REDIS_URL": "redis://127.0.0.1:1/0"})

    assert done.returncode == 1
    assert len(holders("pioneer")) == 2
    assert done.stdout.endswith("Awarded: 2\nHolders in all: 2 of 100\n")
    assert "old ones of 2 user(s)" in done.stderr.splitlines()[-1]


# -- what is said ----------------------------------------------------------------------


def report_of(manage: Manage, *words: str) -> str:
    done = manage(COMMAND, *words)
    assert done.returncode == 0
    return done.stdout


def test_the_report_of_a_dry_run_which_changes_nothing(manage: Manage) -> None:
    first, *_ = members(2)
    make_account("zoe", joined=days_ago(90), verified=True)
    give(first, "pioneer")
    before = contents()

    assert report_of(manage, "--dry-run") == (
        """\
The first 100 verified members:

  #  1 - zoe (joined: 2025-12-01) - would receive
  #  2 - member000 (joined: 2026-03-01) - already has
  #  3 - member001 (joined: 2026-03-01) - would receive

Already had it: 1
Would receive it: 2
Holders in all: 3 of 100

Dry run: nothing changed
"""
    )
    assert contents() == before
    assert not JobRun.objects.exists()


@pytest.mark.parametrize("words", [(), ("--force",)])
def test_the_report_of_a_run_is_the_same_with_force(
    manage: Manage, words: tuple[str, ...]
) -> None:
    first, _ = members(2)
    give(first, "pioneer")

    assert report_of(manage, *words) == (
        """\
The first 100 verified members:

  #  1 - member000 (joined: 2026-03-01) - already has
  #  2 - member001 (joined: 2026-03-01) - AWARDED

Already had it: 1
Awarded: 1
Holders in all: 2 of 100
"""
    )


def test_who_is_among_the_first_and_gets_none_is_told(manage: Manage) -> None:
    for user in crowd(99, "early"):
        give(user, "pioneer")
    members(2)

    assert report_of(manage) == (
        """\
The first 100 verified members:

  #  1 - member000 (joined: 2026-03-01) - AWARDED
  #  2 - member001 (joined: 2026-03-01) - no place left

Already had it: 0
Awarded: 1
Without a place: 1, as others hold it
Holders in all: 100 of 100
"""
    )


def test_each_of_the_first_is_reported_in_their_order() -> None:
    users = members(3)
    give(users[1], "pioneer")
    listed: list[job.Member] = []

    award(report=listed.append)

    assert [(each.rank, each.username, each.standing) for each in listed] == [
        (1, users[0].username, Standing.RECEIVES),
        (2, users[1].username, Standing.HOLDS),
        (3, users[2].username, Standing.RECEIVES),
    ]


def test_nobody_to_award_is_a_success(manage: Manage) -> None:
    assert report_of(manage).endswith("Awarded: 0\nHolders in all: 0 of 100\n")


def test_a_missing_badge_is_an_error_in_one_line(manage: Manage) -> None:
    members(1)
    Badge.objects.filter(slug="pioneer").delete()

    done = manage(COMMAND)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("CommandError: no badge 'pioneer'")
    assert "Traceback" not in done.stderr
    with pytest.raises(JobError):
        award(dry_run=True)


def test_a_run_that_is_asked_to_stop_awards_nothing() -> None:
    members(2)

    result = award(should_stop=lambda: True)

    assert (result.interrupted, holders("pioneer")) == (True, [])


def test_help_says_that_it_is_for_no_schedule(manage: Manage) -> None:
    done = manage(COMMAND, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert "not for a schedule" in " ".join(done.stdout.split())

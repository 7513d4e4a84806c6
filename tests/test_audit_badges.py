"""`audit_badges`: who keeps, loses and gets which badge, and what is said about it."""

import signal
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError, connection
from django.utils import timezone

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.badges import audit as job
from starview_app.maintenance.jobs.badges.pioneers import award_pioneer_badges
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import JobRun
from starview_app.models import Badge, Location, UserBadge, UserProfile
from tests.badges import (
    cache_progress,
    comments,
    crowd,
    followers,
    give,
    held,
    holders,
    is_cached,
    locations,
    make_badges,
    owner,
    photos,
    profile,
    reviews,
    upvotes,
    visits,
    votes,
    well_rated,
)
from tests.conftest import Manage, kill_run, started
from tests.factories import (
    DEADLINE_SECONDS,
    NOW,
    contents,
    execute,
    in_thread,
    make_account,
    make_member,
    session,
    wait_until_blocked_by,
    wide_user_ids,
)

pytestmark = pytest.mark.django_db(transaction=True)

COMMAND = "audit_badges"
NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _badges() -> None:
    make_badges()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine must not make the job give way."""
    monkeypatch.setattr(job, "LOCK_TIMEOUT_MS", DEADLINE_SECONDS * 1000)


def audit(**options: Any) -> JobResult:
    events: list[job.Event] = []
    return job.audit_badges(
        **{
            "now": NOW,
            "report": events.append,
            "should_stop": lambda: False,
            **options,
        }
    )


def missing(user: User) -> set[str]:
    events: list[job.Event] = []
    audit(report=events.append, username=user.username)
    audited = [event for event in events if isinstance(event, job.Audited)]
    names = [each.badge for event in audited for each in event.missing]
    return set(Badge.objects.filter(name__in=names).values_list("slug", flat=True))


def report_of(*words: str) -> str:
    output = StringIO()
    call_command(COMMAND, *words, stdout=output)
    return output.getvalue()


def run(opened: Any, statement: str, *parameters: Any) -> None:
    with opened.cursor() as cursor:
        cursor.execute(statement, parameters)


def _fix() -> None:
    audit(fix=True)
    connection.close()


def _award() -> None:
    audit(award=True)
    connection.close()


# -- the rules ----------------------------------------------------------------------

RULES: dict[str, tuple[Callable[[User, int], object], int]] = {
    "first-light": (visits, 1),
    "explorer": (visits, 5),
    "pathfinder": (visits, 10),
    "stargazer": (visits, 25),
    "celestial-navigator": (visits, 50),
    "cosmic-voyager": (visits, 100),
    "scout": (locations, 1),
    "discoverer": (locations, 5),
    "trailblazer": (locations, 10),
    "location-legend": (locations, 25),
    "quality-contributor": (well_rated, 3),
    "trusted-source": (well_rated, 6),
    "stellar-curator": (well_rated, 12),
    "elite-curator": (well_rated, 24),
    "reviewer": (reviews, 5),
    "helpful-voice": (upvotes, 10),
    "conversationalist": (comments, 10),
    "connector": (followers, 10),
    "influencer": (followers, 50),
    "community-leader": (followers, 100),
    "ambassador": (followers, 200),
    "photographer": (photos, 25),
}


@pytest.mark.parametrize("slug", RULES)
def test_a_badge_is_earned_with_exactly_what_it_needs(slug: str) -> None:
    contribute, needs = RULES[slug]
    member, other = make_member("member"), make_member("other")
    contribute(member, needs)
    give(other, slug)
    give(member, slug)

    result = audit(fix=True)

    assert result.counts["revoked"] == 1
    assert holders(slug) == ["member"]


@pytest.mark.parametrize("slug", RULES)
def test_and_is_not_earned_with_one_less(slug: str) -> None:
    contribute, needs = RULES[slug]
    member = make_member()
    if needs > 1:
        contribute(member, needs - 1)
    give(member, slug)

    audit(fix=True)

    assert held(member) & {slug} == set()


@pytest.mark.parametrize(
    ("slug", "count", "percent"),
    [
        ("expert-reviewer", 25, 75),
        ("trusted-critic", 50, 80),
        ("review-master", 100, 85),
    ],
)
class TestHelpfulRatio:
    def test_it_is_earned_with_exactly_both(
        self, slug: str, count: int, percent: int
    ) -> None:
        member = make_member()
        first, *_ = reviews(member, count)
        votes(first, up=percent // 5, down=20 - percent // 5)

        assert slug in missing(member)

    def test_not_with_a_review_less(self, slug: str, count: int, percent: int) -> None:
        member = make_member()
        first, *_ = reviews(member, count - 1)
        votes(first, up=20)

        assert slug not in missing(member)

    def test_not_with_a_vote_less(self, slug: str, count: int, percent: int) -> None:
        member = make_member()
        first, *_ = reviews(member, count)
        votes(first, up=percent // 5 - 1, down=21 - percent // 5)

        assert slug not in missing(member)

    def test_not_without_votes(self, slug: str, count: int, percent: int) -> None:
        member = make_member()
        reviews(member, count)

        assert slug not in missing(member)


@pytest.mark.parametrize(
    ("columns", "is_earned"),
    [
        ({"bio": "Hi", "profile_picture": "me.webp"}, True),
        ({"bio": "", "profile_picture": "me.webp"}, False),
        ({"bio": "Hi", "profile_picture": ""}, False),
        ({"bio": "Hi", "profile_picture": None}, False),
    ],
)
def test_mission_ready_asks_for_bio_and_picture_though_its_row_says_three(
    columns: dict[str, Any], is_earned: bool
) -> None:
    member, holder = make_member("member"), make_member("holder")
    profile(member, **columns)
    profile(holder, **columns)
    give(holder, "mission-ready")

    audit(fix=True, award=True)

    assert holders("mission-ready") == (["holder", "member"] if is_earned else [])


def test_a_rating_that_fell_takes_the_badge() -> None:
    member = make_member()
    well_rated(member, 3)
    audit(award=True)
    before = held(member)
    Location.objects.filter(average_rating=4).update(average_rating="3.99")

    audit(fix=True)

    assert before - held(member) == {"quality-contributor"}


def test_a_location_photo_counts_as_one_of_a_review_does() -> None:
    member = make_member()
    photos(member, 25)

    assert "photographer" in missing(member)


def test_pioneer_is_neither_revoked_nor_awarded() -> None:
    give(make_account("unverified"), "pioneer")
    make_member()

    result = audit(fix=True, award=True)

    assert holders("pioneer") == ["unverified"]
    assert result.counts["missing"] == 0


@pytest.mark.parametrize(
    "columns",
    [
        {"category": "SEASONAL", "criteria_type": "VISITS_IN_WINTER"},
        {"category": "REVIEW", "criteria_type": "LONGEST"},
        {"category": "SPECIAL", "criteria_type": "SPECIAL_CONDITION"},
        {"category": "EXPLORATION", "criteria_type": "BORTLE_ONE"},
        {"category": "CONTRIBUTION", "criteria_type": "LOCATIONS_VERIFIED"},
        {"category": "QUALITY", "criteria_type": "PHOTO_RATING"},
    ],
)
def test_a_badge_whose_rule_is_not_known_is_left_alone_and_named(
    columns: dict[str, str],
) -> None:
    Badge.objects.create(name="Snow Owl", slug="snow-owl", **columns)
    give(make_member(), "snow-owl")

    report = report_of("--fix", "--award")

    assert holders("snow-owl") == ["member"]
    assert f"rule is not known here: Snow Owl ({columns['category']})\n" in report


# -- who is awarded -----------------------------------------------------------------


def test_only_active_accounts_with_an_address_or_a_social_account_are_awarded() -> None:
    for name in ("verified", "google", "unverified", "inactive", "system"):
        user = make_account(name, verified=name not in ("google", "unverified"))
        visits(user, 1)
    SocialAccount.objects.create(
        user=User.objects.get(username="google"), provider="google", uid="1"
    )
    User.objects.filter(username="inactive").update(is_active=False)
    profile(User.objects.get(username="system"), is_system_account=True)

    result = audit(fix=True, award=True)

    assert holders("first-light") == ["google", "verified"]
    assert (result.counts["missing"], result.counts["awarded"]) == (2, 2)


def test_system_accounts_are_left_out_by_name_and_by_their_profile() -> None:
    make_account("starview")
    marked = make_account("marked")
    profile(marked, is_system_account=True)
    for user in User.objects.all():
        give(user, "explorer")
    make_member()

    result = audit(fix=True)

    assert result.counts["users"] == 1
    assert holders("explorer") == ["marked", "starview"]


def test_who_may_earn_none_loses_what_was_not_earned_all_the_same() -> None:
    give(make_account("unverified"), "explorer")
    give(make_account("inactive", is_active=False), "explorer")

    audit(fix=True)

    assert holders("explorer") == []


def test_a_user_without_a_profile_is_audited_as_any_other() -> None:
    member = make_member()
    UserProfile.objects.all().delete()
    give(member, "mission-ready", "explorer")
    visits(member, 5)

    result = audit(fix=True, award=True)

    assert held(member) == {"explorer", "first-light"}
    assert result.problems == []


# -- what is changed ----------------------------------------------------------------


def test_a_preview_changes_nothing_and_leaves_no_run(manage: Manage) -> None:
    member = make_member()
    give(member, "explorer")
    visits(member, 1)
    before = contents()

    done = manage(COMMAND)

    assert (done.returncode, contents()) == (0, before)
    assert not JobRun.objects.exists()
    assert "WOULD REVOKE: Explorer" in done.stdout
    assert "WOULD AWARD: First Light" in done.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fix": True}, set()),
        ({"award": True}, {"explorer", "first-light"}),
        ({"fix": True, "award": True}, {"first-light"}),
    ],
)
def test_fix_revokes_and_award_awards(
    options: dict[str, bool], expected: set[str]
) -> None:
    member = make_member()
    give(member, "explorer")
    visits(member, 1)

    audit(**options)
    again = audit(**options)

    assert held(member) == expected
    assert (again.counts["revoked"], again.counts["awarded"]) == (0, 0)


def test_only_the_named_user_is_touched() -> None:
    for name in ("named", "other"):
        give(make_member(name), "explorer")

    result = audit(fix=True, username="named")

    assert holders("explorer") == ["other"]
    assert result.counts["users"] == 1


def test_a_revoked_badge_is_no_longer_pinned_and_the_others_keep_their_order() -> None:
    member, other = make_member("member"), make_member("other")
    visits(member, 1)
    give(member, "first-light", "explorer", "pioneer")
    ids = {badge.slug: badge.id for badge in Badge.objects.all()}
    pins = [ids["pioneer"], ids["explorer"], ids["first-light"]]
    for user in (member, other):
        profile(user, pinned_badge_ids=pins)

    audit(fix=True)

    member.refresh_from_db()
    kept = UserProfile.objects.get(user=member).pinned_badge_ids
    assert kept == [ids["pioneer"], ids["first-light"]]
    assert UserProfile.objects.get(user=other).pinned_badge_ids == pins


def test_an_awarded_badge_was_earned_now() -> None:
    visits(make_member(), 1)
    before = timezone.now()

    call_command(COMMAND, "--award", stdout=StringIO())

    assert before <= UserBadge.objects.get().earned_at <= timezone.now()


def test_the_cached_progress_of_those_who_changed_is_gone_from_redis() -> None:
    loser, winner, other = (make_member(name) for name in ("loser", "winner", "other"))
    give(loser, "explorer")
    visits(winner, 1)
    keys = [cache_progress(user) for user in (loser, winner, other)]

    audit(fix=True, award=True)

    assert [is_cached(key) for key in keys] == [False, False, True]


def test_a_dead_redis_fails_the_run_and_loses_no_change(manage: Manage) -> None:
    member = make_member()
    give(member, "explorer")

    done = manage(COMMAND, "--fix", env={"REDIS_URL": NO_REDIS})

    assert done.returncode == 1
    assert held(member) == set()
    assert "✓ Revoked 1 invalid badge(s)" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("CommandError: audit_badges is incomplete: the badges are")
    assert "old ones of 1 user(s) for 5 minutes" in last
    assert "HINT: nothing has to be run again" in last


# -- with others at work ------------------------------------------------------------


def test_a_badge_that_is_earned_at_the_last_moment_is_kept(patient: None) -> None:
    member = make_member()
    give(member, "explorer")
    visits(member, 4)
    (fifth,) = locations(owner(), 1)

    with session() as service:
        run(
            service,
            "INSERT INTO starview_app_locationvisit (user_id, location_id, visited_at)"
            " VALUES (%s, %s, now())",
            member.id,
            fifth.id,
        )
        run(service, "SELECT FROM auth_user WHERE id = %s FOR KEY SHARE", member.id)
        with in_thread(_fix):
            wait_until_blocked_by(service)
            service.commit()

    assert held(member) == {"explorer"}


def test_a_badge_that_the_web_service_awards_meanwhile_is_awarded_once(
    patient: None,
) -> None:
    member = make_member()
    visits(member, 1)
    badge = Badge.objects.get(slug="first-light")

    with session() as service:
        run(
            service,
            "INSERT INTO starview_app_userbadge (user_id, badge_id, earned_at)"
            " VALUES (%s, %s, now())",
            member.id,
            badge.id,
        )
        with in_thread(_award):
            wait_until_blocked_by(service)
            service.commit()

    assert holders("first-light") == ["member"]


def test_an_account_that_is_deactivated_meanwhile_is_not_awarded(patient: None) -> None:
    member = make_member()
    visits(member, 1)

    with session() as service:
        run(service, "UPDATE auth_user SET is_active = false WHERE id = %s", member.id)
        with in_thread(_award):
            wait_until_blocked_by(service)
            service.commit()

    assert held(member) == set()


def test_two_runs_at_once_revoke_each_badge_once(patient: None) -> None:
    for user in crowd(20):
        give(user, "explorer")
    revoked: list[int] = []

    def fix() -> None:
        revoked.append(audit(fix=True, batch_users=3).counts["revoked"])
        connection.close()

    with in_thread(fix), in_thread(fix):
        pass

    assert sum(revoked) == 20
    assert holders("explorer") == []


def test_who_is_locked_for_long_is_reported_and_the_others_are_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "LOCK_TIMEOUT_MS", 50)
    users = crowd(5)
    for user in users:
        give(user, "explorer")

    with session() as service:
        run(service, "SELECT FROM auth_user WHERE id = %s FOR UPDATE", users[2].id)
        result = audit(fix=True)

    assert holders("explorer") == [users[2].username]
    assert result.counts["revoked"] == 4
    assert result.problems == [
        f"the badges of user {users[2].id} were left as they are: canceling statement"
        " due to lock timeout HINT: run it again"
    ]


def test_a_run_gives_up_where_nearly_all_are_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "LOCK_TIMEOUT_MS", 1)
    monkeypatch.setattr(job, "MOST_PROBLEMS", 2)
    for user in crowd(5):
        give(user, "explorer")

    with session() as service:
        run(service, "SELECT FROM auth_user FOR UPDATE")
        with pytest.raises(OperationalError, match="lock timeout"):
            audit(fix=True)

    assert len(holders("explorer")) == 5


def test_a_run_that_is_stopped_while_it_waits_for_a_lock_says_so(
    test_environment: dict[str, str], tmp_path: Path
) -> None:
    member = make_member()
    give(member, "explorer")

    with session() as service:
        run(service, "SELECT FROM auth_user FOR UPDATE")
        with started(COMMAND, test_environment, tmp_path, "--fix") as process:
            wait_until_blocked_by(service)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 1

    assert held(member) == {"explorer"}
    assert "was stopped by SIGTERM" in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("words", [[], ["--fix"]])
def test_a_database_without_the_tables_is_one_line(
    manage: Manage, words: list[str]
) -> None:
    execute("ALTER TABLE starview_app_vote RENAME TO away")
    try:
        done = manage(COMMAND, *words)
    finally:
        execute("ALTER TABLE away RENAME TO starview_app_vote")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 'CommandError: relation "starview_app_vote" does not exist' in done.stderr


def test_a_row_that_the_database_keeps_is_reported_and_the_others_are_mended() -> None:
    users = crowd(3)
    for user in users:
        give(user, "explorer")
    execute(
        "CREATE TABLE showcase (userbadge_id bigint REFERENCES starview_app_userbadge)"
    )
    execute(
        "INSERT INTO showcase SELECT id FROM starview_app_userbadge WHERE user_id = %s",
        users[0].id,
    )

    result = audit(fix=True)

    execute("DROP TABLE showcase")
    assert holders("explorer") == [users[0].username]
    (problem,) = result.problems
    assert "violates foreign key constraint" in problem


def test_a_killed_run_leaves_whole_users_and_the_next_one_does_the_rest(
    manage: Manage, test_environment: dict[str, str], tmp_path: Path
) -> None:
    users = crowd(job.BATCH_USERS + 1)
    for user in users:
        give(user, "explorer", "pathfinder")

    with session() as service:
        run(service, "SELECT FROM auth_user WHERE id = %s FOR UPDATE", users[-1].id)
        with started(COMMAND, test_environment, tmp_path, "--fix") as process:
            wait_until_blocked_by(service)
            kill_run(process)
        service.rollback()

    assert holders("explorer") == holders("pathfinder") == [users[-1].username]
    done = manage(COMMAND, "--fix")
    assert (done.returncode, UserBadge.objects.count()) == (0, 0)
    assert "✓ Revoked 2 invalid badge(s)" in done.stdout


def test_a_run_that_is_asked_to_stop_stops_between_two_batches() -> None:
    for user in crowd(4):
        give(user, "explorer")
    audited: list[job.Event] = []

    def note(event: job.Event) -> None:
        audited.extend([event] if isinstance(event, job.Audited) else [])

    result = audit(
        fix=True, batch_users=2, report=note, should_stop=lambda: bool(audited)
    )

    assert result.interrupted
    assert (result.counts["revoked"], len(holders("explorer"))) == (2, 2)


# -- what is said -------------------------------------------------------------------


def test_the_report_of_a_preview() -> None:
    john, jane = make_member("john_doe"), make_member("jane")
    locations(john, 1)
    give(john, "scout", "trailblazer", "explorer", "expert-reviewer")
    first, *_ = reviews(john, 25)
    votes(first, up=749, down=251)
    give(john, "reviewer", "helpful-voice")
    visits(jane, 1)
    User.objects.exclude(username__in=("john_doe", "jane", "starview")).update(
        is_active=False
    )

    assert report_of() == (
        """\
======================================================================
BADGE AUDIT REPORT
======================================================================

📋 PREVIEW MODE: No changes will be made

Auditing all users (1002 total, excluding system users)

👤 User: john_doe
   Invalid badges found: 3
   ⚠ WOULD REVOKE: Explorer (EXPLORATION)
      Reason: Has 0 visits, needs 5
   ⚠ WOULD REVOKE: Trailblazer (CONTRIBUTION)
      Reason: Has 1 locations, needs 10
   ⚠ WOULD REVOKE: Expert Reviewer (REVIEW)
      Reason: Has 25 reviews with 74.9% upvotes, needs 25 with 75%

👤 User: jane
   Missing badges: 1
   ⚠ WOULD AWARD: First Light (EXPLORATION)
      Reason: Has 1 visits, needs 1

======================================================================
AUDIT SUMMARY
======================================================================
Users checked: 1002
Users with invalid badges: 1
Total invalid badges: 3
Users with missing badges: 1
Total missing badges: 1

Invalid badges by category:
  CONTRIBUTION: 1
  EXPLORATION: 1
  REVIEW: 1

Missing badges by category:
  EXPLORATION: 1

⚠️  Run with --fix to revoke 3 invalid badge(s)
⚠️  Run with --award to award 1 missing badge(s)
"""
    )


def test_the_report_of_a_run_that_mends_one_user() -> None:
    member = make_member()
    give(member, "explorer")
    visits(member, 1)

    assert report_of("--fix", "--award", "--user=member") == (
        """\
======================================================================
BADGE AUDIT REPORT
======================================================================

⚠️  FIX MODE: Invalid badges WILL be revoked
⚠️  AWARD MODE: Missing badges WILL be awarded

Auditing user: member

👤 User: member
   Invalid badges found: 1
   ✓ REVOKED: Explorer (EXPLORATION)
      Reason: Has 1 visits, needs 5
   Missing badges: 1
   ✓ AWARDED: First Light (EXPLORATION)
      Reason: Has 1 visits, needs 1

======================================================================
AUDIT SUMMARY
======================================================================
Users checked: 1
Users with invalid badges: 1
Total invalid badges: 1
Users with missing badges: 1
Total missing badges: 1

Invalid badges by category:
  EXPLORATION: 1

Missing badges by category:
  EXPLORATION: 1

✓ Revoked 1 invalid badge(s)
✓ Awarded 1 missing badge(s)
"""
    )


def test_it_says_so_when_all_is_well() -> None:
    make_member()

    assert report_of().endswith(
        "\nTotal missing badges: 0\n\n"
        "✓ All badges are valid and complete! No issues found.\n"
    )


def test_a_user_name_cannot_forge_a_line() -> None:
    member = make_member()
    User.objects.update(username="x\n✓ REVOKED: all")
    give(member, "explorer")

    assert "👤 User: x\\u000a✓ REVOKED: all\n" in report_of()


@pytest.mark.parametrize("name", ["nobody", "Member", "", "a\nb"])
def test_an_unknown_user_is_an_error_in_one_line(manage: Manage, name: str) -> None:
    make_member()

    done = manage(COMMAND, "--fix", f"--user={name}")

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if "CommandError" in line]
    assert line.startswith("CommandError: no user ")


def test_a_system_account_is_refused() -> None:
    make_account("starview")

    with pytest.raises(JobError, match="'starview' is a system account"):
        audit(username="starview")


def test_help_says_that_it_is_for_no_schedule(manage: Manage) -> None:
    done = manage(COMMAND, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert "not for a schedule" in " ".join(done.stdout.split())


@pytest.mark.parametrize("words", [["--fi"], ["--user"], ["--dry-run"], ["all"]])
def test_wrong_options_are_one_line(manage: Manage, words: list[str]) -> None:
    done = manage(COMMAND, *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_mends_is_on_record_with_its_counts(manage: Manage) -> None:
    give(make_member(), "explorer")

    manage(COMMAND, "--fix")

    recorded = JobRun.objects.get()
    assert (recorded.job, recorded.outcome) == (COMMAND, JobRun.Outcome.SUCCEEDED)
    assert recorded.counts == {
        "users": 1,
        "invalid": 1,
        "missing": 0,
        "revoked": 1,
        "awarded": 0,
    }


# -- what the web service's database may have become ---------------------------------


@pytest.fixture
def wide_ids() -> Iterator[None]:
    with wide_user_ids(
        *("account_emailaddress", "starview_app_userbadge", "starview_app_userprofile")
    ):
        yield


@pytest.mark.usefixtures("wide_ids")
def test_an_id_beyond_2_to_the_31_is_an_id() -> None:
    member = make_account("wide", id=3_000_000_000)
    EmailAddress.objects.filter(user=member).update(verified=True)
    give(member, "explorer")

    fixed = audit(fix=True, award=True, username="wide")
    audited = audit(fix=True)
    award_pioneer_badges(now=NOW, report=lambda member: None, should_stop=lambda: False)

    assert (fixed.counts["revoked"], audited.counts["invalid"]) == (1, 0)
    assert held(member) == {"pioneer"}

"""What the demo's data has for each job to find."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from demo.data import DemoDataError, Loaded, load
from starview_app.maintenance.jobs.badges.audit import audit_badges
from starview_app.maintenance.jobs.badges.pioneers import award_pioneer_badges
from starview_app.maintenance.jobs.unverified_users.cleanup import (
    Event,
    Kept,
    cleanup_unverified_users,
)
from tests.factories import contents, make_account

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_second_load_changes_nothing() -> None:
    now = timezone.now()

    loaded = load(connection, now)

    before = contents("auth_user", "starview_app_auditlog")
    assert loaded.accounts == 196
    assert 19_000 < loaded.audit_rows < 21_000
    assert load(connection, now + timedelta(days=1)) == Loaded()
    assert contents("auth_user", "starview_app_auditlog") == before


def test_it_is_not_loaded_beside_real_accounts() -> None:
    make_account("somebody")

    with pytest.raises(DemoDataError, match="1 accounts that are not the demo's"):
        load(connection, timezone.now())

    assert User.objects.count() == 1


def test_the_clean_up_leaves_nobody_without_a_reason() -> None:
    now = timezone.now()
    load(connection, now)

    events: list[Event] = []

    result = cleanup_unverified_users(
        now=now,
        days=7,
        link_days=3,
        report=events.append,
        should_stop=lambda: False,
    )

    assert result.counts["deleted"] == 36
    (kept,) = [event for event in events if isinstance(event, Kept)]
    assert kept.by_reason == {
        "a link newer than the cut-off": 5,
        "signs in with Google": 4,
        "no address": 1,
        "has logged in": 1,
        "a profile picture": 1,
        "deactivated": 1,
        "a review": 1,
        "a vote": 1,
        "a follow": 1,
        "a favorite location": 1,
        "staff": 2,
        "a system account": 1,
    }


def test_some_badges_have_drifted_and_some_pioneers_lack_theirs() -> None:
    now = timezone.now()
    load(connection, now)

    audited = audit_badges(
        now=now, report=lambda event: None, should_stop=lambda: False
    )
    awarded = award_pioneer_badges(
        now=now, report=lambda member: None, should_stop=lambda: False
    )

    assert (audited.counts["invalid"], audited.counts["missing"]) == (6, 3)
    assert awarded.counts == {
        "members": 100,
        "held": 71,
        "awarded": 29,
        "holders": 100,
    }


def test_the_audit_log_has_a_year_and_texts_that_forge_a_log() -> None:
    now = timezone.now()
    load(connection, now)

    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT
                count(DISTINCT date_trunc('month', timestamp)),
                bool_or(username LIKE '%%' || chr(10) || '%%'),
                bool_or(username LIKE '%%''%%'),
                bool_or(username LIKE '%%"%%'),
                bool_or(username LIKE '%%' || chr(27) || '%%'),
                bool_or(username LIKE '%%星空'),
                min(timestamp) >= %s,
                max(timestamp) <= %s
            FROM starview_app_auditlog
            """,
            [now - timedelta(days=365), now],
        )
        months, *others = cursor.fetchone()

    assert months in (12, 13)
    assert others == [True] * 7

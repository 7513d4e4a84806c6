"""Award the Pioneer badge to the first 100 verified members, and never to more."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from django.db import connection, transaction

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.badges import rules
from starview_app.maintenance.jobs.badges.progress import CachedProgress
from starview_app.maintenance.jobs.result import JobResult, ShouldStop

PIONEERS = 100
LOCK_TIMEOUT_MS = 900  # below deadlock_timeout, so the job gives way: decisions/0007


class Standing(Enum):
    HOLDS = auto()
    RECEIVES = auto()
    NO_PLACE_LEFT = auto()  # members who are not among the first hold the badge


@dataclass(frozen=True)
class Member:
    """One of the first members; `rank` counts from 1, in the order of joining."""

    rank: int
    username: str
    joined: datetime
    standing: Standing


Report = Callable[[Member], None]

# This lock makes others who award the badge wait, since their foreign key is checked.
_BADGE = "SELECT id FROM starview_app_badge WHERE slug = 'pioneer'"
_HOLDERS = "SELECT count(*) FROM starview_app_userbadge WHERE badge_id = %(badge_id)s"
_FIRST = f"""
    SELECT account.id, account.username, account.date_joined, held.id IS NOT NULL
    FROM auth_user AS account
    LEFT JOIN starview_app_userbadge AS held
        ON held.user_id = account.id AND held.badge_id = %(badge_id)s
    WHERE {rules.IS_MEMBER} AND {rules.MAY_EARN}
    ORDER BY account.date_joined, account.id
    LIMIT {PIONEERS}
"""
_LOCK_ACCOUNTS = f"""
    SELECT id FROM auth_user
    WHERE id IN (SELECT id FROM ({_FIRST}) AS first (id))
    ORDER BY id
    FOR UPDATE
"""
_AWARD = """
    INSERT INTO starview_app_userbadge (user_id, badge_id, earned_at)
    SELECT user_id, %(badge_id)s, %(now)s
    FROM unnest(%(user_ids)s::bigint[]) AS first (user_id)
"""


def award_pioneer_badges(
    *, now: datetime, report: Report, should_stop: ShouldStop, dry_run: bool = False
) -> JobResult:
    """Award the badge to those of the first members who lack it, in one transaction.

    Members are active accounts with a verified address or a social account, without
    system accounts, in the order of joining. Present holders keep the badge and count,
    so that this never leads to more than PIONEERS holders. Raises JobError if the badge
    does not exist. Counts: members, held, awarded, holders.
    """
    progress = CachedProgress()
    with transaction.atomic(), connection.cursor() as cursor:
        badge_id = _badge(cursor, is_locked=not dry_run)
        if not dry_run:
            cursor.execute(_LOCK_ACCOUNTS, {"badge_id": badge_id})
        # A separate statement, which sees what the former lock holders committed.
        cursor.execute(_HOLDERS, {"badge_id": badge_id})
        (holders,) = cursor.fetchone()
        cursor.execute(_FIRST, {"badge_id": badge_id})
        first = cursor.fetchall()
        lacking = [user_id for user_id, _, _, holds in first if not holds]
        chosen = lacking[: max(0, PIONEERS - holders)]
        if should_stop():
            return JobResult({}, interrupted=True)
        if chosen and not dry_run:
            cursor.execute(
                _AWARD, {"badge_id": badge_id, "user_ids": chosen, "now": now}
            )
    result = JobResult(
        {
            "members": len(first),
            "held": len(first) - len(lacking),
            "awarded": 0 if dry_run else len(chosen),
            "holders": holders + (0 if dry_run else len(chosen)),
        }
    )
    if not dry_run:
        progress.forget(chosen)
        result.problems += progress.finish()
    for rank, (user_id, username, joined, holds) in enumerate(first, start=1):
        receives = Standing.RECEIVES if user_id in chosen else Standing.NO_PLACE_LEFT
        standing = Standing.HOLDS if holds else receives
        report(Member(rank, username, joined, standing))
    return result


def _badge(cursor: Any, *, is_locked: bool) -> int:
    cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
    cursor.execute(f"{_BADGE} FOR UPDATE" if is_locked else _BADGE)
    row = cursor.fetchone()
    if row is None:
        raise JobError(
            "no badge 'pioneer' in this database HINT: the web service makes its badges"
            " when it migrates; is it this database?"
        )
    return int(row[0])

"""Compare the badges that members hold with those they have earned, and correct them.

The rules are one statement, in `rules`. It runs once to list the findings, and again
for each batch of locked accounts, so that changes in between are taken into account.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import DatabaseError, connection, transaction

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.badges import rules
from starview_app.maintenance.jobs.badges.progress import CachedProgress
from starview_app.maintenance.jobs.badges.rules import Finding
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.text import one_line

BATCH_USERS = 100  # one transaction each: short locks, so the site stays quick
LOCK_TIMEOUT_MS = 900  # below deadlock_timeout, so the job gives way: decisions/0007
MOST_PROBLEMS = 20  # after more the run ends: the cause is not in single rows


@dataclass(frozen=True)
class Begun:
    """The first event: the number of users, and the badges that are not checked."""

    users: int
    badges_without_rule: list[tuple[str, str]]  # (name, category)


@dataclass(frozen=True)
class Audited:
    """A user with findings: the corrections that were made, or that would be."""

    username: str
    invalid: list[Finding]
    missing: list[Finding]


Event = Begun | Audited
Report = Callable[[Event], None]

_USERS = f"""
    SELECT account.id, {rules.IS_MEMBER}
    FROM auth_user AS account
    WHERE account.username = %(username)s
"""
_COUNT = f"SELECT count(*) FROM auth_user AS account WHERE {rules.IS_MEMBER}"
# The children first, in the order in which Django deletes. An insert of a row for one
# of these accounts waits for these locks, since its foreign key is checked. So if a
# member earns a badge while it is revoked, the web service finds it gone and awards it
# again.
_LOCKS = (
    "SELECT id FROM starview_app_userprofile WHERE user_id = ANY(%(ids)s)"
    " ORDER BY id FOR UPDATE",
    "SELECT id FROM starview_app_userbadge WHERE user_id = ANY(%(ids)s)"
    " ORDER BY id FOR UPDATE",
    "SELECT id FROM auth_user WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE",
)
_REVOKE = """
    WITH revoked AS (
        DELETE FROM starview_app_userbadge
        WHERE id = ANY(%(held_ids)s)
        RETURNING user_id, badge_id
    ),
    lost AS (
        SELECT user_id, array_agg(badge_id::integer) AS badge_ids
        FROM revoked
        GROUP BY user_id
    )
    UPDATE starview_app_userprofile AS profile
    SET pinned_badge_ids = ARRAY(
        SELECT badge_id
        FROM unnest(profile.pinned_badge_ids) WITH ORDINALITY AS pin (badge_id, place)
        WHERE badge_id <> ALL(lost.badge_ids)
        ORDER BY place
    )
    FROM lost
    WHERE
        profile.user_id = lost.user_id
        AND profile.pinned_badge_ids && lost.badge_ids
"""
# On conflict the web service has awarded the badge meanwhile.
_AWARD = """
    INSERT INTO starview_app_userbadge (user_id, badge_id, earned_at)
    SELECT user_id, badge_id, %(now)s
    FROM unnest(%(user_ids)s::bigint[], %(badge_ids)s::bigint[])
        AS earned (user_id, badge_id)
    ON CONFLICT DO NOTHING
    RETURNING user_id, badge_id
"""


def audit_badges(
    *,
    now: datetime,
    report: Report,
    should_stop: ShouldStop,
    username: str | None = None,
    fix: bool = False,
    award: bool = False,
    batch_users: int = BATCH_USERS,
) -> JobResult:
    """Revoke badges that are not earned (`fix`), award those that are (`award`).

    With neither it only reads. System accounts are left out; only active accounts with
    a verified address or a social account are awarded badges. `username` limits the run
    to one user; JobError is raised if there is no such user, or it is a system account.

    Safe to run twice and safe to kill: each batch of users commits by itself. A user
    whose rows stay locked is a problem; the others are corrected nevertheless.
    Counts: users, invalid, missing, revoked, awarded.
    """
    job = _Audit(now, report, should_stop, fix=fix, award=award)
    ids = None if username is None else [_find(username)]
    job.begin(ids)
    if not (fix or award):
        for _ in job.listed(ids, job.note):
            pass
        return job.result
    found = array("q", job.listed(ids))
    for start in range(0, len(found), batch_users):
        job.mend(found[start : start + batch_users].tolist())
    job.result.problems += job.progress.finish()
    return job.result


class _Audit:
    def __init__(
        self,
        now: datetime,
        report: Report,
        should_stop: ShouldStop,
        *,
        fix: bool,
        award: bool,
    ) -> None:
        self._now = now
        self._report = report
        self._should_stop = should_stop
        self._fix = fix
        self._award = award
        self.progress = CachedProgress()
        self.result = JobResult(
            {"users": 0, "invalid": 0, "missing": 0, "revoked": 0, "awarded": 0}
        )

    def begin(self, ids: list[int] | None) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_COUNT)
            (count,) = cursor.fetchone()
            without_rule = rules.badges_without_rule(cursor)
        self.result.counts["users"] = count if ids is None else len(ids)
        self._report(Begun(self.result.counts["users"], without_rule))

    def listed(
        self,
        ids: list[int] | None,
        note: Callable[[list[Finding]], None] = lambda findings: None,
    ) -> Iterator[int]:
        """Yield the ids of users with findings; `note` is called with the findings.

        A server-side cursor is used, since a first run may find a million.
        """
        with transaction.atomic():
            with connection.cursor() as cursor:
                # Plan for all rows, since all are fetched, not only the first.
                cursor.execute("SET LOCAL cursor_tuple_fraction = 1")
            raw: Any = connection.connection
            with (
                connection.wrap_database_errors,
                raw.cursor(name="badge_findings") as cursor,
            ):
                rules.execute_findings(cursor, ids)
                for user_id, findings in rules.by_user(Finding(*row) for row in cursor):
                    if self._stopped():
                        return
                    note(findings)
                    yield user_id

    def note(self, findings: list[Finding]) -> None:
        invalid = [each for each in findings if each.is_invalid]
        missing = [each for each in findings if not each.is_invalid]
        self.result.counts["invalid"] += len(invalid)
        self.result.counts["missing"] += len(missing)
        self._report(Audited(findings[0].username, invalid, missing))

    def mend(self, ids: list[int]) -> None:
        """Correct the badges of the users `ids` that still need it, in one transaction.

        If the database refuses, or a row stays locked, the batch is halved until the
        user with the error is alone; that user becomes a problem.
        """
        if self._stopped():
            return
        try:
            with transaction.atomic():
                findings = self._mend(ids)
        except DatabaseError as error:
            if connection.connection is None or connection.connection.closed:
                raise
            if self._stopped():
                return
            # Raises an error that concerns every user: missing rights, read-only
            # server.
            with transaction.atomic():
                self._mend([])
            self._mend_apart(ids, error)
            return
        self._note_mended(findings)

    # -- internal helpers ---------------------------------------------------------

    def _stopped(self) -> bool:
        """Whether the run must stop here, with work left to do."""
        self.result.interrupted = self.result.interrupted or self._should_stop()
        return self.result.interrupted

    def _mend(self, ids: list[int]) -> list[Finding]:
        """Return the findings, without those that others have corrected meanwhile."""
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            for statement in _LOCKS:
                cursor.execute(statement, {"ids": ids})
            # A separate statement, which sees what the former lock holders committed.
            rules.execute_findings(cursor, ids)
            findings = [Finding(*row) for row in cursor.fetchall()]
            if self._fix:
                held = [each.held_id for each in findings if each.is_invalid]
                cursor.execute(_REVOKE, {"held_ids": held})
            if self._award:
                awarded = self._give(
                    cursor, [each for each in findings if not each.is_invalid]
                )
                findings = [
                    each
                    for each in findings
                    if each.is_invalid or (each.user_id, each.badge_id) in awarded
                ]
        return findings

    def _give(self, cursor: Any, missing: list[Finding]) -> set[tuple[int, int]]:
        cursor.execute(
            _AWARD,
            {
                "now": self._now,
                "user_ids": [each.user_id for each in missing],
                "badge_ids": [each.badge_id for each in missing],
            },
        )
        return set(cursor.fetchall())

    def _mend_apart(self, ids: Sequence[int], error: DatabaseError) -> None:
        if len(ids) > 1:
            middle = len(ids) // 2
            self.mend(list(ids[:middle]))
            self.mend(list(ids[middle:]))
            return
        if len(self.result.problems) >= MOST_PROBLEMS:
            raise error
        reason = message_of(error)
        self.result.problems.append(
            f"the badges of user {ids[0]} were left as they are: {reason} HINT: run it"
            " again"
        )

    def _note_mended(self, findings: list[Finding]) -> None:
        revoked = [each for each in findings if each.is_invalid and self._fix]
        awarded = [each for each in findings if not each.is_invalid and self._award]
        self.result.counts["revoked"] += len(revoked)
        self.result.counts["awarded"] += len(awarded)
        self.progress.forget({each.user_id for each in (*revoked, *awarded)})
        for _, of_one in rules.by_user(findings):
            self.note(of_one)


def _find(username: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(_USERS, {"username": username})
        row = cursor.fetchone()
    if row is None:
        raise JobError(
            f"no user {one_line(username)!r} HINT: names are spelt with their capitals"
        )
    number, is_member = row
    if not is_member:
        raise JobError(
            f"{one_line(username)!r} is a system account, which has no badges"
        )
    return int(number)

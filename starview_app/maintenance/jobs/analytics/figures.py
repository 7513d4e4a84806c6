"""The figures from the web service's tables, in one statement for each group.

Each statement counts both periods: from `start` to `end` (exclusive), and from `before`
to `start` (exclusive). System accounts do not count as members.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from django.db import connection

from starview_app.maintenance.jobs.analytics.period import Period
from starview_app.maintenance.own_tables import has_table
from starview_app.maintenance.text import one_line


@dataclass(frozen=True)
class Figure:
    """One count for the period and for the one before; None if it is not known."""

    name: str
    this: int | None
    before: int | None

    @property
    def change(self) -> int | None:
        if self.this is None or self.before is None:
            return None
        return self.this - self.before


@dataclass(frozen=True)
class Standing:
    """Totals at the time of the report, of any period."""

    accounts: int
    verified: int
    pending_reports: int
    unverified_locations: int
    hard_bounces: int
    complaints: int
    unreviewed_complaints: int
    active_suppressions: int


@dataclass(frozen=True)
class JobFigures:
    """One job's runs, failed runs and counts."""

    job: str
    runs: Figure
    failed: Figure
    counts: tuple[Figure, ...]


def within(column: str, *, where: str = "TRUE") -> str:
    """SQL: two counts, for the period and for the one before."""
    return f"""
        count(*) FILTER (
            WHERE {where} AND {column} >= %(start)s AND {column} < %(end)s
        ),
        count(*) FILTER (
            WHERE {where} AND {column} >= %(before)s AND {column} < %(start)s
        )
    """


def bounds(period: Period) -> dict[str, Any]:
    return {
        "before": period.before.start,
        "start": period.start,
        "end": period.end,
    }


_MEMBER = """
    NOT EXISTS (
        SELECT FROM starview_app_userprofile AS profile
        WHERE profile.user_id = member.id AND profile.is_system_account
    )
"""
_IS_VERIFIED = """
    (
        EXISTS (
            SELECT FROM account_emailaddress AS address
            WHERE address.user_id = member.id AND address.verified
        )
        OR EXISTS (
            SELECT FROM socialaccount_socialaccount AS social
            WHERE social.user_id = member.id
        )
    )
"""
_SIGN_UPS = f"""
    SELECT 'sign-ups', {within("date_joined")}
    FROM auth_user AS member
    WHERE date_joined >= %(before)s AND date_joined < %(end)s AND {_MEMBER}
    UNION ALL
    SELECT 'of them verified', {within("date_joined")}
    FROM auth_user AS member
    WHERE
        date_joined >= %(before)s
        AND date_joined < %(end)s
        AND {_MEMBER}
        AND {_IS_VERIFIED}
"""
# Actions of a member, each of which makes the member active.
_DONE = (
    ("auth_user", "id", "last_login"),
    ("starview_app_location", "added_by_id", "created_at"),
    ("starview_app_review", "user_id", "created_at"),
    ("starview_app_reviewcomment", "user_id", "created_at"),
    ("starview_app_locationphoto", "uploaded_by_id", "created_at"),
    ("starview_app_locationvisit", "user_id", "visited_at"),
    ("starview_app_favoritelocation", "user_id", "created_at"),
    ("starview_app_follow", "follower_id", "created_at"),
    ("starview_app_vote", "user_id", "created_at"),
    ("starview_app_report", "reported_by_id", "created_at"),
)
_EVERYTHING_DONE = "\nUNION ALL\n".join(
    f"SELECT {member} AS member_id, {at} AS at FROM {table}"
    f" WHERE {at} >= %(before)s AND {at} < %(end)s"
    for table, member, at in _DONE
)
# Log-ins before a member's last one are in the audit log; uses (-timestamp, type).
_ACTIVE = f"""
    WITH done AS (
        {_EVERYTHING_DONE}
        UNION ALL
        SELECT user_id, timestamp
        FROM starview_app_auditlog
        WHERE
            timestamp >= %(before)s
            AND timestamp < %(end)s
            AND event_type = 'login_success'
            AND success
        UNION ALL
        SELECT unnest(%(archived_this)s::bigint[]), %(start)s
        UNION ALL
        SELECT unnest(%(archived_before)s::bigint[]), %(before)s
    )
    SELECT
        count(DISTINCT member_id) FILTER (WHERE at >= %(start)s),
        count(DISTINCT member_id) FILTER (WHERE at < %(start)s)
    FROM done
    JOIN auth_user AS member ON member.id = done.member_id
    WHERE {_MEMBER}
"""
_MADE = (
    ("locations", "starview_app_location", "created_at"),
    ("reviews", "starview_app_review", "created_at"),
    ("comments", "starview_app_reviewcomment", "created_at"),
    ("photos of reviews", "starview_app_reviewphoto", "created_at"),
    ("photos of locations", "starview_app_locationphoto", "created_at"),
    ("visits", "starview_app_locationvisit", "visited_at"),
    ("favorites", "starview_app_favoritelocation", "created_at"),
    ("follows", "starview_app_follow", "created_at"),
    ("votes", "starview_app_vote", "created_at"),
    ("badges earned", "starview_app_userbadge", "earned_at"),
    ("reports made", "starview_app_report", "created_at"),
)
_COMMUNITY = "\nUNION ALL\n".join(
    f"SELECT '{name}', {within(at)} FROM {table}"
    f" WHERE {at} >= %(before)s AND {at} < %(end)s"
    for name, table, at in _MADE
)
_MAIL = f"""
    SELECT bounce_type || ' bounces', {within("last_bounce_date")}
    FROM starview_email_bounce
    WHERE last_bounce_date >= %(before)s AND last_bounce_date < %(end)s
    GROUP BY bounce_type
    UNION ALL
    SELECT 'complaints', {within("complaint_date")}
    FROM starview_email_complaint
    WHERE complaint_date >= %(before)s AND complaint_date < %(end)s
    UNION ALL
    SELECT 'suppressions added', {within("added_date")}
    FROM starview_email_suppression
    WHERE added_date >= %(before)s AND added_date < %(end)s
"""
_BOUNCES = ("hard bounces", "soft bounces", "transient bounces")
_STANDING = f"""
    SELECT
        (SELECT count(*) FROM auth_user AS member WHERE {_MEMBER}),
        (SELECT count(*) FROM auth_user AS member WHERE {_MEMBER} AND {_IS_VERIFIED}),
        (SELECT count(*) FROM starview_app_report WHERE upper(status) = 'PENDING'),
        (SELECT count(*) FROM starview_app_location WHERE NOT is_verified),
        (SELECT count(*) FROM starview_email_bounce WHERE bounce_type = 'hard'),
        (SELECT count(*) FROM starview_email_complaint),
        (SELECT count(*) FROM starview_email_complaint WHERE NOT reviewed),
        (SELECT count(*) FROM starview_email_suppression WHERE is_active)
"""
# Days are those of UTC, which is the connection's time zone.
_BY_DAY = f"""
    SELECT (date_joined AT TIME ZONE 'UTC')::date, count(*)
    FROM auth_user AS member
    WHERE date_joined >= %(before)s AND date_joined < %(end)s AND {_MEMBER}
    GROUP BY 1
"""
# Without ticks of catch-up, which are not runs, and without skipped runs.
_RUNS = f"""
    SELECT
        job,
        {within("started_at")},
        {within("started_at", where="is_failed")}
    FROM (
        SELECT
            job,
            started_at,
            outcome IN ('failed', 'timed out', 'crashed') AS is_failed
        FROM maintenance_jobrun
        WHERE
            started_at >= %(before)s
            AND started_at < %(end)s
            AND outcome <> 'skipped'
            AND NOT counts ? 'ticks'
    ) AS run
    GROUP BY job
    ORDER BY job COLLATE "C"
"""
_COUNTS = """
    SELECT
        job,
        counted.key,
        sum(number) FILTER (WHERE started_at >= %(start)s),
        sum(number) FILTER (WHERE started_at < %(start)s)
    FROM maintenance_jobrun AS run,
        jsonb_each(run.counts) AS counted,
        LATERAL (
            SELECT CASE
                WHEN jsonb_typeof(counted.value) = 'number'
                THEN trunc((counted.value #>> '{}')::numeric)
            END AS number
        ) AS read
    WHERE
        started_at >= %(before)s
        AND started_at < %(end)s
        AND outcome <> 'skipped'
        AND NOT counts ? 'ticks'
        AND number IS NOT NULL
    GROUP BY job, counted.key
    ORDER BY job COLLATE "C", counted.key COLLATE "C"
"""


def sign_ups(period: Period) -> list[Figure]:
    """Count sign-ups, and how many of them are verified."""
    return _figures(_SIGN_UPS, period)


def active(period: Period, archived_logins: tuple[Set[int], Set[int]]) -> Figure:
    """Count active members; `archived_logins` are ids that only the archive has."""
    this, before = map(list, archived_logins)
    parameters = {"archived_this": this, "archived_before": before}
    ((in_this, in_before),) = _rows(_ACTIVE, period, **parameters)
    return Figure("active members", in_this, in_before)


def community(period: Period) -> list[Figure]:
    return _figures(_COMMUNITY, period)


def mail(period: Period) -> list[Figure]:
    """Count bounces by type; types that this image knows are always listed."""
    found = {figure.name: figure for figure in _figures(_MAIL, period)}
    bounces = [found.pop(name, Figure(name, 0, 0)) for name in _BOUNCES]
    rest = [found.pop(name) for name in ("complaints", "suppressions added")]
    return [*bounces, *sorted(found.values(), key=lambda figure: figure.name), *rest]


def standing() -> Standing:
    with connection.cursor() as cursor:
        cursor.execute(_STANDING)
        return Standing(*cursor.fetchone())


def sign_ups_by_day(period: Period) -> tuple[list[int], list[int]]:
    """Return the counts for each day of the period, and of the one before."""
    found = dict(_rows(_BY_DAY, period))
    this, before = (
        [found.get(day.date(), 0) for day in days]
        for days in (period.days, period.before.days)
    )
    return this, before


def maintenance(period: Period) -> list[JobFigures]:
    """Return each job that ran, by name; none if the tables do not exist yet."""
    if not has_table("maintenance_jobrun"):
        return []
    counts: dict[str, list[Figure]] = {}
    for job, name, this, before in _rows(_COUNTS, period):
        figure = Figure(one_line(name), int(this or 0), int(before or 0))
        counts.setdefault(job, []).append(figure)
    return [
        JobFigures(
            job=one_line(job),
            runs=Figure("runs", *runs),
            failed=Figure("failed", *failed),
            counts=tuple(
                figure for figure in counts.get(job, []) if figure.this or figure.before
            ),
        )
        for job, *numbers in _rows(_RUNS, period)
        for runs, failed in [(numbers[:2], numbers[2:])]
    ]


def _figures(statement: str, period: Period) -> list[Figure]:
    return [
        Figure(one_line(name), this, before)
        for name, this, before in _rows(statement, period)
    ]


def _rows(statement: str, period: Period, **also: Any) -> Iterable[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {**bounds(period), **also})
        return list(cursor.fetchall())

"""The time of an audit of the badges, compared with SQL that a person would type.

Both only read, on one database: `audit_badges` as a whole process, and psql with two
statements for each thing that badges are given for.
"""

from dataclasses import dataclass

from bench.laboratory import PYTHON, ROOT, Laboratory, measured, median_multiple

LIMIT = 10.0  # the audit, as a multiple of psql
BADGES_EACH = 3

_BADGES = (ROOT / "demo" / "badges.sql").read_text(encoding="utf-8")
# Each member has visited three places, and half of them have added one. All hold the
# badges for their profile, for their place or for being early, and for their first
# visit; instead of the last, one in 100 holds a badge that is not earned.
_FILL = """
    CREATE TEMP TABLE member AS
    WITH made AS (
        INSERT INTO auth_user (
            username, email, password, first_name, last_name,
            is_staff, is_superuser, is_active, date_joined
        )
        SELECT
            'member_' || n, 'member_' || n || '@example.com', '!', '', '',
            FALSE, FALSE, TRUE, now() - INTERVAL '1 year'
        FROM generate_series(1, {members}) AS n
        RETURNING id
    )
    SELECT id, row_number() OVER (ORDER BY id) AS n FROM made;
    CREATE INDEX ON member (n);

    INSERT INTO account_emailaddress (user_id, email, verified, "primary")
    SELECT id, 'member_' || n || '@example.com', TRUE, TRUE FROM member;

    INSERT INTO starview_app_userprofile (
        user_id, created_at, updated_at, profile_picture, bio, is_verified,
        is_system_account, pinned_badge_ids, unit_preference, language_preference
    )
    SELECT id, now(), now(), 'me.webp', 'Hi', FALSE, FALSE, '{{}}', 'metric', 'en'
    FROM member;

    INSERT INTO starview_app_location (
        created_at, updated_at, name, added_by_id, average_rating, rating_count,
        latitude, longitude, elevation, location_type, type_metadata, visitor_count,
        times_reported, is_verified, verification_notes, review_summary_stale
    )
    SELECT
        now(), now(), 'Place ' || n, id, 3 + n % 20 / 10.0, 1, 36, -117, 0,
        'dark_sky_site', '{{}}', 0, 0, FALSE, '', TRUE
    FROM member
    WHERE n % 2 = 0;
    CREATE TEMP TABLE place AS
    SELECT id, row_number() OVER (ORDER BY id) - 1 AS n FROM starview_app_location;
    CREATE INDEX ON place (n);

    INSERT INTO starview_app_locationvisit (user_id, location_id, visited_at)
    SELECT member.id, place.id, now()
    FROM member
    CROSS JOIN generate_series(0, 2) AS k
    JOIN place ON place.n = (member.n * 7 + k) % ({members} / 2);

    INSERT INTO starview_app_review (
        created_at, updated_at, location_id, user_id, rating
    )
    SELECT now(), now(), place.id, member.id, 4
    FROM member
    CROSS JOIN generate_series(0, 1) AS k
    JOIN place ON place.n = (member.n * 3 + k) % ({members} / 2);

    INSERT INTO starview_app_vote (
        content_type_id, object_id, user_id, is_upvote, created_at
    )
    SELECT type.id, review.id, member.id, review.id % 4 > 0, now()
    FROM starview_app_review AS review
    JOIN member ON member.n = 1 + review.id * 11 % {members}
    JOIN django_content_type AS type
        ON app_label = 'starview_app' AND model = 'review';

    INSERT INTO starview_app_follow (follower_id, following_id, created_at)
    SELECT member.id, other.id, now()
    FROM member
    CROSS JOIN generate_series(1, 2) AS k
    JOIN member AS other ON other.n = 1 + (member.n + k * 13) % {members};

    INSERT INTO starview_app_userbadge (user_id, badge_id, earned_at)
    SELECT member.id, badge.id, now()
    FROM member
    JOIN starview_app_badge AS badge ON slug IN (
        CASE WHEN n % 100 = 0 THEN 'stargazer' ELSE 'first-light' END,
        CASE WHEN n % 2 = 0 THEN 'scout' ELSE 'pioneer' END,
        'mission-ready'
    );
"""
# What a badge is given for: which badges, and how members are counted.
_COUNTED = (
    ("category = 'EXPLORATION'", "user_id", "starview_app_locationvisit"),
    ("category = 'CONTRIBUTION'", "added_by_id", "starview_app_location"),
    (
        "category = 'QUALITY'",
        "added_by_id",
        "starview_app_location WHERE average_rating >= 4",
    ),
    ("criteria_type = 'REVIEWS_WRITTEN'", "user_id", "starview_app_review"),
    (
        "criteria_type = 'UPVOTES_RECEIVED'",
        "review.user_id",
        "starview_app_review AS review JOIN starview_app_vote AS vote"
        " ON object_id = review.id AND is_upvote",
    ),
    (
        "criteria_type = 'COMMENTS_WRITTEN'",
        "remark.user_id",
        "starview_app_reviewcomment AS remark JOIN starview_app_review AS review"
        " ON review.id = review_id AND review.user_id <> remark.user_id",
    ),
    ("criteria_type = 'FOLLOWER_COUNT'", "following_id", "starview_app_follow"),
    (
        "slug = 'photographer'",
        "user_id",
        "starview_app_reviewphoto JOIN starview_app_review AS review"
        " ON review.id = review_id",
    ),
)
_INVALID = """
    SELECT username, badge.name, amount
    FROM starview_app_userbadge AS held
    JOIN starview_app_badge AS badge ON badge.id = held.badge_id AND {badges}
    JOIN auth_user AS account ON account.id = held.user_id
    LEFT JOIN (
        SELECT {user} AS user_id, count(*) AS amount FROM {table} GROUP BY 1
    ) AS made ON made.user_id = account.id
    WHERE coalesce(amount, 0) < criteria_value
"""
_MISSING = """
    SELECT username, badge.name, amount
    FROM (
        SELECT {user} AS user_id, count(*) AS amount FROM {table} GROUP BY 1
    ) AS made
    JOIN starview_app_badge AS badge ON amount >= criteria_value AND {badges}
    JOIN auth_user AS account ON account.id = made.user_id
    LEFT JOIN starview_app_userbadge AS held
        ON held.user_id = made.user_id AND held.badge_id = badge.id
    WHERE held.id IS NULL
"""


@dataclass(frozen=True)
class BadgeFigures:
    """Seconds, one per turn."""

    members: int
    turns: int
    audit: list[float]
    psql: list[float]

    @property
    def multiple(self) -> float:
        return median_multiple(self.audit, self.psql)


def measure(laboratory: Laboratory, *, members: int, turns: int) -> BadgeFigures:
    """The first turn warms the file cache and does not count."""
    fill = _FILL.format(members=members)
    database = laboratory.prepare(f"members_{members}", _BADGES, fill)
    environment = laboratory.environment(database, bucket="none")
    statements = [
        template.format(badges=badges, user=user, table=table)
        for badges, user, table in _COUNTED
        for template in (_INVALID, _MISSING)
    ]
    audit: list[float] = []
    psql: list[float] = []
    for turn in range(turns + 1):
        typed = laboratory.psql(database, *statements).seconds
        ours = measured([PYTHON, "manage.py", "audit_badges"], environment).seconds
        if turn:
            psql.append(typed)
            audit.append(ours)
    return BadgeFigures(members, turns, audit, psql)

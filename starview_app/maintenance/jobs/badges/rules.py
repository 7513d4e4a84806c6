"""The web service's rules for badges, as one statement for all members."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import Any

SYSTEM_USERNAME = "starview"

# Over `auth_user AS account`: accounts that may have badges, and that may be awarded
# one.
IS_MEMBER = f"""
    account.username <> '{SYSTEM_USERNAME}'
    AND NOT EXISTS (
        SELECT FROM starview_app_userprofile AS profile
        WHERE profile.user_id = account.id AND profile.is_system_account
    )
"""
MAY_EARN = """
    account.is_active
    AND (
        EXISTS (
            SELECT FROM account_emailaddress AS address
            WHERE address.user_id = account.id AND address.verified
        )
        OR EXISTS (
            SELECT FROM socialaccount_socialaccount AS social
            WHERE social.user_id = account.id
        )
    )
"""
# Everyone if no ids are given. The ids are constants in the statement, so that the
# planner knows them.
_IS_ASKED_FOR = "(%(ids)s::bigint[] IS NULL OR {} = ANY(%(ids)s::bigint[]))"

# A member whose number is zero has no row.
_FACTS = """
    SELECT user_id, 'visits' AS measure, count(*) AS amount, NULL::numeric AS percent
    FROM starview_app_locationvisit
    GROUP BY user_id
    UNION ALL
    SELECT added_by_id, 'locations', count(*), NULL
    FROM starview_app_location
    GROUP BY added_by_id
    UNION ALL
    SELECT added_by_id, 'locations rated 4.0 or better', count(*), NULL
    FROM starview_app_location
    WHERE average_rating >= 4.0
    GROUP BY added_by_id
    UNION ALL
    SELECT user_id, 'reviews', count(*), NULL
    FROM starview_app_review
    GROUP BY user_id
    UNION ALL
    SELECT user_id, 'upvotes', upvotes, NULL
    FROM votes_received
    UNION ALL
    SELECT user_id, 'rated reviews', written, coalesce(100.0 * upvotes / votes, 0)
    FROM (
        SELECT user_id, count(*) AS written FROM starview_app_review GROUP BY user_id
    ) AS review
    LEFT JOIN votes_received USING (user_id)
    UNION ALL
    SELECT remark.user_id, 'comments on reviews of others', count(*), NULL
    FROM starview_app_reviewcomment AS remark
    JOIN starview_app_review AS review ON review.id = remark.review_id
    WHERE remark.user_id <> review.user_id
    GROUP BY remark.user_id
    UNION ALL
    SELECT following_id, 'followers', count(*), NULL
    FROM starview_app_follow
    GROUP BY following_id
    UNION ALL
    SELECT user_id, 'photos', count(*), NULL
    FROM (
        SELECT review.user_id
        FROM starview_app_reviewphoto AS photo
        JOIN starview_app_review AS review ON review.id = photo.review_id
        UNION ALL
        SELECT uploaded_by_id FROM starview_app_locationphoto
    ) AS photo
    GROUP BY user_id
    UNION ALL
    SELECT
        user_id,
        'profile fields',
        (bio <> '')::integer + (coalesce(profile_picture, '') <> '')::integer,
        NULL
    FROM starview_app_userprofile
"""
_VOTES = f"""
    SELECT
        review.user_id,
        count(*) FILTER (WHERE is_upvote) AS upvotes,
        count(*) AS votes
    FROM starview_app_review AS review
    JOIN starview_app_vote AS vote ON vote.object_id = review.id
    JOIN django_content_type AS type ON type.id = vote.content_type_id
    WHERE
        type.app_label = 'starview_app'
        AND type.model = 'review'
        AND {_IS_ASKED_FOR.format("review.user_id")}
    GROUP BY review.user_id
"""
# What each badge requires; the measure is NULL if the rule is not known. Badges of the
# category TENURE are never revoked, and are awarded by a separate command.
_RULES = """
    SELECT
        id,
        name,
        category,
        display_order,
        CASE category
            WHEN 'EXPLORATION' THEN CASE criteria_type
                WHEN 'LOCATION_VISITS' THEN 'visits'
            END
            WHEN 'CONTRIBUTION' THEN CASE criteria_type
                WHEN 'LOCATIONS_ADDED' THEN 'locations'
            END
            WHEN 'QUALITY' THEN CASE criteria_type
                WHEN 'LOCATION_RATING' THEN 'locations rated 4.0 or better'
            END
            WHEN 'REVIEW' THEN CASE criteria_type
                WHEN 'REVIEWS_WRITTEN' THEN 'reviews'
                WHEN 'UPVOTES_RECEIVED' THEN 'upvotes'
                WHEN 'HELPFUL_RATIO' THEN 'rated reviews'
            END
            WHEN 'COMMUNITY' THEN CASE criteria_type
                WHEN 'COMMENTS_WRITTEN' THEN 'comments on reviews of others'
                WHEN 'FOLLOWER_COUNT' THEN 'followers'
            END
            WHEN 'SPECIAL' THEN CASE slug
                WHEN 'photographer' THEN 'photos'
                WHEN 'mission-ready' THEN 'profile fields'
            END
        END AS measure,
        -- the web service says 3, and asks for two: bio and picture
        CASE slug WHEN 'mission-ready' THEN 2 ELSE criteria_value END AS needs,
        CASE criteria_type
            WHEN 'HELPFUL_RATIO' THEN coalesce(criteria_secondary, 0)
        END AS needs_percent
    FROM starview_app_badge
    WHERE category <> 'TENURE'
"""
# By account: badges that are held but not earned, and earned but not held.
_FINDINGS = f"""
    WITH votes_received AS ({_VOTES}),
    rule AS MATERIALIZED ({_RULES}),  -- or each comparison decides it anew
    fact AS NOT MATERIALIZED (
        SELECT * FROM ({_FACTS}) AS fact WHERE {_IS_ASKED_FOR.format("user_id")}
    )
    SELECT
        account.id,
        account.username,
        rule.id,
        rule.name,
        rule.category,
        rule.measure,
        coalesce(fact.amount, 0),
        coalesce(fact.percent, 0),
        rule.needs,
        rule.needs_percent,
        held.id
    FROM auth_user AS account
    CROSS JOIN rule
    LEFT JOIN fact ON fact.user_id = account.id AND fact.measure = rule.measure
    LEFT JOIN starview_app_userbadge AS held
        ON held.user_id = account.id
        AND held.badge_id = rule.id
        AND {_IS_ASKED_FOR.format("held.user_id")}
    WHERE
        {_IS_ASKED_FOR.format("account.id")}
        AND rule.measure IS NOT NULL
        AND CASE
            WHEN coalesce(fact.amount, 0) >= rule.needs
                AND coalesce(fact.percent, 0) >= coalesce(rule.needs_percent, 0)
            THEN held.id IS NULL AND {MAY_EARN}
            ELSE held.id IS NOT NULL
        END
        AND {IS_MEMBER}
    ORDER BY account.id, held.id IS NULL, rule.display_order, rule.id
"""
_UNKNOWN = f"SELECT name, category FROM ({_RULES}) AS rule WHERE measure IS NULL"


@dataclass(frozen=True)
class Finding:
    """A badge that its holder has not earned, or that a member has earned and lacks.

    `percent` is the share of upvotes among votes, if `needs_percent` is not None.
    """

    user_id: int
    username: str
    badge_id: int
    badge: str
    category: str
    measure: str
    amount: int
    percent: Decimal
    needs: int
    needs_percent: int | None
    held_id: int | None  # the id in `starview_app_userbadge`

    @property
    def is_invalid(self) -> bool:
        return self.held_id is not None


def execute_findings(cursor: Any, ids: Sequence[int] | None) -> None:
    """Select the findings for `ids`, or for all members, in the order of their ids."""
    cursor.execute(_FINDINGS, {"ids": None if ids is None else list(ids)})


def by_user(findings: Iterable[Finding]) -> Iterator[tuple[int, list[Finding]]]:
    for user_id, of_one in groupby(findings, attrgetter("user_id")):
        yield user_id, list(of_one)


def badges_without_rule(cursor: Any) -> list[tuple[str, str]]:
    """Return (name, category) of badges with an unknown rule, which are not checked."""
    cursor.execute(_UNKNOWN)
    return list(cursor.fetchall())

"""Badges as the web service has them, and what members earn them with."""

from typing import Any

import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache

from starview_app.models import (
    Badge,
    Follow,
    Location,
    LocationPhoto,
    LocationVisit,
    Review,
    ReviewComment,
    ReviewPhoto,
    UserBadge,
    UserProfile,
    Vote,
)
from tests.conftest import ROOT
from tests.factories import NOW, execute, make_account

PLACE: dict[str, Any] = {"latitude": 36.5, "longitude": -116.9, "name": "Hill"}


def make_badges() -> None:
    execute((ROOT / "demo" / "badges.sql").read_text())


def give(user: User, *slugs: str) -> None:
    for slug in slugs:
        badge = Badge.objects.get(slug=slug)
        UserBadge.objects.create(user=user, badge=badge, earned_at=NOW)


def held(user: User) -> set[str]:
    return set(
        UserBadge.objects.filter(user=user).values_list("badge__slug", flat=True)
    )


def holders(slug: str) -> list[str]:
    found = UserBadge.objects.filter(badge__slug=slug)
    return sorted(found.values_list("user__username", flat=True))


def crowd(count: int, prefix: str = "crowd") -> list[User]:
    """Accounts that may hold nothing: unverified."""
    return User.objects.bulk_create(
        User(username=f"{prefix}{number:03}", password="!", date_joined=NOW)
        for number in range(count)
    )


def owner() -> User:
    """Who made what the members of a test visit and review; a system account."""
    found = User.objects.filter(username="starview").first()
    return found or make_account("starview")


# -- what badges are earned with -----------------------------------------------------


def locations(user: User, count: int, **columns: Any) -> list[Location]:
    return Location.objects.bulk_create(
        Location(added_by=user, **PLACE, **columns) for _ in range(count)
    )


def well_rated(user: User, count: int) -> None:
    locations(user, count, average_rating="4.00")
    locations(user, 1, average_rating="3.99")


def visits(user: User, count: int) -> None:
    LocationVisit.objects.bulk_create(
        LocationVisit(user=user, location=each) for each in locations(owner(), count)
    )


def reviews(user: User, count: int) -> list[Review]:
    return Review.objects.bulk_create(
        Review(user=user, location=each, rating=5) for each in locations(owner(), count)
    )


def votes(review: Review, *, up: int, down: int = 0) -> None:
    voters = crowd(up + down, prefix=f"voter{review.id}-")
    kind = ContentType.objects.get_for_model(Review)
    Vote.objects.bulk_create(
        Vote(content_type=kind, object_id=review.id, user=voter, is_upvote=number < up)
        for number, voter in enumerate(voters)
    )


def upvotes(user: User, count: int) -> None:
    """On two reviews, with a vote against and one on something else."""
    first, second = reviews(user, 2)
    votes(first, up=count - 1, down=1)
    votes(second, up=1)
    kind = ContentType.objects.get_for_model(Location)
    Vote.objects.create(
        content_type=kind, object_id=first.id, user=owner(), is_upvote=True
    )


def comments(user: User, count: int) -> None:
    """On a review of somebody else; the one on the user's own does not count."""
    (others,) = reviews(owner(), 1)
    (own,) = reviews(user, 1)
    ReviewComment.objects.bulk_create(
        ReviewComment(review=review, user=user, content="Clear skies!")
        for review in [own, *[others] * count]
    )


def followers(user: User, count: int) -> None:
    Follow.objects.bulk_create(
        Follow(follower=each, following=user) for each in crowd(count, "fan")
    )


def photos(user: User, count: int) -> None:
    """One of a location, the others of a review."""
    (review,) = reviews(user, 1)
    LocationPhoto.objects.create(
        location=review.location, uploaded_by=user, image="hill.jpg"
    )
    LocationPhoto.objects.create(location=review.location, image="nobodys.jpg")
    ReviewPhoto.objects.bulk_create(
        ReviewPhoto(review=review, image="sky.jpg") for _ in range(count - 1)
    )


def profile(user: User, **columns: Any) -> None:
    UserProfile.objects.filter(user=user).update(**columns)


# -- the cache -------------------------------------------------------------------------


def cache_progress(user: User) -> str:
    """As the web service does; returns the key as Redis has it."""
    cache.set(f"badge_progress:{user.id}", {"earned": []}, 300)
    key = f"starview:1:badge_progress:{user.id}"
    assert is_cached(key)
    return key


def is_cached(key: str) -> bool:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        return bool(client.exists(key))

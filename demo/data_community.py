"""What members contribute: locations, reviews, visits, follows, votes."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from demo.data_accounts import Person

if TYPE_CHECKING:
    from demo.data_tables import Tables

_SITES = (
    "Cedar Ridge Overlook",
    "Lonely Pine Meadow",
    "Salt Flats South Rim",
    "Glacier Lake Pier",
    "Raven Rock Fire Tower",
    "Blue Mesa Turnout",
    "Old Quarry Field",
    "Whisper Dunes",
    "Black Canyon Point",
    "Heron Marsh Boardwalk",
    "High Moor Car Park",
    "Sentinel Dome",
    "Juniper Flat",
    "Wolf Creek Pass",
    "Cape Solace Lighthouse",
    "Obsidian Crater Rim",
    "North Fork Trailhead",
    "Painted Hills Lookout",
    "Starfall Ranch",
    "Mirror Tarn",
)
_COMMENTS = (
    "Bortle 2 on a good night, the zodiacal light was obvious.",
    "A bit of glow from the town in the west, else superb.",
    "Bring a windbreak. The airglow was worth it!",
    "Gate closes at 22:00 - arrive early.",
    "Parking for five cars, level ground for tripods.",
    "Milky Way core straight above the ridge in July.",
)
_REVIEWS_PER_MEMBER = 2
_VISITS_PER_MEMBER = 3
_FOLLOWS_PER_MEMBER = 3


def add_community(
    tables: Tables, everyone: list[Person], now: datetime, rng: Random
) -> None:
    members = [person for person in everyone if person.kind == "member"]
    locations = tables.insert(
        "starview_app_location", _locations(members[: 2 * len(_SITES)], now, rng)
    )
    reviews = _reviews(members, locations, now, rng)
    review_ids = tables.insert("starview_app_review", reviews)
    tables.insert("starview_app_locationvisit", _visits(members, locations, now, rng))
    tables.insert("starview_app_follow", _follows(members, now, rng))
    tables.insert(
        "starview_app_vote",
        _votes(members, review_ids, tables.content_type("review"), rng),
    )
    _add_protected(tables, everyone, locations, review_ids, members[0], now)


def _locations(
    authors: list[Person], now: datetime, rng: Random
) -> list[dict[str, Any]]:
    return [
        {
            "created_at": _since(author, now, rng),
            "name": site if number < len(_SITES) else f"{site} (upper)",
            "added_by_id": author.id,
            "average_rating": round(rng.uniform(3.2, 5), 2),
            "rating_count": rng.randrange(1, 30),
        }
        for number, (author, site) in enumerate(zip(authors, _SITES * 2, strict=False))
    ]


def _reviews(
    members: list[Person], locations: list[int], now: datetime, rng: Random
) -> list[dict[str, Any]]:
    return [
        _review(member, location, _since(member, now, rng), rng)
        for member in members
        for location in rng.sample(locations, _REVIEWS_PER_MEMBER)
    ]


def _review(
    author: Person, location: int, moment: datetime, rng: Random
) -> dict[str, Any]:
    return {
        "created_at": moment,
        "location_id": location,
        "user_id": author.id,
        "rating": rng.choice((3, 4, 4, 5, 5)),
        "comment": rng.choice(_COMMENTS),
    }


def _visits(
    members: list[Person], locations: list[int], now: datetime, rng: Random
) -> list[dict[str, Any]]:
    return [
        {
            "user_id": member.id,
            "location_id": location,
            "visited_at": _since(member, now, rng),
        }
        for member in members
        for location in rng.sample(locations, _VISITS_PER_MEMBER)
    ]


def _follows(members: list[Person], now: datetime, rng: Random) -> list[dict[str, Any]]:
    return [
        {
            "follower_id": member.id,
            "following_id": other.id,
            "created_at": max(_since(member, now, rng), other.joined),
        }
        for member in members
        for other in rng.sample(members, _FOLLOWS_PER_MEMBER)
        if other is not member
    ]


def _votes(
    members: list[Person], reviews: list[int], content_type: int, rng: Random
) -> list[dict[str, Any]]:
    return [
        {
            "content_type_id": content_type,
            "object_id": review,
            "user_id": member.id,
            "is_upvote": rng.random() < 0.8,
        }
        for member in members
        for review in rng.sample(reviews, 2)
    ]


def _add_protected(
    tables: Tables,
    everyone: list[Person],
    locations: list[int],
    reviews: list[int],
    followed: Person,
    now: datetime,
) -> None:
    """One thing each for the unverified accounts that must survive because of it."""
    ids = {person.kind: person.id for person in everyone}
    moment = now - timedelta(days=25)
    reviewed = {"location_id": locations[0], "rating": 5, "comment": _COMMENTS[0]}
    voted = {"object_id": reviews[0], "content_type_id": tables.content_type("review")}
    things: dict[str, dict[str, Any]] = {
        "review": reviewed | {"user_id": ids["reviewer"], "created_at": moment},
        "vote": voted | {"user_id": ids["voter"], "is_upvote": True},
        "follow": {
            "follower_id": ids["follower"],
            "following_id": followed.id,
            "created_at": moment,
        },
        "favoritelocation": {
            "user_id": ids["collector"],
            "location_id": locations[1],
            "nickname": "Our place",
            "created_at": moment,
        },
    }
    for table, thing in things.items():
        tables.insert(f"starview_app_{table}", [thing])


def _since(person: Person, now: datetime, rng: Random) -> datetime:
    """Some moment after the person joined."""
    return person.joined + (now - person.joined) * rng.random()

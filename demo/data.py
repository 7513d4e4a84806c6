"""A year in the life of Starview: accounts, mail events and the audit log.

The same data for the same `now`, always: what `make demo` prints can be compared.
All names are made up, all addresses are in the domains and networks that are reserved
for examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import transaction

from demo.data_accounts import DEMO_MARK, Person, dice, people
from demo.data_audit import audit_rows
from demo.data_community import add_community
from demo.data_email import add_email_events
from demo.data_tables import Tables

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class DemoDataError(Exception):
    """The database is not one to load demo data into."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded; `accounts` is 0 when the demo data was there already."""

    accounts: int = 0
    audit_rows: int = 0

    def __str__(self) -> str:
        if not self.accounts:
            return "The demo data is loaded already: nothing to do."
        return (
            f"Loaded {self.accounts} accounts and {self.audit_rows} audit rows of one"
            " year."
        )


def load(connection: BaseDatabaseWrapper, now: datetime) -> Loaded:
    """Load everything in one transaction, or nothing when it is there already.

    Raises DemoDataError for a database with accounts that are not the demo's.
    """
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        if _is_loaded(cursor):
            return Loaded()
        tables = Tables(cursor.cursor)
        everyone = people(now, dice())
        _add_accounts(tables, everyone)
        add_community(tables, everyone, now, dice())
        add_email_events(tables, everyone, now)
        rows = audit_rows(everyone, now, dice())
        tables.insert("starview_app_auditlog", rows)
    return Loaded(len(everyone), len(rows))


def _is_loaded(cursor: Any) -> bool:
    cursor.execute(
        "SELECT count(*), count(*) FILTER (WHERE password = %s) FROM auth_user",
        [DEMO_MARK],
    )
    accounts, of_the_demo = cursor.fetchone()
    if accounts != of_the_demo:
        raise DemoDataError(
            f"the database has {accounts - of_the_demo} accounts that are not the"
            " demo's. HINT: use an empty database; the demo is never loaded beside"
            " real accounts."
        )
    return bool(accounts)


def _add_accounts(tables: Tables, everyone: list[Person]) -> None:
    """Insert the accounts with what django-allauth and the profile keep of them."""
    ids = tables.insert("auth_user", (person.user_row() for person in everyone))
    for person, user_id in zip(everyone, ids, strict=True):
        person.id = user_id
    tables.insert(
        "starview_app_userprofile", (person.profile_row() for person in everyone)
    )
    owned = [(person, address) for person in everyone for address in person.addresses]
    address_ids = tables.insert(
        "account_emailaddress",
        (address.row(person.id) for person, address in owned),
    )
    tables.insert(
        "account_emailconfirmation",
        (
            row
            for (_, address), address_id in zip(owned, address_ids, strict=True)
            for row in address.confirmation_rows(address_id)
        ),
    )
    tables.insert(
        "socialaccount_socialaccount",
        (person.social_row() for person in everyone if person.has_google),
    )

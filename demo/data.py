"""A year in the life of Starview: accounts, mail events and the audit log.

The rows are made by the SQL files beside this one, the same for the same `now`: what
`make demo` prints can be compared. All names are made up, all addresses are in the
domains and networks that are reserved for examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.db import transaction

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

_FILES = (
    "data_accounts.sql",
    "data_report.sql",
    "badges.sql",
    "data_badges.sql",
    "data_mail.sql",
    "data_audit.sql",
    "data_sites.sql",
    "data_runs.sql",
)
# Not random: multiples of the golden ratio spread evenly, and look random.
_FUNCTIONS = """
    CREATE OR REPLACE FUNCTION pg_temp.ago(days numeric) RETURNS timestamptz
    RETURN %(now)s::timestamptz - days * interval '1 day';

    CREATE OR REPLACE FUNCTION pg_temp.fraction(n bigint) RETURNS numeric
    RETURN n * 0.6180339887 %% 1;
"""
_COUNTS = """
    SELECT
        (SELECT count(*) FROM auth_user),
        (SELECT count(*) FROM auth_user WHERE password = '!starview-demo'),
        (SELECT count(*) FROM starview_app_auditlog)
"""


class DemoDataError(Exception):
    """The database must not get demo data."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded; `accounts` is 0 if the demo data existed already."""

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
        cursor.execute(_FUNCTIONS, {"now": now})
        for name in _FILES:
            cursor.execute(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        cursor.execute(_COUNTS)
        accounts, _, audit_rows = cursor.fetchone()
    return Loaded(accounts, audit_rows)


def _is_loaded(cursor: Any) -> bool:
    cursor.execute(_COUNTS)
    accounts, of_the_demo, _ = cursor.fetchone()
    if accounts != of_the_demo:
        raise DemoDataError(
            f"the database has {accounts - of_the_demo} accounts that are not the"
            " demo's. HINT: use an empty database; the demo is never loaded beside"
            " real accounts."
        )
    return bool(accounts)

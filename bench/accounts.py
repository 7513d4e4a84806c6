"""The time to delete unverified accounts, compared with SQL that does the same.

`cleanup_unverified_users` is a whole process, with its report of each account; psql
runs five statements in one transaction. Both begin with a copy of the same files.
"""

import sys
from dataclasses import dataclass

from bench.laboratory import PYTHON, Laboratory, measured, median_multiple

LIMIT = 1.15  # the command, as a multiple of psql

# Each with an address, an expired confirmation, a profile and an audit row.
_FILL = """
    CREATE TEMP TABLE made AS
    WITH made AS (
        INSERT INTO auth_user (
            username, email, password, first_name, last_name,
            is_staff, is_superuser, is_active, date_joined
        )
        SELECT
            'squatter_' || n, 'squatter_' || n || '@example.com', '!', '', '',
            FALSE, FALSE, TRUE, now() - INTERVAL '1 day' * (30 + n % 300)
        FROM generate_series(1, {accounts}) AS n
        RETURNING id, username, email, date_joined
    )
    SELECT * FROM made;

    WITH address AS (
        INSERT INTO account_emailaddress (user_id, email, verified, "primary")
        SELECT id, email, FALSE, TRUE FROM made
        RETURNING id
    )
    INSERT INTO account_emailconfirmation (email_address_id, created, sent, key)
    SELECT id, now() - INTERVAL '20 days', now() - INTERVAL '20 days', 'key_' || id
    FROM address;

    INSERT INTO starview_app_userprofile (
        user_id, created_at, updated_at, bio, is_verified, is_system_account,
        pinned_badge_ids, unit_preference, language_preference
    )
    SELECT id, now(), now(), '', FALSE, FALSE, '{{}}', 'metric', 'en' FROM made;

    INSERT INTO starview_app_auditlog (
        event_type, timestamp, success, message, user_id, username, user_agent, metadata
    )
    SELECT
        'registration_success', date_joined, TRUE, 'Registered', id, username, '',
        '{{}}'
    FROM made;
"""
_DUE = """
    SELECT id FROM auth_user
    WHERE
        username LIKE 'squatter%'
        AND date_joined < now() - INTERVAL '7 days'
        AND last_login IS NULL
"""
_DELETE = f"""
    BEGIN;
    CREATE TEMP TABLE due ON COMMIT DROP AS {_DUE};
    DELETE FROM account_emailconfirmation
    WHERE email_address_id IN (
        SELECT id FROM account_emailaddress WHERE user_id IN (SELECT id FROM due)
    );
    DELETE FROM account_emailaddress WHERE user_id IN (SELECT id FROM due);
    DELETE FROM starview_app_userprofile WHERE user_id IN (SELECT id FROM due);
    UPDATE starview_app_auditlog SET user_id = NULL
    WHERE user_id IN (SELECT id FROM due);
    DELETE FROM auth_user WHERE id IN (SELECT id FROM due);
    COMMIT;
"""


@dataclass(frozen=True)
class AccountFigures:
    """Seconds, one per turn."""

    accounts: int
    turns: int
    command: list[float]
    psql: list[float]

    @property
    def multiple(self) -> float:
        return median_multiple(self.command, self.psql)


def measure(laboratory: Laboratory, *, accounts: int, turns: int) -> AccountFigures:
    template = laboratory.prepare(
        f"accounts_{accounts}", _FILL.format(accounts=accounts)
    )
    command: list[float] = []
    psql: list[float] = []
    for _ in range(turns):
        psql.append(laboratory.psql(laboratory.fresh(template), _DELETE).seconds)
        environment = laboratory.environment(laboratory.fresh(template), bucket="none")
        words = [PYTHON, "manage.py", "cleanup_unverified_users"]
        done = measured(words, environment)
        if f"Successfully deleted {accounts} " not in done.output:
            sys.exit(f"not all were deleted:\n{done.output[-500:]}")
        command.append(done.seconds)
    return AccountFigures(accounts, turns, command, psql)

"""The rule for accounts that are due, and the protections that keep others.

A reference from an unknown table keeps an account: see `references`.
"""

from starview_app.maintenance.jobs import references
from starview_app.maintenance.jobs.references import Protection

# The accounts that the job considers: old enough, and no address was ever verified.
_UNVERIFIED = """
    account.date_joined < %(cutoff)s
    AND account.date_joined > '1900-01-01'  -- else nobody knows when
    AND NOT EXISTS (
        SELECT FROM account_emailaddress AS address
        WHERE address.user_id = account.id AND address.verified
    )
"""
_HAS_ADDRESS = """
    EXISTS (
        SELECT FROM account_emailaddress AS address
        WHERE address.user_id = account.id
    )
"""
_PROFILE = """
    FROM starview_app_userprofile AS profile
    WHERE
        profile.user_id = account.id
        AND (
            profile.is_system_account
            OR profile.is_verified
            OR coalesce(profile.profile_picture, '') <> ''  -- a file would be left
        )
"""
# The protections of these accounts, before those of `references`. A confirmation newer
# than the cut-off means that an address was added, or a link requested, after it.
_PROTECTIONS = (
    Protection("'staff'", "NOT account.is_staff AND NOT account.is_superuser"),
    Protection(
        f"""(
            SELECT CASE
                WHEN profile.is_system_account THEN 'a system account'
                WHEN profile.is_verified THEN 'a verified profile'
                ELSE 'a profile picture'
            END {_PROFILE} LIMIT 1
        )""",
        f"NOT EXISTS (SELECT {_PROFILE})",
    ),
    Protection("'deactivated'", "account.is_active"),
)
# The last protections, which explain the least.
_TRACES = (
    Protection("'has logged in'", "account.last_login IS NULL"),
    Protection("'no address'", _HAS_ADDRESS),
    Protection(
        "'a link newer than the cut-off'",
        """
        NOT EXISTS (
            SELECT FROM account_emailconfirmation AS confirmation
            JOIN account_emailaddress AS address
                ON address.id = confirmation.email_address_id
            WHERE
                address.user_id = account.id
                AND greatest(confirmation.created, confirmation.sent)
                    >= least(%(cutoff)s, %(link_cutoff)s)
        )
        """,
    ),
)
# Staff and system accounts that were created without an address have not signed up.
_SIGNED_UP = f"""
    (
        {_HAS_ADDRESS}
        OR NOT (
            account.is_staff
            OR account.is_superuser
            OR EXISTS (SELECT {_PROFILE} AND profile.is_system_account)
        )
    )
"""

ACCOUNT_COLUMNS = """
    account.id,
    account.username,
    coalesce(
        nullif(account.email, ''),
        (
            SELECT address.email
            FROM account_emailaddress AS address
            WHERE address.user_id = account.id
            ORDER BY address."primary" DESC, address.id
            LIMIT 1
        )
    ) AS email,
    account.date_joined
"""


class Rule:
    """SQL over `auth_user AS account`, with the parameters cutoff and link_cutoff.

    The protections are read from the catalog once, when the object is created.
    """

    def __init__(self) -> None:
        self._protections = [*_PROTECTIONS, *references.protections(), *_TRACES]
        is_clear = [f"({protection.is_clear})" for protection in self._protections]
        # A condition, true for an account that must be deleted.
        self.is_due = " AND ".join([_UNVERIFIED, *is_clear])

    def kept_sql(self) -> str:
        """Old and unverified accounts that are kept: the newest, and one a reason.

        In order of age, the `most` newest are the first. A row has the account, the
        reason, and the number of accounts with this reason.
        """
        cases = " ".join(
            f"WHEN NOT ({protection.is_clear}) THEN {protection.reason}"
            for protection in self._protections
        )
        return f"""
            WITH due AS MATERIALIZED (
                SELECT account.id FROM auth_user AS account WHERE {self.is_due}
            ), kept AS MATERIALIZED (
                SELECT {ACCOUNT_COLUMNS}, CASE {cases} END AS reason
                FROM auth_user AS account
                WHERE
                    {_UNVERIFIED}
                    AND {_SIGNED_UP}
                    AND NOT EXISTS (SELECT FROM due WHERE due.id = account.id)
            ), counted AS (
                SELECT
                    kept.*,
                    count(*) OVER (PARTITION BY reason) AS of_reason,
                    row_number() OVER (ORDER BY date_joined DESC, id DESC) AS place,
                    row_number() OVER (PARTITION BY reason) AS in_reason
                FROM kept
            )
            SELECT id, username, email, date_joined, reason, of_reason
            FROM counted
            WHERE place <= %(most)s OR in_reason = 1
            ORDER BY place
        """

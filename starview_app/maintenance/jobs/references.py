"""The rows that keep an account, found by the foreign keys in the database's catalog.

The web service has tables that this image does not know. So every foreign key to
`auth_user`, or to a row that is deleted with an account, protects the account, unless
it is listed here: as bookkeeping or as made by others, whose rows are deleted with the
account, or as history, whose rows are kept without the link.
"""

from dataclasses import dataclass

from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection
from django.db.backends.utils import CursorWrapper

USER_TABLE = "auth_user"
EMAIL_ADDRESS_TABLE = "account_emailaddress"
EMAIL_CONFIRMATION_TABLE = "account_emailconfirmation"
PROFILE_TABLE = "starview_app_userprofile"
# Rows that are deleted with the account: (table, column that refers to auth_user).
BOOKKEEPING = ((EMAIL_ADDRESS_TABLE, "user_id"), (PROFILE_TABLE, "user_id"))
# Also deleted with it: for an account that never verified, only others create these.
MADE_BY_OTHERS = (
    ("starview_app_userbadge", "user_id"),
    ("starview_app_follow", "following_id"),
)
# Rows that are kept, without the link, since they record events.
HISTORY = (
    ("starview_app_auditlog", "user_id"),
    ("starview_email_bounce", "user_id"),
    ("starview_email_complaint", "user_id"),
    ("starview_email_suppression", "user_id"),
)
# The tables, as `own`, whose rows are deleted with an account, and how they refer to
# it.
_OWN_ROWS = {
    EMAIL_ADDRESS_TABLE: (f"{EMAIL_ADDRESS_TABLE} AS own", "own.user_id = account.id"),
    PROFILE_TABLE: (f"{PROFILE_TABLE} AS own", "own.user_id = account.id"),
    EMAIL_CONFIRMATION_TABLE: (
        f"{EMAIL_CONFIRMATION_TABLE} AS own JOIN {EMAIL_ADDRESS_TABLE} AS address"
        " ON address.id = own.email_address_id",
        "address.user_id = account.id",
    ),
    **{
        table: (f"{table} AS own", f"own.{column} = account.id")
        for table, column in MADE_BY_OTHERS
    },
}
_CONFIRMATION_LINK = (EMAIL_CONFIRMATION_TABLE, "email_address_id")
_BOUNCE_LINK = ("starview_email_suppression", "bounce_id")
_HARMLESS = {
    *(*BOOKKEEPING, *MADE_BY_OTHERS, *HISTORY),
    *(_CONFIRMATION_LINK, _BOUNCE_LINK),
}
_SOCIAL_TABLE = "socialaccount_socialaccount"
_SIGNS_IN = f"""(
    SELECT 'signs in with ' || initcap(social.provider)
    FROM {_SOCIAL_TABLE} AS social
    WHERE social.user_id = account.id
    ORDER BY social.id
    LIMIT 1
)"""

_FOREIGN_KEYS = """
    SELECT
        namespace.nspname,
        class.relname,
        -- Another schema may have a table of the same name, which is not the known one.
        (class.oid = to_regclass(quote_ident(class.relname))) IS TRUE,
        ARRAY(
            SELECT attribute.attname::text
            FROM unnest(key.conkey) WITH ORDINALITY AS part(number, position)
            JOIN pg_attribute AS attribute
                ON attribute.attrelid = key.conrelid AND attribute.attnum = part.number
            ORDER BY part.position
        ),
        ARRAY(
            SELECT attribute.attname::text
            FROM unnest(key.confkey) WITH ORDINALITY AS part(number, position)
            JOIN pg_attribute AS attribute
                ON attribute.attrelid = key.confrelid AND attribute.attnum = part.number
            ORDER BY part.position
        )
    FROM pg_constraint AS key
    JOIN pg_class AS class ON class.oid = key.conrelid
    JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE
        key.contype = 'f'
        AND key.conparentid = 0  -- the partitions' copies of a key say nothing new
        AND key.confrelid = to_regclass(quote_ident(%(table)s))
    ORDER BY namespace.nspname, class.relname, key.conname
"""

# Foreign keys of the models that the database does not enforce (db_constraint=False, or
# a restore without them) count too, if their table and column exist.
_HAS_COLUMN = """
    SELECT count(*)
    FROM pg_attribute
    WHERE
        attrelid = to_regclass(quote_ident(%(table)s))
        AND attname = %(column)s
        AND NOT attisdropped
"""


@dataclass(frozen=True)
class Reference:
    """A foreign key: `columns` of `table` (quoted, with schema) to `target_columns`."""

    table: str
    columns: tuple[str, ...]
    target_columns: tuple[str, ...]
    name: str  # of the table, with its schema only if needed

    def matches(self, alias: str, target_alias: str) -> str:
        """SQL that joins the two aliases through this key."""
        return " AND ".join(
            f"{alias}.{_quoted(column)} = {target_alias}.{_quoted(target)}"
            for column, target in zip(self.columns, self.target_columns, strict=True)
        )

    def is_unused_by(self, target_alias: str) -> str:
        """SQL: true if no row of the table refers to the row of `target_alias`."""
        return (
            f"NOT EXISTS (SELECT FROM {self.table} AS owned"
            f" WHERE {self.matches('owned', target_alias)})"
        )


@dataclass(frozen=True)
class Protection:
    """A reason to keep an account, as SQL over `auth_user AS account`.

    `is_clear` is true for an account without this protection; `reason` is a text.
    """

    reason: str
    is_clear: str


def protections() -> list[Protection]:
    """Return the protections of accounts in this database.

    Raises django.db.Error if the catalog or a table cannot be read.
    """
    with connection.cursor() as cursor:
        direct = [*_references(cursor, USER_TABLE), *_unenforced(cursor)]
        found = [
            Protection(_reason(key), key.is_unused_by("account"))
            for key in dict.fromkeys(direct)
        ]
        for table, (own_rows, is_own) in _OWN_ROWS.items():
            found += [
                Protection(
                    _reason(key),
                    f"NOT EXISTS (SELECT FROM {own_rows} JOIN {key.table} AS owned"
                    f" ON {key.matches('owned', 'own')} WHERE {is_own})",
                )
                for key in _references(cursor, table)
            ]
    return found


def _reason(key: Reference) -> str:
    """SQL: `a review`, or the name of the table if this image does not know it."""
    if key.name == _SOCIAL_TABLE:
        return _SIGNS_IN
    names = {
        model._meta.db_table: str(model._meta.verbose_name)
        for model in apps.get_models(include_auto_created=True)
    }
    name = names.get(key.name, "")
    article = "an" if name[:1] in {*"aeio"} else "a"
    reason = f"{article} {name}" if name else f"a row of {key.name}"
    return "'" + reason.replace("'", "''").replace("%", "%%") + "'"


def unreferenced_sql(table: str, alias: str) -> str:
    """SQL: true if no unknown table refers to the row of `table AS alias`."""
    with connection.cursor() as cursor:
        conditions = [key.is_unused_by(alias) for key in _references(cursor, table)]
    return " AND ".join(["TRUE", *conditions])


def _references(cursor: CursorWrapper, table: str) -> list[Reference]:
    """Read the protecting foreign keys to `table` from the catalog."""
    cursor.execute(_FOREIGN_KEYS, {"table": table})
    return [
        Reference(
            f"{_quoted(schema)}.{_quoted(name)}",
            tuple(columns),
            tuple(targets),
            name if is_visible else f"{schema}.{name}",
        )
        for schema, name, is_visible, columns, targets in cursor.fetchall()
        if not is_visible or len(columns) > 1 or (name, columns[0]) not in _HARMLESS
    ]


def _unenforced(cursor: CursorWrapper) -> list[Reference]:
    """Return the models' foreign keys to the user whose table and column exist."""
    found: list[Reference] = []
    for relation in User._meta.related_objects:
        table = relation.related_model._meta.db_table
        column = relation.field.column
        if column is None or (table, column) in _HARMLESS:  # None: many-to-many
            continue
        cursor.execute(_HAS_COLUMN, {"table": table, "column": column})
        if cursor.fetchone() != (0,):
            found.append(Reference(_quoted(table), (column,), ("id",), table))
    return found


def _quoted(name: str) -> str:
    """Quote an identifier for a statement with parameters."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'

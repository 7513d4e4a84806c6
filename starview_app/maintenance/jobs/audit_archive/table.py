"""The columns of the audit log, read from the catalog.

The web service may add columns and partition the table. Whole rows must be archived, in
a form that can be restored.
"""

from dataclasses import dataclass

from django.db.backends.utils import CursorWrapper
from psycopg2.extensions import cursor as Cursor

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.text import one_line

TABLE = "starview_app_auditlog"
# In the order of the archive's first version.
KNOWN = (
    "id",
    "event_type",
    "timestamp",
    "success",
    "message",
    "user_id",
    "username",
    "ip_address",
    "user_agent",
    "metadata",
)
# The types with which the order of the rows and the text for people are made.
_NEEDED_TYPES = {
    "id": ("smallint", "integer", "bigint"),
    "timestamp": ("timestamp with time zone",),
    "success": ("boolean",),
    "metadata": ("jsonb", "json"),
}
_IP_TYPES = ("inet", "cidr")
# Types whose JSON is restored as the same value. Any other type is archived as
# PostgreSQL's text, which every type can read; so are json and jsonb, in which JSON's
# null could not be told from SQL's NULL.
_PLAIN_TYPES = (
    *("boolean", "smallint", "integer", "bigint", "real", "double precision"),
    *("numeric", "text", "character varying", "character", "uuid", "inet", "cidr"),
    *("date", "timestamp with time zone", "timestamp without time zone"),
)
_ISO_FORMAT = 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'
# The text of a value must not depend on the settings of the database or the role.
SET_TEXT_FORMS = """
    SELECT
        set_config('DateStyle', 'ISO, YMD', true),
        set_config('IntervalStyle', 'postgres', true),
        set_config('bytea_output', 'hex', true),
        set_config('extra_float_digits', '1', true)
"""
_FORM = f"""
    SELECT
        class.relkind,
        row_security_active(class.oid),
        EXISTS (
            SELECT FROM pg_inherits
            WHERE inhparent = class.oid AND class.relkind <> 'p'
        )
    FROM pg_class AS class
    WHERE class.oid = '{TABLE}'::regclass
"""
_COLUMNS = f"""
    SELECT
        attname,
        format_type(atttypid, atttypmod),
        format_type(atttypid, NULL) = ANY (%(plain_types)s),
        attgenerated <> '',
        attnotnull,
        format_type(coalesce(nullif(type.typbasetype, 0), atttypid), NULL)
    FROM pg_attribute
    JOIN pg_type AS type ON type.oid = atttypid
    WHERE attrelid = '{TABLE}'::regclass AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum
"""


@dataclass(frozen=True)
class Column:
    name: str
    type: str  # in SQL's notation
    is_plain: bool  # its JSON is restored as the same value
    is_generated: bool  # computed from other columns, so never written
    is_required: bool  # NOT NULL
    base_type: str  # without a length, and what a domain is made of

    @property
    def quoted(self) -> str:
        """The quoted name, for a statement with parameters."""
        return '"' + self.name.replace('"', '""').replace("%", "%%") + '"'

    @property
    def literal(self) -> str:
        """The name as an SQL string, for a statement with parameters."""
        return "'" + self.name.replace("'", "''").replace("%", "%%") + "'"

    @property
    def archived_type(self) -> str:
        """The type of its value in the JSON."""
        return self.type.replace("%", "%%") if self._is_as_it_is else "text"

    @property
    def as_archived(self) -> str:
        """SQL: the column's value for the JSON."""
        if self.name == "timestamp":
            # Like Python's isoformat() and the first version: six digits or none.
            text = f"to_char({self.quoted} AT TIME ZONE 'UTC', '{_ISO_FORMAT}')"
            return f"replace({text}, '.000000', '') AS {self.quoted}"
        if self._is_as_it_is:
            return self.quoted
        return f"{self.quoted}::text AS {self.quoted}"

    @property
    def json_of_text(self) -> str:
        """SQL: the column's text, quoted as in JSON."""
        return f"to_json({self.quoted}::text)::text"

    @property
    def ip_text(self) -> str:
        """SQL: the text of an IP address; quoted if the column may have any text."""
        is_ip = self.base_type in _IP_TYPES
        return f"host({self.quoted})" if is_ip else self.json_of_text

    def as_it_was(self, alias: str) -> str:
        """SQL: the column's value, from the one in the JSON."""
        archived = f"{alias}.{self.quoted}"
        if self.name == "metadata" and self.is_required:
            # JSON's null is restored as SQL's NULL, which this column does not accept,
            # so it must have been JSON's `null`.
            return f"coalesce({archived}, 'null')"
        if self._is_as_it_is:
            return archived
        return f"{archived}::{self.type.replace('%', '%%')}"

    @property
    def is_comparable(self) -> bool:
        """Whether its type has an equality operator; json and xml have none."""
        return self._is_as_it_is and self.type != "json"

    @property
    def _is_as_it_is(self) -> bool:
        return self.is_plain or self.name in KNOWN


def read_columns(cursor: CursorWrapper | Cursor) -> tuple[Column, ...]:
    """Return every column of the audit log, the known ones first.

    The caller must have locked the table, in any mode, so that the columns do not
    change before the end of the transaction. Raises JobError if some rows, or a part of
    them, could not be seen, archived or restored.
    """
    cursor.execute(_FORM)
    ((kind, has_row_security, has_children),) = cursor.fetchall()
    if has_row_security:
        raise JobError(
            f"row-level security may hide rows of {TABLE} from this database user"
            " HINT: connect as the owner of the table, or as a user with BYPASSRLS"
        )
    if kind not in ("r", "p") or has_children:
        what = "a table that others inherit from" if has_children else "no table"
        raise JobError(
            f"{TABLE} is {what}: its rows could not be restored as they were HINT:"
            " partitions are archived; inheritance, views and foreign tables are not"
        )
    cursor.execute(_COLUMNS, {"plain_types": list(_PLAIN_TYPES)})
    found = {row[0]: Column(*row) for row in cursor.fetchall()}
    if missing := [name for name in KNOWN if name not in found]:
        raise JobError(
            f"{TABLE} has no column {', '.join(missing)}: this version of the image"
            " does not know such a table HINT: update the image, or undo that change"
        )
    for name, types in _NEEDED_TYPES.items():
        if found[name].base_type not in types:
            raise JobError(
                f"{TABLE} has the column {name} as {one_line(found[name].type)} and not"
                f" as {' or '.join(types)}: this"
                " version of the image does not know such a table HINT: update the"
                " image, or undo that change"
            )
    return (
        *(found.pop(name) for name in KNOWN),
        *found.values(),
    )

"""The contents of a database: row counts and hashes of its tables, and its sequences.

They are measured in the snapshot of a dump, and again after a restore: both must be
equal, row for row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict

import psycopg2
from django.db import DatabaseError
from django.db.backends.utils import CursorWrapper
from psycopg2.errors import UndefinedTable
from psycopg2.extensions import cursor as Cursor

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.database_backup.programs import RECORDS

# Settings with which values have the same text in every database session.
_TEXT_FORMS = """
    SET LOCAL search_path = '';
    SET LOCAL TimeZone = 'UTC';
    SET LOCAL DateStyle = 'ISO';
    SET LOCAL IntervalStyle = 'postgres';
    SET LOCAL extra_float_digits = 1;
    SET LOCAL bytea_output = 'hex'
"""
# Without tables of extensions, which create them again, and the records of backups.
_TABLES = """
    SELECT
        format('%%I.%%I', schema.nspname, found.relname)
    FROM pg_catalog.pg_class AS found
    JOIN pg_catalog.pg_namespace AS schema ON schema.oid = found.relnamespace
    WHERE found.relkind = 'r'
        AND found.relpersistence <> 't'
        AND schema.nspname <> 'information_schema'
        AND schema.nspname !~ '^pg_'
        AND found.relname <> %(records)s
        AND NOT EXISTS (
            SELECT
            FROM pg_catalog.pg_depend
            WHERE classid = 'pg_catalog.pg_class'::regclass
                AND objid = found.oid
                AND deptype = 'e'
        )
    ORDER BY 1
"""
# A sum of hashes, since rows have no order.
_ROWS = """
    SELECT
        count(*),
        coalesce(sum(hashtextextended((found.*)::text, 0)::numeric), 0)::text
    FROM ONLY {table} AS found
"""
_SEQUENCES = """
    SELECT
        format('%I.%I', schemaname, sequencename),
        last_value
    FROM pg_catalog.pg_sequences
    WHERE NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_depend
        WHERE classid = 'pg_catalog.pg_class'::regclass
            AND objid = format('%I.%I', schemaname, sequencename)::regclass
            AND deptype = 'e'
    )
    ORDER BY 1
"""


class Table(NamedTuple):
    rows: int
    checksum: str


Sequences = dict[str, int | None]


class Contents(TypedDict):
    """The contents as recorded, in JSON.

    Sequences are not part of a snapshot and advance during the dump, so their values
    before and after it are recorded.
    """

    tables: dict[str, list[Any]]
    sequences: dict[str, list[int | None]]


def set_text_forms(cursor: CursorWrapper | Cursor) -> None:
    """Apply _TEXT_FORMS for the rest of the transaction."""
    cursor.execute(_TEXT_FORMS)


def read_tables(cursor: CursorWrapper | Cursor) -> dict[str, Table]:
    with _none_dropped():
        cursor.execute(_TABLES, {"records": RECORDS})
        names = [name for (name,) in cursor.fetchall()]
        return {name: _read_table(cursor, name) for name in names}


def _read_table(cursor: CursorWrapper | Cursor, name: str) -> Table:
    cursor.execute(_ROWS.format(table=name))
    return Table(*(cursor.fetchone() or (0, "")))


def read_sequences(cursor: CursorWrapper | Cursor) -> Sequences:
    """Return the last value of each sequence; None for one that was never used."""
    with _none_dropped():
        cursor.execute(_SEQUENCES)
        return dict(cursor.fetchall())


@contextmanager
def _none_dropped() -> Iterator[None]:
    """A snapshot still names what was dropped since, which cannot be read any more."""
    try:
        yield
    except (DatabaseError, psycopg2.Error) as error:
        is_gone = isinstance(error.__cause__ or error, UndefinedTable)
        if not is_gone and "could not open relation" not in str(error):
            raise
        raise JobError(
            f"a table or sequence was dropped meanwhile: {message_of(error)} HINT: run"
            " it again"
        ) from error


def as_contents(
    tables: dict[str, Table], before: Sequences, after: Sequences
) -> Contents:
    return {
        "tables": {name: list(table) for name, table in tables.items()},
        "sequences": {name: [before[name], after.get(name)] for name in before},
    }


def rows_of(contents: Contents) -> int:
    return sum(int(rows) for rows, _ in contents["tables"].values())


def differences(
    contents: Contents, tables: dict[str, Table], sequences: Sequences
) -> list[str]:
    """Return the differences between a restored database and the record, as lines."""
    found = []
    wanted = {name: Table(*values) for name, values in contents["tables"].items()}
    for name in sorted(wanted.keys() | tables.keys()):
        if name not in tables:
            found.append(f"table {name} is missing")
        elif name not in wanted:
            found.append(f"table {name} is not on record")
        elif wanted[name].rows != tables[name].rows:
            found.append(
                f"table {name} has {tables[name].rows} rows instead of"
                f" {wanted[name].rows}"
            )
        elif wanted[name] != tables[name]:
            found.append(f"table {name} has other rows than were backed up")
    for name, (before, after) in sorted(contents["sequences"].items()):
        if name not in sequences:
            found.append(f"sequence {name} is missing")
        elif not _lies_between(sequences[name], before, after):
            found.append(
                f"sequence {name} is at {sequences[name]} instead of {before}"
                + ("" if before == after else f" to {after}")
            )
    return found


def _lies_between(value: int | None, before: int | None, after: int | None) -> bool:
    if value in (before, after):
        return True
    if value is None or after is None:
        return False
    return before is None or min(before, after) <= value <= max(before, after)

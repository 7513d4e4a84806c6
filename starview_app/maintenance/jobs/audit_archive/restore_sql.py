"""The statements of a restore: they turn lines into rows, and insert these.

They use two temporary tables, restored_line and restored.
"""

from collections.abc import Sequence

from django.db import NotSupportedError
from django.db.backends.utils import CursorWrapper

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.table import TABLE, Column

MAKE_LINES = "CREATE TEMPORARY TABLE restored_line (line text) ON COMMIT DROP"
# Copies lines unchanged: the quote and the delimiter do not occur in JSON text.
COPY_LINES = r"""
    COPY pg_temp.restored_line (line)
    FROM STDIN WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
"""
_ROWS = """pg_temp.restored_line WHERE line LIKE '{"id":%%'"""
# The names in one row: all rows of an object have the same.
ARCHIVED_NAMES = f"""
    SELECT json_object_keys(first.line)
    FROM (SELECT rtrim(line, ',')::json AS line FROM {_ROWS} LIMIT 1) AS first
"""
LEAVE_OTHERS_OUT = """
    DELETE FROM pg_temp.restored
    WHERE
        "timestamp" < %(since)s
        OR "timestamp" >= %(until)s
"""
# The web service does the same when it deletes an account: it keeps the events.
UNLINK = """
    UPDATE pg_temp.restored AS log
    SET user_id = NULL
    WHERE
        user_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM auth_user WHERE auth_user.id = log.user_id)
"""
# Whether a trigger may alter what is inserted.
_HAS_TRIGGER = f"""
    SELECT EXISTS (
        SELECT
        FROM pg_trigger
        WHERE
            tgrelid IN (
                SELECT '{TABLE}'::regclass
                UNION
                SELECT relid FROM pg_partition_tree('{TABLE}')
            )
            AND NOT tgisinternal
            AND tgenabled <> 'D'
            AND tgtype & 4 <> 0  -- on INSERT
    )
"""
# The ids of an object lie close together. With the bounds the index on id finds the
# rows of the table between the first and the last; without them the plan would depend
# on the planner's guess about the temporary table.
_PRESENT = f"""
    {TABLE} AS present
    WHERE
        present.id = log.id
        AND present.id >= (SELECT min(id) FROM pg_temp.restored)
        AND present.id <= (SELECT max(id) FROM pg_temp.restored)
"""


def read_rows_sql(columns: Sequence[Column]) -> str:
    """SQL: create the table of the rows, without the object's head and tail."""
    as_it_was = ", ".join(
        f"{column.as_it_was('log')} AS {column.quoted}" for column in columns
    )
    types = ", ".join(f"{column.quoted} {column.archived_type}" for column in columns)
    return f"""
        CREATE TEMPORARY TABLE restored ON COMMIT DROP AS
        SELECT {as_it_was}
        FROM pg_temp.restored_line AS read,
            json_to_record(rtrim(read.line, ',')::json) AS log ({types})
        WHERE read.line LIKE '{{"id":%%'
    """


def _insert_sql(columns: Sequence[Column]) -> str:
    """SQL: insert the rows whose id is not in the table, even without a unique key."""
    names = ", ".join(column.quoted for column in columns)
    return f"""
        INSERT INTO {TABLE} ({names})
        OVERRIDING SYSTEM VALUE
        SELECT {names}
        FROM pg_temp.restored AS log
        WHERE NOT EXISTS (SELECT FROM {_PRESENT})
        ON CONFLICT DO NOTHING
    """


def compare_sql(columns: Sequence[Column]) -> str:
    """SQL: how many ids are in the table, how many with other contents, the first such.

    A link to an account that only one side has was removed with the account.
    """
    compared = [column for column in columns if column.name not in ("id", "user_id")]
    present, log = (
        ", ".join(
            f"{alias}.{column.quoted}" + ("" if column.is_comparable else "::text")
            for column in compared
        )
        for alias in ("present", "log")
    )
    return f"""
        SELECT
            count(*),
            count(*) FILTER (WHERE is_other),
            min(id) FILTER (WHERE is_other)
        FROM (
            SELECT
                log.id,
                bool_and(
                    coalesce(present.user_id <> log.user_id, FALSE)
                    OR ({present}) IS DISTINCT FROM ({log})
                ) AS is_other
            FROM pg_temp.restored AS log, {_PRESENT}
            GROUP BY log.id
        ) AS compared
    """


# A quoted name; NULL if the ids do not come from a sequence of the column.
_COUNTER = "SELECT pg_get_serial_sequence('starview_app_auditlog', 'id')"
# In a new database the counter begins below the restored ids. An id at the very end of
# the range did not come from the counter, and would exhaust it.
_ADVANCE_COUNTER = """
    SELECT setval(%(counter)s, highest.id)
    FROM
        {counter} AS counter,
        (
            SELECT max(log.id) AS id
            FROM pg_temp.restored AS log
            JOIN pg_sequence AS sequence
                ON sequence.seqrelid = %(counter)s::regclass
                AND log.id < sequence.seqmax / 10 * 9
        ) AS highest
    WHERE highest.id >= counter.last_value
"""


def written(columns: Sequence[Column]) -> list[Column]:
    """Return the columns without those that PostgreSQL computes."""
    return [column for column in columns if not column.is_generated]


def _advance_counter(cursor: CursorWrapper) -> None:
    """Advance the counter beyond the ids of the temporary table; never move it back."""
    cursor.execute(_COUNTER)
    (counter,) = cursor.fetchone()
    if counter:
        statement = _ADVANCE_COUNTER.format(counter=counter.replace("%", "%%"))
        cursor.execute(statement, {"counter": counter})


def insert_rows(cursor: CursorWrapper, columns: Sequence[Column]) -> tuple[int, int]:
    """Insert the rows that are not there; return their number, and how many of these
    are not as they were, since a trigger altered them.
    """
    # First, so that the web service does not use these ids.
    _advance_counter(cursor)
    cursor.execute(_HAS_TRIGGER)
    (has_trigger,) = cursor.fetchone()
    before = _differing(cursor, columns) if has_trigger else 0
    try:
        cursor.execute(_insert_sql(columns), {})
    except NotSupportedError as error:
        raise JobError(
            f"nothing can be restored while {TABLE} has a rule ON INSERT or ON UPDATE"
            " HINT: drop the rule for the restore"
        ) from error
    inserted = cursor.rowcount
    after = _differing(cursor, columns) if has_trigger else 0
    return inserted, max(after - before, 0)


def _differing(cursor: CursorWrapper, columns: Sequence[Column]) -> int:
    cursor.execute(compare_sql(columns), {})
    _, differing, _ = cursor.fetchone()
    return int(differing)

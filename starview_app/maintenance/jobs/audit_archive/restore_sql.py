"""The statements of a restore: an object's lines become rows, and the rows come back.

They work on two temporary tables, restored_line and restored.
"""

from collections.abc import Sequence

from django.db.backends.utils import CursorWrapper

from starview_app.maintenance.jobs.audit_archive.table import TABLE, Column

MAKE_LINES = "CREATE TEMPORARY TABLE restored_line (line text) ON COMMIT DROP"
# The lines of an object as they are: neither character occurs in JSON text.
COPY_LINES = r"""
    COPY pg_temp.restored_line (line)
    FROM STDIN WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
"""
_ROWS = """pg_temp.restored_line WHERE line LIKE '{"id":%%'"""
# Of one row: all rows of an object have the same.
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
# As the web service does when it deletes an account: what happened stays on record.
UNLINK = """
    UPDATE pg_temp.restored AS log
    SET user_id = NULL
    WHERE
        user_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM auth_user WHERE auth_user.id = log.user_id)
"""
# The ids of an object lie close together. The index on them finds what the table has
# between the first and the last, whatever the planner guesses of a temporary table.
_PRESENT = f"""
    {TABLE} AS present
    WHERE
        present.id = log.id
        AND present.id >= (SELECT min(id) FROM pg_temp.restored)
        AND present.id <= (SELECT max(id) FROM pg_temp.restored)
"""


def read_rows_sql(columns: Sequence[Column]) -> str:
    """Make the table of the rows, as they were; the object's head and tail are none."""
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


def insert_sql(columns: Sequence[Column]) -> str:
    """Rows whose id is in the table stay out, also where no key makes ids unique."""
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
    """How many ids are there; how many of them with other contents, and the first.

    A link that only one of the two has was removed with its account.
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


# Quoted as SQL needs it; NULL when the ids come from elsewhere.
_COUNTER = "SELECT pg_get_serial_sequence('starview_app_auditlog', 'id')"
# In a database that was built anew the counter begins below the restored ids. An id at
# the very end of its range did not come from it, and would use it up.
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
    """Without those that PostgreSQL computes."""
    return [column for column in columns if not column.is_generated]


def advance_counter(cursor: CursorWrapper) -> None:
    """Take the counter of ids beyond those of the temporary table; never backwards."""
    cursor.execute(_COUNTER)
    (counter,) = cursor.fetchone()
    if counter:
        statement = _ADVANCE_COUNTER.format(counter=counter.replace("%", "%%"))
        cursor.execute(statement, {"counter": counter})

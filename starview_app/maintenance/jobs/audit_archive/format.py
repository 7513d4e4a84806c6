r"""How an archive looks: JSON for machines, TXT for people, both written by PostgreSQL.

Each row is one line, so lines can be counted. COPY's text format would double every
backslash; the CSV format with quote and delimiter characters that never occur (JSON
text holds no control characters) writes a value as it is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from starview_app.maintenance.jobs.audit_archive.table import KNOWN, TABLE, Column
from starview_app.maintenance.text import UNPRINTABLE_RANGES

# Between two rows, at the end of the line.
SEPARATOR = {"json": b",", "txt": b""}

# A date that only a slip can have made stays in the table: no object could be named
# after it.
_DUE = "timestamp < %(cutoff)s AND timestamp > '1900-01-01'"
COUNT_DUE = f"SELECT count(*) FROM starview_app_auditlog WHERE {_DUE}"
_BEHIND = f"""
    {_DUE}
    AND timestamp >= %(after_timestamp)s
    AND (timestamp, id) > (%(after_timestamp)s, %(after_id)s)
"""
# First and last row of the next segment behind (after_timestamp, after_id): as many due
# rows as allowed, in the order (timestamp, id), of one calendar month of UTC. The end
# of the month is one value, known before the scan, so the index on timestamp gives
# order and bounds, and the scan ends at the limit.
PLAN = f"""
    WITH segment AS (
        SELECT timestamp, id
        FROM starview_app_auditlog
        WHERE
            {_BEHIND}
            AND timestamp < (
                SELECT (
                    date_trunc('month', min(timestamp) AT TIME ZONE 'UTC')
                    + INTERVAL '1 month'
                ) AT TIME ZONE 'UTC'
                FROM starview_app_auditlog
                WHERE {_BEHIND}
            )
        ORDER BY timestamp, id
        LIMIT %(segment_rows)s
    )
    (SELECT timestamp, id FROM segment ORDER BY timestamp, id LIMIT 1)
    UNION ALL
    (SELECT timestamp, id FROM segment ORDER BY timestamp DESC, id DESC LIMIT 1)
"""

# The rows of a segment: both ends inclusive.
_RANGE = """
    timestamp BETWEEN %(first_timestamp)s AND %(last_timestamp)s
    AND (timestamp, id) >= (%(first_timestamp)s, %(first_id)s)
    AND (timestamp, id) <= (%(last_timestamp)s, %(last_id)s)
"""
SUMMARY = f"""
    SELECT
        count(*),
        min(timestamp),
        max(timestamp),
        (
            SELECT id FROM starview_app_auditlog WHERE {_RANGE}
            ORDER BY timestamp, id LIMIT 1
        ),
        (
            SELECT id FROM starview_app_auditlog WHERE {_RANGE}
            ORDER BY timestamp DESC, id DESC LIMIT 1
        )
    FROM starview_app_auditlog
    WHERE {_RANGE}
"""
DELETE = f"DELETE FROM starview_app_auditlog WHERE {_RANGE}"
# To be completed with the condition that no row of another table refers to the log.
COUNT_REFERRED = f"""
    SELECT count(*)
    FROM starview_app_auditlog AS log
    WHERE {_RANGE} AND NOT ({{unreferenced}})
"""

# What to_json leaves as it is although a terminal or an editor would act on it: for a
# bracket expression of PostgreSQL's regular expressions.
_CONTROLS = "".join(
    rf"\U{max(first, 0x20):08x}-\U{last:08x}"
    for first, last in UNPRINTABLE_RANGES
    if last >= 0x20
)


# The finished line of a row, with such characters written \uXXXX, as JSON may. Most
# lines are plain ASCII, which is quick to see in UTF-8, a database's only encoding
# here: those need no search.
ESCAPED_LINE = rf"""
    CASE
        WHEN
            octet_length(line) = char_length(line)
            AND strpos(line, E'\x7f') = 0
        THEN line
        WHEN line ~ '[{_CONTROLS}]'
        THEN (
            SELECT string_agg(
                CASE
                    WHEN sign !~ '[{_CONTROLS}]' THEN sign
                    WHEN ascii(sign) <= 65535
                    THEN '\u' || lpad(to_hex(ascii(sign)), 4, '0')
                    ELSE '\u' || to_hex(55296 + ((ascii(sign) - 65536) >> 10))
                        || '\u' || to_hex(56320 + ((ascii(sign) - 65536) & 1023))
                END,
                '' ORDER BY position
            )
            FROM regexp_split_to_table(line, '') WITH ORDINALITY AS t(sign, position)
        )
        ELSE line
    END
"""


# Not a name that a column may have: PostgreSQL would take that column instead.
_ROW = "starview_archived_row"


def copy_sql(kind: str, columns: Sequence[Column]) -> str:
    """The COPY of a segment's rows, a line each; takes the segment's ends."""
    row = _json_row(columns) if kind == "json" else _txt_row(columns)
    return rf"""
        COPY ({row}) TO STDOUT
        WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
    """


def _json_row(columns: Sequence[Column]) -> str:
    """The known columns come first, as ever, and all others after them."""
    return f"""
        SELECT row_to_json({_ROW})::text || ','
        FROM (
            SELECT {", ".join(column.as_archived for column in columns)}
            FROM {TABLE}
            WHERE {_RANGE}
            ORDER BY timestamp, id
        ) AS {_ROW}
    """


def _txt_row(columns: Sequence[Column]) -> str:
    """concat_ws leaves out what is null.

    Every text of a row is quoted and escaped, so that no field can look like another
    one, or like another line. The line is searched once, not each of its fields; as
    rows in order it is computed once as well, whatever is asked of it.
    """
    others = "".join(
        f"{column.literal} || '=' || {column.json_of_text},"
        for column in columns
        if column.name not in KNOWN
    )
    return f"""
        SELECT {ESCAPED_LINE}
        FROM (
            SELECT concat_ws(
                ' ',
                to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
                CASE WHEN success THEN 'OK  ' ELSE 'FAIL' END,
                to_json(event_type)::text,
                'user=' || to_json(username)::text,
                'user_id=' || user_id,
                'ip=' || host(ip_address),
                'message=' || to_json(message)::text,
                'agent=' || to_json(user_agent)::text,
                'metadata=' || metadata::text,
                {others}
                'id=' || id
            ) AS line
            FROM {TABLE}
            WHERE {_RANGE}
            ORDER BY timestamp, id
        ) AS rows_in_order
    """


@dataclass(frozen=True)
class Batch:
    """The rows of one segment: how many, from where to where (both inclusive)."""

    count: int
    first: datetime
    last: datetime
    first_id: int
    last_id: int
    archived_at: datetime
    retention_days: int

    def head(self, kind: str) -> bytes:
        """What stands before the rows; it ends with a line end."""
        return self._json_head() if kind == "json" else self._txt_head()

    def tail(self, kind: str) -> bytes:
        """What stands after the rows."""
        return b"]}\n" if kind == "json" else b""

    def _json_head(self) -> bytes:
        envelope = {
            "archive_date": moment_text(self.archived_at),
            "retention_days": self.retention_days,
            "log_count": self.count,
            "date_range": {
                "from": moment_text(self.first),
                "to": moment_text(self.last),
            },
        }
        return json.dumps(envelope)[:-1].encode() + b', "logs": [\n'

    def _txt_head(self) -> bytes:
        rule = "=" * 80
        return (
            f"STARVIEW AUDIT LOG ARCHIVE\n{rule}\n"
            f"Archived:  {moment_text(self.archived_at)},"
            f" rows older than {self.retention_days} days\n"
            f"Rows:      {self.count}\n"
            f"From:      {_utc(self.first):%Y-%m-%d %H:%M:%S} UTC\n"
            f"To:        {_utc(self.last):%Y-%m-%d %H:%M:%S} UTC\n"
            "One line is one event. Quoted text is escaped as JSON does: a line break\n"
            "or control character inside a field is written \\n or \\u001b.\n"
            f"{rule}\n"
        ).encode()


def object_stem(
    *, first: datetime, last: datetime, archived_at: datetime, number: int
) -> str:
    """The guide's name without its ending; `number`, from 1, tells segments apart."""
    suffix = f"_{number:04d}" if number > 1 else ""
    return (
        f"audit_logs_{_utc(first):%Y%m%d}_to_{_utc(last):%Y%m%d}"
        f"_{_utc(archived_at):%Y%m%d_%H%M%S}{suffix}"
    )


def kind_of(name: str) -> str:
    """`json` or `txt`, of an object of a segment."""
    return "json" if name.removesuffix(".gz").endswith(".json") else "txt"


def moment_text(moment: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return _utc(moment).isoformat()


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)

r"""The format of an archive: JSON for machines, TXT for people, made by PostgreSQL.

Each row is one line, so lines can be counted. COPY's text format would double every
backslash. The CSV format writes a value unchanged, if its quote and delimiter are
characters that do not occur: JSON text has no control characters.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from starview_app.maintenance.jobs.audit_archive.table import KNOWN, TABLE, Column
from starview_app.maintenance.text import UNPRINTABLE_RANGES

# What separates two rows, at the end of a line.
SEPARATOR = {"json": b",", "txt": b""}

# Rows with an absurd date stay in the table: no object could be named after it.
_DUE = "timestamp < %(cutoff)s AND timestamp > '1900-01-01'"
COUNT_DUE = f"SELECT count(*) FROM starview_app_auditlog WHERE {_DUE}"
_BEHIND = f"""
    {_DUE}
    AND timestamp >= %(after_timestamp)s
    AND (timestamp, id) > (%(after_timestamp)s, %(after_id)s)
"""
# First and last row of the next segment after (after_timestamp, after_id): as many due
# rows as allowed, in the order (timestamp, id), of one calendar month of UTC. The end
# of the month is computed before the scan, so the index on timestamp gives the order
# and the bounds, and the scan ends at the limit.
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

# The rows of a segment; both ends are inclusive.
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
# The condition that no row of another table refers to the log is filled in.
COUNT_REFERRED = f"""
    SELECT count(*)
    FROM starview_app_auditlog AS log
    WHERE {_RANGE} AND NOT ({{unreferenced}})
"""

# Characters that to_json does not escape, although a terminal or an editor would act on
# them; for a bracket expression in PostgreSQL's regular expressions.
_CONTROLS = "".join(
    rf"\U{max(first, 0x20):08x}-\U{last:08x}"
    for first, last in UNPRINTABLE_RANGES
    if last >= 0x20
)


# The line of a row, with these characters written as \uXXXX, as JSON allows. Most lines
# are ASCII, which a comparison of lengths shows, since every database here has the
# encoding UTF-8; these lines are not searched.
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


# No column has this name; PostgreSQL would take the column instead of the row.
_ROW = "starview_archived_row"


def copy_sql(kind: str, columns: Sequence[Column]) -> str:
    """Return the COPY of a segment's rows, a line each; its parameters are the ends."""
    row = _json_row(columns) if kind == "json" else _txt_row(columns)
    return rf"""
        COPY ({row}) TO STDOUT
        WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
    """


def _json_row(columns: Sequence[Column]) -> str:
    """SQL: the row as JSON, the known columns first, in their old order."""
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
    """SQL: the row as one line of text, without the fields that are NULL.

    Every text is quoted and escaped, so that no field can look like another field or
    another line. The whole line is searched once for characters to escape, not each
    field. The subquery has an order so that PostgreSQL computes the line only once.
    """
    others = "".join(
        f"{column.literal} || '=' || {column.json_of_text},"
        for column in columns
        if column.name not in KNOWN
    )
    (ip_text,) = (column.ip_text for column in columns if column.name == "ip_address")
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
                'ip=' || {ip_text},
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
    """The rows of one segment: their number, and both ends (inclusive)."""

    count: int
    first: datetime
    last: datetime
    first_id: int
    last_id: int
    archived_at: datetime
    retention_days: int

    def head(self, kind: str) -> bytes:
        """The text before the rows; it ends with a line end."""
        return self._json_head() if kind == "json" else self._txt_head()

    def tail(self, kind: str) -> bytes:
        """The text after the rows."""
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
    """Return the guide's name without suffix; `number`, from 1, makes it unique."""
    suffix = f"_{number:04d}" if number > 1 else ""
    return (
        f"audit_logs_{_utc(first):%Y%m%d}_to_{_utc(last):%Y%m%d}"
        f"_{_utc(archived_at):%Y%m%d_%H%M%S}{suffix}"
    )


def kind_of(name: str) -> str:
    """Return `json` or `txt` for an object of a segment."""
    return "json" if name.removesuffix(".gz").endswith(".json") else "txt"


def moment_text(moment: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds."""
    return _utc(moment).isoformat()


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)

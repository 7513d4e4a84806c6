"""Reads the archives of the web service's own first version, as streams.

An archive is one JSON object (`json.dumps(..., indent=2)`: a head, then all rows) and
one TXT for people, which has the same rows with a line for each field. It has no
manifest and no hash. Source: archive_audit_logs of the web service, February 2026.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import ijson

from starview_app.maintenance.jobs.audit_archive.segments import Position
from starview_app.maintenance.jobs.audit_archive.table import KNOWN
from starview_app.maintenance.jobs.audit_archive.transfer import (
    LINE_BYTES,
    PiecesFile,
    TooLargeError,
)

_STEM = re.compile(
    r"(audit_logs_([0-9]{8})_to_([0-9]{8})_[0-9]{8}_[0-9]{6})\.(?:json|txt)"
)
_RULE = re.compile(rb"[-=\s]*")
_COUNT = re.compile(rb"Log Count: ([0-9]+)")

Row = dict[str, Any]


class NotReadableError(Exception):
    """The object is not what the first version wrote; the text has the reason."""


@dataclass(frozen=True)
class Head:
    archived_at: datetime
    retention_days: int
    rows: int


def stem_of(name: str) -> str:
    """Return the common part of the names of an archive's JSON and TXT; else empty."""
    match = _STEM.fullmatch(name)
    return match.group(1) if match else ""


def dates_of(name: str) -> tuple[date, date] | None:
    """Return the first and the last day in an archive's name; None for other names."""
    match = _STEM.fullmatch(name)
    if not match:
        return None
    try:
        first, last = map(date.fromisoformat, match.group(2, 3))
    except ValueError:
        return None
    return first, last


def read_head(pieces: Iterable[bytes]) -> Head:
    """Read the head, no further than to the first row. Raises NotReadableError."""
    found: dict[str, Any] = {}
    with _as_not_readable():
        for prefix, event, value in ijson.parse(PiecesFile(pieces)):
            if prefix == "logs":
                break
            if event in ("string", "number"):
                found[prefix] = value
        return Head(
            archived_at=_moment(found["archive_date"]),
            retention_days=int(found["retention_days"]),
            rows=int(found["log_count"]),
        )


def read_rows(pieces: Iterable[bytes]) -> Iterator[Row]:
    """Yield each row with its fields in the known order. Raises NotReadableError."""
    with _as_not_readable():
        for row in ijson.items(PiecesFile(pieces), "logs.item"):
            yield {**{name: row[name] for name in KNOWN}, **row}


def position_of(row: Row) -> Position:
    """Raises NotReadableError."""
    with _as_not_readable():
        if type(row["id"]) is not int:
            raise ValueError(f"{row['id']!r} is no id")
        return Position(_moment(row["timestamp"]), row["id"])


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the rows as lines of today's archives. Raises TooLargeError."""
    for row in read_rows(pieces):
        line = _json(row, separators=(",", ":")).encode() + b"\n"
        if len(line) > LINE_BYTES:
            raise TooLargeError
        yield line


def difference_of_text(rows: Iterable[Row], pieces: Iterable[bytes]) -> str:
    """Return where the TXT differs from `rows`; empty if it does not.

    Ruled lines and blank lines are not compared.
    """
    text = (line for line in _lines(pieces) if not _RULE.fullmatch(line))
    head = next((line for line in text if line.startswith(b"ID: ")), None)
    for row in rows:
        for wanted in _text_of(row):
            got, head = head if head is not None else next(text, None), None
            if got != wanted:
                return f"row {row['id']} is not in the TXT as it is in the JSON"
    left = head if head is not None else next(text, None)
    return "the TXT has more than the JSON" if left is not None else ""


def read_text_alone(pieces: Iterable[bytes]) -> tuple[int, Position, Position]:
    """Return the number of rows in a TXT without a JSON, its first and last position.

    Raises NotReadableError, also if the number differs from that in its head: the text
    of a field may look like a row.
    """
    count = expected = number = 0
    first = last = None
    is_behind_rule = False
    with _as_not_readable():
        for line in _lines(pieces):
            if number and line.startswith(b"Timestamp: "):
                last = Position(_moment(line[11:].decode()), number)
                first, number = first or last, 0
            elif is_behind_rule and re.fullmatch(rb"ID: [0-9]{1,19}", line):
                count, number = count + 1, int(line[4:])
            elif not count and (match := _COUNT.fullmatch(line)):
                expected = int(match.group(1))
            is_behind_rule = bool(line) and _RULE.fullmatch(line) is not None
        if first is None or last is None or count != expected:
            raise ValueError(f"it has {count} rows, and says {expected}")
    return count, first, last


# -- internal helpers -----------------------------------------------------------------


@contextmanager
def _as_not_readable() -> Iterator[None]:
    try:
        yield
    except (
        ijson.JSONError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise NotReadableError(reason[:200]) from error


def _text_of(row: Row) -> Iterator[bytes]:
    """Yield the lines of a row in the TXT; a field may contain line ends."""
    fields = [
        f"ID: {row['id']}",
        f"Timestamp: {row['timestamp']}",
        f"Event Type: {row['event_type']}",
        f"Status: {'SUCCESS' if row['success'] else 'FAILED'}",
        f"User: {row['username'] or row['user_id'] or 'anonymous'}",
        f"IP Address: {row['ip_address'] or 'N/A'}",
        f"Message: {row['message']}",
    ]
    if row["user_agent"]:
        fields.append(f"User Agent: {row['user_agent']}")
    if row["metadata"]:
        fields.append(f"Metadata: {_json(row['metadata'], indent=2)}")
    for line in "\n".join(fields).encode(errors="surrogatepass").split(b"\n"):
        if not _RULE.fullmatch(line):
            yield line


def _json(value: object, **layout: Any) -> str:
    """Return JSON as the first version wrote it; its fractions were all floats."""
    return json.dumps(value, default=float, **layout)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > LINE_BYTES:
            raise NotReadableError("it has a line that is longer than any row")
    yield rest


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment

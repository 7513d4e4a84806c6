"""An archive of the web service's own first version, from before the demo's year.

That version wrote a JSON and a TXT without a hash or a manifest: what
`adopt_audit_archives` finds. The text is a copy of its form.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

LAST_ID = 24  # data_audit.sql goes on after it
_RULE = "=" * 100
_LINE = "-" * 100

Row = dict[str, Any]


def objects(now: datetime) -> dict[str, bytes]:
    """Return the names of two objects and their contents: LAST_ID rows of one month."""
    begin = (now - timedelta(days=430)).replace(hour=7, minute=30, microsecond=273700)
    rows = [_row(number, begin) for number in range(1, LAST_ID + 1)]
    archived = begin + timedelta(days=60)
    first, last = (row["timestamp"][:10] for row in (rows[0], rows[-1]))
    stem = (
        f"audit_logs_{first}_to_{last}_".replace("-", "") + f"{archived:%Y%m%d_%H%M%S}"
    )
    return {
        f"{stem}.json": json_object(rows, archived),
        f"{stem}.txt": txt_object(rows, archived),
    }


def json_object(rows: list[Row], archived: datetime, **changes: Any) -> bytes:
    content = {
        "archive_date": archived.isoformat(),
        "retention_days": 30,
        "log_count": len(rows),
        "date_range": {"from": rows[0]["timestamp"], "to": rows[-1]["timestamp"]},
        "logs": rows,
    } | changes
    return json.dumps(content, indent=2).encode()


def txt_object(rows: list[Row], archived: datetime, count: int | None = None) -> bytes:
    """Return the text for people; its head says `count` rows, or as many as it has."""
    first, last = (row["timestamp"][:10] for row in (rows[0], rows[-1]))
    head = [
        *(_RULE, "AUDIT LOG ARCHIVE", _RULE),
        f"Archive Date: {archived:%Y-%m-%d %H:%M:%S}",
        "Retention Policy: 30 days",
        f"Log Count: {len(rows) if count is None else count}",
        f"Date Range: {first} to {last}",
        *(_RULE, ""),
    ]
    return "\n".join([*head, *(line for row in rows for line in text_of(row))]).encode()


def _row(number: int, begin: datetime) -> Row:
    succeeded, name = number % 4 > 0, f"founder{number % 5}"
    what = "Logged in" if succeeded else "Failed login attempt for"
    return {
        "id": number,
        "event_type": "login_success" if succeeded else "login_failed",
        "timestamp": (begin + timedelta(hours=31 * number)).isoformat(),
        "success": succeeded,
        "message": f"{what}: {name}",
        "user_id": None,
        "username": name,
        "ip_address": f"192.0.2.{number}",
        "user_agent": "Mozilla/5.0",
        "metadata": {"path": "/api/auth/login/"},
    }


def text_of(row: Row) -> list[str]:
    agent, metadata = row["user_agent"], row["metadata"]
    return [
        _LINE,
        f"ID: {row['id']}",
        f"Timestamp: {row['timestamp']}",
        f"Event Type: {row['event_type']}",
        f"Status: {'SUCCESS' if row['success'] else 'FAILED'}",
        f"User: {row['username'] or row['user_id'] or 'anonymous'}",
        f"IP Address: {row['ip_address'] or 'N/A'}",
        f"Message: {row['message']}",
        *([f"User Agent: {agent}"] if agent else []),
        *([f"Metadata: {json.dumps(metadata, indent=2)}"] if metadata else []),
        *(_LINE, ""),
    ]

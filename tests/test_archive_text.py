"""The TXT archive, byte for byte: what is hostile is escaped, all else is as it is.

The bytes are those of the archive's first versions, which searched field by field.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from starview_app.maintenance.jobs.audit_archive.archive import archive_audit_logs
from starview_app.models import AuditLog
from tests.archive_processes import OCTOBER, Folder
from tests.factories import execute

pytestmark = pytest.mark.django_db(transaction=True)

AT = "2024-10-05 12:00:00.000000"
FIELDS = ("event_type", "username", "message", "user_agent", "metadata", "extra")
# What JSON escapes by itself, and what only we do: {a text: how it is written}.
BY_JSON = {
    **{chr(code): rf"\u{code:04x}" for code in range(1, 0x20)},
    **{"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r"},
    **{'"': r"\"", "\\": r"\\", "\\n": r"\\n", r"\u2028": r"\\u2028"},
}
BY_US = {
    # Delete and the C1 controls, next line (NEL) among them.
    **{chr(code): rf"\u{code:04x}" for code in range(0x7F, 0xA0)},
    **{chr(code): rf"\u{code:04x}" for code in range(0x2028, 0x202F)},
    **{"\xad": r"\u00ad", "\u200b": r"\u200b", "\ufeff": r"\ufeff"},
    **{"\U000e0041": r"\udb40\udc41", "\U000110bd": r"\ud804\udcbd"},
}
# Also what stands right before and behind such characters.
AS_THEY_ARE = (
    "",
    " ",
    "~",
    "\xa0",
    "é",
    "日本",
    "\u2027",
    "\u202f",
    "😀",
    "\U0010ffff",
)
TEXTS = {
    **BY_JSON,
    **BY_US,
    **{text: text for text in AS_THEY_ARE},
    "é\x7f\n日\u2028\\\x9b😀\U000e0041": r"é\u007f\n日\u2028\\\u009b😀\udb40\udc41",
}


@pytest.fixture
def _extra_column() -> Iterator[None]:
    execute("ALTER TABLE starview_app_auditlog ADD COLUMN extra text")
    yield
    execute("ALTER TABLE starview_app_auditlog DROP COLUMN extra")


def archived_lines(folder: Path) -> list[bytes]:
    place = Folder(folder)
    archive_audit_logs(
        now=datetime(2025, 1, 27, 4, 0, 1, tzinfo=UTC),
        days=30,
        formats=("txt",),
        store=place.store,
        report=lambda event: None,
        should_stop=lambda: False,
    )
    (text,) = [body for name, body in place.objects().items() if name.endswith(".txt")]
    return text.split(b"=" * 80 + b"\n", 2)[2].splitlines(keepends=True)


def row(number: int, **fields: Any) -> None:
    values = {"event_type": "", "username": "", "message": "", "user_agent": ""}
    extra = fields.pop("extra", None)
    AuditLog.objects.create(
        id=number,
        timestamp=OCTOBER,
        success=False,
        **{**values, "metadata": {}, **fields},
    )
    if extra is not None:
        execute(
            f"UPDATE starview_app_auditlog SET extra = %s WHERE id = {number}", extra
        )


def line(number: int, **written: str) -> bytes:
    """The line of a row whose fields are empty but for the `written` ones."""
    texts = {**dict.fromkeys(FIELDS, ""), **written}
    pair = f'"{texts["metadata"]}"'
    metadata = f"{{{pair}: {pair}}}" if "metadata" in written else "{}"
    fields = [
        f'{AT} FAIL "{texts["event_type"]}" user="{texts["username"]}"',
        f'message="{texts["message"]}" agent="{texts["user_agent"]}"',
        f"metadata={metadata}",
        *([f'extra="{texts["extra"]}"'] if "extra" in written else []),
        f"id={number}\n",
    ]
    return " ".join(fields).encode()


@pytest.mark.usefixtures("_extra_column")
@pytest.mark.parametrize("field", FIELDS)
def test_in_every_field_each_character_is_written_as_ever(
    field: str, tmp_path: Path
) -> None:
    for number, text in enumerate(TEXTS, start=1):
        row(number, **{field: {text: text} if field == "metadata" else text})

    lines = archived_lines(tmp_path / "archives")

    assert lines == [
        line(number, **{field: written})
        for number, written in enumerate(TEXTS.values(), start=1)
    ]


@pytest.mark.usefixtures("_extra_column")
def test_a_row_that_is_hostile_in_every_field_is_written_as_ever(
    tmp_path: Path,
) -> None:
    *_, (text, written) = TEXTS.items()
    row(1, **{**dict.fromkeys(FIELDS, text), "metadata": {text: text}})
    row(2)

    lines = archived_lines(tmp_path / "archives")

    assert lines == [line(1, **dict.fromkeys(FIELDS, written)), line(2)]

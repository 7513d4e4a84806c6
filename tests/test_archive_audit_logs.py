"""archive_audit_logs: what is archived, how it looks, and what stays."""

import errno
import gzip
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import execute_from_command_line
from django.db import connection, connections

from demo.services import BUCKET, S3_KEYS, LocalServices
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import beside, segments, transfer
from starview_app.maintenance.jobs.audit_archive import format as archive_format
from starview_app.maintenance.jobs.audit_archive.archive import (
    Event,
    Found,
    SegmentArchived,
    Stored,
    archive_audit_logs,
)
from starview_app.maintenance.jobs.audit_archive.manifests import ManifestWritten
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores import s3 as s3_store
from starview_app.maintenance.stores.base import (
    Listed,
    ObjectExistsError,
    ObjectMissingError,
    ObjectWriter,
)
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.maintenance.stores.s3 import S3Store
from starview_app.models import AuditLog
from tests.archive_processes import Commands
from tests.conftest import ROOT, Manage, merged
from tests.factories import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2025, 1, 27, 4, 0, 1, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=30)
OLD = datetime(2024, 10, 1, 12, 0, tzinfo=UTC)
NAME = "audit_logs_20241001_to_20241001_20250127_040001"
MANIFEST = "audit_manifest_000001_20250127_040001.json"
TXT_HEADER_LINES = 9

# What a terminal, an editor or a reader's eye would act on instead of show.
HOSTILE = {
    "a line end": "\n",
    "a carriage return": "\r",
    "a null's neighbour": "\x01",
    "an ANSI escape": "\x1b[2K\x1b[1A",
    "a backspace": "\b",
    "delete": "\x7f",
    "next line, a C1 control": "\u0085",
    "a C1 control sequence introducer": "\u009b31m",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "right-to-left override": "\u202e",
    "right-to-left isolate": "\u2067",
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "Mongolian vowel separator": "\u180e",
    "interlinear annotation": "\ufff9",
    "Arabic number sign": "\u0600",
    "invisible tag letters": "\U000e0041\U000e007f",
}


class MemoryStore:
    """The store protocol on a dict; `after_write` runs once an archive is complete."""

    def __init__(self, after_write: Callable[[str], None] | None = None) -> None:
        self.location = "memory"
        self.content: dict[str, bytes] = {}
        self._after_write = after_write

    @property
    def archives(self) -> dict[str, bytes]:
        return {
            name: content
            for name, content in self.content.items()
            if not name.startswith("audit_manifest_")
        }

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """Their content, the first one first."""
        return [
            json.loads(self.content[name])
            for name in sorted(self.content)
            if name not in self.archives
        ]

    def writer(
        self, name: str, *, overwrite: bool = False
    ) -> AbstractContextManager[ObjectWriter]:
        return self._writer(name, overwrite)

    @contextmanager
    def _writer(self, name: str, overwrite: bool) -> Iterator[ObjectWriter]:
        if name in self.content and not overwrite:
            raise ObjectExistsError(f"{name}: exists")
        pieces = Pieces()
        yield pieces
        self.content[name] = b"".join(pieces.received)
        if self._after_write and name in self.archives:
            self._after_write(name)

    def read(self, name: str) -> Iterator[bytes]:
        if name not in self.content:
            raise ObjectMissingError(f"{name}: is not there")
        yield self.content[name]

    def delete(self, name: str) -> None:
        self.content.pop(name, None)

    def discard_unfinished(self, name: str) -> None:
        """Nothing is ever left."""

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        for name, content in sorted(self.content.items()):
            if name.startswith(prefix):
                yield Listed(name, len(content))


@dataclass
class Pieces:
    received: list[bytes] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        self.received.append(data)


class NoStore:
    """A store that must not be asked for anything."""

    location = "nowhere"

    def writer(self, name: str) -> AbstractContextManager[ObjectWriter]:
        raise AssertionError(f"asked to write {name}")

    def read(self, name: str) -> Iterator[bytes]:
        raise AssertionError(f"asked to read {name}")

    def delete(self, name: str) -> None:
        raise AssertionError(f"asked to delete {name}")

    def discard_unfinished(self, name: str) -> None:
        raise AssertionError(f"asked to discard {name}")

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        raise AssertionError("asked for a list")


def add_row(**fields: Any) -> AuditLog:
    defaults: dict[str, Any] = {
        "event_type": "login_success",
        "timestamp": OLD,
        "success": True,
        "message": "ok",
        "username": "alice",
        "ip_address": "203.0.113.9",
        "user_agent": "Mozilla/5.0",
        "metadata": {},
    }
    return AuditLog.objects.create(**{**defaults, **fields})


def run(store: Any, **changes: Any) -> JobResult:
    arguments: dict[str, Any] = {
        "now": NOW,
        "days": 30,
        "formats": ("json", "txt"),
        "store": store,
        "report": lambda event: None,
        "should_stop": lambda: False,
    }
    return archive_audit_logs(**{**arguments, **changes})


def in_another_session(statement: str, parameters: list[Any] | None = None) -> None:
    """Execute and commit, as the web service does meanwhile."""
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            cursor.execute(statement, parameters)
    finally:
        other.close()


def s3(services: LocalServices) -> S3Store:
    return S3Store(services.aws_url, *S3_KEYS, BUCKET, "audit-archives/")


def jsons(store: MemoryStore) -> list[bytes]:
    """The JSON archives, in the order in which they were written."""
    archives = store.archives.items()
    return [content for name, content in archives if name.endswith(".json")]


def archived_ids(content: bytes) -> list[int]:
    return [row["id"] for row in json.loads(content)["logs"]]


def remaining_ids() -> set[int]:
    return set(AuditLog.objects.values_list("id", flat=True))


# -- which rows ----------------------------------------------------------------------


def test_it_archives_rows_older_than_the_days_and_keeps_one_exactly_that_old() -> None:
    tick = timedelta(microseconds=1)
    older = add_row(timestamp=CUTOFF - tick)
    kept = [add_row(timestamp=CUTOFF), add_row(timestamp=CUTOFF + tick)]
    store = MemoryStore()

    result = run(store)

    assert result == JobResult({"found": 1, "archived": 1, "segments": 1, "objects": 2})
    assert remaining_ids() == {row.id for row in kept}
    name = "audit_logs_20241228_to_20241228_20250127_040001.json"
    assert archived_ids(store.content[name]) == [older.id]


def test_the_age_in_days_is_the_one_it_is_given() -> None:
    add_row(timestamp=NOW - timedelta(days=1, microseconds=1))
    kept = add_row(timestamp=NOW - timedelta(days=1))

    result = run(MemoryStore(), days=1)

    assert result.counts["archived"] == 1
    assert remaining_ids() == {kept.id}


def test_with_nothing_to_do_it_asks_the_store_for_nothing() -> None:
    add_row(timestamp=NOW)
    events: list[Event] = []

    result = run(NoStore(), report=events.append)

    assert result == JobResult({"found": 0, "archived": 0, "segments": 0, "objects": 0})
    assert events == [Found(0, CUTOFF)]
    assert AuditLog.objects.count() == 1


def test_a_dry_run_changes_nothing_and_only_lists_the_store() -> None:
    row = add_row()
    events: list[Event] = []
    store = MemoryStore()

    result = run(store, dry_run=True, report=events.append)

    assert store.content == {}
    assert AuditArchive.objects.count() == 0
    assert result == JobResult({"found": 1, "archived": 0, "segments": 0, "objects": 0})
    assert events == [Found(1, CUTOFF)]
    assert remaining_ids() == {row.id}


def test_a_second_run_changes_nothing() -> None:
    add_row()
    store = MemoryStore()
    run(store)
    before = dict(store.content)

    result = run(store, now=NOW + timedelta(seconds=1))

    assert result == JobResult({"found": 0, "archived": 0, "segments": 0, "objects": 0})
    assert store.content == before


def test_a_row_that_comes_between_two_runs_goes_into_an_archive_of_its_own() -> None:
    first = add_row()
    store = MemoryStore()
    run(store, formats=("json",))
    second = add_row()

    run(store, formats=("json",), now=NOW + timedelta(seconds=1))

    assert [archived_ids(content) for content in store.archives.values()] == [
        [first.id],
        [second.id],
    ]
    assert remaining_ids() == set()


@pytest.mark.parametrize("formats", [("json",), ("txt",), ("json", "txt")])
def test_it_writes_the_formats_it_is_asked_for(formats: tuple[str, ...]) -> None:
    add_row()
    store = MemoryStore()

    run(store, formats=formats)

    assert list(store.archives) == [f"{NAME}.{kind}" for kind in formats]
    assert remaining_ids() == set()


def test_it_reports_what_it_found_stored_and_archived_in_this_order() -> None:
    for _ in range(3):
        add_row()
    events: list[Event] = []
    store = MemoryStore()

    run(store, report=events.append, segment_rows=2)

    def size_bytes(name: str) -> int:
        return len(store.content[f"{name}.json"] + store.content[f"{name}.txt"])

    assert events == [
        Found(3, CUTOFF),
        Stored("json", f"{NAME}.json"),
        Stored("txt", f"{NAME}.txt"),
        SegmentArchived(2, size_bytes(NAME)),
        Stored("json", f"{NAME}_0002.json"),
        Stored("txt", f"{NAME}_0002.txt"),
        SegmentArchived(1, size_bytes(f"{NAME}_0002")),
        ManifestWritten(MANIFEST),
    ]


def test_an_objects_name_has_the_first_and_the_last_day_and_the_time_of_the_run() -> (
    None
):
    add_row(timestamp=datetime(2024, 10, 30, 23, 59, 59, 999_999, tzinfo=UTC))
    add_row(timestamp=datetime(2024, 10, 1, tzinfo=UTC))
    store = MemoryStore()

    run(store, formats=("json",))

    assert list(store.archives) == [
        "audit_logs_20241001_to_20241030_20250127_040001.json"
    ]


def test_the_names_are_in_utc_whatever_zone_the_database_prefers() -> None:
    database = connection.settings_dict["NAME"]
    in_another_session(f"ALTER DATABASE \"{database}\" SET timezone = 'Asia/Tokyo'")
    connection.close()
    try:
        add_row(timestamp=datetime(2024, 10, 1, 23, 0, tzinfo=UTC))
        store = MemoryStore()

        run(store)

        content = json.loads(store.content[f"{NAME}.json"])
        assert content["logs"][0]["timestamp"] == "2024-10-01T23:00:00+00:00"
        assert b"2024-10-01 23:00:00.000000 OK" in store.content[f"{NAME}.txt"]
    finally:
        in_another_session(f'ALTER DATABASE "{database}" RESET timezone')
        connection.close()


# -- JSON ----------------------------------------------------------------------------


def test_the_json_archive_is_this_byte_for_byte() -> None:
    AuditLog.objects.create(
        id=7,
        event_type="login_failed",
        timestamp=datetime(2024, 10, 1, 12, 0, 0, 123_456, tzinfo=UTC),
        success=False,
        message='a "quoted"\nback\\slash',
        username="zoë",
        ip_address="2001:db8::1",
        user_agent="",
        metadata={"reason": "bad password"},
    )
    AuditLog.objects.create(
        id=9_223_372_036_854_775_806,
        event_type="logout",
        timestamp=datetime(2024, 10, 2, tzinfo=UTC),
        ip_address=None,
    )
    store = MemoryStore()

    run(store, formats=("json",), now=NOW.replace(microsecond=5))

    (content,) = store.archives.values()
    assert content.decode() == (
        '{"archive_date": "2025-01-27T04:00:01.000005+00:00", "retention_days": 30,'
        ' "log_count": 2, "date_range": {"from": "2024-10-01T12:00:00.123456+00:00",'
        ' "to": "2024-10-02T00:00:00+00:00"}, "logs": [\n'
        '{"id":7,"event_type":"login_failed",'
        '"timestamp":"2024-10-01T12:00:00.123456+00:00","success":false,'
        '"message":"a \\"quoted\\"\\nback\\\\slash","user_id":null,"username":"zoë",'
        '"ip_address":"2001:db8::1","user_agent":"",'
        '"metadata":{"reason": "bad password"}},\n'
        '{"id":9223372036854775806,"event_type":"logout",'
        '"timestamp":"2024-10-02T00:00:00+00:00","success":true,"message":"",'
        '"user_id":null,"username":"","ip_address":null,"user_agent":"",'
        '"metadata":{}}\n'
        "]}\n"
    )


def test_the_envelope_says_when_how_old_how_many_and_from_when_to_when() -> None:
    first = add_row(timestamp=datetime(2024, 10, 1, 1, 2, 3, 4, tzinfo=UTC))
    last = add_row(timestamp=datetime(2024, 10, 27, 1, 2, 3, 5, tzinfo=UTC))
    store = MemoryStore()

    run(store, formats=("json",), days=29)

    envelope = json.loads(next(iter(store.archives.values())))
    logs = envelope.pop("logs")
    assert envelope == {
        "archive_date": NOW.isoformat(),
        "retention_days": 29,
        "log_count": 2,
        "date_range": {
            "from": first.timestamp.isoformat(),
            "to": last.timestamp.isoformat(),
        },
    }
    assert [list(row) for row in logs] == [
        [
            *("id", "event_type", "timestamp", "success", "message", "user_id"),
            *("username", "ip_address", "user_agent", "metadata"),
        ]
    ] * 2


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"deeper": [value]}
    return value


STRANGE_FIELDS: dict[str, dict[str, Any]] = {
    "every printable ASCII character": {"message": bytes(range(32, 127)).decode()},
    "every control character": {"message": "".join(map(chr, range(1, 32)))},
    "unicode beyond the basic plane": {"message": "🔭 ñ ß 漢字 \U0010ffff e\u0301"},
    "an escaped escape": {"message": r"\n \u001b \\ \" \x01"},
    "the end of COPY": {"message": "\\."},
    "the text of a record's end": {"message": '"}]}\n]}'},
    "commas and separators": {"message": ",\n,", "username": ",", "user_agent": ","},
    "a message of 1 MB": {"message": "0123456789abcdé" * 70_000},
    "deep metadata": {"metadata": nested(40)},
    "metadata of every kind": {
        "metadata": {"a": [1, -2.5, 1e100, True, None, "é\n"], "": {"b": 2**80}}
    },
    "metadata that is a list": {"metadata": [1, 2]},
    "metadata that is a text": {"metadata": "text\u2028"},
    "metadata that is null": {"metadata": None},
    "no address": {"ip_address": None},
    "a long IPv6 address": {"ip_address": "2001:db8:ffff:1:2:3:4:5"},
    "an IPv4 address in IPv6": {"ip_address": "::ffff:203.0.113.9"},
    "the last microsecond": {"timestamp": OLD.replace(microsecond=999_999)},
    "six digits": {"timestamp": OLD.replace(microsecond=273_700)},
    "no microseconds": {"timestamp": OLD.replace(microsecond=0)},
    "a long user name": {"username": "u" * 150},
    "hostile characters": {"message": "".join(HOSTILE.values())},
}


@pytest.mark.parametrize("fields", STRANGE_FIELDS.values(), ids=STRANGE_FIELDS)
def test_the_json_row_has_every_field_as_the_database_has_it(
    fields: dict[str, Any],
) -> None:
    if fields.get("metadata", 0) is None:
        row = add_row()
        in_another_session("UPDATE starview_app_auditlog SET metadata = 'null'::jsonb")
    else:
        row = add_row(**fields)
    row.refresh_from_db()
    store = MemoryStore()

    run(store)

    content = store.content[f"{NAME}.json"]
    assert json.loads(content)["logs"] == [
        {
            "id": row.id,
            "event_type": row.event_type,
            "timestamp": row.timestamp.isoformat(),
            "success": row.success,
            "message": row.message,
            "user_id": row.user_id,
            "username": row.username,
            "ip_address": row.ip_address,
            "user_agent": row.user_agent,
            "metadata": row.metadata,
        }
    ]
    assert content.count(b"\n") == 3
    assert store.content[f"{NAME}.txt"].count(b"\n") == TXT_HEADER_LINES + 1


def test_a_rows_user_is_archived_by_id() -> None:
    user = User.objects.create(username="alice")
    row = add_row(user=user)
    store = MemoryStore()

    run(store)

    logs = json.loads(store.content[f"{NAME}.json"])["logs"]
    assert (logs[0]["id"], logs[0]["user_id"]) == (row.id, user.id)
    assert f" user_id={user.id} ".encode() in store.content[f"{NAME}.txt"]
    assert User.objects.get() == user


def test_rows_are_ordered_by_time_and_then_by_id() -> None:
    later = add_row(timestamp=OLD + timedelta(hours=1))
    first, second = add_row(), add_row()
    store = MemoryStore()

    run(store)

    expected = [first.id, second.id, later.id]
    assert archived_ids(store.content[f"{NAME}.json"]) == expected
    lines = store.content[f"{NAME}.txt"].decode().splitlines()[TXT_HEADER_LINES:]
    assert [int(line.rpartition(" id=")[2]) for line in lines] == expected


# -- TXT -----------------------------------------------------------------------------


def test_the_txt_archive_is_this_byte_for_byte() -> None:
    AuditLog.objects.create(
        id=7,
        event_type="login_failed",
        timestamp=datetime(2024, 10, 1, 12, 0, 0, 123_456, tzinfo=UTC),
        success=False,
        message="bad password",
        username="zoë",
        ip_address="2001:db8::1",
        user_agent="Mozilla/5.0 (X11)",
        metadata={"attempt": 3},
    )
    store = MemoryStore()

    run(store, formats=("txt",))

    (content,) = store.archives.values()
    *head, explained, more, second_rule, row, end = content.decode().split("\n")
    rule = "=" * 80
    assert head == [
        "STARVIEW AUDIT LOG ARCHIVE",
        rule,
        "Archived:  2025-01-27T04:00:01+00:00, rows older than 30 days",
        "Rows:      1",
        "From:      2024-10-01 12:00:00 UTC",
        "To:        2024-10-01 12:00:00 UTC",
    ]
    assert explained.startswith("One line is one event.")
    assert more.endswith(" is written \\n or \\u001b.")
    assert row == (
        '2024-10-01 12:00:00.123456 FAIL "login_failed" user="zoë" ip=2001:db8::1'
        ' message="bad password" agent="Mozilla/5.0 (X11)" metadata={"attempt": 3}'
        " id=7"
    )
    assert (second_rule, end) == (rule, "")


@pytest.mark.parametrize("sign", HOSTILE.values(), ids=HOSTILE)
def test_no_field_can_forge_or_hide_a_part_of_the_txt_archive(sign: str) -> None:
    forged = f'x" ok{sign}2024-10-01 12:00:00.000000 OK   "logout"{sign}'
    row: dict[str, Any] = {
        "event_type": f'x"{sign}OK   "logout"',
        "username": forged,
        "message": forged,
        "user_agent": forged,
        "metadata": {forged: [forged]},
    }
    add_row(**row)
    store = MemoryStore()

    run(store)

    text = store.content[f"{NAME}.txt"].decode()
    assert len(text.splitlines()) == text.count("\n") == TXT_HEADER_LINES + 1
    assert {char for char in text if not char.isprintable()} == {"\n"}
    assert fields_of(text.splitlines()[-1]) == row


def fields_of(line: str) -> dict[str, Any]:
    """Read the fields back, as a person does who knows JSON's escapes."""
    decoder = json.JSONDecoder()
    event, end = decoder.raw_decode(line, line.index('"'))
    found: dict[str, Any] = {"event_type": event}
    labels = {
        "username": "user",
        "message": "message",
        "user_agent": "agent",
        "metadata": "metadata",
    }
    rest = line[end:]
    for name, label in labels.items():
        # Each label is looked for only after the field in front of it.
        found[name], end = decoder.raw_decode(
            rest, rest.index(f" {label}=") + len(label) + 2
        )
        rest = rest[end:]
    return found


def test_an_escape_in_the_txt_archive_differs_from_the_same_letters_typed() -> None:
    add_row(message="\u2028")
    add_row(message="\\u2028")
    store = MemoryStore()

    run(store)

    typed = re.findall(rb"message=(\S+)", store.content[f"{NAME}.txt"])
    assert typed == [rb'"\u2028"', rb'"\\u2028"']


def test_a_txt_line_leaves_out_what_a_row_does_not_have() -> None:
    row = add_row(ip_address=None, user=None)
    store = MemoryStore()

    run(store)

    line = store.content[f"{NAME}.txt"].decode().splitlines()[-1]
    assert line == (
        '2024-10-01 12:00:00.000000 OK   "login_success" user="alice" message="ok"'
        f' agent="Mozilla/5.0" metadata={{}} id={row.id}'
    )


# -- while others write --------------------------------------------------------------


def once(action: Callable[[], None]) -> Callable[[str], None]:
    done: list[str] = []

    def act(name: str) -> None:
        if not done:
            done.append(name)
            action()

    return act


INSERT = """
    INSERT INTO starview_app_auditlog (
        event_type, timestamp, success, message, username, user_agent, metadata
    ) VALUES ('logout', %s, true, 'late', '', '', '{}')
"""


@pytest.mark.parametrize(
    "moment",
    [OLD + timedelta(minutes=30), OLD - timedelta(days=9)],
    ids=["between its rows", "before it"],
)
@pytest.mark.parametrize("written", [".json", ".txt"])
def test_a_row_inserted_into_a_range_that_is_written_stays_for_the_next_run(
    moment: datetime, written: str
) -> None:
    archived = [add_row(), add_row(timestamp=OLD + timedelta(hours=1))]
    insert = once(lambda: in_another_session(INSERT, [moment]))
    store = MemoryStore(lambda name: insert(name) if name.endswith(written) else None)

    result = run(store)

    (late,) = AuditLog.objects.values("id", "message")
    assert result.counts == {"found": 2, "archived": 2, "segments": 1, "objects": 2}
    assert late["message"] == "late"
    assert archived_ids(store.content[f"{NAME}.json"]) == [row.id for row in archived]

    run(store, now=NOW + timedelta(seconds=1))

    assert archived_ids(jsons(store)[-1]) == [late["id"]]
    assert remaining_ids() == set()


def test_a_row_inserted_behind_the_segment_is_archived_by_the_same_run() -> None:
    add_row()
    later = OLD + timedelta(days=1)
    store = MemoryStore(once(lambda: in_another_session(INSERT, [later])))

    result = run(store)

    assert result.counts == {"found": 1, "archived": 2, "segments": 2, "objects": 4}
    assert remaining_ids() == set()


def test_a_row_inserted_between_counting_and_archiving_is_archived_or_kept() -> None:
    add_row()

    def insert(event: Event) -> None:
        if isinstance(event, Found):
            in_another_session(INSERT, [OLD])

    store = MemoryStore()

    result = run(store, report=insert)

    assert len(archived_ids(store.content[f"{NAME}.json"])) == 2
    assert result.counts["archived"] == 2
    assert remaining_ids() == set()


class Sessions:
    """Which session has copied what: `in_main` is {kind: bool}."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_main: dict[str, bool] = {}
        self._copy = segments._copy
        monkeypatch.setattr(segments, "_copy", self.copy)
        # Given before a COPY begins.
        self.before: Callable[[], object] = lambda: None

    def copy(
        self, cursor: Any, columns: Any, record: Any, batch: Any, sink: Any
    ) -> Any:
        is_main = threading.current_thread() is threading.main_thread()
        self.in_main[archive_format.kind_of(sink.name)] = is_main
        self.before()
        return self._copy(cursor, columns, record, batch, sink)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


def copying_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "copy"]


def sessions_of_others() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        (count,) = cursor.fetchone()
    return int(count)


def test_json_and_txt_are_copied_at_the_same_time(sessions: Sessions) -> None:
    add_row()
    sessions.before = threading.Barrier(2, timeout=20).wait

    result = run(MemoryStore())

    assert result.counts["archived"] == 1
    assert sessions.in_main == {"json": True, "txt": False}
    assert copying_threads() == []
    wait_until(lambda: sessions_of_others() == 0, "the second session has ended")


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_one_format_needs_no_second_session(kind: str, sessions: Sessions) -> None:
    add_row()

    run(MemoryStore(), formats=(kind,))

    assert sessions.in_main == {kind: True}


@pytest.fixture
def before_the_second_session(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Statements that another session commits before the second one begins."""
    statements: list[str] = []
    begin = beside.CopyBeside._open

    def run_statements_and_begin(copying: beside.CopyBeside) -> Any:
        while statements:
            in_another_session(statements.pop())
        return begin(copying)

    monkeypatch.setattr(beside.CopyBeside, "_open", run_statements_and_begin)
    return statements


def test_the_second_session_does_not_see_a_row_that_came_after_the_first_began(
    before_the_second_session: list[str], sessions: Sessions
) -> None:
    add_row(message="one")
    add_row(message="two", timestamp=OLD + timedelta(hours=2))
    before_the_second_session.append(
        "INSERT INTO starview_app_auditlog (event_type, timestamp, success, message,"
        " username, user_agent, metadata) VALUES"
        " ('logout', '2024-10-01 13:00+00', true, 'late', '', '', '{}')"
    )
    store = MemoryStore()

    run(store)

    assert sessions.in_main["txt"] is False
    assert len(archived_ids(store.content[f"{NAME}.json"])) == 2
    assert b"late" not in store.content[f"{NAME}.txt"]
    assert AuditLog.objects.get().message == "late"


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("UPDATE starview_app_auditlog SET message = 'changed'", b'"changed"'),
        ("DELETE FROM starview_app_auditlog WHERE username = 'alice'", b'"bob"'),
    ],
    ids=["changed", "deleted"],
)
def test_a_row_touched_before_the_second_session_begins_is_in_both_objects_alike(
    change: str,
    shown: bytes,
    before_the_second_session: list[str],
    sessions: Sessions,
) -> None:
    add_row(username="alice")
    add_row(username="bob", message="second")
    before_the_second_session.append(change)
    copied = []
    store = MemoryStore(lambda name: copied.append(store.content[name]))

    run(store)

    # The first attempt has it as it was, in both; the second one as it is.
    before_json, before_txt, json_, txt = copied
    assert b"changed" not in before_json + before_txt
    assert b'"alice"' in before_json
    assert b'user="alice"' in before_txt
    assert shown in json_
    assert shown in txt
    assert sessions.in_main["txt"] is False
    assert remaining_ids() == set()


@pytest.mark.parametrize("segment", ["", "_0002"])
def test_a_row_back_dated_into_a_finished_range_meanwhile_stays_for_the_next_run(
    segment: str,
) -> None:
    first = add_row()
    add_row(timestamp=OLD + timedelta(hours=1))
    recent = add_row(timestamp=NOW)
    update = "UPDATE starview_app_auditlog SET timestamp = %s WHERE id = %s"
    before = OLD - timedelta(microseconds=1)

    def back_date(name: str) -> None:
        if name == f"{NAME}{segment}.json":
            in_another_session(update, [before, recent.id])

    store = MemoryStore(back_date)

    run(store, segment_rows=1)

    assert remaining_ids() == {recent.id}
    assert archived_ids(store.content[f"{NAME}.json"]) == [first.id]

    run(store, now=NOW + timedelta(seconds=1))

    assert archived_ids(jsons(store)[-1]) == [recent.id]


def test_a_row_changed_meanwhile_is_archived_as_it_is_when_it_is_deleted() -> None:
    row = add_row()
    change = "UPDATE starview_app_auditlog SET message = 'changed'"
    store = MemoryStore(once(lambda: in_another_session(change)))

    result = run(store)

    logs = json.loads(store.content[f"{NAME}_0002.json"])["logs"]
    assert [(log["id"], log["message"]) for log in logs] == [(row.id, "changed")]
    assert b'message="changed"' in store.content[f"{NAME}_0002.txt"]
    assert result == JobResult({"found": 1, "archived": 1, "segments": 1, "objects": 2})
    assert remaining_ids() == set()


def test_a_user_deleted_meanwhile_does_not_cost_a_row() -> None:
    user = User.objects.create(username="alice")
    row = add_row(user=user)

    def forget() -> None:
        in_another_session("UPDATE starview_app_auditlog SET user_id = NULL")
        in_another_session("DELETE FROM auth_user")

    store = MemoryStore(once(forget))

    run(store)

    logs = json.loads(store.content[f"{NAME}_0002.json"])["logs"]
    assert [(log["id"], log["user_id"]) for log in logs] == [(row.id, None)]
    assert remaining_ids() == set()


def test_a_row_moved_out_of_the_range_meanwhile_is_kept() -> None:
    moved, old = add_row(), add_row()
    update = "UPDATE starview_app_auditlog SET timestamp = %s WHERE id = %s"
    store = MemoryStore(once(lambda: in_another_session(update, [NOW, moved.id])))

    run(store)

    assert archived_ids(store.content[f"{NAME}_0002.json"]) == [old.id]
    assert remaining_ids() == {moved.id}


def test_rows_changed_at_every_attempt_are_kept_and_no_object_is_left() -> None:
    row = add_row()
    change = "UPDATE starview_app_auditlog SET message = message || '.'"
    store = MemoryStore(lambda name: in_another_session(change))

    with pytest.raises(JobError, match="nothing was deleted.*HINT: run the job again"):
        run(store)

    assert store.content == {}
    assert remaining_ids() == {row.id}


def test_when_all_rows_vanish_before_they_are_archived_the_run_has_nothing_to_do() -> (
    None
):
    add_row()

    def delete(event: Event) -> None:
        if isinstance(event, Found):
            in_another_session("DELETE FROM starview_app_auditlog")

    result = run(MemoryStore(), report=delete)

    assert result == JobResult({"found": 1, "archived": 0, "segments": 0, "objects": 0})


@pytest.fixture
def rows_that_vanish() -> Iterator[None]:
    """Row 1 is deleted at the instant at which a segment is opened."""
    in_another_session(
        "CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM starview_app_auditlog WHERE id = 1; RETURN NULL; END $$;"
        " CREATE TRIGGER vanish AFTER INSERT ON maintenance_auditarchive"
        " FOR EACH ROW EXECUTE FUNCTION vanish()"
    )
    yield
    in_another_session(
        "DROP TRIGGER vanish ON maintenance_auditarchive; DROP FUNCTION vanish"
    )


@pytest.mark.usefixtures("rows_that_vanish")
def test_a_segment_whose_rows_vanish_is_passed_over_and_the_next_one_is_archived() -> (
    None
):
    add_row(id=1)
    second = add_row(id=2, timestamp=OLD + timedelta(seconds=1))
    store = MemoryStore()

    result = run(store, segment_rows=1)

    assert result == JobResult({"found": 2, "archived": 1, "segments": 1, "objects": 2})
    assert [archived_ids(content) for content in jsons(store)] == [[second.id]]
    records = AuditArchive.objects.order_by("id")
    assert [record.state for record in records] == ["abandoned", "archived"]


def test_a_row_deleted_meanwhile_is_not_archived_as_deleted_by_this_run() -> None:
    gone, old = add_row(), add_row()
    delete = "DELETE FROM starview_app_auditlog WHERE id = %s"
    store = MemoryStore(once(lambda: in_another_session(delete, [gone.id])))

    result = run(store)

    assert archived_ids(store.content[f"{NAME}_0002.json"]) == [old.id]
    assert result.counts["archived"] == 1
    assert remaining_ids() == set()


# -- stopping ------------------------------------------------------------------------


def test_told_to_stop_at_any_question_it_keeps_every_row_and_leaves_no_object() -> None:
    row = add_row()
    questions = 0

    def count() -> bool:
        nonlocal questions
        questions += 1
        return False

    run(MemoryStore(), should_stop=count)
    row.save(force_insert=True)
    assert questions >= 5

    for stop_at in range(1, questions + 1):
        asked = iter(range(1, questions + 2))
        store = MemoryStore()

        result = run(
            store, should_stop=lambda asked=asked, at=stop_at: next(asked) >= at
        )

        assert result == JobResult(
            {"found": 1, "archived": 0, "segments": 0, "objects": 0}, interrupted=True
        )
        assert store.content == {}
        assert remaining_ids() == {row.id}


def test_told_to_stop_at_any_question_the_next_run_archives_each_row_exactly_once() -> (
    None
):
    rows = [add_row() for _ in range(3)]
    questions = 0

    def count() -> bool:
        nonlocal questions
        questions += 1
        return False

    run(MemoryStore(), should_stop=count, segment_rows=2)
    archived = set()

    for stop_at in range(1, questions + 1):
        AuditLog.objects.bulk_create(rows)
        AuditArchive.objects.all().delete()
        AuditManifest.objects.all().delete()
        asked = iter(range(1, questions + 2))
        store = MemoryStore()

        stopped = run(
            store,
            should_stop=lambda asked=asked, at=stop_at: next(asked) >= at,
            segment_rows=2,
        )
        kept = remaining_ids()
        listed = [
            entry["name"] for found in store.manifests for entry in found["objects"]
        ]
        assert stopped.interrupted
        assert stopped.counts["archived"] == 3 - len(kept)
        assert listed == list(store.archives)
        run(store, now=NOW + timedelta(seconds=1))

        ids = [id for content in jsons(store) for id in archived_ids(content)]
        assert sorted(ids) == [row.id for row in rows]
        assert remaining_ids() == set()
        archived.add(stopped.counts["archived"])

    assert archived == {0, 2}


def test_a_stop_in_the_middle_of_many_rows_leaves_a_connection_that_works() -> None:
    AuditLog.objects.bulk_create(
        AuditLog(event_type="logout", timestamp=OLD, message="x" * 1000)
        for _ in range(2000)
    )
    asked = iter(range(100))

    result = run(MemoryStore(), should_stop=lambda: next(asked) >= 2)

    assert result.interrupted
    assert AuditLog.objects.count() == 2000
    assert run(MemoryStore()).counts["archived"] == 2000


# -- segments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, [1]), (2, [2]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])],
)
def test_a_segment_has_as_many_rows_as_allowed_and_the_last_one_the_rest(
    rows: int, expected: list[int]
) -> None:
    ids = [add_row(timestamp=OLD + timedelta(seconds=n)).id for n in range(rows)]
    store = MemoryStore()

    result = run(store, formats=("json",), segment_rows=3)

    segments = [archived_ids(content) for content in jsons(store)]
    assert [len(segment) for segment in segments] == expected
    assert [number for segment in segments for number in segment] == ids
    assert result.counts == {
        "found": rows,
        "archived": rows,
        "segments": len(expected),
        "objects": len(expected),
    }
    assert remaining_ids() == set()


def test_from_the_second_segment_of_a_second_on_the_names_end_in_its_number() -> None:
    for number in range(3):
        add_row(timestamp=OLD + timedelta(days=number))
    store = MemoryStore()

    run(store, segment_rows=1)

    run_at = "20250127_040001"
    assert list(store.content) == [
        f"audit_logs_20241001_to_20241001_{run_at}.json",
        f"audit_logs_20241001_to_20241001_{run_at}.txt",
        f"audit_logs_20241002_to_20241002_{run_at}_0002.json",
        f"audit_logs_20241002_to_20241002_{run_at}_0002.txt",
        f"audit_logs_20241003_to_20241003_{run_at}_0003.json",
        f"audit_logs_20241003_to_20241003_{run_at}_0003.txt",
        MANIFEST,
    ]


def test_two_runs_of_one_second_do_not_share_a_name() -> None:
    store = MemoryStore()
    ids = []
    for microsecond in (0, 999_999):
        ids.append(add_row().id)
        run(store, formats=("json",), now=NOW.replace(microsecond=microsecond))
    ids.append(add_row().id)
    run(store, formats=("json",), now=NOW + timedelta(seconds=1))

    assert list(store.archives) == [
        f"{NAME}.json",
        f"{NAME}_0002.json",
        NAME.replace("040001", "040002") + ".json",
    ]
    assert [archived_ids(content) for content in jsons(store)] == [[id] for id in ids]


def test_rows_of_one_instant_are_cut_between_two_ids() -> None:
    ids = [add_row().id for _ in range(5)]
    store = MemoryStore()

    run(store, segment_rows=2)

    assert [archived_ids(content) for content in jsons(store)] == [
        ids[:2],
        ids[2:4],
        ids[4:],
    ]
    assert remaining_ids() == set()


def test_a_row_that_comes_below_the_cut_of_one_instant_is_left_and_not_lost() -> None:
    AuditLog.objects.bulk_create(
        AuditLog(id=id, event_type="logout", timestamp=OLD) for id in (10, 20, 30, 40)
    )
    insert = (
        INSERT.replace("(", "(id, ", 1).replace("VALUES (", "VALUES (15, ", 1),
        [OLD],
    )
    store = MemoryStore(once(lambda: in_another_session(*insert)))

    run(store, formats=("json",), segment_rows=2)

    assert [archived_ids(c) for c in jsons(store)] == [[10, 20], [30, 40]]
    assert remaining_ids() == {15}


MONTH_END = datetime(2024, 10, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.fixture(params=["UTC", "Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kolkata"])
def session_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have Django ask for this zone in the database session, instead of UTC."""

    def connect_anew(zone: str | None) -> None:
        connection.close()
        connection.settings_dict["TIME_ZONE"] = zone
        for cached in ("timezone", "timezone_name"):
            connections["default"].__dict__.pop(cached, None)

    connect_anew(request.param)
    with connection.cursor() as cursor:
        cursor.execute("SHOW timezone")
        assert cursor.fetchone() == (request.param,)
    yield
    connect_anew(None)


@pytest.mark.usefixtures("session_zone")
def test_a_segment_ends_with_the_last_microsecond_of_its_month_in_utc() -> None:
    tick = timedelta(microseconds=1)
    october = [add_row(timestamp=MONTH_END - tick).id, add_row(timestamp=MONTH_END).id]
    november = [
        add_row(timestamp=MONTH_END + tick).id,
        add_row(timestamp=MONTH_END + 2 * tick).id,
    ]
    store = MemoryStore()

    run(store)

    assert [archived_ids(content) for content in jsons(store)] == [october, november]
    assert [name for name in store.archives if name.endswith(".txt")] == [
        "audit_logs_20241031_to_20241031_20250127_040001.txt",
        "audit_logs_20241101_to_20241101_20250127_040001_0002.txt",
    ]


@pytest.mark.usefixtures("session_zone")
def test_a_year_ends_a_segment_too_and_a_month_without_rows_makes_none() -> None:
    moments = [
        datetime(2023, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 10, 1, tzinfo=UTC),
        datetime(2024, 10, 31, tzinfo=UTC),
    ]
    ids = [add_row(timestamp=moment).id for moment in moments]
    store = MemoryStore()

    run(store)

    assert [archived_ids(content) for content in jsons(store)] == [
        [ids[0]],
        [ids[1]],
        [ids[2]],
        [ids[3], ids[4]],
    ]


def test_the_next_run_takes_what_a_larger_segment_would_have_taken() -> None:
    for number in range(5):
        add_row(timestamp=OLD + timedelta(seconds=number))
    store = MemoryStore()
    asked: list[bool] = []

    def stop_in_the_second_segment() -> bool:
        asked.append(len(store.archives) >= 2)
        return asked[-1]

    first = run(
        store, segment_rows=1, formats=("json",), should_stop=stop_in_the_second_segment
    )
    second = run(store, formats=("json",), now=NOW + timedelta(seconds=1))

    assert first == JobResult(
        {"found": 5, "archived": 1, "segments": 1, "objects": 1}, interrupted=True
    )
    assert second == JobResult({"found": 4, "archived": 4, "segments": 1, "objects": 1})
    assert AuditLog.objects.count() == 0


# -- gzip ----------------------------------------------------------------------------


def run_again(rows: list[AuditLog], **changes: Any) -> MemoryStore:
    """Archive these very rows as if they had never been archived."""
    AuditLog.objects.all().delete()
    AuditLog.objects.bulk_create(rows)
    AuditArchive.objects.all().delete()
    AuditManifest.objects.all().delete()
    store = MemoryStore()
    run(store, **changes)
    return store


def test_compressed_objects_are_gzip_of_the_plain_ones() -> None:
    rows = [add_row(message=f"zoë\n{number}\u2028") for number in range(3)]

    plain = run_again(rows)
    packed = run_again(rows, compress=True)

    assert {
        name.removesuffix(".gz"): gzip.decompress(content)
        for name, content in packed.archives.items()
    } == plain.archives
    assert list(packed.archives) == [f"{NAME}.json.gz", f"{NAME}.txt.gz"]
    assert list(packed.content)[-1] == MANIFEST  # which is not compressed


def test_compressing_the_same_rows_twice_gives_the_same_bytes() -> None:
    rows = [add_row(message=f"{number}" * 1000) for number in range(300)]

    once, again = [run_again(rows, compress=True) for _ in range(2)]

    assert once.archives == again.archives
    # No time in it: bytes 4 to 7 of gzip's header.
    assert {content[4:8] for content in once.archives.values()} == {bytes(4)}


def test_a_compressed_archive_is_smaller_and_its_events_say_so() -> None:
    events: list[Event] = []
    rows = [add_row(message="x" * 1000) for _ in range(100)]

    store = run_again(rows, compress=True, report=events.append)

    stored_bytes = sum(len(content) for content in store.archives.values())
    assert SegmentArchived(100, stored_bytes) in events
    assert stored_bytes < 20_000
    assert Stored("json", f"{NAME}.json.gz") in events
    assert Stored("txt", f"{NAME}.txt.gz") in events


# -- the manifest --------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_the_manifest_lists_every_object_as_it_is_stored(compress: bool) -> None:
    # Not in the order of the ids.
    AuditLog.objects.bulk_create(
        AuditLog(id=id, event_type="logout", timestamp=OLD + timedelta(seconds=seconds))
        for id, seconds in ((9, 0), (3, 1), (5, 2))
    )
    store = MemoryStore()

    run(store, segment_rows=2, compress=compress)

    ends = [
        ("", (9, "2024-10-01T12:00:00+00:00"), (3, "2024-10-01T12:00:01+00:00"), 2),
        (
            "_0002",
            *((5, "2024-10-01T12:00:02+00:00"), (5, "2024-10-01T12:00:02+00:00")),
            1,
        ),
    ]
    suffix = ".gz" if compress else ""
    entries = []
    for number, first, last, rows in ends:
        for kind in ("json", "txt"):
            name = f"{NAME}{number}.{kind}{suffix}"
            entries.append(
                {
                    "name": name,
                    "size_bytes": len(store.content[name]),
                    "sha256": sha256(store.content[name]),
                    "rows": rows,
                    "first_id": first[0],
                    "first_timestamp": first[1],
                    "last_id": last[0],
                    "last_timestamp": last[1],
                }
            )
    assert store.manifests == [
        {
            "starview_audit_manifest": 1,
            "name": MANIFEST,
            "sequence": 1,
            "created_at": "2025-01-27T04:00:01+00:00",
            "previous": None,
            "objects": entries,
            "removed": [],
        }
    ]


def test_each_manifest_has_the_name_and_the_hash_of_the_one_before() -> None:
    store = MemoryStore()
    for number in range(3):
        add_row()
        run(store, now=NOW + timedelta(seconds=number))

    names = [name for name in store.content if name not in store.archives]
    assert names == [
        f"audit_manifest_00000{number}_20250127_04000{number}.json"
        for number in (1, 2, 3)
    ]
    assert [manifest["previous"] for manifest in store.manifests] == [
        None,
        {"name": names[0], "sha256": sha256(store.content[names[0]])},
        {"name": names[1], "sha256": sha256(store.content[names[1]])},
    ]
    listed = [entry["name"] for found in store.manifests for entry in found["objects"]]
    assert listed == list(store.archives)


def test_a_run_without_rows_writes_no_manifest() -> None:
    add_row()
    store = MemoryStore()
    run(store)

    run(store, now=NOW + timedelta(seconds=1))

    assert len(store.manifests) == 1


def test_each_place_has_a_chain_of_its_own() -> None:
    here, there = MemoryStore(), MemoryStore()
    there.location = "there"
    add_row()
    run(here)
    add_row()

    run(there)

    (manifest,) = there.manifests
    assert (manifest["sequence"], manifest["previous"]) == (1, None)
    assert list(there.archives) == [f"{NAME}.json", f"{NAME}.txt"]


def test_a_manifest_that_could_not_be_written_is_written_by_the_next_run() -> None:
    store = MemoryStore()
    store.content[MANIFEST] = b"somebody's"
    row = add_row()

    with pytest.raises(JobError, match="1 audit logs are archived, but a manifest is"):
        run(store)

    assert archived_ids(store.content[f"{NAME}.json"]) == [row.id]
    assert remaining_ids() == set()
    assert store.content.pop(MANIFEST) == b"somebody's"
    events: list[Event] = []

    result = run(store, now=NOW + timedelta(days=1), report=events.append)

    assert result == JobResult({"found": 0, "archived": 0, "segments": 0, "objects": 0})
    assert events[1:] == [ManifestWritten(MANIFEST)]
    assert [entry["name"] for entry in store.manifests[0]["objects"]] == list(
        store.archives
    )


# -- large and in parts, in the real S3 ----------------------------------------------


def test_a_large_archive_is_uploaded_in_parts_of_one_size_and_read_back(
    bucket: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 << 20)
    AuditLog.objects.bulk_create(
        AuditLog(event_type="logout", timestamp=OLD, message=f"{n:05}" + "é" * 3000)
        for n in range(2000)
    )

    result = run(s3(bucket))

    assert result.counts == {
        "found": 2000,
        "archived": 2000,
        "segments": 1,
        "objects": 2,
    }
    content = bucket.read_object(f"audit-archives/{NAME}.json")
    assert len(content) > 2 * (5 << 20)
    assert [log["message"][:5] for log in json.loads(content)["logs"]] == [
        f"{number:05}" for number in range(2000)
    ]
    etag = bucket.s3.head_object(Bucket=BUCKET, Key=f"audit-archives/{NAME}.json")
    assert etag["ETag"].endswith('-3"')
    assert remaining_ids() == set()


def test_a_json_row_longer_than_every_buffer_keeps_its_end(
    bucket: LocalServices,
) -> None:
    add_row(message="é" * 5_000_000)
    add_row(message="last")

    run(s3(bucket))

    content = bucket.read_object(f"audit-archives/{NAME}.json")
    assert [len(log["message"]) for log in json.loads(content)["logs"]] == [5000000, 4]
    assert remaining_ids() == set()


@pytest.mark.parametrize("surplus", range(-12, 3))
def test_the_last_comma_goes_wherever_the_pieces_end(
    surplus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [add_row(message="x" * 100) for _ in range(2)]
    whole = MemoryStore()
    run(whole, formats=("json",))
    AuditLog.objects.bulk_create(rows)
    AuditArchive.objects.all().delete()
    length = len(whole.content[f"{NAME}.json"])
    monkeypatch.setattr(transfer, "PIECE_BYTES", length + surplus)
    store = MemoryStore()

    run(store, formats=("json",))

    assert store.archives == whole.archives


# -- the command, as an operator runs it ---------------------------------------------

GUIDE = """\
Found 1523 audit logs older than 30 days
Cutoff date: {cutoff}

Production mode: Archives will be stored in R2
JSON archive uploaded to R2: {name}.json
TXT archive uploaded to R2: {name}.txt
Manifest written: {manifest}

Archived 1523 audit logs
Archive location: R2 bucket "starview-media" in audit-archives/ folder
"""
DEVELOPMENT = (
    GUIDE.replace("Production mode", "Development mode")
    .replace("will be stored in R2", "will be stored in audit_archives/")
    .replace("uploaded to R2", "saved to folder")
    .replace(
        'R2 bucket "starview-media" in audit-archives/ folder',
        "audit_archives/ folder",
    )
)


def add_the_guides_rows() -> None:
    step = (datetime(2024, 10, 24, 12, tzinfo=UTC) - OLD) / 1522
    AuditLog.objects.bulk_create(
        AuditLog(event_type="logout", timestamp=OLD + number * step)
        for number in range(1523)
    )


def with_its_dates(template: str, printed: str) -> str:
    """The guide's text with the two dates that differ at every run."""
    cutoff = re.search(r"Cutoff date: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\n", printed)
    name = re.search(
        r"(audit_logs_20241001_to_20241024_(\d{8}_\d{6}))\.json\n", printed
    )
    assert cutoff
    assert name
    return template.format(
        cutoff=cutoff.group(1),
        name=name.group(1),
        manifest=f"audit_manifest_000001_{name.group(2)}.json",
    )


def test_the_command_prints_the_guides_example_character_for_character(
    bucket: LocalServices, manage: Manage
) -> None:
    add_the_guides_rows()

    done = manage("archive_audit_logs", "--days=30")

    assert done.returncode == 0
    assert done.stdout == with_its_dates(GUIDE, done.stdout)
    keys = re.findall(r"(?:uploaded to R2|written): (\S+)", done.stdout)
    assert [found.key for found in bucket.archived_objects()] == [
        f"audit-archives/{key}" for key in keys
    ]
    assert len(archived_ids(bucket.read_object(f"audit-archives/{keys[0]}"))) == 1523
    assert AuditLog.objects.count() == 0


def test_in_development_the_archives_go_to_a_folder_of_the_project(
    bucket: LocalServices, manage: Manage
) -> None:
    add_the_guides_rows()
    unset = dict.fromkeys(
        [name for name in bucket.environment if name.startswith(("AWS_", "DJANGO_"))]
    )
    written: list[Path] = []
    try:
        done = manage("archive_audit_logs", env={**unset, "DEBUG": "True"})

        assert done.returncode == 0, done.stderr
        names = re.findall(r"(?:saved to folder|written): (\S+)", done.stdout)
        written = [ROOT / "audit_archives" / name for name in names]
        assert done.stdout == with_its_dates(DEVELOPMENT, done.stdout)
        assert len(archived_ids(written[0].read_bytes())) == 1523
        assert len(written[1].read_text().splitlines()) == TXT_HEADER_LINES + 1523
        assert bucket.archived_objects() == []
        assert AuditLog.objects.count() == 0
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def test_the_command_says_when_there_is_nothing_to_archive(
    bucket: LocalServices, commands: Commands
) -> None:
    done = commands.run("archive_audit_logs", supervised=True)

    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0] == "Found 0 audit logs older than 30 days"
    assert lines[2:] == ["", "No audit logs found to archive."]
    assert bucket.archived_objects() == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_S3_ENDPOINT_URL", "http://127.0.0.1:9", "HINT: is the store up"),
        ("AWS_ACCESS_KEY_ID", None, "AWS_ACCESS_KEY_ID is required"),
    ],
)
def test_a_dry_run_fails_where_the_run_would(
    variable: str, value: str | None, said: str, bucket: LocalServices, manage: Manage
) -> None:
    row = add_row()

    done = manage("archive_audit_logs", "--dry-run", env={variable: value})

    assert done.returncode == 1
    assert said in done.stderr
    assert remaining_ids() == {row.id}


def test_a_dry_run_of_the_command_reports(
    bucket: LocalServices, commands: Commands
) -> None:
    row = add_row()

    done = commands.run("archive_audit_logs", "--dry-run", supervised=True)

    assert done.code == 0
    assert done.out.splitlines()[0] == "Found 1 audit logs older than 30 days"
    assert done.out.endswith(
        "\n\nDry run: would archive 1 audit logs, nothing changed\n"
    )
    assert remaining_ids() == {row.id}


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_the_command_writes_one_format_when_asked(
    kind: str, bucket: LocalServices, commands: Commands
) -> None:
    add_row()

    done = commands.run("archive_audit_logs", "--format", kind, supervised=True)

    archive, manifest = (found.key for found in bucket.archived_objects())
    assert done.code == 0
    assert archive.endswith(f".{kind}")
    assert manifest.startswith("audit-archives/audit_manifest_000001_")
    assert AuditLog.objects.count() == 0


AUDIT_STORE: dict[str, str | None] = {
    "AUDIT_R2_ACCESS_KEY_ID": "audit-key",
    "AUDIT_R2_SECRET_ACCESS_KEY": "audit-secret",
    "AUDIT_R2_BUCKET_NAME": "starview-audit",
}


@pytest.fixture
def audit_bucket(bucket: LocalServices) -> Iterator[Callable[[], list[str]]]:
    """The separate bucket; the fixture's value lists its keys."""

    def keys() -> list[str]:
        found = bucket.s3.list_objects_v2(Bucket="starview-audit")
        return [item["Key"] for item in found.get("Contents", [])]

    bucket.s3.create_bucket(
        Bucket="starview-audit",
        CreateBucketConfiguration={"LocationConstraint": "us-east-2"},
    )
    yield keys
    for key in keys():
        bucket.s3.delete_object(Bucket="starview-audit", Key=key)
    bucket.s3.delete_bucket(Bucket="starview-audit")


def test_a_separate_audit_bucket_is_used_and_named(
    bucket: LocalServices, audit_bucket: Callable[[], list[str]], manage: Manage
) -> None:
    add_row()

    done = manage("archive_audit_logs", env=AUDIT_STORE)

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        'Archive location: R2 bucket "starview-audit" in audit-archives/ folder\n'
    )
    assert len(audit_bucket()) == 3  # JSON, TXT and manifest
    assert bucket.archived_objects() == []


def test_with_a_separate_audit_bucket_the_media_key_pair_is_not_needed(
    audit_bucket: Callable[[], list[str]], manage: Manage
) -> None:
    add_row()
    media: dict[str, str | None] = {
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_STORAGE_BUCKET_NAME": None,
    }

    done = manage("archive_audit_logs", env={**AUDIT_STORE, **media})

    assert done.returncode == 0, done.stderr
    assert len(audit_bucket()) == 3  # JSON, TXT and manifest


@pytest.mark.parametrize(
    "arguments",
    [
        ["--days=0"],
        ["--days=-1"],
        ["--days", "-1"],
        ["--days=x"],
        ["--days="],
        ["--days=1.5"],
        ["--days=1e3"],
        ["--days=٣"],
        ["--days=36501"],
        ["--days=" + "9" * 5000],
        ["--days"],
        ["--segment-rows=0"],
        ["--segment-rows=-1"],
        ["--segment-rows=1e3"],
        ["--segment-rows=10000001"],
        ["--segment-rows"],
        ["--compress=9"],
        ["--format", "xml"],
        ["--format", "JSON"],
        ["--format="],
        ["--no-such-option"],
        ["surplus"],
    ],
    ids=lambda arguments: " ".join(arguments)[:20],
)
def test_wrong_options_exit_2_with_one_line_and_touch_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    row = add_row()

    with pytest.raises(SystemExit) as ended:
        execute_from_command_line(["manage.py", "archive_audit_logs", *arguments])

    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("manage.py archive_audit_logs: error: ")
    assert remaining_ids() == {row.id}


@pytest.mark.parametrize("days", ["1", "36500"])
def test_the_first_and_the_last_number_of_days_are_taken(
    days: str, commands: Commands
) -> None:
    done = commands.run("archive_audit_logs", f"--days={days}", supervised=True)

    assert done.code == 0
    assert done.out.startswith(f"Found 0 audit logs older than {days} days\n")


def test_the_command_works_from_any_directory(
    bucket: LocalServices, test_environment: dict[str, str], tmp_path: Path
) -> None:
    add_row()

    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "archive_audit_logs"],
        cwd=tmp_path,
        env=merged(test_environment),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Found 1 audit logs older than 30 days\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "NO ACTION"])
def test_rows_that_another_table_refers_to_are_not_deleted_from_under_it(
    action: str,
) -> None:
    row = add_row()
    in_another_session(
        "CREATE TABLE audit_note (log_id bigint REFERENCES starview_app_auditlog"
        f" ON DELETE {action}); INSERT INTO audit_note VALUES ({row.pk})"
    )
    try:
        with pytest.raises(JobError, match="refer to 1 due audit rows HINT: move"):
            run(MemoryStore())

        assert remaining_ids() == {row.pk}
    finally:
        in_another_session("DROP TABLE audit_note")


def test_a_row_whose_date_makes_no_sense_stays_and_the_others_go(
    tmp_path: Path,
) -> None:
    row = add_row()
    in_another_session("UPDATE starview_app_auditlog SET timestamp = '0001-01-01 BC'")
    add_row()

    result = run(FolderStore(tmp_path))

    assert (result.counts["archived"], remaining_ids()) == (1, {row.pk})


# -- progress and the public bucket --------------------------------------------------


def test_a_log_has_a_line_for_each_segment_and_no_bar(
    bucket: LocalServices, commands: Commands
) -> None:
    for days in range(3):
        add_row(message="x" * 1_000_000, timestamp=OLD + timedelta(days=days))

    done = commands.run("archive_audit_logs", "--segment-rows=2", supervised=True)

    started, first, second, finished = done.err.splitlines()
    assert done.code == 0
    assert "job_started" in started
    assert "job_finished" in finished
    for line, rows, megabytes in ((first, 2, 4.0), (second, 1, 2.0)):
        words = line.split()
        assert "segment_archived" in words
        assert f"rows={rows}" in words
        assert f"megabytes={megabytes}" in words
        assert "job=starview-archive-audit-logs" in words
        assert re.search(r" rows_per_second=\d+( |$)", line)
    assert "segments=2" in finished


def test_a_terminal_has_a_bar_that_ends_at_the_number_of_rows(
    bucket: LocalServices, test_environment: dict[str, str]
) -> None:
    for _ in range(5):
        add_row()
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "manage.py", "archive_audit_logs", "--segment-rows=2"],
        cwd=ROOT,
        env=merged(test_environment, {"TERM": "xterm"}),
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    os.close(stderr)

    shown = b"".join(iter(lambda: read_or_end(terminal), b"")).decode()
    out, _ = process.communicate(timeout=60)
    os.close(terminal)

    assert process.returncode == 0, shown
    assert re.search(r"\r *100%\|.*\| 5/5 \[.* rows/s\]", shown), shown
    assert "segment_archived" not in shown
    assert b"Archived 5 audit logs\n" in out


def read_or_end(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError as error:  # what Linux says when the other side was closed
        if error.errno != errno.EIO:
            raise
        return b""


PUBLIC = "https://media.starview.app"
SERVED = "serves to everybody HINT: set AUDIT_R2_BUCKET_NAME to a private one"


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize("named", [{}, {"AUDIT_R2_BUCKET_NAME": BUCKET}])
def test_each_run_warns_when_the_bucket_of_the_archives_is_public(
    named: dict[str, str], arguments: list[str], bucket: LocalServices, manage: Manage
) -> None:
    environment = {"R2_PUBLIC_URL": PUBLIC, **named}

    done = manage("archive_audit_logs", *arguments, env=environment)

    (line,) = (line for line in done.stderr.splitlines() if "warning" in line.lower())
    assert done.returncode == 0
    assert "archive_is_public" in line
    assert "'starview-media'" in line
    assert f"R2_PUBLIC_URL={PUBLIC}" in line
    assert SERVED in line


@pytest.mark.parametrize(
    "changes",
    [{"R2_PUBLIC_URL": None}, {"R2_PUBLIC_URL": ""}, AUDIT_STORE, {"DEBUG": "True"}],
    ids=["no public address", "an empty one", "a separate bucket", "development"],
)
def test_a_run_whose_archives_nobody_is_served_does_not_warn(
    changes: dict[str, str | None], bucket: LocalServices, manage: Manage
) -> None:
    done = manage("archive_audit_logs", env={"R2_PUBLIC_URL": PUBLIC, **changes})

    assert done.returncode == 0, done.stderr
    assert "archive_is_public" not in done.stderr
    assert PUBLIC not in done.stderr

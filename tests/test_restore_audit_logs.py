"""restore_audit_logs: archived rows come back as they were, or not at all."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from psycopg2.errors import ForeignKeyViolation

from demo.services import BUCKET, LocalServices
from starview_app.maintenance.jobs.audit_archive import restore as job
from starview_app.maintenance.jobs.audit_archive.transfer import PiecesFile
from starview_app.maintenance.models import AuditArchive, AuditManifest, JobRun
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.running import stop
from starview_app.models import AuditLog
from tests.archive_processes import Commands
from tests.conftest import ROOT, kill_run, merged
from tests.factories import (
    contents,
    execute,
    in_thread,
    make_account,
    session,
    wait_until,
    wait_until_blocked_by,
)
from tests.failing_s3 import Call, FailingS3, before, hang, refuse

pytestmark = pytest.mark.django_db(transaction=True)

OLD = datetime(2024, 10, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
ALL = ("--from=1900-01-01", "--to=9998-12-31")
PREFIX = "audit-archives/"
COLUMNS = (
    *("id", "event_type", '"timestamp"', "success", "message", "user_id", "username"),
    *("ip_address", "user_agent", "metadata"),
)


# -- the world -----------------------------------------------------------------------


@pytest.fixture
def folder(settings: Any, tmp_path: Path) -> Path:
    """Where the archives are, as in development."""
    settings.DEBUG = True
    path = tmp_path / "archives"
    settings.AUDIT_ARCHIVE_FOLDER = path
    return path


@pytest.fixture(params=["a folder", "S3"])
def anywhere(request: pytest.FixtureRequest) -> None:
    """Runs the test with a folder, and with S3."""
    request.getfixturevalue({"a folder": "folder", "S3": "bucket"}[request.param])


def add(**changes: Any) -> int:
    """A row as SQL makes it, since Django would tidy some values; returns its id."""
    values = {
        "event_type": "login_success",
        "timestamp": OLD,
        "success": True,
        "message": "ok",
        "user_id": None,
        "username": "alice",
        "ip_address": "203.0.113.9",
        "user_agent": "Mozilla/5.0",
        "metadata": "{}",
        **changes,
    }
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO starview_app_auditlog ({', '.join(values)})"
            f" VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
            list(values.values()),
        )
        (number,) = cursor.fetchone()
    return int(number)


def table() -> list[tuple[str | None, ...]]:
    """Every column of every row as PostgreSQL prints it, by id."""
    texts = ", ".join(f"{column}::text" for column in COLUMNS)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {texts} FROM starview_app_auditlog ORDER BY id")
        return list(cursor.fetchall())


def ids() -> set[int]:
    return set(AuditLog.objects.values_list("id", flat=True))


def archive(*options: str) -> list[str]:
    """Archive every row; returns the new objects' names, oldest rows first."""
    known = AuditArchive.objects.count()
    call_command("archive_audit_logs", *options, stdout=io.StringIO())
    assert ids() == set()
    records = AuditArchive.objects.order_by("id")[known:]
    return [name for record in records for name in record.names]


def restore(*options: str) -> str:
    """What the command prints."""
    output = io.StringIO()
    call_command("restore_audit_logs", *options, stdout=output)
    return output.getvalue()


def failing(*options: str) -> str:
    """The one line of a restore that exits 1."""
    with pytest.raises(CommandError) as caught:
        restore(*options)
    assert caught.value.returncode == 1
    (line,) = str(caught.value).splitlines()
    return line


def summary(restored: int, objects: int, skipped: int) -> str:
    return (
        f"Restored {restored} audit logs from {objects} archives, skipped {skipped}"
        " that are there already\n"
    )


def last_id() -> tuple[int, bool]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_serial_sequence('starview_app_auditlog', 'id')")
        (name,) = cursor.fetchone()
        cursor.execute(f"SELECT last_value, is_called FROM {name}")
        value, is_called = cursor.fetchone()
    return value, is_called


def set_counter(restart: int) -> None:
    execute(f"ALTER TABLE starview_app_auditlog ALTER id RESTART WITH {restart}")


def flip(path: Path, position: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def position_of(path: Path, text: str) -> int:
    return path.read_bytes().index(text.encode())


# -- byte for byte -------------------------------------------------------------------


def nested(depth: int) -> str:
    return '{"deeper": [' * depth + "1" + "]}" * depth


EVERY_CHARACTER = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x10000)]))
OTHER_PLANES = "".join(
    chr((plane << 16) + code)
    for plane in range(1, 17)
    for code in (0, 1, 0x41, 0xF600, 0xFFFD, 0xFFFE, 0xFFFF)
)
STRANGE: list[dict[str, Any]] = [
    {"message": EVERY_CHARACTER, "user_agent": EVERY_CHARACTER[::-1]},
    {"message": OTHER_PLANES, "username": OTHER_PLANES[:150]},
    {"metadata": json.dumps({OTHER_PLANES: [EVERY_CHARACTER]})},
    {"metadata": json.dumps({"raw": EVERY_CHARACTER[32:]}, ensure_ascii=False)},
    {"message": "a \"quoted\" 'text'", "username": '"', "user_agent": '""'},
    {"message": "one\ntwo\r\nthree\rfour\n", "username": "\n", "user_agent": "\r"},
    {"message": r"\n \u001b \\ \" \x01 \N", "username": "\\", "user_agent": r"\N"},
    {"message": "\\.", "username": "\\.\n", "user_agent": "\n\\.\n"},
    {"message": '"}]}\n]}\n{"id":1,', "username": ",", "user_agent": "},\n"},
    {"message": "", "username": "", "user_agent": "", "event_type": ""},
    {"message": " ends in blanks  ", "username": " \t", "event_type": " x "},
    {"message": "0123456789abcdé\n" * 65_536},
    {"message": "🔭" * 262_144, "metadata": json.dumps({"long": "\\" * 1_000_000})},
    {"metadata": nested(500)},
    {"metadata": "[" * 500 + "]" * 500},
    {"metadata": "null"},
    {"metadata": "[]"},
    {"metadata": '[1, null, {"a": null}]'},
    {"metadata": '"a text"'},
    {"metadata": '""'},
    {"metadata": "true"},
    {"metadata": "-0"},
    {"metadata": "[1e100, 1E-100, -1e-7, 1.10, 0.1000, 100, 1.0e2, -0, -0.0, 0e9]"},
    {"metadata": f"[{2**80}, {-(2**80)}, 9007199254740993, 0.1, 3.{'14' * 400}]"},
    {"metadata": '{"z": 1, "a": 2, "aa": 3, "": 4, "Z": 5, "é": 6, "id": 7}'},
    {"metadata": '{"a": 1, "a": 2}'},
    {"metadata": '{"id":1,"event_type":"x","metadata":{"id":2}}'},
    {"ip_address": None},
    {"ip_address": "0.0.0.0"},
    {"ip_address": "2001:db8:ffff:1:2:3:4:5"},
    {"ip_address": "::"},
    {"ip_address": "::ffff:203.0.113.9"},
    {"ip_address": "203.0.113.9/24"},
    {"ip_address": "2001:db8::1/64"},
    {"timestamp": OLD.replace(microsecond=1)},
    {"timestamp": OLD.replace(microsecond=999_999)},
    {"timestamp": OLD.replace(microsecond=120_000)},
    {"timestamp": datetime(1900, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
    {"success": False},
    {"username": "u" * 150, "event_type": "e" * 50},
    {"id": 2**63 - 1},
    {"id": 2**53 + 1},
    {"id": 0},
    {"id": -(2**63)},
]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("options", [[], ["--compress"]], ids=["plain", "gzipped"])
def test_every_field_of_every_row_comes_back_byte_for_byte(options: list[str]) -> None:
    owner = make_account("owner").pk
    for fields in STRANGE:
        add(**fields)
        if "id" not in fields:
            add(**fields, user_id=owner)
    before = table()
    assert len(before) == 2 * len(STRANGE) - 4
    names = archive("--format=json", *options)

    printed = restore(*ALL)

    assert table() == before
    assert summary(len(before), len(names), 0) in printed


def test_whatever_zone_the_database_prefers_times_come_back_and_days_are_utc(
    folder: Path,
) -> None:
    day = datetime(2024, 10, 1, tzinfo=UTC)
    add(timestamp=day)
    add(timestamp=day + DAY - TICK)
    before = table()
    add(timestamp=day - TICK)
    add(timestamp=day + DAY)
    with in_zone("Asia/Kathmandu"):
        archive()
    with in_zone("America/St_Johns"):
        restore("--from=2024-10-01", "--to=2024-10-01")

    assert table() == before


@contextmanager
def in_zone(zone: str) -> Iterator[None]:
    database = connection.ops.quote_name(connection.settings_dict["NAME"])
    execute(f"ALTER DATABASE {database} SET timezone = '{zone}'")
    connection.close()
    try:
        yield
    finally:
        execute(f"ALTER DATABASE {database} RESET timezone")
        connection.close()


# -- which rows ----------------------------------------------------------------------


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_key_restores_that_object_alone_with_and_without_its_prefix(
    prefix: str,
) -> None:
    kept = add()
    add(timestamp=OLD + 40 * DAY)
    first, _ = archive("--format=json")

    printed = restore(prefix + first)

    assert ids() == {kept}
    assert printed == (
        f"{first}: 1 of 1 rows restored, 0 there already\n\n"
        + summary(1, 1, 0)
        + "The next archive run moves those that are old enough out again.\n"
    )


def test_days_are_restored_from_the_first_midnight_to_the_last_exclusive(
    folder: Path,
) -> None:
    start, end = OLD.replace(hour=0), OLD.replace(hour=0) + 2 * DAY
    add(timestamp=start - TICK)
    wanted = {add(timestamp=start), add(timestamp=OLD), add(timestamp=end - TICK)}
    add(timestamp=end)
    archive()

    printed = restore("--from=2024-10-01", "--to=2024-10-02")

    assert ids() == wanted
    assert summary(3, 1, 0) in printed


def test_one_day_may_come_out_of_several_objects(folder: Path) -> None:
    other = [add(timestamp=OLD - DAY), add(timestamp=OLD + DAY)]
    wanted = {add(timestamp=OLD + second * TICK) for second in range(5)}
    archive("--segment-rows=2", "--format=json")

    printed = restore("--from=2024-10-01", "--to=2024-10-01")

    assert ids() == wanted
    assert not ids() & set(other)
    assert summary(5, 3, 0) in printed


def test_a_range_that_no_archive_covers_says_so_and_is_no_failure(folder: Path) -> None:
    add()
    archive()

    printed = restore("--from=2024-10-02", "--to=2024-12-31")

    assert printed == "No archive has rows of these days\n\n" + summary(0, 0, 0)
    assert ids() == set()


def test_an_archive_that_does_not_exist_has_no_rows_of_any_day(folder: Path) -> None:
    assert restore(*ALL).startswith("No archive has rows of these days\n")


def test_rows_archived_as_text_only_are_named_and_the_others_restored(
    folder: Path,
) -> None:
    add()
    (text,) = archive("--format=txt")
    row = add(timestamp=OLD + TICK)
    archive("--format=json")

    line = failing(*ALL)

    assert line == (
        f"restore_audit_logs is incomplete: {text} has rows of these days, as text for"
        " people only, and cannot be restored"
    )
    assert ids() == {row}


def test_text_beside_json_is_no_problem(folder: Path) -> None:
    row = add()
    archive("--format=both", "--compress")

    restore(*ALL)

    assert ids() == {row}


@pytest.mark.parametrize("options", [[], ["--compress"]], ids=["plain", "gzipped"])
def test_a_text_objects_key_is_answered_with_the_name_of_the_json_object(
    options: list[str], folder: Path
) -> None:
    add()
    machine, text = archive("--format=both", *options)

    assert failing(text) == f"{text} is text for people HINT: restore {machine}"
    assert ids() == set()


def test_a_text_objects_key_without_a_json_object_says_that_there_is_none(
    folder: Path,
) -> None:
    add()
    (text,) = archive("--format=txt")

    assert failing(text) == (
        f"{text} is text for people HINT: its rows were archived as text only"
    )


# -- rows that are there, and accounts that are gone ---------------------------------


def test_a_second_run_skips_every_row(folder: Path) -> None:
    add()
    add()
    archive()
    restore(*ALL)
    before = contents()

    printed = restore(*ALL)

    assert contents() == before
    assert summary(0, 1, 2) in printed


def test_only_the_rows_that_are_not_there_are_restored(folder: Path) -> None:
    kept, gone = add(message="kept"), add(message="gone")
    before = table()
    (name,) = archive("--format=json")
    restore(name)
    AuditLog.objects.filter(id=gone).delete()

    printed = restore(name)

    assert f"{name}: 1 of 2 rows restored, 1 there already\n" in printed
    assert table() == before
    assert ids() == {kept, gone}


OTHER_CONTENTS = {
    "event_type": "'x'",
    "timestamp": "'2020-01-01'",
    "success": "false",
    "message": "'x'",
    "user_id": "(SELECT id FROM auth_user WHERE username = 'other')",
    "username": "'x'",
    "ip_address": "NULL",
    "user_agent": "'x'",
    "metadata": "'[]'",
}


def test_rows_that_are_there_with_other_contents_are_left_and_named(
    folder: Path,
) -> None:
    make_account("other")
    owner = make_account("owner").pk
    add(user_id=owner)
    rows = {column: add(user_id=owner) for column in OTHER_CONTENTS}
    (name,) = archive("--format=json")
    restore(name)
    for column, row in rows.items():
        execute(
            f"UPDATE starview_app_auditlog SET {column} = {OTHER_CONTENTS[column]}"
            f" WHERE id = {row}"
        )
    before = table()

    lines = {failing(name), failing(name, "--dry-run")}

    (line,) = lines
    assert line.startswith(
        f"restore_audit_logs is incomplete: {len(rows)} rows of {name} are in the table"
        " with other contents and were left as they are, the first has id"
        f" {min(rows.values())} HINT:"
    )
    assert table() == before


def test_a_row_that_is_there_without_its_account_is_no_other_row(folder: Path) -> None:
    add(user_id=make_account("owner").pk)
    (name,) = archive("--format=json")
    restore(name)
    execute("UPDATE starview_app_auditlog SET user_id = NULL")

    assert summary(0, 1, 1) in restore(name)


def test_rows_of_accounts_that_are_gone_lose_that_link_and_are_counted(
    folder: Path,
) -> None:
    gone, owner = make_account("gone"), make_account("owner").pk
    for user_id in (gone.pk, gone.pk, owner, None):
        add(user_id=user_id, username="as it was")
    (name,) = archive("--format=json")
    gone.delete()

    printed = restore(name)

    rows = AuditLog.objects.order_by("id").values_list("user_id", "username")
    assert list(rows) == [
        (user_id, "as it was") for user_id in (None, None, owner, None)
    ]
    assert (
        f"{name}: 4 of 4 rows restored, 0 there already; 2 of accounts that are gone,"
        " without that link\n"
    ) in printed


def test_an_account_deleted_while_its_rows_come_back_costs_no_row(
    folder: Path,
) -> None:
    owner = make_account("owner")
    row, other = add(user_id=owner.pk), add()
    (name,) = archive("--format=json")

    def delete_account(web: Any) -> None:
        wait_until_blocked_by(web)
        with session() as third:
            third.cursor().execute(
                "DELETE FROM account_emailaddress;"
                " DELETE FROM starview_app_userprofile; DELETE FROM auth_user"
            )
            third.commit()
        web.rollback()

    with session() as web:
        web.cursor().execute(INSERT_SAME, [other])
        with in_thread(lambda: delete_account(web)):
            restore(name)

    assert ids() == {row, other}
    assert AuditLog.objects.get(id=row).user_id is None


def test_accounts_that_are_deleted_again_and_again_end_the_run_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    (name,) = archive("--format=json")
    attempts: list[str] = []

    def violate(self: Any, entry: Any) -> job.Restored:
        attempts.append(entry.name)
        raise IntegrityError("no such account") from ForeignKeyViolation()

    monkeypatch.setattr(job._Restoration, "_restore_once", violate)

    line = failing(name)

    assert "accounts were deleted while their rows were restored" in line
    assert attempts == [name] * 3


INSERT_SAME = """
    INSERT INTO starview_app_auditlog
    VALUES (%s, 'logout', now(), true, 'the web service', 'bob', NULL, '', '{}', NULL)
"""


@pytest.mark.parametrize("commits", [True, False])
def test_a_row_of_the_same_id_that_is_just_being_inserted_is_waited_for(
    commits: bool, folder: Path
) -> None:
    contested, other = add(), add()
    (name,) = archive("--format=json")

    def decide(web: Any) -> None:
        wait_until_blocked_by(web)
        web.commit() if commits else web.rollback()

    with session() as web:
        web.cursor().execute(INSERT_SAME, [contested])
        with in_thread(lambda: decide(web)):
            if commits:
                assert f"the first has id {contested} HINT" in failing(name)
            else:
                assert summary(2, 1, 0) in restore(name)

    assert ids() == {contested, other}
    assert AuditLog.objects.get(id=contested).username == (
        "bob" if commits else "alice"
    )


# -- the counter of ids --------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "after"),
    [(1, (50, True)), (50, (50, True)), (51, (51, False)), (9000, (9000, False))],
)
def test_the_counter_of_a_new_database_is_moved_beyond_the_rows_and_never_back(
    restart: int, after: tuple[int, bool], folder: Path
) -> None:
    add(id=50)
    add(id=49)
    (name,) = archive("--format=json")
    set_counter(restart)

    restore(name)

    assert last_id() == after
    assert add() == 51 if restart <= 51 else 9000


def test_a_counter_that_is_further_stays(folder: Path) -> None:
    add(id=50)
    (name,) = archive("--format=json")
    set_counter(70)
    AuditLog.objects.filter(id=add()).delete()

    restore(name)

    assert last_id() == (70, True)


def test_an_id_at_the_end_of_the_range_does_not_use_the_counter_up(
    folder: Path,
) -> None:
    add(id=2**63 - 2)
    add(id=7)
    (name,) = archive("--format=json")
    set_counter(1)

    restore(name)

    assert last_id() == (7, True)
    assert add() == 8


@contextmanager
def altered_table(change: str, back: str) -> Iterator[None]:
    execute(change)
    try:
        yield
    finally:
        execute(back)


NO_COUNTER = "ALTER TABLE starview_app_auditlog ALTER id DROP IDENTITY"
IDENTITY = (
    "ALTER TABLE starview_app_auditlog ALTER id ADD GENERATED BY DEFAULT AS IDENTITY"
)
SERIAL = f"""
    {NO_COUNTER};
    CREATE SEQUENCE "100% serial" AS integer OWNED BY starview_app_auditlog.id;
    ALTER TABLE starview_app_auditlog ALTER id SET DEFAULT nextval('"100% serial"')
"""
NO_SERIAL = f"""
    ALTER TABLE starview_app_auditlog ALTER id DROP DEFAULT;
    DROP SEQUENCE "100% serial"; {IDENTITY}
"""
ALWAYS = "ALTER TABLE starview_app_auditlog ALTER id SET GENERATED ALWAYS"
BY_DEFAULT = "ALTER TABLE starview_app_auditlog ALTER id SET GENERATED BY DEFAULT"


def test_a_serial_column_of_a_smaller_range_is_served_as_well(folder: Path) -> None:
    add(id=2**40)
    add(id=50)
    before = table()
    (name,) = archive("--format=json")

    with altered_table(SERIAL, NO_SERIAL):
        restore(name)

        assert table() == before
        assert add() == 51


def test_an_identity_that_is_always_generated_keeps_the_archived_ids(
    folder: Path,
) -> None:
    add(id=50)
    (name,) = archive("--format=json")

    with altered_table(ALWAYS, BY_DEFAULT):
        restore(name)

    assert ids() == {50}


def test_ids_that_come_from_no_counter_are_restored(folder: Path) -> None:
    add(id=50)
    (name,) = archive("--format=json")

    with altered_table(NO_COUNTER, IDENTITY):
        restore(name)

    assert ids() == {50}


def test_rows_of_the_web_service_take_no_id_of_an_object_that_is_still_to_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 7):
        add(id=number, timestamp=OLD + number * TICK)
    archive("--format=json", "--segment-rows=2")
    set_counter(1)
    new: list[int] = []
    once = job._Restoration._restore_once

    def restore_and_insert(self: Any, entry: Any) -> job.Restored:
        restored = once(self, entry)
        new.append(add())
        return restored

    monkeypatch.setattr(job._Restoration, "_restore_once", restore_and_insert)

    restore(*ALL)

    assert new == [7, 8, 9]
    assert ids() == set(range(1, 10))


# -- dry run -------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_would_be(folder: Path) -> None:
    gone = make_account("gone")
    there, missing = add(), add(user_id=gone.pk)
    (name,) = archive("--format=json")
    restore(name)
    AuditLog.objects.filter(id=missing).delete()
    gone.delete()
    set_counter(1)
    before = contents()

    printed = restore(name, "--dry-run")

    assert contents() == before
    assert ids() == {there}
    assert last_id() == (1, False)
    assert printed == (
        f"{name}: 1 of 2 rows to restore, 1 there already; 1 of accounts that are gone,"
        " without that link\n\nDry run: would restore 1 audit logs from 1 archives,"
        " skipped 1 that are there already\n"
    )


def test_a_dry_run_over_days_counts_only_their_rows(folder: Path) -> None:
    add()
    add(timestamp=OLD + DAY)
    archive()

    printed = restore("--from=2024-10-02", "--to=2024-10-02", "--dry-run")

    assert "Dry run: would restore 1 audit logs from 1 archives" in printed
    assert ids() == set()


# -- what is refused -----------------------------------------------------------------


def refusal(name: str) -> str:
    return f"restore_audit_logs is incomplete: {name} is not what was archived, its SHA"


def put_end_of_copy(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\\.\n", 1))


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def cut(path: Path, size_bytes: int) -> None:
    os.truncate(path, path.stat().st_size - size_bytes)


# In a message: "é's"; é is two bytes.
CHANGES: dict[str, Callable[[Path], None]] = {
    "a letter": lambda path: flip(path, position_of(path, "é's") + 3),
    "half a letter": lambda path: flip(path, position_of(path, "é's"), 0xFF),
    "a NUL": lambda path: flip(path, position_of(path, "é's") + 3, ord("s")),
    "a return": lambda path: flip(path, position_of(path, "é's") + 3, ord("s") ^ 13),
    "the quote of COPY": lambda path: flip(path, position_of(path, ","), 44 ^ 1),
    "the delimiter of COPY": lambda path: flip(path, position_of(path, ","), 44 ^ 2),
    "the end of COPY": put_end_of_copy,
    "a row's begin": lambda path: flip(path, position_of(path, '{"id":')),
    "its first byte": lambda path: flip(path, 0),
    "its last byte": lambda path: flip(path, -1),
    "cut short": lambda path: cut(path, 9),
    "empty": lambda path: cut(path, path.stat().st_size),
    "longer": lengthen,
}
GZIP_CHANGES: dict[str, Callable[[Path], None]] = {
    "without its last byte": lambda path: cut(path, 1),
    "cut in the middle": lambda path: cut(path, path.stat().st_size // 2),
    "its first byte": lambda path: flip(path, 0),
    "a byte in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "its last byte": lambda path: flip(path, -1),
    "longer": lengthen,
}


def assert_each_is_refused(
    changes: dict[str, Callable[[Path], None]], path: Path
) -> None:
    content = path.read_bytes()
    set_counter(1)
    for change, spoil in changes.items():
        spoil(path)

        assert failing(path.name).startswith(refusal(path.name)), change
        assert ids() == set(), change
        assert last_id() == (1, False), change

        path.write_bytes(content)
    assert summary(100, 1, 0) in restore(path.name)


def test_an_object_with_any_byte_changed_is_refused_and_nothing_of_it_inserted(
    folder: Path,
) -> None:
    for _ in range(100):
        add(message="é's")
    (name,) = archive("--format=json")

    assert_each_is_refused(CHANGES, folder / name)


def test_a_gzipped_object_that_was_changed_is_refused(folder: Path) -> None:
    for number in range(100):
        add(message=str(number))
    (name,) = archive("--format=json", "--compress")

    assert_each_is_refused(GZIP_CHANGES, folder / name)


def test_one_bad_object_does_not_keep_the_others_from_coming_back(
    folder: Path,
) -> None:
    rows = [add(timestamp=OLD + number * TICK) for number in range(4)]
    names = archive("--format=json", "--segment-rows=1")
    flip(folder / names[1], -3)
    (folder / names[2]).unlink()

    with pytest.raises(CommandError) as caught:
        restore(*ALL)

    assert ids() == {rows[0], rows[3]}
    assert str(caught.value) == (
        f"restore_audit_logs is incomplete: {names[2]} is not in the store any more"
        " HINT: restore it from a copy of the bucket (and 1 more)"
    )


def test_every_problem_of_a_run_is_printed(folder: Path) -> None:
    add()
    add(timestamp=OLD + TICK)
    names = archive("--format=json", "--segment-rows=1")
    for name in names:
        flip(folder / name, -3)
    output = io.StringIO()

    with pytest.raises(CommandError):
        call_command("restore_audit_logs", *ALL, stdout=output)

    for name in names:
        assert f"Not restored: {name} is not what was archived" in output.getvalue()


@pytest.mark.parametrize(
    "key",
    [
        "audit_logs_20240101_to_20240101_20250101_000000.json",
        "no such object",
        "../secret",
        f"{PREFIX}{PREFIX}x.json",
    ],
)
def test_an_object_that_no_manifest_lists_is_refused(key: str, folder: Path) -> None:
    add()
    archive()

    line = failing(key)

    assert line.startswith("nothing was restored: no manifest lists '")
    assert ids() == set()


def test_an_object_that_was_added_by_somebody_else_is_refused(folder: Path) -> None:
    add()
    (name,) = archive("--format=json")
    forged = name.replace("2024", "2023")
    (folder / forged).write_bytes((folder / name).read_bytes())

    assert failing(forged).startswith("nothing was restored: no manifest lists")
    assert ids() == set()


def test_an_object_that_was_removed_by_the_cleanup_is_refused(folder: Path) -> None:
    add()
    (name,) = archive("--format=json")
    newest = add(timestamp=OLD + DAY)  # which is always kept
    archive("--format=json")
    call_command("cleanup_audit_archives", "--days=1", stdout=io.StringIO())

    assert failing(name).startswith("nothing was restored: no manifest lists")
    assert summary(1, 1, 0) in restore(*ALL)
    assert ids() == {newest}


def manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit_manifest_*"))


def forge(folder: Path, name: str) -> None:
    """Change an object, and have its manifest agree."""
    entry = AuditArchive.objects.get(names=[name]).objects_written[0]
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b'"alice"', b'"mallory"'))
    content = path.read_bytes()
    for manifest in manifests(folder):
        text = manifest.read_text()
        text = text.replace(entry["sha256"], hashlib.sha256(content).hexdigest())
        text = text.replace(
            f'"size_bytes": {entry["size_bytes"]}', f'"size_bytes": {len(content)}'
        )
        manifest.write_text(text)


def forget() -> None:
    """What the database would know of the archive is lost with it."""
    AuditArchive.objects.all().delete()
    AuditManifest.objects.all().delete()


def test_a_forged_object_with_a_forged_manifest_is_refused_on_the_databases_word(
    folder: Path,
) -> None:
    add()
    (name,) = archive("--format=json")
    forge(folder, name)

    assert failing(name).startswith(refusal(name))
    assert failing(*ALL).startswith(refusal(name))
    assert ids() == set()


def test_a_changed_manifest_does_not_matter_where_the_database_knows_the_true_one(
    folder: Path,
) -> None:
    row = add()
    (name,) = archive("--format=json")
    flip(manifests(folder)[0], 40)

    assert summary(1, 1, 0) in restore(name)
    assert summary(0, 1, 1) in restore(*ALL)
    assert ids() == {row}


def test_without_the_databases_word_objects_of_a_changed_manifest_are_refused(
    folder: Path,
) -> None:
    add(message="of another size than the other object")
    (name,) = archive("--format=json")
    row = add(timestamp=OLD + DAY)
    archive("--format=json")
    forge(folder, name)
    forget()
    expected = f"{name} is listed by a manifest that was changed, and was not restored"

    assert expected in failing(name)
    assert ids() == set()
    assert expected in failing(*ALL)
    assert ids() == {row}


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{")])
def test_a_manifest_that_is_lost_makes_a_range_incomplete(
    spoil: Callable[[Path], Any], folder: Path
) -> None:
    add()
    archive("--format=json")
    row = add(timestamp=OLD + DAY)
    archive("--format=json")
    forget()
    spoil(manifests(folder)[0])

    line = failing(*ALL)

    assert "audit_manifest_000001" in line
    assert "what only it lists was not restored" in line
    assert ids() == {row}


def test_an_object_that_a_killed_run_could_not_list_comes_back_on_the_databases_word(
    folder: Path,
) -> None:
    row = add()
    (name,) = archive("--format=json")
    AuditArchive.objects.update(manifest=None)
    AuditManifest.objects.all().delete()
    manifests(folder)[0].unlink()

    assert restore("--from=2020-01-01", "--to=2020-01-01").startswith("No archive")
    restore(*ALL)

    assert ids() == {row}
    assert summary(0, 1, 1) in restore(name)


def test_an_unlisted_object_that_was_changed_is_refused(folder: Path) -> None:
    add()
    (name,) = archive("--format=json")
    AuditArchive.objects.update(manifest=None)
    AuditManifest.objects.all().delete()
    manifests(folder)[0].unlink()
    flip(folder / name, -1)

    assert failing(name).startswith(refusal(name))
    assert ids() == set()


def test_a_restored_row_is_archived_again_and_every_object_stays_good(
    folder: Path,
) -> None:
    row = add()
    names = archive()
    restore(*ALL)

    again = archive()

    assert not set(names) & set(again)
    output = io.StringIO()
    call_command("verify_audit_archives", stdout=output)
    assert "missing: 0, changed: 0, not in any manifest: 0" in output.getvalue()
    assert summary(1, 2, 1) in restore(*ALL)
    assert ids() == {row}


def test_a_database_built_anew_is_restored_from_the_bucket_alone(
    bucket: LocalServices,
) -> None:
    for number in range(1, 5):
        add(timestamp=OLD + number * TICK)
    before = table()
    archive("--segment-rows=3")
    execute(
        "DROP TABLE maintenance_auditarchive, maintenance_auditmanifest,"
        " maintenance_job, maintenance_jobrun, maintenance_scheduleline,"
        " maintenance_announcement, maintenance_backup, maintenance_sentreport;"
        " DELETE FROM django_migrations WHERE app = 'maintenance'"
    )
    try:
        set_counter(1)

        restore(*ALL)

        assert table() == before
        assert last_id() == (max(int(str(row[0])) for row in before), True)
    finally:
        create_own_tables()


# -- memory --------------------------------------------------------------------------


def test_rows_of_1_mb_are_read_in_pieces_of_bounded_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(8):
        add(message="0123456789" * 100_000)
    (name,) = archive("--format=json", "--compress")
    sizes: list[int] = []
    read = PiecesFile.read

    def measured(self: Any, size_bytes: int) -> bytes:
        piece = read(self, size_bytes)
        sizes.append(len(piece) + len(self._rest))
        return piece

    monkeypatch.setattr(PiecesFile, "read", measured)

    restore(name)

    assert sum(sizes) > 8_000_000
    assert max(sizes) <= job.COPY_BYTES
    assert len(ids()) == 8


# -- a store that fails, and runs that are ended -------------------------------------


@contextmanager
def running(
    environment: dict[str, str], *options: str
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "manage.py", "restore_audit_logs", *options],
        cwd=ROOT,
        env=merged(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.fixture
def three_objects(bucket: LocalServices) -> list[set[int]]:
    """The ids of two rows each, oldest first; restored from the last to the first."""
    found = [
        {add(timestamp=OLD + n * DAY), add(timestamp=OLD + n * DAY)} for n in (1, 2, 3)
    ]
    archive("--format=json", "--segment-rows=2")
    return found


def second(call_fault: Callable[[Call], None], s3: FailingS3) -> None:
    name = AuditArchive.objects.order_by("id")[1].names[0]
    s3.on("GetObject", call_fault, suffix=name)


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_an_object_that_the_store_refuses_does_not_keep_the_others_back(
    options: list[str],
    three_objects: list[set[int]],
    bucket: LocalServices,
    settings: Any,
) -> None:
    with FailingS3(bucket.aws_url) as s3:
        settings.AWS_S3_ENDPOINT_URL = s3.url
        second(refuse(403, "AccessDenied"), s3)

        line = failing(*ALL, *options)

    assert "it could not be read: audit_logs_" in line
    assert "the store answered 403 AccessDenied" in line
    assert ids() == (set() if options else three_objects[0] | three_objects[2])


def test_a_store_that_fails_three_times_over_is_not_asked_any_more(
    bucket: LocalServices, settings: Any
) -> None:
    for number in range(5):
        add(timestamp=OLD + number * DAY)
    archive("--format=json", "--segment-rows=1")
    with FailingS3(bucket.aws_url) as s3:
        settings.AWS_S3_ENDPOINT_URL = s3.url
        for record in AuditArchive.objects.all():
            s3.on("GetObject", refuse(403, "AccessDenied"), suffix=record.names[0])

        line = failing(*ALL)

    assert line.startswith("0 rows are restored, the rest failed: audit_logs_")
    read = [key for operation, key in s3.calls if operation == "GetObject"]
    assert len([key for key in read if "audit_logs_" in key]) == 3


def test_a_download_that_breaks_off_is_one_line_and_the_next_run_does_the_rest(
    three_objects: list[set[int]], bucket: LocalServices, settings: Any
) -> None:
    def cut_short(call: Call) -> None:
        answer = call.forward()
        call._handler.send(answer, len(answer.body) + 10)
        call.hang_up()

    with FailingS3(bucket.aws_url) as s3:
        settings.AWS_S3_ENDPOINT_URL = s3.url
        second(cut_short, s3)

        line = failing(*ALL)

    assert "it could not be read: audit_logs_" in line
    assert "HINT: is the store up" in line
    assert ids() == three_objects[0] | three_objects[2]
    settings.AWS_S3_ENDPOINT_URL = bucket.aws_url
    assert summary(2, 3, 4) in restore(*ALL)
    assert ids() == set().union(*three_objects)


def test_sigterm_in_the_middle_leaves_whole_objects_and_exits_1(
    three_objects: list[set[int]], bucket: LocalServices, commands: Commands
) -> None:
    with FailingS3(bucket.aws_url) as s3:
        started: Queue[int] = Queue()
        terminate = before(lambda: os.kill(started.get(timeout=60), signal.SIGTERM))
        second(terminate, s3)
        command = commands.start(
            *("restore_audit_logs", *ALL),
            settings={"AWS_S3_ENDPOINT_URL": s3.url},
            # However slow the machine is: the run is not to be cut off.
            constants={"starview_app.maintenance.running.stop.GRACE_SECONDS": 60.0},
            supervised=True,
        )
        started.put(command.pid)
        done = command.finish()

    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(
        "CommandError: restore_audit_logs was stopped by SIGTERM before it was done"
    )
    assert summary(2, 1, 0) in done.out
    assert ids() == three_objects[2]
    restore(*ALL)
    assert ids() == set().union(*three_objects)


def test_a_run_that_waits_for_a_silent_store_ends_after_the_grace(
    three_objects: list[set[int]],
    bucket: LocalServices,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop, "GRACE_SECONDS", 0.05)
    with FailingS3(bucket.aws_url) as s3:
        settings.AWS_S3_ENDPOINT_URL = s3.url
        silent = hang(s3)

        def terminate(call: Call) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            silent(call)

        second(terminate, s3)

        line = failing(*ALL)

    assert line.startswith("restore_audit_logs was stopped by SIGTERM")
    assert ids() == three_objects[2]


def is_connected(count: int) -> bool:
    with session() as observer:
        cursor = observer.cursor()
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name LIKE 'restore_audit_logs%%'"
            " AND datname = current_database() AND pid <> %s",
            [connection.connection.info.backend_pid],
        )
        return bool(cursor.fetchone() == (count,))


def test_killed_while_it_inserts_it_leaves_whole_objects_and_blocks_nobody(
    three_objects: list[set[int]], commands: Commands, test_environment: dict[str, str]
) -> None:
    contested = min(three_objects[1])
    with session() as web:
        web.cursor().execute(INSERT_SAME, [contested])
        with running(test_environment, *ALL) as process:
            wait_until_blocked_by(web)
            also = commands.run("restore_audit_logs", *ALL, supervised=True)
            kill_run(process)
            process.wait(60)
        web.rollback()
    wait_until(lambda: is_connected(0), "the killed run's session has ended")

    assert also.code == 75
    assert "another run of restore_audit_logs is under way" in also.err
    assert ids() == three_objects[2]
    assert summary(4, 3, 2) in restore(*ALL)
    assert ids() == set().union(*three_objects)


# -- options -------------------------------------------------------------------------


NEITHER = "name a KEY, or both --from and --to"
BOTH = "KEY and --from, --to exclude each other"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], NEITHER),
        (["--from=2024-10-01"], NEITHER),
        (["--to=2024-10-01"], NEITHER),
        (["x.json", *ALL], BOTH),
        (["x.json", "--from=2024-10-01"], BOTH),
        (["x.json", "--to=2024-10-01"], BOTH),
        (["--from=2024-10-02", "--to=2024-10-01"], "--from is after --to"),
    ],
)
def test_options_that_do_not_belong_together_exit_2(
    options: list[str], expected: str, folder: Path
) -> None:
    with pytest.raises(CommandError) as caught:
        restore(*options)

    assert caught.value.returncode == 2
    assert str(caught.value) == expected
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], NEITHER),
        (
            ["--from=2024-02-30", "--to=2024-10-01"],
            "argument --from: '2024-02-30' is not a date such as 2026-01-31",
        ),
        (
            ["--from=2024-10-01", "--to="],
            "argument --to: '' is not a date such as 2026-01-31",
        ),
        (["x.json", "y.json"], "unrecognized arguments: y.json"),
    ],
)
def test_a_wrong_option_is_one_line_of_the_process_exit_2_and_no_run(
    options: list[str], expected: str, commands: Commands
) -> None:
    done = commands.run("restore_audit_logs", *options, supervised=True)

    assert not JobRun.objects.exists()
    assert done.code == 2
    assert expected in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_a_changed_object_is_one_line_of_the_process_and_exit_1(
    bucket: LocalServices, commands: Commands
) -> None:
    add()
    (name,) = archive("--format=json")
    content = bucket.read_object(PREFIX + name)
    bucket.s3.put_object(
        Bucket=BUCKET, Key=PREFIX + name, Body=content.replace(b"alice", b"bob")
    )

    done = commands.run("restore_audit_logs", PREFIX + name, supervised=True)

    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"CommandError: {refusal(name)}")
    assert "Traceback" not in done.err
    assert ids() == set()

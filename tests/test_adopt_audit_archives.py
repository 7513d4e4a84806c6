"""adopt_audit_archives: the first version's archives become part of the chain."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError

from demo import first_version
from demo.services import LocalServices
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.models import AuditLog
from tests.archive_chains import (
    Done,
    Place,
    make_chain,
    run_command,
    verify,
)
from tests.conftest import Manage
from tests.factories import execute

pytestmark = pytest.mark.django_db(transaction=True)

STEM = "audit_logs_20240105_to_20240107_20240301_040000"
JSON, TXT = f"{STEM}.json", f"{STEM}.txt"
ARCHIVED = datetime(2024, 3, 1, 4, 0, 0, 123456, tzinfo=UTC)
BEGIN = datetime(2024, 1, 5, 12, 0, 0, 273700, tzinfo=UTC)
# What a visitor may write into the fields of a row that people read.
FORGED = f"no\n{'-' * 100}\n\n{'-' * 100}\nID: 999\nTimestamp: {BEGIN.isoformat()}\r"


def make_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "event_type": "login_failed",
        "timestamp": (BEGIN + timedelta(days=number % 3)).isoformat(),
        "success": False,
        "message": "Login failed",
        "user_id": None,
        "username": "alice",
        "ip_address": "203.0.113.7",
        "user_agent": "Mozilla/5.0",
        "metadata": {"attempts": 3, "rate": 0.25, "big": 2**70},
    } | changes


ROWS = [
    make_row(30),
    make_row(31, timestamp="2024-01-06T12:00:00+00:00", message=FORGED, username=""),
    make_row(32, ip_address=None, user_agent="", metadata={}, success=True),
]


def json_object(rows: list[dict[str, Any]], **changes: Any) -> bytes:
    return first_version.json_object(rows, ARCHIVED, **changes)


def txt_object(rows: list[dict[str, Any]], count: int | None = None) -> bytes:
    return first_version.txt_object(rows, ARCHIVED, count)


@pytest.fixture
def place(bucket: LocalServices) -> Iterator[Place]:
    place = Place(bucket)
    yield place
    place.empty()


@pytest.fixture
def first(place: Place) -> Place:
    place.write(JSON, json_object(ROWS))
    place.write(TXT, txt_object(ROWS))
    return place


def test_a_record_that_the_database_refuses_is_not_taken_for_one_that_is_there(
    first: Place,
) -> None:
    create_own_tables()
    execute("ALTER TABLE maintenance_auditarchive ADD added text NOT NULL")
    try:
        with pytest.raises(IntegrityError, match='null value in column "added"'):
            adopt()
    finally:
        execute("ALTER TABLE maintenance_auditarchive DROP added")


def adopt(*options: str) -> Done:
    return run_command("adopt_audit_archives", *options)


def restored(name: str) -> dict[int, AuditLog]:
    done = run_command("restore_audit_logs", name)
    assert done.exit_code == 0, done.error
    return AuditLog.objects.in_bulk()


# -- adopted -------------------------------------------------------------------------


def test_an_adopted_archive_is_verified_restored_and_cleaned_up(first: Place) -> None:
    assert verify().exit_code == 1

    done = adopt()

    assert done.exit_code == 0, done.error
    assert done.out.startswith(
        "Found 1 archives of the first version in R2 bucket "
        f'"starview-media" in audit-archives/ folder\nAdopted: {JSON}, {TXT} (3 rows)\n'
    )
    assert "Adopted 1 archives (2 objects, 3 rows). Their hashes are" in done.out
    assert verify().exit_code == 0
    rows = restored(JSON)
    assert sorted(rows) == [30, 31, 32]
    assert rows[30].timestamp == BEGIN
    assert rows[31].message == FORGED
    assert rows[30].metadata == {"attempts": 3, "rate": 0.25, "big": 2**70}
    assert verify().exit_code == 0


def test_the_manifest_says_from_when_on_an_object_is_known(first: Place) -> None:
    adopt()

    (one, other) = json.loads(AuditManifest.objects.get().body)["objects"]
    assert (one["name"], other["name"]) == (JSON, TXT)
    assert one["rows"] == other["rows"] == 3
    assert (one["first_id"], one["last_id"]) == (30, 32)
    assert one["first_timestamp"] == BEGIN.isoformat()
    age = datetime.now(UTC) - datetime.fromisoformat(one["adopted_at"])
    assert timedelta() < age < timedelta(minutes=5)


def test_adopting_twice_changes_nothing(first: Place) -> None:
    adopt()
    before = (first.names(), AuditManifest.objects.count())

    done = adopt()

    assert (done.exit_code, done.out.splitlines()[0][:16]) == (0, "Found 0 archives")
    assert (first.names(), AuditManifest.objects.count()) == before


def test_a_dry_run_reads_and_changes_nothing(first: Place) -> None:
    done = adopt("--dry-run")

    assert done.exit_code == 0, done.error
    assert f"Would adopt: {JSON}, {TXT} (3 rows)" in done.out
    assert "Dry run: would adopt 1 archives (2 objects, 3 rows)" in done.out
    assert first.names() == [JSON, TXT]
    assert not AuditArchive.objects.exists()


def test_its_layout_does_not_matter(place: Place) -> None:
    content = json.loads(json_object(ROWS))
    place.write(JSON, json.dumps(content).encode())

    assert adopt().exit_code == 0
    assert len(restored(JSON)) == 3


def test_an_adopted_archive_that_is_changed_afterwards_is_found_out(
    first: Place,
) -> None:
    adopt()
    first.write(JSON, first.read(JSON).replace(b"alice", b"bobby"))

    verdict = verify()

    assert verdict.exit_code == 1
    assert f"changed   {JSON}" in verdict.out


@pytest.mark.parametrize(("name", "body"), [(JSON, json_object), (TXT, txt_object)])
def test_one_object_alone_is_adopted(name: str, body: Any, place: Place) -> None:
    place.write(name, body([ROWS[0], ROWS[2]]))

    done = adopt()

    assert done.exit_code == 0, done.error
    assert verify().exit_code == 0
    record = AuditArchive.objects.get()
    assert (record.row_count, record.first_id, record.last_id) == (2, 30, 32)
    assert record.first_timestamp == BEGIN


def test_old_adopted_archives_are_removed_and_listed_as_removed(first: Place) -> None:
    for month in ("02", "03"):
        name = f"audit_logs_2024{month}01_to_2024{month}02_20240401_040000.json"
        first.write(name, json_object([make_row(40 + int(month))]))
    adopt()

    done = run_command("cleanup_audit_archives", "--days=90")

    assert done.exit_code == 0, done.error
    assert "Removed 2 archives" in done.out
    assert verify().exit_code == 0


# -- left alone ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text", "reason"),
    [
        (json_object(ROWS), txt_object(ROWS[:2]), "row 32 is not in the TXT"),
        (json_object(ROWS[:2]), txt_object(ROWS), "the TXT has more"),
        (
            json_object([*ROWS[:2], make_row(32, message="changed")]),
            txt_object(ROWS),
            "row 32 is not in the TXT as it is in the JSON",
        ),
        (json_object(ROWS, log_count=4), txt_object(ROWS), "it has 3 rows, and says 4"),
        (json_object(ROWS)[:-40], txt_object(ROWS), "IncompleteJSONError"),
        (b"", txt_object(ROWS), "IncompleteJSONError"),
        (b"[]", txt_object(ROWS), "archive_date"),
        (b'{"logs": [1]}', txt_object(ROWS), "archive_date"),
        (
            json_object([make_row(30, timestamp="yesterday")]),
            txt_object([make_row(30, timestamp="yesterday")]),
            "yesterday",
        ),
        (None, txt_object(ROWS[:1], count=2), "it has 1 rows, and says 2"),
        (None, b"", "it has 0 rows"),
    ],
)
def test_an_archive_that_does_not_agree_in_itself_is_named_and_left_alone(
    content: bytes | None, text: bytes, reason: str, place: Place
) -> None:
    if content is not None:
        place.write(JSON, content)
    place.write(TXT, text)
    good = "audit_logs_20240201_to_20240202_20240301_040000.json"
    place.write(good, json_object([make_row(50)]))

    done = adopt()

    assert done.exit_code == 1
    assert reason in done.error
    assert "was not adopted" in done.error
    assert [record.names for record in AuditArchive.objects.all()] == [[good]]
    assert place.read(TXT) == text


def test_a_text_in_which_somebody_has_written_a_row_is_left_alone(place: Place) -> None:
    place.write(TXT, txt_object(ROWS))

    assert adopt().exit_code == 1


def test_what_a_manifest_lists_already_is_not_of_the_first_version(
    bucket: LocalServices,
) -> None:
    place = make_chain(bucket)
    AuditArchive.objects.all().delete()  # as after a restore of an older database
    AuditManifest.objects.all().delete()
    try:
        done = adopt()
    finally:
        place.empty()

    assert "Found 0 archives" in done.out
    assert not AuditArchive.objects.exists()


def test_a_store_that_does_not_answer_is_one_line(first: Place, manage: Manage) -> None:
    done = manage(
        "adopt_audit_archives", env={"AWS_S3_ENDPOINT_URL": "http://127.0.0.1:9"}
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("CommandError: 0 archives are")
    assert "Traceback" not in done.stderr

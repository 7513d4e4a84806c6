"""verify_audit_archives: whoever changes what was archived is found out."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Event
from threading import enumerate as enumerate_threads
from typing import Any, NamedTuple

import botocore.config
import pytest
from django.core.management import load_command_class
from django.db import connection

from demo.services import LocalServices
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.cleanup import cleanup_audit_archives
from starview_app.maintenance.jobs.audit_archive.manifests import (
    parse_manifest,
)
from starview_app.maintenance.jobs.audit_archive.verify import verify_audit_archives
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores.s3 import S3Store
from tests import failing_s3
from tests.archive_chains import (
    CHANGED,
    EVENTS,
    FOUND_WRONG,
    GZ3,
    HOSTILE,
    JSON1,
    JSON2,
    M1,
    M2,
    M3,
    M4,
    MANIFEST_TIME,
    MISSING,
    NO_UTF8,
    OBJECTS,
    STRAY,
    TXT1,
    TXT2,
    TXT_GZ3,
    Finding,
    Place,
    Verdict,
    add_rows,
    archive,
    archive_what_is_due,
    assert_all_good,
    forget,
    killed_at,
    make_chain,
    on_record,
    put_many,
    run_command,
    sha256,
    store,
    verify,
    with_one_byte_changed,
    write_manifest,
)
from tests.archive_processes import Commands
from tests.conftest import started
from tests.factories import (
    DEADLINE_SECONDS,
    contents,
    execute,
    in_thread,
    wait_until,
)
from tests.failing_s3 import Call, FailingS3, refuse


@pytest.fixture
def bucket(bucket: LocalServices, transactional_db: None) -> Iterator[LocalServices]:
    """An empty bucket, and a database that other sessions see."""
    yield bucket
    Place(bucket).empty()


@pytest.fixture
def place(bucket: LocalServices) -> Place:
    return make_chain(bucket)


@pytest.fixture
def s3(bucket: LocalServices, settings: Any) -> Iterator[FailingS3]:
    """Commands of this process reach the bucket through it."""
    with FailingS3(bucket.aws_url) as proxy:
        settings.AWS_S3_ENDPOINT_URL = proxy.url
        yield proxy


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    original = botocore.config.Config

    def impatient(**options: Any) -> botocore.config.Config:
        return original(**{**options, "retries": {"total_max_attempts": 1}})

    monkeypatch.setattr(botocore.config, "Config", impatient)


# -- nothing is wrong ----------------------------------------------------------------


def test_after_several_runs_each_object_is_good(place: Place) -> None:
    verdict = verify()

    assert_all_good(verdict)
    assert "Read 3 manifests; checking 6 objects, reading 6 of them" in verdict.out
    assert verdict.out.endswith(
        "\nGood: 6, missing: 0, changed: 0, not in any manifest: 0\n"
    )
    assert "Note:" not in verdict.out


def test_with_nothing_archived_there_is_nothing_wrong(bucket: LocalServices) -> None:
    verdict = verify()

    assert_all_good(verdict, set())
    assert "Note:" not in verdict.out


def test_it_changes_nothing_in_the_store_or_in_any_table(
    place: Place, s3: FailingS3
) -> None:
    place.write("stranger", b"")
    place.write(JSON1, b"changed")
    place.remove(TXT2, place.manifest(2))
    objects = {name: place.read(name) for name in place.names()}
    tables = contents()

    verdict = verify()

    assert verdict.exit_code == 1
    assert {operation for operation, _ in s3.calls} == {"ListObjectsV2", "GetObject"}
    assert {name: place.read(name) for name in place.names()} == objects
    assert contents() == tables


# -- objects -------------------------------------------------------------------------

OBJECT_TAMPERING: dict[str, tuple[Callable[[Place], None], set[Finding]]] = {
    "has one byte changed, in JSON": (
        lambda place: place.write(JSON1, with_one_byte_changed(place.read(JSON1))),
        {Finding(CHANGED, JSON1)},
    ),
    "has one byte changed, in text": (
        lambda place: place.write(TXT2, with_one_byte_changed(place.read(TXT2))),
        {Finding(CHANGED, TXT2)},
    ),
    "has one byte changed, in gzip": (
        lambda place: place.write(GZ3, with_one_byte_changed(place.read(GZ3))),
        {Finding(CHANGED, GZ3)},
    ),
    "has its last byte changed": (
        lambda place: place.write(JSON2, place.read(JSON2)[:-1] + b" "),
        {Finding(CHANGED, JSON2)},
    ),
    "is no gzip, though as long": (
        lambda place: place.write(GZ3, b"x" * len(place.read(GZ3))),
        {Finding(CHANGED, GZ3)},
    ),
    "is packed anew, with the same text": (
        lambda place: place.write(
            GZ3, gzip.compress(gzip.decompress(place.read(GZ3)), 1)
        ),
        {Finding(CHANGED, GZ3)},
    ),
    "was cut short": (
        lambda place: place.write(JSON2, place.read(JSON2)[:-1]),
        {Finding(CHANGED, JSON2)},
    ),
    "was emptied": (
        lambda place: place.write(TXT1, b""),
        {Finding(CHANGED, TXT1)},
    ),
    "has grown": (
        lambda place: place.write(GZ3, place.read(GZ3) + b"\0"),
        {Finding(CHANGED, GZ3)},
    ),
    "was replaced by another archived one": (
        lambda place: place.write(JSON2, place.read(JSON1)),
        {Finding(CHANGED, JSON2)},
    ),
    "was exchanged with another one": (
        lambda place: place.exchange(JSON1, JSON2),
        {Finding(CHANGED, JSON1), Finding(CHANGED, JSON2)},
    ),
    "was removed": (
        lambda place: place.remove(TXT_GZ3),
        {Finding(MISSING, TXT_GZ3)},
    ),
    "was renamed": (
        lambda place: place.rename(JSON1, JSON1 + "x"),
        {Finding(MISSING, JSON1), Finding(STRAY, JSON1 + "x")},
    ),
    "was added": (
        lambda place: place.write(JSON1.replace("2024", "2023"), place.read(JSON1)),
        {Finding(STRAY, JSON1.replace("2024", "2023"))},
    ),
    "was added in a folder below": (
        lambda place: place.write("below/" + JSON1, place.read(JSON1)),
        {Finding(STRAY, "below/" + JSON1)},
    ),
    "only looks like a manifest": (
        lambda place: place.write("audit_manifest_4.json", b"{}"),
        {Finding(STRAY, "audit_manifest_4.json")},
    ),
}


@pytest.mark.parametrize(
    ("tamper", "expected"), OBJECT_TAMPERING.values(), ids=OBJECT_TAMPERING
)
def test_it_names_an_object_that(
    tamper: Callable[[Place], None], expected: set[Finding], place: Place
) -> None:
    tamper(place)

    recorded = verify()
    forget()
    unrecorded = verify()

    good = OBJECTS - {name for _, name in expected}
    assert (recorded.bad, recorded.good) == (expected, good)
    assert (unrecorded.bad, unrecorded.good) == (expected, good)


def test_several_findings_are_one_line_of_summary(place: Place) -> None:
    place.remove(JSON1, TXT1, JSON2)

    verdict = verify()

    assert verdict.error == f"{FOUND_WRONG}{JSON1} is missing (and 2 more)\n"
    assert verdict.out.endswith(
        "\nGood: 3, missing: 3, changed: 0, not in any manifest: 0\n"
    )


def test_as_a_process_it_exits_1_with_one_line_and_no_traceback(
    place: Place, commands: Commands
) -> None:
    place.write("\x1b[2K\x1b[1A\u202e", b"")

    done = commands.run("verify_audit_archives", supervised=True)

    started_line, finished_line, reason = done.err.splitlines()
    assert done.code == 1
    assert "job_started" in started_line
    assert "job_finished" in finished_line
    assert "outcome=failed" in finished_line
    assert reason.startswith(FOUND_WRONG)
    assert reason.isprintable()
    assert r"\u001b[2K\u001b[1A\u202e" in done.out


# -- manifests -----------------------------------------------------------------------


def rows_edited(number: int) -> Callable[[Place], None]:
    def tamper(place: Place) -> None:
        objects = place.content(number)["objects"]
        place.edit(number, objects=[{**entry, "rows": 9} for entry in objects])

    return tamper


def edited(number: int, **fields: Any) -> Callable[[Place], None]:
    return lambda place: place.edit(number, **fields)


def removed(number: int) -> Callable[[Place], None]:
    return lambda place: place.remove(place.manifest(number))


def exchanged(one: int, other: int) -> Callable[[Place], None]:
    return lambda place: place.exchange(place.manifest(one), place.manifest(other))


def copied(number: int, new_time: str) -> Callable[[Place], None]:
    def tamper(place: Place) -> None:
        name = f"audit_manifest_{number:06d}_{new_time}.json"
        place.forge({**place.content(number), "name": name})

    return tamper


def reordered(place: Place) -> None:
    """The second and third run change places, in names and numbers."""
    contents = {number: place.content(number) for number in (2, 3)}
    place.remove(place.manifest(2), place.manifest(3))
    for number, content in contents.items():
        new = 5 - number
        name = content["name"].replace(f"_{number:06d}_", f"_{new:06d}_")
        place.forge({**content, "name": name, "sequence": new})


def objects_reordered(place: Place) -> None:
    place.edit(2, objects=place.content(2)["objects"][::-1])


def put_back_to_before_its_run(place: Place) -> None:
    place.edit(2, objects=[], previous=None)


class Tampering(NamedTuple):
    """`unrecorded`: what must be among the findings where no record is left."""

    apply: Callable[[Place], None]
    findings: set[Finding]
    unrecorded: set[Finding]


def everywhere(apply: Callable[[Place], None], *findings: Finding) -> Tampering:
    return Tampering(apply, set(findings), set(findings))


MANIFEST_TAMPERING: dict[str, Tampering] = {
    "was edited, the first": everywhere(rows_edited(1), Finding(CHANGED, M1)),
    "was edited, in the middle": everywhere(rows_edited(2), Finding(CHANGED, M2)),
    "has one byte changed": everywhere(
        lambda place: place.write(
            place.manifest(2), with_one_byte_changed(place.read(place.manifest(2)))
        ),
        Finding(CHANGED, M2),
    ),
    "has a blank more at its end": everywhere(
        lambda place: place.write(
            place.manifest(1), place.read(place.manifest(1)) + b" "
        ),
        Finding(CHANGED, M1),
    ),
    "lists the same in another order": everywhere(
        objects_reordered, Finding(CHANGED, M2)
    ),
    "claims that an object was removed": everywhere(
        edited(1, removed=[JSON1]), Finding(CHANGED, M1)
    ),
    "no longer names the one before": everywhere(
        edited(2, previous=None), Finding(CHANGED, M2)
    ),
    "has another hash of the one before": everywhere(
        edited(2, previous={"name": M1, "sha256": "0" * 64}), Finding(CHANGED, M2)
    ),
    "was put back to before its run": everywhere(
        put_back_to_before_its_run, Finding(CHANGED, M2)
    ),
    "was removed, the first": everywhere(removed(1), Finding(MISSING, M1)),
    "was removed, in the middle": everywhere(removed(2), Finding(MISSING, M2)),
    "was exchanged with the next one": everywhere(
        exchanged(1, 2), Finding(CHANGED, M1), Finding(CHANGED, M2)
    ),
    "was exchanged with the newest": everywhere(
        exchanged(2, 3), Finding(CHANGED, M2), Finding(CHANGED, M3)
    ),
    "was copied to another time": everywhere(
        copied(2, "20250101_000000"), Finding(STRAY, M2)
    ),
    "was copied to another time, the newest": everywhere(
        copied(3, "20991231_000000"), Finding(STRAY, M3)
    ),
    "was moved to another number": Tampering(
        lambda place: place.rename(
            place.manifest(2), place.manifest(2).replace("_000002_", "_000004_")
        ),
        {Finding(MISSING, M2), Finding(STRAY, M4)},
        {Finding(MISSING, M2), Finding(CHANGED, M4)},
    ),
    "changed its place with another run's": Tampering(
        reordered,
        {Finding(status, name) for status in (MISSING, STRAY) for name in (M2, M3)},
        {Finding(STRAY, M2)},
    ),
    "was appended, and does not fit": Tampering(
        lambda place: place.append(
            previous={"name": place.manifest(3), "sha256": "0" * 64}
        ),
        {Finding(STRAY, M4)},
        {Finding(CHANGED, M3)},
    ),
}


@pytest.mark.parametrize(
    "tampering", MANIFEST_TAMPERING.values(), ids=MANIFEST_TAMPERING
)
def test_it_names_a_manifest_that(tampering: Tampering, place: Place) -> None:
    tampering.apply(place)

    recorded = verify()
    forget()
    unrecorded = verify()

    # The database knows what the manifest listed: the objects are as they should be.
    assert (recorded.bad, recorded.good) == (tampering.findings, OBJECTS)
    assert unrecorded.bad >= tampering.unrecorded
    assert "this database does not know the newest manifest" in unrecorded.out


@pytest.mark.parametrize(
    ("apply", "findings"),
    [
        (rows_edited(3), {Finding(CHANGED, M3)}),
        (removed(3), {Finding(MISSING, M3)}),
        (lambda place: place.append(), {Finding(STRAY, M4)}),
    ],
    ids=["edited", "removed", "forged"],
)
def test_the_newest_is_vouched_for_by_the_database(
    apply: Callable[[Place], None], findings: set[Finding], place: Place
) -> None:
    apply(place)

    verdict = verify()

    assert verdict.bad == findings
    assert verdict.good == OBJECTS


@pytest.mark.parametrize(
    "apply",
    [
        lambda place: place.edit(3, created_at="2025-03-28T00:00:00+00:00"),
        lambda place: place.remove(place.manifest(3), GZ3, TXT_GZ3),
        lambda place: place.append(),
    ],
    ids=["edited", "removed_with_its_objects", "forged"],
)
def test_where_no_record_is_left_it_says_that_nobody_vouches_for_the_newest(
    apply: Callable[[Place], None], place: Place
) -> None:
    apply(place)
    forget()

    verdict = verify()

    assert verdict.exit_code == 0
    assert "Note: this database does not know the newest manifest" in verdict.out


def test_where_no_record_is_left_a_removed_newest_leaves_its_objects_unlisted(
    place: Place,
) -> None:
    place.remove(place.manifest(3))
    forget()

    verdict = verify()

    assert verdict.bad == {Finding(STRAY, GZ3), Finding(STRAY, TXT_GZ3)}


def test_a_bucket_put_back_to_an_earlier_day_lacks_the_later_runs(place: Place) -> None:
    place.remove(place.manifest(3), GZ3, TXT_GZ3)

    verdict = verify()

    assert verdict.bad == {Finding(MISSING, name) for name in (M3, GZ3, TXT_GZ3)}


def test_a_forged_manifest_does_not_make_a_strangers_object_an_archived_one(
    place: Place,
) -> None:
    entry = {**place.content(1)["objects"][0], "name": "forged.json"}
    place.write("forged.json", place.read(JSON1))
    place.append(objects=[entry])

    verdict = verify()

    assert verdict.bad == {Finding(STRAY, M4), Finding(STRAY, "forged.json")}


def test_a_forged_manifest_does_not_excuse_a_removed_object(place: Place) -> None:
    place.remove(JSON1)
    place.append(removed=[JSON1])

    verdict = verify()

    assert verdict.bad == {Finding(STRAY, M4), Finding(MISSING, JSON1)}


def test_where_no_record_is_left_a_changed_manifest_vouches_for_none_before_it(
    place: Place,
) -> None:
    place.remove(JSON1)
    place.edit(1, removed=[JSON1])
    digest = sha256(place.read(place.manifest(1)))
    place.edit(2, previous={"name": place.manifest(1), "sha256": digest})
    forget()

    verdict = verify()

    assert verdict.bad >= {Finding(CHANGED, M2), Finding(CHANGED, M1)}
    assert Finding(MISSING, JSON1) in verdict.bad


def test_a_bucket_without_archives_is_not_good_when_they_are_in_another_place(
    place: Place,
) -> None:
    AuditManifest.objects.update(location="s3://the-right-one/audit-archives/")
    place.remove(*place.names())

    done = run_command("verify_audit_archives")
    restored = run_command("restore_audit_logs", "--from=2024-01-01", "--to=2025-01-01")

    for failed in (done, restored):
        assert failed.exit_code == 1
        assert "this database has some in s3://the-right-one/" in failed.error
        assert "HINT: is it the right bucket?" in failed.error


def test_where_no_record_is_left_a_changed_manifest_does_not_excuse_a_removed_object(
    place: Place,
) -> None:
    place.remove(JSON1)
    place.edit(2, removed=[JSON1])
    forget()

    verdict = verify()

    assert verdict.bad >= {Finding(CHANGED, M2), Finding(MISSING, JSON1)}


def test_a_chain_that_was_rewritten_as_a_whole_is_not_the_one_on_record(
    place: Place,
) -> None:
    forged = place.read(JSON1).replace(b"number 0", b"number 7")
    place.write(JSON1, forged)
    objects = place.content(1)["objects"]
    place.edit(1, objects=[{**objects[0], "sha256": sha256(forged)}, objects[1]])
    for number in (2, 3):
        before = place.manifest(number - 1)
        previous = {"name": before, "sha256": sha256(place.read(before))}
        place.edit(number, previous=previous)

    verdict = verify()

    assert verdict.bad == {Finding(CHANGED, name) for name in (M1, M2, M3, JSON1)}
    assert verdict.good == OBJECTS - {JSON1}


def test_a_chain_that_lost_all_but_its_newest_link_is_broken(place: Place) -> None:
    place.remove(place.manifest(1), place.manifest(2))
    forget()

    verdict = verify()

    missing = [name for status, name in verdict.bad if status == MISSING]
    assert sorted(
        name for text in missing for name in re.findall(r"00000\d", text)
    ) == [
        "000001",
        "000002",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "audit_manifest_" + "9" * 12 + "_20250101_000000.json",
        "audit_manifest_" + "9" * 900 + "_20250101_000000.json",
        "audit_manifest_000000_20250101_000000.json",
        "audit_manifest_\u0660\u0660\u0660\u0660\u0660\u0664_20250101_000000.json",
    ],
    ids=["huge", "longer_than_any_integer", "zero", "not_ascii"],
)
def test_a_manifest_of_an_absurd_number_is_named_and_hides_nothing(
    name: str, place: Place
) -> None:
    place.remove(JSON1)
    place.forge({**place.content(3), "name": name, "removed": [JSON1]})

    recorded = verify()
    forget()
    unrecorded = verify()

    shown = MANIFEST_TIME.sub(r"\1", name)
    assert recorded.bad == {Finding(STRAY, shown), Finding(MISSING, JSON1)}
    assert unrecorded.exit_code == 1


# -- manifests that are none ---------------------------------------------------------

WRONG_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"it was here",
    "no UTF-8": b"\xff\xfe\x00",
    "a null": b"null",
    "a number": b"7",
    "a text": b'"text"',
    "a list": b"[]",
    "an empty object": b"{}",
    "a number of 5,000 digits": b"9" * 5_000,
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects in each other": b'{"a":' * 100_000,
    "a JSON archive": b'{"archive_date": "2025-01-27", "logs": []}',
}
WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "version 2": {"starview_audit_manifest": 2},
    "no objects but null": {"objects": None},
    "objects that are a number": {"objects": 7},
    "objects that are a text": {"objects": "text"},
    "objects that are an object": {"objects": {}},
    "objects that are nulls": {"objects": [None]},
    "objects that are lists": {"objects": [[]]},
    "objects without fields": {"objects": [{}]},
    "a null as removed": {"removed": None},
    "lists as removed": {"removed": [[]]},
    "a text as removed": {"removed": "text"},
    "its number as a text": {"sequence": "3"},
    "a list as name": {"name": ["name"]},
    "a time without a zone": {"created_at": "2025-03-27T04:00:01"},
    "a number as time": {"created_at": 7},
    "no time": {"created_at": "soon"},
    "a text as the one before": {"previous": "text"},
    "a list as the one before": {"previous": [1]},
    "a number as the name before": {"previous": {"name": 7, "sha256": "0" * 64}},
    "a list as the hash before": {"previous": {"name": "x", "sha256": []}},
    "no hash before": {"previous": {"name": "x"}},
}
WRONG_ENTRIES: dict[str, dict[str, Any]] = {
    "a list as an object's name": {"name": ["x"]},
    "a number as an object's name": {"name": 7},
    "a text as an object's size": {"size_bytes": "7"},
    "a null as an object's hash": {"sha256": None},
    "a text as an object's rows": {"rows": "a\nb"},
    "an object's time without a zone": {"first_timestamp": "2025-03-27T04:00:01"},
    "a text as an object's id": {"last_id": "a"},
}
Maker = Callable[[dict[str, Any]], bytes]


def instead(body: bytes) -> Maker:
    return lambda content: body


def with_fields(fields: dict[str, Any]) -> Maker:
    return lambda content: json.dumps({**content, **fields}).encode()


def with_entries(fields: dict[str, Any]) -> Maker:
    def make(content: dict[str, Any]) -> bytes:
        objects = [{**entry, **fields} for entry in content["objects"]]
        return json.dumps({**content, "objects": objects}).encode()

    return make


WRONG_MANIFESTS: dict[str, Maker] = {
    **{what: instead(body) for what, body in WRONG_BODIES.items()},
    **{what: with_fields(fields) for what, fields in WRONG_FIELDS.items()},
    **{what: with_entries(fields) for what, fields in WRONG_ENTRIES.items()},
}
WRONG_FOR_ITS_NAME: dict[str, Maker] = {
    "another number than its name": with_fields({"sequence": 2}),
    "another name than its object's": with_fields(
        {"name": "audit_manifest_000003_20240327_040001.json"}
    ),
}

CONTENT: dict[str, Any] = {
    "starview_audit_manifest": 1,
    "name": "audit_manifest_000003_20250327_040001.json",
    "sequence": 3,
    "created_at": "2025-03-27T04:00:01+00:00",
    "previous": {
        "name": "audit_manifest_000002_20250227_040001.json",
        "sha256": "0" * 64,
    },
    "objects": [
        {
            "name": GZ3,
            "size_bytes": 7,
            "sha256": "0" * 64,
            "rows": 2,
            "first_id": 5,
            "first_timestamp": "2024-12-05T12:00:00+00:00",
            "last_id": 6,
            "last_timestamp": "2024-12-05T12:00:00+00:00",
        }
    ],
    "removed": [],
}


def test_a_manifest_is_read_as_it_was_written(place: Place) -> None:
    assert parse_manifest(json.dumps(CONTENT).encode()).sequence == 3
    assert parse_manifest(place.read(place.manifest(3))).name == place.manifest(3)


@pytest.mark.parametrize("make", WRONG_MANIFESTS.values(), ids=WRONG_MANIFESTS)
def test_no_manifest_is(make: Maker) -> None:
    with pytest.raises(ValueError, match="."):
        parse_manifest(make(CONTENT))


@pytest.mark.parametrize(
    "what",
    [
        "no JSON",
        "100,000 brackets",
        "a list as the one before",
        "a time without a zone",
        "a list as an object's name",
        *WRONG_FOR_ITS_NAME,
    ],
)
def test_a_newest_manifest_that_is_none_is_named_without_a_traceback(
    what: str, place: Place
) -> None:
    make = {**WRONG_MANIFESTS, **WRONG_FOR_ITS_NAME}[what]
    place.write(place.manifest(3), make(place.content(3)))

    recorded = verify()
    forget()
    # Nobody knows its hash now: only what it says can tell.
    unrecorded = verify("--since=2025-01-01")

    assert (recorded.bad, recorded.good) == ({Finding(CHANGED, M3)}, OBJECTS)
    assert Finding(CHANGED, M3) in unrecorded.bad
    assert unrecorded.good >= {JSON1, TXT1, JSON2, TXT2}


def test_a_manifest_of_100_megabytes_is_named_with_bounded_memory(
    place: Place,
) -> None:
    place.write(place.manifest(3), bytes(100_000_000))

    with peak_memory() as peak:
        recorded = verify("--sample=0")
        forget()
        unrecorded = verify("--sample=0")

    assert recorded.bad == {Finding(CHANGED, M3)}
    assert unrecorded.bad >= {Finding(CHANGED, M3)}
    assert peak[0] < 160_000_000


# -- what is shown -------------------------------------------------------------------


def entry_named(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {"objects": [{**content["objects"][0], "name": name}]}


HOSTILE_FIELDS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "its name": lambda content, text: {"name": text},
    "its time": lambda content, text: {"created_at": text},
    "the name before": lambda content, text: {
        "previous": {"name": text, "sha256": text}
    },
    "an object's name": entry_named,
    "what nothing is done with": lambda content, text: {
        "objects": [{**content["objects"][0], "sha256": text, text: text}],
        "removed": [text],
        text: text,
    },
}


@pytest.mark.parametrize("text", [HOSTILE, NO_UTF8], ids=["controls", "no_utf8"])
@pytest.mark.parametrize("fields", HOSTILE_FIELDS.values(), ids=HOSTILE_FIELDS)
def test_nothing_in_a_manifest_reaches_the_terminal_as_a_control(
    fields: Callable[[dict[str, Any], str], dict[str, Any]], text: str, place: Place
) -> None:
    place.edit(3, **fields(place.content(3), text))
    forget()

    # run_command looks at each character.
    verdict = verify()

    assert "\nGood: " in verdict.out
    assert verdict.exit_code == 1


def test_an_objects_name_reaches_the_terminal_escaped(place: Place) -> None:
    place.write(HOSTILE.replace("\n", ""), b"")

    verdict = verify()

    ((status, name),) = verdict.bad
    assert status == STRAY
    assert r"\u000d\u001b[2K\u001b[1A\u0008\u007f" in name
    assert name in verdict.error


def test_a_line_end_in_an_objects_name_forges_no_line(
    place: Place, s3: FailingS3
) -> None:
    # moto takes no such key, S3 does.
    place.write("stranger", b"")

    def with_line_end(call: Call) -> None:
        answer = call.forward()
        body = answer.body.replace(b"stranger", b"stranger%0Agood%20x%20(1%20rows)")
        call.answer(failing_s3.Answer(answer.status, answer.headers, body))

    s3.on("ListObjectsV2", with_line_end)

    verdict = verify()

    assert verdict.bad == {Finding(STRAY, r"stranger\u000agood x")}
    assert verdict.good == OBJECTS


@pytest.mark.django_db(transaction=True)
def test_in_a_folder_a_name_that_is_no_text_is_named_too(
    settings: Any, tmp_path: Path
) -> None:
    settings.DEBUG = True
    settings.AUDIT_ARCHIVE_FOLDER = tmp_path
    (tmp_path / os.fsdecode(b"\xff.json")).write_bytes(b"")

    verdict = verify()

    assert [status for status, _ in verdict.bad] == [STRAY]


# -- --since and --sample ------------------------------------------------------------


def test_since_includes_what_was_archived_in_the_first_moment_of_the_day(
    bucket: LocalServices,
) -> None:
    midnight = datetime(2025, 2, 27, tzinfo=UTC)
    before = midnight - timedelta(microseconds=1)
    archive(bucket.aws_url, now=before, event=EVENTS[0], formats=("json",))
    archive(bucket.aws_url, now=midnight, event=EVENTS[1], formats=("json",))

    verdict = verify("--since=2025-02-27")

    assert_all_good(verdict, {"audit_logs_20241105_to_20241105_20250227_000000.json"})
    assert len(verify("--since=2025-02-26").good) == 2
    assert_all_good(verify("--since=2025-02-28"), set())


def test_since_leaves_out_what_was_archived_before(place: Place) -> None:
    place.write(JSON1, with_one_byte_changed(place.read(JSON1)))
    place.remove(TXT1)

    assert_all_good(verify("--since=2025-02-27"), OBJECTS - {JSON1, TXT1})
    assert verify("--since=2025-01-27").exit_code == 1


@pytest.mark.parametrize("option", ["--since=2026-01-01", "--sample=0"])
def test_the_manifests_and_what_is_in_none_are_always_checked(
    option: str, place: Place
) -> None:
    rows_edited(1)(place)
    place.write("stranger", b"")

    verdict = verify(option)

    assert verdict.bad == {Finding(CHANGED, M1), Finding(STRAY, "stranger")}


def archives_read(s3: FailingS3) -> int:
    return sum(
        operation == "GetObject" and "/audit_logs_" in key
        for operation, key in s3.calls
    )


@pytest.mark.parametrize(("sample", "read"), [(0, 0), (1, 1), (5, 5), (6, 6), (7, 6)])
def test_a_sample_reads_that_many_objects_and_counts_all(
    sample: int, read: int, place: Place, s3: FailingS3
) -> None:
    verdict = verify(f"--sample={sample}")

    assert_all_good(verdict)
    assert archives_read(s3) == read
    assert f"checking 6 objects, reading {read} of them" in verdict.out
    assert len(verdict.good) == read
    counted = f"Good: {read}, by size: {6 - read}," if read < 6 else f"Good: {read},"
    assert counted in verdict.out


def test_a_sample_is_taken_of_what_since_leaves(place: Place, s3: FailingS3) -> None:
    verdict = verify("--since=2025-03-27", "--sample=2")

    assert_all_good(verdict, {GZ3, TXT_GZ3})
    assert archives_read(s3) == 2


def test_an_object_that_is_not_read_is_checked_by_presence_and_size(
    place: Place,
) -> None:
    place.remove(JSON1)
    place.write(TXT1, place.read(TXT1) + b"\n")
    place.write(JSON2, with_one_byte_changed(place.read(JSON2)))

    verdict = verify("--sample=0")

    assert verdict.bad == {Finding(MISSING, JSON1), Finding(CHANGED, TXT1)}
    assert re.search(rf"^by size +{JSON2} \(2 rows, not read\)$", verdict.out, re.M)


def test_a_sample_of_more_than_there_are_finds_any_changed_byte(place: Place) -> None:
    place.write(JSON2, with_one_byte_changed(place.read(JSON2)))

    assert verify("--sample=10000000").bad == {Finding(CHANGED, JSON2)}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "option",
    [
        "--since=yesterday",
        "--since=2025-02-30",
        "--since=27.01.2025",
        "--since=",
        "--sample=-1",
        "--sample=all",
        "--sample=1.5",
        "--sample=10000001",
        "--dry-run",
        "--days=30",
        "audit.json",
    ],
)
def test_a_wrong_option_exits_2_with_one_line(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = load_command_class("starview_app", "verify_audit_archives")

    with pytest.raises(SystemExit) as end:
        command.run_from_argv(["manage.py", "verify_audit_archives", option])

    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- many and large objects ----------------------------------------------------------


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """What Python had allocated more than before, at most, in bytes."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1_050, pytest.param(2_500, marks=pytest.mark.soak)])
def test_of_more_objects_than_a_page_has_each_is_seen(
    count: int, bucket: LocalServices
) -> None:
    bodies = {f"audit_logs_{number:04d}.txt": b"%d" % number for number in range(count)}
    on_record(
        ({name: body} for name, body in bodies.items()),
        location=store(bucket.aws_url).location,
    )
    write_manifest(bucket.aws_url)
    first, second, third, *rest = (
        f"audit_logs_{number:04d}.txt" for number in (999, 1_000, count - 1)
    )
    put_many(bucket, {**bodies, second: b"grown", "zzz": b""})
    Place(bucket).remove(first, third)

    verdict = verify("--sample=100")

    assert verdict.bad == {
        Finding(MISSING, first),
        Finding(CHANGED, second),
        Finding(MISSING, third),
        Finding(STRAY, "zzz"),
    }
    assert len(verdict.good | verdict.by_size) == count - 3


def test_a_gzip_that_unpacks_hugely_is_read_with_bounded_memory(
    bucket: LocalServices,
) -> None:
    body = gzip.compress(bytes(100_000_000), 1)
    on_record([{"big.json.gz": body}], location=store(bucket.aws_url).location)
    Place(bucket).write("big.json.gz", body)
    write_manifest(bucket.aws_url)

    with peak_memory() as peak:
        verdict = verify()

    assert_all_good(verdict, {"big.json.gz"})
    assert peak[0] < 12_000_000


def test_what_follows_the_end_of_a_gzip_is_read_with_bounded_memory(
    bucket: LocalServices,
) -> None:
    size_bytes = 16_000_000
    on_record(
        [{"big.json.gz": bytes(size_bytes)}], location=store(bucket.aws_url).location
    )
    Place(bucket).write("big.json.gz", gzip.compress(b"").ljust(size_bytes, b"x"))
    write_manifest(bucket.aws_url)

    with peak_memory() as peak:
        verdict = verify()

    assert verdict.bad == {Finding(CHANGED, "big.json.gz")}
    assert peak[0] < 12_000_000


# -- two objects at a time -----------------------------------------------------------


class Watched:
    """A store that calls `before` in the thread that reads an archived object."""

    def __init__(self, inner: S3Store, before: Callable[[], object]) -> None:
        self._inner = inner
        self._before = before

    def read(self, name: str) -> Iterator[bytes]:
        if not name.startswith("audit_manifest_"):
            self._before()
        yield from self._inner.read(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def check(store: Any, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
    """The names that are reported, in order; how it ends is the last one."""
    reported: list[str] = []

    def report(event: Any) -> None:
        if hasattr(event, "name"):
            reported.append(event.name)

    result = verify_audit_archives(store=store, report=report, should_stop=should_stop)
    return [*reported, *(["interrupted"] if result.interrupted else [])]


def reading_threads() -> list[str]:
    return [thread.name for thread in enumerate_threads() if thread.name == "read"]


def test_two_objects_are_read_at_a_time_and_reported_in_order(
    place: Place, bucket: LocalServices
) -> None:
    both = Barrier(2, timeout=DEADLINE_SECONDS)

    names = check(Watched(store(bucket.aws_url), both.wait))

    assert names == sorted(OBJECTS)
    wait_until(lambda: reading_threads() == [], "they have ended")


def test_a_stop_ends_the_readers_too(place: Place, bucket: LocalServices) -> None:
    stop = Event()

    names = check(Watched(store(bucket.aws_url), stop.set), stop.is_set)

    assert names == ["interrupted"]
    wait_until(lambda: reading_threads() == [], "they have ended")


def test_a_signal_is_obeyed_within_ten_seconds_while_the_store_says_nothing(
    place: Place,
    bucket: LocalServices,
    test_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    go_on, arrived = Event(), Event()

    def hold(call: Call) -> None:
        arrived.set()
        go_on.wait(DEADLINE_SECONDS)
        call.hang_up()

    with FailingS3(bucket.aws_url) as s3:
        for name in (JSON1, TXT1):
            s3.on("GetObject", hold, suffix=name)
        environment = {**test_environment, "AWS_S3_ENDPOINT_URL": s3.url}
        with started("verify_audit_archives", environment, tmp_path) as process:
            assert arrived.wait(DEADLINE_SECONDS)
            process.send_signal(signal.SIGTERM)
            code = process.wait(10)
            go_on.set()

    assert code == 1
    assert "was stopped by SIGTERM" in (tmp_path / "stderr").read_text()


# -- beside another run --------------------------------------------------------------


def by_itself(work: Callable[[], None]) -> Callable[[], None]:
    """`work` with a database session of its own, for another thread."""

    def guarded() -> None:
        try:
            work()
        finally:
            connection.close()

    return guarded


@contextmanager
def held(
    s3: FailingS3, operation: str, suffix: str, work: Callable[[], None]
) -> Iterator[None]:
    """`work` runs beside the block, held at its first such request meanwhile."""
    arrived, go_on = Event(), Event()

    def hold() -> None:
        arrived.set()
        go_on.wait(DEADLINE_SECONDS)

    s3.on(operation, failing_s3.before(hold), suffix=suffix, times=1)
    with in_thread(by_itself(work)):
        try:
            assert arrived.wait(DEADLINE_SECONDS)
            yield
        finally:
            go_on.set()


MANIFEST_4 = "_000004_20250427_040001.json"
NEXT_RUN = datetime(2025, 4, 27, 4, 0, 1, tzinfo=UTC)
NEXT_EVENT = datetime(2025, 1, 5, 12, tzinfo=UTC)
# With one row a segment there are two: the second has a number.
MOMENTS: dict[str, tuple[str, str]] = {
    "begins with a segment": ("PutObject", "20250427_040001.json"),
    "has one of two objects": ("PutObject", "20250427_040001.txt"),
    "reads an object back": ("GetObject", "20250427_040001.txt"),
    "has archived a segment that no manifest lists": ("PutObject", "_0002.json"),
    "has planned its manifest": ("PutObject", "_000004_20250427_040001.json"),
    "reads its manifest back": ("GetObject", "_000004_20250427_040001.json"),
}


@pytest.mark.parametrize(("operation", "suffix"), MOMENTS.values(), ids=MOMENTS)
def test_it_finds_nothing_wrong_while_an_archive_run(
    operation: str, suffix: str, place: Place, s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows(NEXT_EVENT)

    with held(
        s3,
        operation,
        suffix,
        lambda: archive_what_is_due(s3.url, now=NEXT_RUN, segment_rows=1),
    ):
        meanwhile = verify()
    afterwards = verify()

    assert meanwhile.bad == set()
    assert meanwhile.good >= OBJECTS
    assert_all_good(afterwards, place.archives())
    assert len(afterwards.good) == 10


@pytest.mark.parametrize(
    ("operation", "word"),
    [
        ("GetObject", ".txt"),
        ("PutObject", "_0002.json"),
        ("PutObject", "audit_manifest_000004"),
    ],
    ids=["has_open_objects", "has_an_unlisted_segment", "has_an_unwritten_manifest"],
)
def test_it_finds_nothing_wrong_after_a_killed_archive_run_that(
    operation: str,
    word: str,
    place: Place,
    bucket: LocalServices,
    test_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    add_rows(NEXT_EVENT)
    add_rows(NEXT_EVENT + timedelta(days=31))  # another month: a second segment
    job = "archive_audit_logs"

    with killed_at(bucket, test_environment, tmp_path, job, operation, word):
        pass

    assert place.archives() > OBJECTS
    verdict = verify()
    assert verdict.bad == set()
    assert verdict.good == OBJECTS | {
        name
        for record in AuditArchive.objects.filter(state=AuditArchive.State.ARCHIVED)
        for name in record.names
    }


@pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "unlisted"])
def test_what_no_manifest_lists_is_missed_on_the_databases_word(
    is_planned: bool, place: Place, bucket: LocalServices, s3: FailingS3
) -> None:
    """The manifest could not be written, then the objects vanish."""
    s3.on("PutObject", failing_s3.refuse(403, "AccessDenied"), suffix=MANIFEST_4)
    add_rows(NEXT_EVENT)
    with pytest.raises(JobError, match="a manifest is not written yet"):
        archive_what_is_due(s3.url, now=NEXT_RUN)
    if not is_planned:
        AuditArchive.objects.filter(manifest__is_written=False).update(manifest=None)
        AuditManifest.objects.filter(is_written=False).delete()
    new = place.archives() - OBJECTS

    noted = verify()
    place.remove(*new)
    missed = verify()

    assert (noted.exit_code, noted.good) == (0, OBJECTS | new)
    assert "Note: no manifest lists 2 of these objects yet" in noted.out
    assert missed.bad == {Finding(MISSING, name) for name in new}


def test_an_archive_run_that_gives_up_while_the_store_is_listed_leaves_no_stranger(
    place: Place, s3: FailingS3
) -> None:
    add_rows(NEXT_EVENT)
    has_objects, listed, gave_up = Event(), Event(), Event()

    def fail_once_listed(call: Call) -> None:
        has_objects.set()
        assert listed.wait(DEADLINE_SECONDS)
        failing_s3.flip_byte(call)

    def answer_once_it_gave_up(call: Call) -> None:
        answer = call.forward()
        if has_objects.is_set():  # else it is the archive run that lists
            listed.set()
            assert gave_up.wait(DEADLINE_SECONDS)
        call.answer(answer)

    s3.on("GetObject", fail_once_listed, suffix="20250427_040001.txt", times=1)
    s3.on("ListObjectsV2", answer_once_it_gave_up)

    def give_up() -> None:
        try:
            with pytest.raises(JobError):
                archive_what_is_due(s3.url, now=NEXT_RUN)
        finally:
            gave_up.set()

    with in_thread(by_itself(give_up)):
        assert has_objects.wait(DEADLINE_SECONDS)
        verdict = verify()

    assert place.archives() == OBJECTS
    assert_all_good(verdict)


def test_what_a_cleanup_removes_meanwhile_is_not_called_missing(
    place: Place, s3: FailingS3, bucket: LocalServices
) -> None:
    connected, is_reading, removed = Event(), Event(), Event()

    def clean_up() -> None:
        connection.ensure_connection()
        connected.set()
        assert is_reading.wait(DEADLINE_SECONDS)
        cleanup_audit_archives(
            now=NEXT_RUN,
            days=90,
            store=store(bucket.aws_url),
            report=lambda event: None,
            should_stop=lambda: False,
        )
        removed.set()

    def answer_once_removed(call: Call) -> None:
        is_reading.set()
        assert removed.wait(DEADLINE_SECONDS)
        call.answer(call.forward())

    s3.on("GetObject", answer_once_removed, suffix=JSON1, times=1)
    with in_thread(by_itself(clean_up)):
        assert connected.wait(DEADLINE_SECONDS)
        meanwhile = verify()

    assert place.archives() == {GZ3, TXT_GZ3}
    assert (meanwhile.exit_code, meanwhile.bad) == (0, set())
    assert_all_good(verify(), {GZ3, TXT_GZ3})


# -- the store fails -----------------------------------------------------------------


def assert_failed(verdict: Verdict, *words: str) -> None:
    assert verdict.exit_code == 1
    (line,) = verdict.error.splitlines()
    assert line.startswith("CommandError: the archives could not be verified: ")
    assert [word for word in words if word not in line] == []
    assert "\nGood: " not in verdict.out


@pytest.mark.usefixtures("no_retries")
def test_a_store_that_is_down_is_one_line(place: Place, settings: Any) -> None:
    with FailingS3("http://127.0.0.1:9") as gone:
        url = gone.url
    settings.AWS_S3_ENDPOINT_URL = url

    assert_failed(verify(), url, "HINT: is the store up")


@pytest.mark.parametrize("operation", ["ListObjectsV2", "GetObject"])
def test_a_store_that_refuses_is_one_line(
    operation: str, place: Place, s3: FailingS3
) -> None:
    s3.on(operation, refuse(403, "AccessDenied", "a\n\x9bb"))

    assert_failed(verify(), "403 AccessDenied")


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    "fault",
    [
        refuse(500, "InternalError"),
        failing_s3.hang_up,
        failing_s3.cut_short,
        failing_s3.speak(502, b"<html>bad</html>"),
    ],
    ids=["error", "hang_up", "cut_short", "proxy"],
)
def test_a_store_that_fails_half_way_is_one_line_and_no_verdict(
    fault: failing_s3.Fault, place: Place, s3: FailingS3
) -> None:
    s3.on("GetObject", fault, suffix=JSON2)

    verdict = verify()

    assert_failed(verdict, JSON2)
    assert verdict.bad == set()


def test_a_byte_that_the_store_changes_on_the_way_is_found(
    place: Place, s3: FailingS3
) -> None:
    s3.on("GetObject", failing_s3.flip_byte, suffix=GZ3)

    assert verify().bad == {Finding(CHANGED, GZ3)}


def test_it_needs_no_table_made_beforehand(
    bucket: LocalServices, commands: Commands
) -> None:
    execute(
        "DROP TABLE maintenance_auditarchive, maintenance_auditmanifest,"
        " maintenance_job, maintenance_jobrun, maintenance_scheduleline,"
        " maintenance_announcement, maintenance_backup, maintenance_sentreport;"
        " DELETE FROM django_migrations WHERE app = 'maintenance'"
    )

    done = commands.run("verify_audit_archives", supervised=True)

    assert (done.code, "Good: 0" in done.out) == (0, True), done
    assert AuditArchive.objects.count() == 0

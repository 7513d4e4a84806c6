"""archive_audit_logs when the store, the database or the machine lets it down.

Whatever fails: no row is deleted that is not in the store, the command exits 1 and says
one line, no object is left behind that could have been removed, and the next run has
every row in exactly one archive.
"""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import botocore.config
import psycopg2
import psycopg2.errors
import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections

from demo.services import BUCKET, S3_KEYS, LocalServices
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import beside, segments
from starview_app.maintenance.jobs.audit_archive.archive import archive_audit_logs
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.running import stop
from starview_app.maintenance.stores import s3 as s3_module
from starview_app.maintenance.stores.s3 import S3Store
from starview_app.models import AuditLog
from tests import failing_s3
from tests.archive_processes import (
    Bucket,
    Command,
    Commands,
    Done,
    Rows,
    assert_each_row_once,
    assert_verified,
    table_rows,
    wait_for_sessions_to_end,
)
from tests.conftest import Manage, kill_run
from tests.factories import session, wait_until, wait_until_blocked_by
from tests.failing_s3 import Call, FailingS3, Fault

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2025, 1, 27, 4, 0, 1, tzinfo=UTC)
OLD = datetime(2024, 10, 1, 12, 0, tzinfo=UTC)
NAME = "audit-archives/audit_logs_20241001_to_20241001_20250127_040001"
MANIFEST = "audit-archives/audit_manifest_000001_20250127_040001.json"
# Of the first run's manifest; the archives' names end in the same second.
MANIFEST_SUFFIX = "_000001_20250127_040001.json"
SECRETS = (
    "demo-r2-key",
    "demo-r2-secret",
    "demo-ses-key",
    "demo-ses-secret",
    "0123456789abcdef",
)
WAIT_SECONDS = 20  # for what happens within one; a slow machine may take longer


def add_rows(count: int = 3, message: str = "ok") -> Rows:
    """The whole table, with these rows in it."""
    AuditLog.objects.bulk_create(
        AuditLog(event_type="logout", timestamp=OLD, message=message)
        for _ in range(count)
    )
    return table_rows()


def rows() -> int:
    return AuditLog.objects.count()


def run(url: str, **changes: Any) -> JobResult:
    arguments: dict[str, Any] = {
        "now": NOW,
        "days": 30,
        "formats": ("json", "txt"),
        "store": S3Store(url, *S3_KEYS, BUCKET, "audit-archives/"),
        "report": lambda event: None,
        "should_stop": lambda: False,
    }
    return archive_audit_logs(**{**arguments, **changes})


def keys(services: LocalServices) -> list[str]:
    return [found.key for found in services.archived_objects()]


def listed(services: LocalServices, manifest: str) -> list[str]:
    """The keys of the objects that a manifest lists."""
    content = json.loads(services.read_object(manifest))
    return [f"audit-archives/{entry['name']}" for entry in content["objects"]]


CONFIG = botocore.config.Config


@cache  # making one takes longer than most requests
def plain_store(url: str) -> S3Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.config, "Config", CONFIG)
        return S3Store(url, *S3_KEYS, BUCKET, "audit-archives/")


def assert_the_next_run_completes_it(services: LocalServices, originals: Rows) -> None:
    """Without the fault: all is archived once, and good, and nothing else is there."""
    store = plain_store(services.aws_url)

    result = run(services.aws_url, now=NOW + timedelta(days=1), store=store)

    assert result.problems == []
    assert_verified(store)
    assert rows() == 0
    assert_each_row_once(Bucket(services), originals)
    here = AuditArchive.objects.filter(location=store.location)
    assert not here.exclude(state__in=("archived", "abandoned")).exists()


def unfinished_uploads(services: LocalServices) -> list[str]:
    found = services.s3.list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def in_another_session(statement: str) -> None:
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            cursor.execute(statement)
    finally:
        other.close()


def end_the_jobs_sessions() -> None:
    in_another_session(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'archive_audit_logs%'"
    )


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


def patch_config(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr(
        botocore.config, "Config", lambda **options: CONFIG(**{**options, **changes})
    )


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt; what the job does about it is the same."""
    patch_config(monkeypatch, retries={"total_max_attempts": 1})


@pytest.fixture
def short_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Under load a list may take its time as well.
    patch_config(monkeypatch, retries={"total_max_attempts": 1}, read_timeout=2)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the smallest size that S3 takes, so that few rows make several."""
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)


def big_rows() -> Rows:
    """About 6 MB of JSON: two parts."""
    return add_rows(6, "x" * 1_000_000)


# -- the store fails -----------------------------------------------------------------

FAULTS: dict[str, tuple[str, Fault]] = {
    "refuses the key": ("PutObject", failing_s3.refuse(403, "AccessDenied")),
    "has a bucket lock": (
        "PutObject",
        failing_s3.refuse(403, "ObjectLockedByBucketPolicy"),
    ),
    "does not know the token": ("PutObject", failing_s3.refuse(401, "Unauthorized")),
    "does not know the bucket": ("PutObject", failing_s3.refuse(404, "NoSuchBucket")),
    "has an internal error": ("PutObject", failing_s3.refuse(500, "InternalError")),
    "is unavailable": ("PutObject", failing_s3.refuse(503, "ServiceUnavailable")),
    "wants fewer requests": ("PutObject", failing_s3.refuse(429, "TooManyRequests")),
    "is a proxy's page": ("PutObject", failing_s3.speak(502, b"<html>\n<p>bad</html>")),
    "answers nonsense": ("PutObject", failing_s3.speak(400, b"\x00\xff\n\x1b[2Jno")),
    "redirects": ("PutObject", failing_s3.speak(301, b"elsewhere")),
    "hangs up": ("PutObject", failing_s3.hang_up),
    "refuses to be read": ("GetObject", failing_s3.refuse(403, "AccessDenied")),
    "has lost the object": ("GetObject", failing_s3.refuse(404, "NoSuchKey")),
    "has an error when read": ("GetObject", failing_s3.refuse(500, "InternalError")),
    "hangs up when read": ("GetObject", failing_s3.hang_up),
    "cuts the object short": ("GetObject", failing_s3.cut_short),
    "answers with less": ("GetObject", failing_s3.shorten),
    "answers with a changed byte": ("GetObject", failing_s3.flip_byte),
    "answers with nothing": ("GetObject", failing_s3.speak(200, b"")),
    "stores a changed byte": ("PutObject", failing_s3.store_flipped_byte),
}
OBJECTS = (".json", ".txt")


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    "fault",
    [failing_s3.refuse(403, "AccessDenied"), failing_s3.refuse(404, "NoSuchKey")],
    ids=["may not list", "has another idea of the bucket"],
)
def test_a_store_that_cannot_be_listed_gets_nothing_and_loses_nothing(
    fault: Fault, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("ListObjectsV2", fault)

    with pytest.raises(JobError, match="nothing was deleted"):
        run(s3.url)

    assert {operation for operation, _ in s3.calls} == {"ListObjectsV2"}
    assert table_rows() == originals
    assert not AuditArchive.objects.exists()


def test_an_object_that_the_store_does_not_list_keeps_its_rows_in_the_table(
    s3: FailingS3, bucket: LocalServices
) -> None:
    """As with an endpoint that takes a part of the address for a part of the name."""
    originals = add_rows()
    empty = (
        b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
        b"<IsTruncated>false</IsTruncated></ListBucketResult>"
    )
    s3.on("ListObjectsV2", failing_s3.speak(200, empty, "application/xml"))

    with pytest.raises(JobError, match="does not list it as it is HINT"):
        run(s3.url)

    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("operation", "fault", "suffix"),
    [
        *[pytest.param(*fault, ".txt", id=name) for name, fault in FAULTS.items()],
        *[
            pytest.param(*FAULTS[name], ".json", id=f"{name} (first object)")
            for name in (
                "refuses the key",
                "hangs up when read",
                "stores a changed byte",
            )
        ],
    ],
)
def test_when_the_store(
    operation: str, fault: Fault, suffix: str, s3: FailingS3, bucket: LocalServices
) -> None:
    """... fails like this at either object: nothing is deleted, no object is left."""
    originals = add_rows()
    s3.on(operation, fault, suffix=suffix)

    with pytest.raises(JobError) as failure:
        run(s3.url)

    assert s3.count(operation) >= 1
    assert str(failure.value).startswith("nothing was deleted")
    assert str(failure.value).isprintable()
    assert suffix in str(failure.value)
    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


SOME = {"refuses the key", "hangs up", "cuts the object short", "stores a changed byte"}


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param(*fault, id=name, marks=[] if name in SOME else pytest.mark.soak)
        for name, fault in FAULTS.items()
    ],
)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_in_the_second_segment_when_the_store(
    operation: str,
    fault: Fault,
    compress: bool,
    s3: FailingS3,
    bucket: LocalServices,
) -> None:
    """... fails like this, the first one is archived and in a manifest."""
    originals = add_rows()
    end = ".gz" if compress else ""
    s3.on(operation, fault, suffix=f"_0002.txt{end}")

    with pytest.raises(JobError) as failure:
        run(s3.url, segment_rows=2, compress=compress)

    first_segment = [f"{NAME}.json{end}", f"{NAME}.txt{end}"]
    assert str(failure.value).startswith(
        "2 audit logs are archived and the rest is still in the database, archiving"
        " failed: "
    )
    assert str(failure.value).isprintable()
    assert f"_0002.txt{end}" in str(failure.value)
    assert rows() == 1
    assert keys(bucket) == [*first_segment, MANIFEST]
    assert listed(bucket, MANIFEST) == first_segment
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("short_time_out")
@pytest.mark.parametrize(
    "operation", ["PutObject", pytest.param("GetObject", marks=pytest.mark.soak)]
)
def test_when_the_store_hangs_the_run_ends_with_the_time_out(
    operation: str, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on(operation, failing_s3.hang(s3))

    with pytest.raises(JobError, match="nothing was deleted.*timeout"):
        run(s3.url)

    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("short_time_out")
@pytest.mark.parametrize(
    "suffix", [pytest.param(".json", marks=pytest.mark.soak), ".txt"]
)
def test_an_object_that_appears_after_the_run_gave_it_up_is_the_next_runs(
    suffix: str, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    go_on = threading.Event()
    key = NAME + suffix
    s3.on(
        "PutObject", failing_s3.before(lambda: go_on.wait(WAIT_SECONDS)), suffix=suffix
    )
    with pytest.raises(JobError, match="nothing was deleted.*timeout"):
        run(s3.url)
    assert table_rows() == originals

    go_on.set()
    wait_until(lambda: key in keys(bucket), f"{key} has appeared")

    assert_the_next_run_completes_it(bucket, originals)
    assert key not in keys(bucket)


def test_a_request_that_hangs_is_given_up_after_five_minutes_at_most() -> None:
    # Attempts times the time-outs. The pauses between them are seconds.
    store = S3Store("http://127.0.0.1:9", *S3_KEYS, BUCKET, "")

    config: Any = store._client.meta.config

    seconds = config.connect_timeout + config.read_timeout
    assert seconds * config.retries["total_max_attempts"] <= 300


@pytest.mark.usefixtures("no_retries")
def test_when_the_clean_up_fails_too_the_first_failure_is_the_one_to_read(
    s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.refuse(403, "AccessDenied"), suffix=".txt")
    s3.on("DeleteObject", failing_s3.refuse(500, "InternalError"))

    with pytest.raises(JobError, match="403 AccessDenied"):
        run(s3.url)

    assert table_rows() == originals
    assert keys(bucket) == [f"{NAME}.json"]
    assert_the_next_run_completes_it(bucket, originals)
    assert f"{NAME}.json" not in keys(bucket)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("kind", ["json", "txt"])
def test_a_changed_object_that_could_not_be_removed_is_removed_by_the_next_run(
    kind: str, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.store_flipped_byte, suffix=f".{kind}")
    s3.on("DeleteObject", failing_s3.refuse(500, "InternalError"))

    with pytest.raises(JobError, match="came back from the store changed"):
        run(s3.url)

    assert table_rows() == originals
    assert f"{NAME}.{kind}" in keys(bucket)
    assert_the_next_run_completes_it(bucket, originals)
    assert f"{NAME}.{kind}" not in keys(bucket)


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
@pytest.mark.parametrize(
    "fault",
    [failing_s3.refuse(503, "SlowDown"), failing_s3.hang_up],
    ids=["says to slow down", "hangs up"],
)
def test_when_the_store_fails_once_it_is_asked_again(
    operation: str, fault: Fault, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on(operation, fault, times=1)

    result = run(s3.url)

    assert result.counts == {"found": 3, "archived": 3, "segments": 1, "objects": 2}
    assert keys(bucket) == [f"{NAME}.json", f"{NAME}.txt", MANIFEST]
    assert_each_row_once(Bucket(bucket), originals)


@pytest.mark.parametrize("suffix", OBJECTS)
def test_when_the_answer_to_an_upload_is_lost_the_run_recognises_its_own_object(
    suffix: str, s3: FailingS3, bucket: LocalServices
) -> None:
    # The repeated upload is then refused, because the object exists: it is ours.
    originals = add_rows()
    s3.on("PutObject", failing_s3.lose_answer, suffix=suffix, times=1)

    result = run(s3.url)

    assert result.counts == {"found": 3, "archived": 3, "segments": 1, "objects": 2}
    assert keys(bucket) == [f"{NAME}.json", f"{NAME}.txt", MANIFEST]
    assert rows() == 0
    assert_each_row_once(Bucket(bucket), originals)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("suffix", OBJECTS)
def test_when_every_answer_to_an_upload_is_lost_the_next_run_removes_the_object(
    suffix: str, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.lose_answer, suffix=suffix)

    with pytest.raises(JobError, match="nothing was deleted"):
        run(s3.url)

    assert table_rows() == originals
    assert NAME + suffix in keys(bucket)
    assert_the_next_run_completes_it(bucket, originals)
    assert NAME + suffix not in keys(bucket)


# -- names that exist ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", OBJECTS)
def test_another_runs_object_is_neither_overwritten_nor_removed(
    suffix: str, bucket: LocalServices
) -> None:
    originals = add_rows()
    key = NAME + suffix
    bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=b"another run's")

    with pytest.raises(JobError, match="an object of this name exists"):
        run(bucket.aws_url)

    assert keys(bucket) == [key]
    assert bucket.read_object(key) == b"another run's"
    assert table_rows() == originals
    bucket.s3.delete_object(Bucket=BUCKET, Key=key)
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("small_parts")
def test_another_runs_object_survives_an_upload_in_parts(bucket: LocalServices) -> None:
    originals = big_rows()
    key = f"{NAME}.json"
    bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=b"another run's")

    with pytest.raises(JobError, match="an object of this name exists"):
        run(bucket.aws_url)

    assert keys(bucket) == [key]
    assert bucket.read_object(key) == b"another run's"
    assert unfinished_uploads(bucket) == []
    assert table_rows() == originals
    bucket.s3.delete_object(Bucket=BUCKET, Key=key)
    assert_the_next_run_completes_it(bucket, originals)


def test_an_object_that_appears_during_the_upload_is_another_runs(
    s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    key = f"{NAME}.txt"
    s3.on(
        "PutObject",
        failing_s3.before(
            lambda: bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=b"another run's")
        ),
        suffix=".txt",
    )

    with pytest.raises(JobError, match="an object of this name exists"):
        run(s3.url)

    assert keys(bucket) == [key]
    assert bucket.read_object(key) == b"another run's"
    assert table_rows() == originals
    bucket.s3.delete_object(Bucket=BUCKET, Key=key)
    assert_the_next_run_completes_it(bucket, originals)


# -- uploads in parts ----------------------------------------------------------------

PART_FAULTS: dict[str, tuple[str, Fault]] = {
    "refuses the upload": (
        "CreateMultipartUpload",
        failing_s3.refuse(403, "AccessDenied"),
    ),
    "refuses a part": ("UploadPart", failing_s3.refuse(403, "AccessDenied")),
    "hangs up in a part": ("UploadPart", failing_s3.hang_up),
    "loses the answer to a part": ("UploadPart", failing_s3.lose_answer),
    "stores a changed part": ("UploadPart", failing_s3.store_flipped_byte),
    "refuses the end": (
        "CompleteMultipartUpload",
        failing_s3.refuse(400, "InvalidPart"),
    ),
    "fails at the end with status 200": (
        "CompleteMultipartUpload",
        failing_s3.refuse(200, "InternalError"),
    ),
    "cuts the object short": ("GetObject", failing_s3.cut_short),
}


@pytest.mark.usefixtures("no_retries", "small_parts")
@pytest.mark.parametrize(("operation", "fault"), PART_FAULTS.values(), ids=PART_FAULTS)
def test_with_an_upload_in_parts_when_the_store(
    operation: str, fault: Fault, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = big_rows()
    s3.on(operation, fault, suffix=".json")

    with pytest.raises(JobError, match="nothing was deleted"):
        run(s3.url, formats=("json",))

    assert s3.count(operation) >= 1
    assert table_rows() == originals
    assert keys(bucket) == []
    assert unfinished_uploads(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("no_retries", "small_parts")
def test_parts_that_could_not_be_given_up_are_given_up_by_the_next_run(
    s3: FailingS3, bucket: LocalServices
) -> None:
    originals = big_rows()
    s3.on("UploadPart", failing_s3.hang_up, suffix=".json")
    s3.on("AbortMultipartUpload", failing_s3.refuse(500, "InternalError"))

    with pytest.raises(JobError, match="nothing was deleted"):
        run(s3.url)

    assert unfinished_uploads(bucket) == [f"{NAME}.json"]
    assert_the_next_run_completes_it(bucket, originals)
    assert unfinished_uploads(bucket) == []


# -- the manifest --------------------------------------------------------------------

MANIFEST_FAULTS: dict[str, tuple[str, Fault]] = {
    "refuses it": ("PutObject", failing_s3.refuse(403, "AccessDenied")),
    "has a bucket lock": (
        "PutObject",
        failing_s3.refuse(403, "ObjectLockedByBucketPolicy"),
    ),
    "has an internal error": ("PutObject", failing_s3.refuse(500, "InternalError")),
    "hangs up": ("PutObject", failing_s3.hang_up),
    "loses the answer": ("PutObject", failing_s3.lose_answer),
    "refuses to be read": ("GetObject", failing_s3.refuse(403, "AccessDenied")),
    "has lost it": ("GetObject", failing_s3.refuse(404, "NoSuchKey")),
    "hangs up when read": ("GetObject", failing_s3.hang_up),
    "cuts it short": ("GetObject", failing_s3.cut_short),
    "answers with less": ("GetObject", failing_s3.shorten),
    "answers with a changed byte": ("GetObject", failing_s3.flip_byte),
    "stores a changed byte": ("PutObject", failing_s3.store_flipped_byte),
    "refuses to list uploads": (
        "ListMultipartUploads",
        failing_s3.refuse(403, "AccessDenied"),
    ),
}
NOT_WRITTEN = (
    "3 audit logs are archived, but a manifest is not written yet, which the next run"
    " tries again: "
)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("operation", "fault"), MANIFEST_FAULTS.values(), ids=MANIFEST_FAULTS
)
def test_at_the_manifest_when_the_store(
    operation: str, fault: Fault, s3: FailingS3, bucket: LocalServices
) -> None:
    """... fails like this: the rows are archived, the next run writes the manifest."""
    originals = add_rows()
    suffix = "" if operation == "ListMultipartUploads" else MANIFEST_SUFFIX
    s3.on(operation, fault, suffix=suffix)

    with pytest.raises(JobError) as failure:
        run(s3.url)

    assert str(failure.value).startswith(NOT_WRITTEN)
    assert str(failure.value).isprintable()
    assert rows() == 0
    assert keys(bucket)[:2] == [f"{NAME}.json", f"{NAME}.txt"]
    assert_the_next_run_completes_it(bucket, originals)
    assert keys(bucket)[2:] == [MANIFEST]


@pytest.mark.usefixtures("short_time_out")
@pytest.mark.parametrize(
    "operation", [pytest.param("PutObject", marks=pytest.mark.soak), "GetObject"]
)
def test_when_the_store_hangs_at_the_manifest_the_run_ends_with_the_time_out(
    operation: str, s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on(operation, failing_s3.hang(s3), suffix=MANIFEST_SUFFIX)

    with pytest.raises(JobError, match=f"{NOT_WRITTEN}.*timeout"):
        run(s3.url)

    assert rows() == 0
    assert_the_next_run_completes_it(bucket, originals)


def test_when_the_answer_to_the_manifest_is_lost_once_the_run_recognises_its_own(
    s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.lose_answer, suffix=MANIFEST_SUFFIX, times=1)

    result = run(s3.url)

    assert result.counts["archived"] == 3
    assert_each_row_once(Bucket(bucket), originals)


def test_a_manifests_key_that_is_taken_is_not_overwritten_and_said_in_each_run(
    bucket: LocalServices,
) -> None:
    originals = add_rows()
    bucket.s3.put_object(Bucket=BUCKET, Key=MANIFEST, Body=b"another's")

    with pytest.raises(JobError, match=f"{NOT_WRITTEN}.*with another content HINT: "):
        run(bucket.aws_url)
    with pytest.raises(JobError, match="a manifest is not written yet"):
        run(bucket.aws_url)

    assert bucket.read_object(MANIFEST) == b"another's"
    assert rows() == 0
    bucket.s3.delete_object(Bucket=BUCKET, Key=MANIFEST)
    assert_the_next_run_completes_it(bucket, originals)
    assert listed(bucket, MANIFEST) == [f"{NAME}.json", f"{NAME}.txt"]


def refuse_manifests(call: Call) -> None:
    if "audit_manifest_" in call.key:
        failing_s3.refuse(403, "AccessDenied")(call)
    else:
        call.answer(call.forward())


def test_a_failure_at_the_manifest_is_one_line_after_what_is_archived(
    s3: FailingS3, bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()
    s3.on("PutObject", refuse_manifests)

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": s3.url})

    started, archived, finished, line = done.stderr.splitlines()
    assert done.returncode == 1
    assert "job_started" in started
    assert "segment_archived" in archived
    assert "outcome=failed" in finished
    assert line.startswith(f"CommandError: {NOT_WRITTEN}audit_manifest_000001_")
    assert "\nArchived 3 audit logs\n" in done.stdout
    assert "Manifest written" not in done.stdout
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("no_retries")
def test_two_manifests_that_could_not_be_written_are_both_written_in_their_order(
    s3: FailingS3, bucket: LocalServices
) -> None:
    s3.on("PutObject", failing_s3.refuse(403, "No"), suffix=MANIFEST_SUFFIX, times=2)
    originals = add_rows(1)
    with pytest.raises(JobError, match="a manifest is not written yet"):
        run(s3.url)
    originals |= add_rows(1)
    with pytest.raises(JobError, match="a manifest is not written yet"):
        run(s3.url)
    archives = [f"{NAME}{end}" for end in (".json", ".txt", "_0002.json", "_0002.txt")]
    assert sorted(keys(bucket)) == sorted(archives)

    run(s3.url)

    assert listed(bucket, MANIFEST) == archives[:2]
    assert listed(bucket, MANIFEST.replace("000001", "000002")) == archives[2:]
    assert_the_next_run_completes_it(bucket, originals)


# -- the command ---------------------------------------------------------------------


def assert_one_clear_line(done: subprocess.CompletedProcess[str]) -> str:
    """The two log lines and one line with the reason, and no secret anywhere."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert ["job_started" in line for line in lines] == [True, False, False], lines
    assert ["job_finished" in line for line in lines] == [False, True, False], lines
    assert "outcome=failed" in lines[1]
    assert lines[2].startswith("CommandError: ")
    assert lines[2].isprintable()
    assert [secret for secret in SECRETS if secret in done.stdout + done.stderr] == []
    return lines[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_store_that_is_down_is_one_line_with_its_address(
    bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()
    url = f"http://127.0.0.1:{free_port()}"

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": url})

    line = assert_one_clear_line(done)
    assert url in line
    assert "HINT: is the store up" in line
    assert "Archived" not in done.stdout
    assert table_rows() == originals
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("AccessDenied", "Object Read & Write"),
        ("Unauthorized", "make a new R2 API token"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID is not a key of this account"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY does not belong"),
        ("NoSuchBucket", "AWS_STORAGE_BUCKET_NAME names no bucket"),
    ],
)
def test_a_refusal_names_the_variable_or_the_right_to_repair(
    code: str, hint: str, s3: FailingS3, settings: Any, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.refuse(403, code, "two\nlines"))
    settings.AWS_S3_ENDPOINT_URL = s3.url

    with pytest.raises(CommandError) as failure:
        call_command("archive_audit_logs")

    assert f"403 {code}" in str(failure.value)
    assert hint in str(failure.value)
    assert "\n" not in str(failure.value)
    assert table_rows() == originals
    assert_the_next_run_completes_it(bucket, originals)


def test_what_a_store_says_cannot_forge_or_hide_a_part_of_the_line(
    s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.refuse(403, "No", "a\nb\u202ec\u0085d\u2028e\x7f"))

    with pytest.raises(JobError) as failure:
        run(s3.url)

    assert str(failure.value).isprintable()
    assert_the_next_run_completes_it(bucket, originals)


def test_a_refusal_of_the_audit_bucket_names_the_audit_variables(
    s3: FailingS3, settings: Any, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.refuse(404, "NoSuchBucket"))
    settings.AWS_S3_ENDPOINT_URL = s3.url
    settings.AUDIT_R2_ACCESS_KEY_ID = "audit-key"
    settings.AUDIT_R2_SECRET_ACCESS_KEY = "audit-secret"
    settings.AUDIT_R2_BUCKET_NAME = "starview-audit"

    with pytest.raises(CommandError, match="AUDIT_R2_BUCKET_NAME"):
        call_command("archive_audit_logs")

    assert table_rows() == originals
    assert_the_next_run_completes_it(bucket, originals)


def test_a_bucket_that_is_not_there_is_one_line(
    bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()

    done = manage("archive_audit_logs", env={"AWS_STORAGE_BUCKET_NAME": "not-there"})

    assert "NoSuchBucket" in assert_one_clear_line(done)
    assert table_rows() == originals
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_STORAGE_BUCKET_NAME", "no bucket's name"),
        ("AWS_S3_ENDPOINT_URL", "http://my_store..example:1"),
        ("AWS_S3_ENDPOINT_URL", "http://127.0.0.1:notaport"),
        ("AWS_ACCESS_KEY_ID", "demo-r2-key\n"),
        ("AWS_ACCESS_KEY_ID", "demo-r2-key\u00e9"),
        ("AWS_SECRET_ACCESS_KEY", "demo-r2-secret\n"),
    ],
    ids=lambda text: repr(text)[1:-1],
)
def test_a_variable_that_boto3_cannot_use_is_named_without_its_secret(
    variable: str, value: str, bucket: LocalServices, manage: Manage
) -> None:
    add_rows()

    done = manage("archive_audit_logs", env={variable: value})

    output = done.stdout + done.stderr
    if done.returncode == 0:  # taken as if it had been written properly
        assert rows() == 0
        return
    assert done.returncode == 1
    assert "Traceback" not in output
    assert variable in output
    assert [secret for secret in SECRETS if secret in output] == []
    assert rows() == 3


def test_a_byte_changed_on_the_way_back_is_one_line(
    s3: FailingS3, bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()
    s3.on("GetObject", failing_s3.flip_byte, suffix=".txt")

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": s3.url})

    assert "came back from the store changed" in assert_one_clear_line(done)
    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.usefixtures("no_retries")
def test_the_next_run_archives_what_a_failed_one_kept(
    s3: FailingS3, bucket: LocalServices
) -> None:
    originals = add_rows()
    s3.on("GetObject", failing_s3.refuse(403, "AccessDenied"), times=1)
    with pytest.raises(JobError):
        run(s3.url)

    result = run(s3.url)

    assert result.counts == {"found": 3, "archived": 3, "segments": 1, "objects": 2}
    assert keys(bucket) == [f"{NAME}_0002.json", f"{NAME}_0002.txt", MANIFEST]
    assert_each_row_once(Bucket(bucket), originals)
    assert rows() == 0


# Whichever of the run's sessions notices first: the lock's, or the one that works.
CUT_OFF = re.compile(
    "CommandError: (archive_audit_logs lost its lock and was stopped|database): "
)


# -- the database fails --------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "suffix"), [("PutObject", ".json"), ("GetObject", ".txt")]
)
def test_when_the_database_ends_the_session_nothing_is_deleted(
    operation: str, suffix: str, s3: FailingS3, bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()
    s3.on(operation, failing_s3.before(end_the_jobs_sessions), suffix=suffix)

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": s3.url})

    assert CUT_OFF.search(assert_one_clear_line(done))
    assert table_rows() == originals
    left = keys(bucket)  # who cannot ask the database removes nothing
    assert_the_next_run_completes_it(bucket, originals)
    assert set(left).isdisjoint(keys(bucket))


def test_when_the_database_ends_the_session_in_a_later_segment_the_first_is_kept(
    s3: FailingS3, bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()
    s3.on("PutObject", failing_s3.before(end_the_jobs_sessions), suffix="_0002.txt")

    done = manage(
        "archive_audit_logs", "--segment-rows=2", env={"AWS_S3_ENDPOINT_URL": s3.url}
    )

    assert done.returncode == 1
    assert CUT_OFF.search(done.stderr)
    assert "\nArchived 2 audit logs\n" in done.stdout
    assert rows() == 1
    assert_the_next_run_completes_it(bucket, originals)


def test_when_the_database_cancels_the_copy_it_is_one_line(
    bucket: LocalServices,
) -> None:
    # What a statement_timeout does, and what a stop does after its grace.
    originals = add_rows(1, "\u202e" * 1_500_000)  # slow: every character is escaped
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '200ms'")
    try:
        with pytest.raises(CommandError, match="database: canceling statement"):
            call_command("archive_audit_logs", "--format=txt")
    finally:
        connection.close()

    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


def test_when_another_table_needs_a_row_the_refusal_is_one_line(
    bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()
    in_another_session(
        "CREATE TABLE web_note (log bigint REFERENCES starview_app_auditlog);"
        " INSERT INTO web_note SELECT max(id) FROM starview_app_auditlog"
    )
    try:
        done = manage("archive_audit_logs")
    finally:
        in_another_session("DROP TABLE web_note")

    assert_one_clear_line(done)
    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


def test_when_the_database_is_a_read_only_replica_it_is_one_line(
    bucket: LocalServices, manage: Manage
) -> None:
    originals = add_rows()

    done = manage(
        "archive_audit_logs",
        env={"PGOPTIONS": "-c default_transaction_read_only=on"},
    )

    record, _, done.stderr = done.stderr.partition("\n")
    assert "run_not_recorded" in record
    assert_one_clear_line(done)
    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


def test_when_the_rows_are_locked_by_a_schema_change_the_run_waits_and_then_works(
    bucket: LocalServices, s3: FailingS3
) -> None:
    originals = add_rows()
    blocker = connections.create_connection("default")
    unlock = threading.Timer(0.2, blocker.close)

    def lock() -> None:
        blocker.set_autocommit(False)
        with blocker.cursor() as cursor:
            cursor.execute("LOCK TABLE starview_app_auditlog IN SHARE MODE")
        unlock.start()

    s3.on("GetObject", failing_s3.before(lock), suffix=".txt")
    blocker.inc_thread_sharing()

    result = run(s3.url)

    unlock.join()
    assert result.counts["archived"] == 3
    assert_each_row_once(Bucket(bucket), originals)


# -- the second session, which copies the TXT ----------------------------------------


def assert_the_second_session_is_gone() -> None:
    assert "copy" not in [thread.name for thread in threading.enumerate()]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (mine,) = cursor.fetchone()

    def is_alone() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> %s",
                [mine],
            )
            return bool(cursor.fetchone() == (0,))

    wait_until(is_alone, "the second session has ended")


FAILING: dict[str, tuple[str, type[Exception]]] = {
    "fails": ("SELECT nothing", psycopg2.errors.UndefinedColumn),
    "is ended": (
        "SELECT pg_terminate_backend(pg_backend_pid())",
        psycopg2.OperationalError,
    ),
    "is cancelled": (
        "SET LOCAL statement_timeout = 1; SELECT pg_sleep(9)",
        psycopg2.errors.QueryCanceled,
    ),
}


@pytest.mark.parametrize(("statement", "cause"), FAILING.values(), ids=FAILING)
def test_when_the_second_session(
    statement: str,
    cause: type[Exception],
    bucket: LocalServices,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """... does, the segment is undone and the run says why."""
    originals = add_rows()
    copy = segments._copy

    def fail_in_thread(cursor: Any, *rest: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            cursor.execute(statement)
        return copy(cursor, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_copy", fail_in_thread)
        with pytest.raises(DatabaseError) as failure:
            run(bucket.aws_url)

    assert isinstance(failure.value.__cause__, cause)
    assert table_rows() == originals
    assert keys(bucket) == []
    assert not AuditArchive.objects.exclude(state="abandoned").exists()
    assert_the_second_session_is_gone()
    assert_the_next_run_completes_it(bucket, originals)


def test_when_the_first_session_fails_the_second_one_is_ended_in_its_midst(
    bucket: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = add_rows()
    copy = segments._copy
    is_asleep = threading.Event()

    def sleep_in_thread(cursor: Any, *rest: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            is_asleep.set()
            cursor.execute("SELECT pg_sleep(600)")
        assert is_asleep.wait(WAIT_SECONDS)
        cursor.execute("SELECT nothing")
        return copy(cursor, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_copy", sleep_in_thread)
        with pytest.raises(DatabaseError) as failure:
            run(bucket.aws_url)

    assert isinstance(failure.value.__cause__, psycopg2.errors.UndefinedColumn)
    assert table_rows() == originals
    assert_the_second_session_is_gone()
    assert_the_next_run_completes_it(bucket, originals)


def refuse_to_connect(patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise psycopg2.OperationalError("FATAL: sorry, too many clients already")

    patch.setattr(type(connections["default"]), "get_new_connection", refuse)


def know_no_snapshot(patch: pytest.MonkeyPatch) -> None:
    """As when a pooler leads to another server."""
    export = beside._EXPORT.replace("pg_export_snapshot()", "'00000003-0000001B-1'")
    patch.setattr(beside, "_EXPORT", export)


def let_wait(patch: pytest.MonkeyPatch) -> None:
    """As a pooler that has no session left; the wait is over before it began."""
    patch.setattr(beside, "OPEN_SECONDS", -1.0)
    prepare = "SELECT pg_sleep(600);" + beside._PREPARE
    patch.setattr(beside, "_PREPARE", prepare)


def have_no_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(beside, "SPOOL_BYTES", 100)


def have_no_folder(patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    patch.setattr(tempfile, "TemporaryFile", refuse)


@pytest.mark.parametrize(
    "lack",
    [refuse_to_connect, know_no_snapshot, let_wait, have_no_room, have_no_folder],
)
def test_without_a_second_session_the_first_one_copies_both(
    lack: Callable[[pytest.MonkeyPatch], None],
    bucket: LocalServices,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    originals = add_rows()

    with monkeypatch.context() as patch:
        lack(patch)
        result = run(bucket.aws_url)

    assert result.counts["archived"] == 3
    assert_each_row_once(Bucket(bucket), originals)
    assert_the_second_session_is_gone()


def test_a_schema_change_that_waits_between_the_two_sessions_blocks_neither_for_ever(
    bucket: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It waits for the first session, and the second one would wait behind it.
    originals = add_rows()
    begin = beside.CopyBeside._open
    changes: list[threading.Thread] = []

    def change_schema() -> None:
        in_another_session(
            "ALTER TABLE starview_app_auditlog ALTER message SET NOT NULL"
        )

    def let_it_wait_and_begin(copying: beside.CopyBeside) -> Any:
        changes.append(threading.Thread(target=change_schema))
        changes[0].start()
        with session() as observer:
            observer.autocommit = True
            wait_until(lambda: is_one_waiting(observer), "the schema change waits")
        return begin(copying)

    def is_one_waiting(observer: Any) -> bool:
        cursor = observer.cursor()
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone() != (0,))

    monkeypatch.setattr(beside.CopyBeside, "_open", let_it_wait_and_begin)
    result = run(bucket.aws_url)

    changes[0].join(WAIT_SECONDS)
    assert result.counts["archived"] == 3
    assert_each_row_once(Bucket(bucket), originals)


@pytest.fixture
def blocked_txt() -> Iterator[Any]:
    """While the session that this yields is open, the COPY of the TXT waits for it.

    For processes with SEARCH_PATH: only the TXT asks for `host`.
    """
    in_another_session(
        "CREATE FUNCTION public.host(inet) RETURNS text LANGUAGE plpgsql AS $$BEGIN"
        " PERFORM pg_advisory_xact_lock_shared(42); RETURN pg_catalog.host($1); END$$"
    )
    with session() as blocker:
        blocker.cursor().execute("SELECT pg_advisory_lock(42)")
        yield blocker
    in_another_session("DROP FUNCTION public.host(inet)")


GRACE = "starview_app.maintenance.running.stop.GRACE_SECONDS"
GRACE_SECONDS = 0.5
SEARCH_PATH = {"PGOPTIONS": "-c search_path=public,pg_catalog"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_while_the_second_session_is_blocked_the_run_can_be_ended_at_once(
    number: signal.Signals,
    blocked_txt: Any,
    bucket: LocalServices,
    commands: Commands,
) -> None:
    AuditLog.objects.create(event_type="logout", timestamp=OLD, ip_address="::1")
    originals = add_rows()
    process = commands.start(
        "archive_audit_logs", environment=SEARCH_PATH, supervised=True
    )
    wait_until_blocked_by(blocked_txt)

    os.kill(process.pid, number)
    signalled = time.monotonic()
    done = process.finish()
    seconds = time.monotonic() - signalled

    assert seconds < 10
    assert table_rows() == originals
    if number is signal.SIGTERM:
        assert done.code == 1
        assert len(done.err.splitlines()) == 3, done
        assert "was stopped by SIGTERM" in done.err
        assert keys(bucket) == []
        assert not AuditArchive.objects.exclude(state="abandoned").exists()
        wait_for_sessions_to_end()  # of both names: it still waits for the lock if not
    else:
        blocked_txt.close()
        wait_for_sessions_to_end()
    assert_the_next_run_completes_it(bucket, originals)


# -- the process is stopped ----------------------------------------------------------


class Running:
    """The command as an operator starts it, held by the proxy at one request."""

    def __init__(
        self,
        commands: Commands,
        s3: FailingS3,
        operation: str,
        suffix: str,
        *arguments: str,
    ) -> None:
        self.arrived = threading.Event()
        self.go_on = threading.Event()
        self._operation = operation
        self._suffix = suffix
        s3.on(operation, self._hold)
        self.process: Command = commands.start(
            *("archive_audit_logs", *arguments),
            settings={"AWS_S3_ENDPOINT_URL": s3.url},
            constants={GRACE: GRACE_SECONDS},
            supervised=True,
        )
        assert self.arrived.wait(WAIT_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        os.kill(self.process.pid, number)

    def _hold(self, call: Call) -> None:
        is_manifest = "/audit_manifest_" in call.key
        if self._suffix == "manifest":
            is_meant = is_manifest
        else:
            is_meant = call.key.endswith(self._suffix) and not is_manifest
        if is_meant:
            self.arrived.set()
            self.go_on.wait(WAIT_SECONDS)
        call.answer(call.forward())

    def finish(self) -> Done:
        self.go_on.set()
        return self.process.finish()

    def finish_while_held(self) -> Done:
        """docker stop kills after 10 s, Render after 30: a hanging store takes longer.

        What is waited for here is as much shorter as the grace is.
        """
        began = time.monotonic()
        done = self.process.finish()
        assert time.monotonic() - began < 10 - (stop.GRACE_SECONDS - GRACE_SECONDS)
        return done


@pytest.mark.parametrize(
    ("number", "operation", "suffix"),
    [
        (signal.SIGTERM, "PutObject", ".json"),
        (signal.SIGINT, "GetObject", ".json"),
        (signal.SIGTERM, "PutObject", ".txt"),
    ],
)
def test_signals_in_the_middle_stop_it_and_every_row_is_kept(
    number: signal.Signals,
    operation: str,
    suffix: str,
    s3: FailingS3,
    bucket: LocalServices,
    commands: Commands,
) -> None:
    originals = add_rows()
    running = Running(commands, s3, operation, suffix)

    running.stop(number)
    running.stop(number)  # a second one changes nothing
    done = running.finish()

    lines = done.err.splitlines()
    assert done.code == 1, done
    assert len(lines) == 3, lines
    assert "outcome=interrupted" in lines[1]
    assert f"was stopped by {number.name}" in lines[2]
    assert "Archived" not in done.out
    assert table_rows() == originals
    assert keys(bucket) == []
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_a_signal_is_obeyed_while_the_store_says_nothing(
    suffix: str, s3: FailingS3, bucket: LocalServices, commands: Commands
) -> None:
    originals = add_rows()
    running = Running(commands, s3, "PutObject", suffix)

    running.stop()
    done = running.finish_while_held()

    assert done.code == 1
    assert "was stopped by SIGTERM" in done.err
    assert table_rows() == originals
    before = len(keys(bucket))
    running.go_on.set()
    wait_until(lambda: len(keys(bucket)) > before, "the late object is there")
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.parametrize("suffix", ["_0002.json", "_0002.txt"])
def test_a_signal_in_the_second_segment_undoes_it_and_reports_the_first(
    suffix: str, s3: FailingS3, bucket: LocalServices, commands: Commands
) -> None:
    originals = add_rows(5)
    running = Running(commands, s3, "PutObject", suffix, "--segment-rows=2")

    running.stop()
    done = running.finish()

    started, archived, finished, line = done.err.splitlines()
    assert done.code == 1
    assert "job_started" in started
    assert "segment_archived" in archived
    assert "outcome=interrupted" in finished
    assert "archived=2" in finished.split()
    assert "was stopped by SIGTERM" in line
    assert "\nArchived 2 audit logs\n" in done.out
    assert rows() == 3
    first, second, manifest = keys(bucket)
    assert listed(bucket, manifest) == [first, second]
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.parametrize(
    ("operation", "suffix", "archived"),
    [("GetObject", "_0002.txt", 2), ("PutObject", "manifest", 3)],
)
def test_what_was_archived_before_a_signal_is_reported_while_the_store_says_nothing(
    operation: str,
    suffix: str,
    archived: int,
    s3: FailingS3,
    bucket: LocalServices,
    commands: Commands,
) -> None:
    originals = add_rows()
    running = Running(commands, s3, operation, suffix, "--segment-rows=2")

    running.stop()
    done = running.finish_while_held()

    running.go_on.set()
    assert done.code == 1
    assert "was stopped by SIGTERM" in done.err
    assert f"\nArchived {archived} audit logs\n" in done.out
    assert suffix != "manifest" or "Manifest written" not in done.out
    assert rows() == 3 - archived
    wait_for_sessions_to_end()
    assert_the_next_run_completes_it(bucket, originals)


@pytest.mark.parametrize(
    ("operation", "suffix", "kept", "left"),
    [("GetObject", "_0002.txt", 1, 4), ("GetObject", "manifest", 0, 5)],
)
def test_after_a_kill_of_both_processes_the_next_run_completes(
    operation: str,
    suffix: str,
    kept: int,
    left: int,
    s3: FailingS3,
    bucket: LocalServices,
    commands: Commands,
) -> None:
    """At any other moment: test_archive_crashes."""
    originals = add_rows()
    running = Running(commands, s3, operation, suffix, "--segment-rows=2")

    kill_run(running.process)
    killed = running.process.finish()
    found = (rows(), len(keys(bucket)))
    running.go_on.set()
    wait_for_sessions_to_end()
    assert killed.was_killed
    assert found == (kept, left)
    assert_the_next_run_completes_it(bucket, originals)


# -- the folder of a developer fails -------------------------------------------------


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, settings: Any, bucket: LocalServices
) -> None:
    originals = add_rows()
    (tmp_path / "file").write_text("in the way")
    settings.DEBUG = True
    settings.AUDIT_ARCHIVE_FOLDER = tmp_path / "file" / "audit_archives"

    with pytest.raises(CommandError, match="nothing was deleted.*Not a directory"):
        call_command("archive_audit_logs")

    assert table_rows() == originals
    assert_the_next_run_completes_it(bucket, originals)

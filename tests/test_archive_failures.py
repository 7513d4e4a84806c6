"""archive_audit_logs when the store, the database or the machine lets it down.

Whatever fails: no row is deleted that is not in the store, the command exits 1 and says
one line, and no object is left behind that could have been removed.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.config
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections

from demo.services import BUCKET, LocalServices
from starview_app.maintenance.jobs.archive_audit_logs import archive_audit_logs
from starview_app.maintenance.jobs.errors import JobError
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.stores import s3 as s3_module
from starview_app.maintenance.stores.s3 import S3Store
from starview_app.models import AuditLog
from tests import failing_s3
from tests.conftest import ROOT, Manage, merged
from tests.failing_s3 import FailingS3, Fault

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2025, 1, 27, 4, 0, 1, tzinfo=UTC)
OLD = datetime(2024, 10, 1, 12, 0, tzinfo=UTC)
NAME = "audit-archives/audit_logs_20241001_to_20241001_20250127_040001"
SECRETS = (
    "demo-r2-key",
    "demo-r2-secret",
    "demo-ses-key",
    "demo-ses-secret",
    "0123456789abcdef",
)
WAIT_SECONDS = 20  # for what happens within one; a slow machine may take longer


def add_rows(count: int = 3, message: str = "ok") -> None:
    AuditLog.objects.bulk_create(
        AuditLog(event_type="logout", timestamp=OLD, message=message)
        for _ in range(count)
    )


def rows() -> int:
    return AuditLog.objects.count()


def run(url: str, **changes: Any) -> JobResult:
    arguments: dict[str, Any] = {
        "now": NOW,
        "days": 30,
        "formats": ("json", "txt"),
        "store": S3Store(url, "key", "secret", BUCKET, "audit-archives/"),
        "report": lambda event: None,
        "should_stop": lambda: False,
    }
    return archive_audit_logs(**{**arguments, **changes})


def keys(services: LocalServices) -> list[str]:
    return [found.key for found in services.archived_objects()]


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


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt with short time-outs; what the job does about it is the same."""
    original = botocore.config.Config

    def impatient(**options: Any) -> botocore.config.Config:
        changes = {"read_timeout": 0.3, "retries": {"total_max_attempts": 1}}
        return original(**{**options, **changes})

    monkeypatch.setattr(botocore.config, "Config", impatient)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the smallest size that S3 takes, so that few rows make several."""
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)


def big_rows() -> None:
    """About 12 MB of JSON: three parts."""
    add_rows(12, "x" * 1_000_000)


# -- the store fails ------------------------------------------------------------------

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
    add_rows()
    s3.on(operation, fault, suffix=suffix)

    with pytest.raises(JobError) as failure:
        run(s3.url)

    assert s3.count(operation) >= 1
    assert str(failure.value).startswith("nothing was deleted")
    assert str(failure.value).isprintable()
    assert suffix in str(failure.value)
    assert rows() == 3
    assert keys(bucket) == []


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
def test_when_the_store_hangs_the_run_ends_with_the_time_out(
    operation: str, s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows()
    s3.on(operation, failing_s3.hang(s3))

    with pytest.raises(JobError, match="nothing was deleted.*timeout"):
        run(s3.url)

    assert rows() == 3
    assert keys(bucket) == []


def test_a_request_that_hangs_is_given_up_after_five_minutes_at_most() -> None:
    # Attempts times the time-outs. The pauses between them are seconds.
    store = S3Store("http://127.0.0.1:9", "key", "secret", BUCKET, "")

    config: Any = store._client.meta.config

    seconds = config.connect_timeout + config.read_timeout
    assert seconds * config.retries["total_max_attempts"] <= 300


@pytest.mark.usefixtures("no_retries")
def test_when_the_clean_up_fails_too_the_first_failure_is_the_one_to_read(
    s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows()
    s3.on("PutObject", failing_s3.refuse(403, "AccessDenied"), suffix=".txt")
    s3.on("DeleteObject", failing_s3.refuse(500, "InternalError"))

    with pytest.raises(JobError, match="403 AccessDenied"):
        run(s3.url)

    assert rows() == 3
    assert keys(bucket) == [f"{NAME}.json"]


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
@pytest.mark.parametrize(
    "fault",
    [failing_s3.refuse(503, "SlowDown"), failing_s3.hang_up],
    ids=["says to slow down", "hangs up"],
)
def test_when_the_store_fails_once_it_is_asked_again(
    operation: str, fault: Fault, s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows()
    s3.on(operation, fault, times=1)

    result = run(s3.url)

    assert result.counts == {"found": 3, "archived": 3, "objects": 2}
    assert keys(bucket) == [f"{NAME}.json", f"{NAME}.txt"]


def test_when_the_answer_to_an_upload_is_lost_the_run_recognises_its_own_object(
    s3: FailingS3, bucket: LocalServices
) -> None:
    # The repeated upload is then refused, because the object exists: it is ours.
    add_rows()
    s3.on("PutObject", failing_s3.lose_answer, suffix=".json", times=1)

    result = run(s3.url)

    assert result.counts == {"found": 3, "archived": 3, "objects": 2}
    assert keys(bucket) == [f"{NAME}.json", f"{NAME}.txt"]
    assert rows() == 0


def test_when_the_answer_to_an_upload_is_lost_no_row_is_lost(
    s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows()
    s3.on("PutObject", failing_s3.lose_answer, suffix=".txt", times=1)

    try:
        run(s3.url)
    except JobError:
        assert rows() == 3
    else:
        assert rows() == 0
        assert keys(bucket) == [f"{NAME}.json", f"{NAME}.txt"]


# -- names that exist -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", OBJECTS)
def test_another_runs_object_is_neither_overwritten_nor_removed(
    suffix: str, bucket: LocalServices
) -> None:
    add_rows()
    key = NAME + suffix
    bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=b"another run's")

    with pytest.raises(JobError, match="an object of this name exists"):
        run(bucket.aws_url)

    assert keys(bucket) == [key]
    assert bucket.read_object(key) == b"another run's"
    assert rows() == 3


@pytest.mark.usefixtures("small_parts")
def test_another_runs_object_survives_an_upload_in_parts(bucket: LocalServices) -> None:
    big_rows()
    key = f"{NAME}.json"
    bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=b"another run's")

    with pytest.raises(JobError, match="an object of this name exists"):
        run(bucket.aws_url)

    assert keys(bucket) == [key]
    assert bucket.read_object(key) == b"another run's"
    assert unfinished_uploads(bucket) == []
    assert rows() == 12


def test_an_object_that_appears_during_the_upload_is_another_runs(
    s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows()
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
    assert rows() == 3


# -- uploads in parts -----------------------------------------------------------------

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
    big_rows()
    s3.on(operation, fault, suffix=".json")

    with pytest.raises(JobError, match="nothing was deleted"):
        run(s3.url)

    assert s3.count(operation) >= 1
    assert rows() == 12
    assert keys(bucket) == []
    assert unfinished_uploads(bucket) == []


# -- the command ----------------------------------------------------------------------


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
    add_rows()
    url = f"http://127.0.0.1:{free_port()}"

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": url})

    line = assert_one_clear_line(done)
    assert url in line
    assert "HINT: is the store up" in line
    assert "Archived" not in done.stdout
    assert rows() == 3


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
    code: str, hint: str, s3: FailingS3, settings: Any
) -> None:
    add_rows()
    s3.on("PutObject", failing_s3.refuse(403, code, "two\nlines"))
    settings.AWS_S3_ENDPOINT_URL = s3.url

    with pytest.raises(CommandError) as failure:
        call_command("archive_audit_logs")

    assert f"403 {code}" in str(failure.value)
    assert hint in str(failure.value)
    assert "\n" not in str(failure.value)
    assert rows() == 3


def test_what_a_store_says_cannot_forge_or_hide_a_part_of_the_line(
    s3: FailingS3,
) -> None:
    add_rows()
    s3.on("PutObject", failing_s3.refuse(403, "No", "a\nb\u202ec\u0085d\u2028e\x7f"))

    with pytest.raises(JobError) as failure:
        run(s3.url)

    assert str(failure.value).isprintable()


def test_a_refusal_of_the_audit_bucket_names_the_audit_variables(
    s3: FailingS3, settings: Any
) -> None:
    add_rows()
    s3.on("PutObject", failing_s3.refuse(404, "NoSuchBucket"))
    settings.AWS_S3_ENDPOINT_URL = s3.url
    settings.AUDIT_R2_ACCESS_KEY_ID = "audit-key"
    settings.AUDIT_R2_SECRET_ACCESS_KEY = "audit-secret"
    settings.AUDIT_R2_BUCKET_NAME = "starview-audit"

    with pytest.raises(CommandError, match="AUDIT_R2_BUCKET_NAME"):
        call_command("archive_audit_logs")


def test_a_bucket_that_is_not_there_is_one_line(
    bucket: LocalServices, manage: Manage
) -> None:
    add_rows()

    done = manage("archive_audit_logs", env={"AWS_STORAGE_BUCKET_NAME": "not-there"})

    assert "NoSuchBucket" in assert_one_clear_line(done)
    assert rows() == 3


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
    add_rows()
    s3.on("GetObject", failing_s3.flip_byte, suffix=".txt")

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": s3.url})

    assert "came back from the store changed" in assert_one_clear_line(done)
    assert rows() == 3
    assert keys(bucket) == []


@pytest.mark.usefixtures("no_retries")
def test_the_next_run_archives_what_a_failed_one_kept(
    s3: FailingS3, bucket: LocalServices
) -> None:
    add_rows()
    s3.on("GetObject", failing_s3.refuse(403, "AccessDenied"), times=1)
    with pytest.raises(JobError):
        run(s3.url)

    result = run(s3.url)

    assert result.counts == {"found": 3, "archived": 3, "objects": 2}
    assert keys(bucket) == [f"{NAME}.json", f"{NAME}.txt"]
    assert rows() == 0


# -- the database fails ---------------------------------------------------------------


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
@pytest.mark.parametrize("suffix", OBJECTS)
def test_when_the_database_ends_the_session_nothing_is_deleted(
    operation: str, suffix: str, s3: FailingS3, bucket: LocalServices, manage: Manage
) -> None:
    add_rows()
    s3.on(operation, failing_s3.before(end_the_jobs_sessions), suffix=suffix)

    done = manage("archive_audit_logs", env={"AWS_S3_ENDPOINT_URL": s3.url})

    assert "database: " in assert_one_clear_line(done)
    assert rows() == 3
    assert keys(bucket) == []


def test_when_the_database_cancels_the_copy_it_is_one_line() -> None:
    # What a statement_timeout does, and what a stop does after its grace.
    add_rows(1, "\u202e" * 3_000_000)  # slow: every character is escaped
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '200ms'")
    try:
        with pytest.raises(CommandError, match="database: canceling statement"):
            call_command("archive_audit_logs", "--format=txt")
    finally:
        connection.close()

    assert rows() == 1


def test_when_another_table_needs_a_row_the_refusal_is_one_line(
    bucket: LocalServices, manage: Manage
) -> None:
    add_rows()
    in_another_session(
        "CREATE TABLE web_note (log bigint REFERENCES starview_app_auditlog);"
        " INSERT INTO web_note SELECT max(id) FROM starview_app_auditlog"
    )
    try:
        done = manage("archive_audit_logs")
    finally:
        in_another_session("DROP TABLE web_note")

    assert_one_clear_line(done)
    assert rows() == 3
    assert keys(bucket) == []


def test_when_the_database_is_a_read_only_replica_it_is_one_line(
    bucket: LocalServices, manage: Manage
) -> None:
    add_rows()

    done = manage(
        "archive_audit_logs",
        env={"PGOPTIONS": "-c default_transaction_read_only=on"},
    )

    assert_one_clear_line(done)
    assert rows() == 3
    assert keys(bucket) == []


def test_when_the_rows_are_locked_by_a_schema_change_the_run_waits_and_then_works(
    bucket: LocalServices, s3: FailingS3
) -> None:
    add_rows()
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


def test_a_database_that_is_down_is_one_line_without_the_password(
    manage: Manage,
) -> None:
    url = f"postgresql://starview:0123456789abcdef@127.0.0.1:{free_port()}/starview"

    done = manage("archive_audit_logs", env={"DATABASE_URL": url})

    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("CommandError: database: ")
    assert "Connection refused" in line
    assert "HINT: is the database running" in line
    assert [secret for secret in SECRETS if secret in line] == []


# -- the process is stopped -----------------------------------------------------------


class Running:
    """The command as a process, held by the proxy at one of its requests."""

    def __init__(
        self, s3: FailingS3, operation: str, suffix: str, environment: dict[str, str]
    ) -> None:
        self.arrived = threading.Event()
        self.go_on = threading.Event()
        self._s3 = s3
        s3.on(operation, failing_s3.before(self._hold), suffix=suffix, times=1)
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "archive_audit_logs"],
            cwd=ROOT,
            env=merged(environment, {"AWS_S3_ENDPOINT_URL": s3.url}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.arrived.wait(WAIT_SECONDS)

    def _hold(self) -> None:
        self.arrived.set()
        self.go_on.wait(WAIT_SECONDS)

    def finish(self) -> subprocess.CompletedProcess[str]:
        self.go_on.set()
        out, err = self.process.communicate(timeout=WAIT_SECONDS)
        return subprocess.CompletedProcess([], self.process.returncode, out, err)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def wait_for_the_jobs_sessions_to_end() -> None:
    """A killed client's session ends when the server next speaks to it."""

    def none_left() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name LIKE 'archive_audit_logs%'"
            )
            return bool(cursor.fetchone()[0] == 0)

    wait_until(none_left)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("operation", "suffix"),
    [("PutObject", ".json"), ("GetObject", ".json"), ("PutObject", ".txt")],
)
def test_a_signal_in_the_middle_stops_it_and_every_row_is_kept(
    number: signal.Signals,
    operation: str,
    suffix: str,
    s3: FailingS3,
    bucket: LocalServices,
    test_environment: dict[str, str],
) -> None:
    add_rows()
    running = Running(s3, operation, suffix, test_environment)

    running.process.send_signal(number)
    done = running.finish()

    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert len(lines) == 3, lines
    assert "outcome=interrupted" in lines[1]
    assert f"was stopped by {number.name}" in lines[2]
    assert "Archived" not in done.stdout
    assert rows() == 3
    assert keys(bucket) == []


def test_a_second_signal_changes_nothing(
    s3: FailingS3, bucket: LocalServices, test_environment: dict[str, str]
) -> None:
    add_rows()
    running = Running(s3, "PutObject", ".txt", test_environment)

    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGTERM)
    done = running.finish()

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3
    assert rows() == 3
    assert keys(bucket) == []


def test_a_signal_is_obeyed_while_the_store_says_nothing(
    s3: FailingS3, bucket: LocalServices, test_environment: dict[str, str]
) -> None:
    # docker stop kills after 10 s, Render after 30: a hanging store takes longer.
    add_rows()
    running = Running(s3, "PutObject", ".txt", test_environment)

    running.process.send_signal(signal.SIGTERM)
    out, err = running.process.communicate(timeout=WAIT_SECONDS)  # it is still held

    running.go_on.set()
    assert running.process.returncode == 1
    assert "was stopped by SIGTERM" in err
    assert rows() == 3


@pytest.mark.parametrize(
    ("operation", "suffix", "left"),
    [
        ("PutObject", ".json", 0),
        ("GetObject", ".json", 1),
        ("GetObject", ".txt", 2),
    ],
)
def test_after_a_kill_every_row_is_there_and_the_next_run_completes(
    operation: str,
    suffix: str,
    left: int,
    s3: FailingS3,
    bucket: LocalServices,
    manage: Manage,
    test_environment: dict[str, str],
) -> None:
    add_rows()
    ids = set(AuditLog.objects.values_list("id", flat=True))
    running = Running(s3, operation, suffix, test_environment)

    running.process.kill()
    killed = running.process.wait(WAIT_SECONDS)
    kept = rows()
    orphans = keys(bucket)
    running.finish()
    wait_for_the_jobs_sessions_to_end()
    # A name has the second of its run: this one may start in the same second.
    before = set(keys(bucket))
    for key in before:
        bucket.s3.delete_object(Bucket=BUCKET, Key=key)
    done = manage("archive_audit_logs")

    assert killed == -signal.SIGKILL
    assert kept == 3
    assert len(orphans) == left
    assert done.returncode == 0, done.stderr
    (archive,) = (key for key in keys(bucket) if key.endswith(".json"))
    logs = json.loads(bucket.read_object(archive))["logs"]
    assert {log["id"] for log in logs} == ids
    assert rows() == 0


# -- the folder of a developer fails --------------------------------------------------


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, settings: Any
) -> None:
    add_rows()
    (tmp_path / "file").write_text("in the way")
    settings.DEBUG = True
    settings.AUDIT_ARCHIVE_FOLDER = tmp_path / "file" / "audit_archives"

    with pytest.raises(CommandError, match="nothing was deleted.*Not a directory"):
        call_command("archive_audit_logs")

    assert rows() == 3

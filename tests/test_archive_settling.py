"""What an interrupted archive run leaves open is settled by the next one.

And what happens to the rows of a segment while it is archived: nobody's change is lost.
A kill is made here by a store that from some moment on refuses everything, also the
cleaning up: what is left in the database and in the store is what a SIGKILL leaves.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import botocore.config
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError

from demo.services import BUCKET, S3_KEYS, LocalServices
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import segments
from starview_app.maintenance.jobs.audit_archive.archive import (
    Event,
    Settled,
    archive_audit_logs,
)
from starview_app.maintenance.jobs.audit_archive.segments import Outcome
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores.base import Listed, ObjectWriter, Store
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.maintenance.stores.s3 import S3Store
from starview_app.models import AuditLog
from tests import failing_s3
from tests.archive_processes import (
    NOVEMBER,
    OCTOBER,
    PREFIX,
    Bucket,
    Folder,
    Place,
    Rows,
    add_rows,
    archived_rows,
    assert_each_row_once,
    assert_verified,
    table_rows,
)
from tests.factories import in_thread, session, wait_until_blocked_by
from tests.failing_s3 import Call, FailingS3

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2025, 1, 27, 4, 0, 1, 123456, tzinfo=UTC)
ENDED = ("archived", "abandoned")
LATER = NOW + timedelta(hours=1)
DOWN = "http://127.0.0.1:9"  # nothing listens there
LOCKED = failing_s3.refuse(403, "ObjectLockedByBucketPolicy")


class Killed(BaseException):
    """Like SIGKILL: nothing that comes after it has an effect outside."""


@dataclass
class DyingStore:
    """`store` until `method` is called for a name that ends in `suffix`."""

    store: Store
    method: str
    suffix: str
    is_dead: bool = False

    @property
    def location(self) -> str:
        return self.store.location

    def writer(
        self, name: str, *, overwrite: bool = False
    ) -> AbstractContextManager[ObjectWriter]:
        self._live_or_die("writer", name)
        return self.store.writer(name, overwrite=overwrite)

    def read(self, name: str) -> Iterator[bytes]:
        self._live_or_die("read", name)
        return self.store.read(name)

    def delete(self, name: str) -> None:
        self._live_or_die("delete", name)
        self.store.delete(name)

    def discard_unfinished(self, name: str) -> None:
        self._live_or_die("discard_unfinished", name)
        self.store.discard_unfinished(name)

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        self._live_or_die("objects", prefix)
        return self.store.objects(prefix)

    def _live_or_die(self, method: str, name: str) -> None:
        if method == self.method and name.endswith(self.suffix):
            self.is_dead = True
        if self.is_dead:
            raise Killed


def s3_store(url: str) -> S3Store:
    return S3Store(url, *S3_KEYS, BUCKET, PREFIX)


def run(store: Store, **changes: Any) -> tuple[JobResult, list[Settled]]:
    """One run; returns also what it settled."""
    events: list[Event] = []
    arguments: dict[str, Any] = {
        "now": LATER,
        "days": 30,
        "formats": ("json", "txt"),
        "store": store,
        "report": events.append,
        "should_stop": lambda: False,
    }
    result = archive_audit_logs(**{**arguments, **changes})
    return result, [event for event in events if isinstance(event, Settled)]


def kill_run(store: Store, method: str, suffix: str, **changes: Any) -> None:
    """A run that dies before it calls `method` for a name that ends in `suffix`."""
    with (
        mock.patch.object(segments, "abandon", side_effect=Killed),
        pytest.raises(Killed),
    ):
        run(DyingStore(store, method, suffix), **changes)


def leave_open(
    store: Store, method: str = "read", suffix: str = ".txt", **changes: Any
) -> tuple[str, ...]:
    """Kill a run, by default with both objects in the store; the open one's names."""
    kill_run(store, method, suffix, **{"now": NOW, **changes})
    return tuple(AuditArchive.objects.get(state="open").names)


def assert_good(store: Store, place: Place, originals: Rows) -> None:
    """Each row is there once, nothing is left open, and an auditor finds no fault."""
    assert_each_row_once(place, originals)
    assert not AuditArchive.objects.exclude(state__in=ENDED).exists()
    assert AuditManifest.objects.filter(is_written=False).count() == 0
    assert_verified(store)


def do(statement: str, *parameters: Any) -> None:
    """In another session, committed."""
    with session() as other:
        other.cursor().execute(statement, parameters)
        other.commit()


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


@pytest.fixture
def store(s3: FailingS3) -> S3Store:
    return s3_store(s3.url)


@pytest.fixture
def place(bucket: LocalServices) -> Bucket:
    return Bucket(bucket)


def set_attempts(monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    original = botocore.config.Config

    def impatient(**options: Any) -> botocore.config.Config:
        changes = {"read_timeout": 0.3, "retries": {"total_max_attempts": attempts}}
        return original(**{**options, **changes})

    monkeypatch.setattr(botocore.config, "Config", impatient)


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    set_attempts(monkeypatch, 1)


# -- objects that are left -----------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("method", "suffix"),
    [("writer", ".json"), ("read", ".json"), ("writer", ".txt"), ("read", ".txt")],
)
def test_what_a_killed_run_left_is_removed_and_its_rows_get_names_of_their_own(
    method: str, suffix: str, compress: bool, store: S3Store, place: Bucket
) -> None:
    add_rows()
    originals = table_rows()
    suffix += ".gz" if compress else ""
    names = leave_open(store, method, suffix, compress=compress)

    result, settled = run(store)

    assert settled == [Settled(names, Outcome.UNDONE)]
    assert result.counts == {"found": 2, "archived": 2, "segments": 1, "objects": 2}
    assert set(names).isdisjoint(place.objects())
    assert_good(store, place, originals)


def test_in_the_same_second_no_name_is_given_twice(
    store: S3Store, place: Bucket
) -> None:
    add_rows()
    originals = table_rows()
    names = leave_open(store)

    run(store, now=NOW)

    assert set(names).isdisjoint(place.objects())
    assert_good(store, place, originals)


CHANGES = {
    "a deleted account": "UPDATE starview_app_auditlog SET user_id = NULL",
    "another message": "UPDATE starview_app_auditlog SET message = 'other'",
    "a row less": "DELETE FROM starview_app_auditlog WHERE id ="
    " (SELECT min(id) FROM starview_app_auditlog)",
    "a row moved away": "UPDATE starview_app_auditlog SET timestamp = '2024-11-20'"
    " WHERE id = (SELECT min(id) FROM starview_app_auditlog)",
    "a row dated back into it": "INSERT INTO starview_app_auditlog (event_type,"
    " timestamp, success, message, username, user_agent, metadata)"
    " VALUES ('logout', '2024-10-05 12:30Z', true, 'late', '', '', '{}')",
}


def add_three_with_an_account() -> None:
    user = User.objects.create(username="leaving")
    for hour in range(3):
        add_rows(OCTOBER + timedelta(hours=hour), 1, user=user)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_rows_that_changed_since_a_run_was_killed_are_archived_as_they_are_now(
    change: str, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    names = leave_open(store)
    do(change)
    originals = table_rows()

    _, settled = run(store)

    assert settled == [Settled(names, Outcome.UNDONE)]
    assert set(names).isdisjoint(place.objects())
    assert table_rows() == {}
    assert_good(store, place, originals)


@pytest.mark.parametrize("mine", [0, 1], ids=["json", "txt"])
def test_an_object_of_another_deployment_is_not_touched(
    mine: int, store: S3Store, place: Bucket, bucket: LocalServices
) -> None:
    add_rows()
    originals = table_rows()
    names = leave_open(store)
    key = PREFIX + names[mine]
    other = place.objects()[names[mine]].replace(b".123456", b".123457")
    bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=other)

    _, settled = run(store)

    assert settled == [Settled(names, Outcome.UNDONE)]
    assert bucket.read_object(key) == other
    assert names[1 - mine] not in place.objects()
    bucket.s3.delete_object(Bucket=BUCKET, Key=key)
    assert table_rows() == {}
    assert_good(store, place, originals)


def test_a_segment_whose_rows_are_gone_is_undone(store: S3Store, place: Bucket) -> None:
    add_rows()
    names = leave_open(store)
    AuditLog.objects.all().delete()

    result, settled = run(store)

    assert settled == [Settled(names, Outcome.UNDONE)]
    assert result.counts == {"found": 0, "archived": 0, "segments": 0, "objects": 0}
    assert place.objects() == {}
    assert_good(store, place, {})


@pytest.mark.parametrize(
    ("cutoff", "kept"),
    [
        (OCTOBER + timedelta(hours=3), 0),
        (OCTOBER + timedelta(hours=2), 1),  # a row exactly --days old is kept
        (OCTOBER + timedelta(hours=1), 2),
        (OCTOBER, 3),
    ],
)
def test_with_more_days_a_segment_that_is_no_longer_due_is_undone(
    cutoff: datetime, kept: int, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    originals = table_rows()
    names = leave_open(store)

    _, settled = run(store, now=cutoff + timedelta(days=60), days=60)

    assert settled == [Settled(names, Outcome.UNDONE)]
    assert len(table_rows()) == kept
    assert_good(store, place, originals)


def test_two_segments_that_are_left_open_are_both_settled(
    store: S3Store, place: Bucket
) -> None:
    add_rows()
    first = leave_open(store, "read", ".json")
    AuditArchive.objects.update(location="elsewhere")  # not for the second run
    add_rows(NOVEMBER)
    AuditLog.objects.filter(timestamp=OCTOBER).update(timestamp=OCTOBER.replace(day=4))
    kill_run(store, "read", ".txt", now=NOW + timedelta(seconds=1))
    AuditLog.objects.filter(timestamp=OCTOBER.replace(day=4)).update(timestamp=OCTOBER)
    AuditArchive.objects.update(location=store.location)
    originals = table_rows()

    _, settled = run(store)

    assert [event.names[0] == first[0] for event in settled] == [True, False]
    assert_good(store, place, originals)


# -- a lock of the bucket ------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".json", ".txt"])
def test_what_a_lock_keeps_is_left_and_the_changed_rows_get_a_new_name(
    suffix: str, s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    names = leave_open(store)
    do(CHANGES["a deleted account"])
    originals = table_rows()
    s3.on("DeleteObject", LOCKED, suffix=suffix)

    _, settled = run(store)

    assert settled == [Settled(names, Outcome.KEPT)]
    assert table_rows() == {}
    objects = place.objects()
    locked = {name for name in names if name.endswith(suffix)}
    # What the lock does not keep is no longer there: nobody would ever remove it.
    assert {name for name in names if name in objects} == locked
    for name in locked:
        place.remove(name)
    assert archived_rows(place) == originals


def test_what_a_lock_keeps_does_not_spoil_every_later_verification(
    s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    leave_open(store)
    do(CHANGES["a deleted account"])
    s3.on("DeleteObject", LOCKED)

    run(store)

    assert_verified(store)


def test_once_the_lock_has_ended_the_next_run_removes_what_it_kept(
    s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    leave_open(store)
    do(CHANGES["a deleted account"])
    originals = table_rows()
    s3.on("DeleteObject", LOCKED, times=2)
    run(store)

    run(store, now=LATER + timedelta(days=30))

    assert_good(store, place, originals)


# -- the store fails while it is settled ---------------------------------------------


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("operation", "suffix"),
    [
        ("ListMultipartUploads", ""),
        ("GetObject", ".txt"),  # the head is looked at
        ("DeleteObject", ".json"),
        ("DeleteObject", ".txt"),
    ],
)
def test_what_cannot_be_removed_fails_the_run_and_costs_no_row(
    operation: str, suffix: str, s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    leave_open(store)
    originals = table_rows()
    s3.on(operation, failing_s3.refuse(503, "SlowDown"), suffix=suffix, times=1)

    result, _ = run(store)

    (problem,) = result.problems
    assert problem.startswith("what an unfinished run left could not be removed: ")
    assert table_rows() == {}
    run(store, now=LATER + timedelta(seconds=1))
    assert_good(store, place, originals)


@pytest.mark.usefixtures("no_retries")
def test_while_the_store_is_down_nothing_changes(store: S3Store, place: Bucket) -> None:
    add_rows()
    originals = table_rows()
    names = leave_open(store)
    objects = place.objects()

    with pytest.raises(JobError, match="nothing was deleted.*is the store up"):
        run(s3_store(DOWN))

    assert table_rows() == originals
    assert place.objects() == objects
    assert tuple(AuditArchive.objects.get(state="open").names) == names
    assert run(store)[1] == [Settled(names, Outcome.UNDONE)]
    assert_good(store, place, originals)


KILLS = [
    ("objects", ""),
    ("discard_unfinished", ".txt"),
    ("read", ".json"),
    ("delete", ".json"),
    ("read", ".txt"),
    ("delete", ".txt"),
    ("writer", ".json"),
    ("writer", ".txt"),
]


def test_killed_while_settling_again_and_again_the_last_run_settles(
    store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    names = leave_open(store)
    do(CHANGES["another message"])
    originals = table_rows()

    for method, suffix in KILLS:
        kill_run(store, method, suffix)
        assert table_rows() == originals
    run(store)

    assert set(names).isdisjoint(place.objects())
    assert_good(store, place, originals)


# -- half-written objects ------------------------------------------------------------


def test_a_half_sent_upload_is_given_up_and_nobody_elses(
    store: S3Store, place: Bucket, bucket: LocalServices
) -> None:
    add_rows()
    originals = table_rows()
    names = leave_open(store, "writer", ".json")
    keys = [PREFIX + names[0], PREFIX + names[0] + ".gz"]
    ids = {
        key: bucket.s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        for key in keys
    }
    for key in keys:
        bucket.s3.upload_part(
            Bucket=BUCKET, Key=key, UploadId=ids[key], PartNumber=1, Body=b"half"
        )

    run(store)

    assert place.unfinished() == [keys[1]]
    bucket.s3.abort_multipart_upload(Bucket=BUCKET, Key=keys[1], UploadId=ids[keys[1]])
    assert_good(store, place, originals)


def test_a_half_written_file_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    add_rows()
    originals = table_rows()
    folder = Folder(tmp_path / "archives")
    store = FolderStore(folder.folder)
    names = leave_open(store, "read", ".json")
    (folder.folder / f".{names[1]}.abcdef.part").write_text("half")
    stranger = folder.folder / f".{names[1]}0.abcdef.part"
    stranger.write_text("another's")

    run(store)

    assert folder.unfinished() == [stranger.name]
    stranger.unlink()
    assert_good(store, folder, originals)


# -- answers that are lost -----------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_an_object_whose_answer_was_lost_is_not_left_behind(
    suffix: str, monkeypatch: pytest.MonkeyPatch, s3: FailingS3, place: Bucket
) -> None:
    # boto3 asks again and is refused for its own object; then HEAD fails too.
    set_attempts(monkeypatch, 2)
    add_rows()
    originals = table_rows()
    s3.on("PutObject", failing_s3.lose_answer, suffix=suffix, times=1)
    s3.on("HeadObject", failing_s3.refuse(503, "SlowDown"))

    with suppress(JobError):
        run(s3_store(s3.url), now=NOW)
    run(s3_store(s3.url))

    assert s3.count("HeadObject") >= 1
    assert_good(s3_store(s3.url), place, originals)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_an_upload_that_the_store_finishes_after_the_time_out_is_not_left_behind(
    suffix: str, s3: FailingS3, place: Bucket
) -> None:
    add_rows()
    originals = table_rows()
    may_go_on, is_done = threading.Event(), threading.Event()

    def finish_late(call: Call) -> None:
        may_go_on.wait(30)
        call.forward()
        is_done.set()
        call.hang_up()

    s3.on("PutObject", finish_late, suffix=suffix, times=1)
    with pytest.raises(JobError):
        run(s3_store(s3.url), now=NOW)
    may_go_on.set()
    assert is_done.wait(30)

    run(s3_store(s3.url))

    assert_good(s3_store(s3.url), place, originals)


def test_an_upload_of_the_killed_run_that_ends_while_it_is_settled_is_not_left_behind(
    s3: FailingS3, store: S3Store, place: Bucket, bucket: LocalServices
) -> None:
    add_three_with_an_account()
    names = leave_open(store)
    late = place.objects()[names[0]]
    for name in names:
        place.remove(name)
    do(CHANGES["another message"])
    originals = table_rows()
    key = PREFIX + names[0]
    s3.on(
        "PutObject",
        failing_s3.before(
            lambda: bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=late)
        ),
        suffix=".json",
        times=1,
    )

    with suppress(JobError):
        run(store)
    run(store, now=LATER + timedelta(seconds=1))

    assert_good(store, place, originals)


# -- rows that change while they are archived ----------------------------------------

MOMENTS = {
    "while the first object is written": ("PutObject", ".json"),
    "while it is read back": ("GetObject", ".json"),
    "while the last one is read back": ("GetObject", ".txt"),
}
# When the new row happened, and whether that is behind the segment, in the order
# (timestamp, id): then the same run comes to it.
INSERTS = {
    "before it": (OCTOBER - timedelta(days=3), False),
    "at its first row": (OCTOBER, False),
    "into the segment": (OCTOBER + timedelta(minutes=30), False),
    "at its last row": (OCTOBER + timedelta(hours=2), True),
    "behind it": (NOVEMBER, True),
}


@pytest.mark.parametrize(("timestamp", "is_behind"), INSERTS.values(), ids=INSERTS)
@pytest.mark.parametrize(
    ("operation", "suffix"), [MOMENTS["while the last one is read back"]]
)
def test_a_row_that_is_inserted_meanwhile_is_archived_by_this_run_or_the_next(
    operation: str,
    suffix: str,
    timestamp: datetime,
    is_behind: bool,
    s3: FailingS3,
    store: S3Store,
    place: Bucket,
) -> None:
    add_three_with_an_account()
    before = table_rows()
    insert = CHANGES["a row dated back into it"].replace("'2024-10-05 12:30Z'", "%s")
    s3.on(
        operation,
        failing_s3.before(lambda: do(insert, timestamp)),
        suffix=suffix,
        times=1,
    )

    run(store, now=NOW)
    archived, kept = archived_rows(place), table_rows()
    (late,) = {**archived, **kept}.keys() - before.keys()
    originals = {**before, late: {**archived, **kept}[late]}

    assert (late in archived) == is_behind
    assert len(kept) == (not is_behind)
    run(store)
    assert table_rows() == {}
    assert_good(store, place, originals)


@pytest.mark.parametrize(
    ("moment", "change"),
    [
        *[
            ("while the last one is read back", name)
            for name in CHANGES
            if name != "a row dated back into it"
        ],
        ("while the first object is written", "a deleted account"),
        ("while it is read back", "a row less"),
    ],
)
def test_a_row_that_is_changed_meanwhile_is_archived_as_it_is_now(
    moment: str, change: str, s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    operation, suffix = MOMENTS[moment]
    add_three_with_an_account()
    seen: list[Rows] = []

    def interfere() -> None:
        do(CHANGES[change])
        with session() as other:
            cursor = other.cursor()
            cursor.execute("SELECT id, to_jsonb(l) FROM starview_app_auditlog AS l")
            seen.append(dict(cursor.fetchall()))

    s3.on(operation, failing_s3.before(interfere), suffix=suffix, times=1)

    run(store, now=NOW)

    assert table_rows() == {}
    assert_good(store, place, seen[0])


def test_a_row_that_is_changed_three_times_over_is_one_clear_line(
    s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    add_three_with_an_account()
    append = "UPDATE starview_app_auditlog SET message = message || 'x'"
    s3.on("GetObject", failing_s3.before(lambda: do(append)), suffix=".txt")

    with pytest.raises(JobError) as failure:
        run(store, now=NOW)

    text = str(failure.value)
    assert text.startswith("nothing was deleted, archiving failed: audit rows were")
    assert text.isprintable()
    assert place.objects() == {}
    states = AuditArchive.objects.values_list("state", flat=True)
    assert list(states) == ["abandoned"] * 3
    assert {row["message"][-3:] for row in table_rows().values()} == {"xxx"}
    originals = table_rows()
    run(s3_store(f"http://{s3.target}"))
    assert_good(store, place, originals)


def test_when_an_account_is_deleted_crosswise_no_change_is_lost(
    s3: FailingS3, store: S3Store, place: Bucket
) -> None:
    """Each side holds a row that the other one wants: PostgreSQL ends one of them."""
    add_three_with_an_account()
    first, last = min(table_rows()), max(table_rows())
    update = "UPDATE starview_app_auditlog SET user_id = NULL WHERE id = %s"
    errors: list[BaseException] = []
    with session() as web:
        web.cursor().execute("SET deadlock_timeout = '60s'")  # the job is the one
        web.commit()
        s3.on(
            "GetObject",
            failing_s3.before(lambda: web.cursor().execute(update, [last])),
            suffix=".txt",
            times=1,
        )

        def go_on() -> None:
            wait_until_blocked_by(web)
            web.cursor().execute(update, [first])
            web.commit()

        with in_thread(go_on):
            try:
                run(store, now=NOW)
            except DatabaseError as error:
                errors.append(error)

    assert all("deadlock detected" in str(error) for error in errors)
    archived = archived_rows(place)
    rows = {**archived, **table_rows()}
    assert [rows[number]["user_id"] for number in (first, last)] == [None, None]
    run(store)
    assert_good(store, place, rows)


# -- the folder of a developer is full -----------------------------------------------


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("size_bytes", [0, 100, 700, 100_000])
def test_a_file_that_finds_no_room_leaves_nothing_and_the_next_run_works(
    size_bytes: int, compress: bool, tmp_path: Path
) -> None:
    # Text that gzip cannot make smaller than the limit.
    noise = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(60_000))
    add_rows(count=3, message=noise)
    originals = table_rows()
    folder = Folder(tmp_path / "archives")
    store = FolderStore(folder.folder)

    with file_size_limit(size_bytes), pytest.raises(JobError) as failure:
        run(store, now=NOW, compress=compress)

    assert str(failure.value).startswith("nothing was deleted, archiving failed: ")
    assert "File too large" in str(failure.value)
    assert str(failure.value).isprintable()
    assert (folder.objects(), folder.unfinished()) == ({}, [])
    assert table_rows() == originals
    run(store, compress=compress)
    assert_good(store, folder, originals)


def test_a_manifest_that_finds_no_room_is_written_by_the_next_run(
    tmp_path: Path,
) -> None:
    add_rows(count=1)
    originals = table_rows()
    folder = Folder(tmp_path / "archives")
    store = FolderStore(folder.folder)

    with file_size_limit(800), pytest.raises(JobError) as failure:
        run(store, now=NOW)

    assert str(failure.value).startswith("1 audit logs are archived, but a manifest is")
    assert (table_rows(), folder.unfinished()) == ({}, [])
    run(store)
    assert_good(store, folder, originals)


def test_a_record_that_was_given_up_before_its_rows_were_read_is_never_archived(
    store: S3Store, place: Bucket
) -> None:
    # A run that is frozen between two of its commits, and wakes up later.
    add_rows()
    originals = table_rows()
    planned = segments.plan(cutoff=NOW, after=segments.START, segment_rows=100)
    assert planned
    record = segments.open_segment(
        location=store.location,
        archived_at=NOW,
        retention_days=30,
        first=planned[0],
        last=planned[1],
        kinds=("json", "txt"),
        number=1,
    )
    assert segments.abandon(record)

    with pytest.raises(segments.ChangedMeanwhileError):
        segments.SegmentArchiver(store, lambda: False).archive(record)

    assert table_rows() == originals
    run(store)
    assert_good(store, place, originals)

"""cleanup_audit_archives: what is removed, what never is, and a chain that stays whole.

`verify_audit_archives` has the last word in nearly every test.
"""

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import load_command_class

from demo.services import LocalServices
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive.cleanup import (
    Event,
    Found,
    KeptByLock,
    Removed,
    Unknown,
    cleanup_audit_archives,
)
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.models import AuditLog
from tests.archive_chains import (
    EVENTS,
    GZ3,
    HOSTILE,
    JSON1,
    JSON2,
    OBJECTS,
    TXT1,
    TXT2,
    TXT_GZ3,
    Done,
    Place,
    add_rows,
    archive,
    assert_all_good,
    forget,
    killed_at,
    make_chain,
    on_record,
    put_many,
    run_command,
    store,
    verify,
    write_manifest,
)
from tests.factories import contents, session, wait_until
from tests.failing_s3 import FailingS3, hang_up, lose_answer, refuse

JOB = "cleanup_audit_archives"
NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=90)
TICK = timedelta(microseconds=1)
NEWEST = {GZ3, TXT_GZ3}
DUE = [JSON1, TXT1, JSON2, TXT2]
LOCK = refuse(403, "ObjectLockedByBucketPolicy")
State = AuditArchive.State

_seconds = itertools.count()


@pytest.fixture
def bucket(bucket: LocalServices, transactional_db: None) -> Iterator[LocalServices]:
    """An empty bucket, and a database that other sessions see."""
    yield bucket
    Place(bucket).empty()


@pytest.fixture
def place(bucket: LocalServices) -> Place:
    """A chain of three archives, all of them old."""
    return make_chain(bucket)


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


def archive_one(bucket: LocalServices, event: datetime, **changes: Any) -> set[str]:
    """Archive rows of this time, by a run of their own; the objects' names."""
    run_at = NOW - timedelta(days=2) + timedelta(seconds=next(_seconds))
    archive(bucket.aws_url, now=run_at, event=event, **changes)
    return set(AuditArchive.objects.latest("id").names)


def cleanup(url: str, events: list[Event] | None = None, **changes: Any) -> JobResult:
    arguments: dict[str, Any] = {
        "now": NOW,
        "days": 90,
        "store": store(url),
        "report": (events if events is not None else []).append,
        "should_stop": lambda: False,
    }
    return cleanup_audit_archives(**{**arguments, **changes})


def counts(**changes: int) -> dict[str, int]:
    names = ("found", "removed", "objects", "kept_by_lock", "unknown")
    return dict.fromkeys(names, 0) | changes


def manifests(place: Place) -> int:
    return len(set(place.names()) - place.archives())


def states() -> list[str]:
    return list(AuditArchive.objects.order_by("id").values_list("state", flat=True))


# -- which archives ------------------------------------------------------------------


def test_it_removes_an_archive_only_when_its_newest_event_is_older_than_the_days(
    bucket: LocalServices,
) -> None:
    older, exactly, younger, newest = (
        archive_one(bucket, event)
        for event in (CUTOFF - TICK, CUTOFF, CUTOFF + TICK, NOW - timedelta(days=40))
    )

    result = cleanup(bucket.aws_url)

    assert result == JobResult(counts(found=1, removed=1, objects=2))
    assert Place(bucket).archives() == exactly | younger | newest
    assert older & Place(bucket).archives() == set()
    assert_all_good(verify(), exactly | younger | newest)


def test_the_newest_event_of_an_archive_counts_not_the_oldest(
    bucket: LocalServices,
) -> None:
    add_rows(CUTOFF - timedelta(minutes=1))  # of the same month: one segment
    kept = archive_one(bucket, CUTOFF)
    newest = archive_one(bucket, NOW - timedelta(days=40))

    result = cleanup(bucket.aws_url)

    assert result == JobResult(counts())
    assert Place(bucket).archives() == kept | newest


def test_the_age_in_days_is_the_one_it_is_given(bucket: LocalServices) -> None:
    older, newest = (
        archive_one(bucket, NOW - timedelta(days=days)) for days in (51, 50)
    )

    assert cleanup(bucket.aws_url, days=51) == JobResult(counts())
    assert cleanup(bucket.aws_url, days=50).counts["removed"] == 1
    assert Place(bucket).archives() == newest
    assert older != newest


def test_the_newest_archive_stays_when_all_are_old(
    place: Place, bucket: LocalServices
) -> None:
    assert cleanup(bucket.aws_url, days=1).counts["removed"] == 2
    assert place.archives() == NEWEST
    assert_all_good(verify(), NEWEST)


def test_the_only_archive_stays_however_old(bucket: LocalServices) -> None:
    only = archive_one(bucket, datetime(2001, 1, 1, tzinfo=UTC))

    assert cleanup(bucket.aws_url, days=1) == JobResult(counts())
    assert Place(bucket).archives() == only


def test_the_newest_is_the_one_with_the_newest_event_not_the_last_one_written(
    bucket: LocalServices,
) -> None:
    newest = archive_one(bucket, EVENTS[1])
    archive_one(bucket, EVENTS[0])

    assert cleanup(bucket.aws_url).counts["removed"] == 1
    assert Place(bucket).archives() == newest


def test_of_two_archives_with_the_same_newest_event_one_stays(
    bucket: LocalServices,
) -> None:
    archive_one(bucket, EVENTS[0])
    last = archive_one(bucket, EVENTS[0])

    assert cleanup(bucket.aws_url).counts["removed"] == 1
    assert Place(bucket).archives() == last


def test_json_and_text_of_an_archive_go_together(
    place: Place, bucket: LocalServices
) -> None:
    events: list[Event] = []

    result = cleanup(bucket.aws_url, events)

    assert result == JobResult(counts(found=2, removed=2, objects=4))
    assert [event.name for event in events if isinstance(event, Removed)] == DUE
    assert states() == [State.REMOVED, State.REMOVED, State.ARCHIVED]
    assert place.content(4)["removed"] == DUE


def test_manifests_are_never_removed(place: Place, bucket: LocalServices) -> None:
    before = {name: place.read(name) for name in set(place.names()) - OBJECTS}

    cleanup(bucket.aws_url)

    after = {name: place.read(name) for name in set(place.names()) - NEWEST}
    assert before.items() < after.items()
    assert manifests(place) == 4


def test_a_second_run_changes_nothing(place: Place, bucket: LocalServices) -> None:
    cleanup(bucket.aws_url)
    names, tables = place.names(), contents()

    result = cleanup(bucket.aws_url, now=NOW + timedelta(seconds=1))

    assert result == JobResult(counts())
    assert (place.names(), contents()) == (names, tables)


def test_with_nothing_archived_there_is_nothing_to_do(bucket: LocalServices) -> None:
    assert cleanup(bucket.aws_url) == JobResult(counts())
    assert Place(bucket).names() == []


def test_each_removal_leaves_a_chain_that_verifies(bucket: LocalServices) -> None:
    archives = [archive_one(bucket, event) for event in EVENTS]
    archives.append(archive_one(bucket, NOW - timedelta(days=40)))
    for number, event in enumerate(EVENTS, start=1):
        result = cleanup(bucket.aws_url, now=event + timedelta(days=90) + TICK)

        assert result.counts["removed"] == 1
        assert_all_good(verify(), set().union(*archives[number:]))

    assert manifests(Place(bucket)) == 7


def test_an_archive_run_goes_on_with_the_chain_of_a_cleanup(
    place: Place, bucket: LocalServices
) -> None:
    cleanup(bucket.aws_url)

    new = archive_one(bucket, NOW - timedelta(days=40))

    assert_all_good(verify(), NEWEST | new)
    assert place.content(5)["previous"]["name"] == place.manifest(4)


def test_what_was_removed_is_noticed_when_it_comes_back(
    place: Place, bucket: LocalServices
) -> None:
    body = place.read(JSON1)
    cleanup(bucket.aws_url)
    place.write(JSON1, body)

    verdict = verify()

    assert verdict.bad == {("not in any manifest", JSON1)}


# -- whose archives ------------------------------------------------------------------


def test_objects_that_this_database_has_not_archived_are_left_and_named(
    place: Place, bucket: LocalServices
) -> None:
    strangers = ["audit_logs_20200101.json", "below/" + JSON1, JSON1 + ".gz"]
    for name in strangers:
        place.write(name, b"{}")
    events: list[Event] = []

    result = cleanup(bucket.aws_url, events)

    assert result.counts == counts(found=2, removed=2, objects=4, unknown=3)
    assert {event for event in events if isinstance(event, Unknown)} == {
        Unknown(name) for name in strangers
    }
    assert place.archives() == {*NEWEST, *strangers}


def test_without_records_nothing_is_removed(
    place: Place, bucket: LocalServices
) -> None:
    forget()

    assert cleanup(bucket.aws_url) == JobResult(counts(unknown=6))
    assert place.archives() == OBJECTS
    assert manifests(place) == 3


def test_what_was_archived_to_another_place_is_not_removed_here(
    place: Place, bucket: LocalServices
) -> None:
    elsewhere = "s3://other-bucket/audit-archives/"
    AuditArchive.objects.update(location=elsewhere)
    AuditManifest.objects.update(location=elsewhere)

    assert cleanup(bucket.aws_url) == JobResult(counts(unknown=6))
    assert place.archives() == OBJECTS
    assert states() == [State.ARCHIVED] * 3


def test_a_newer_archive_at_another_place_does_not_protect_less_here(
    place: Place, bucket: LocalServices
) -> None:
    newer = AuditArchive.objects.get(names__contains=GZ3)
    newer.pk = None
    newer.location = "s3://other-bucket/audit-archives/"
    newer.last_timestamp = NOW
    newer.manifest = None
    newer.save()

    assert cleanup(bucket.aws_url).counts["removed"] == 2
    assert place.archives() == NEWEST


def test_an_archive_that_no_manifest_lists_yet_is_left(bucket: LocalServices) -> None:
    names = {"old.json", "older.json", "new.json"}
    place = Place(bucket)
    on_record(
        ({name: b"x"} for name in sorted(names)),
        location=store(bucket.aws_url).location,
    )
    for name in names:
        place.write(name, b"x")

    assert cleanup(bucket.aws_url).counts["removed"] == 0
    assert place.archives() == names
    assert_all_good(verify(), names)
    assert cleanup(bucket.aws_url).counts["removed"] == 2


def test_an_archive_is_left_while_its_manifest_cannot_be_written(
    place: Place, bucket: LocalServices, s3: FailingS3
) -> None:
    AuditManifest.objects.filter(sequence=2).update(is_written=False)
    AuditManifest.objects.filter(sequence=3).update(is_written=False)
    place.remove(place.manifest(3), place.manifest(2))
    s3.on("PutObject", refuse(403, "AccessDenied"))

    with pytest.raises(JobError):
        cleanup(s3.url)

    assert place.archives() >= {JSON2, TXT2, *NEWEST}
    assert verify().exit_code == 0


def test_an_open_archive_is_left(place: Place, bucket: LocalServices) -> None:
    AuditArchive.objects.filter(names__contains=JSON1).update(state=State.OPEN)

    assert cleanup(bucket.aws_url).counts["removed"] == 1
    assert place.archives() == {JSON1, TXT1, *NEWEST}


# -- dry run and report --------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(place: Place) -> None:
    place.write("stranger", b"")
    objects = {name: place.read(name) for name in place.names()}
    tables = contents()

    done = run_command(JOB, "--dry-run")

    assert done.exit_code == 0
    assert "Found 2 archives older than 90 days, among 10 objects" in done.out
    assert "Not archived by this database, left alone: stranger\n" in done.out
    assert done.out.endswith("\nDry run: would remove 2 archives, nothing changed\n")
    assert {name: place.read(name) for name in place.names()} == objects
    assert contents() == tables


def test_a_dry_run_only_looks_at_the_list_of_the_store(
    place: Place, s3: FailingS3
) -> None:
    events: list[Event] = []

    result = cleanup(s3.url, events, dry_run=True)

    assert result == JobResult(counts(found=2))
    assert events == [Found(9, 2, CUTOFF)]
    assert {operation for operation, _ in s3.calls} == {"ListObjectsV2"}


def test_the_command_says_what_it_removed(place: Place) -> None:
    done = run_command(JOB, "--days=90")

    assert done.exit_code == 0
    assert [
        line.removeprefix("Removed: ")
        for line in done.out.splitlines()
        if line.startswith("Removed: ")
    ] == DUE
    assert f"Manifest written: {place.manifest(4)}\n" in done.out
    assert done.out.endswith("\nRemoved 2 archives (4 objects)\n")


def test_a_strangers_name_reaches_the_terminal_escaped(place: Place) -> None:
    place.write(HOSTILE.replace("\n", ""), b"")

    # run_command looks at each character.
    done = run_command(JOB)

    assert r"left alone: a\u000d\u001b[2K" in done.out


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "option",
    ["--days=0", "--days=-1", "--days=all", "--days=36501", "--since=2025-01-01"],
)
def test_a_wrong_option_exits_2_with_one_line(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = load_command_class("starview_app", JOB)

    with pytest.raises(SystemExit) as end:
        command.run_from_argv(["manage.py", JOB, option])

    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_removed_archives_cannot_be_restored(
    place: Place, bucket: LocalServices
) -> None:
    cleanup(bucket.aws_url)

    done = run_command("restore_audit_logs", JSON1)

    assert done.exit_code == 1
    assert JSON1 in done.error
    assert len(done.error.splitlines()) == 1
    assert AuditLog.objects.count() == 0


# -- a lock of the bucket ------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "kept"),
    [(".json", [JSON1, JSON2]), (".txt", [TXT1, TXT2]), ("", DUE)],
    ids=["json", "txt", "both"],
)
def test_what_a_lock_keeps_is_reported_and_removed_once_it_is_gone(
    suffix: str, kept: list[str], place: Place, bucket: LocalServices, s3: FailingS3
) -> None:
    s3.on("DeleteObject", LOCK, suffix=suffix)
    events: list[Event] = []

    result = cleanup(s3.url, events)

    locked, gone = len(kept), 4 - len(kept)
    assert result == JobResult(counts(found=2, objects=gone, kept_by_lock=locked))
    assert [e.name for e in events if isinstance(e, KeptByLock)] == kept
    assert place.archives() == {*NEWEST, *kept}
    assert verify().exit_code == 0
    assert cleanup(bucket.aws_url).counts["removed"] == 2
    assert_all_good(verify(), NEWEST)


def test_an_archive_that_the_lock_keeps_whole_is_still_read_back(
    place: Place, s3: FailingS3
) -> None:
    s3.on("DeleteObject", LOCK)
    cleanup(s3.url)
    place.write(JSON1, place.read(JSON1).upper())

    verdict = verify()

    assert verdict.bad == {("changed", JSON1)}
    assert verdict.good == OBJECTS - {JSON1}


def test_an_object_that_was_missing_before_it_was_due_is_not_passed_over(
    bucket: LocalServices,
) -> None:
    first = archive_one(bucket, EVENTS[0])
    archive_one(bucket, EVENTS[1])
    gone = min(first)
    Place(bucket).remove(gone)

    result = cleanup(bucket.aws_url)

    assert result.problems == [f"{gone} was missing before it was due"]
    assert result.counts["removed"] == 1
    assert result.counts["objects"] == 1


def test_while_the_lock_is_there_a_second_run_removes_nothing(
    place: Place, s3: FailingS3
) -> None:
    s3.on("DeleteObject", LOCK, suffix=".txt")
    cleanup(s3.url)
    names = place.names()
    events: list[Event] = []

    result = cleanup(s3.url, events, now=NOW + timedelta(days=1))

    # The JSON objects are gone since the first run.
    assert result == JobResult(counts(found=2, kept_by_lock=2))
    assert [event for event in events if isinstance(event, Removed)] == []
    assert place.names() == names


def test_a_lock_on_one_archive_does_not_keep_the_others(
    place: Place, s3: FailingS3
) -> None:
    s3.on("DeleteObject", LOCK, suffix=JSON1)
    s3.on("DeleteObject", LOCK, suffix=TXT1)

    result = cleanup(s3.url)

    assert result == JobResult(counts(found=2, removed=1, objects=2, kept_by_lock=2))
    assert_all_good(verify(), {JSON1, TXT1} | NEWEST)


def test_with_a_lock_the_command_exits_0_and_says_so(
    place: Place, s3: FailingS3, settings: Any
) -> None:
    settings.AWS_S3_ENDPOINT_URL = s3.url
    s3.on("DeleteObject", LOCK, suffix=".json")

    done = run_command(JOB)

    assert done.exit_code == 0
    assert f"Kept by a lock of the bucket: {JSON1}\n" in done.out
    assert done.out.endswith("\n2 objects are kept by a lock of the bucket\n")


# -- killed --------------------------------------------------------------------------

STEPS: dict[str, tuple[str, str, bool]] = {
    "before the first object": ("DeleteObject", ".json", False),
    "between JSON and text": ("DeleteObject", ".txt", False),
    "between two archives": ("DeleteObject", JSON2, False),
    "after the last object": ("DeleteObject", TXT2, True),
    "before the manifest is written": ("PutObject", "audit_manifest_", False),
    "after the manifest is written": ("PutObject", "audit_manifest_", True),
}


def wait_for_the_killed_session() -> None:
    """It, and its lock, ends when the server next speaks to it."""
    with session() as observer:
        observer.autocommit = True
        cursor = observer.cursor()

        def has_ended() -> bool:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s",
                [f"{JOB}%"],
            )
            return bool(cursor.fetchone() == (0,))

        wait_until(has_ended, "the killed run's session has ended")


@pytest.mark.parametrize(("operation", "word", "is_done"), STEPS.values(), ids=STEPS)
def test_the_next_run_completes_what_was_killed(
    operation: str,
    word: str,
    is_done: bool,  # noqa: FBT001 - a parameter of the test
    place: Place,
    bucket: LocalServices,
    test_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    with killed_at(
        bucket, test_environment, tmp_path, JOB, operation, word, is_done=is_done
    ):
        meanwhile = verify()
    wait_for_the_killed_session()
    afterwards = verify()

    completed = run_command(JOB)

    assert (meanwhile.exit_code, afterwards.exit_code) == (0, 0)
    assert completed.exit_code == 0
    assert states() == [State.REMOVED, State.REMOVED, State.ARCHIVED]
    assert_all_good(verify(), NEWEST)
    named = [
        place.content(number)["removed"] for number in range(4, manifests(place) + 1)
    ]
    assert sorted(itertools.chain(*named)) == sorted(DUE)


def test_asked_to_stop_it_lists_what_it_removed_and_leaves_the_rest(
    place: Place, bucket: LocalServices
) -> None:
    answers = itertools.chain([False], itertools.repeat(True))

    result = cleanup(bucket.aws_url, should_stop=lambda: next(answers))

    assert result == JobResult(counts(found=2, removed=1, objects=2), interrupted=True)
    assert_all_good(verify(), OBJECTS - {JSON1, TXT1})
    assert cleanup(bucket.aws_url).counts["removed"] == 1
    assert_all_good(verify(), NEWEST)


# -- the store fails -----------------------------------------------------------------


def failed(done: Done) -> str:
    assert done.exit_code == 1
    (line,) = done.error.splitlines()
    assert line.startswith("CommandError: ")
    return line


@pytest.mark.parametrize(
    ("suffix", "removed", "kept"),
    [
        (JSON1, 0, OBJECTS),
        (TXT1, 0, OBJECTS - {JSON1}),
        (JSON2, 1, OBJECTS - {JSON1, TXT1}),
        (TXT2, 1, OBJECTS - {JSON1, TXT1, JSON2}),
    ],
)
def test_when_the_store_fails_in_the_middle_the_next_run_completes(
    suffix: str,
    removed: int,
    kept: set[str],
    place: Place,
    s3: FailingS3,
    bucket: LocalServices,
    settings: Any,
) -> None:
    settings.AWS_S3_ENDPOINT_URL = s3.url
    s3.on("DeleteObject", refuse(403, "AccessDenied"), suffix=suffix, times=1)

    line = failed(run_command(JOB))
    found = place.archives()
    after_failure = verify()
    completed = run_command(JOB)

    assert f"{removed} archives are removed, the rest failed" in line
    assert "403 AccessDenied" in line
    assert found == kept
    assert after_failure.exit_code == 0
    assert completed.exit_code == 0
    assert_all_good(verify(), NEWEST)


@pytest.mark.parametrize("fault", [hang_up, lose_answer], ids=["reset", "lost_answer"])
def test_a_connection_lost_once_is_tried_again(
    fault: Callable[[Any], None], place: Place, s3: FailingS3
) -> None:
    s3.on("DeleteObject", fault, suffix=TXT1, times=1)

    assert cleanup(s3.url).counts["removed"] == 2
    assert_all_good(verify(), NEWEST)


def test_when_the_manifest_cannot_be_written_the_next_run_writes_it(
    place: Place, s3: FailingS3, settings: Any
) -> None:
    settings.AWS_S3_ENDPOINT_URL = s3.url
    s3.on("PutObject", refuse(403, "AccessDenied"), times=1)

    line = failed(run_command(JOB))
    after_failure = verify()
    completed = run_command(JOB)

    assert "2 archives are removed" in line
    assert_all_good(after_failure, NEWEST)
    assert completed.exit_code == 0
    assert place.content(4)["removed"] == DUE
    assert_all_good(verify(), NEWEST)


def test_when_the_store_cannot_be_listed_nothing_is_removed(
    place: Place, s3: FailingS3, settings: Any
) -> None:
    settings.AWS_S3_ENDPOINT_URL = s3.url
    s3.on("ListObjectsV2", refuse(403, "AccessDenied"))
    tables = contents()

    line = failed(run_command(JOB))

    assert "0 archives are removed" in line
    assert place.archives() == OBJECTS
    assert contents() == tables


# -- many objects --------------------------------------------------------------------


@pytest.mark.parametrize("hours", [520, pytest.param(1_250, marks=pytest.mark.soak)])
def test_of_more_objects_than_a_page_has_those_that_are_due_are_removed(
    hours: int, bucket: LocalServices
) -> None:
    # The oldest come last in the store's order: on its last page.
    archives = [
        {f"audit_logs_{2_000 - hour}.{kind}": b"x" for kind in ("json", "txt")}
        for hour in range(hours)
    ]
    on_record(archives, location=store(bucket.aws_url).location)
    write_manifest(bucket.aws_url)
    objects = {name: b"x" for archive in archives for name in archive}
    events: list[Event] = []
    put_many(bucket, {**objects, "zzz": b""})
    cutoff = EVENTS[0] + timedelta(hours=20)

    result = cleanup(bucket.aws_url, events, now=cutoff + timedelta(days=90))

    assert events[:2] == [Found(2 * hours + 2, 20, cutoff), Unknown("zzz")]
    assert result.counts == counts(found=20, removed=20, objects=40, unknown=1)
    Place(bucket).remove("zzz")
    removed = {name for archive in archives[:20] for name in archive}
    assert_all_good(verify("--sample=20"), objects.keys() - removed)


# -- beside another run --------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "operation", "other"),
    [
        ("archive_audit_logs", "PutObject", JOB),
        (JOB, "DeleteObject", "archive_audit_logs"),
        (JOB, "DeleteObject", JOB),
    ],
)
def test_of_the_jobs_that_write_to_the_chain_only_one_runs_at_a_time(
    running: str,
    operation: str,
    other: str,
    place: Place,
    bucket: LocalServices,
    test_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    add_rows(EVENTS[0])
    names = place.names()

    with killed_at(bucket, test_environment, tmp_path, running, operation) as process:
        done = run_command(other)

    assert done.exit_code == 75
    assert f"run of {running} is under way: {running} " in done.error
    assert f"pid {process.pid}" in done.error
    assert place.names() == names

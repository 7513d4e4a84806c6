"""archive_audit_logs, killed with SIGKILL: each row is archived once or in the table.

Processes are killed before each single effect, at each request to the store and in each
statement that may wait. Afterwards nothing is lost, and the next plain run leaves
nothing that an auditor would complain about. Random moments: test_archive_random_kills.
"""

from __future__ import annotations

import base64
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from demo.services import LocalServices
from starview_app.maintenance.models import AuditArchive, AuditManifest
from tests.archive_processes import (
    LEFT,
    NOVEMBER,
    OCTOBER,
    WAIT_SECONDS,
    Bucket,
    Command,
    Commands,
    Done,
    Folder,
    Hold,
    LosingPostgres,
    Place,
    Rows,
    add_rows,
    assert_each_row_once,
    assert_verified,
    table_rows,
    wait_for_sessions_to_end,
)
from tests.conftest import ROOT, kill_run, merged, socket_folder
from tests.factories import (
    execute,
    session,
    wait_until_blocked_by,
)
from tests.failing_s3 import FailingS3

pytestmark = pytest.mark.django_db(transaction=True)

JOB = "archive_audit_logs"
MOST_EFFECTS = 200  # a run of two segments has some 50


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


@pytest.fixture
def place(s3: FailingS3, bucket: LocalServices) -> Bucket:
    return Bucket(bucket, s3.url)


@pytest.fixture
def originals() -> Rows:
    """Two rows of each of two months, which make two segments."""
    user = User.objects.create(username="zoé")
    add_rows(OCTOBER, user=user)
    add_rows(NOVEMBER)
    return table_rows()


def end_the_jobs_sessions() -> None:
    execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'archive_audit_logs%'"
    )


def assert_nothing_is_lost(place: Place, originals: Rows) -> None:
    """Each row is in the table or in an object that its segment's record names."""
    objects = place.objects()
    kept = table_rows()
    rows = dict(kept)
    for record in AuditArchive.objects.filter(state="archived"):
        assert set(record.names) <= set(objects)
        for entry in record.objects_written:
            assert len(objects[entry["name"]]) == entry["size_bytes"]
        in_range = {
            number: row
            for number, row in originals.items()
            if record.first_timestamp
            <= datetime.fromisoformat(row["timestamp"])
            <= record.last_timestamp
        }
        assert rows.keys() & in_range.keys() == set()
        rows |= in_range
    assert rows == originals


def open_names() -> list[str]:
    """Of the one segment that is open, or none."""
    return [name for record in _open_records() for name in record.names]


def _open_records() -> list[AuditArchive]:
    records = list(AuditArchive.objects.filter(state="open"))
    assert len(records) <= 1
    return records


def assert_the_next_run_completes_it(
    commands: Commands, place: Place, originals: Rows
) -> Done:
    """What a killed run has left is settled, all is archived, and all is good."""
    done = assert_the_next_run_settles_it(commands, place, originals)
    checked = commands.run("verify_audit_archives", settings=place.settings)
    assert checked.code == 0, checked
    return done


def assert_the_next_run_settles_it(
    commands: Commands, place: Place, originals: Rows
) -> Done:
    assert_nothing_is_lost(place, originals)
    names = open_names()
    done = commands.run(JOB, settings=place.settings)
    assert done.code == 0, done
    settled = [line for line in done.out.splitlines() if line.startswith(LEFT)]
    expected = [f"{LEFT}undone: {', '.join(names)}"] if names else []
    assert settled == expected, done
    assert table_rows() == {}
    assert_each_row_once(place, originals)
    ended = ("archived", "abandoned")
    assert not AuditArchive.objects.exclude(state__in=ended).exists()
    assert AuditManifest.objects.filter(is_written=False).count() == 0
    return done


# -- before each effect --------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_folder", "options", "at", "timestamps"),
    [
        pytest.param(False, (), "before", (OCTOBER,), id="the bucket"),
        pytest.param(False, (), "after", (OCTOBER,), id="with a request under way"),
        *(
            pytest.param(
                *(is_folder, options, "before", (OCTOBER, NOVEMBER)),
                id=f"two segments, {'the folder' if is_folder else 'the bucket'}",
                marks=pytest.mark.soak,
            )
            for is_folder, options in ((False, ()), (True, ("--compress",)))
        ),
    ],
)
def test_killed_at_any_effect_the_next_run_completes_it(
    is_folder: bool,
    options: tuple[str, ...],
    at: str,
    timestamps: tuple[datetime, ...],
    commands: Commands,
    bucket: LocalServices,
    tmp_path: Path,
) -> None:
    place: Place = Folder(tmp_path / "archives") if is_folder else Bucket(bucket)
    moments = []
    for number in range(1, MOST_EFFECTS):
        for table in ("starview_app_auditlog", "maintenance_auditarchive"):
            execute(f"DELETE FROM {table}")
        execute("DELETE FROM maintenance_auditmanifest")
        place.empty()
        for timestamp in timestamps:
            add_rows(timestamp)
        rows = table_rows()

        done = commands.run(JOB, *options, settings=place.settings, **{at: number})
        wait_for_sessions_to_end()

        if not done.was_killed:
            break
        moments.append(done.err.splitlines()[-1])
        assert_the_next_run_settles_it(commands, place, rows)
        assert_verified(place.store)

    assert done.code == 0, done.err
    assert_each_row_once(place, rows)
    # Each segment and the manifest: as often as the effects are known to happen.
    effect = {"before": "c_call of Session.commit", "after": "sendall"}[at]
    least = 3 if at == "after" else len(timestamps) + 1
    assert sum(effect in moment for moment in moments) >= least


# -- at each request to the store ----------------------------------------------------

STEPS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "before the first object": ("PutObject", ".json", {}),
    "with the first stored and not answered": ("PutObject", ".json", {"is_done": True}),
    "half-way through its read-back": ("GetObject", ".json", {"half": True}),
    "before the second object": ("PutObject", ".txt", {}),
    "with the second stored and not answered": ("PutObject", ".txt", {"is_done": True}),
    "half-way through reading that back": ("GetObject", ".txt", {"half": True}),
}


@pytest.mark.parametrize(
    ("segment", "options"),
    [(1, ("--compress",)), (2, ())],
    ids=["first segment, gzip", "second segment"],
)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_request_the_next_run_archives_the_segment_anew(
    step: str,
    segment: int,
    options: tuple[str, ...],
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
    originals: Rows,
) -> None:
    operation, word, changes = STEPS[step]
    hold = Hold(s3, operation, word, nth=segment, **changes)
    running = commands.start(JOB, *options, settings=place.settings)

    hold.wait()
    killed = running.kill()
    hold.release(is_killed=True)
    wait_for_sessions_to_end()

    assert killed.was_killed
    assert len(table_rows()) == 6 - 2 * segment
    assert len(open_names()) == 2
    assert_the_next_run_completes_it(commands, place, originals)


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_what_a_killed_run_left_in_one_format_is_archived_in_the_next_runs_formats(
    kind: str, commands: Commands, s3: FailingS3, place: Bucket, originals: Rows
) -> None:
    hold = Hold(s3, "GetObject", f".{kind}")
    running = commands.start(JOB, f"--format={kind}", settings=place.settings)
    hold.wait()
    running.kill()
    hold.release(is_killed=True)
    wait_for_sessions_to_end()
    (name,) = open_names()

    done = commands.run(JOB, settings=place.settings)

    assert f"{LEFT}undone: {name}\n" in done.out
    assert name not in place.objects()
    assert len(place.objects()) == 5  # of two segments, and the manifest


@pytest.mark.parametrize(
    ("operation", "changes"),
    [
        ("PutObject", {}),
        ("PutObject", {"is_done": True}),
        ("GetObject", {"half": True}),
    ],
    ids=["planned", "written", "half-way read back"],
)
def test_killed_with_a_manifest_that_is_only(
    operation: str,
    changes: dict[str, bool],
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
    originals: Rows,
) -> None:
    hold = Hold(s3, operation, "audit_manifest_", **changes)
    running = commands.start(JOB, settings=place.settings)

    hold.wait()
    killed = running.kill()
    hold.release(is_killed=True)
    wait_for_sessions_to_end()

    assert killed.was_killed
    assert AuditManifest.objects.get().is_written is False
    done = assert_the_next_run_completes_it(commands, place, originals)
    assert f"Manifest written: {AuditManifest.objects.get().name}\n" in done.out


@pytest.mark.parametrize(
    ("operation", "nth", "changes", "options"),
    [
        pytest.param("UploadPart", 1, {}, (), id="in the first part"),
        pytest.param("UploadPart", 2, {}, ("--compress",), id="in the last, gzip"),
        pytest.param("CompleteMultipartUpload", 1, {}, (), id="at the end"),
        pytest.param(
            "CompleteMultipartUpload", 1, {"is_done": True}, (), id="behind the end"
        ),
    ],
)
def test_killed_during_an_upload_in_parts_no_part_stays(
    operation: str,
    nth: int,
    changes: dict[str, bool],
    options: tuple[str, ...],
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
) -> None:
    # 7 MB of JSON, and 5.25 once compressed: two parts of the smallest size.
    noise = base64.b64encode(random.Random(1).randbytes(5_250_000)).decode()
    add_rows(OCTOBER, 1, message=noise)
    rows = table_rows()
    hold = Hold(s3, operation, ".json", nth=nth, **changes)
    running = commands.start(
        JOB, *options, settings={**place.settings, "PART_BYTES": 5 << 20}
    )

    hold.wait()
    killed = running.kill()
    hold.release(is_killed=True)
    wait_for_sessions_to_end()

    assert killed.was_killed
    is_complete = operation == "CompleteMultipartUpload" and changes != {}
    assert len(place.unfinished()) == (not is_complete)
    assert_the_next_run_completes_it(commands, place, rows)


# -- in each statement of the database -----------------------------------------------

# What another session locks while the last object of the segment is read back, so that
# the job waits where it is then killed.
WAITS = {
    "in the DELETE": "SELECT id FROM starview_app_auditlog FOR UPDATE",
    "before the DELETE, in the mark": (
        "SELECT id FROM maintenance_auditarchive WHERE state = 'open' FOR UPDATE"
    ),
}


@contextmanager
def waiting_for(
    statement: str,
    segment: int,
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
) -> Iterator[Command]:
    """The job, waiting for a lock of another session until the block ends."""
    hold = Hold(s3, "GetObject", ".txt", nth=segment)
    running = commands.start(JOB, settings=place.settings)
    hold.wait()
    with session() as other:
        other.cursor().execute(statement)
        hold.release()
        wait_until_blocked_by(other)
        yield running
    wait_for_sessions_to_end()


@pytest.mark.parametrize("segment", [1, 2], ids=["first segment", "second segment"])
@pytest.mark.parametrize("statement", WAITS.values(), ids=WAITS)
def test_killed_in_a_statement_the_next_run_archives_the_segment_anew(
    statement: str,
    segment: int,
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
    originals: Rows,
) -> None:
    with waiting_for(statement, segment, commands, s3, place) as running:
        killed = running.kill()

    assert killed.was_killed
    assert len(table_rows()) == 6 - 2 * segment
    assert len(open_names()) == 2
    s3.calls.clear()
    assert_the_next_run_completes_it(commands, place, originals)
    assert s3.count("PutObject") == 2 * (3 - segment) + 1


@pytest.mark.parametrize("statement", WAITS.values(), ids=WAITS)
def test_when_the_database_restarts_in_a_statement_the_next_run_completes_it(
    statement: str, commands: Commands, s3: FailingS3, place: Bucket, originals: Rows
) -> None:
    with waiting_for(statement, 2, commands, s3, place) as running:
        end_the_jobs_sessions()
        done = running.finish()

    assert done.code == 1
    assert len(done.err.splitlines()) == 4  # started, one segment, finished, the line
    assert done.err.splitlines()[-1].startswith("CommandError: database: ")
    assert "HINT: the run was cut off" in done.err
    assert_the_next_run_completes_it(commands, place, originals)


def test_killed_before_the_manifest_is_planned_the_next_run_plans_it(
    commands: Commands, s3: FailingS3, place: Bucket, originals: Rows
) -> None:
    lock = "LOCK TABLE maintenance_auditmanifest IN SHARE MODE"
    with waiting_for(lock, 2, commands, s3, place) as running:
        killed = running.kill()

    assert killed.was_killed
    assert table_rows() == {}
    assert AuditManifest.objects.count() == 0
    assert_the_next_run_completes_it(commands, place, originals)


@contextmanager
def slow_commit() -> Iterator[Any]:
    """The commit of a segment waits for the lock of the session that this yields."""
    with session() as other:
        other.cursor().execute("SELECT pg_advisory_lock(42)")
        other.commit()
        execute(
            "CREATE FUNCTION wait_for_42() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END$$;"
            "CREATE CONSTRAINT TRIGGER slow_commit AFTER UPDATE"
            " ON maintenance_auditarchive DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW WHEN (NEW.state = 'archived' AND OLD.state = 'open')"
            " EXECUTE FUNCTION wait_for_42()"
        )
        try:
            yield other
        finally:
            other.close()
            execute(
                "DROP TRIGGER slow_commit ON maintenance_auditarchive;"
                "DROP FUNCTION wait_for_42"
            )


def test_killed_in_a_commit_that_happens_all_the_same_nothing_is_archived_twice(
    commands: Commands, place: Bucket, originals: Rows
) -> None:
    with slow_commit() as other:
        running = commands.start(JOB, settings=place.settings)
        wait_until_blocked_by(other)
        killed = running.kill()
        other.cursor().execute("SELECT pg_advisory_unlock(42)")
        wait_for_sessions_to_end()

    assert killed.was_killed
    assert len(table_rows()) == 2
    assert AuditArchive.objects.get().state == "archived"
    assert_the_next_run_completes_it(commands, place, originals)


def test_when_the_database_restarts_in_a_commit_the_objects_stay_for_the_next_run(
    commands: Commands, s3: FailingS3, place: Bucket, originals: Rows
) -> None:
    with slow_commit() as other:
        running = commands.start(JOB, settings=place.settings)
        wait_until_blocked_by(other)
        end_the_jobs_sessions()
        done = running.finish()

    assert done.code == 1
    assert len(done.err.splitlines()) == 3
    assert len(table_rows()) == 4
    assert set(place.objects()) == set(open_names())
    s3.calls.clear()
    assert_the_next_run_completes_it(commands, place, originals)
    assert s3.count("PutObject") == 5  # two segments and the manifest


@pytest.mark.parametrize("is_done", [True, False], ids=["committed", "not committed"])
def test_when_the_answer_to_the_commit_is_lost_no_object_is_removed(
    is_done: bool,
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
    originals: Rows,
    tmp_path: Path,
) -> None:
    proxy = LosingPostgres(
        Path(socket_folder()) / ".s.PGSQL.5432", tmp_path, is_done=is_done
    )
    done = commands.run(
        JOB,
        settings=place.settings,
        database={"OPTIONS": {"host": str(tmp_path)}},
    )
    proxy.close()
    wait_for_sessions_to_end()

    assert proxy.has_lost.is_set()
    assert done.code == 1
    assert len(done.err.splitlines()) == 3
    assert done.err.splitlines()[-1].startswith("CommandError: database: ")
    assert len(table_rows()) == (2 if is_done else 4)
    assert len(place.objects()) == 2
    assert len(open_names()) == (0 if is_done else 2)
    s3.calls.clear()
    assert_the_next_run_completes_it(commands, place, originals)
    assert s3.count("PutObject") == (3 if is_done else 5)
    assert s3.count("DeleteObject") == (0 if is_done else 2)


# -- two at once ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "at"),
    [
        (JOB, JOB, ("GetObject", ".json")),
        (JOB, "cleanup_audit_archives", ("GetObject", ".json")),
        ("cleanup_audit_archives", JOB, ("ListObjectsV2", "")),
    ],
)
def test_a_second_run_beside_the_first_ends_with_75_and_one_line(
    first: str,
    second: str,
    at: tuple[str, str],
    commands: Commands,
    s3: FailingS3,
    place: Bucket,
    originals: Rows,
) -> None:
    hold = Hold(s3, *at)
    running = commands.start(first, settings=place.settings)
    hold.wait()

    refused = commands.run(second, settings={"AWS_S3_ENDPOINT_URL": "http://[::1]:9"})
    hold.release()
    done = running.finish()

    (line,) = refused.err.splitlines()
    assert refused.code == 75
    assert re.match(rf"CommandError: an?(other)? run of {first} is under way: ", line)
    assert refused.out == ""
    assert done.code == 0, done
    assert (table_rows() == {}) == (first == JOB)


# -- as an operator starts it --------------------------------------------------------


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """The project as a developer has it, so that `audit_archives` is its own."""
    shutil.copytree(ROOT / "starview", tmp_path / "starview")
    shutil.copy(ROOT / "manage.py", tmp_path)
    (tmp_path / "starview_app").symlink_to(ROOT / "starview_app")
    return tmp_path


def start_on(
    laptop: Path, environment: dict[str, str], command: str, **options: Any
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", command],
        cwd=laptop,
        env=merged(environment, {"DEBUG": "True", "PYTHONDONTWRITEBYTECODE": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_on_a_laptop_a_killed_run_is_settled_by_the_next_one(
    laptop: Path, test_environment: dict[str, str], originals: Rows
) -> None:
    place = Folder(laptop / "audit_archives")
    with session() as other:
        other.cursor().execute("SELECT id FROM starview_app_auditlog FOR UPDATE")
        killed = start_on(laptop, test_environment, JOB)
        wait_until_blocked_by(other)
        kill_run(killed)
        killed.communicate(timeout=WAIT_SECONDS)
    wait_for_sessions_to_end()
    names = open_names()
    (place.folder / f".{names[0]}.x.part").write_text("half")

    done = start_on(laptop, test_environment, JOB)
    out, err = done.communicate(timeout=WAIT_SECONDS)

    assert done.returncode == 0, err
    assert f"{LEFT}undone: {', '.join(names)}\n" in out
    assert table_rows() == {}
    assert_each_row_once(place, originals)


def test_on_a_full_disk_it_is_one_line_and_the_next_run_works(
    laptop: Path, test_environment: dict[str, str]
) -> None:
    add_rows(OCTOBER, 3, message="x" * 10_000)
    rows = table_rows()
    place = Folder(laptop / "audit_archives")
    full = start_on(
        laptop,
        test_environment,
        JOB,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)
        ),
    )
    _, err = full.communicate(timeout=WAIT_SECONDS)

    assert full.returncode == 1
    assert len(err.splitlines()) == 3, err
    assert "nothing was deleted" in err
    assert "File too large" in err
    assert (place.objects(), place.unfinished()) == ({}, [])
    assert table_rows() == rows
    done = start_on(laptop, test_environment, JOB)
    _, err = done.communicate(timeout=WAIT_SECONDS)
    assert done.returncode == 0, err
    assert_each_row_once(place, rows)

"""archive_audit_logs --workers: any number of processes share one archive.

Each worker is a process, and each signal is a real one. At every end each row is in the
table or in one archive, the manifests are one chain, and verification finds nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demo.services import LocalServices
from starview_app.maintenance.jobs.audit_archive.sharing import claims as sharing_claims
from starview_app.maintenance.models import AuditArchive, AuditManifest
from tests.archive_processes import (
    NOVEMBER,
    OCTOBER,
    QUICK,
    Bucket,
    Command,
    Commands,
    Folder,
    Hold,
    Rows,
    add_rows,
    archived_rows,
    assert_each_row_once,
    assert_verified,
    table_rows,
    wait_for_sessions_to_end,
)
from tests.factories import (
    in_thread,
    session,
    wait_until,
    wait_until_blocked,
    wait_until_blocked_by,
)
from tests.failing_s3 import FailingS3
from tests.pgbouncer import Pooler

pytestmark = pytest.mark.django_db(transaction=True)

JOB = "archive_audit_logs"
ALONE = "--workers=1"


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


@pytest.fixture
def place(s3: FailingS3, bucket: LocalServices) -> Bucket:
    return Bucket(bucket, s3.url)


def add_days(days: int, first: datetime = OCTOBER) -> None:
    """Ten rows a day: with `--segment-rows=10` as many segments."""
    for day in range(days):
        add_rows(first + timedelta(days=day), count=10)


def workers_of(running: Command) -> list[int]:
    """Their processes, once there are any."""
    path = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    wait_until(lambda: bool(path.read_text().split()), "a worker is there")
    return [int(pid) for pid in path.read_text().split()]


def assert_all_archived(place: Bucket | Folder, originals: Rows) -> None:
    assert table_rows() == {}
    assert_each_row_once(place, originals)
    ended = ("archived", "abandoned")
    assert not AuditArchive.objects.exclude(state__in=ended).exists()
    assert not AuditManifest.objects.filter(is_written=False).exists()
    assert_verified(place.store)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_so_many_workers_archive_the_same_rows_in_one_manifest(
    workers: int, commands: Commands, place: Bucket
) -> None:
    add_days(12)
    originals = table_rows()

    done = commands.run(
        JOB, f"--workers={workers}", "--segment-rows=10", settings=place.settings
    )

    assert done.code == 0, done
    assert done.out.count("\nJSON archive uploaded to R2: ") == 12
    assert done.out.count("\nManifest written: ") == 1
    assert "\nArchived 120 audit logs\n" in done.out
    assert "archived=120" in done.err
    assert AuditArchive.objects.count() == 12  # nobody did a segment in vain
    assert_all_archived(place, originals)


def test_workers_archive_to_a_folder_as_well(
    commands: Commands, tmp_path: Path
) -> None:
    place = Folder(tmp_path / "archives")
    add_days(6)
    originals = table_rows()

    done = commands.run(
        JOB, "--workers=3", "--segment-rows=10", "--compress", settings=place.settings
    )

    assert done.code == 0, done
    assert_all_archived(place, originals)


def test_workers_without_anything_to_do_end_well(
    commands: Commands, place: Bucket
) -> None:
    done = commands.run(JOB, "--workers=2", settings=place.settings)

    assert done.code == 0, done
    assert place.names() == []


# -- several commands ----------------------------------------------------------------


def test_a_second_command_does_what_the_first_one_has_not_claimed(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(8)
    originals = table_rows()
    hold = Hold(s3, "PutObject", ".json")
    first = commands.start(JOB, ALONE, "--segment-rows=10", settings=place.settings)
    hold.wait()

    second = commands.run(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    hold.release()
    done = first.finish()

    assert second.code == done.code == 0, (second, done)
    assert "\nArchived 70 audit logs\n" in second.out
    assert "\nArchived 10 audit logs\n" in done.out
    assert_all_archived(place, originals)


def test_commands_with_other_segments_share_without_an_overlap(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(2)
    hold = Hold(s3, "PutObject", ".json")
    first = commands.start(JOB, ALONE, "--segment-rows=7", settings=place.settings)
    hold.wait()
    add_rows(OCTOBER - timedelta(hours=1), count=3)  # in front of what is claimed
    originals = table_rows()

    second = commands.run(JOB, ALONE, "--segment-rows=1000", settings=place.settings)
    hold.release()
    done = first.finish()

    assert second.code == done.code == 0, (second, done)
    assert AuditArchive.objects.filter(state="abandoned").count() == 0
    assert_all_archived(place, originals)


@pytest.mark.parametrize("options", [(ALONE, ""), ("", ALONE)])
def test_a_command_that_is_to_be_alone_is_beside_no_other(
    options: tuple[str, str], commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(2)
    originals = table_rows()
    hold = Hold(s3, "PutObject", ".json")
    one, other = (filter(None, (option,)) for option in options)
    first = commands.start(JOB, *one, settings=place.settings)
    hold.wait()

    refused = commands.run(JOB, *other, settings=place.settings)
    hold.release()

    assert refused.code == 75, refused
    assert "another run of archive_audit_logs is under way" in refused.err
    assert first.finish().code == 0
    assert_all_archived(place, originals)


def test_the_clean_up_waits_for_workers_as_for_a_run(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(1)
    hold = Hold(s3, "PutObject", ".json")
    first = commands.start(JOB, ALONE, settings=place.settings)
    hold.wait()

    refused = commands.run("cleanup_audit_archives", settings=place.settings)
    hold.release()

    assert refused.code == 75, refused
    assert first.finish().code == 0


def test_a_worker_between_its_claim_and_its_lease_is_not_taken_for_gone(
    commands: Commands, place: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_days(1)
    originals = table_rows()
    with session() as claims, session() as rows:
        claims.cursor().execute("LOCK TABLE maintenance_auditarchive IN SHARE MODE")
        worker = commands.start(JOB, ALONE, settings=place.settings)
        wait_until_blocked_by(claims)  # it is about to claim
        lock = "LOCK TABLE starview_app_auditlog IN ACCESS EXCLUSIVE MODE"
        with in_thread(lambda: rows.cursor().execute(lock)):
            wait_until_blocked(rows)  # and comes before its archive
            claims.commit()
        wait_until_blocked_by(rows)

        def has_its_lease() -> bool:
            return not AuditArchive.objects.filter(state="open").exists()

        def look_again(seconds: float) -> None:
            rows.rollback()
            wait_until(has_its_lease, "it has archived")

        monkeypatch.setattr(time, "sleep", look_again)
        left = sharing_claims.abandon_left_open(place.store.location)

    assert left == []
    assert worker.finish().code == 0
    assert AuditArchive.objects.count() == 1
    assert_all_archived(place, originals)


# -- killed, stopped, frozen ---------------------------------------------------------


def test_the_segment_of_a_killed_worker_is_archived_by_another_one(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(6)
    originals = table_rows()
    hold = Hold(s3, "GetObject", "20241005")
    running = commands.start(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    hold.wait()
    # The other one goes on, until it has done all that is free.
    wait_until(lambda: AuditArchive.objects.count() == 6, "all is claimed")
    for pid in workers_of(running):
        os.kill(pid, signal.SIGKILL)
    hold.release(is_killed=True)

    done = running.finish()

    assert done.code == 0, done
    assert "worker_ended" in done.err
    assert "exit_code=-9" in done.err
    assert "\nArchived 60 audit logs\n" in done.out
    assert_all_archived(place, originals)


def test_with_the_command_its_workers_are_killed(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(4)
    originals = table_rows()
    hold = Hold(s3, "PutObject", ".json")
    running = commands.start(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    hold.wait()

    running.kill()
    hold.release(is_killed=True)
    wait_for_sessions_to_end()

    assert_each_of_them_is_somewhere(originals)
    done = commands.run(JOB, "--workers=2", settings=place.settings)
    assert done.code == 0, done
    assert_all_archived(place, originals)


def assert_each_of_them_is_somewhere(originals: Rows) -> None:
    archived = AuditArchive.objects.filter(state="archived")
    assert len(table_rows()) + sum(record.row_count for record in archived) == len(
        originals
    )


def test_a_stop_reaches_the_workers_and_the_next_run_does_the_rest(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(4)
    originals = table_rows()
    hold = Hold(s3, "PutObject", ".json")
    running = commands.start(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    hold.wait()
    os.kill(running.pid, signal.SIGTERM)
    hold.release()

    stopped = running.finish()

    assert stopped.code == 1, stopped
    assert "was stopped by SIGTERM before it was done" in stopped.err
    assert len(table_rows()) > 0
    done = commands.run(JOB, settings=place.settings)
    assert done.code == 0, done
    assert_all_archived(place, originals)


def test_a_worker_that_a_stop_finds_waiting_undoes_its_segment_before_it_is_killed(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(4)
    hold = Hold(s3, "PutObject", ".json")
    running = commands.start(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    hold.wait()
    os.kill(running.pid, signal.SIGTERM)

    stopped = running.finish()
    hold.release()

    assert stopped.code == 1, stopped
    left = AuditArchive.objects.exclude(state__in=("archived", "abandoned"))
    assert not left.exists()


def test_without_its_sessions_a_command_and_its_workers_end_and_nothing_is_lost(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(4)
    originals = table_rows()
    hold = Hold(s3, "PutObject", ".json")
    running = commands.start(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    hold.wait()
    running.end_sessions()  # its lock's, and those of its workers
    hold.release()

    cut_off = running.finish()

    assert cut_off.code == 1, cut_off
    assert "lost its lock and was stopped" in cut_off.err
    done = commands.run(JOB, settings=place.settings)
    assert done.code == 0, done
    assert_all_archived(place, originals)


def test_workers_share_behind_a_pooler(
    commands: Commands, place: Bucket, pooler: Pooler
) -> None:
    add_days(8)
    originals = table_rows()

    done = commands.run(
        *(JOB, "--workers=3", "--segment-rows=10"),
        settings=place.settings,
        database=pooler(20),
    )

    assert done.code == 0, done
    assert AuditArchive.objects.count() == 8
    assert_all_archived(place, originals)


def test_a_frozen_worker_keeps_its_segment_and_nobody_waits_for_it(
    commands: Commands, s3: FailingS3, place: Bucket
) -> None:
    add_days(3)
    originals = table_rows()
    frozen = commands.start(
        JOB, ALONE, "--segment-rows=10", settings=place.settings, freeze_before=6
    )
    assert frozen.freezes()

    others = commands.run(
        JOB,
        "--workers=2",
        "--segment-rows=10",
        settings=place.settings,
        constants=QUICK,
    )
    assert others.code == 0, others
    frozen.thaw()

    woken = frozen.finish()
    assert woken.code == 0, woken
    assert "\nArchived 20 audit logs\n" in others.out
    assert "\nArchived 10 audit logs\n" in woken.out
    assert_all_archived(place, originals)


@pytest.mark.parametrize("step", range(1, 12))
def test_a_frozen_worker_that_wakes_when_others_have_its_segment_does_no_harm(
    step: int, commands: Commands, place: Bucket
) -> None:
    add_days(2)
    originals = table_rows()
    frozen = commands.start(
        JOB, ALONE, "--segment-rows=10", settings=place.settings, freeze_before=step
    )
    assert frozen.freezes()
    frozen.end_sessions()

    others = commands.run(
        JOB, "--workers=2", "--segment-rows=10", settings=place.settings
    )
    archived = archived_names()
    frozen.thaw()
    woken = frozen.finish()

    assert others.code == 0, others
    assert woken.code == 1, woken
    assert archived == archived_names()
    assert commands.run(JOB, ALONE, settings=place.settings).code == 0
    assert_all_archived(place, originals)


def archived_names() -> list[list[str]]:
    records = AuditArchive.objects.filter(state="archived").order_by("id")
    return [record.names for record in records]


def test_rows_of_another_month_are_another_workers(
    commands: Commands, place: Bucket
) -> None:
    add_rows(OCTOBER, count=5)
    add_rows(NOVEMBER, count=5)
    add_rows(datetime.now(UTC), count=1)
    originals = table_rows()

    done = commands.run(JOB, "--workers=2", settings=place.settings)

    assert done.code == 0, done
    assert len(archived_rows(place)) == 10
    assert_each_row_once(place, originals)

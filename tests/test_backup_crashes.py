"""Backups and restores in trouble: killed or frozen anywhere, or beside another run.

The seed is shown when the test fails; CRASH_SEED=... repeats its choices.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable
from functools import partial

import psutil  # type: ignore[import-untyped]
import pyrage
import pytest
from django.db import connection

from demo.services import BUCKET, LocalServices
from starview_app.maintenance.models import Backup
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.stores.configured import BACKUP_PREFIX
from tests.archive_processes import Command, Commands, Done, Hold
from tests.factories import (
    days_ago,
    execute,
    make_accounts,
    other_session,
    wait_until,
)
from tests.failing_s3 import FailingS3
from tests.sizes import sizes

pytestmark = pytest.mark.django_db(transaction=True)

State = Backup.State
JOB = "backup_database"
# A frozen run may hold a row that another one wants to change.
QUICK: dict[str, float | str] = {
    "starview_app.maintenance.jobs.database_backup.records.LOCK_TIMEOUT_MS": 300
}
ONLY_NEWEST = ("--keep-daily=1", "--keep-weekly=0", "--keep-monthly=0")


@pytest.fixture
def start(
    commands: Commands, bucket: LocalServices, backup_path: str
) -> Callable[..., Command]:
    create_own_tables()
    make_accounts(3, joined=days_ago(1))
    return partial(
        commands.start,
        JOB,
        settings={"AWS_S3_ENDPOINT_URL": bucket.aws_url},
        environment={"PATH": backup_path},
        constants=QUICK,
    )


@pytest.fixture
def restore(
    commands: Commands, bucket: LocalServices, backup_path: str, target: str
) -> Callable[..., Command]:
    return partial(
        commands.start,
        *("restore_database", "newest", "--into", target),
        settings={"AWS_S3_ENDPOINT_URL": bucket.aws_url},
        environment={"PATH": backup_path},
    )


@pytest.fixture
def run(start: Callable[..., Command]) -> Callable[..., Done]:
    def call(*words: str, **options: object) -> Done:
        """With the job's lock: a killed run's ends when the server notices."""
        wait_for_sessions_to_end()
        return start(*words, **options).finish()

    return call


def wait_for_sessions_to_end() -> None:
    def none_left() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                f" WHERE application_name ~ '^({JOB}|restore_database|pg_)'"
            )
            return bool(cursor.fetchone() == (0,))

    wait_until(none_left, "the killed run's sessions have ended")


def stored(bucket: LocalServices) -> dict[str, bytes]:
    return {
        found.key.removeprefix(BACKUP_PREFIX): bucket.read_object(found.key)
        for found in bucket.archived_objects()
    }


def assert_good_ones_are_there(bucket: LocalServices) -> list[Backup]:
    """Every good backup is in the store as it is on record; the newest first."""
    objects = stored(bucket)
    good = list(Backup.objects.filter(state=State.GOOD).order_by("-started_at", "-id"))
    for record in good:
        body = objects[record.name]
        assert (len(body), hashlib.sha256(body).hexdigest()) == (
            record.size_bytes,
            record.sha256,
        )
        assert f"{record.name}.json" in objects
    return good


def assert_clean(bucket: LocalServices) -> None:
    """Nothing but good backups, on record and in the store; no database left."""
    good = assert_good_ones_are_there(bucket)
    assert good
    names = {name for record in good for name in (record.name, f"{record.name}.json")}
    assert set(stored(bucket)) == names
    assert not Backup.objects.filter(state__in=[State.OPEN, State.REMOVING]).exists()
    assert not bucket.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def drill_databases() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname,"
            " 'starview_drill_' || (SELECT oid FROM pg_database"
            " WHERE datname = current_database()))"
        )
        return [name for (name,) in cursor.fetchall()]


def make_older() -> None:
    """As if a day had passed: so that backups of this test have an order, and go.

    Not while a run is frozen, which may hold a row.
    """
    execute("UPDATE maintenance_backup SET started_at = started_at - INTERVAL '1 day'")


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(10**9))
    print(f"CRASH_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    return random.Random(seed)


@pytest.mark.parametrize(("words", "rounds"), sizes(4, soak=40, long=400, of=[]))
def test_killed_anywhere_the_last_good_backup_stays_and_the_next_run_cleans_up(
    words: list[str],
    rounds: int,
    start: Callable[..., Command],
    run: Callable[..., Done],
    bucket: LocalServices,
    rng: random.Random,
) -> None:
    assert run().code == 0
    killed = 0

    while killed < rounds:
        make_older()
        (last, *_) = assert_good_ones_are_there(bucket)
        words = rng.choice([[*ONLY_NEWEST], [*ONLY_NEWEST], ["--drill"]])
        wait_for_sessions_to_end()
        if rng.random() < 0.5:
            running = start(*words, freeze_before=rng.randrange(1, 20))
            has_frozen = running.freezes()
        else:
            running = start(*words)
            has_frozen = running.freeze_after(rng.uniform(0.05, 0.8))
        if has_frozen:
            running.kill()
            killed += 1
        # Killed as well: what was good before is good, or a newer one is.
        newest = assert_good_ones_are_there(bucket)[0]
        assert newest.started_at >= last.started_at
        if rng.random() < 0.3:
            done = run(*ONLY_NEWEST)
            assert done.code == 0, done
            assert_clean(bucket)

    make_older()
    done = run(*ONLY_NEWEST)
    assert done.code == 0, done
    assert_clean(bucket)
    proved = run("--drill")
    assert proved.code == 0, proved
    assert drill_databases() == []


@pytest.mark.parametrize(("words", "rounds"), sizes(2, soak=15, long=150, of=[]))
def test_a_restore_that_is_killed_leaves_all_or_nothing(
    words: list[str],
    rounds: int,
    run: Callable[..., Done],
    restore: Callable[..., Command],
    target: str,
    bucket: LocalServices,
    rng: random.Random,
) -> None:
    assert run().code == 0
    tables = tables_of(str(connection.settings_dict["NAME"]))
    killed = 0

    while killed < rounds:
        running = restore(*words)
        if running.freeze_after(rng.uniform(0.3, 1.2)):
            for program in psutil.Process(running.pid).children():
                program.kill()  # as when a container is killed
            running.kill()
            killed += 1
        wait_for_sessions_to_end()
        if found := tables_of(target):  # it was done, or as good as done
            assert found == tables
            recreate(target)
    done = restore().finish()

    assert done.code == 0, done  # it has compared the rows
    assert tables_of(target) == tables
    assert_clean(bucket)


def tables_of(database: str) -> set[str]:
    with other_session(database) as rows:
        found = rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {name for (name,) in found}


def recreate(database: str) -> None:
    execute(f"DROP DATABASE {database} WITH (FORCE)")
    execute(f"CREATE DATABASE {database}")


def steps(first: int, last: int, *, in_test: tuple[int, ...]) -> list[object]:
    """Where to freeze: some of them in the suite, each in a soak."""
    return [
        number if number in in_test else pytest.param(number, marks=pytest.mark.soak)
        for number in range(first, last + 1)
    ]


@pytest.mark.parametrize("step", steps(1, 20, in_test=(3, 7)))
def test_a_frozen_run_that_wakes_up_after_others_does_no_harm(
    step: int,
    start: Callable[..., Command],
    run: Callable[..., Done],
    bucket: LocalServices,
) -> None:
    assert run().code == 0
    make_older()
    # As if its lock had been lost, and nobody had noticed.
    sleeper = start(*ONLY_NEWEST, locked=False, freeze_before=step)
    has_frozen = sleeper.freezes()

    other = start(*ONLY_NEWEST, locked=False).finish()
    assert_good_ones_are_there(bucket)
    sleeper.thaw()
    done = sleeper.finish()

    if has_frozen:
        assert "Traceback" not in done.err, done
        assert other.code == 0, other
    (last, *_) = assert_good_ones_are_there(bucket)
    done = run(*ONLY_NEWEST)
    assert done.code == 0, done
    assert_clean(bucket)
    assert Backup.objects.get(state=State.GOOD).pk > last.pk
    assert run("--drill").code == 0


def test_one_that_was_given_up_meanwhile_says_so_and_removes_its_own(
    start: Callable[..., Command], run: Callable[..., Done], bucket: LocalServices
) -> None:
    with FailingS3(bucket.aws_url) as s3:
        hold = Hold(s3, "PutObject", ".dump.json")
        sleeper = start(locked=False, settings={"AWS_S3_ENDPOINT_URL": s3.url})
        hold.wait()

        other = start(locked=False).finish()
        hold.release()
        done = sleeper.finish()

    assert other.code == 0, other
    assert done.code == 1
    assert "another run has given up database_" in done.err
    assert_clean(bucket)


def test_a_backup_that_another_run_makes_meanwhile_is_not_taken_for_lost(
    start: Callable[..., Command], bucket: LocalServices
) -> None:
    with FailingS3(bucket.aws_url) as s3:
        # The store has answered: what comes later is not in this listing.
        hold = Hold(s3, "ListObjectsV2", "", nth=2, is_done=True)
        sleeper = start(locked=False, settings={"AWS_S3_ENDPOINT_URL": s3.url})
        hold.wait()

        other = start(locked=False).finish()
        hold.release()
        done = sleeper.finish()

    assert (other.code, done.code) == (0, 0), (other, done)
    assert not Backup.objects.filter(state=State.LOST).exists()
    assert_good_ones_are_there(bucket)


def test_a_second_run_beside_the_first_is_refused(
    start: Callable[..., Command], bucket: LocalServices
) -> None:
    with FailingS3(bucket.aws_url) as s3:
        hold = Hold(s3, "PutObject", ".dump")
        first = start(settings={"AWS_S3_ENDPOINT_URL": s3.url})
        hold.wait()

        second = start().finish()
        hold.release()

    assert second.code == 75, second
    assert first.finish().code == 0
    assert_clean(bucket)


KEY = str(pyrage.x25519.Identity.generate())


@pytest.mark.parametrize("key", ["", KEY], ids=["plain", "encrypted"])
def test_a_run_that_is_told_to_stop_gives_its_backup_up(
    key: str, start: Callable[..., Command], bucket: LocalServices
) -> None:
    with FailingS3(bucket.aws_url) as s3:
        hold = Hold(s3, "PutObject", ".dump")
        running = start(
            settings={"AWS_S3_ENDPOINT_URL": s3.url, "BACKUP_ENCRYPTION_KEY": key},
            constants={"starview_app.maintenance.running.stop.GRACE_SECONDS": 0.1},
        )
        hold.wait()

        os.kill(running.pid, signal.SIGTERM)
        done = running.finish()
        hold.release(is_killed=True)

    assert done.code == 1, done
    assert "was stopped by SIGTERM before it was done" in done.err
    assert Backup.objects.get().state == State.ABANDONED
    assert stored(bucket) == {}


def test_a_drill_that_is_told_to_stop_leaves_no_database(
    start: Callable[..., Command], run: Callable[..., Done], bucket: LocalServices
) -> None:
    assert run().code == 0
    with FailingS3(bucket.aws_url) as s3:
        hold = Hold(s3, "GetObject", ".dump", nth=2)  # it has compared the object
        running = start(
            "--drill",
            settings={"AWS_S3_ENDPOINT_URL": s3.url},
            constants={"starview_app.maintenance.running.stop.GRACE_SECONDS": 0.1},
        )
        hold.wait()
        assert len(drill_databases()) == 1

        os.kill(running.pid, signal.SIGTERM)
        done = running.finish()
        hold.release(is_killed=True)

    assert done.code == 1, done
    assert drill_databases() == []
    assert Backup.objects.get().proved_at is None

"""backup_database and restore_database, with real programs, a server and a store."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import quote

import pyrage
import pytest
from django.db import OperationalError, ProgrammingError, connection
from django.db.backends.utils import CursorWrapper

from demo.services import BUCKET, LocalServices
from starview_app.maintenance.database_errors import explain
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.history.health import check_health
from starview_app.maintenance.jobs.database_backup.backup import _snapshot
from starview_app.maintenance.jobs.database_backup.contents import (
    Contents,
    Table,
    differences,
    read_sequences,
    read_tables,
)
from starview_app.maintenance.jobs.database_backup.drill import _execute
from starview_app.maintenance.jobs.database_backup.keep import Keep, kept
from starview_app.maintenance.jobs.database_backup.restore import (
    session as session_in,
)
from starview_app.maintenance.jobs.database_backup.transfer import read_begin, send
from starview_app.maintenance.models import Backup
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.stores.configured import BACKUP_PREFIX
from starview_app.maintenance.stores.folder import FolderStore
from tests import failing_s3
from tests.archive_processes import Commands
from tests.conftest import Manage
from tests.factories import (
    days_ago,
    execute,
    make_accounts,
    other_session,
    session,
)
from tests.failing_s3 import FailingS3
from tests.pgbouncer import Pooler

pytestmark = pytest.mark.django_db(transaction=True)

State = Backup.State
Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def run(manage: Manage, bucket: LocalServices, backup_path: str) -> Run:
    def call(*words: str, **variables: str | None) -> CompletedProcess[str]:
        done = manage(*words, env={"PATH": backup_path, **variables})
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    """Between the commands and the store, when they get its `url`."""
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _accounts() -> None:
    create_own_tables()
    make_accounts(3, joined=days_ago(1))


def names(bucket: LocalServices) -> list[str]:
    return [
        found.key.removeprefix(BACKUP_PREFIX) for found in bucket.archived_objects()
    ]


def objects_of(*records: Backup) -> list[str]:
    return sorted(
        name for record in records for name in (record.name, f"{record.name}.json")
    )


def put(bucket: LocalServices, name: str, body: bytes) -> None:
    bucket.s3.put_object(Bucket=BUCKET, Key=BACKUP_PREFIX + name, Body=body)


def drill_databases() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname,"
            " 'starview_drill_' || (SELECT oid FROM pg_database"
            " WHERE datname = current_database()))"
        )
        return [name for (name,) in cursor.fetchall()]


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# -- a backup ------------------------------------------------------------------------


def test_a_backup_is_written_read_back_and_on_record(
    run: Run, bucket: LocalServices
) -> None:
    done = run("backup_database")

    assert done.returncode == 0, done.stderr
    record = Backup.objects.get()
    assert record.state == State.GOOD
    assert names(bucket) == objects_of(record)
    assert re.fullmatch(
        r"database_\d{4}-\d\d-\d\dT\d{6}Z_[0-9a-f]{16}\.dump", record.name
    )
    assert f"SHA-256 {record.sha256}" in done.stdout
    assert record.contents["tables"]["public.auth_user"][0] == 3
    assert done.stdout.endswith("Kept 1, removed 0\n")


def test_a_dry_run_makes_nothing(run: Run, bucket: LocalServices) -> None:
    done = run("backup_database", "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "Dry run: would make a backup, keep 1 and remove 0; nothing changed\n"
    )
    assert (names(bucket), Backup.objects.count()) == ([], 0)


def test_a_backup_does_not_hold_the_records_of_backups(
    run: Run, target: str, services: LocalServices
) -> None:
    run("backup_database")
    run("backup_database")

    run("restore_database", "newest", f"--into={target}")

    with other_session(target) as rows:
        assert rows("SELECT count(*) FROM maintenance_backup") == [(0,)]
        assert rows("SELECT count(*) FROM auth_user") == [(3,)]


@pytest.fixture
def other_schema() -> Iterator[str]:
    """The records of backups are in a schema of its own, not in public."""
    execute("CREATE SCHEMA app")
    execute("ALTER TABLE maintenance_backup SET SCHEMA app")
    yield "app"
    execute("ALTER TABLE app.maintenance_backup SET SCHEMA public")
    execute("DROP SCHEMA app")


def test_the_records_are_left_out_whatever_schema_they_are_in(
    other_schema: str, run: Run, target: str, test_environment: dict[str, str]
) -> None:
    url = f"{test_environment['DATABASE_URL']}&currentSchema={other_schema},public"
    run("backup_database", DATABASE_URL=url)
    run("backup_database", DATABASE_URL=url)

    done = run("restore_database", "newest", f"--into={target}", DATABASE_URL=url)

    assert done.returncode == 0, done.stderr
    with other_session(target) as rows:
        assert rows("SELECT count(*) FROM app.maintenance_backup") == [(0,)]
        assert rows("SELECT count(*) FROM auth_user") == [(3,)]


def test_options_of_the_database_reach_pg_dump_and_its_password_is_in_no_list(
    run: Run, tmp_path: Path, backup_path: str, test_environment: dict[str, str]
) -> None:
    real = next(
        folder
        for folder in backup_path.split(os.pathsep)
        if (Path(folder) / "pg_dump").exists()
    )
    log = tmp_path / "calls"
    program(
        tmp_path,
        "pg_dump",
        f'echo "$@" >>{log}\necho "has=$PGPASSWORD" >>{log}\nexec {real}/pg_dump "$@"',
    )
    password = "hunter2-of-the-database"
    url = test_environment["DATABASE_URL"].replace("postgres@", f"postgres:{password}@")

    done = run(
        "backup_database",
        PATH=f"{tmp_path}{os.pathsep}{backup_path}",
        DATABASE_URL=f"{url}&sslmode=prefer&keepalives_idle=61",
    )

    assert done.returncode == 0, done.stderr
    said = log.read_text()
    assert "sslmode=prefer" in said
    assert "keepalives_idle=61" in said
    assert "connection_factory" not in said
    assert said.count(password) == 1
    assert f"has={password}" in said
    assert password not in done.stdout + done.stderr


def test_an_older_pg_dump_is_refused_with_the_fix(
    run: Run, tmp_path: Path, backup_path: str, bucket: LocalServices
) -> None:
    program(tmp_path, "pg_dump", "echo 'pg_dump (PostgreSQL) 13.4 (Debian 13.4-1)'")

    done = run("backup_database", PATH=f"{tmp_path}{os.pathsep}{backup_path}")

    assert done.returncode == 1
    assert "pg_dump is of PostgreSQL 13 and the server of 18" in done.stderr
    assert "change the stage `postgresql` of Dockerfile.cron" in done.stderr
    assert (names(bucket), Backup.objects.count()) == ([], 0)


def test_without_pg_dump_it_says_where_to_get_it(run: Run, tmp_path: Path) -> None:
    done = run("backup_database", PATH=str(tmp_path))

    assert done.returncode == 1
    assert "there is no pg_restore on this machine HINT: run it in" in done.stderr


def test_a_pg_dump_that_fails_half_way_leaves_nothing(
    run: Run, tmp_path: Path, backup_path: str, bucket: LocalServices
) -> None:
    program(
        tmp_path,
        "pg_dump",
        'case "$1" in --version) echo "pg_dump (PostgreSQL) 18.1";; *)'
        " head -c 9000000 /dev/zero; echo 'pg_dump: error: out of luck' >&2; exit 1;;"
        " esac",
    )

    done = run("backup_database", PATH=f"{tmp_path}{os.pathsep}{backup_path}")

    assert done.returncode == 1
    assert "CommandError: pg_dump failed: out of luck" in done.stderr
    assert names(bucket) == []
    assert Backup.objects.get().state == State.ABANDONED
    assert not bucket.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_what_pg_restore_cannot_list_does_not_count(
    run: Run, tmp_path: Path, backup_path: str, bucket: LocalServices
) -> None:
    program(
        tmp_path,
        "pg_dump",
        'case "$1" in --version) echo "pg_dump (PostgreSQL) 18.1";;'
        " *) echo this is no dump;; esac",
    )

    done = run("backup_database", PATH=f"{tmp_path}{os.pathsep}{backup_path}")

    assert done.returncode == 1
    assert "CommandError: pg_restore failed: input file" in done.stderr
    assert names(bucket) == []


def test_what_comes_back_changed_does_not_count(
    run: Run, s3: FailingS3, bucket: LocalServices
) -> None:
    s3.on("GetObject", failing_s3.flip_byte, suffix=".dump")

    done = run("backup_database", AWS_S3_ENDPOINT_URL=s3.url)

    assert done.returncode == 1
    assert "came back from the store changed" in done.stderr
    assert names(bucket) == []
    assert Backup.objects.get().state == State.ABANDONED


def test_a_store_that_refuses_fails_the_run_and_costs_no_backup(
    run: Run, s3: FailingS3, bucket: LocalServices
) -> None:
    run("backup_database")
    s3.on("PutObject", failing_s3.refuse(403, "AccessDenied"))

    done = run("backup_database", "--keep-daily=1", AWS_S3_ENDPOINT_URL=s3.url)

    assert done.returncode == 1
    assert "403 AccessDenied" in done.stderr
    (good,) = Backup.objects.filter(state=State.GOOD)
    assert names(bucket) == objects_of(good)


def test_a_pooler_is_refused_since_it_would_hand_on_what_pg_dump_sets(
    run: Run, pooler: Pooler, test_environment: dict[str, str]
) -> None:
    found = pooler(4)
    url = (
        f"postgresql://postgres@/{connection.settings_dict['NAME']}"
        f"?host={quote(found['HOST'])}&port={found['PORT']}"
    )

    done = run("backup_database", DATABASE_URL=url)

    assert done.returncode == 1
    assert "must not work through a pooler HINT: " in done.stderr


def test_a_table_that_is_being_changed_is_waited_for_and_then_named(
    bucket: LocalServices, commands: Commands, backup_path: str
) -> None:
    with session() as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE auth_user")

        done = commands.run(
            "backup_database",
            environment={"PATH": backup_path},
            settings={"AWS_S3_ENDPOINT_URL": bucket.aws_url},
            constants={
                "starview_app.maintenance.jobs.database_backup.backup.LOCK_WAIT_MS": 100
            },
        )

    assert done.code == 1
    assert "lock timeout" in done.err
    assert "HINT: something else holds the rows or the table" in done.err
    assert Backup.objects.get().state == State.ABANDONED


@pytest.mark.parametrize("named", [None, BUCKET])
def test_an_unencrypted_backup_never_goes_to_a_bucket_for_everybody(
    named: str | None, run: Run
) -> None:
    done = run(
        "backup_database",
        R2_PUBLIC_URL="https://media.example.com",
        AUDIT_R2_BUCKET_NAME=named,
    )

    assert done.returncode == 1
    assert "HINT: set AUDIT_R2_BUCKET_NAME to a private one" in done.stderr


@pytest.mark.parametrize(
    ("kind", "read"),
    [("TABLE doomed ()", read_tables), ("SEQUENCE doomed", read_sequences)],
)
def test_what_is_dropped_while_it_is_counted_is_one_line(
    kind: str, read: Callable[[CursorWrapper], object]
) -> None:
    execute(f"CREATE {kind}")

    with _snapshot() as (cursor, _), session() as other:
        other.cursor().execute(f"DROP {kind.split()[0]} doomed")
        other.commit()
        with pytest.raises(JobError, match="was dropped meanwhile: .* HINT: run it"):
            read(cursor)


# -- what is kept -------------------------------------------------------------------


def backups(*moments: str) -> list[Backup]:
    return [
        Backup(pk=number, started_at=datetime.fromisoformat(text).replace(tzinfo=UTC))
        for number, text in enumerate(moments, start=1)
    ]


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(1, 0, 0), [7]),
        (Keep(2, 0, 0), [7, 5]),  # one of each day
        (Keep(0, 2, 0), [7, 4]),  # the 5th of January is a Monday
        (Keep(0, 0, 2), [7, 2]),
        (Keep(0, 0, 9), [7, 2, 1]),  # more than there are
        (Keep(2, 2, 2), [7, 5, 4, 2]),
        (Keep(0, 0, 0), [7]),  # the newest always
    ],
)
def test_the_newest_of_days_weeks_and_months_stay(keep: Keep, stay: list[int]) -> None:
    made = backups(
        "2025-11-30 01:30",
        "2025-12-31 01:30",
        "2026-01-03 01:30",
        "2026-01-04 23:59",
        "2026-01-05 00:00",
        "2026-01-06 01:30",
        "2026-01-06 13:30",
    )

    assert [backup.pk for backup in kept(made, keep)] == stay


def test_a_pause_of_months_removes_nothing() -> None:
    made = backups("2025-01-01 01:30", "2025-01-02 01:30", "2026-06-01 01:30")

    assert len(kept(made, Keep(3, 0, 0))) == 3


def test_older_backups_go_and_what_is_not_on_record_stays(
    run: Run, bucket: LocalServices
) -> None:
    for age in (3, 2, 1):
        run("backup_database")
        newest = Backup.objects.latest("id")
        newest.started_at -= timedelta(days=age)
        newest.save()
    put(bucket, "somebody-elses.dump", b"?")

    done = run(
        *("backup_database", "--keep-daily=2", "--keep-weekly=0", "--keep-monthly=0")
    )

    assert done.returncode == 0, done.stderr
    states = [record.state for record in Backup.objects.order_by("id")]
    assert states == [State.REMOVED, State.REMOVED, State.GOOD, State.GOOD]
    good = Backup.objects.filter(state=State.GOOD)
    assert names(bucket) == [*objects_of(*good), "somebody-elses.dump"]
    assert "Not on record here, left alone: somebody-elses.dump" in done.stdout
    assert "Kept 2, removed 2" in done.stdout


def test_a_clock_that_was_ahead_once_hides_no_later_backup(
    run: Run, target: str
) -> None:
    run("backup_database")
    Backup.objects.update(started_at=days_ago(-400))
    only_newest = ("--keep-daily=1", "--keep-weekly=0", "--keep-monthly=0")

    dry = run("backup_database", *only_newest, "--dry-run")
    done = run("backup_database", *only_newest)

    assert "keep 2 and remove 0" in dry.stdout
    assert "Kept 2, removed 0" in done.stdout
    ahead, newest = Backup.objects.order_by("id")
    assert (ahead.state, newest.state) == (State.GOOD, State.GOOD)
    assert newest.name in run("restore_database", "newest", f"--into={target}").stdout
    assert f"{newest.started_at:%Y-%m-%d}" in check_health([], days_ago(0)).backups
    assert run("backup_database", "--drill").returncode == 0
    newest.refresh_from_db()
    assert newest.proved_at is not None


def test_what_a_lock_keeps_is_removed_once_it_ends(
    run: Run, s3: FailingS3, bucket: LocalServices
) -> None:
    run("backup_database")
    s3.on("DeleteObject", failing_s3.refuse(403, "ObjectLockedByBucketPolicy"))
    only_newest = ("--keep-daily=1", "--keep-weekly=0", "--keep-monthly=0")

    locked = run("backup_database", *only_newest, AWS_S3_ENDPOINT_URL=s3.url)

    assert locked.returncode == 0, locked.stderr
    assert "Kept by a lock of the bucket" in locked.stdout
    assert [record.state for record in Backup.objects.order_by("id")] == [
        State.REMOVING,
        State.GOOD,
    ]
    assert run("backup_database", *only_newest).returncode == 0
    (good,) = Backup.objects.filter(state=State.GOOD)
    assert names(bucket) == objects_of(good)


def test_a_backup_that_somebody_removed_is_told_once(
    run: Run, bucket: LocalServices
) -> None:
    run("backup_database")
    lost = Backup.objects.get()
    bucket.s3.delete_object(Bucket=BUCKET, Key=BACKUP_PREFIX + lost.name)

    first, second = run("backup_database"), run("backup_database")

    assert first.returncode == 1
    assert f"{lost.name} is on record and not in the store" in first.stderr
    assert second.returncode == 0, second.stderr
    lost.refresh_from_db()
    assert lost.state == State.LOST


def test_a_lost_backup_that_is_in_the_store_again_is_good_again(
    run: Run, bucket: LocalServices
) -> None:
    run("backup_database")
    record = Backup.objects.get()
    Backup.objects.update(started_at=days_ago(1))  # of another day, so it is kept
    body = bucket.read_object(BACKUP_PREFIX + record.name)
    bucket.s3.delete_object(Bucket=BUCKET, Key=BACKUP_PREFIX + record.name)
    run("backup_database")
    put(bucket, record.name, body[:-1])
    run("backup_database")
    record.refresh_from_db()
    as_another = record.state
    put(bucket, record.name, body)

    done = run("backup_database")

    record.refresh_from_db()
    assert (as_another, record.state) == (State.LOST, State.GOOD)
    assert f"In the store again, and good: {record.name}" in done.stdout


# -- restoring ----------------------------------------------------------------------


def test_a_backup_is_restored_into_an_empty_database(run: Run, target: str) -> None:
    run("backup_database")

    done = run("restore_database", "newest", f"--into={target}")

    assert done.returncode == 0, done.stderr
    assert f"Restored into {target} and compared" in done.stdout
    again = run("restore_database", "newest", f"--into={target}")
    assert again.returncode == 1
    assert f"{target} is not empty" in again.stderr


@pytest.fixture
def plain_user(target: str) -> Iterator[str]:
    """A user who owns `target`, and in no database the extension `vector`."""
    role = f"{connection.settings_dict['NAME']}_plain"
    execute(f"CREATE ROLE {role} LOGIN")
    execute(f"ALTER DATABASE {target} OWNER TO {role}")
    execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    execute("CREATE EXTENSION vector")
    with other_session(target) as rows:
        rows("CREATE EXTENSION vector; COMMIT; SELECT")
    yield role
    execute("DROP EXTENSION vector")
    execute(f"ALTER DATABASE {target} OWNER TO CURRENT_USER")
    with other_session(target) as rows:
        rows(f"REASSIGN OWNED BY {role} TO CURRENT_USER; COMMIT; SELECT")
    execute(f"DROP OWNED BY {role}")
    execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_who_does_not_own_an_extension_can_restore_and_keeps_the_other_comments(
    is_encrypted: bool,
    plain_user: str,
    run: Run,
    target: str,
    test_environment: dict[str, str],
) -> None:
    key = str(pyrage.x25519.Identity.generate()) if is_encrypted else ""
    execute("COMMENT ON TABLE auth_user IS 'people'")
    run("backup_database", BACKUP_ENCRYPTION_KEY=key)
    execute("COMMENT ON TABLE auth_user IS NULL")
    url = test_environment["DATABASE_URL"].replace("postgres@", f"{plain_user}@")

    done = run(
        *("restore_database", "newest", f"--into={target}"),
        DATABASE_URL=url,
        BACKUP_ENCRYPTION_KEY=key,
    )

    assert done.returncode == 0, done.stderr
    with other_session(target) as rows:
        assert rows("SELECT obj_description('auth_user'::regclass)") == [("people",)]
        assert rows("SELECT count(*) FROM auth_user") == [(3,)]


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_of_a_large_dump_only_the_begin_is_read_for_its_table_of_contents(
    is_encrypted: bool, tmp_path: Path
) -> None:
    key = str(pyrage.x25519.Identity.generate()) if is_encrypted else ""
    name = "large.dump.age" if is_encrypted else "large.dump"
    store = FolderStore(tmp_path)
    with store.writer(name) as target:
        send(io.BytesIO(bytes(20 << 20)), target, key=key, should_stop=lambda: False)
    pieces = iter(range(1000))
    reading, writing = os.pipe()
    os.close(reading)

    with open(writing, "wb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
        read_begin(store, name, pipe, key=key, should_stop=lambda: next(pieces) < 0)

    assert next(pieces) < 5


def test_a_dry_run_restores_nothing(run: Run, target: str) -> None:
    run("backup_database")

    done = run("restore_database", "newest", f"--into={target}", "--dry-run")

    assert done.stdout.endswith(
        f"Dry run: would restore it into {target}, which is empty\n"
    )
    with other_session(target) as rows:
        assert rows("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [
            (0,)
        ]


def test_the_database_in_use_is_never_restored_over(run: Run) -> None:
    run("backup_database")
    name = connection.settings_dict["NAME"]

    done = run("restore_database", "newest", f"--into={name}")

    assert done.returncode == 1
    assert "is never restored over HINT: createdb" in done.stderr


def test_a_database_that_does_not_exist_is_one_line(run: Run) -> None:
    run("backup_database")

    done = run("restore_database", "newest", "--into=nowhere")

    assert done.returncode == 1
    assert 'database "nowhere" does not exist HINT: ' in done.stderr


@pytest.mark.parametrize("words", ["restore", "drill"])
def test_an_object_that_was_changed_is_refused(
    words: str, run: Run, target: str, bucket: LocalServices
) -> None:
    run("backup_database")
    name = Backup.objects.get().name
    body = bucket.read_object(BACKUP_PREFIX + name)
    put(bucket, name, body[:-1] + bytes([body[-1] ^ 1]))

    done = (
        run("restore_database", name, f"--into={target}")
        if words == "restore"
        else run("backup_database", "--drill")
    )

    assert done.returncode == 1
    assert f"{name} is not what was backed up" in done.stderr
    assert Backup.objects.get().proved_at is None
    bucket.s3.delete_object(Bucket=BUCKET, Key=BACKUP_PREFIX + name)
    gone = run("restore_database", name, f"--into={target}")
    assert f"{name} is not in the store any more" in gone.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("newest", "there is no backup in s3://"),
        ("database_x.dump", "there is no backup database_x.dump"),
    ],
)
def test_a_backup_that_is_not_there_is_one_line(
    name: str, said: str, run: Run, target: str
) -> None:
    done = run("restore_database", name, f"--into={target}")

    assert done.returncode == 1
    assert said in done.stderr


def test_when_the_records_are_lost_the_store_says_what_to_restore(
    run: Run, target: str
) -> None:
    run("backup_database")
    Backup.objects.all().delete()

    done = run("restore_database", "newest", f"--into={target}")

    assert done.returncode == 0, done.stderr
    assert "described by the store alone" in done.stdout


def test_a_backup_that_was_given_up_is_not_restored(run: Run, target: str) -> None:
    run("backup_database")
    Backup.objects.update(state=State.ABANDONED)
    name = Backup.objects.get().name

    done = run("restore_database", name, f"--into={target}")

    assert done.returncode == 1
    assert f"{name} is on record as abandoned" in done.stderr


def test_an_encrypted_backup_needs_its_key(
    run: Run, target: str, bucket: LocalServices
) -> None:
    key, other = (str(pyrage.x25519.Identity.generate()) for _ in range(2))
    made = run(
        "backup_database",
        BACKUP_ENCRYPTION_KEY=key,
        R2_PUBLIC_URL="https://media.example.com",
    )
    assert made.returncode == 0, made.stderr
    name = Backup.objects.get().name
    assert name.endswith(".dump.age")
    assert bucket.read_object(BACKUP_PREFIX + name).startswith(b"age-encryption.org/v1")
    restore = ("restore_database", name, f"--into={target}")

    for wrong in (other, None):
        done = run(*restore, BACKUP_ENCRYPTION_KEY=wrong)
        assert done.returncode == 1
        assert "HINT: set BACKUP_ENCRYPTION_KEY to the key" in done.stderr
    drilled = run("backup_database", "--drill", BACKUP_ENCRYPTION_KEY=key)
    good = run(*restore, BACKUP_ENCRYPTION_KEY=key)

    assert (drilled.returncode, good.returncode) == (0, 0), good.stderr
    for done in (made, drilled, good):
        assert key not in done.stdout + done.stderr


# -- the drill -----------------------------------------------------------------------


def test_a_drill_proves_the_newest_backup_and_leaves_no_database(run: Run) -> None:
    run("backup_database")

    done = run("backup_database", "--drill")

    assert done.returncode == 0, done.stderr
    assert "Proved: restored and compared" in done.stdout
    assert Backup.objects.get().proved_at is not None
    assert drill_databases() == []
    assert "last drill 20" in check_health([], days_ago(0)).backups


def test_a_drill_finds_what_is_not_as_backed_up(run: Run) -> None:
    run("backup_database")
    record = Backup.objects.get()
    record.contents["tables"]["public.auth_user"][1] = "1"
    record.save()

    done = run("backup_database", "--drill")

    assert done.returncode == 1
    assert "table public.auth_user has other rows than were backed up" in done.stderr
    assert Backup.objects.get().proved_at is None
    assert drill_databases() == []


def test_what_a_killed_drill_has_left_is_removed_by_the_next(run: Run) -> None:
    run("backup_database")
    with connection.cursor() as cursor:
        cursor.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
        (oid,) = cursor.fetchone()
    left, another = f"starview_drill_{oid}_{'a' * 16}", f"starview_drill_{oid}_mine"
    execute(f"CREATE DATABASE {left}")
    execute(f"CREATE DATABASE {another}")
    try:
        assert run("backup_database", "--drill").returncode == 0
        assert drill_databases() == [another]
    finally:
        execute(f"DROP DATABASE {another}")


def test_without_the_right_to_make_databases_a_drill_says_so(
    run: Run, test_environment: dict[str, str]
) -> None:
    run("backup_database")
    role = f"{connection.settings_dict['NAME']}_plain"
    execute(f"CREATE ROLE {role} LOGIN")
    execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    try:
        url = test_environment["DATABASE_URL"].replace("postgres@", f"{role}@")

        done = run("backup_database", "--drill", DATABASE_URL=url)

        assert done.returncode == 1
        assert f"HINT: ALTER ROLE {role} CREATEDB" in done.stderr
    finally:
        execute(f"DROP OWNED BY {role}")
        execute(f"DROP ROLE {role}")


def test_without_a_backup_there_is_nothing_to_drill(run: Run) -> None:
    done = run("backup_database", "--drill")

    assert done.returncode == 1
    assert "there is no good backup on record HINT: " in done.stderr


def test_every_difference_is_one_line() -> None:
    contents: Contents = {
        "tables": {"gone": [1, "1"], "fewer": [2, "5"], "same": [3, "7"]},
        "sequences": {"fixed": [4, 4], "moved": [4, 9], "unused": [None, None]},
    }
    tables = {
        "fewer": Table(1, "5"),
        "same": Table(3, "7"),
        "new": Table(0, "0"),
    }

    assert differences(contents, tables, {"fixed": 5, "moved": 7}) == [
        "table fewer has 1 rows instead of 2",
        "table gone is missing",
        "table new is not on record",
        "sequence fixed is at 5 instead of 4",
        "sequence unused is missing",
    ]


def test_health_says_nothing_of_backups_where_there_are_none() -> None:
    assert check_health([], days_ago(0)).backups == ""


def test_an_error_in_another_database_is_explained_as_one_in_our_own(
    target: str,
) -> None:
    with pytest.raises(OperationalError) as cut_off, session_in(target) as other:
        other.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(ProgrammingError) as there_already:
        _execute("CREATE DATABASE {}", target)

    assert "HINT: the run was cut off" in (explain(cut_off.value) or "")
    assert "already exists" in str(there_already.value)

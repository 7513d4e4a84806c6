"""backup_database and restore_database, with real programs, a server and a store."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pyrage
import pytest
from django.db import connection

from demo.services import LocalServices
from starview_app.maintenance.models import Backup
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.stores.configured import BACKUP_PREFIX
from tests.conftest import Manage
from tests.factories import days_ago, execute, make_accounts

pytestmark = pytest.mark.django_db(transaction=True)

State = Backup.State
Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def path(services: LocalServices) -> str:
    """PATH with the programs of the tests' server."""
    return f"{services.psql_path.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def run(manage: Manage, bucket: LocalServices, path: str) -> Run:
    def call(*words: str, **variables: str | None) -> CompletedProcess[str]:
        return manage(*words, env={"PATH": path, **variables})

    return call


@pytest.fixture
def target() -> Iterator[str]:
    """An empty database of the tests' server."""
    name = f"{connection.settings_dict['NAME']}_restored"
    execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    execute(f"CREATE DATABASE {name}")
    yield name
    execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
def _accounts() -> None:
    create_own_tables()
    make_accounts(3, joined=days_ago(1))


def names(bucket: LocalServices) -> list[str]:
    return [
        found.key.removeprefix(BACKUP_PREFIX) for found in bucket.archived_objects()
    ]


def drill_databases() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'starview_drill_%'"
        )
        return [name for (name,) in cursor.fetchall()]


def test_a_backup_is_written_read_back_and_on_record(
    run: Run, bucket: LocalServices
) -> None:
    done = run("backup_database")

    assert done.returncode == 0, done.stderr
    record = Backup.objects.get()
    assert record.state == State.GOOD
    assert names(bucket) == [record.name, f"{record.name}.json"]
    assert re.fullmatch(
        r"database_\d{4}-\d\d-\d\dT\d{6}Z_[0-9a-f]{16}\.dump", record.name
    )
    assert f"SHA-256 {record.sha256}" in done.stdout
    assert record.contents["tables"]["public.auth_user"][0] == 3
    assert done.stdout.endswith("Kept 1, removed 0\n")


def test_a_drill_proves_the_newest_backup_and_leaves_no_database(run: Run) -> None:
    run("backup_database")

    done = run("backup_database", "--drill")

    assert done.returncode == 0, done.stderr
    assert "Proved: restored and compared" in done.stdout
    record = Backup.objects.get()
    assert record.proved_at is not None
    assert drill_databases() == []


def test_a_backup_is_restored_into_an_empty_database(run: Run, target: str) -> None:
    run("backup_database")

    done = run("restore_database", "newest", f"--into={target}")

    assert done.returncode == 0, done.stderr
    assert f"Restored into {target} and compared" in done.stdout


def test_an_encrypted_backup_needs_its_key(
    run: Run, target: str, bucket: LocalServices
) -> None:
    key, other = (str(pyrage.x25519.Identity.generate()) for _ in range(2))
    made = run("backup_database", BACKUP_ENCRYPTION_KEY=key)
    assert made.returncode == 0, made.stderr
    (name, _) = names(bucket)
    assert name.endswith(".dump.age")
    assert bucket.read_object(BACKUP_PREFIX + name).startswith(b"age-encryption.org/v1")

    for wrong in (other, None):
        done = run(
            "restore_database", name, f"--into={target}", BACKUP_ENCRYPTION_KEY=wrong
        )
        assert done.returncode == 1
        assert "HINT: set BACKUP_ENCRYPTION_KEY to the key" in done.stderr
        assert "Traceback" not in done.stderr
    good = run("restore_database", name, f"--into={target}", BACKUP_ENCRYPTION_KEY=key)

    assert good.returncode == 0, good.stderr
    for done in (made, good):
        assert key not in done.stdout + done.stderr

"""What the commands that people type say of the demo's data."""

from datetime import UTC, datetime

import pytest
from django.db import connection

from demo import data, first_version
from demo.services import BUCKET, LocalServices
from tests.conftest import Manage

pytestmark = pytest.mark.django_db(transaction=True)

GOOGLE = {"GOOGLE_OAUTH_CLIENT_ID": "x", "GOOGLE_OAUTH_CLIENT_SECRET": "secret-google"}


@pytest.fixture(autouse=True)
def demo() -> None:
    data.load(connection, datetime.now(UTC))


def test_diagnose_db_finds_nothing_wrong_and_the_work_to_do(manage: Manage) -> None:
    done = manage("diagnose_db")

    assert done.returncode == 0, done.stderr
    assert "cleanup_unverified_users    delete 36, keep 20\n" in done.stdout
    assert "archive_audit_logs          archive 16" in done.stdout
    assert "clearsessions               remove 0 without an expiry, 0" in done.stdout


def test_setup_google_oauth_refuses_the_two_apps(manage: Manage) -> None:
    done = manage("setup_google_oauth", env=GOOGLE)

    assert done.returncode == 1
    assert "there are 2 apps for Google" in done.stderr
    assert "secret-google" not in done.stderr


def test_the_badges_that_drifted_are_found(manage: Manage) -> None:
    done = manage("audit_badges")

    assert done.returncode == 0, done.stderr
    assert "Run with --fix to revoke 6 invalid badge(s)" in done.stdout
    assert "Run with --award to award 3 missing badge(s)" in done.stdout


def test_the_pioneers_are_a_hundred(manage: Manage) -> None:
    done = manage("award_pioneer_badges")

    assert done.returncode == 0, done.stderr
    assert "Holders in all: 100 of 100" in done.stdout


def test_the_first_versions_archive_is_adopted(
    manage: Manage, bucket: LocalServices
) -> None:
    for name, content in first_version.objects(datetime.now(UTC)).items():
        key = f"audit-archives/{name}"
        bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=content)

    done = manage("adopt_audit_archives")

    assert done.returncode == 0, done.stderr
    assert "Adopted 1 archives (2 objects, 24 rows)" in done.stdout

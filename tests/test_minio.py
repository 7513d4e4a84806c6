"""The archive on real MinIO, the image beside it: what happens when the store fails.

Needs a Docker engine and the images of .ci/docker: `pytest -m container`.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.deployment import PROJECT, compose, docker, psql, run_once, running
from tests.factories import wait_until

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("deployment")]

ARCHIVE = ("python", "manage.py", "archive_audit_logs", "--days=30")
VERIFY = ("python", "manage.py", "verify_audit_archives")
RESTORE = ("python", "manage.py", "restore_audit_logs")
EVER = ("--from=2000-01-01", "--to=2100-01-01")
DUE = (
    "SELECT count(*) FROM starview_app_auditlog"
    " WHERE timestamp < now() - interval '30 days'"
)


@pytest.fixture(autouse=True)
def rows_are_due() -> int:
    """Rows of a year that are in the table, and how many; the archive has them too."""
    done = run_once(*RESTORE, *EVER)
    assert done.returncode == 0, done.stdout
    return int(psql(DUE))


def assert_archived_and_proved() -> None:
    again = run_once(*ARCHIVE)
    verified = run_once(*VERIFY)

    assert again.returncode == 0, again.stdout
    assert psql(DUE) == "0"
    assert verified.returncode == 0, verified.stdout
    assert "missing: 0, changed: 0, not in any manifest: 0" in verified.stdout


def test_what_is_archived_comes_back_whole() -> None:
    fingerprint = (
        "SELECT md5(string_agg(log::text, '' ORDER BY id))"
        " FROM starview_app_auditlog AS log"
    )
    before = psql(fingerprint)

    assert_archived_and_proved()
    restored = run_once(*RESTORE, *EVER)

    assert restored.returncode == 0, restored.stdout
    assert psql(fingerprint) == before


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
        ({"AWS_STORAGE_BUCKET_NAME": "no-such-bucket"}, "NoSuchBucket"),
        ({"AWS_S3_ENDPOINT_URL": "http://minio:9009"}, "http://minio:9009"),
    ],
    ids=["wrong secret", "unknown key", "no bucket", "nobody listens"],
)
def test_a_store_that_is_set_up_wrong_costs_no_row_and_is_one_line(
    variables: dict[str, str], said: str, rows_are_due: int
) -> None:
    done = run_once(*ARCHIVE, **variables)

    errors = [line for line in done.stdout.splitlines() if "Error: " in line]
    assert done.returncode == 1
    assert len(errors) == 1, done.stdout
    assert said in errors[0]
    assert " HINT: " in errors[0]
    assert int(psql(DUE)) == rows_are_due


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_store_that_goes_away_in_mid_run_costs_no_row(
    how: str, rows_are_due: int
) -> None:
    with running(*ARCHIVE, "--segment-rows=100") as process:
        for line in process.stdout or ():
            if "segment_archived" in line:
                break
        compose(how, "minio")
        try:
            process.communicate(timeout=120)
        finally:
            compose("start", "minio")
            compose("up", "-d", "--wait", "minio")

    assert process.returncode == 1
    assert 0 < int(psql(DUE)) < rows_are_due
    assert_archived_and_proved()


@contextmanager
def full_disk() -> Iterator[str]:
    """A MinIO with some room, but not enough: its name, and that of its bucket."""
    name = f"full-{uuid.uuid4().hex[:8]}"
    keys = ("MINIO_ROOT_USER=compose-minio", "MINIO_ROOT_PASSWORD=only-for-compose")
    container = compose("ps", "-q", "minio").stdout.strip()
    image = docker("inspect", "-f", "{{.Config.Image}}", container).stdout.strip()
    make_bucket = (
        f"import boto3; boto3.client('s3', endpoint_url='http://{name}:9000')"
        f".create_bucket(Bucket='{name}')"
    )
    try:
        docker(
            *("run", "-d", "--name", name, "--network", f"{PROJECT}_default"),
            *("--tmpfs", "/data:size=6m"),
            *(f"--env={key}" for key in keys),
            *(image, "server", "/data"),
        )
        wait_until(
            lambda: run_once("python", "-c", make_bucket).returncode == 0, "it has one"
        )
        yield name
    finally:
        docker("rm", "-f", name, check=False)


def test_a_full_disk_of_the_store_costs_no_row(rows_are_due: int) -> None:
    with full_disk() as name:
        done = run_once(
            *ARCHIVE,
            AWS_S3_ENDPOINT_URL=f"http://{name}:9000",
            AWS_STORAGE_BUCKET_NAME=name,
        )
        held = int(psql(DUE))

    archived = int(re.findall(r"archived=(\d+)", done.stdout)[-1])
    assert done.returncode == 1, done.stdout
    assert "archiving failed" in done.stdout
    assert held == rows_are_due - archived > 0
    assert_archived_and_proved()

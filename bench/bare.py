"""The least time for the work of an archive: files, hashes and boto3, no database.

    python -m bench.bare hash-folder FOLDER
    python -m bench.bare hash-bucket URL BUCKET
    python -m bench.bare send-folder FOLDER URL BUCKET
    python -m bench.bare make-bucket URL BUCKET
    python -m bench.bare remove-bucket URL BUCKET

The key pair is that of the environment, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
`send-folder` uploads each file in parts, reads it back, and prints the seconds of both.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

READ_BYTES = 1 << 20
PART_BYTES = 5 << 20  # the engine's


def hash_folder(folder: str) -> None:
    for path in sorted(Path(folder).iterdir()):
        with path.open("rb") as file:
            _hash(iter(lambda: file.read(READ_BYTES), b""))


def hash_bucket(url: str, bucket: str) -> None:
    client = _client(url)
    for key in _keys(client, bucket):
        _hash(_pieces(client, bucket, key))


def send_folder(folder: str, url: str, bucket: str) -> None:
    client = _client(url)
    seconds = {"upload": 0.0, "read back": 0.0}
    for path in sorted(Path(folder).iterdir()):
        started = time.perf_counter()
        _upload(client, bucket, path)
        uploaded = time.perf_counter()
        for _ in _pieces(client, bucket, path.name):
            pass
        seconds["upload"] += uploaded - started
        seconds["read back"] += time.perf_counter() - uploaded
    print(json.dumps(seconds))


def make_bucket(url: str, bucket: str) -> None:
    _client(url).create_bucket(Bucket=bucket)


def remove_bucket(url: str, bucket: str) -> None:
    client = _client(url)
    for key in list(_keys(client, bucket)):
        client.delete_object(Bucket=bucket, Key=key)
    client.delete_bucket(Bucket=bucket)


def _hash(pieces: Iterator[bytes]) -> None:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    print(digest.hexdigest())


def _upload(client: S3Client, bucket: str, path: Path) -> None:
    where: dict[str, Any] = {"Bucket": bucket, "Key": path.name}
    where["UploadId"] = client.create_multipart_upload(**where)["UploadId"]
    parts: list[CompletedPartTypeDef] = []
    with path.open("rb") as file:
        for number, body in enumerate(iter(lambda: file.read(PART_BYTES), b""), 1):
            part = client.upload_part(**where, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


def _pieces(client: S3Client, bucket: str, key: str) -> Iterator[bytes]:
    answer = client.get_object(Bucket=bucket, Key=key)
    return iter(answer["Body"].iter_chunks(READ_BYTES))


def _keys(client: S3Client, bucket: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            yield found["Key"]


def _client(url: str) -> S3Client:
    """As the engine makes it."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        config=Config(
            proxies={},
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "hash-folder": hash_folder,
    "hash-bucket": hash_bucket,
    "send-folder": send_folder,
    "make-bucket": make_bucket,
    "remove-bucket": remove_bucket,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])

"""Archives in Cloudflare R2 or any S3, through boto3 with settings that R2 needs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from starview_app.maintenance.stores.base import (
    Listed,
    ObjectExistsError,
    ObjectLockedError,
    ObjectMissingError,
    StoreError,
)
from starview_app.maintenance.text import one_line

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

# R2 requires parts of equal size except the last, at least 5 MiB each, and at most
# 10,000: 50 GB for an object. This is the smallest size, since memory holds one part.
PART_BYTES = 5 << 20
_READ_BYTES = 1 << 20
_R2_HOST = ".r2.cloudflarestorage.com"

# The usual causes of errors; R2 answers Unauthorized where S3 answers 403.
_HINTS = {
    "AccessDenied": "the key pair may not do this here; it needs Object Read & Write",
    "NotImplemented": "the archive needs conditional writes (If-None-Match), which R2,"
    " S3 and MinIO have",
    "Unauthorized": "the key pair is not valid: make a new R2 API token",
    "InvalidAccessKeyId": "{key_id} is not a key of this account",
    "SignatureDoesNotMatch": "{secret} does not belong to {key_id}",
    "NoSuchBucket": "{bucket} names no bucket of this account",
    "PreconditionFailed": "an object of this name exists and is never overwritten",
}
_KINDS = {
    "PreconditionFailed": ObjectExistsError,
    "NoSuchKey": ObjectMissingError,
    "ObjectLockedByBucketPolicy": ObjectLockedError,
}
# R2's number, and MinIO's text, for an object under a lock.
_LOCKED_WORDS = ("10069", "WORM protected")


@dataclass(frozen=True)
class Variables:
    """The names of the environment variables, for error messages."""

    key_id: str = "AWS_ACCESS_KEY_ID"
    secret: str = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a name
    bucket: str = "AWS_STORAGE_BUCKET_NAME"


@dataclass(frozen=True)
class S3Store:
    """Objects under `prefix` in `bucket`.

    boto3 is imported at the first use, since that takes longer than a job without work.
    """

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    bucket: str
    prefix: str
    variables: Variables = Variables()

    @property
    def location(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @contextmanager
    def writer(self, name: str, *, overwrite: bool = False) -> Iterator[_Upload]:
        """Upload in parts while the block writes; memory holds one part."""
        with self._errors(name):
            upload = _Upload(
                self._client, self.bucket, self.prefix + name, overwrite=overwrite
            )
        try:
            with self._errors(name):
                yield upload
                upload.finish()
        except BaseException:
            upload.abort()
            raise

    def read(self, name: str) -> Iterator[bytes]:
        with self._errors(name):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.prefix + name)
            yield from answer["Body"].iter_chunks(_READ_BYTES)

    def delete(self, name: str) -> None:
        with self._errors(name):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def discard_unfinished(self, name: str) -> None:
        key = self.prefix + name
        with self._errors(name):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=key
            )
            for upload in [item for page in pages for item in page.get("Uploads", [])]:
                if upload["Key"] == key:
                    self._client.abort_multipart_upload(
                        Bucket=self.bucket, Key=key, UploadId=upload["UploadId"]
                    )

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        with self._errors(self.prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for found in page.get("Contents", []):
                    # A console shows a folder by an object that is named only PREFIX.
                    if name := found["Key"].removeprefix(self.prefix):
                        yield Listed(name, found["Size"])

    @cached_property
    def _client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="auto" if _R2_HOST in self.endpoint_url else "us-east-1",
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                # The default sends trailers, which R2 refuses with Unauthorized.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=5,  # seconds
                read_timeout=20,
                retries={"mode": "standard", "total_max_attempts": 3},
            ),
        )

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn errors of boto3 and urllib3 into StoreErrors without secrets."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            text = f"{name}: {self._refusal(error.response)}"
            raise _kind(error.response)(text) from error
        except (BotoCoreError, HTTPError, ResponseParserError, ValueError) as error:
            text = one_line(" ".join(str(error).split()))
            raise StoreError(
                f"{name}: {self._redacted(text)} HINT: is the store up, and its address"
                f" {self.endpoint_url} right?"
            ) from error

    def _refusal(self, response: Mapping[str, Any]) -> str:
        error = response.get("Error", {})
        code = one_line(error.get("Code", "unknown"))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        message = one_line(" ".join(str(error.get("Message", "")).split()))
        hint = _HINTS.get(code, "").format(**asdict(self.variables))
        return f"the store answered {status} {code}: {message}" + (
            f" HINT: {hint}" if hint else ""
        )

    def _redacted(self, text: str) -> str:
        """Remove secrets; some of botocore's errors quote a request header."""
        for secret in (self.secret_access_key, self.access_key_id):
            text = text.replace(secret, "***")
        return re.sub(r"AWS4-HMAC\S*.*", "***", text)


def _kind(response: Mapping[str, Any]) -> type[StoreError]:
    error = response.get("Error", {})
    if any(words in str(error.get("Message", "")) for words in _LOCKED_WORDS):
        return ObjectLockedError
    return _KINDS.get(error.get("Code", ""), StoreError)


class _Condition(TypedDict, total=False):
    IfNoneMatch: str


class _Upload:
    """The upload of one object: a single PUT if it fits into one part, else parts."""

    def __init__(
        self, client: S3Client, bucket: str, key: str, *, overwrite: bool
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        # With this header S3 refuses to overwrite an object.
        self._condition: _Condition = {} if overwrite else {"IfNoneMatch": "*"}
        self._buffer = bytearray()
        self._upload_id = ""
        self._parts: list[CompletedPartTypeDef] = []

    def write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) > PART_BYTES:
            # Copy the rest, which is small, and not the part.
            rest = self._buffer[PART_BYTES:]
            del self._buffer[PART_BYTES:]
            part, self._buffer = bytes(self._buffer), rest
            self._send_part(part)

    def finish(self) -> None:
        """Complete the object. Raises ObjectExistsError unless `overwrite` is set.

        If the answer to a request is lost, boto3 repeats it, and S3 refuses because of
        the object that the first request wrote. So an object with the entity tag of the
        data that was sent is not an error.
        """
        from botocore.exceptions import ClientError

        try:
            self._complete()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if (
                code not in ("PreconditionFailed", "NoSuchUpload")
                or not self._is_ours()
            ):
                raise

    def _complete(self) -> None:
        if not self._upload_id:
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._key,
                Body=bytes(self._buffer),
                **self._condition,
            )
            return
        if self._buffer:
            self._send_part(bytes(self._buffer))
        self._client.complete_multipart_upload(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            MultipartUpload={"Parts": self._parts},
            **self._condition,
        )

    def _is_ours(self) -> bool:
        """Whether the object has the entity tag, an MD5, of the data that was sent."""
        sums = [bytes.fromhex(part["ETag"].strip('"')) for part in self._parts]
        content = b"".join(sums) if self._upload_id else bytes(self._buffer)
        tag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        suffix = f"-{len(sums)}" if self._upload_id else ""
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=self._key)
        except Exception:  # the original error is shown
            return False
        return found["ETag"].strip('"') == tag + suffix

    def abort(self) -> None:
        """Abort the upload. `discard_unfinished` removes parts for which this fails."""
        if self._upload_id:
            with suppress(Exception):  # the error that led to the abort is shown
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key, UploadId=self._upload_id
                )

    def _send_part(self, body: bytes) -> None:
        if not self._upload_id:
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key
            )
            self._upload_id = answer["UploadId"]
        number = len(self._parts) + 1
        part = self._client.upload_part(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=body,
        )
        self._parts.append({"ETag": part["ETag"], "PartNumber": number})

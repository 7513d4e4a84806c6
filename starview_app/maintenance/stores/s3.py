"""Archives in Cloudflare R2, or any S3, through boto3 as R2 needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from starview_app.maintenance.stores.base import StoreError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

# R2 wants all parts but the last of one size, and at most 10,000: 80 GB an object.
PART_BYTES = 8 << 20
_READ_BYTES = 1 << 20
_R2_HOST = ".r2.cloudflarestorage.com"

# What a refusal most often means; R2 answers Unauthorized where S3 says 403.
_HINTS = {
    "AccessDenied": "the key pair may not write here; it needs Object Read & Write",
    "Unauthorized": "the key pair is not valid: make a new R2 API token",
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID is not a key of this account",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not belong to the key id",
    "NoSuchBucket": "AWS_STORAGE_BUCKET_NAME names no bucket of this account",
    "PreconditionFailed": "an object of this name exists and is never overwritten",
}


@dataclass(frozen=True)
class S3Store:
    """Objects under `prefix` in `bucket`.

    boto3 is imported at the first use: it takes longer than a job with nothing to do.
    """

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    bucket: str
    prefix: str

    @contextmanager
    def writer(self, name: str) -> Iterator[_Upload]:
        """Upload in parts while the block writes; memory holds one part."""
        with self._errors(name):
            upload = _Upload(self._client, self.bucket, self.prefix + name)
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
                # Anything else sends trailers that R2 refuses with Unauthorized.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=5,  # seconds
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 4},
            ),
        )

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn what boto3 and urllib3 raise into one line without secrets."""
        try:
            from botocore.exceptions import BotoCoreError, ClientError
            from urllib3.exceptions import HTTPError
        except ImportError as error:  # pragma: no cover - requirements.txt has both
            raise StoreError(str(error)) from error
        try:
            yield
        except ClientError as error:
            raise StoreError(f"{name}: {_refusal(error.response)}") from error
        except (BotoCoreError, HTTPError) as error:
            text = " ".join(str(error).split())
            raise StoreError(
                f"{name}: {text} HINT: is the store up, and its address"
                f" {self.endpoint_url} right?"
            ) from error


class _Upload:
    """One object on its way: a single PUT when it fits into a part, else parts."""

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._buffer = bytearray()
        self._upload_id = ""
        self._parts: list[CompletedPartTypeDef] = []

    def write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) > PART_BYTES:
            self._send_part(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def finish(self) -> None:
        """Complete the object; the store refuses a key that exists."""
        if not self._upload_id:
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._key,
                Body=bytes(self._buffer),
                IfNoneMatch="*",
            )
            return
        self._send_part(bytes(self._buffer))
        self._client.complete_multipart_upload(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            MultipartUpload={"Parts": self._parts},
            IfNoneMatch="*",
        )

    def abort(self) -> None:
        """Give up the parts sent so far; the store forgets them in time by itself."""
        if self._upload_id:
            with suppress(Exception):  # the cause of the abort is the error to show
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


def _refusal(response: object) -> str:
    details = response if isinstance(response, dict) else {}
    error = details.get("Error", {})
    code = str(error.get("Code", "unknown"))
    status = details.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    hint = _HINTS.get(code, "")
    message = " ".join(str(error.get("Message", "")).split())
    return f"the store answered {status} {code}: {message}" + (
        f" HINT: {hint}" if hint else ""
    )

"""Sends a dump to the store and reads it back: encrypted, hashed and counted.

The encryption is that of age (https://age-encryption.org): it is a stream, each piece
of which is authenticated, and `age --decrypt` can read it without this image. Memory
holds one piece, and nothing is written to disk.
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, NamedTuple

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.stores.base import ObjectWriter, Store

PIECE_BYTES = 1 << 18
SUFFIX = ".age"  # of the names of encrypted objects
_KEY_HINT = "HINT: set BACKUP_ENCRYPTION_KEY to the key that was set when it was made"


class StopRequested(Exception):
    """Raised to leave the run; the record is then abandoned."""


class _EnoughError(Exception):
    """Raised to leave the rest of an object unread."""


class Digest(NamedTuple):
    """Size and hash of an object, as stored."""

    size_bytes: int
    sha256: str


def is_encrypted(name: str) -> bool:
    return name.endswith(SUFFIX)


def send(
    source: IO[bytes], target: ObjectWriter, *, key: str, should_stop: ShouldStop
) -> Digest:
    """Copy `source` to `target`, encrypted with `key` unless that is empty."""
    meter = _Meter(target, should_stop)
    if not key:
        while piece := source.read(PIECE_BYTES):
            meter.write(piece)
        return meter.digest()

    import pyrage

    reader = _Reader(source)
    recipient = pyrage.x25519.Identity.from_str(key).to_public()
    try:
        pyrage.encrypt_io(reader, meter, [recipient])
    except Exception:
        # The library raises another exception instead of the original one.
        if error := reader.error or meter.error:
            raise error from None
        raise
    return meter.digest()


def read_back(
    store: Store,
    name: str,
    target: IO[bytes] | None,
    *,
    key: str,
    should_stop: ShouldStop,
) -> Digest:
    """Read the whole object; write its dump to `target` for as long as that reads.

    Raises JobError if it cannot be decrypted, and StoreError.
    """
    source = _Source(store.read(name), should_stop)
    if target and is_encrypted(name):
        _decrypt(name, source, _Sink(target), key)
    else:
        _copy(source, _Sink(target))
    source.read_rest()
    return source.digest()


def read_begin(
    store: Store, name: str, target: IO[bytes], *, key: str, should_stop: ShouldStop
) -> None:
    """Write the object's dump to `target` until that does not read any more."""
    source = _Source(store.read(name), should_stop)
    sink = _Sink(target, is_all=False)
    with suppress(_EnoughError):
        if is_encrypted(name):
            _decrypt(name, source, sink, key)
        else:
            _copy(source, sink)


def _copy(source: "_Source", sink: "_Sink") -> None:
    while piece := source.read(PIECE_BYTES):
        sink.write(piece)


def _decrypt(name: str, source: "_Source", sink: "_Sink", key: str) -> None:
    if not key:
        raise JobError(f"{name} is encrypted and there is no key {_KEY_HINT}")

    import pyrage

    identity = pyrage.x25519.Identity.from_str(key)
    try:
        pyrage.decrypt_io(source, sink, [identity])
    except Exception as error:
        if ended := source.error or sink.error:
            raise ended from None
        text = str(error).lower()
        if "matching keys" in text:
            raise JobError(
                f"{name} was encrypted with another key {_KEY_HINT}"
            ) from None
        raise JobError(f"{name} cannot be decrypted: {text}") from None


class _Reader:
    """Reads the dump. `error` is the exception that ended the reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def read(self, size_bytes: int) -> bytes:
        try:
            return self._file.read(size_bytes)
        except BaseException as error:
            self.error = error
            raise


class _Meter:
    """Hashes and counts what it writes. `error` is the exception that ended that."""

    def __init__(self, target: ObjectWriter, should_stop: ShouldStop) -> None:
        self._target = target
        self._should_stop = should_stop
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            if self._should_stop():
                raise StopRequested
            self._target.write(data)
        except BaseException as error:
            self.error = error
            raise
        self._sha256.update(data)
        self._size_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def digest(self) -> Digest:
        return Digest(self._size_bytes, self._sha256.hexdigest())


class _Source:
    """A file made of pieces, hashed. `error` is what ended the reading."""

    def __init__(self, pieces: Iterable[bytes], should_stop: ShouldStop) -> None:
        self._pieces = iter(pieces)
        self._should_stop = should_stop
        self._rest = b""
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self.error: BaseException | None = None

    def read(self, size_bytes: int = PIECE_BYTES) -> bytes:
        if not self._rest:
            self._rest = self._next()
        piece, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        return piece

    def read_rest(self) -> None:
        while self._next():
            pass

    def digest(self) -> Digest:
        return Digest(self._size_bytes, self._sha256.hexdigest())

    def _next(self) -> bytes:
        try:
            if self._should_stop():
                raise StopRequested
            piece = next(self._pieces, b"")
        except BaseException as error:
            self.error = error
            raise
        self._sha256.update(piece)
        self._size_bytes += len(piece)
        return piece


class _Sink:
    """Writes to a program until that has read enough. `error` is what ended this.

    Then _EnoughError is raised, unless `is_all`.
    """

    def __init__(self, target: IO[bytes] | None, *, is_all: bool = True) -> None:
        self._target = target
        self._is_all = is_all
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self._target:
            try:
                self._target.write(data)
            except BrokenPipeError:
                self._target = None
                if not self._is_all:
                    self.error = _EnoughError()
                    raise self.error from None
            except BaseException as error:
                self.error = error
                raise
        return len(data)

    def flush(self) -> None:
        pass  # closing the pipe flushes it

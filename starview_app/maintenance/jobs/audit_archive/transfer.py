"""Streams to a store and back, which hash, count, compress and unpack."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.stores.base import ObjectWriter

PIECE_BYTES = 1 << 18
KEEP_BYTES = 8  # more than a separator, which is removed after the last row
# The longest row that is archived, and so the longest line that is restored. PostgreSQL
# needs some 20 times as much memory to read it.
LINE_BYTES = 32 << 20
_GZIP = 31  # zlib's value for gzip's header and trailer, without a time

# How often a segment is written if a row of it is changed or locked by others.
ATTEMPTS = 3
MOST_REFUSED = 10  # segments


class StopRequested(Exception):
    """Raised to leave the transaction, which is rolled back."""


class RefusedRowsError(JobError):
    """Rows of a segment cannot be archived; those of other segments perhaps can."""


@dataclass
class Refusals:
    """The segments that were refused: all others are archived before the run fails.

    After MOST_REFUSED of them `add` raises, since then all may be refused.
    """

    _errors: list[RefusedRowsError] = field(default_factory=list)

    def add(self, error: RefusedRowsError) -> None:
        self._errors.append(error)
        if len(self._errors) == MOST_REFUSED:
            self.raise_first()

    def raise_first(self) -> None:
        """Raise the first error, if there are any, as a JobError of this run."""
        if self._errors:
            more = len(self._errors) - 1
            also = f" (and {more} more segments were refused)" if more else ""
            raise JobError(f"{self._errors[0]}{also}") from self._errors[0]


def changed_too_often() -> RefusedRowsError:
    return RefusedRowsError(
        "audit rows were changed, or held, while they were archived,"
        f" {ATTEMPTS} times over HINT: run the job again later"
    )


class TooLargeError(Exception):
    """The object has more or longer lines than any archive that this project writes."""


@dataclass(frozen=True)
class Digest:
    """What objects are compared by: size and hash as stored, and number of lines."""

    sha256: str
    size_bytes: int
    lines: int


def is_compressed(name: str) -> bool:
    return name.endswith(".gz")


class Sink:
    """Takes an object's text in pieces of any size, and passes it on in larger pieces.

    It counts the lines, compresses the text if the name ends in .gz, and hashes what is
    stored. Raises StopRequested when asked to stop, and RefusedRowsError for a piece
    longer than LINE_BYTES; COPY gives each row as one piece.
    """

    def __init__(
        self, name: str, target: ObjectWriter, should_stop: ShouldStop
    ) -> None:
        self.name = name
        self._target = target
        self._should_stop = should_stop
        self._packer = zlib.compressobj(wbits=_GZIP) if is_compressed(name) else None
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._lines = 0

    @property
    def lines(self) -> int:
        """The number of line ends so far."""
        return self._lines + self._buffer.count(b"\n")

    def write(self, data: bytes) -> None:
        if len(data) > LINE_BYTES:
            begin = data[:30].decode(errors="replace").strip("\n")
            raise RefusedRowsError(
                f"an audit row has {len(data)} bytes as {self.name}, more than the"
                f" {LINE_BYTES} that can be restored: {begin!r}... HINT: shorten that"
                " row's message, user agent or metadata"
            )
        self._buffer += data
        if len(self._buffer) >= PIECE_BYTES:
            self._pass_on(keep_bytes=KEEP_BYTES)

    def end_rows(self, tail: bytes, *, drop: bytes) -> None:
        """Remove `drop` from the end of the last row, and write `tail`, the end."""
        ending = drop + b"\n"
        if drop and self._buffer.endswith(ending):
            self._buffer[-len(ending) :] = b"\n"
        self.write(tail)
        self._pass_on(keep_bytes=0)
        if self._packer:
            self._store(self._packer.flush())

    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest(), self._size_bytes, self._lines)

    def _pass_on(self, *, keep_bytes: int) -> None:
        if self._should_stop():
            raise StopRequested
        end = len(self._buffer) - keep_bytes
        piece = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._lines += piece.count(b"\n")
        self._store(self._packer.compress(piece) if self._packer else piece)

    def _store(self, piece: bytes) -> None:
        self._sha256.update(piece)
        self._size_bytes += len(piece)
        if piece:
            self._target.write(piece)


class Source:
    """An object's unpacked text, piece by piece; its bytes are hashed as stored.

    `digest` is complete after the last piece. If the bytes cannot be unpacked, the text
    ends there; the hash, which covers all bytes, then shows that the object is wrong.
    With `most_lines`, TooLargeError is raised for more lines, or for a line of more
    than LINE_BYTES: a few bytes of gzip may unpack to very many.
    """

    def __init__(
        self,
        name: str,
        pieces: Iterable[bytes],
        should_stop: ShouldStop,
        *,
        most_lines: int | None = None,
    ) -> None:
        self._pieces = pieces
        self._most_lines = most_lines
        self._line_bytes = 0  # so far, of the current line
        self._should_stop = should_stop
        self._unpack: Callable[[bytes], Iterator[bytes]] = (
            _Unpacker().unpack if is_compressed(name) else _as_it_is
        )
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._lines = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if self._should_stop():
                raise StopRequested
            self._sha256.update(piece)
            self._size_bytes += len(piece)
            for text in self._unpack(piece):
                self._lines += text.count(b"\n")
                if self._most_lines is not None:
                    self._check_bounds(text, self._most_lines)
                yield text

    def read_all(self) -> Digest:
        """Read all the pieces, and return their digest."""
        for _ in self:
            pass
        return self.digest()

    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest(), self._size_bytes, self._lines)

    def _check_bounds(self, text: bytes, most_lines: int) -> None:
        """Raise TooLargeError for too many lines or a line that is too long.

        Pieces are shorter than LINE_BYTES, so such a line has several.
        """
        first_end = text.find(b"\n")
        longest = self._line_bytes + (first_end if first_end >= 0 else len(text))
        if self._lines > most_lines or longest > LINE_BYTES:
            raise TooLargeError
        self._line_bytes = (
            len(text) - text.rfind(b"\n") - 1 if first_end >= 0 else longest
        )


class _Unpacker:
    """Unpacks gzip, up to the first bytes that are not gzip."""

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(wbits=_GZIP)
        self._is_broken = False

    def unpack(self, piece: bytes) -> Iterator[bytes]:
        """Yield pieces of limited size."""
        while piece and not self._is_broken:
            try:
                text = self._unpacker.decompress(piece, PIECE_BYTES)
            except zlib.error:
                self._is_broken = True
                return
            if text:
                yield text
            # Bytes after the end of gzip are hashed, but not unpacked.
            self._is_broken = self._unpacker.eof
            piece = self._unpacker.unconsumed_tail


def _as_it_is(piece: bytes) -> Iterator[bytes]:
    yield piece


class PiecesFile:
    """A file for COPY, which reads `pieces` in the size that it asks for.

    `error` is the exception that ended the reading, if there was one.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""
        self.error: BaseException | None = None

    def read(self, size_bytes: int) -> bytes:
        try:
            piece = self._rest or next(self._pieces, b"")
        except BaseException as error:
            self.error = error
            raise
        self._rest = piece[size_bytes:]
        return piece[:size_bytes]


def bounded(pieces: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Yield pieces until they have more than `size_bytes`, so that this can be seen."""
    left = size_bytes
    for piece in pieces:
        yield piece
        left -= len(piece)
        if left < 0:
            return

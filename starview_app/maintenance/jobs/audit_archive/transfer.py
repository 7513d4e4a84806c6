"""Bytes on their way to a store and back: hashed, counted, packed and compared."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.stores.base import ObjectWriter

PIECE_BYTES = 1 << 18
KEEP_BYTES = 8  # longer than any separator, which the last row must lose again
# The longest row that is archived, and so the longest line that is restored: PostgreSQL
# takes some 20 times that memory to read one.
LINE_BYTES = 32 << 20
_GZIP = 31  # zlib's way to ask for gzip's header and trailer, with no time in it


class StopRequested(Exception):
    """Unwinds to the transaction, which is rolled back."""


class TooLargeError(Exception):
    """The object has more lines, or longer ones, than any archive of ours."""


@dataclass(frozen=True)
class Digest:
    """What an object is compared by: its bytes as stored, and the lines in them."""

    sha256: str
    size_bytes: int
    lines: int


def is_compressed(name: str) -> bool:
    return name.endswith(".gz")


class Sink:
    """Takes an object's text in pieces of any size, and passes it on in larger ones.

    On the way it counts lines, packs the text when the name ends in .gz, and hashes
    what is stored. Raises StopRequested when asked to stop, and JobError for a piece
    longer than any line may be: COPY gives each row as one piece.
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
        """The line ends so far."""
        return self._lines + self._buffer.count(b"\n")

    def write(self, data: bytes) -> None:
        if len(data) > LINE_BYTES:
            begin = data[:30].decode(errors="replace").strip("\n")
            raise JobError(
                f"an audit row has {len(data)} bytes as {self.name}, more than the"
                f" {LINE_BYTES} that can be restored: {begin!r}... HINT: shorten that"
                " row's message, user agent or metadata"
            )
        self._buffer += data
        if len(self._buffer) >= PIECE_BYTES:
            self._pass_on(keep_bytes=KEEP_BYTES)

    def end_rows(self, tail: bytes, *, drop: bytes) -> None:
        """Take `drop` off the end of the last row, and add `tail`; nothing follows."""
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
    """An object's text, piece by piece, hashed as it is stored and unpacked.

    `digest` is complete once every piece was taken. Text that cannot be unpacked ends
    where that shows: its hash, of all that is stored, says that it is not the object.
    With `most_lines` it raises TooLargeError at the first line beyond, or at one of
    more than LINE_BYTES: a few bytes of gzip may stand for very many.
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
        self._line_bytes = 0  # of the line that has begun
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
        """Take every piece and keep none."""
        for _ in self:
            pass
        return self.digest()

    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest(), self._size_bytes, self._lines)

    def _check_bounds(self, text: bytes, most_lines: int) -> None:
        """Pieces are shorter than LINE_BYTES: only a line over several is too long."""
        first_end = text.find(b"\n")
        longest = self._line_bytes + (first_end if first_end >= 0 else len(text))
        if self._lines > most_lines or longest > LINE_BYTES:
            raise TooLargeError
        self._line_bytes = (
            len(text) - text.rfind(b"\n") - 1 if first_end >= 0 else longest
        )


class _Unpacker:
    """gzip to text, until something in it is not gzip."""

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(wbits=_GZIP)
        self._is_broken = False

    def unpack(self, piece: bytes) -> Iterator[bytes]:
        """In pieces of bounded size: a few bytes may stand for very many."""
        while piece and not self._is_broken:
            try:
                text = self._unpacker.decompress(piece, PIECE_BYTES)
            except zlib.error:
                self._is_broken = True
                return
            if text:
                yield text
            # What follows its end is hashed, not kept.
            self._is_broken = self._unpacker.eof
            piece = self._unpacker.unconsumed_tail


def _as_it_is(piece: bytes) -> Iterator[bytes]:
    yield piece


class PiecesFile:
    """What COPY reads from: `pieces` cut to the size that it asks for.

    `error` is what ended the reading.
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
    """No more than so many bytes, and one piece that shows that there are more."""
    left = size_bytes
    for piece in pieces:
        yield piece
        left -= len(piece)
        if left < 0:
            return

"""The filter for all output, which passes through here once.

Secrets are removed, and with LOG_FORMAT=json each line becomes one JSON object. This
applies to the streams of this process, to the output of a command under the runner
(`Relay`), and to that of the container: `python -m starview.output` is the filter of
entrypoint.sh.

Only the standard library is imported, so that this works when a package is missing.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from starview.people import are_masked, without_people
from starview.redaction import RedactedStream, redactor

_READ_BYTES = 64 * 1024
_LONGEST_LINE_BYTES = 1024 * 1024  # a longer line becomes several objects


def json_is_asked() -> bool:
    """Whether LOG_FORMAT is json, by itself or in the file of LOG_FORMAT_FILE."""
    value = os.environ.get("LOG_FORMAT", "")
    path = os.environ.get("LOG_FORMAT_FILE", "")
    if not value and path and Path(path).is_file():
        value = Path(path).read_text(encoding="utf-8", errors="replace").rstrip("\r\n")
    return value == "json"


class Passage:
    """Filters the bytes for `stream`; `keep` gets them without secrets.

    On a terminal, where a line may be drawn in parts, bytes are passed on at once.
    """

    def __init__(
        self,
        stream: str,
        *,
        is_terminal: bool = False,
        keep: Callable[[bytes], None] = lambda clean: None,
    ) -> None:
        as_json = json_is_asked()
        # Names of accounts are recognized by the whole line.
        whole_lines = as_json or not is_terminal or are_masked()
        self._redacted = RedactedStream(redactor(), whole_lines=whole_lines)
        self._json = JsonLines(stream) if as_json else None
        self._keep = keep

    def feed(self, data: bytes) -> bytes:
        return self._shown(self._redacted.feed(data))

    def finish(self) -> bytes:
        """Return the rest of the output, which has no line end."""
        shown = self._shown(self._redacted.finish())
        return shown + self._json.finish() if self._json else shown

    def _shown(self, clean: bytes) -> bytes:
        if are_masked():
            text = clean.decode(errors="surrogateescape")
            clean = without_people(text).encode(errors="surrogateescape")
        self._keep(clean)
        return self._json.feed(clean) if self._json else clean


class JsonLines:
    """Turns each line into one JSON object; a line that is one already is unchanged.

    Empty lines are dropped. Bytes that are not UTF-8 are shown as \\xNN.
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._line = b""

    def feed(self, data: bytes) -> bytes:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _LONGEST_LINE_BYTES:
            lines.append(self._line)
            self._line = b""
        return b"".join(map(self._object, lines))

    def finish(self) -> bytes:
        line, self._line = self._line, b""
        return self._object(line)

    def _object(self, line: bytes) -> bytes:
        if not line.strip():
            return b""
        if not _is_json_object(line):
            record = {
                "event": "output",
                "stream": self._stream,
                "line": line.decode(errors="backslashreplace"),
                "timestamp": datetime.now(UTC).isoformat(),
            }
            line = json.dumps(record, ensure_ascii=False).encode()
        return line + b"\n"


def _is_json_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# -- the streams of this process -------------------------------------------------------


class _Stream(io.BufferedIOBase):
    """A binary stream in front of the one of `text`."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self._text = text  # without a reference it would close its target
        self._target: Any = text.buffer
        self._passage: Passage | None = None
        self._name = name
        self._is_filtered = True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._target.isatty() and not json_is_asked()

    def fileno(self) -> int:
        return int(self._target.fileno())

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self._is_filtered:
            if self._passage is None:  # created late, since it reads the environment
                self._passage = Passage(self._name, is_terminal=self._target.isatty())
            self._write(self._passage.feed(data))
        else:
            self._write(data)
        return len(data)

    def flush(self) -> None:
        if not self._target.closed:
            self._target.flush()

    def finish(self) -> None:
        if self._passage:
            self._write(self._passage.finish())
        self.flush()

    def stop_filtering(self) -> None:
        self._is_filtered, self._passage = False, None

    def _write(self, data: bytes) -> None:
        while data:  # an unbuffered write may be partial
            data = data[self._target.write(data) or 0 :]


def filter_streams() -> None:
    """Filter everything that this process prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show must not end a run. This also holds
            # for code that has taken the stream before.
            stream.reconfigure(errors="backslashreplace")
            text = io.TextIOWrapper(
                cast(BinaryIO, _Stream(stream, name)),
                encoding="utf-8",
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, text)


def finish_streams() -> OSError | None:
    """Flush the streams, with an unfinished last line; safe without `filter_streams`.

    If that fails, this and all later output is dropped, and the error is returned:
    otherwise the interpreter would exit with a code of its own.
    """
    failure = None
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            _finish(getattr(sys, name))
        except OSError as error:
            failure = failure or error
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, number)
            os.close(nothing)
            with suppress(OSError, ValueError):
                _finish(getattr(sys, name))
    return failure


def _finish(stream: Any) -> None:
    stream.flush()
    if isinstance(buffer := getattr(stream, "buffer", None), _Stream):
        buffer.finish()


def stop_filtering() -> None:
    """Do not filter in this process, since another one filters its output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(buffer := getattr(stream, "buffer", None), _Stream):
            buffer.stop_filtering()


# -- the filter of entrypoint.sh -------------------------------------------------------


def main(mark: bytes) -> None:
    """Copy stdin to stdout up to `mark`; ignores signals, so that no line is lost."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    passage = Passage("container")
    data, is_over = b"", False
    while not is_over and (chunk := os.read(0, _READ_BYTES)):
        data, end, _ = (data + chunk).partition(mark)
        is_over = bool(end)
        begun = data.rfind(mark[:1])
        rest = data[begun:] if begun >= 0 and mark.startswith(data[begun:]) else b""
        _write_all(passage.feed(data.removesuffix(rest)))
        data = rest
    _write_all(passage.feed(data) + passage.finish())


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main(b"\0" + sys.argv[1].encode() + b"\n")

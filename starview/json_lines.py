"""With LOG_FORMAT=json, everything that this process prints is one JSON object a line.

Only the standard library is imported: this also speaks when a package is missing.
"""

import io
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO


def json_is_asked() -> bool:
    """Whether LOG_FORMAT, or the file that LOG_FORMAT_FILE names, says json."""
    value = os.environ.get("LOG_FORMAT", "")
    path = os.environ.get("LOG_FORMAT_FILE", "")
    if not value and path and Path(path).is_file():
        value = Path(path).read_text(encoding="utf-8", errors="replace").rstrip("\r\n")
    return value == "json"


class JsonLines(io.TextIOBase):
    """A text stream that writes each line as one JSON object to `target`.

    A line that is a JSON object already passes unchanged; an empty line is dropped.
    """

    def __init__(self, target: TextIO, name: str) -> None:
        self._target = target
        self._name = name
        self._pending = ""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._target.fileno()

    def write(self, text: str) -> int:
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._write_line(line)
        return len(text)

    def flush(self) -> None:
        if not self._target.closed:
            self._target.flush()

    def finish(self) -> None:
        """Write what has no line end yet."""
        pending, self._pending = self._pending, ""
        self._write_line(pending)
        self.flush()

    def _write_line(self, line: str) -> None:
        if not line.strip():
            return
        if not _is_json_object(line):
            record = {
                "event": "output",
                "stream": self._name,
                "line": line,
                "timestamp": datetime.now(UTC).isoformat(),
            }
            line = json.dumps(record, ensure_ascii=False)
        self._target.write(line + "\n")


def wrap_streams_as_json() -> None:
    """Make every further line on stdout and stderr of this process a JSON object."""
    for name in ("stdout", "stderr"):
        stream = JsonLines(getattr(sys, name), name)
        setattr(sys, name, stream)


def finish_streams() -> None:
    """Flush what `wrap_streams_as_json` still holds; harmless without it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, JsonLines):
            stream.finish()


def _is_json_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True

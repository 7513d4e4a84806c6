"""One log line per event, on stderr: for people, or JSON for machines.

structlog renders its own events and those of the standard library (Django, boto3)
alike. With LOG_FORMAT=json `wrap_streams_as_json` also turns what is printed for
people, and a traceback, into one JSON object a line.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import structlog


def configure_logging(log_format: str) -> None:
    """Send structlog and standard-library records to stderr as `log_format` says.

    `log_format` is `console` or `json`; anything else is treated as `console`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, pad_level=False)
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("starview").setLevel(logging.INFO)
    logging.getLogger("starview_app").setLevel(logging.INFO)


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

"""A real HTTP server between a job and the real S3, which fails when it is told to.

    with FailingS3(services.aws_url) as s3:
        s3.on("PutObject", refuse(403, "AccessDenied"), suffix=".txt")

Without rules it passes everything on. Operations have the names that S3 gives them.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Call:
    """One request as it arrives. `forward` asks the real S3."""

    operation: str
    key: str
    body: bytes
    _handler: _Handler = field(repr=False)

    def forward(self, body: bytes | None = None) -> Answer:
        return self._handler.forward(self.body if body is None else body)

    def answer(self, answer: Answer, *, promise_bytes: int | None = None) -> None:
        """Send `answer`, whose length may be announced wrongly."""
        self._handler.send(answer, promise_bytes)

    def hang_up(self) -> None:
        """Reset the connection, as a crashed server does."""
        self._handler.hang_up()


Fault = Callable[[Call], None]


@dataclass
class _Rule:
    operation: str
    fault: Fault
    suffix: str
    times: int | None

    def take(self, call: Call) -> bool:
        if call.operation != self.operation or not call.key.endswith(self.suffix):
            return False
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


class FailingS3:
    """Listens on a free port of the loopback while the block runs."""

    def __init__(self, target_url: str) -> None:
        self.target = urlsplit(target_url).netloc
        self.calls: list[tuple[str, str]] = []  # (operation, key), as they came
        self.released = threading.Event()  # ends every `hang`
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            s3 = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(
        self,
        operation: str,
        fault: Fault,
        *,
        suffix: str = "",
        times: int | None = None,
    ) -> None:
        """Let `fault` answer `operation` on keys that end in `suffix`, `times` times.

        Rules are asked in the order in which they were made; the first match counts.
        """
        self._rules.append(_Rule(operation, fault, suffix, times))

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)

    def handle(self, call: Call) -> None:
        with self._lock:
            self.calls.append((call.operation, call.key))
            rule = next((rule for rule in self._rules if rule.take(call)), None)
        if rule:
            rule.fault(call)
        else:
            call.answer(call.forward())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# -- faults --------------------------------------------------------------------------


def refuse(status: int, code: str, message: str = "no") -> Fault:
    """Answer with an S3 error document."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    ).encode()
    return speak(status, body, "application/xml")


def speak(status: int, body: bytes, content_type: str = "text/html") -> Fault:
    """Answer with anything, like a company's proxy or a load balancer."""
    return lambda call: call.answer(
        Answer(status, {"Content-Type": content_type}, body)
    )


def before(action: Callable[[], Any]) -> Fault:
    """Let something happen, then work as usual."""

    def fault(call: Call) -> None:
        action()
        call.answer(call.forward())

    return fault


def hang_up(call: Call) -> None:
    """Close without an answer; the request was not carried out."""
    call.hang_up()


def lose_answer(call: Call) -> None:
    """Carry the request out, then close without an answer."""
    call.forward()
    call.hang_up()


def cut_short(call: Call) -> None:
    """Close after half of what was announced."""
    answer = call.forward()
    half = answer.body[: len(answer.body) // 2]
    call.answer(
        Answer(answer.status, answer.headers, half), promise_bytes=len(answer.body)
    )
    call.hang_up()


def shorten(call: Call) -> None:
    """Answer with less than was stored, and a length that agrees."""
    answer = call.forward()
    call.answer(Answer(answer.status, answer.headers, answer.body[:-7]))


def flip_byte(call: Call) -> None:
    """Answer with one byte changed."""
    answer = call.forward()
    call.answer(Answer(answer.status, answer.headers, _with_flipped_byte(answer.body)))


def store_flipped_byte(call: Call) -> None:
    """Store something else than was sent, and say that all is well."""
    call.answer(call.forward(_with_flipped_byte(call.body)))


def hang(s3: FailingS3) -> Fault:
    """Say nothing until the test is over."""

    def fault(call: Call) -> None:
        s3.released.wait(600)
        call.hang_up()

    return fault


def _with_flipped_byte(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


# -- HTTP ----------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms
    s3: FailingS3

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        key = url.path.lstrip("/").partition("/")[2]
        self.s3.handle(Call(self._operation(url.query), key, body, self))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _operation(self, query: str) -> str:
        words = parse_qs(query, keep_blank_values=True)
        if "uploads" in words:
            return {"GET": "ListMultipartUploads"}.get(
                self.command, "CreateMultipartUpload"
            )
        if "list-type" in words:
            return "ListObjectsV2"
        if "uploadId" in words:
            return {
                "PUT": "UploadPart",
                "POST": "CompleteMultipartUpload",
                "DELETE": "AbortMultipartUpload",
            }.get(self.command, "ListParts")
        return f"{self.command.title()}Object"

    def forward(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.s3.target, timeout=30)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _HOP_BY_HOP | {"expect"}
        }
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answer

    def send(self, answer: Answer, promise_bytes: int | None) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if answer.status != 204:
            promise = len(answer.body) if promise_bytes is None else promise_bytes
            self.send_header("Content-Length", str(promise))
        self.end_headers()
        self.wfile.write(answer.body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        # No lingering: the other side sees a reset at once.
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: pytest shows what matters."""

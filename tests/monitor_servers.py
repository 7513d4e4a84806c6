"""Stand-ins for Healthchecks and Sentry: real HTTP servers that keep to the protocols.

    with HealthchecksServer() as server:
        server.on("/start", answer(500), times=1)
        ... HEARTBEAT_URL=server.ping_url ...
        server.pings  # what was accepted, in order

They refuse what the real ones refuse. A fault is for requests whose path holds a text.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PING_KEY = "ping-key-of-the-project"
API_KEY = "api-key-of-the-project"
PUBLIC_KEY = "0123456789abcdef0123456789abcdef"
_SLUG = re.compile(r"[a-z0-9_-]+")
_SIGNALS = ("start", "fail", "log")
_GRACE_SECONDS = range(60, 31_536_001)


class Refusal(Exception):
    """What is answered instead of 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


Fault = Callable[["Call"], bool]


class MonitorServer:
    """Listens on a free port of the loopback while the block runs."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.calls: list[str] = []  # the paths of all requests, as they came
        self.released = threading.Event()  # ends every fault that waits
        self.changed = threading.Condition()
        self._faults: list[list[Any]] = []
        server = self

        class Handler(Call):
            monitor = server

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True
            )
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"

    def on(self, part: str, fault: Fault, times: int | None = None) -> None:
        """`fault` for the next `times` requests (None: all) whose path holds `part`."""
        self._faults.append([part, fault, times])

    def fault_for(self, path: str) -> Fault | None:
        with self.changed:
            for rule in self._faults:
                part, fault, times = rule
                if part in path and times != 0:
                    rule[2] = None if times is None else times - 1
                    return fault  # type: ignore[no-any-return]
        return None

    def respond(self, call: Call, body: bytes) -> tuple[int, str, dict[str, str]]:
        """(status, text, headers); raises Refusal."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        ).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class Call(BaseHTTPRequestHandler):
    """One request, as the servers answer it."""

    monitor: MonitorServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        monitor = self.monitor
        with monitor.changed:
            monitor.calls.append(self.path)
        fault = monitor.fault_for(self.path)
        if fault and fault(self):
            return
        try:
            with monitor.changed:
                status, text, headers = monitor.respond(self, body)
        except Refusal as refusal:
            status, text, headers = refusal.status, str(refusal), {}
        self.answer(status, text, headers)

    do_GET = do_POST

    def answer(self, status: int, text: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side has left."""


# -- faults -------------------------------------------------------------------------


def answer(status: int, text: str = "", **headers: str) -> Fault:
    def fault(call: Call) -> bool:
        call.answer(status, text, headers)
        return True

    return fault


def hang(call: Call) -> bool:
    """Take the request, and say nothing."""
    call.monitor.released.wait(60)
    return True


def drip(call: Call) -> bool:
    """Begin to answer, a byte a second."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" * 9:
        call.wfile.write(bytes([byte]))
        if call.monitor.released.wait(1.0):
            break
    return True


def late(seconds: float) -> Fault:
    """Answer as usual, but late."""

    def fault(call: Call) -> bool:
        return call.monitor.released.wait(seconds)

    return fault


def hang_up(call: Call) -> bool:
    """Close the connection without an answer."""
    call.connection.shutdown(socket.SHUT_RDWR)
    return True


def echo(call: Call) -> bool:
    """Refuse, and say what was asked and with which key."""
    call.answer(400, f"{call.path} {call.headers['X-Sentry-Auth']}", {})
    return True


# -- Healthchecks --------------------------------------------------------------------


@dataclass(frozen=True)
class Ping:
    check: str  # its slug, or its UUID
    signal: str  # "success", "start", "fail" or "log"
    rid: str
    body: bytes


class HealthchecksServer(MonitorServer):
    """A project with a ping key, an API key, and the check UUID `check_id`."""

    def __init__(self, *, certificate: Path | None = None) -> None:
        super().__init__(certificate)
        self.check_id = uuid.uuid4()
        self.pings: list[Ping] = []
        self.checks: dict[str, dict[str, Any]] = {}  # by slug, as the API has them
        self.ping_url = f"{self.url}/ping/{PING_KEY}"

    @property
    def signals(self) -> list[tuple[str, str]]:
        return [(ping.check, ping.signal) for ping in self.pings]

    def respond(self, call: Call, body: bytes) -> tuple[int, str, dict[str, str]]:
        parts = urlsplit(call.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/api/v3/checks/":
            return self._save_check(call, body)
        first, *rest = parts.path.removeprefix("/ping/").split("/")
        if _is_canonical_uuid(first):
            status, check = (200 if first == str(self.check_id) else 404), first
            if "create" in query:
                raise Refusal(400, "create goes with a slug only")
        else:
            check, *rest = rest or [""]
            status = self._check_of(first, check, create=query.get("create") == "1")
        signal = rest[0] if rest else "success"
        if len(rest) > 1 or (rest and signal not in _SIGNALS):
            raise Refusal(400, "invalid url format")
        if status == 404:
            raise Refusal(404, "not found")
        if "rid" in query and not _is_canonical_uuid(query["rid"]):
            raise Refusal(400, "invalid uuid format")
        kept = body[:10_000]
        self.pings.append(Ping(check, signal, query.get("rid", ""), kept))
        return status, "Created" if status == 201 else "OK", {}

    def _check_of(self, key: str, slug: str, *, create: bool) -> int:
        if not _SLUG.fullmatch(slug):
            raise Refusal(400, "invalid url format")
        if key != PING_KEY:
            raise Refusal(404, "not found")
        if slug in self.checks:
            return 200
        if not create:
            return 404
        self.checks[slug] = {"slug": slug, "timeout": 86_400, "grace": 3_600}
        return 201

    def _save_check(self, call: Call, body: bytes) -> tuple[int, str, dict[str, str]]:
        if call.headers["X-Api-Key"] != API_KEY:
            raise Refusal(401, '{"error": "wrong api key"}')
        check = json.loads(body)
        problems = [
            name
            for name, is_right in {
                "slug": bool(_SLUG.fullmatch(check["slug"])),
                "schedule": len(check["schedule"].split()) == 5,
                "tz": check["tz"] == "UTC",
                "grace": check["grace"] in _GRACE_SECONDS,
                "channels": check["channels"] == "*",
                "unique": check["unique"] == ["slug"],
            }.items()
            if not is_right
        ]
        if problems:
            raise Refusal(400, json.dumps({"error": f"json validation: {problems}"}))
        is_known = check["slug"] in self.checks
        self.checks[check["slug"]] = check
        return 200 if is_known else 201, "{}", {}


def _is_canonical_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


# -- Sentry --------------------------------------------------------------------------


class SentryServer(MonitorServer):
    """A project that reads envelopes. `items` has (type, payload), as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[tuple[str, dict[str, Any]]] = []
        self.dsn = f"http://{PUBLIC_KEY}@127.0.0.1:{self.port}/42"

    def of_type(self, type_: str) -> list[dict[str, Any]]:
        return [payload for found, payload in self.items if found == type_]

    def respond(self, call: Call, body: bytes) -> tuple[int, str, dict[str, str]]:
        if call.path != "/api/42/envelope/":
            raise Refusal(404, "no such project")
        if f"sentry_key={PUBLIC_KEY}" not in call.headers["X-Sentry-Auth"]:
            raise Refusal(403, "bad key")
        if call.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        header, _, rest = body.partition(b"\n")
        json.loads(header)
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            item = json.loads(line)
            payload, rest = rest[: item["length"]], rest[item["length"] + 1 :]
            self._take(item["type"], json.loads(payload))
        return 200, "{}", {}

    def _take(self, type_: str, payload: dict[str, Any]) -> None:
        if type_ == "check_in":
            uuid.UUID(payload["check_in_id"])
            slug = payload["monitor_slug"]
            if not _SLUG.fullmatch(slug) or len(slug) > 50:
                raise Refusal(400, f"bad slug {slug!r}")
            if payload["status"] not in ("in_progress", "ok", "error"):
                raise Refusal(400, f"bad status {payload['status']!r}")
        self.items.append((type_, payload))


# -- no HTTP at all ------------------------------------------------------------------


class SilentServer:
    """A port that takes connections and never says a word."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def self_signed_certificate(folder: Path) -> Path:
    """Of 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "monitor")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "monitor.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path

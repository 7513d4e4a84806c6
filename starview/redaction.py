r"""Removes secrets from output, in every form in which a program may write them.

The text and the secrets are brought into one canonical form, in which escapes (%2F,
\u002f, \x2f, \\, \", &amp;) are resolved, and blanks, line ends and quotation marks
left out. In this form one matcher looks for each secret, its base64 and its hexadecimal
digits. So it does not matter how often a secret was escaped, or how many lines it has.

Only the standard library is imported, so that this works without valid settings.
"""

import base64
import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from starview.people import masked_if_asked

# Shorter secrets would be found in ordinary words.
SHORTEST_SECRET = 6  # characters
MASK = "***"

# Names of variables that hold secrets, also those that this project does not know.
_SECRET_NAME = re.compile(
    r"(^|_)(ACCESS_KEY_ID|API_?KEY|KEY|TOKEN|SECRET|PASSPHRASE|PASSWD|PASSWORD|DSN)S?"
    r"(_B64|_BASE64|_PEM)?$|PASSWORD$"
)
# Variables with a URL whose path is the secret.
_SECRET_URL_NAME = re.compile(r"(^|_)(HEARTBEAT|PING|WEBHOOK|HOOK)_URL$")
_PUBLIC_SEGMENTS = {"", "ping", "api", "hooks", "services"}
_URL_PASSWORD = re.compile(rb"(://[^\s/:@\"']*:)[^\s/@\"']+@")
_LEAST_LINE = 16  # characters of one line of a secret that has many, as PEM files have
# If a text ends with so many characters of a secret's beginning, they wait for the
# rest.
_WAITING_CHARACTERS = 4
_LONGEST_LINE_BYTES = 64 * 1024  # of a longer line a part is passed on

_BACKSLASH = rb"(?:\\|%(?:25)*5[Cc])"
_ESCAPE = re.compile(
    rb"""
    (?P<dropped>[\s"']+)
    | BACKSLASH+u(?P<high>[dD][89abAB][0-9a-fA-F]{2})
      BACKSLASH+u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})
    | BACKSLASH+(?:u(?P<short>[0-9A-Fa-f]{4})|U(?P<long>[0-9A-Fa-f]{8}))
    | BACKSLASH+x(?P<byte>[0-9A-Fa-f]{2})
    | BACKSLASH+[abfnrtv]?
    | %(?:25)*(?P<percent>[0-9A-Fa-f]{2})
    | &(?:amp;)*(?P<entity>amp|lt|gt|quot|\#39|\#x27);
    """.replace(b"BACKSLASH", _BACKSLASH),
    re.VERBOSE,
)
_BEGUN_ESCAPE = re.compile(rb"(?:%[0-9A-Fa-f]?|\\+(?:[uUx][0-9A-Fa-f]{0,7})?)\Z")
_DROPPED = b" \t\r\n\v\f\"'\\"
# base64 for URLs has other characters.
_FOLDED = bytes.maketrans(b"-_", b"+/")


def redact(text: str) -> str:
    """Return `text` without the secrets of this process's environment.

    With REDACT_EMAILS it is also without names and addresses of accounts.
    """
    return masked_if_asked(redactor().text(text))


@cache
def redactor() -> "Redactor":
    """Return the redactor of this process, whose environment is read once."""
    return Redactor(secrets_of(os.environ))


# -- what is secret --------------------------------------------------------------------


def secrets_of(environ: Mapping[str, str]) -> set[str]:
    """Return the values, and parts of values, that are secret."""
    found: set[str] = set()
    for name, value in environ.items():
        if name.endswith("_FILE"):
            name, value = name.removesuffix("_FILE"), _read(value)
        if not value:
            continue
        if _SECRET_NAME.search(name):
            found |= {value, *_lines(value)}
        if "://" in value:
            found |= _secrets_of_url(name, value)
    return {secret for secret in found if len(secret) >= SHORTEST_SECRET}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError):
        return ""


def _lines(value: str) -> Iterator[str]:
    for line in value.split("\n") if "\n" in value else []:
        if len(line) >= _LEAST_LINE and not line.startswith("-----"):
            yield line.rstrip("\r")


def _secrets_of_url(name: str, url: str) -> set[str]:
    """Return a URL's secrets; for a hook its path too. The last @ ends the password."""
    _, _, rest = url.partition("://")
    before, at, after = rest.rpartition("@")
    user, colon, password = before.partition(":")
    parts = set()
    if colon:
        parts.add(password)
    elif at and _SECRET_NAME.search(name):
        parts.add(user)  # the user of a DSN is a secret key
    address, _, query = after.partition("?")
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if _SECRET_NAME.search(key.upper()):
            parts.add(value)
    if _SECRET_URL_NAME.search(name):
        parts |= set(address.split("/")[1:]) - _PUBLIC_SEGMENTS
    parts |= {unquote(part) for part in parts}
    return parts | {url} if any(parts) else set()


# -- finding it ------------------------------------------------------------------------


class _Canonical(NamedTuple):
    """Bytes in canonical form, with the place that each of them comes from."""

    data: bytes
    starts: list[int]
    ends: list[int]


class Redactor:
    """Replaces each of `secrets`, in any form, by MASK."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms_of(secret)}
        self._forms = sorted(forms, key=len, reverse=True)
        self.longest = len(self._forms[0]) if self._forms else 0
        self._heads: dict[bytes, list[bytes]] = {}
        for form in self._forms:
            self._heads.setdefault(form[:_WAITING_CHARACTERS], []).append(form)
        self._matcher = re.compile(b"|".join(map(re.escape, self._forms)) or b"(?!)")

    def text(self, text: str) -> str:
        data, _, _ = self.part(text.encode(errors="surrogatepass"))
        return data.decode(errors="surrogatepass")

    def part(
        self, data: bytes, before: bytes = b"", *, waiting_characters: int = 0
    ) -> tuple[bytes, bytes, bytes]:
        """Redact a part of a stream; return (redacted, tail in canonical form, rest).

        `before` is the tail of the part before, with which the end of a secret that
        began there is found and removed. If `data` ends with `waiting_characters` or
        more of a secret's beginning, these are the rest, which must come before the
        next part. With 0 characters `data` is the last part.
        """
        canonical = before + _canonical(data)
        found = self._spans(canonical, len(before))
        waits_from = None
        if waiting_characters:
            waits_from = self._waits_from(canonical, found, waiting_characters)
        waiting = b""
        if found or waits_from is not None:
            origin = _with_origins(data)
            if waits_from is not None:
                first = max(waits_from - len(before), 0)
                if first < len(origin.starts):
                    data, waiting = _split(data, origin.starts[first])
                    canonical = canonical[: max(waits_from, len(before))]
            data = _masked(data, origin, found, len(before))
        if found:
            canonical = canonical[found[-1][1] :]
        if b"://" in data:
            data = _URL_PASSWORD.sub(rb"\1" + MASK.encode() + b"@", data)
        last = canonical[-self.longest + 1 :] if self.longest > 1 else b""
        return data, last, waiting

    def _spans(self, canonical: bytes, after: int) -> list[tuple[int, int]]:
        # A fast check first: most texts have no secret, and the matcher is slow.
        if not any(form in canonical for form in self._forms):
            return []
        spans = [match.span() for match in self._matcher.finditer(canonical)]
        return [span for span in spans if span[1] > after]

    def _waits_from(
        self, canonical: bytes, found: list[tuple[int, int]], least: int
    ) -> int | None:
        """Return where the longest beginning of a secret begins that ends the text."""
        after = max(found[-1][1] if found else 0, len(canonical) - self.longest + 1)
        for start in range(after, len(canonical) - least + 1):
            head = canonical[start : start + _WAITING_CHARACTERS]
            is_short = len(head) < _WAITING_CHARACTERS
            forms = self._forms if is_short else self._heads.get(head, ())
            if any(form.startswith(canonical[start:]) for form in forms):
                return start
        return None


class RedactedStream:
    """Redacts a stream. With `whole_lines` a part of a line waits for the line's end.

    A terminal needs parts of a line at once, for example those of a progress bar.
    """

    def __init__(self, redactor: Redactor, *, whole_lines: bool) -> None:
        self._redactor = redactor
        self._whole_lines = whole_lines
        self._before = b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        rest = b""
        if self._whole_lines:
            end = data.rfind(b"\n") + 1
            if len(data) - end <= _LONGEST_LINE_BYTES:
                data, rest = data[:end], data[end:]
        if not data.endswith(b"\n") and (begun := _BEGUN_ESCAPE.search(data)):
            data, rest = data[: begun.start()], data[begun.start() :] + rest
        # In the middle of a line even a single character may wait unnoticed.
        is_cut = self._whole_lines and not data.endswith(b"\n")
        out, last, waiting = self._redactor.part(
            data, self._before, waiting_characters=1 if is_cut else _WAITING_CHARACTERS
        )
        if self._whole_lines and waiting and b"\n" in out:
            # Pass on whole lines, since another process may write in between.
            out, line = _split(out, out.rfind(b"\n") + 1)
            waiting = line + waiting
            last = last[: len(last) - len(_canonical(line))] if line else last
        if len(waiting) > _LONGEST_LINE_BYTES:
            more, last, waiting = self._redactor.part(waiting, last)
            out += more
        self._before, self._held = last, waiting + rest
        return out

    def finish(self) -> bytes:
        """Return what still waits, redacted."""
        out, self._before, self._held = self._redactor.part(self._held, self._before)
        return out


def _forms_of(secret: str) -> Iterator[bytes]:
    """Yield a secret's forms in canonical form, of at least SHORTEST_SECRET bytes."""
    data = secret.encode(errors="surrogateescape")
    plain = {data, _as_repr_has_it(secret), unquote(secret).encode()}
    if b" " in data:
        plain.add(data.replace(b" ", b"+"))
    shapes = {*plain, data.hex().encode(), data.hex().upper().encode()}
    for each in plain:
        shapes |= set(_base64_of(each))
    for shape in shapes:
        form = _canonical(shape)
        if len(form) >= SHORTEST_SECRET:
            yield form


def _as_repr_has_it(secret: str) -> bytes:
    r"""Return the bytes to which \xe4 and \u20ac resolve: one for a small code."""
    return b"".join(
        bytes([ord(sign)]) if ord(sign) < 256 else sign.encode(errors="surrogateescape")
        for sign in secret
    )


def _base64_of(data: bytes) -> Iterator[bytes]:
    """Yield the base64 of `data` alone and within a longer text: `user:password`."""
    yield base64.b64encode(data).rstrip(b"=")
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).rstrip(b"=")
        first = -(-8 * offset // 6)  # characters that depend on the bytes before
        last = 8 * (offset + len(data)) // 6
        yield encoded[first:last]


def _canonical(data: bytes) -> bytes:
    if b"\\" in data or b"%" in data or b"&" in data:
        data = _ESCAPE.sub(_resolved, data)
    return data.translate(_FOLDED, _DROPPED)


def _with_origins(data: bytes) -> _Canonical:
    """Return what `_canonical` does, with the origin of each byte."""
    parts, starts, ends = [], [], []

    def take(part: bytes, start: int, end: int, step: int) -> None:
        for index, code in enumerate(part):
            sign = bytes([code]).translate(_FOLDED, _DROPPED)
            if sign:
                parts.append(sign)
                starts.append(start + index * step)
                ends.append(start + index + 1 if step else end)

    position = 0
    for match in _ESCAPE.finditer(data):
        take(data[position : match.start()], position, match.start(), 1)
        take(_resolved(match), match.start(), match.end(), 0)
        position = match.end()
    take(data[position:], position, len(data), 1)
    return _Canonical(b"".join(parts), starts, ends)


def _resolved(escape: re.Match[bytes]) -> bytes:
    kind, digits = escape.lastgroup, escape[escape.lastgroup or 0]
    match kind:
        case "percent" | "byte":
            return bytes([int(digits, 16)])
        case "short" | "long":
            code = int(digits, 16)
            return chr(code).encode(errors="surrogatepass") if code < 0x110000 else b""
        case "low":
            pair = bytes.fromhex((escape["high"] + digits).decode())
            return pair.decode("utf-16-be").encode()
        case "entity":
            return html.unescape(f"&{digits.decode()};").encode()
        case _:
            return b""


def _masked(
    data: bytes, origin: _Canonical, found: list[tuple[int, int]], skipped: int
) -> bytes:
    """Return `data` with MASK in place of the spans `found`.

    These count canonical bytes, of which the first `skipped` come before `data`.
    """
    parts, position = [], 0
    for first, end in found:
        start = origin.starts[max(first - skipped, 0)]
        if first < skipped:
            start = 0
        parts += [data[position:start], MASK.encode()]
        position = origin.ends[end - skipped - 1]
    parts.append(data[position:])
    return b"".join(parts)


def _split(data: bytes, index: int) -> tuple[bytes, bytes]:
    return data[:index], data[index:]

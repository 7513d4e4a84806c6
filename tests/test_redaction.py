"""No secret leaves, whatever form a program gives it; and nothing else is lost."""

import base64
import json
import os
import random
import re
import shlex
import string
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from starview.redaction import (
    RedactedStream,
    Redactor,
    redactor,
    secrets_of,
)
from starview_app.maintenance.models import JobRun
from tests.conftest import Manage

SECRETS = [
    "plain-Secret_of-letters",
    "p@ss/w0rd?&=#%+ü",
    'it\'s "quoted" and \\slashed\\',
    "C:\\new\\table%41",
    "+/=+/=+/=+/=",
    "pässwörd🔭long",
    "a b c d e f",
]


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def in_base64_of_a_header(text: str) -> str:
    return base64.b64encode(f"user:{text}".encode()).decode()


FORMS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "URL": lambda text: quote(text, safe=""),
    "URL, path": quote,
    "form": quote_plus,
    "URL, small letters": lambda text: quote(text, safe="").lower(),
    "URL, twice": lambda text: quote(quote(text, safe=""), safe=""),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON, not ASCII": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "repr": lambda text: repr(text)[1:-1],
    "repr of bytes": lambda text: repr(text.encode())[2:-1],
    "ascii": ascii,
    "shell": shlex.quote,
    "HTML": lambda text: text.replace("&", "&amp;").replace('"', "&quot;"),
    "base64": in_base64,
    "base64 for addresses": lambda text: (
        in_base64(text).replace("+", "-").replace("/", "_")
    ),
    "base64 of a header": in_base64_of_a_header,
    "base64 in a URL": lambda text: quote(in_base64(text), safe=""),
    "hex": lambda text: text.encode().hex(),
    "two lines": lambda text: f"{text[:9]}\n{text[9:]}",
    "two quoted lines": lambda text: f"{text[:9]}'\n    '{text[9:]}",
    "base64 in lines": lambda text: "\n".join(textwrap.wrap(in_base64(text), 5)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_in_every_form(form: str, secret: str) -> None:
    written = FORMS[form](secret)

    shown = Redactor([secret]).text(f"before {written}.after")

    if form == "URL, small letters" and secret != quote(secret.lower(), safe=""):
        return  # its letters are others now
    assert shown.startswith("before "), shown
    assert shown.endswith("after"), shown
    assert "***" in shown
    # Of base64 a sign or two at the edges also depend on what stands beside it.
    edges = 8 if "base64" in form else 0
    left = shown.replace("before ", "").replace("after", "").replace("***", "")
    assert len(re.sub(r"""[\\"'.=]|%(25)*5C|&quot;""", "", left)) <= edges, shown


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 4096])
def test_a_secret_is_found_however_the_bytes_are_cut(size: int) -> None:
    random.seed(size)
    secrets = SECRETS[:3]
    data = "".join(
        random.choice([*secrets, *map(quote, secrets), "word", "\n", " "]) + "\n"
        for _ in range(200)
    ).encode()

    for whole_lines in (True, False):
        stream = RedactedStream(Redactor(secrets), whole_lines=whole_lines)
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        shown = (b"".join(map(stream.feed, parts)) + stream.finish()).decode()

        for secret in secrets:
            assert secret[5:] not in shown
            assert quote(secret)[5:] not in shown
        assert shown.count("word") == data.count(b"word")


def test_nothing_else_is_changed() -> None:
    random.seed(7)
    signs = string.printable + "\\\\%%''äß🔭\x00\x1b"
    known = Redactor(SECRETS)
    for _ in range(2000):
        text = "".join(random.choices(signs, k=random.randrange(80)))
        assert known.text(text) == text


def test_what_may_begin_a_secret_waits_for_what_follows_and_no_longer() -> None:
    stream = RedactedStream(Redactor(["secret-value"]), whole_lines=True)

    assert stream.feed(b"one\nthe key is secret-\n") == b"one\n"
    assert stream.feed(b"free\nthe key is secret-\n") == (b"the key is secret-\nfree\n")
    assert stream.feed(b"value\nend\n") == b"the key is ***\nend\n"
    assert stream.finish() == b""


def test_a_part_of_a_line_waits_on_a_pipe_and_not_on_a_terminal() -> None:
    for whole_lines, first in ((True, b""), (False, b"50%...")):
        stream = RedactedStream(Redactor(["secret-value"]), whole_lines=whole_lines)

        assert stream.feed(b"50%...") == first
        assert first + stream.feed(b"done\n") == b"50%...done\n"


def test_a_line_without_end_is_redacted_in_parts() -> None:
    stream = RedactedStream(Redactor(["secret-value"]), whole_lines=True)
    data = b"x" * 65_531 + b"secret-value" * 20_000

    shown = b"".join(
        stream.feed(data[start : start + 4096]) for start in range(0, len(data), 4096)
    )
    shown += stream.finish()

    assert shown == b"x" * 65_531 + b"***" * 20_000


@pytest.mark.parametrize(
    ("name", "value", "secrets"),
    [
        ("MAPBOX_TOKEN", "pk.abcdef", {"pk.abcdef"}),
        ("STRIPE_API_KEY", "sk_live_1", {"sk_live_1"}),
        ("SOME_CLIENT_SECRET", "abcdefg", {"abcdefg"}),
        ("DB_PASSWORD", "abcdefg", {"abcdefg"}),
        ("PGPASSWORD", "abcdefg", {"abcdefg"}),
        ("OTHER_DSN", "abcdefg", {"abcdefg"}),
        ("AWS_ACCESS_KEY_ID", "AKIA12", {"AKIA12"}),
        ("MAPBOX_TOKEN", "short", set()),
        ("KEY_PREFIX", "starview", set()),
        ("MONKEYS", "starview", set()),
        ("AWS_S3_ENDPOINT_URL", "https://s3.example.com/path", set()),
        ("HEARTBEAT_URL", "https://hc-ping.com/ping-key/", {"ping-key"}),
        ("HEARTBEAT_URL", "https://hc.example/ping/ping-key", {"ping-key"}),
        ("ALERT_WEBHOOK_URL", "https://h.example/services/T012345", {"T012345"}),
        ("SENTRY_DSN", "https://public@s.example/1", {"public"}),
        ("BROKER_URL", "amqp://u:p%40ssword@mq/v", {"p%40ssword", "p@ssword"}),
        ("REDIS_URL", "redis://:p@ss/word@h:1/0", {"p@ss/word"}),
        ("DATABASE_URL", "postgres:///n?password=abcdef", {"abcdef"}),
        ("DATABASE_URL", "postgresql://localhost/starview", set()),
    ],
)
def test_what_is_secret_is_known_by_the_name_or_as_a_part_of_an_address(
    name: str, value: str, secrets: set[str]
) -> None:
    whole = {value} if secrets else set()

    assert secrets_of({name: value}) - whole == secrets - whole
    assert secrets_of({name: value}) >= whole


def test_a_secret_in_a_file_is_one_too_each_of_its_lines(tmp_path: Path) -> None:
    lines = ["-----BEGIN KEY-----", "MIIBVgIBADANBgkqhkiG", "9w0BAQEFAASCAUAwggE8"]
    (tmp_path / "key").write_text("\n".join(lines) + "\n")

    known = secrets_of({"SIGNING_KEY_FILE": str(tmp_path / "key")})

    assert known == {"\n".join(lines), lines[1], lines[2]}


def test_the_password_of_any_address_is_masked() -> None:
    shown = Redactor([]).text("postgres://u:pw@h/n http://h:80/a@b redis://:x@h ")

    assert shown == "postgres://u:***@h/n http://h:80/a@b redis://:***@h "


# -- processes -------------------------------------------------------------------------

TOLD = "s3cr3t/of+the run%21"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_neither_log_nor_record_of_a_run_holds_a_secret(
    log_format: str, run_job_print: Manage
) -> None:
    forms = [FORMS[form](TOLD) for form in ("raw", "URL", "JSON", "two lines")]
    forms += [in_base64(TOLD), in_base64_of_a_header(TOLD)]

    done = run_job_print(
        *forms, env={"UNHEARD_OF_TOKEN": TOLD, "LOG_FORMAT": log_format}
    )

    assert done.returncode == 0, done.stderr
    run = JobRun.objects.get()
    for text in (done.stdout, done.stderr, run.output, run.command):
        for form in forms:
            assert form[6:] not in text
    assert done.stdout.count("***") == run.output.count("***") == 6


@pytest.fixture
def run_job_print(manage: Manage) -> Manage:
    """`shell` prints its arguments as a job whose runs are recorded."""

    def run(
        *words: str, env: dict[str, str | None]
    ) -> "subprocess.CompletedProcess[str]":
        script = f"print(*{words!r}, sep='\\n')"
        return manage("run_job", "shell", "-v0", "-c", script, env=env)

    return run


@pytest.mark.django_db
@pytest.mark.parametrize("form", ["raw", "URL", "JSON", "base64"])
def test_a_command_that_is_not_recorded_shows_no_secret_either(
    form: str, manage: Manage
) -> None:
    text = FORMS[form](TOLD)
    script = f"import sys; print({text!r}); sys.exit({text!r})"

    done = manage("shell", "-v0", "-c", script, env={"UNHEARD_OF_TOKEN": TOLD})

    assert "***" in done.stdout
    assert text not in done.stdout + done.stderr


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    redactor.cache_clear()
    monkeypatch.setitem(os.environ, "UNHEARD_OF_TOKEN", TOLD)

    assert redactor().text(TOLD) == "***"

    redactor.cache_clear()

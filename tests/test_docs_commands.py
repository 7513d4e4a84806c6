"""Each command and each message that a page shows exists in the program, and runs."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from django.core.management import CommandError, get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.db import connection
from django.utils import timezone

from demo.data import load
from demo.services import LocalServices
from tests.conftest import Manage
from tests.factories import execute, runs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

# -- commands --------------------------------------------------------------------------

# What may stand for NAME, DATE, FILE and the like, for a variable of the shell, or for
# a date: some options take only one to come.
TOMORROW = datetime.now(UTC).date() + timedelta(days=1)
VALUES = ("1", "2026-01-01", f"{TOMORROW}", "someone@example.com")
_PLACEHOLDER = re.compile(r"\$?[A-Z][A-Z_.@]+|\d{4}-\d\d-\d\d")


# docs/extending.md adds it.
TO_BE_WRITTEN = "cleanup_confirmations"
OURS = sorted(name for name, app in get_commands().items() if app == "starview_app")


def shown_commands() -> Iterator[tuple[str, str]]:
    """Page and words behind `manage.py`, and in the text what begins with a command.

    There only with an option or a placeholder: `jobs run` alone is a name.
    """
    span = rf"`((?:{'|'.join(OURS)}) (?=[^`\n]*(?:--|[A-Z]{{3}}))[^`\n]+)`"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"manage\.py ((?!\.\.\.)[a-z_]+[^`\n]*)", text)
        for found in [*shown, *re.findall(span, text)]:
            words = re.split(r"\s+#|[|;&>]|\s\.\.\.|\. |, ", found)[0]
            # What is in brackets may be left out.
            words = re.sub(r"\s*\[[^\]]*\]", "", words).strip()
            if not words.startswith(TO_BE_WRITTEN):
                yield page.name, words


@pytest.mark.parametrize(("page", "words"), sorted(set(shown_commands())))
def test_a_command_that_a_page_shows_exists_with_its_options(
    page: str, words: str
) -> None:
    name, *arguments = shlex.split(words)

    assert name in get_commands()
    assert can_be_read(name, arguments)


def can_be_read(name: str, arguments: list[str]) -> bool:
    app = get_commands()[name]
    command = app if isinstance(app, BaseCommand) else load_command_class(app, name)
    places = [i for i, word in enumerate(arguments) if _PLACEHOLDER.search(word)]
    for values in product(VALUES, repeat=len(places)):
        filled = list(arguments)
        for index, value in zip(places, values, strict=True):
            filled[index] = _PLACEHOLDER.sub(value, filled[index])
        try:
            command.create_parser("manage.py", name).parse_args(filled)
        except (CommandError, SystemExit) as error:
            # --help and --version end it as well.
            if isinstance(error, SystemExit) and not error.code:
                return True
            continue
        return True
    return False


def test_an_option_that_does_not_exist_is_found() -> None:
    assert can_be_read("cleanup_unverified_users", ["--days=7"])
    assert not can_be_read("cleanup_unverified_users", ["--dayz=7"])
    assert not can_be_read("jobs", ["sho", "RUN"])


NAME = "starview-cleanup-unverified-users"
# What stands for something else, and what it is here.
_FILLED = {
    r"--crontab FILE": "--crontab crontab",
    r"\bFILE\b|report\.html": "{folder}/written",
    r"/tmp/units": "{folder}/units",
    r"--into \w+": "--into {database}",
    r"\bBACKUP\b": "newest",
    r"\bKEY\b": "{key}",
    r"\bRUN\b": "{run}",
    r"\bNAME\b": NAME,
    r"\bDATE\b": f"{TOMORROW}",
    r'"\$ADMIN_EMAIL"|\bADDRESS\b': "ops@example.com",
    r"YOUR_COMMAND --its-options": "clearsessions",
}
# What the tests set no variables for, and what is said of it.
_REFUSED = {"setup_google_oauth": "GOOGLE_OAUTH_CLIENT_ID"}


@pytest.mark.soak
@pytest.mark.django_db(transaction=True)
def test_each_command_that_a_page_shows_runs_on_the_demos_data(
    manage: Manage, bucket: LocalServices, backup_path: str, tmp_path: Path
) -> None:
    load(connection, timezone.now())
    path = f"{Path(sys.executable).parent}{os.pathsep}{backup_path}"
    done: dict[str, CompletedProcess[str]] = {}

    for words in sorted({words for _, words in shown_commands()}, key=_in_order):
        keys = [found.key for found in bucket.archived_objects()]
        into = _database("restored_by_a_page") if "--into" in words else nullcontext()
        with into as database:
            command = _filled(
                words,
                folder=tmp_path,
                key=keys[0] if keys else "",
                run=runs().values_list("pk", flat=True).first(),
                database=database,
            )
            if command not in done:
                done[command] = manage(*shlex.split(command), env={"PATH": path})

    failed = {
        command: ended.stdout[-500:] + ended.stderr[-500:]
        for command, ended in done.items()
        if ended.returncode != (command in _REFUSED)
        or _REFUSED.get(command, "") not in ended.stderr
    }
    assert failed == {}
    assert len(done) > 40


@contextmanager
def _database(name: str) -> Iterator[str]:
    execute(f"CREATE DATABASE {name}")
    try:
        yield name
    finally:
        execute(f"DROP DATABASE {name}")


def _in_order(words: str) -> tuple[bool, str]:
    """What is restored has to be archived or backed up before."""
    return words.startswith(("restore", "verify")), words


def _filled(words: str, **values: object) -> str:
    for pattern, value in _FILLED.items():
        words = re.sub(pattern, value.format(**values), words)
    return words


# -- messages --------------------------------------------------------------------------

# Said by PostgreSQL, Python or the shell, or put together from parts.
NOT_OURS = {
    *("No module named", "t open file", "permission denied for"),
    *("not run since", "Left by an earlier run, undone"),
    *("verify_audit_archives found what is not good", "pg_dump is of PostgreSQL"),
    "sets standard_conforming_strings=off",
}


def program_text() -> str:
    """All of it, with string literals of several lines joined and fields as {}."""
    paths = [*ROOT.glob("starview/**/*.py"), *ROOT.glob("starview_app/**/*.py")]
    text = "\n".join(p.read_text("utf-8") for p in [*paths, ROOT / "entrypoint.sh"])
    text = re.sub(r"""["']\s*\n\s*(?:#.*\n\s*)*[rf]?["']""", "", text)
    return re.sub(r"\{[^{}\n]*\}", "{}", text)


def test_the_messages_of_the_operations_page_are_those_of_the_program() -> None:
    program = program_text()
    rows = [line for line in OPERATIONS.splitlines() if line.startswith("| `")]
    quoted = [
        part for row in rows for part in re.findall("`(.+?)`", row.split(" | ")[0])
    ]
    # Between what stands for what differs: ..., NAME, N, a number.
    split = [re.split(r"\.\.\.|\b[A-Z]{4,}\b|\bN\b|\b\d+\b|'", text) for text in quoted]
    fragments = {part.strip(" ,:") for parts in split for part in parts}

    missing = {part for part in fragments if len(part) > 3 and part not in program}

    assert len(fragments) > 80
    assert missing == NOT_OURS

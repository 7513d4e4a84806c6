"""pg_dump and pg_restore, with the command lines of django-dbbackup, as streams.

dbbackup writes the dump to a file in /tmp; here it passes through a pipe, so that no
disk is needed. dbbackup's connector makes the command lines; it gets every option of
DATABASE_URL that libpq has, while by itself it knows six.
"""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Self, cast
from urllib.parse import quote

import psycopg2
from django.db import connection
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.text import one_line

# The records of backups are not part of a backup: see `models.Backup`.
RECORDS = "maintenance_backup"
LOCK_WAIT_MS = 60_000  # for a table whose definition is being changed
_TRANSACTION_TIMEOUT_SINCE = 17
_END_SECONDS = 10
# Options of psycopg2 that libpq does not have, and options that must not be visible in
# the list of processes.
_NOT_SHOWN = {"connection_factory", "cursor_factory", "dbname", "password"}
_GET_IT = (
    "run it in this project's image, which carries the programs of PostgreSQL 17"
    " (on Debian: apt-get install postgresql-client-17)"
)
_ON_EXTENSION = re.compile(rb"^\d+; \d+ \d+ COMMENT - EXTENSION .*\n", re.M)
# {part of an error of the programs: hint}
_HINTS = {
    "server version mismatch": "use a pg_dump as new as the server",
    "unsupported version": "use a pg_restore as new as the pg_dump that made it",
    "extension": "install it on the server, or let this user create it",
    "permission denied": "connect as the owner of what it names",
    "must be owner": "connect as the owner of what it names",
    "row-level security": "connect as its owner, or as a user with BYPASSRLS",
    "canceling statement due to lock timeout": "a table is being changed; run it again",
    "could not obtain lock": "a table is being changed; run it again",
    "No space left on device": "the server's disk is full",
}


class Program:
    """A running program, which is ended at the end of the `with` block."""

    def __init__(
        self,
        words: list[str],
        environment: Mapping[str, str],
        *,
        reads: bool,
        keeps_output: bool = True,
        files: Sequence[IO[bytes]] = (),
    ) -> None:
        """If it `reads`, what it writes is its `output`, unless that is not kept.

        It may open `files`.
        """
        self.name = words[0]
        self._said, self._written = _file_in_memory(), _file_in_memory()
        written = self._written if keeps_output else subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
                stdout=written if reads else subprocess.PIPE,
                stderr=self._said,
                env=environment,
                pass_fds=[file.fileno() for file in files],
            )
        except OSError as error:
            self._said.close()
            self._written.close()
            raise JobError(_not_started(self.name, error)) from error

    @property
    def stdin(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdin)

    @property
    def stdout(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdout)

    @property
    def output(self) -> bytes:
        """All that it has written, once it has ended."""
        self._written.seek(0)
        return self._written.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):  # unwritten data is not needed
                    pipe.close()
        self._process.wait()
        self._said.close()
        self._written.close()

    def wait_for_success(self, *, forgiven: str = "") -> None:
        """Wait for the program to end; raise JobError with its error if it failed.

        `forgiven` is a part of the only error that may have occurred.
        """
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        code = self._process.wait()
        if not code:
            return
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        if forgiven and forgiven in said and "ignored on restore: 1\n" in said:
            return
        raise JobError(f"{self.name} failed: {_explained(said, code)}")


def _file_in_memory() -> IO[bytes]:
    """Return a file, so that a program never waits for what it writes to be read.

    It is in memory where the system has that (Linux), since /tmp may be full.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("output"), "w+b")
    return tempfile.TemporaryFile()


@dataclass(frozen=True)
class PostgresPrograms:
    """The programs on PATH, for databases on the server of DATABASE_URL."""

    def check(self) -> None:
        """Raise JobError for missing programs, for programs that are older than the
        server, and for a pooler.
        """
        connection.ensure_connection()
        if connection.connection.is_pooled:
            # The programs' settings for their session, such as an empty search_path,
            # would be in force for the web service's next transaction.
            raise JobError(
                "pg_dump and pg_restore must not work through a pooler HINT: name the"
                " database's direct address in DATABASE_URL"
            )
        for name in ("pg_restore", "pg_dump"):
            version = _major_version(name)
            if version < self.server_major:
                raise JobError(
                    f"{name} is of PostgreSQL {version} and the server of"
                    f" {self.server_major}: an older one cannot back it up"
                    " HINT: the image carries the client of PostgreSQL 17; for a newer"
                    " server change the stage `postgresql` of Dockerfile.cron"
                    f" to install postgresql-client-{self.server_major}"
                )

    @cached_property
    def server_major(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version_num")
            return int(cursor.fetchone()[0]) // 10_000

    def dump(self, *, snapshot: str) -> Program:
        """Start pg_dump, which writes the database as of `snapshot` to its `stdout`."""
        connector = _connector(_parameters()["dbname"])
        # In any schema: DATABASE_URL may name another one than public.
        connector.exclude = [f"*.{RECORDS}"]
        connector.dump_suffix = (
            f"--no-password --lock-wait-timeout={LOCK_WAIT_MS}"
            f" --snapshot={shlex.quote(snapshot)}"
        )
        program: Program = connector.create_dump()
        return program

    def list(self, *, keeps_output: bool) -> Program:
        """Start pg_restore, which reads a dump's table of contents from its `stdin`.

        It ends before the end of the dump; its `output` is for `restore`.
        """
        words = ["pg_restore", "--list"]
        return Program(words, os.environ, reads=True, keeps_output=keeps_output)

    def restore(self, database: str, entries: bytes) -> "Restore":
        return Restore(database, entries, is_whole=self._restores_whole)

    @property
    def _restores_whole(self) -> bool:
        """Whether the server has every setting that pg_restore sets at its begin.

        From version 17 on it sets transaction_timeout, which older servers refuse.
        """
        return (
            self.server_major >= _TRANSACTION_TIMEOUT_SINCE
            or _major_version("pg_restore") < _TRANSACTION_TIMEOUT_SINCE
        )


class Restore:
    """pg_restore into `database`, in one transaction: completely or not at all.

    If `is_whole` is False, there is no transaction, and a failure leaves the database
    partly filled. Of the `entries` of the dump, comments on extensions are left out:
    only an extension's owner may write one, who often is the provider of the server.
    """

    def __init__(self, database: str, entries: bytes, *, is_whole: bool) -> None:
        self._database, self._is_whole = database, is_whole
        connector = _connector(database)
        connector.drop = connector.if_exists = False
        connector.single_transaction = is_whole
        connector.pg_options = [
            *(["--exit-on-error"] if is_whole else []),
            *("--no-owner", "--no-privileges", "--no-subscriptions", "--no-password"),
        ]
        wanted = _ON_EXTENSION.sub(b"", entries)
        with _file_in_memory() as file:
            if wanted != entries:
                file.write(wanted)
                file.seek(0)
                connector.files = [file]
                connector.pg_options.append(f"--use-list=/dev/fd/{file.fileno()}")
            self.program: Program = connector.restore_dump(None)

    def wait_for_success(self) -> None:
        try:
            self.program.wait_for_success(
                forgiven="" if self._is_whole else '"transaction_timeout"'
            )
        except JobError as error:
            if self._is_whole:
                raise
            raise JobError(
                f"{error}; {self._database} may be half filled: drop it"
            ) from error


def connect(database: str) -> Connection:
    """Open a session with another database of the server, with Django's parameters."""
    opened: Connection = psycopg2.connect(**{**_parameters(), "dbname": database})
    return opened


def _parameters() -> dict[str, Any]:
    parameters: dict[str, Any] = connection.get_connection_params()
    parameters.pop("cursor_factory", None)
    return parameters


def _connector(database: str) -> Any:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # /tmp is full
        tempfile.tempdir = "/tmp"  # noqa: S108 - the import asks, and writes nothing
    # Imported here, since the import reads Django's settings.
    from dbbackup.db.postgresql import PgDumpBinaryConnector

    class Connector(PgDumpBinaryConnector):  # type: ignore[misc]
        """Starts the program without waiting for its end."""

        files: Sequence[IO[bytes]] = ()

        def run_command(
            self, command: str, stdin: object = None, env: dict[str, str] | None = None
        ) -> tuple[Program, None]:
            words = shlex.split(command)
            reads = words[0] == self.restore_cmd
            variables = {**os.environ, **(env or {})}
            return Program(words, variables, reads=reads, files=self.files), None

    connector = Connector()
    # The base class would read these from Django's settings. Here the address is one
    # URL, which needs no shell quotes, and the password is in a variable.
    connector._settings = {
        "NAME": _address(database),
        "HOST": "",
        "PASSWORD": _parameters().get("password"),
    }
    return connector


def _address(database: str) -> str:
    """Return `NAME?option=value&...`, with all of libpq's options from Django's."""
    options = {
        name: str(value)
        for name, value in _parameters().items()
        if name not in _NOT_SHOWN and value is not None and _is_libpqs(name, value)
    }
    query = "&".join(f"{name}={quote(options[name], safe='')}" for name in options)
    return f"{quote(database, safe='')}?{query}"


def _is_libpqs(name: str, value: Any) -> bool:
    try:
        make_dsn(None, **{name: value})
    except psycopg2.ProgrammingError:
        return False
    return True


def _major_version(name: str) -> int:
    try:
        done = subprocess.run(
            [name, "--version"], capture_output=True, text=True, timeout=_END_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(_not_started(name, error)) from error
    found = re.search(r"PostgreSQL\) (\d+)", done.stdout)
    if not found:
        raise JobError(f"{name} --version says nothing of PostgreSQL HINT: {_GET_IT}")
    return int(found[1])


def _not_started(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no {name} on this machine HINT: {_GET_IT}"
    return one_line(f"{name} cannot be started: {error}")


def _explained(said: str, code: int) -> str:
    """Return the program's first error in one line, with a hint."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "ERROR:" in line]
    details = [line for line in lines if line.startswith("pg_dump: detail: ")]
    text = (errors or lines or [f"it ended with {code}"])[0]
    text = re.sub(r"^pg_\w+: (error: )?", "", text)
    if details and "ERROR" not in text:
        text += f" ({details[0].removeprefix('pg_dump: detail: ')})"
    hint = next((hint for part, hint in _HINTS.items() if part in said), "")
    return one_line(text) + (f" HINT: {hint}" if hint else "")

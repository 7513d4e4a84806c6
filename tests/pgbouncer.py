"""The real PgBouncer, in transaction mode, before the tests' own database.

Without one its tests are skipped, or fail where CI is set: `make pgbouncer` gets it.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg2
import pytest
from django.db import connection

from demo.postgres import postgres_user
from demo.processes import ends_with_us
from tests.conftest import socket_folder
from tests.factories import wait_until

_TOOLS = Path(__file__).resolve().parent.parent / ".tools"
_MISSING = "pgbouncer was not found. HINT: `make pgbouncer` gets it."
_INI = """
[databases]
* = host={server} user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
query_wait_timeout = {query_wait_seconds}
logfile = {folder}/log
pidfile = {folder}/pid
"""

Pooler = Callable[..., dict[str, str]]


@contextmanager
def _running(
    program: str, pool_size: int, query_wait_seconds: int
) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="pgbouncer-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)  # it refuses to be root
        ini = folder / "pgbouncer.ini"
        ini.write_text(
            _INI.format(
                server=socket_folder(),
                folder=folder,
                pool_size=pool_size,
                query_wait_seconds=query_wait_seconds,
            )
        )
        database = connection.settings_dict["NAME"]

        def answers() -> bool:
            try:
                psycopg2.connect(
                    dbname=database, user="postgres", host=name, port="6432"
                ).close()
            except psycopg2.OperationalError:
                return False
            return True

        with subprocess.Popen(
            [program, "-q", str(ini)],
            stderr=subprocess.DEVNULL,
            preexec_fn=ends_with_us(signal.SIGKILL),
            **postgres_user(),
        ) as process:
            try:
                wait_until(answers, "pgbouncer answers")
                yield {"HOST": name, "PORT": "6432"}
            finally:
                process.kill()


@pytest.fixture
def pooler() -> Iterator[Pooler]:
    """Start one with `pool_size` sessions of the server; gives HOST and PORT."""
    path = os.pathsep.join([str(_TOOLS), os.environ["PATH"], "/usr/sbin"])
    program = shutil.which("pgbouncer", path=path)
    if not program and os.environ.get("CI"):
        pytest.fail(_MISSING, pytrace=False)
    if not program:
        pytest.skip(_MISSING)
    with ExitStack() as running:
        yield lambda pool_size, query_wait_seconds=120: running.enter_context(
            _running(program, pool_size, query_wait_seconds)
        )

"""One run of a job at a time: the lock, the session that holds it, what ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from starview_app.maintenance.models import Announcement, JobRun
from starview_app.maintenance.running import lock
from tests.archive_processes import Command, Commands, Done
from tests.conftest import Manage
from tests.factories import (
    days_ago,
    execute,
    make_account,
    session,
    wait_until,
    wait_until_blocked_by,
)
from tests.pgbouncer import Pooler

pytestmark = pytest.mark.django_db(transaction=True)

CLASSES = {
    "print": "Print",
    "wait": "Wait",
    "wait_in_query": "WaitInQuery",
    "fail": "Fail",
    "end_its_child": "EndItsChild",
    "leave_pool_open": "LeavePoolOpen",
    "leave_in_child": "LeaveInChild",
    "leave_child_behind": "LeaveChildBehind",
    "own_handler": "OwnHandler",
}
PATHS = {name: f"tests.commands_for_runs.{path}" for name, path in CLASSES.items()}
CLEAN_UP = "cleanup_unverified_users"
GRACE = "starview_app.maintenance.running.stop.GRACE_SECONDS"

Start = Callable[..., Command]


@pytest.fixture
def start(commands: Commands) -> Iterator[Start]:
    """Start `run_job NAME` by hand, as two processes; they are killed at the end."""
    begun: list[Command] = []

    def start(*arguments: str, **options: Any) -> Command:
        process = commands.start(*arguments, commands=PATHS, supervised=True, **options)
        begun.append(process)
        return process

    yield start
    for process in begun:
        for pid in (*children(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def holder_of(job: str) -> tuple[int | None, ...] | None:
    """(the server's process, its xmin, its id) of the session that holds the lock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT activity.pid, backend_xmin::text::bigint, backend_xid::text::bigint"
            " FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted"
            " AND ((classid::bigint << 32) | objid::bigint)"
            " = hashtextextended(%s, 0)",
            [f"starview-maintenance:{job}"],
        )
        found: tuple[int | None, ...] | None = cursor.fetchone()
        return found


def end_holder(job: str) -> None:
    pid = (holder_of(job) or (0,))[0]
    execute("SELECT pg_terminate_backend(%s)", pid)


def wait_for_lock(job: str) -> None:
    wait_until(lambda: holder_of(job) is not None, f"{job} has its lock")


def wait_for_out(process: Command, text: str) -> None:
    wait_until(lambda: text in process.out(), f"it writes {text!r}")


def last_line(done: Done) -> str:
    return done.err.splitlines()[-1]


def only_run() -> JobRun:
    return JobRun.objects.get()


# -- the session that holds it -------------------------------------------------------


def test_the_session_that_holds_a_lock_holds_back_no_vacuum(start: Start) -> None:
    start("run_job", "wait")

    wait_for_lock("wait")

    _, xmin, xid = holder_of("wait") or (0, 0, 0)
    assert (xmin, xid) == (None, None)


@pytest.mark.parametrize("name", ["wait", "wait_in_query"])
def test_a_run_whose_lock_is_lost_is_stopped_and_has_failed(
    name: str, start: Start
) -> None:
    process = start("run_job", name)
    wait_for_lock(name)
    wait_until(lambda: "job_started" in process.err(), "it has begun")

    end_holder(name)
    done = process.finish()

    assert done.code == 1
    assert (
        f"CommandError: {name} lost its lock and was stopped: terminating" in done.err
    )
    assert "HINT" in done.err
    assert "Traceback" not in done.err
    assert (only_run().outcome, only_run().exit_code) == ("failed", 1)
    assert f"{name} lost its lock and was stopped" in only_run().error


def test_a_job_of_ours_whose_lock_is_lost_stops_at_its_next_safe_point(
    start: Start,
) -> None:
    """Or, when none comes within the grace, in the middle: undone, and told."""
    make_account("old", joined=days_ago(8))
    with session() as holder:
        holder.cursor().execute("SELECT id FROM auth_user FOR UPDATE")
        process = start(CLEAN_UP, constants={GRACE: 0.01})
        wait_until_blocked_by(holder)
        end_holder(CLEAN_UP)
        done = process.finish()

    assert done.code == 1
    assert last_line(done).startswith(
        f"CommandError: {CLEAN_UP} lost its lock and was stopped: terminating"
        " connection due to administrator command; what was finished is kept, the next"
        " run does the rest HINT: "
    )
    assert User.objects.count() == 1
    assert only_run().outcome == "failed"


def test_the_lock_is_kept_alive_and_its_loss_is_noticed_by_that(start: Start) -> None:
    """Where nothing comes from the other end, as from a host that is gone."""
    process = start(
        "run_job", "wait", constants={f"{lock.__name__}.KEEP_SECONDS": 0.01}
    )
    wait_for_lock("wait")

    def queries() -> tuple[Any, ...] | None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT query, state_change FROM pg_stat_activity WHERE pid = %s",
                [(holder_of("wait") or (0,))[0]],
            )
            found: tuple[Any, ...] | None = cursor.fetchone()
            return found

    wait_until(lambda: (queries() or ("",))[0] == "SELECT", "it speaks to the server")
    before = queries()
    wait_until(lambda: queries() != before, "it speaks to it again")
    process.kill()


def test_a_killed_run_blocks_nobody_also_when_a_child_of_its_lives(
    start: Start,
) -> None:
    done = start("run_job", "leave_child_behind").finish()
    child = int(done.out.split()[-1])

    try:
        wait_until(lambda: holder_of("leave_child_behind") is None, "the lock is free")
        assert only_run().outcome == "crashed"
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


# -- children of a command -----------------------------------------------------------


def test_a_command_may_end_its_children_by_a_signal(start: Start) -> None:
    done = start("run_job", "end_its_child").finish()

    assert done.out == "SIGTERM: -15\nSIGHUP: -1\n", done
    assert (done.code, only_run().outcome) == (0, "succeeded"), done.err


def test_a_command_may_leave_a_pool_and_an_executor_open(start: Start) -> None:
    done = start("run_job", "leave_pool_open").finish()

    assert (done.code, done.out) == (0, "[3, 2, 1] 4\n"), done.err
    assert only_run().outcome == "succeeded", done.err


def test_a_child_that_leaves_takes_neither_the_lock_nor_the_stop_with_it(
    start: Start,
) -> None:
    process = start("run_job", "leave_in_child")
    wait_for_out(process, "its child: 3")

    assert holder_of("leave_in_child") is not None
    assert "job_finished" not in process.err()
    os.kill(process.pid, signal.SIGTERM)
    done = process.finish()
    assert "leave_in_child was stopped by SIGTERM" in done.err
    assert only_run().outcome == "interrupted"


def test_a_command_that_handles_a_signal_itself_does_so_under_run_job(
    start: Start,
) -> None:
    process = start("run_job", "own_handler")
    wait_for_out(process, "waiting")

    os.kill(process.pid, signal.SIGTERM)
    done = process.finish()

    assert (done.code, done.out) == (0, "waiting\nended in its own way\n"), done.err


# -- behind a pooler -----------------------------------------------------------------


@pytest.mark.parametrize("first_is_pooled", [True, False])
def test_behind_a_pooler_a_second_run_is_refused(
    first_is_pooled: bool, start: Start, pooler: Pooler
) -> None:
    pooled = pooler(20)
    process = start("run_job", "wait", database=pooled if first_is_pooled else {})
    wait_for_out(process, "waiting")

    second = start("run_job", "wait", database=pooled).finish()

    assert (second.code, second.out) == (75, "")
    assert f"another run of wait is under way: wait {os.uname().nodename} pid" in (
        second.err
    )
    os.kill(process.pid, signal.SIGTERM)
    assert "was stopped by SIGTERM" in process.finish().err
    assert start("run_job", "print", database=pooled).finish().code == 0


def test_behind_a_pooler_a_job_does_its_work_with_three_sessions(
    start: Start, pooler: Pooler
) -> None:
    make_account("old", joined=days_ago(8))

    done = start(CLEAN_UP, database=pooler(3)).finish()

    assert (done.code, User.objects.count()) == (0, 0), done.err
    assert only_run().counts["deleted"] == 1


@pytest.mark.parametrize("pool_size", [1, 2])
def test_a_pooler_with_too_few_sessions_is_refused_before_anything_is_deleted(
    pool_size: int, start: Start, pooler: Pooler
) -> None:
    make_account("old", joined=days_ago(8))

    done = start(
        CLEAN_UP,
        database=pooler(pool_size),
        constants={"starview.database.ROOM_SECONDS": 0.5},
    ).finish()

    assert done.code == 1
    assert "no session of the server within" in last_line(done)
    assert "HINT: a pooler has too few" in last_line(done)
    assert "Traceback" not in done.err
    assert User.objects.count() == 1
    assert holder_of(CLEAN_UP) is None


def test_behind_a_pooler_a_run_whose_lock_is_lost_is_stopped(
    start: Start, pooler: Pooler
) -> None:
    process = start("run_job", "wait", database=pooler(20))
    wait_for_out(process, "waiting")

    end_holder("wait")
    done = process.finish()

    assert "wait lost its lock and was stopped: " in done.err
    assert only_run().outcome == "failed"


def test_a_run_leaves_no_setting_and_no_lock_in_a_poolers_sessions(
    start: Start, pooler: Pooler, tmp_path: Path
) -> None:
    """One of the schedule that fails, so that it also sends a mail."""
    pooled = pooler(20)
    crontab = tmp_path / "crontab"
    crontab.write_text("0 0 * * * JOB=x timeout 1h python manage.py run_job fail\n")
    done = start(
        *("run_job", "fail"),
        database=pooled,
        settings={"CRONTAB": str(crontab)},
        environment={"JOB": "x"},
    ).finish()

    assert (done.code, only_run().outcome) == (1, "failed")
    assert Announcement.objects.filter(job="x", channel="mail").exists()
    names = ("lock_timeout", "statement_timeout", "idle_session_timeout")
    with ExitStackOfSessions(pooled, 4) as others:
        found = [[_show(each, name) for name in names] for each in others]

    assert found == 4 * [["0", "0", "0"]]
    wait_until(_no_lock_is_left, "every lock is free, of killed runs as well")


def _no_lock_is_left() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        return bool(cursor.fetchone() == (0,))


def _show(opened: Any, name: str) -> str:
    with opened.cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        return str(cursor.fetchone()[0])


class ExitStackOfSessions:
    """Sessions that are in a transaction at the same time: all that the pooler has."""

    def __init__(self, address: dict[str, str], count: int) -> None:
        name = connection.settings_dict["NAME"]
        self._opened = [
            psycopg2.connect(
                dbname=name,
                user="postgres",
                host=address["HOST"],
                port=address["PORT"],
            )
            for _ in range(count)
        ]

    def __enter__(self) -> list[Any]:
        return self._opened

    def __exit__(self, *raised: object) -> None:
        for opened in self._opened:
            opened.close()


# -- what the database sets for its sessions -----------------------------------------

SETTINGS = {
    # Long enough for a session to begin on a busy machine.
    **dict.fromkeys(
        (
            "idle_session_timeout",
            "idle_in_transaction_session_timeout",
            "transaction_timeout",
            "statement_timeout",
        ),
        "1s",
    ),
    "standard_conforming_strings": "off",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
}


@pytest.fixture
def database_sets() -> Iterator[Callable[[str, str], None]]:
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    yield lambda key, value: execute(f"ALTER DATABASE {name} SET {key} = %s", value)
    execute("SET default_transaction_read_only = off")
    execute(f"ALTER DATABASE {name} RESET ALL")
    connection.close()


@pytest.mark.parametrize("is_pooled", [False, True])
def test_no_setting_of_the_database_keeps_a_job_from_its_work(
    is_pooled: bool, start: Start, pooler: Pooler, database_sets: Any
) -> None:
    """All at once; the job waits longer than any of its time limits."""
    for name, value in SETTINGS.items():
        if not is_pooled or name != "standard_conforming_strings":
            database_sets(name, value)
    make_account("łódź \\' old", joined=days_ago(8))
    database = pooler(20) if is_pooled else {}
    with session() as holder:
        holder.cursor().execute(
            "SET LOCAL transaction_read_only = off;"
            "SELECT id FROM account_emailaddress FOR UPDATE"
        )
        process = start(
            CLEAN_UP,
            database=database,
            constants={
                "starview_app.maintenance.jobs.unverified_users.cleanup"
                ".LOCK_TIMEOUT_MS": 60_000
            },
        )
        wait_until_blocked_by(holder)
        with holder.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(1.2)")
    done = process.finish()

    assert (done.code, User.objects.count()) == (0, 0), done.err
    assert "Deleted: łódź" in done.out
    assert only_run().outcome == "succeeded", done.err


def test_what_DATABASE_URL_itself_asks_for_is_kept(
    manage: Manage, test_environment: dict[str, str]
) -> None:
    url = test_environment["DATABASE_URL"] + "&options=-c%20statement_timeout%3D7min"
    make_account("old", joined=days_ago(8))
    execute(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'it is %', current_setting('statement_timeout'); END $$;"
        "CREATE TRIGGER tell BEFORE DELETE ON auth_user"
        " FOR EACH ROW EXECUTE FUNCTION tell()"
    )

    done = manage(CLEAN_UP, env={"DATABASE_URL": url})

    execute("DROP FUNCTION tell CASCADE")
    assert done.returncode == 1
    assert "it is 7min" in done.stderr


@pytest.mark.parametrize(
    ("server", "word"), [("- interval '7 days'", "ahead of"), ("+ '1 hour'", "behind")]
)
def test_a_run_whose_clock_is_wrong_deletes_nothing(
    server: str, word: str, manage: Manage, test_environment: dict[str, str]
) -> None:
    make_account("of yesterday", joined=timezone.now() - timedelta(days=1))
    execute(
        "CREATE SCHEMA other_time; CREATE FUNCTION other_time.clock_timestamp()"
        f" RETURNS timestamptz RETURN pg_catalog.clock_timestamp() {server}"
    )
    path = "&options=-c%20search_path%3Dother_time,public,pg_catalog"
    url = test_environment["DATABASE_URL"] + path

    done = manage("cleanup_unverified_users", "--days=1", env={"DATABASE_URL": url})

    execute("DROP SCHEMA other_time CASCADE")
    assert done.returncode == 1
    assert "CommandError: the clock of this machine is " in done.stderr
    assert f" s {word} the database's" in done.stderr
    assert "nothing was changed" in done.stderr
    assert User.objects.count() == 1


def test_a_setting_that_a_pooler_does_not_let_us_change_is_named_with_the_fix(
    start: Start, pooler: Pooler, database_sets: Any
) -> None:
    database_sets("standard_conforming_strings", "off")

    done = start(CLEAN_UP, database=pooler(20)).finish()

    assert done.code == 1
    name = connection.settings_dict["NAME"]
    assert f"{name} sets standard_conforming_strings=off" in last_line(done)
    assert f"HINT: ALTER DATABASE {name} RESET" in last_line(done)
    assert "Traceback" not in done.err


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_UTF8_is_refused_in_one_line(
    encoding: str, start: Start
) -> None:
    name = f"encoded_{encoding.lower()}"
    execute(f"DROP DATABASE IF EXISTS {name}")
    execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    )
    try:
        done = start(CLEAN_UP, database={"NAME": name}).finish()
        waited = start("wait_for_database", database={"NAME": name}).finish()
    finally:
        execute(f"DROP DATABASE {name}")

    for each in (done, waited):
        assert each.code == 1
        assert f"the encoding of {name} is {encoding}" in last_line(each)
        assert "HINT: make a database WITH ENCODING 'UTF8'" in last_line(each)
        assert "Traceback" not in each.err
        assert "waiting for the database" not in each.err

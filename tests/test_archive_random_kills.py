"""archive_audit_logs in trouble at random moments, while the website writes.

It is killed, or loses its sessions, or is frozen while another run goes on beside it.

The seed is shown when the test fails; CRASH_SEED=... repeats its choices.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
from django.contrib.auth.models import User
from django.db import connection

from demo.services import LocalServices
from starview_app.maintenance.models import AuditArchive
from tests.archive_processes import (
    OCTOBER,
    QUICK,
    WAIT_SECONDS,
    Bucket,
    Command,
    Commands,
    Done,
    Rows,
    archived_rows,
    table_rows,
    wait_for_sessions_to_end,
)
from tests.sizes import IS_LONG, sizes

pytestmark = pytest.mark.django_db(transaction=True)

JOB = "archive_audit_logs"


class Website(threading.Thread):
    """Writes to the audit log all the while, and remembers what it has committed.

    It inserts rows of now and of long ago, and deletes accounts, which sets user_id
    NULL, and single rows. What one of its statements has changed is there for good: an
    archive that has the old value would have lost the change.
    """

    def __init__(self, rng: random.Random, users: list[int]) -> None:
        super().__init__(daemon=True)
        self.rows: Rows = {}
        self.changed = self.removed = 0
        self.error: BaseException | None = None
        self._rng, self._users = rng, users
        self._stop_asked = threading.Event()
        self._parameters = connection.get_connection_params()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(WAIT_SECONDS)
        assert not self.is_alive()
        if self.error:
            raise self.error

    def run(self) -> None:
        website = psycopg2.connect(**self._parameters)
        website.autocommit = True
        # The pause lets the job have the machine; nothing depends on its length.
        try:
            with website.cursor() as cursor:
                cursor.execute("SET TimeZone = 'UTC'")
                while not self._stop_asked.wait(0.02):
                    # As a website: one that is chosen to end a deadlock tries later.
                    with suppress(psycopg2.errors.DeadlockDetected):
                        self._do_something(cursor)
        except BaseException as error:  # noqa: BLE001 - raised again in `stop`
            self.error = error
        finally:
            website.close()

    def _do_something(self, cursor: psycopg2.extensions.cursor) -> None:
        choice = self._rng.random()
        if choice < 0.5:
            self._insert(cursor)
        elif choice < 0.9:
            cursor.execute(
                "UPDATE starview_app_auditlog SET user_id = NULL WHERE user_id = %s"
                " RETURNING id",
                [self._rng.choice(self._users)],
            )
            for (number,) in cursor.fetchall():
                self.rows[number]["user_id"] = None
                self.changed += 1
        else:
            number = self._rng.choice([*self.rows, 0])
            cursor.execute(
                "DELETE FROM starview_app_auditlog WHERE id = %s RETURNING id", [number]
            )
            for (number,) in cursor.fetchall():
                del self.rows[number]
                self.removed += 1

    def _insert(self, cursor: psycopg2.extensions.cursor) -> None:
        age = timedelta(seconds=self._rng.randrange(90 * 86_400))
        is_old = self._rng.random() < 0.9
        timestamp = OCTOBER + age if is_old else datetime.now(UTC)
        cursor.execute(
            "INSERT INTO starview_app_auditlog AS log (event_type, timestamp,"
            " success, message, user_id, username, ip_address, user_agent, metadata)"
            " SELECT 'logout', %s + n * INTERVAL '1 second', true, %s, %s, 'zoé',"
            " '2001:db8::7', 'curl', '{}' FROM generate_series(1, %s) AS n"
            " RETURNING id, to_jsonb(log)",
            [
                timestamp,
                f"said {self._rng.random()}",
                self._rng.choice(self._users),
                self._rng.randrange(1, 4),
            ],
        )
        self.rows.update(cursor.fetchall())


Trouble = Callable[[Command, Callable[[], Done]], object]


def killed(running: Command, others: Callable[[], Done]) -> None:
    running.kill()


def sessions_ended(running: Command, others: Callable[[], Done]) -> None:
    running.end_sessions()
    running.thaw()
    running.finish()


def frozen(running: Command, others: Callable[[], Done]) -> None:
    others()
    running.thaw()
    running.finish()


@pytest.mark.parametrize(
    ("trouble", "rounds"),
    [
        *sizes(5, soak=50, long=1000, of=killed),
        *sizes(3, soak=20, long=200, of=sessions_ended),
        *sizes(2, soak=10, long=50, of=frozen),
    ],
)
def test_in_trouble_at_random_moments_no_row_and_no_change_is_lost(
    trouble: Trouble, rounds: int, commands: Commands, bucket: LocalServices
) -> None:
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(10**9))
    print(f"CRASH_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    rng = random.Random(seed)
    place = Bucket(bucket)
    users = [User.objects.create(username=f"user{n}").pk for n in range(30)]
    website = Website(random.Random(seed + 1), users)
    website.start()
    start = partial(
        commands.start,
        JOB,
        "--segment-rows=10",
        settings=place.settings,
        locked=trouble is not frozen,  # else nobody would go on beside it
        constants=QUICK,
    )
    left_open = troubled = 0

    while troubled < rounds or not website.changed or not website.removed:
        if rng.random() < 0.5:
            running = start(freeze_before=rng.randrange(1, 16))
            has_frozen = running.freezes()
        else:
            # In the middle of anything, also of a request or a statement.
            running = start()
            has_frozen = running.freeze_after(rng.uniform(0.05, 0.4))
        if has_frozen:
            troubled += 1
            left_open += AuditArchive.objects.filter(state="open").count()
            trouble(running, lambda: start().finish())
        wait_for_sessions_to_end()
    website.stop()
    archived = assert_nothing_is_lost(website, commands, place)
    # It was worth it: otherwise nothing was tried. Among the thousands of objects of a
    # long trial a run lists for longer than it writes.
    assert left_open >= min(rounds, 100) // 10
    assert len(archived) > rounds


def assert_nothing_is_lost(website: Website, commands: Commands, place: Bucket) -> Rows:
    """Once a last plain run has archived what is due; returns what is archived."""
    last = commands.run(JOB, settings=place.settings)

    assert last.code == 0, last
    archived, kept = archived_rows(place), table_rows()
    assert archived.keys() & kept.keys() == set()
    # Of now or of long ago: its year tells whether a row was due.
    this_year = str(datetime.now(UTC).year)
    young = {
        n: row for n, row in website.rows.items() if row["timestamp"][:4] == this_year
    }
    assert kept == young
    assert {**archived, **kept} == website.rows
    checked = commands.run("verify_audit_archives", settings=place.settings)
    assert checked.code == 0, checked
    place.empty()
    return archived


# -- several processes ---------------------------------------------------------------


def worker_killed(pid: int, others: Callable[[], Done]) -> None:
    os.kill(pid, signal.SIGKILL)


def worker_frozen(pid: int, others: Callable[[], Done]) -> None:
    os.kill(pid, signal.SIGSTOP)
    others()
    os.kill(pid, signal.SIGCONT)


def workers_of(running: Command) -> list[int]:
    path = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def freeze_at_work(running: Command, seconds: float) -> list[int]:
    """Stop the command so long after it has begun to work; returns its workers.

    None when it has ended before.
    """
    has_begun = False
    while running.freeze_after(seconds if has_begun else 0.05):
        workers = workers_of(running)
        if workers and has_begun:
            return workers
        has_begun |= bool(workers)
        running.thaw()
    return []


WorkerTrouble = Callable[[int, Callable[[], Done]], None]


@pytest.mark.parametrize(
    ("trouble", "rounds"),
    [
        *sizes(5, soak=20, long=200, of=worker_killed),
        *(4 if IS_LONG else 1) * sizes(5, soak=20, long=200, of=worker_killed)[1:],
        *sizes(2, soak=6, long=100, of=worker_frozen),
    ],
)
def test_whatever_happens_to_workers_no_row_and_no_change_is_lost(
    trouble: WorkerTrouble, rounds: int, commands: Commands, bucket: LocalServices
) -> None:
    """In some rounds the command is killed too, in some another one is beside it."""
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(10**9))
    print(f"CRASH_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    rng = random.Random(seed)
    place = Bucket(bucket)
    users = [User.objects.create(username=f"user{n}").pk for n in range(30)]
    website = Website(random.Random(seed + 1), users)
    website.start()

    def start() -> Command:
        workers = f"--workers={rng.randrange(2, 5)}"
        return commands.start(
            *(JOB, workers, "--segment-rows=30"),
            settings=place.settings,
            constants=QUICK,
        )

    left_open = troubled = 0
    while troubled < rounds or not website.changed or not website.removed:
        beside = start() if rng.random() < 0.3 else None
        running = start()
        # While its parent stands still a worker's number stays its own.
        if workers := freeze_at_work(running, rng.uniform(0.0, 0.4)):
            troubled += 1
            trouble(rng.choice(workers), lambda: start().finish())
            left_open += AuditArchive.objects.filter(state="open").count()
            if rng.random() < 0.6:
                running.kill()
            else:
                running.thaw()
                running.finish()
        if beside:
            beside.finish()
        wait_for_sessions_to_end()
    website.stop()

    archived = assert_nothing_is_lost(website, commands, place)
    assert left_open >= min(rounds, 100) // 10
    assert len(archived) > rounds

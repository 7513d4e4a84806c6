"""Rows as the web service writes them, with every time given, and second sessions."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from allauth.account.models import EmailAddress, EmailConfirmation
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from starview_app.maintenance.models import JobRun, ScheduleLine
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.models import (
    EmailBounce,
    EmailComplaint,
    EmailSuppression,
    Location,
    UserProfile,
)

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
DEADLINE_SECONDS = 15
CLEANUP = "starview-cleanup-unverified-users"  # at 02:00 every day: at NOW
_numbers = itertools.count(1)


def days_ago(days: float, *, now: datetime = NOW) -> datetime:
    return now - timedelta(days=days)


# -- accounts -----------------------------------------------------------------------


def make_account(
    username: str = "newcomer",
    *,
    joined: datetime | None = None,
    verified: bool = False,
    **columns: Any,
) -> User:
    """An account with one address and a profile; due ten days after it joined."""
    joined = joined or days_ago(10)
    email = columns.pop("email", f"{username}@example.com")
    user = User.objects.create(
        username=username, email=email, password="!", date_joined=joined, **columns
    )
    EmailAddress.objects.create(user=user, email=email, primary=True, verified=verified)
    UserProfile.objects.create(user=user)
    UserProfile.objects.filter(user=user).update(created_at=joined, updated_at=joined)
    return user


def make_member(username: str = "member") -> User:
    """An account that nothing here may delete."""
    return make_account(
        username, joined=days_ago(400), verified=True, last_login=days_ago(1)
    )


def make_accounts(count: int, *, joined: datetime, prefix: str = "bulk") -> None:
    """Many due accounts, without profiles, in two statements."""
    users = User.objects.bulk_create(
        User(
            username=f"{prefix}{number}",
            email=f"{prefix}{number}@example.com",
            password="!",
            date_joined=joined,
        )
        for number in range(count)
    )
    EmailAddress.objects.bulk_create(
        EmailAddress(user=user, email=user.email, primary=True) for user in users
    )


def make_confirmation(
    user: User, *, created: datetime, sent: datetime | None = None
) -> EmailConfirmation:
    return EmailConfirmation.objects.create(
        email_address=EmailAddress.objects.get(user=user),
        created=created,
        sent=sent,
        key=f"key-{next(_numbers)}",
    )


def usernames() -> set[str]:
    return set(User.objects.values_list("username", flat=True))


# -- what members contribute --------------------------------------------------------


def make_location(owner: User, **columns: Any) -> Location:
    return Location.objects.create(
        **{
            "name": "Hill",
            "added_by": owner,
            "latitude": 36.5,
            "longitude": -116.9,
            **columns,
        }
    )


# -- e-mail events ------------------------------------------------------------------


def make_bounce(email: str, *, last: datetime, **columns: Any) -> EmailBounce:
    return EmailBounce.objects.create(
        **{
            "email": email,
            "bounce_type": "soft",
            "bounce_subtype": "mailboxfull",
            "bounce_count": 3,
            "first_bounce_date": last - timedelta(days=2),
            "last_bounce_date": last,
            "sns_message_id": f"bounce-{next(_numbers)}",
            "diagnostic_code": "552 mailbox full",
            "raw_notification": {"mail": {"destination": [email]}},
            **columns,
        }
    )


def make_complaint(email: str, *, at: datetime, **columns: Any) -> EmailComplaint:
    return EmailComplaint.objects.create(
        **{
            "email": email,
            "complaint_type": "abuse",
            "complaint_date": at,
            "sns_message_id": f"complaint-{next(_numbers)}",
            **columns,
        }
    )


def make_suppression(
    email: str, *, added: datetime, reason: str = "soft_bounce", **columns: Any
) -> EmailSuppression:
    return EmailSuppression.objects.create(
        email=email, added_date=added, reason=reason, **columns
    )


def make_soft_suppression(email: str, *, last: datetime) -> EmailSuppression:
    """What the webhook leaves after the third soft bounce."""
    bounce = make_bounce(email, last=last, suppressed=True)
    return make_suppression(email, added=last, bounce=bounce)


# -- runs of jobs -------------------------------------------------------------------


def make_run(job: str = CLEANUP, **columns: Any) -> JobRun:
    """A run of 30 seconds that began at NOW and succeeded, unless `columns` differ."""
    outcome = columns.setdefault("outcome", JobRun.Outcome.SUCCEEDED)
    started_at = columns.setdefault("started_at", NOW)
    ended: dict[str, Any] = {}
    if outcome != JobRun.Outcome.RUNNING:
        is_good = outcome in (JobRun.Outcome.SUCCEEDED, JobRun.Outcome.SKIPPED)
        seconds = columns.get("seconds", 30.0)
        ended = {
            "finished_at": started_at + timedelta(seconds=seconds),
            "exit_code": 0 if is_good else 1,
            "seconds": seconds,
        }
    return JobRun.objects.create(
        **{
            "job": job,
            "trigger": JobRun.Trigger.SCHEDULE,
            "command": "cleanup_unverified_users --days=7",
            "host": "a-container",
            "pid": 7,
            **ended,
            **columns,
        }
    )


def runs() -> QuerySet[JobRun]:
    """Those of jobs: without the ticks of catch-up."""
    return JobRun.objects.exclude(counts__has_key="ticks").order_by("id")


def make_known(job: ScheduledJob, *, since: datetime) -> None:
    """As if catch-up had ticked since then, and just now."""
    ScheduleLine.objects.create(
        job=job.job, times=job.five_fields, first_seen_at=since, seen_at=timezone.now()
    )


# -- what is in the database --------------------------------------------------------


def contents(*tables: str) -> dict[str, list[str]]:
    """Every row of `tables`, as JSON; by default of all but those about runs."""
    if not tables:
        about_runs = {"maintenance_job", "maintenance_jobrun"}
        about_runs |= {"maintenance_scheduleline", "maintenance_announcement"}
        about_runs |= {"maintenance_sentreport"}
        found = set(connection.introspection.table_names()) - about_runs
        tables = tuple(sorted(found))
    return {table: _rows(table) for table in tables}


def _rows(table: str) -> list[str]:
    with connection.cursor() as cursor:
        name = connection.ops.quote_name(table)
        cursor.execute(f"SELECT to_jsonb(row) FROM {name} AS row")
        rows = [json.loads(row) for (row,) in cursor.fetchall()]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def execute(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


@contextmanager
def wide_user_ids(*tables: str) -> Iterator[None]:
    """Ids of accounts beyond 2^31, which rows of `tables` may refer to."""
    columns = [("auth_user", "id"), *((table, "user_id") for table in tables)]
    for table, column in columns:
        execute(f"ALTER TABLE {table} ALTER {column} TYPE bigint")
    yield
    User.objects.all().delete()
    for table, column in columns:
        execute(f"ALTER TABLE {table} ALTER {column} TYPE integer")


# -- second sessions ----------------------------------------------------------------


@contextmanager
def rows_hidden(table: str) -> Iterator[None]:
    """As a role with every right, to which row-level security shows no row of it."""
    execute("CREATE ROLE auditor")
    execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO auditor")
    execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO auditor")
    execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    execute("SET ROLE auditor")
    try:
        yield
    finally:
        execute("RESET ROLE")
        execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        execute("DROP OWNED BY auditor")
        execute("DROP ROLE auditor")


def connect() -> Any:
    """A session of its own on the tests' database, in a transaction."""
    return psycopg2.connect(**connection.get_connection_params())


@contextmanager
def session() -> Iterator[Any]:
    with closing(connect()) as opened:
        yield opened


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Ask again and again, up to a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {DEADLINE_SECONDS} s until {what}")
        pause.wait(0.01)


def wait_until_blocked_by(holder: Any) -> None:
    """Until some session waits for a lock of `holder`."""
    pid = holder.info.backend_pid
    _wait_for_session(f"{pid} = ANY(pg_blocking_pids(pid))", f"one waits for {pid}")


def wait_until_blocked(waiting: Any) -> None:
    """Until `waiting` waits for a lock of some session."""
    pid = waiting.info.backend_pid
    _wait_for_session(
        f"pid = {pid} AND cardinality(pg_blocking_pids(pid)) > 0", f"{pid} waits"
    )


def _wait_for_session(condition: str, what: str) -> None:
    with session() as observer:
        observer.autocommit = True
        cursor = observer.cursor()

        def is_there() -> bool:
            cursor.execute(f"SELECT FROM pg_stat_activity WHERE {condition}")
            return bool(cursor.rowcount)

        wait_until(is_there, what)


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` beside the block; its error is raised at the end of the block."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_SECONDS * 2)
    if errors:
        raise errors[0]


@contextmanager
def other_session(database: str) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """A function from SQL to rows, in another database of the server."""
    parameters: dict[str, Any] = connection.get_connection_params()
    parameters.pop("cursor_factory", None)
    session = psycopg2.connect(**{**parameters, "dbname": database})

    def rows(statement: str) -> list[tuple[Any, ...]]:
        with session.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    with closing(session):
        yield rows

"""diagnose_db: all that is wrong with a database, and not a word of a password."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from starview_app.maintenance.jobs.diagnosis.diagnose import diagnose
from starview_app.maintenance.jobs.diagnosis.section import Section, Situation
from starview_app.maintenance.jobs.diagnosis.server import check_transactions
from starview_app.maintenance.jobs.diagnosis.work import check_work
from starview_app.maintenance.models import Backup
from tests.archive_processes import Commands
from tests.conftest import Manage
from tests.factories import (
    CLEANUP,
    contents,
    execute,
    make_account,
    make_run,
    make_soft_suppression,
    session,
    wait_until,
)

pytestmark = pytest.mark.django_db(transaction=True)

SITUATION = Situation(
    now=timezone.now(),
    host="",
    unverified_days=7,
    link_days=3,
    soft_bounce_days=30,
    stale_days=90,
    archive_days=30,
)


def sections(**limits: Any) -> dict[str, Section]:
    found = diagnose(replace(SITUATION, **limits))
    return {section.title: section for section in found}


def problems(**limits: Any) -> list[str]:
    return [text for each in sections(**limits).values() for text in each.problems]


def test_a_good_database_has_no_problem_and_nothing_is_changed(manage: Manage) -> None:
    make_account("newcomer")
    before = contents()

    done = manage("diagnose_db")

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n✓ Nothing is wrong\n")
    for title in (
        "CONNECTION",
        "LIMITS",
        "CLOCK",
        "LONG TRANSACTIONS AND LOCKS",
        "LARGEST TABLES",
        "FOREIGN KEYS WITHOUT AN INDEX",
        "MIGRATIONS",
        "TABLES AND COLUMNS THAT THE JOBS USE",
        "RIGHTS THAT THE JOBS NEED",
        "WHAT EACH JOB WOULD DO NOW",
    ):
        assert f"\n{title}\n" in done.stdout
    assert "cleanup_unverified_users    delete 1, keep 0\n" in done.stdout
    assert contents() == before


def test_it_is_one_object_for_machines(manage: Manage) -> None:
    done = manage("diagnose_db", "--json")

    facts = json.loads(done.stdout)
    assert facts["problems"] == []
    (found,) = facts["sections"]["Connection"]
    assert found["tls"] == "no TLS"
    assert found["pooler"] == "no"


@pytest.mark.parametrize("way", [[], ["--json"]])
def test_an_absent_database_is_exit_code_1_and_its_cause(
    way: list[str], manage: Manage
) -> None:
    url = "postgresql://starview:secret-password@127.0.0.1:9/starview"

    done = manage("diagnose_db", *way, env={"DATABASE_URL": url})

    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "HINT: is the database running, on that host and port?" in done.stderr
    assert "secret-password" not in done.stdout + done.stderr
    if way:
        assert len(json.loads(done.stdout)["problems"]) == 1


def test_it_asks_for_no_variable_but_the_databases(manage: Manage) -> None:
    unset = dict.fromkeys(
        ("AWS_SES_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )

    assert manage("diagnose_db", env=unset).returncode == 0


def test_without_redis_it_goes_on_and_that_is_a_problem(manage: Manage) -> None:
    done = manage("diagnose_db", env={"REDIS_URL": "redis://127.0.0.1:9/0"})

    assert done.returncode == 1
    assert "clearsessions               fail\n" in done.stdout
    assert "✗ clearsessions would fail, since Redis does not answer:" in done.stdout
    assert "WHEN IT WAS LAST DONE AND PROVED" in done.stdout
    assert "Nothing is wrong" not in done.stdout


@pytest.fixture
def as_it_was() -> Iterator[None]:
    yield
    execute("ALTER TABLE IF EXISTS gone RENAME TO starview_app_follow")
    execute(
        "DO $$ BEGIN ALTER TABLE starview_email_bounce"
        " RENAME COLUMN gone TO bounce_count;"
        " EXCEPTION WHEN undefined_column THEN NULL; END $$"
    )


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            "ALTER TABLE starview_app_follow RENAME TO gone",
            "the table starview_app_follow is missing HINT: is this the web service's",
        ),
        (
            "ALTER TABLE starview_email_bounce RENAME COLUMN bounce_count TO gone",
            "the column starview_email_bounce.bounce_count is missing HINT: the image",
        ),
    ],
)
def test_what_the_jobs_need_and_is_not_there_is_a_problem_and_the_rest_goes_on(
    change: str, problem: str
) -> None:
    execute(change)

    found = sections()

    assert [
        text for each in found.values() for text in each.problems if problem in text
    ]
    assert found["Connection"].rows


def test_a_right_that_a_job_lacks_is_named_with_the_grant() -> None:
    execute("DROP ROLE IF EXISTS weak")
    execute("CREATE ROLE weak")
    execute("GRANT USAGE ON SCHEMA public TO weak")
    execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak")
    try:
        execute("SET ROLE weak")
        found = problems()
    finally:
        connection.close()
        execute("DROP OWNED BY weak")
        execute("DROP ROLE weak")

    assert (
        "archive_audit_logs may not DELETE on starview_app_auditlog HINT: connect as"
        " the web service's user, or GRANT DELETE ON starview_app_auditlog TO this one"
    ) in found
    assert [text for text in found if "clearsessions may not DELETE on" in text]
    assert [text for text in found if "may not make the tables maintenance_*" in text]


def test_who_blocks_whom_is_listed_and_a_long_wait_is_a_problem() -> None:
    user = make_account("newcomer")
    with session() as holder, session() as waiter:
        with holder.cursor() as cursor:
            cursor.execute("SELECT FROM auth_user FOR UPDATE")
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        statement = f"SELECT FROM auth_user WHERE id = {user.pk} FOR SHARE"
        waiting = _start(waiter, statement)
        try:
            wait_until(lambda: _blocked(pid), "the second session waits")
            (row,) = sections()["Long transactions and locks"].rows
            texts = problems(too_long_wait=timedelta(0))
        finally:
            holder.rollback()
            waiting()

    assert row["blocked_by"] == str(pid)
    assert [text for text in texts if f"pg_terminate_backend({pid})" in text]


def test_all_that_block_a_session_are_ended_by_the_statement_of_the_hint() -> None:
    situation = replace(SITUATION, too_long_wait=timedelta(0))
    with session() as one, session() as other, session() as waiter:
        pids = sorted(map(_read, (one, other)))
        waiting = _start(waiter, "LOCK TABLE auth_group")
        try:
            wait_until(lambda: _blocked(pids[0]), "the third session waits")
            texts = check_transactions(situation).problems
        finally:
            one.rollback()
            other.rollback()
            waiting()

    ends = ", ".join(f"pg_terminate_backend({pid})" for pid in pids)
    assert [text for text in texts if text.endswith(f"with SELECT {ends}")]


def _read(opened: Any) -> int:
    """Read a table in a transaction that stays open; return the session's pid."""
    with opened.cursor() as cursor:
        cursor.execute("SELECT FROM auth_group")
        return int(opened.info.backend_pid)


def _start(opened: Any, statement: str) -> Any:
    """Begin a statement in a thread; returns what waits for its end."""
    from threading import Thread

    def run() -> None:
        with opened.cursor() as cursor:
            cursor.execute(statement)

    thread = Thread(target=run)
    thread.start()
    return thread.join


def _blocked(pid: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE %s = ANY(pg_blocking_pids(pid)))",
            [pid],
        )
        return bool(cursor.fetchone()[0])


def test_a_transaction_that_holds_up_the_vacuum_is_a_problem() -> None:
    at_once = {"long_transaction": timedelta(0), "too_long_transaction": timedelta(0)}
    with session() as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()")

        found = problems(**at_once)

    assert [text for text in found if "no vacuum removes what it may still see" in text]


def test_dead_rows_are_a_problem() -> None:
    execute("CREATE TABLE IF NOT EXISTS untidy AS SELECT generate_series(1, 10) AS n")
    try:
        execute("DELETE FROM untidy")
        execute("SELECT pg_stat_force_next_flush()")
        wait_until(
            lambda: bool([text for text in problems(dead_rows=3) if "untidy" in text]),
            "the statistics arrive",
        )
    finally:
        execute("DROP TABLE untidy")


def test_a_table_that_takes_long_to_count_is_no_problem() -> None:
    with session() as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE starview_app_auditlog IN ACCESS EXCLUSIVE MODE")
        execute("SET statement_timeout = '1s'")
        try:
            found = check_work(SITUATION)
        finally:
            execute("RESET statement_timeout")

    would = {row["job"]: row["would"] for row in found.rows}
    assert would["archive_audit_logs"] == "not counted, since it takes too long"
    assert would["cleanup_email_suppressions"] == "lift 0, delete 0"
    assert found.problems == []


def test_the_work_is_that_of_the_crontabs_lines(
    commands: Commands, tmp_path: Path
) -> None:
    make_account("newcomer", joined=timezone.now() - timedelta(days=8))
    make_soft_suppression("user@example.com", last=timezone.now() - timedelta(days=40))
    crontab, run = tmp_path / "crontab", "timeout 9m python manage.py"
    crontab.write_text(
        f"0 2 * * * JOB=clean-up {run} cleanup_unverified_users --days=9\n"
        f"0 3 * * 1 JOB=mails {run} cleanup_email_suppressions"
        ' --soft-bounce-days=50 --email-report "$ADMIN_EMAIL"\n'
    )

    done = commands.run("diagnose_db", settings={"CRONTAB": str(crontab)})

    assert "cleanup_unverified_users    delete 0, keep 0\n" in done.out
    assert "cleanup_email_suppressions  lift 0, delete 0\n" in done.out


def test_it_says_when_the_archive_was_last_done_and_proved() -> None:
    at = timezone.now() - timedelta(days=3)
    make_run("verify_audit_archives", finished_at=at, started_at=at)
    make_run("starview-archive-audit-logs", finished_at=at, started_at=at)
    make_run("chain-proof", finished_at=at, started_at=at, outcome="failed")
    make_run(CLEANUP)
    for state in ("good", "lost", "removed"):
        Backup.objects.create(
            location="s3",
            name=state,
            state=state,
            started_at=at,
            finished_at=at if state == "good" else timezone.now(),
            proved_at=at if state == "removed" else None,
            is_encrypted=False,
        )

    names = {
        "archive_audit_logs": ["starview-archive-audit-logs"],
        "verify_audit_archives": ["verify_audit_archives", "chain-proof"],
    }
    title = "When it was last done and proved"
    good = sections(names_of_runs=names)[title]
    later = at + timedelta(hours=1)
    make_run("chain-proof", finished_at=later, started_at=at, outcome="crashed")
    bad = sections(names_of_runs=names)[title]

    assert good.problems == []
    assert bad.problems == [
        f"archives verified: the run that ended at {later:%Y-%m-%d %H:%M} UTC failed"
        " HINT: python manage.py jobs history --failed"
    ]
    assert (
        good.rows
        == bad.rows
        == [
            {"what": "archives verified", "last": at},
            {"what": "audit rows archived", "last": at},
            {"what": "database backed up", "last": at},
            {"what": "backup restored by a drill", "last": at},
        ]
    )


def test_a_foreign_key_without_an_index_is_listed() -> None:
    execute("CREATE TABLE note (owner integer REFERENCES auth_user)")
    try:
        make_account("author")
        execute("INSERT INTO note SELECT id FROM auth_user, generate_series(1, 20000)")
        execute("ANALYZE note")
        rows = sections()["Foreign keys without an index"].rows
    finally:
        execute("DROP TABLE note")

    assert {"table": "note", "column": "owner", "refers_to": "auth_user"}.items() <= (
        rows[0].items()
    )

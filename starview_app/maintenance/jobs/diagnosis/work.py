"""Checks what each job would do now, and when its results were last proved."""

from collections.abc import Callable
from datetime import timedelta

from django.db import OperationalError
from psycopg2.errors import QueryCanceled
from redis.exceptions import RedisError

from starview_app.maintenance.jobs.audit_archive.format import COUNT_DUE
from starview_app.maintenance.jobs.diagnosis.section import (
    Row,
    Section,
    Situation,
    query,
)
from starview_app.maintenance.jobs.email_suppressions.cleanup import (
    cleanup_email_suppressions,
)
from starview_app.maintenance.jobs.sessions.clear import clear_sessions
from starview_app.maintenance.jobs.unverified_users.cleanup import (
    cleanup_unverified_users,
)
from starview_app.maintenance.own_tables import has_table
from starview_app.maintenance.text import one_line

_PROOFS = """
    SELECT
        what,
        max(finished_at) FILTER (WHERE outcome = 'succeeded') AS last,
        max(finished_at) FILTER (WHERE outcome IN ('failed', 'timed out', 'crashed'))
            AS failed
    FROM maintenance_jobrun
    JOIN unnest(%(jobs)s, %(what)s) AS proof (job, what) USING (job)
    GROUP BY what
    ORDER BY what
"""
PROVED_BY = {
    "archive_audit_logs": "audit rows archived",
    "verify_audit_archives": "archives verified",
}

_BACKUPS = """
    SELECT what, at AS last
    FROM (
        SELECT
            max(finished_at) FILTER (WHERE state = 'good') AS good,
            -- also of one that was removed since
            max(proved_at) AS proved
        FROM maintenance_backup
    ) AS backup,
    LATERAL (
        VALUES ('database backed up', good), ('backup restored by a drill', proved)
    ) AS shown (what, at)
    WHERE at IS NOT NULL
"""


def check_work(situation: Situation) -> Section:
    """Count what each job would do; changes nothing."""
    problems: list[str] = []
    rows: list[Row] = [
        {"job": "cleanup_unverified_users", "would": _counted(_accounts, situation)},
        {"job": "cleanup_email_suppressions", "would": _counted(_mails, situation)},
        {"job": "archive_audit_logs", "would": _counted(_audit_rows, situation)},
        {"job": "clearsessions", "would": _sessions(situation, problems)},
    ]
    return Section("What each job would do now", rows, problems)


def _counted(count: Callable[[Situation], str], situation: Situation) -> str:
    """Return what `count` finds; that a large table takes long is no problem."""
    try:
        return count(situation)
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        return "not counted, since it takes too long"


def _accounts(situation: Situation) -> str:
    counts = cleanup_unverified_users(
        now=situation.now,
        days=situation.unverified_days,
        link_days=situation.link_days,
        report=lambda event: None,
        should_stop=lambda: False,
        dry_run=True,
    ).counts
    return f"delete {counts['found']}, keep {counts['kept']}"


def _mails(situation: Situation) -> str:
    counts = cleanup_email_suppressions(
        now=situation.now,
        soft_bounce_days=situation.soft_bounce_days,
        stale_days=situation.stale_days,
        report=lambda event: None,
        should_stop=lambda: False,
        dry_run=True,
    ).counts
    return f"lift {counts['would_deactivate']}, delete {counts['would_delete']}"


def _audit_rows(situation: Situation) -> str:
    cutoff = situation.now - timedelta(days=situation.archive_days)
    ((rows,),) = (row.values() for row in query(COUNT_DUE, {"cutoff": cutoff}))
    return f"archive {rows}"


def _sessions(situation: Situation, problems: list[str]) -> str:
    if situation.redis is None:
        return "not looked at"
    try:
        counts = clear_sessions(
            now=situation.now,
            redis=situation.redis,
            key_prefix=situation.session_prefix,
            should_stop=lambda: False,
            dry_run=True,
        ).counts
    except RedisError as error:
        problems.append(
            f"clearsessions would fail, since Redis does not answer: {one_line(error)}"
            " HINT: start Redis, or correct REDIS_URL"
        )
        return "fail"
    return f"remove {counts['endless']} without an expiry, {counts['expired']} expired"


def check_proofs(situation: Situation) -> Section:
    rows: list[Row] = []
    problems: list[str] = []
    if has_table("maintenance_jobrun"):
        named = [
            (name, what)
            for command, what in PROVED_BY.items()
            for name in situation.names_of_runs.get(command, (command,))
        ]
        jobs, whats = map(list, zip(*named, strict=True))
        for row in query(_PROOFS, {"jobs": jobs, "what": whats}):
            what, last, failed = row["what"], row["last"], row["failed"]
            if last:
                rows.append({"what": what, "last": last})
            if failed and (last is None or failed > last):
                problems.append(
                    f"{what}: the run that ended at {failed:%Y-%m-%d %H:%M} UTC failed"
                    " HINT: python manage.py jobs history --failed"
                )
    rows += query(_BACKUPS) if has_table("maintenance_backup") else []
    return Section("When it was last done and proved", rows, problems)

"""Checks what each job would do now, and when its results were last proved."""

from datetime import timedelta

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
        SELECT max(finished_at) AS good, max(proved_at) AS proved
        FROM maintenance_backup
        WHERE state = 'good'
    ) AS backup,
    LATERAL (
        VALUES ('database backed up', good), ('backup restored by a drill', proved)
    ) AS shown (what, at)
    WHERE at IS NOT NULL
"""


def check_work(situation: Situation) -> Section:
    """Count what each job would do; changes nothing."""
    now = situation.now
    accounts = cleanup_unverified_users(
        now=now,
        days=situation.unverified_days,
        link_days=situation.link_days,
        report=lambda event: None,
        should_stop=lambda: False,
        dry_run=True,
    )
    mails = cleanup_email_suppressions(
        now=now,
        soft_bounce_days=situation.soft_bounce_days,
        stale_days=situation.stale_days,
        report=lambda event: None,
        should_stop=lambda: False,
        dry_run=True,
    )
    cutoff = now - timedelta(days=situation.archive_days)
    ((rows,),) = (row.values() for row in query(COUNT_DUE, {"cutoff": cutoff}))
    found: list[Row] = [
        {
            "job": "cleanup_unverified_users",
            "would": f"delete {accounts.counts['found']},"
            f" keep {accounts.counts['kept']}",
        },
        {
            "job": "cleanup_email_suppressions",
            "would": f"lift {mails.counts['would_deactivate']}, delete"
            f" {mails.counts['would_delete']}",
        },
        {"job": "archive_audit_logs", "would": f"archive {rows}"},
    ]
    problems: list[str] = []
    found.append({"job": "clearsessions", "would": _sessions(situation, problems)})
    return Section("What each job would do now", found, problems)


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

"""Let addresses with old soft bounces receive mail again, and delete stale bounces.

Hard bounces, complaints, manual entries and unsubscribes are never touched, nor is a
soft bounce of an address that has any of them, whatever the case of its letters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper

from starview_app.maintenance.jobs.halving import KEPT_SILENTLY, work_on
from starview_app.maintenance.jobs.references import unreferenced_sql
from starview_app.maintenance.jobs.result import JobResult, ShouldStop

BATCH_ROWS = 1000  # one transaction each: the webhook waits for at most one
LOCK_TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class SoftBounce:
    """An expired suppression; without a bounce record two fields are None."""

    email: str
    last_bounce: datetime | None
    bounce_count: int | None
    suppressed_on: datetime


@dataclass(frozen=True)
class ExpiredFound:
    count: int
    bounces: list[SoftBounce]  # newest bounce first


@dataclass(frozen=True)
class Deactivated:
    count: int


@dataclass(frozen=True)
class StaleFound:
    count: int


@dataclass(frozen=True)
class StaleDeleted:
    count: int


Event = ExpiredFound | Deactivated | StaleFound | StaleDeleted
Report = Callable[[Event], None]

# The webhook writes these tables, and must wait while a batch decides: otherwise a
# complaint that arrives just then could be overlooked.
_LOCK = f"""
    SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS};
    LOCK TABLE
        starview_email_bounce, starview_email_complaint, starview_email_suppression
    IN SHARE ROW EXCLUSIVE MODE;
"""

# A suppressed address's bounces are found by the row's link and by the address. Without
# a bounce record, the day when the suppression was added counts.
_EXPIRED = """
    WITH soft AS (
        SELECT id, email, lower(email) AS address, bounce_id, added_date
        FROM starview_email_suppression
        WHERE
            is_active
            AND reason = 'soft_bounce'
            AND complaint_id IS NULL
            AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s::bigint[]))
    ),
    known AS (
        SELECT soft.id AS suppression_id, bounce.id AS bounce_id
        FROM soft
        JOIN starview_email_bounce AS bounce ON bounce.id = soft.bounce_id
        UNION
        SELECT soft.id, bounce.id
        FROM soft
        JOIN starview_email_bounce AS bounce ON lower(bounce.email) = soft.address
    ),
    expired AS (
        SELECT
            soft.id,
            soft.email,
            soft.added_date,
            max(bounce.last_bounce_date) AS last_bounce,
            max(bounce.bounce_count) AS bounce_count
        FROM soft
        LEFT JOIN known ON known.suppression_id = soft.id
        LEFT JOIN starview_email_bounce AS bounce ON bounce.id = known.bounce_id
        WHERE
            NOT EXISTS (
                SELECT FROM starview_email_complaint AS complaint
                WHERE lower(complaint.email) = soft.address
            )
            AND NOT EXISTS (
                SELECT FROM starview_email_suppression AS other
                WHERE
                    lower(other.email) = soft.address
                    AND other.reason <> 'soft_bounce'
            )
        GROUP BY soft.id, soft.email, soft.added_date
        HAVING
            coalesce(max(bounce.last_bounce_date), soft.added_date) < %(soft_cutoff)s
            AND coalesce(min(bounce.last_bounce_date), 'now') > '1900-01-01'
            AND coalesce(bool_and(bounce.bounce_type IN ('soft', 'transient')), true)
    )
"""

_LIST_EXPIRED = f"""
    {_EXPIRED}
    SELECT
        id,
        ARRAY(SELECT bounce_id FROM known WHERE known.suppression_id = expired.id),
        email,
        last_bounce,
        bounce_count,
        added_date
    FROM expired
    ORDER BY last_bounce DESC NULLS LAST, id
"""

# The record is reset, but keeps its dates, which are those of real bounces.
_EXPIRE = f"""
    {_EXPIRED},
    reset AS (
        UPDATE starview_email_bounce AS bounce
        SET bounce_count = 0, suppressed = false
        WHERE
            bounce.id IN (
                SELECT known.bounce_id
                FROM known
                JOIN expired ON expired.id = known.suppression_id
            )
            AND NOT EXISTS (  -- it is on record for something else as well
                SELECT FROM starview_email_suppression AS other
                WHERE other.bounce_id = bounce.id AND other.reason <> 'soft_bounce'
            )
    ),
    ended AS (
        UPDATE starview_email_suppression AS suppression
        SET is_active = false
        FROM expired
        WHERE suppression.id = expired.id
        RETURNING suppression.id
    )
    SELECT (SELECT count(*) FROM expired), (SELECT count(*) FROM ended)
"""

# A record is kept if an active suppression, one for another reason, or a row of an
# unknown table refers to it.
_STALE = """
    FROM starview_email_bounce AS bounce
    WHERE
        bounce.bounce_type IN ('soft', 'transient')
        AND (NOT bounce.suppressed OR bounce.id = ANY(%(reset)s::bigint[]))
        AND bounce.last_bounce_date < %(stale_cutoff)s
        AND NOT EXISTS (
            SELECT FROM starview_email_suppression AS suppression
            WHERE
                suppression.bounce_id = bounce.id
                AND (
                    suppression.reason <> 'soft_bounce'
                    OR (
                        suppression.is_active
                        AND suppression.id <> ALL(%(ended)s::bigint[])
                    )
                )
        )
"""

_UNLINK = """
    UPDATE starview_email_suppression SET bounce_id = NULL
    WHERE bounce_id = ANY(%(ids)s::bigint[])
"""
_DELETE = "DELETE FROM starview_email_bounce WHERE id = ANY(%(ids)s::bigint[])"


def cleanup_email_suppressions(
    *,
    now: datetime,
    soft_bounce_days: int,
    stale_days: int,
    report: Report,
    should_stop: ShouldStop,
    dry_run: bool = False,
) -> JobResult:
    """Deactivate expired soft-bounce suppressions, then delete stale bounce records.

    A soft-bounce suppression expires when its address has not bounced for more than
    `soft_bounce_days` before `now`; its bounce record is reset, with its dates kept. A
    soft or transient record that suppresses nothing is stale when its last bounce was
    more than `stale_days` before `now`. Exactly on a limit is kept.

    Safe to run twice and safe to kill: each batch commits by itself. A row that the
    database refuses to change is a problem, and the others of its batch are changed. A
    dry run only reads, and takes no lock.
    Counts: deactivated, deleted; of a dry run also would_deactivate, would_delete.
    """
    limits = {
        "soft_cutoff": now - timedelta(days=soft_bounce_days),
        "stale_cutoff": now - timedelta(days=stale_days),
    }
    result = JobResult({"deactivated": 0, "deleted": 0})
    with connection.cursor() as cursor:
        if dry_run:
            result.counts |= _preview(cursor, limits, report)
            return result
        _expire(cursor, limits, report, should_stop, result)
        if not result.interrupted:
            _delete_stale(cursor, limits, report, should_stop, result)
    return result


def _preview(
    cursor: CursorWrapper, limits: dict[str, datetime], report: Report
) -> dict[str, int]:
    """Report the figures of a run, without locks or writes.

    The second part takes into account that a run would have reset the records and
    deactivated the suppressions of the first, which makes more records stale.
    """
    with transaction.atomic():
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        rows = _list_expired(cursor, limits, report)
        report(Deactivated(len(rows)))
        after: dict[str, Any] = {
            **limits,
            "ended": [row[0] for row in rows],
            "reset": [bounce_id for row in rows for bounce_id in row[1]],
        }
        cursor.execute(f"SELECT count(*) {_stale()}", after)
        (count,) = cursor.fetchone()
        report(StaleFound(count))
        report(StaleDeleted(count))
    return {"would_deactivate": len(rows), "would_delete": count}


def _list_expired(
    cursor: CursorWrapper, limits: dict[str, datetime], report: Report
) -> list[Any]:
    """Report the expired suppressions; return rows of (id, ids of its bounces, ...)."""
    cursor.execute(_LIST_EXPIRED, {**limits, "ids": None})
    rows: list[Any] = cursor.fetchall()
    report(ExpiredFound(len(rows), [SoftBounce(*row[2:]) for row in rows]))
    return rows


def _stale() -> str:
    return f"{_STALE} AND {unreferenced_sql('starview_email_bounce', 'bounce')}"


def _expire(
    cursor: CursorWrapper,
    limits: dict[str, datetime],
    report: Report,
    should_stop: ShouldStop,
    result: JobResult,
) -> None:
    rows = _list_expired(cursor, limits, report)

    def expire(ids: Sequence[int]) -> None:
        with transaction.atomic():
            cursor.execute(_LOCK)
            cursor.execute(_EXPIRE, {**limits, "ids": list(ids)})
            expired, ended = cursor.fetchone()
            if ended != expired:
                raise DatabaseError(KEPT_SILENTLY)
        result.counts["deactivated"] += ended

    def refused(suppression_id: int, reason: str) -> None:
        result.problems.append(
            f"suppression {suppression_id} was not deactivated: {reason}"
        )

    ids = [row[0] for row in rows]
    for start in range(0, len(ids), BATCH_ROWS):
        if should_stop():
            result.interrupted = True
            break
        batch = ids[start : start + BATCH_ROWS]
        work_on(batch, expire, refused=refused, should_stop=should_stop)
    report(Deactivated(result.counts["deactivated"]))


def _delete_stale(
    cursor: CursorWrapper,
    limits: dict[str, datetime],
    report: Report,
    should_stop: ShouldStop,
    result: JobResult,
) -> None:
    stale = _stale()
    # Empty: in a real run the first part has already been done.
    parameters: dict[str, Any] = {**limits, "reset": [], "ended": []}
    cursor.execute(f"SELECT count(*) {stale}", parameters)
    (count,) = cursor.fetchone()
    report(StaleFound(count))

    def still_stale(condition: str, **values: Any) -> list[int]:
        cursor.execute(
            f"SELECT bounce.id {stale} AND {condition} ORDER BY bounce.id"
            f" LIMIT {BATCH_ROWS}",
            {**parameters, **values},
        )
        return [number for (number,) in cursor.fetchall()]

    def delete(ids: Sequence[int]) -> None:
        with transaction.atomic():
            cursor.execute(_LOCK)
            found = still_stale("bounce.id = ANY(%(ids)s::bigint[])", ids=list(ids))
            cursor.execute(_UNLINK, {"ids": found})
            cursor.execute(_DELETE, {"ids": found})
            if cursor.rowcount != len(found):
                raise DatabaseError(KEPT_SILENTLY)
        result.counts["deleted"] += len(found)

    def refused(bounce_id: int, reason: str) -> None:
        result.problems.append(f"bounce {bounce_id} was not deleted: {reason}")

    last = 0
    while ids := still_stale("bounce.id > %(last)s", last=last):
        if should_stop():
            result.interrupted = True
            break
        work_on(ids, delete, refused=refused, should_stop=should_stop)
        last = ids[-1]
    report(StaleDeleted(result.counts["deleted"]))

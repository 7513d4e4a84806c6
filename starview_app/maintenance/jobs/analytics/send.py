"""Measures, writes and mails the report, once for each period and its recipients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256

from django.db import connection, transaction

from starview_app.maintenance.jobs.analytics.measure import Analytics, measure
from starview_app.maintenance.jobs.analytics.period import Period
from starview_app.maintenance.jobs.analytics.security import OpenStore
from starview_app.maintenance.jobs.audit_archive.transfer import StopRequested
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import SentReport

# Waits if another run has inserted the row and is still sending its mail.
_CLAIM = """
    INSERT INTO maintenance_sentreport (
        kind, period_start, recipients_sha256, sent_at, figures
    )
    VALUES (
        %(kind)s,
        %(period_start)s,
        %(recipients_sha256)s,
        %(sent_at)s,
        %(figures)s::jsonb
    )
    ON CONFLICT (kind, period_start, recipients_sha256) DO {otherwise}
"""
_NOTHING = "NOTHING"
# The figures of the first report are kept, since rows are deleted later.
_AGAIN = "UPDATE SET sent_at = excluded.sent_at"

Send = Callable[[Analytics], None]


def send_analytics_report(
    *,
    now: datetime,
    period: Period,
    recipients: Sequence[str],
    open_store: OpenStore,
    send: Send,
    should_stop: ShouldStop,
    again: bool = False,
) -> JobResult:
    """Have `send` mail the report of `period`, unless `recipients` have it already.

    A row for the period is inserted, the mail is sent, and then the row is committed.
    So of two runs at the same time only one sends, and after a run that failed or was
    killed the next one sends. Only a crash between the mail and the commit leads to a
    second mail.

    `send` raises JobError if the mail could not be sent. Counts: sent, warnings.
    """
    result = JobResult({"sent": 0, "warnings": 0})
    if not again and sent_at(period, recipients):
        return result
    try:
        analytics = measure(
            now=now, period=period, open_store=open_store, should_stop=should_stop
        )
    except StopRequested:
        result.interrupted = True
        return result
    with transaction.atomic():
        if _claim(analytics, recipients, again=again):
            send(analytics)
            result.counts["sent"] = 1
    result.counts["warnings"] = len(analytics.warnings)
    return result


def sent_at(period: Period, recipients: Sequence[str]) -> datetime | None:
    sent = SentReport.objects.filter(
        kind=period.kind,
        period_start=period.start,
        recipients_sha256__in=["", _digest(recipients)],
    )
    return sent.values_list("sent_at", flat=True).first()


def _claim(analytics: Analytics, recipients: Sequence[str], *, again: bool) -> bool:
    statement = _CLAIM.format(otherwise=_AGAIN if again else _NOTHING)
    with connection.cursor() as cursor:
        cursor.execute(
            statement,
            {
                "kind": analytics.period.kind,
                "period_start": analytics.period.start,
                "recipients_sha256": _digest(recipients),
                "sent_at": analytics.now,
                "figures": json.dumps(analytics.stored),
            },
        )
        return bool(cursor.rowcount)


def _digest(recipients: Sequence[str]) -> str:
    """Tell recipients apart, whatever their order and case, without their addresses."""
    return sha256(json.dumps(sorted(map(str.lower, recipients))).encode()).hexdigest()

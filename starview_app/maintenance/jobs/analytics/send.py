"""Measures, writes and mails the report, once for each period."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from django.db import connection, transaction

from starview_app.maintenance.jobs.analytics.measure import Analytics, measure
from starview_app.maintenance.jobs.analytics.period import Period
from starview_app.maintenance.jobs.analytics.security import OpenStore
from starview_app.maintenance.jobs.audit_archive.transfer import StopRequested
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.models import SentReport

# Waits if another run has inserted the row and is still sending its mail.
_CLAIM = """
    INSERT INTO maintenance_sentreport (kind, period_start, sent_at, figures)
    VALUES (%(kind)s, %(period_start)s, %(sent_at)s, %(figures)s::jsonb)
    ON CONFLICT (kind, period_start) DO {otherwise}
"""
_NOTHING = "NOTHING"
# The figures of the first report are kept, since rows are deleted later.
_AGAIN = "UPDATE SET sent_at = excluded.sent_at"

Send = Callable[[Analytics], None]


def send_analytics_report(
    *,
    now: datetime,
    period: Period,
    open_store: OpenStore,
    send: Send,
    should_stop: ShouldStop,
    again: bool = False,
) -> JobResult:
    """Have `send` mail the report of `period`, unless it was mailed before.

    A row for the period is inserted, the mail is sent, and then the row is committed.
    So of two runs at the same time only one sends, and after a run that failed or was
    killed the next one sends. Only a crash between the mail and the commit leads to a
    second mail.

    `send` raises JobError if the mail could not be sent. Counts: sent, warnings.
    """
    result = JobResult({"sent": 0, "warnings": 0})
    if not again and sent_at(period):
        return result
    try:
        analytics = measure(
            now=now, period=period, open_store=open_store, should_stop=should_stop
        )
    except StopRequested:
        result.interrupted = True
        return result
    with transaction.atomic():
        if _claim(analytics, again=again):
            send(analytics)
            result.counts["sent"] = 1
    result.counts["warnings"] = len(analytics.warnings)
    return result


def sent_at(period: Period) -> datetime | None:
    sent = SentReport.objects.filter(kind=period.kind, period_start=period.start)
    return sent.values_list("sent_at", flat=True).first()


def _claim(analytics: Analytics, *, again: bool) -> bool:
    statement = _CLAIM.format(otherwise=_AGAIN if again else _NOTHING)
    with connection.cursor() as cursor:
        cursor.execute(
            statement,
            {
                "kind": analytics.period.kind,
                "period_start": analytics.period.start,
                "sent_at": analytics.now,
                "figures": json.dumps(analytics.stored),
            },
        )
        return bool(cursor.rowcount)

"""Alerts: a channel gets one for each failed slot, and one when the job works again.

After a channel has accepted an alert, that is recorded: a crash between the two leads
to a second alert, but never to none. Each channel has its own record, so one that
refuses an alert does not affect the others. While the database does not answer, the
record is in `local_memory`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial

import structlog
from django.db import Error as DatabaseError
from django.db import transaction

from starview_app.maintenance.catchup.memory import last_tick
from starview_app.maintenance.catchup.slots import FAILURES, slot_states
from starview_app.maintenance.database_errors import explain
from starview_app.maintenance.models import Announcement, JobRun
from starview_app.maintenance.notify import words
from starview_app.maintenance.notify.channels import (
    ALERTS,
    Channel,
    channels_for,
    reason_of,
)
from starview_app.maintenance.notify.message import (
    Alert,
    News,
    NotDelivered,
    Outage,
    news_of,
)
from starview_app.maintenance.own_tables import create_own_tables, unless_missing
from starview_app.maintenance.running import local_memory
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.lock import lock_if_free
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import recorded_jobs, scheduled_jobs

logger = structlog.get_logger(__name__)

# For so long after an alert, further news is collected for one more alert.
PAUSE = timedelta(minutes=5)
# So long without a tick means an outage: two ticks are missing.
LONG = timedelta(minutes=25)

Outcome = JobRun.Outcome
_Announced = dict[str, Announcement]  # by job: what one channel has announced last


# -- what the runner calls -----------------------------------------------------------


def after_run(request: RunRequest, ending: Ending) -> None:
    """Announce the end of a scheduled run if it is news; never raises.

    Within PAUSE after another alert this is left to `dispatch`. A run that succeeds
    like the one before it costs one query.
    """
    if request.schedule is None:
        return
    with _never_failing():
        if any(map(local_memory.down_since, _names())):
            _announce(recorded_jobs(), ending.finished_at)
        elif _is_news(request.job, ending):
            create_own_tables()
            _announce(
                [request.schedule],
                ending.finished_at,
                as_of=request.slot,  # at its end there may be a newer slot
                is_held=lambda announced: _is_held(request.job, ending, announced),
            )


def after_unrecorded_run(request: RunRequest, ending: Ending, reason: str) -> None:
    """Announce a failed run that could not be recorded; never raises.

    There is no record of the announcement either, so it may be announced again.
    """
    if request.slot is None or ending.outcome not in FAILURES:
        return
    with _never_failing():
        alert = words.unrecorded(request, ending, reason)
        for channel in channels_for(ALERTS):
            _send(channel, alert)


def dispatch(jobs: list[ScheduledJob], now: datetime, *, at_once: bool = True) -> None:
    """Announce all the news of `jobs`, in one alert for each channel; never raises.

    Without `at_once` it does nothing within PAUSE after another alert.
    """
    with _never_failing():
        _announce(
            jobs,
            now,
            is_held=lambda announced: not at_once and _is_paused(announced, now),
        )


def database_is_down(job: str, text: str, *, now: datetime) -> None:
    """Announce that `job` could not run, once in an outage; never raises."""
    with _never_failing():
        alert = words.database_down(job, text, now=now)
        for channel in channels_for(ALERTS):
            local_memory.announce_outage(channel.name, partial(_send, channel, alert))


def recall_outage(now: datetime) -> None:
    """At a container's first tick, find out whether there was an outage before it.

    What an earlier container has announced is not known. An outage is assumed if the
    database server was restarted since the last tick of any container, or if that tick
    was more than LONG ago; the end of the outage is then announced. Never raises.
    """
    with _never_failing():
        if not local_memory.is_new():
            return
        ticked_at, started_at = last_tick()
        if ticked_at is None:
            return
        # Only a run that was due while the server was away can have announced it.
        is_missed = any(
            line.next_after(ticked_at) < started_at for line in scheduled_jobs()
        )
        if is_missed or now - ticked_at > LONG:
            for name in _names():
                local_memory.suspect_outage(name, ticked_at)


# -- whether there is something to announce -------------------------------------------


def _names() -> list[str]:
    return [channel.name for channel in channels_for(ALERTS)]


def _is_news(job: str, ending: Ending) -> bool:
    if ending.outcome == Outcome.SUCCEEDED:
        failing = Announcement.objects.filter(job=job, failing_since__isnull=False)
        return bool(unless_missing(failing.filter(channel__in=_names())[:1]))
    return ending.outcome not in (Outcome.INTERRUPTED, Outcome.SKIPPED)


def _is_held(job: str, ending: Ending, announced: _Announced) -> bool:
    """Whether the news waits for `dispatch`, so that many failures make one alert."""
    if not _is_paused(announced, ending.finished_at):
        return False
    others = [last for last in announced.values() if last.job != job]
    return ending.outcome != Outcome.SUCCEEDED or any(
        last.failing_since for last in others
    )


def _is_paused(announced: _Announced, now: datetime) -> bool:
    return any(last.announced_at > now - PAUSE for last in announced.values())


def _announce(
    jobs: list[ScheduledJob],
    now: datetime,
    *,
    as_of: datetime | None = None,
    is_held: Callable[[_Announced], bool] = lambda announced: False,
) -> None:
    # The advisory lock has its own database session, since an alert may take long. If
    # another process holds it, that one announces; the next `dispatch` does the rest.
    with lock_if_free("alerts") as is_ours:
        if not is_ours:
            return
        states = slot_states(jobs, now, as_of=as_of)
        for channel in channels_for(ALERTS):
            rows = Announcement.objects.filter(channel=channel.name)
            announced = {row.job: row for row in rows}
            if is_held(announced):
                continue
            news = news_of(states, announced, _outage(channel.name), now)
            if news and _send(channel, words.alert_of(news)):
                _remember(channel.name, news)


def _outage(channel: str) -> Outage | None:
    """Return the outage whose end the channel must announce, or None."""
    since = local_memory.down_since(channel)
    return Outage(since, local_memory.is_of_this_container(since)) if since else None


def _remember(channel: str, news: News) -> None:
    with transaction.atomic():
        for trouble in news.troubles:
            Announcement.objects.update_or_create(
                channel=channel,
                job=trouble.job,
                defaults={
                    "announced_at": news.now,
                    "announced_slot": trouble.mark,
                    "failing_since": trouble.since,
                },
            )
        names = [recovery.job for recovery in news.recoveries]
        Announcement.objects.filter(channel=channel, job__in=names).update(
            announced_at=news.now, failing_since=None
        )
    local_memory.forget_outage(channel)


# -- sending -------------------------------------------------------------------------


def _send(channel: Channel, alert: Alert) -> bool:
    """Return whether the channel accepted; if not, the next `dispatch` tries again."""
    try:
        return channel.send(alert)
    except Exception as error:  # no error of a channel may fail the job
        _log(reason_of(error), channel=channel.name, subject=alert.subject)
        return False


def _log(reason: str, **about: str) -> None:
    logger.error("alert_not_sent", reason=reason, **about)


@contextmanager
def _never_failing() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        clear = explain(error)
        _log(reason_of(NotDelivered(clear) if clear else error))
    except Exception as error:
        logger.exception("alert_not_sent", reason=type(error).__name__)

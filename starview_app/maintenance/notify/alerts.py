"""Mails to ADMIN_EMAIL: once per slot that went wrong, and once when it works again.

What was mailed is written down after the mail was accepted: a crash between the two
leads to a second mail, never to none. While the database does not answer,
`local_memory` is the memory. The words of the mails are imported by those that
need them: every run imports this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import make_msgid, parseaddr
from typing import TYPE_CHECKING

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction

from starview.env import MAIL
from starview_app.maintenance.catchup.memory import last_tick
from starview_app.maintenance.catchup.slots import FAILURES
from starview_app.maintenance.database_errors import explain
from starview_app.maintenance.models import Job, JobRun
from starview_app.maintenance.running import local_memory
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.lock import lock_if_free
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.schedule.crontab import ScheduledJob
from starview_app.maintenance.schedule.registry import recorded_jobs
from starview_app.maintenance.text import one_line

if TYPE_CHECKING:
    from starview_app.maintenance.notify.message import (
        Message,
        News,
        Outage,
    )

logger = structlog.get_logger(__name__)

# After a mail: what else goes wrong is collected for one more.
PAUSE = timedelta(minutes=5)
# Without a tick: two have not come.
LONG = timedelta(minutes=25)
_LONGEST_REASON = 300  # characters

Outcome = JobRun.Outcome


# -- what the runner calls -----------------------------------------------------------


def after_run(request: RunRequest, ending: Ending) -> None:
    """Mail how a run of the crontab ended, where that is news; never raises.

    Within PAUSE after another mail it is left to `dispatch`. A run that succeeds as
    usual costs one query.
    """
    if request.schedule is None:
        return
    with _never_failing():
        if local_memory.down_since():
            _tell(recorded_jobs(), ending.finished_at)
        elif _is_news(request.job, ending):
            _tell(
                [request.schedule],
                ending.finished_at,
                as_of=request.slot,  # when it ends, newer ones may have come
                is_held=lambda: _is_held(request.job, ending),
            )


def after_unrecorded_run(request: RunRequest, ending: Ending, reason: str) -> None:
    """Mail a failure of a slot that is on no record; never raises.

    Nothing remembers that it was mailed, nor that the slot was run.
    """
    if request.slot is None or ending.outcome not in FAILURES:
        return
    from starview_app.maintenance.notify.message import unrecorded

    with _never_failing():
        message = unrecorded(request, ending, reason)
        if nobody := _nobody_to_mail():
            _say_once(nobody, [message.subject])
        else:
            _send(message)


def dispatch(jobs: list[ScheduledJob], now: datetime, *, at_once: bool = True) -> None:
    """Mail all that is to be told of `jobs` in one mail; never raises.

    Without `at_once` not within PAUSE after another mail.
    """
    with _never_failing():
        _tell(jobs, now, is_held=lambda: not at_once and _is_paused(now))


def database_is_down(job: str, text: str, *, now: datetime) -> None:
    """Mail that `job` could not run, unless this outage was mailed; never raises."""
    from starview_app.maintenance.notify.message import database_down

    with _never_failing():
        message = database_down(job, text, now=now)
        if reason := _nobody_to_mail():
            _say_once(reason, [message.subject])
            return
        with local_memory.file_lock() as is_ours:  # who holds it is mailing
            if is_ours and not local_memory.down_since() and _send(message):
                local_memory.remember_down()


def recall_outage(now: datetime) -> None:
    """At the first tick of a container: what the one before it mailed is not known.

    That an outage is over is then mailed on the evidence of the database: since the
    last tick of anybody it was started anew, or a long time has passed. Never raises.
    """
    with _never_failing():
        if not local_memory.is_new():
            return
        ticked_at, started_at = last_tick()
        if ticked_at and (started_at > ticked_at or now - ticked_at > LONG):
            local_memory.suspect_down(ticked_at)


# -- whether there is something to tell ----------------------------------------------


def _is_news(job: str, ending: Ending) -> bool:
    if ending.outcome == Outcome.SUCCEEDED:
        return Job.objects.filter(name=job, failing_since__isnull=False).exists()
    return ending.outcome not in (Outcome.INTERRUPTED, Outcome.SKIPPED)


def _is_held(job: str, ending: Ending) -> bool:
    """Whether it waits for `dispatch`: many failing, or recovering, are one mail."""
    if not _is_paused(ending.finished_at):
        return False
    others = Job.objects.filter(failing_since__isnull=False).exclude(name=job)
    return ending.outcome != Outcome.SUCCEEDED or others.exists()


def _is_paused(now: datetime) -> bool:
    return Job.objects.filter(alerted_at__gt=now - PAUSE).exists()


def _tell(
    jobs: list[ScheduledJob],
    now: datetime,
    *,
    as_of: datetime | None = None,
    is_held: Callable[[], bool] = lambda: False,
) -> None:
    from starview_app.maintenance.catchup.slots import slot_states
    from starview_app.maintenance.notify.message import news_of

    with _session_lock() as is_ours:
        # Who holds it is mailing; the next `dispatch` does the rest.
        if not is_ours or is_held():
            return
        news = news_of(slot_states(jobs, as_of or now), _outage(), now)
        if not news:
            return
        if reason := _nobody_to_mail():
            _say_once(reason, news.keys)
        elif _send(news.message()):
            _remember(news)


def _outage() -> "Outage | None":
    """The outage of which it is to be told that it is over."""
    from starview_app.maintenance.notify.message import Outage

    if since := local_memory.down_since():
        return Outage(since, is_known=True)
    if since := local_memory.suspected_since():
        return Outage(since, is_known=False)
    return None


def _remember(news: "News") -> None:
    with transaction.atomic():
        for trouble in news.troubles:
            Job.objects.update_or_create(
                name=trouble.job,
                defaults={
                    "alerted_at": news.now,
                    "alerted_slot": trouble.mark,
                    "failing_since": trouble.since,
                },
            )
        names = [recovery.job for recovery in news.recoveries]
        Job.objects.filter(name__in=names).update(
            alerted_at=news.now, failing_since=None
        )
    local_memory.forget_down()


@contextmanager
def _session_lock() -> Iterator[bool]:
    """Whether it is ours. On a session of its own: a mail may take long."""
    with lock_if_free("alerts") as is_ours:
        yield is_ours


# -- sending -------------------------------------------------------------------------


def _nobody_to_mail() -> str:
    """Why no mail can be sent; empty when it can."""
    problems = settings.ENVIRONMENT.problems_for(MAIL)
    wrong = [problem.what for problem in problems if problem.needed_by == MAIL]
    if not settings.ADMIN_EMAIL and not wrong:
        return "ADMIN_EMAIL is not set"
    return "; ".join(wrong)


def _send(message: "Message") -> bool:
    """Whether it was accepted. SES gets 25 s to answer: see `ses.Backend`."""
    from django.core.mail import EmailMessage

    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    try:
        EmailMessage(
            message.subject,
            message.text,
            settings.DEFAULT_FROM_EMAIL,
            list(dict.fromkeys(settings.ADMIN_EMAIL)),
            headers={
                "Auto-Submitted": "auto-generated",  # no holiday notes in answer
                # Django would ask the DNS for this host's name, with no time limit.
                "Message-ID": make_msgid(domain=domain),
            },
        ).send()
    except Exception as error:  # whatever it is, the job goes on
        _not_sent(f"{type(error).__name__}: {error}", subject=message.subject)
        return False
    logger.info("alert_sent", subject=message.subject)
    return True


def _not_sent(reason: str, **about: str) -> None:
    text = one_line(" ".join(reason.split()))
    logger.error("alert_not_sent", reason=text[:_LONGEST_REASON], **about)


@contextmanager
def _never_failing() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        _not_sent(explain(error) or f"{type(error).__name__}: {error}")
    except Exception as error:
        logger.exception("alert_not_sent", reason=type(error).__name__)


def _say_once(reason: str, about: list[str]) -> None:
    """Log that nobody is mailed; not again for the same news by every `dispatch`."""
    said = "\n".join([reason, *about])
    if not local_memory.is_said(said):
        _not_sent(reason, subject=", ".join(about))
        local_memory.remember_said(said)

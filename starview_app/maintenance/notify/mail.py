"""Mails to ADMIN_EMAIL."""

from email.utils import make_msgid, parseaddr

import structlog
from django.conf import settings
from django.core.mail import EmailMessage

from starview.env import MAIL
from starview_app.maintenance.notify.message import Alert, Message

logger = structlog.get_logger(__name__)


def send(message: Message) -> bool:
    """SES gets 25 s to answer: see `ses.Backend`."""
    if not isinstance(message, Alert):
        return True
    if why_nobody_is_mailed():
        return False
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
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
    logger.info("alert_sent", subject=message.subject)
    return True


def why_nobody_is_mailed() -> str:
    """Why no mail can be sent; empty when it can."""
    problems = settings.ENVIRONMENT.problems_for(MAIL)
    wrong = [problem.what for problem in problems if problem.needed_by == MAIL]
    if not settings.ADMIN_EMAIL and not wrong:
        return "ADMIN_EMAIL is not set"
    return "; ".join(wrong)

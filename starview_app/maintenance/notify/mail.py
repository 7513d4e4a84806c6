"""Mails to ADMIN_EMAIL."""

from email.utils import make_msgid, parseaddr
from typing import Any

import structlog
from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.template.loader import render_to_string

from starview.env import MAIL
from starview_app.maintenance.notify.message import Alert, Message, Section

logger = structlog.get_logger(__name__)


def send(message: Message) -> bool:
    """Mail an alert. SES has 25 s to answer: see `ses.Backend`."""
    if not isinstance(message, Alert):
        return True
    if why_nobody_is_mailed():
        return False
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    mail = EmailMultiAlternatives(
        message.subject,
        message.text,
        settings.DEFAULT_FROM_EMAIL,
        list(dict.fromkeys(settings.ADMIN_EMAIL)),
        headers={
            "Auto-Submitted": "auto-generated",  # prevents out-of-office replies
            # By default Django looks up this host's name in the DNS, without a timeout.
            "Message-ID": make_msgid(domain=domain),
        },
    )
    mail.attach_alternative(_html(message), "text/html")
    mail.send()
    logger.info("alert_sent", subject=message.subject)
    return True


def why_nobody_is_mailed() -> str:
    """Return why no mail can be sent, or an empty string."""
    problems = settings.ENVIRONMENT.problems_for(MAIL)
    wrong = [problem.what for problem in problems if problem.needed_by == MAIL]
    if not settings.ADMIN_EMAIL and not wrong:
        return "ADMIN_EMAIL is not set"
    return "; ".join(wrong)


def _html(alert: Alert) -> str:
    context = {
        "subject": alert.subject,
        "parts": [_part(part) for part in alert.parts or (alert.text,)],
        "footer": alert.text.rpartition("\n-- \n")[2],
    }
    return render_to_string("maintenance/alert.html", context)


def _part(part: Section | str) -> dict[str, Any]:
    """Return what the template shows of a part: the error first, then what to do."""
    if isinstance(part, str):
        return {"text": part}
    is_command = [line.startswith("python ") for line in part.todo]
    return {
        "title": part.title,
        "error": part.facts.get("error", ""),
        "todo": list(zip(part.todo, is_command, strict=True)),
        "facts": [
            (name, value) for name, value in part.facts.items() if name != "error"
        ],
        "output": part.output,
    }

"""Logs each alert once if no mail can be sent.

This is a separate channel with its own record of announcements: an alert that was only
logged is mailed as soon as mail can be sent.
"""

import structlog

from starview_app.maintenance.notify.mail import why_nobody_is_mailed
from starview_app.maintenance.notify.message import Alert, Message

logger = structlog.get_logger(__name__)


def send(message: Message) -> bool:
    if isinstance(message, Alert) and (reason := why_nobody_is_mailed()):
        logger.error("alert_not_sent", reason=reason, subject=message.subject)
    return True

"""The log has each alert once that nobody can be mailed.

It is a channel of its own, so that its memory is not that of the mails: they go out
when there is an address.
"""

import structlog

from starview_app.maintenance.notify.mail import why_nobody_is_mailed
from starview_app.maintenance.notify.message import Alert, Message

logger = structlog.get_logger(__name__)


def send(message: Message) -> bool:
    if isinstance(message, Alert) and (reason := why_nobody_is_mailed()):
        logger.error("alert_not_sent", reason=reason, subject=message.subject)
    return True

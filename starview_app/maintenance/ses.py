"""Amazon SES: sends a mail at most once, and reads SES's figures and suppression list.

The import of boto3 and django-ses takes 0.3 s, so import this only to use SES.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.mime.image import MIMEImage
from smtplib import SMTPException, SMTPServerDisconnected
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError
from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.base import BaseEmailBackend
from django_ses import SESBackend

from starview.redaction import redact
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.text import one_line

if TYPE_CHECKING:
    from mypy_boto3_ses import SESClient
    from mypy_boto3_ses.type_defs import SendDataPointTypeDef
    from mypy_boto3_sesv2.type_defs import ListSuppressedDestinationsRequestTypeDef

WEEK = timedelta(days=7)
CONNECT_SECONDS = 5
SEND_SECONDS = 20
STATISTICS_SECONDS = 5  # the report does not wait longer for the figures
LIST_SECONDS = 30  # for all pages of SES's suppression list
LIST_PAGE = 1_000  # addresses
MOST_LISTED = 100_000  # addresses

_KEYS_HINT = (
    "AWS_SES_ACCESS_KEY_ID and AWS_SES_SECRET_ACCESS_KEY are the access key of an IAM"
    " user that may send with SES, never the R2 pair"
)
_HINTS = {
    "MessageRejected": (
        "verify DEFAULT_FROM_EMAIL in SES, region {region}; in the SES sandbox verify"
        " each recipient too"
    ),
    "AccessDenied": "allow the IAM user of AWS_SES_ACCESS_KEY_ID ses:SendRawEmail",
    "InvalidClientTokenId": _KEYS_HINT,
    "SignatureDoesNotMatch": _KEYS_HINT,
    "Throttling": "the sending quota of SES, region {region}, is used up; try later",
}
_NO_SUCH_LIST = ("404", "501", "NotFound", "UnknownOperation")  # from fakes of SES
_OTHER_ANSWER_HINT = "look at the SES console, region {region}"
_NO_ANSWER_HINT = "check AWS_SES_REGION_NAME={region}, AWS_SES_ENDPOINT_URL and network"
_LONGEST_REASON = 300  # characters


# -- Sending ------------------------------------------------------------------------


class Backend(BaseEmailBackend):
    """django-ses without retries: a retry after a lost answer would send a mail twice.

    It uses only the AWS_SES_ variables. Without them boto3 would find
    AWS_ACCESS_KEY_ID, which is the key for R2.
    """

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:

        if not (settings.AWS_SES_ACCESS_KEY_ID and settings.AWS_SES_SECRET_ACCESS_KEY):
            raise JobError(f"the SES access key is not set HINT: {_KEYS_HINT}.")
        backend = SESBackend(
            fail_silently=self.fail_silently,
            aws_access_key=settings.AWS_SES_ACCESS_KEY_ID,
            aws_secret_key=settings.AWS_SES_SECRET_ACCESS_KEY,
            aws_region_name=settings.AWS_SES_REGION_NAME,
            aws_region_endpoint=settings.AWS_SES_REGION_ENDPOINT_URL,
            aws_config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SEND_SECONDS,
            ),
        )
        return backend.send_messages(email_messages) or 0


def send_report(
    *,
    subject: str,
    text: str,
    html: str,
    from_email: str,
    recipients: Sequence[str],
    region: str,
    pictures: Mapping[str, bytes] | None = None,
    pages: Mapping[str, str] | None = None,
) -> None:
    """Send one mail to all `recipients` through EMAIL_BACKEND, in one attempt.

    `pictures` are PNGs, which the HTML shows as `cid:NAME`; `pages` are HTML, attached
    under these file names. Raises JobError; the text says so if it is unknown whether
    the mail was sent.
    """

    message = EmailMultiAlternatives(subject, text, from_email, list(recipients))
    message.attach_alternative(html, "text/html")
    if pictures:
        # The pictures are shown in the HTML, not listed as attachments.
        message.mixed_subtype = "related"  # type: ignore[attr-defined]
    for name, png in (pictures or {}).items():
        picture = MIMEImage(png, "png")
        picture.add_header("Content-ID", f"<{name}>")
        file = f"{name.partition('@')[0]}.png"
        picture.add_header("Content-Disposition", "inline", filename=file)
        message.attach(picture)
    for name, page in (pages or {}).items():
        message.attach(name, page, "text/html")
    try:
        message.send()
    except (
        BotoCoreError,
        ClientError,
        ResponseParserError,
        SMTPException,
        OSError,
    ) as error:
        to = ", ".join(recipients)
        failure = (
            f"it is unknown whether the e-mail report was sent to {to}"
            if _may_have_been_sent(error)
            else f"the e-mail report could not be sent to {to}"
        )
        code = _error_code(error)
        hint = _HINTS.get(code, _OTHER_ANSWER_HINT) if code else _NO_ANSWER_HINT
        raise JobError(
            one_line(f"{failure}: {_reason(error)} HINT: {hint.format(region=region)}.")
        ) from error


def _may_have_been_sent(error: Exception) -> bool:

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500
    return isinstance(
        error,
        (
            HTTPClientError,  # a read timeout or a lost connection
            ResponseParserError,
            SMTPServerDisconnected,
            TimeoutError,
        ),
    )


# -- What SES counted ---------------------------------------------------------------


@dataclass(frozen=True)
class SendingWeek:
    """SES's own counts; `bounces` are hard bounces."""

    attempts: int = 0
    bounces: int = 0
    complaints: int = 0
    rejects: int = 0


@dataclass(frozen=True)
class SendingStatistics:
    """The figures of both weeks, or one line with the reason why they are unknown."""

    this_week: SendingWeek | None = None
    last_week: SendingWeek | None = None
    unknown_because: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """This week's figures, for the record of the run; empty if unknown."""
        if (week := self.this_week) is None:
            return {}
        return {
            "ses_attempts": week.attempts,
            "ses_bounces": week.bounces,
            "ses_complaints": week.complaints,
        }


def sending_statistics(
    *,
    access_key_id: str,
    secret_access_key: str,
    region: str,
    endpoint_url: str,
    now: datetime,
) -> SendingStatistics:
    """Return SES's counts for (now - 7 days, now] and for the seven days before.

    A data point covers 15 minutes and belongs to the week of its timestamp. Never
    raises, so that the report is sent without these numbers.
    """
    if not (access_key_id and secret_access_key):
        return SendingStatistics(unknown_because="AWS_SES_ACCESS_KEY_ID is not set")
    try:
        client = _client(
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            region=region,
            endpoint_url=endpoint_url,
        )
        points = client.get_send_statistics().get("SendDataPoints", [])
        return SendingStatistics(
            this_week=_sum(points, now - WEEK, now),
            last_week=_sum(points, now - 2 * WEEK, now - WEEK),
        )
    except Exception as error:  # nothing here may cost the report
        return SendingStatistics(unknown_because=redact(_reason(error)))


# -- What SES itself suppresses -------------------------------------------------------


@dataclass(frozen=True)
class SuppressedAtSes:
    """SES's suppression list in lower case, or one line with the reason for none."""

    addresses: frozenset[str] = frozenset()
    is_whole: bool = True
    unknown_because: str = ""


def suppressed_at_ses(
    *,
    access_key_id: str,
    secret_access_key: str,
    region: str,
    endpoint_url: str,
) -> SuppressedAtSes:
    """Read SES's list, page by page, up to LIST_SECONDS and MOST_LISTED addresses.

    Never raises: many accounts have only the right to send, and fakes of SES have no
    such list.
    """
    if not (access_key_id and secret_access_key):
        return SuppressedAtSes(unknown_because="AWS_SES_ACCESS_KEY_ID is not set")
    deadline = time.monotonic() + LIST_SECONDS
    found: set[str] = set()
    try:
        client = boto3.client(
            "sesv2",
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            region_name=region,
            endpoint_url=endpoint_url or None,
            config=_reading(),
        )
        request: ListSuppressedDestinationsRequestTypeDef = {"PageSize": LIST_PAGE}
        while True:
            page = client.list_suppressed_destinations(**request)
            for entry in page.get("SuppressedDestinationSummaries", []):
                found.add(entry["EmailAddress"].lower())
            token = page.get("NextToken", "")
            if not token or token == request.get("NextToken"):
                return SuppressedAtSes(frozenset(found))
            if time.monotonic() >= deadline or len(found) >= MOST_LISTED:
                return SuppressedAtSes(frozenset(found), is_whole=False)
            request["NextToken"] = token
    except Exception as error:  # nothing here may cost the report
        return SuppressedAtSes(unknown_because=_why_no_list(error))


def _why_no_list(error: Exception) -> str:
    code = _error_code(error)
    if code in _NO_SUCH_LIST:
        return f"this SES has none, it answered {code}"
    hint = " HINT: allow the IAM user of AWS_SES_ACCESS_KEY_ID"
    hint += " ses:ListSuppressedDestinations"
    return redact(_reason(error)) + (hint if code == "AccessDenied" else "")


def _client(
    *, access_key_id: str, secret_access_key: str, region: str, endpoint_url: str
) -> SESClient:

    return boto3.client(
        "ses",
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        region_name=region,
        endpoint_url=endpoint_url or None,
        config=_reading(),
    )


def _reading() -> Config:
    return Config(
        retries={"total_max_attempts": 2, "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=STATISTICS_SECONDS,
    )


def _sum(
    points: Iterable[SendDataPointTypeDef], after: datetime, until: datetime
) -> SendingWeek:
    week = [point for point in points if after < point["Timestamp"] <= until]
    return SendingWeek(
        attempts=sum(point["DeliveryAttempts"] for point in week),
        bounces=sum(point["Bounces"] for point in week),
        complaints=sum(point["Complaints"] for point in week),
        rejects=sum(point["Rejects"] for point in week),
    )


# -- Errors in one line -------------------------------------------------------------


def _error_code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code.removesuffix("Exception")


def _reason(error: Exception) -> str:
    code = _error_code(error)
    if code == "SignatureDoesNotMatch":
        text = f"SES answered {code}"  # SES's message repeats the whole signed request
    elif code:
        response: dict[str, Any] = getattr(error, "response", {})
        text = f"SES answered {code}: {response['Error'].get('Message', '')}"
    else:
        text = f"{type(error).__name__}: {error}"
    text = one_line(" ".join(text.split()))
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + "..."
    return text

"""What `docker compose up` has to look at: the report and the mails, at port 8090.

The views of `demo.page_settings`. They only read, and need no log-in, since the port is
published only to this machine.
"""

from __future__ import annotations

import email
import email.policy
import os
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from functools import wraps
from typing import Protocol

import urllib3
from django.conf import settings
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.utils import timezone
from urllib3.exceptions import HTTPError

from starview_app.maintenance.database_errors import explain
from starview_app.maintenance.history import page
from starview_app.maintenance.history.report import collect
from starview_app.maintenance.schedule.registry import scheduled_jobs

_SES_SECONDS = 5
# No scripts and no requests: only what is in the page itself.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-src 'self'"
)


@dataclass(frozen=True)
class Mail:
    number: int
    sent: str
    to: str
    subject: str
    text: str
    html: str
    attachments: tuple[str, ...]


class View(Protocol):
    def __call__(self, request: HttpRequest, **named: int) -> HttpResponse: ...


def telling_what_is_down(view: View) -> View:
    """If a server does not answer, show a page that reloads itself until it does."""

    @wraps(view)
    def wrapped(request: HttpRequest, **named: int) -> HttpResponse:
        try:
            return _guarded(view(request, **named))
        except DatabaseError as error:
            trouble = explain(error) or f"The database does not answer: {error}"
        except (HTTPError, ValueError) as error:
            trouble = f"The fake SES does not answer: {error}"
        context = {"trouble": " ".join(trouble.split())}
        page = render(request, "demo/trouble.html", context, status=503)
        return _guarded(page)

    return wrapped


@telling_what_is_down
def report(request: HttpRequest, **named: int) -> HttpResponse:
    """The report, as it is now."""
    found = collect(scheduled_jobs(), timezone.now())
    return HttpResponse(page.render(found, "demo/report.html", request))


@telling_what_is_down
def mails(request: HttpRequest, **named: int) -> HttpResponse:
    """The mails that SES received, newest first."""
    return render(request, "demo/mails.html", {"mails": _sent_mails()[::-1]})


@telling_what_is_down
def mail_html(request: HttpRequest, **named: int) -> HttpResponse:
    """The HTML of one mail, for a sandboxed frame."""
    mails = {mail.number: mail for mail in _sent_mails() if mail.html}
    if named["number"] not in mails:
        raise Http404
    response = HttpResponse(mails[named["number"]].html)
    response["Content-Security-Policy"] = f"{_POLICY}; sandbox"
    response["X-Frame-Options"] = "SAMEORIGIN"
    return response


def console(request: HttpRequest) -> dict[str, str]:
    """For all templates: where MinIO's console is."""
    return {"console": os.environ.get("CONSOLE_URL", "http://127.0.0.1:9001")}


urlpatterns = [
    path("", report),
    path("mails/", mails),
    path("mails/<int:number>.html", mail_html),
]


# -- internal helpers -----------------------------------------------------------------


def _guarded(response: HttpResponse) -> HttpResponse:
    response.setdefault("Content-Security-Policy", _POLICY)
    return response


def _sent_mails() -> list[Mail]:
    """Return the mails, oldest first. Raises HTTPError, or ValueError."""
    url = f"{settings.AWS_SES_REGION_ENDPOINT_URL}/moto-api/data.json"
    answer = urllib3.request("GET", url, timeout=_SES_SECONDS, retries=False)
    messages = answer.json().get("ses", {}).get("RawMessage", [])
    return [_mail(number, raw["raw_data"]) for number, raw in enumerate(messages, 1)]


def _mail(number: int, raw: str) -> Mail:
    message = email.message_from_string(raw, policy=email.policy.default)
    return Mail(
        number,
        f"{parsedate_to_datetime(message['Date']):%Y-%m-%d %H:%M} UTC",
        str(message["To"]),
        str(message["Subject"]),
        _body(message, "plain"),
        _body(message, "html"),
        tuple(part.get_filename() or "" for part in message.iter_attachments()),
    )


def _body(message: EmailMessage, kind: str) -> str:
    found = message.get_body((kind,))
    return str(found.get_content()) if found else ""

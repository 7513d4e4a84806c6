"""One bounded POST, for channels that speak HTTP."""

import logging

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry

from starview_app.maintenance.notify.message import NotDelivered

# It would log that it tries again: what fails at last is logged by who sends.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

SECONDS = 4.0
_SHOWN_CHARACTERS = 200  # of an answer
# A connection that failed, or an answer that blames the server, is tried once more. No
# redirection is followed: body and keys are for this address.
ONCE_MORE = Retry(
    total=1,
    read=False,
    redirect=False,
    allowed_methods=None,
    status_forcelist=(500, 502, 503, 504),
    raise_on_status=False,
    respect_retry_after_header=False,
)


def post(
    url: str, body: bytes, headers: dict[str, str], *, seconds: float = SECONDS
) -> urllib3.BaseHTTPResponse:
    """The answer, of status 2xx; raises NotDelivered for any other end.

    `seconds` bound one attempt, but neither the look-up of the name nor an answer that
    trickles in: see `monitors`.
    """
    try:
        answer = urllib3.request(
            "POST", url, body=body, headers=headers, timeout=seconds, retries=ONCE_MORE
        )
    except HTTPError as error:
        reason = error.reason if isinstance(error, MaxRetryError) else error
        raise NotDelivered(f"{type(reason).__name__}: {reason}") from None
    if not 200 <= answer.status < 300:
        raise NotDelivered(f"HTTP {answer.status}: {text_of(answer)}")
    return answer


def text_of(answer: urllib3.BaseHTTPResponse) -> str:
    return answer.data[:_SHOWN_CHARACTERS].decode(errors="replace").strip()

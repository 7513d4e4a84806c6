"""One POST request with a time limit, for channels that use HTTP."""

import logging

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry

from starview_app.maintenance.notify.message import NotDelivered

# urllib3 would log each retry as a warning; the caller logs the final failure.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

SECONDS = 4.0
_SHOWN_CHARACTERS = 200  # of a response
# A failed connection or a 5xx response is tried once more. Redirects are not followed:
# the body and the keys are for this address only.
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
    """Return a response with a 2xx code; raise NotDelivered for anything else.

    `seconds` limit one attempt, except for the look-up of the host name and for a
    response that arrives slowly; `monitors` limits those.
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

"""The demo's SES: moto's server, with figures and a suppression list to look at.

    python demo/ses.py -H 127.0.0.1 -p 5000

moto counts no bounces and has no list. Here the last week was good, and in this week
the bounce rate has reached the limit at which SES reviews an account.
"""

import json
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from moto.core.responses import ActionResult
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.ses.responses import EmailResponse
from werkzeug.serving import run_simple

_STEP = timedelta(hours=12)
_POINTS_OF_A_WEEK = 14
# A point of 12 hours in the last week, and in the one before.
_THIS_WEEK = {"DeliveryAttempts": 312, "Bounces": 18, "Complaints": 0, "Rejects": 0}
_LAST_WEEK = {"DeliveryAttempts": 301, "Bounces": 5, "Complaints": 0, "Rejects": 0}
_LIST_PATH = "/v2/email/suppression/addresses"
_LISTED = (
    *("gone.visitor01@example.org", "gone.visitor02@example.com"),
    *("gone.visitor04@example.com", "gone.visitor05@example.net"),
    *("lost.traveller@example.net", "no.such.box@example.org"),
)


def send_statistics(self: EmailResponse) -> ActionResult:
    now = datetime.now(UTC)
    points = [
        {"Timestamp": now - (number + 0.5) * _STEP, **figures}
        for number, figures in enumerate(
            [_THIS_WEEK] * _POINTS_OF_A_WEEK + [_LAST_WEEK] * _POINTS_OF_A_WEEK
        )
    ]
    return ActionResult({"SendDataPoints": points})


def with_list(
    application: Callable[..., Iterable[bytes]],
) -> Callable[..., Iterable[bytes]]:
    """WSGI: answers for the list, and passes everything else on."""
    listed = [
        {"EmailAddress": address, "Reason": "BOUNCE", "LastUpdateTime": 1_790_000_000}
        for address in _LISTED
    ]
    body = json.dumps({"SuppressedDestinationSummaries": listed}).encode()

    def answer(
        environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != _LIST_PATH:
            return application(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [body]

    return answer


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("-H", "--host", default="127.0.0.1")
    parser.add_argument("-p", "--port", type=int, default=5000)
    options = parser.parse_args()
    EmailResponse.get_send_statistics = send_statistics  # type: ignore[method-assign]
    application = with_list(DomainDispatcherApplication(create_backend_app))
    # Process 1 of a container ignores signals without a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    run_simple(
        options.host,
        options.port,
        application,
        threaded=True,
        request_handler=MotoRequestHandler,
    )


if __name__ == "__main__":
    main()

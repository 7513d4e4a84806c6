"""The suppression list of Amazon SES beside Starview's, in the weekly health report.

moto has no such call: a small server answers as the SESv2 API does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from demo.services import REGION
from starview_app.maintenance import ses
from starview_app.maintenance.jobs.email_suppressions import health
from starview_app.maintenance.jobs.email_suppressions.at_ses import compare
from starview_app.maintenance.ses import SendingStatistics, SuppressedAtSes
from tests.conftest import Manage
from tests.factories import make_suppression
from tests.monitor_servers import Call, MonitorServer, answer, hang

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
PATH = "/v2/email/suppression/addresses"


class SesServer(MonitorServer):
    """Its list in pages of two; every other request is unknown to it."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses = addresses
        self.page_sizes: list[str] = []

    def respond(self, call: Call, body: bytes) -> tuple[int, str, dict[str, str]]:
        if urlsplit(call.path).path != PATH:
            return 404, "{}", {}
        query = parse_qs(urlsplit(call.path).query)
        self.page_sizes += query["PageSize"]
        begin = int(query.get("NextToken", ["0"])[0])
        page = {
            "SuppressedDestinationSummaries": [
                {
                    "EmailAddress": address,
                    "Reason": "BOUNCE",
                    "LastUpdateTime": NOW.timestamp(),
                }
                for address in self.addresses[begin : begin + 2]
            ]
        }
        if begin + 2 < len(self.addresses):
            page["NextToken"] = str(begin + 2)  # type: ignore[assignment]
        return 200, json.dumps(page), {"Content-Type": "application/json"}


@pytest.fixture
def server() -> Iterator[SesServer]:
    with SesServer("A@Example.com", "b@example.com", "c@example.com") as started:
        yield started


def read(server: MonitorServer) -> SuppressedAtSes:
    return ses.suppressed_at_ses(
        access_key_id="AKIAEXAMPLE",
        secret_access_key="very-secret",
        region=REGION,
        endpoint_url=server.url,
    )


class TestReading:
    def test_all_pages_are_read_and_capitals_do_not_matter(
        self, server: SesServer
    ) -> None:
        assert read(server) == SuppressedAtSes(
            frozenset({"a@example.com", "b@example.com", "c@example.com"})
        )
        assert server.page_sizes == ["1000", "1000"]

    def test_an_empty_list_is_known_to_be_empty(self) -> None:
        with SesServer() as server:
            assert read(server) == SuppressedAtSes()

    @pytest.mark.parametrize("limit", ["LIST_SECONDS", "MOST_LISTED"])
    def test_it_ends_at_its_limit_of_time_and_of_addresses(
        self, server: SesServer, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        monkeypatch.setattr(ses, limit, 0)

        assert read(server) == SuppressedAtSes(
            frozenset({"a@example.com", "b@example.com"}), is_whole=False
        )

    def test_a_token_that_is_given_twice_does_not_go_round_for_ever(self) -> None:
        class Loops(SesServer):
            def respond(
                self, call: Call, body: bytes
            ) -> tuple[int, str, dict[str, str]]:
                return 200, json.dumps({"NextToken": "again"}), {}

        with Loops() as server:
            assert read(server) == SuppressedAtSes()

    def test_a_user_who_may_not_read_it_is_told_which_right_is_missing(
        self, server: SesServer
    ) -> None:
        denied = {"message": "User is not\nauthorized"}
        kind = {"x-amzn-ErrorType": "AccessDeniedException"}
        server.on(PATH, answer(403, json.dumps(denied), **kind))

        assert read(server).unknown_because == (
            "SES answered AccessDenied: User is not authorized HINT: allow the IAM user"
            " of AWS_SES_ACCESS_KEY_ID ses:ListSuppressedDestinations"
        )

    @pytest.mark.parametrize("status", [404, 501])
    def test_an_ses_without_the_call_has_no_list(
        self, server: SesServer, status: int
    ) -> None:
        server.on(PATH, answer(status, "<html>"))

        assert read(server).unknown_because == (
            f"this SES has none, it answered {status}"
        )

    def test_one_that_is_silent_costs_seconds_not_the_report(
        self, server: SesServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ses, "STATISTICS_SECONDS", 0.2)
        server.on(PATH, hang)
        begun = time.monotonic()

        because = read(server).unknown_because

        assert because.startswith("ReadTimeoutError")
        assert time.monotonic() - begun < 8

    def test_without_a_key_nobody_is_asked(self) -> None:
        found = ses.suppressed_at_ses(
            access_key_id="", secret_access_key="", region=REGION, endpoint_url=""
        )

        assert found.unknown_because == "AWS_SES_ACCESS_KEY_ID is not set"


@pytest.mark.django_db
class TestComparing:
    def test_who_is_on_one_list_only_is_counted_on_either_side(self) -> None:
        make_suppression("Both@example.com", added=NOW, reason="manual")
        make_suppression(
            "lifted@example.com", added=NOW, reason="hard_bounce", is_active=False
        )
        make_suppression("bounced@example.com", added=NOW, reason="hard_bounce")
        make_suppression("angry@example.com", added=NOW, reason="complaint")
        make_suppression("soft@example.com", added=NOW, reason="soft_bounce")

        found = compare(
            SuppressedAtSes(
                frozenset({"both@example.com", "lifted@example.com", "x@example.net"})
            )
        )

        assert found.lines == [
            "Addresses on it: 3",
            "Not suppressed by Starview, which writes in vain:"
            " 2 (l***@example.com, ***@example.net)",
            "Hard bounces and complaints of Starview's list that SES would deliver to:"
            " 2 (a***@example.com, b***@example.com)",
        ]

    def test_ten_examples_are_named_and_all_are_counted(self) -> None:
        addresses = frozenset(f"user{n:02}@example.com" for n in range(11))

        found = compare(SuppressedAtSes(addresses)).only_at_ses

        assert found is not None
        assert (found.count, len(found.examples)) == (11, 10)
        assert str(found).endswith(", ...)")

    def test_equal_lists_have_no_difference(self) -> None:
        assert compare(SuppressedAtSes()).lines[1:] == [
            "Not suppressed by Starview, which writes in vain: none",
            "Hard bounces and complaints of Starview's list that SES would deliver to:"
            " none",
        ]

    def test_of_a_part_of_the_list_only_one_side_is_known(self) -> None:
        make_suppression("bounced@example.com", added=NOW, reason="hard_bounce")

        found = compare(SuppressedAtSes(frozenset({"a@x.example"}), is_whole=False))

        assert found.lines == [
            "SES's list is longer than could be read: its first 1 addresses.",
            "Of these not suppressed by Starview: 1 (***@x.example)",
        ]

    def test_with_redact_emails_no_part_of_an_address_is_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("starview.people.are_masked", lambda: True)

        found = compare(SuppressedAtSes(frozenset({"anna@example.com"})))

        assert str(found.only_at_ses) == "1 (***)"

    def test_a_hostile_address_is_text(self) -> None:
        hostile = "x\r\n<img src=x>@<script>.example"

        report = health.render_email_health(
            health.collect_email_health(
                now=NOW,
                statistics=SendingStatistics(),
                changes=None,
                at_ses=SuppressedAtSes(frozenset({hostile})),
            )
        )

        assert "<script>" not in report.html
        assert "x***@&lt;script&gt;.example" in report.html


@pytest.mark.django_db(transaction=True)
class TestInTheReport:
    def test_the_report_has_it(self, manage: Manage, server: SesServer) -> None:
        done = manage(
            "cleanup_email_suppressions",
            "--report",
            env={"AWS_SES_ENDPOINT_URL": server.url},
        )

        assert done.returncode == 0, done.stderr
        assert "AMAZON SES'S OWN LIST\nAddresses on it: 3\n" in done.stdout

    def test_where_it_cannot_be_read_one_line_says_so_and_the_report_is_sent(
        self, manage: Manage
    ) -> None:
        done = manage("cleanup_email_suppressions", "--email-report=admin@example.com")
        shown = manage("cleanup_email_suppressions", "--report")

        assert done.returncode == 0, done.stderr
        assert "Email report sent to admin@example.com" in done.stdout
        assert (
            "SES's list could not be read: this SES has none, it answered 404\n"
        ) in shown.stdout

    def test_nobody_is_asked_without_external_apis(self, manage: Manage) -> None:
        done = manage(
            "cleanup_email_suppressions",
            "--report",
            env={"DISABLE_EXTERNAL_APIS": "True"},
        )

        assert (
            "SES's list could not be read: DISABLE_EXTERNAL_APIS is set" in done.stdout
        )

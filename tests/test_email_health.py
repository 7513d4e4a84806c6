"""The weekly report: what it counts, how it judges, and that it is mailed once."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from pytest_django import Settings

from demo.services import ADMIN, REGION, SENDER, LocalServices
from starview_app.maintenance import ses
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.email_suppressions import health as job
from starview_app.maintenance.jobs.email_suppressions.health import (
    DomainRow,
    Row,
)
from starview_app.maintenance.jobs.email_suppressions.rates import Rate, State, rates
from starview_app.maintenance.ses import SendingStatistics, SendingWeek
from tests.conftest import ROOT
from tests.factories import make_bounce, make_complaint, make_suppression

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
WEEK = timedelta(days=7)
MOMENT = timedelta(microseconds=1)  # the shortest time PostgreSQL knows
NO_CHANGES = job.CleanupChanges(deactivated=0, deleted=0)


def collect(
    this_week: SendingWeek | None = None,
    last_week: SendingWeek | None = None,
    *,
    unknown_because: str = "",
    changes: job.CleanupChanges = NO_CHANGES,
) -> job.EmailHealth:
    statistics = SendingStatistics(this_week, last_week, unknown_because)
    return job.collect_email_health(now=NOW, statistics=statistics, changes=changes)


def judge(*, attempts: int, bounces: int = 0, complaints: int = 0) -> tuple[State, str]:
    week = SendingWeek(attempts, bounces, complaints)
    health = job.EmailHealth(
        NOW, (), (), (), (), SendingStatistics(week, SendingWeek()), NO_CHANGES
    )
    return health.state, health.headline


def only(rows: tuple[Row, ...]) -> list[Row]:
    return [row for row in rows if row.total]


# -- counting -----------------------------------------------------------------------


@pytest.mark.django_db
class TestCounting:
    @pytest.mark.parametrize(
        ("at", "this_week", "last_week"),
        [
            pytest.param(NOW + MOMENT, 0, 0, id="after now"),
            pytest.param(NOW, 1, 0, id="now"),
            pytest.param(NOW - WEEK + MOMENT, 1, 0, id="just within 7 days"),
            pytest.param(NOW - WEEK, 0, 1, id="7 days"),
            pytest.param(NOW - 2 * WEEK + MOMENT, 0, 1, id="just within 14 days"),
            pytest.param(NOW - 2 * WEEK, 0, 0, id="14 days"),
        ],
    )
    def test_a_week_ends_with_its_last_moment_and_begins_after_the_one_before(
        self, at: datetime, this_week: int, last_week: int
    ) -> None:
        make_bounce("a@example.com", last=at, bounce_type="hard")
        make_complaint("a@example.com", at=at, complaint_type="fraud")
        make_suppression("a@example.com", added=at, reason="complaint")

        health = collect()

        assert only(health.bounces) == [Row("hard", 1, this_week, last_week)]
        assert only(health.complaints) == [Row("fraud", 1, this_week, last_week)]
        assert only(health.suppressions) == [
            job.SuppressionRow("complaint", 1, this_week, last_week, active=1)
        ]

    def test_a_bounce_counts_by_its_last_date_not_by_its_first(self) -> None:
        make_bounce("a@example.com", last=NOW - WEEK, first_bounce_date=NOW - 20 * WEEK)

        assert only(collect().bounces) == [Row("soft", 1, 0, 1)]

    def test_active_and_inactive_suppressions_are_told_apart(self) -> None:
        make_suppression("a@example.com", added=NOW - 5 * WEEK, reason="manual")
        make_suppression("b@example.com", added=NOW, reason="manual", is_active=False)

        assert only(collect().suppressions) == [
            job.SuppressionRow("manual", 2, 1, 0, active=1)
        ]

    def test_kinds_that_this_image_does_not_know_are_counted_too(self) -> None:
        make_suppression("a@example.com", added=NOW, reason="zz_new")
        make_suppression("b@example.com", added=NOW, reason="another\nnew")

        kinds = [row.kind for row in collect().suppressions]

        assert kinds[-2:] == ["another\\u000anew", "zz_new"]
        assert kinds[0] == "hard_bounce"

    def test_an_empty_database_is_all_zeros(self) -> None:
        health = collect()

        assert not only((*health.bounces, *health.complaints, *health.suppressions))
        assert [row.kind for row in health.bounces] == ["hard", "soft", "transient"]
        assert health.domains == ()


@pytest.mark.django_db
class TestWorstDomains:
    def test_events_are_added_up_by_domain_whatever_its_case(self) -> None:
        make_bounce("a@Example.COM", last=NOW, bounce_type="hard")
        make_bounce("b@example.com", last=NOW, bounce_type="soft")
        make_bounce("c@example.com", last=NOW, bounce_type="transient")
        make_complaint("d@example.com", at=NOW)

        assert collect().domains == (DomainRow("example.com", 1, 2, 1),)

    def test_the_domain_is_what_follows_the_last_at_sign(self) -> None:
        make_bounce('"a@b.example"@c.example', last=NOW)

        assert collect().domains == (DomainRow("c.example", 0, 1, 0),)

    def test_hard_bounces_and_complaints_weigh_first_then_soft_ones_then_the_name(
        self,
    ) -> None:
        for domain in ("many-soft", "more-soft", "more-soft", "b-tie", "a-tie"):
            make_bounce(f"{domain}@{domain}.example", last=NOW)
        make_bounce("x@many-soft.example", last=NOW)
        make_complaint("x@complaint.example", at=NOW)
        make_bounce("x@hard.example", last=NOW, bounce_type="hard")
        make_bounce("y@hard.example", last=NOW, bounce_type="hard")

        assert [row.domain for row in collect().domains] == [
            "hard.example",
            "complaint.example",
            "many-soft.example",
            "more-soft.example",
            "a-tie.example",
            "b-tie.example",
        ]

    def test_there_are_ten_at_most(self) -> None:
        for number in range(11):
            make_bounce(f"x@{number:02}.example", last=NOW)

        assert [row.domain for row in collect().domains] == [
            f"{number:02}.example" for number in range(10)
        ]

    def test_only_the_last_thirty_days_count(self) -> None:
        limit = NOW - timedelta(days=30)
        make_bounce("x@exactly.example", last=limit)
        make_bounce("x@within.example", last=limit + MOMENT)
        make_bounce("x@now.example", last=NOW)
        make_complaint("x@future.example", at=NOW + MOMENT)

        assert {row.domain for row in collect().domains} == {
            "within.example",
            "now.example",
        }


# -- judging ------------------------------------------------------------------------


class TestState:
    @pytest.mark.parametrize(
        ("bounces", "complaints", "state", "headline"),
        [
            (4_999, 99, State.HEALTHY, "healthy"),
            (5_000, 0, State.REVIEW, "review: bounce rate 5.0 %"),
            (9_999, 0, State.REVIEW, "review: bounce rate 9.9 %"),
            (10_000, 0, State.PAUSE, "sending may be paused: bounce rate 10.0 %"),
            (0, 100, State.REVIEW, "review: complaint rate 0.10 %"),
            (0, 499, State.REVIEW, "review: complaint rate 0.49 %"),
            (0, 500, State.PAUSE, "sending may be paused: complaint rate 0.50 %"),
            (
                6_200,
                500,
                State.PAUSE,
                "sending may be paused: bounce rate 6.2 %, complaint rate 0.50 %",
            ),
        ],
    )
    def test_a_rate_on_the_limit_of_ses_has_reached_it(
        self, bounces: int, complaints: int, state: State, headline: str
    ) -> None:
        judged = judge(attempts=100_000, bounces=bounces, complaints=complaints)

        assert judged == (state, headline)

    def test_two_hundred_attempts_are_enough_to_judge(self) -> None:
        assert judge(attempts=200, bounces=10)[0] is State.REVIEW

    def test_fewer_are_not_but_the_rates_are_told(self) -> None:
        assert judge(attempts=199, bounces=100, complaints=1) == (
            State.TOO_FEW,
            "too few mails to judge: bounce rate 50.2 %, complaint rate 0.50 % of 199",
        )

    def test_without_attempts_nothing_is_known(self) -> None:
        assert judge(attempts=0) == (State.UNKNOWN, "unknown")

    def test_a_rate_above_zero_never_shows_as_zero(self) -> None:
        bounces, complaints = ses_rates(attempts=1_000_000, bounces=1, complaints=1)

        assert (str(bounces), str(complaints)) == ("<0.1 %", "<0.01 %")

    def test_a_rate_of_zero_is_known_when_mail_was_sent(self) -> None:
        bounces, complaints = ses_rates(attempts=1, bounces=0, complaints=0)

        assert (str(bounces), str(complaints)) == ("0.0 %", "0.00 %")


def ses_rates(**counts: int) -> tuple[Rate, Rate]:
    return rates(SendingWeek(**counts))


# -- writing ------------------------------------------------------------------------


@pytest.mark.django_db
class TestReport:
    def test_the_subject_tells_the_period_and_the_state(self) -> None:
        report = job.render_email_health(collect(SendingWeek(1000, bounces=62)))

        assert report.subject == (
            "[Starview] E-mail health 2026-11-16 to 2026-11-23:"
            " review: bounce rate 6.2 %"
        )

    def test_the_period_is_in_utc_whatever_zone_now_is_in(self) -> None:
        from zoneinfo import ZoneInfo

        health = job.collect_email_health(
            now=NOW.astimezone(ZoneInfo("America/Los_Angeles")),
            statistics=SendingStatistics(),
            changes=NO_CHANGES,
        )
        report = job.render_email_health(health)

        for body in (report.text, report.html):
            assert "2026-11-16 03:00 to 2026-11-23 03:00 UTC" in body

    def test_the_text_is_aligned_and_fits_eighty_columns(self) -> None:
        make_bounce("x@" + "long." * 40 + "example", last=NOW)
        make_bounce("y@example.com", last=NOW, bounce_type="hard")
        make_suppression("y@example.com", added=NOW, reason="hard_bounce")
        week = SendingWeek(1000, bounces=62, complaints=1, rejects=3)

        lines = job.render_email_health(collect(week)).text.splitlines()

        assert [line for line in lines if len(line) > 80] == []
        assert "delivery attempts               1000    unknown" in lines
        assert "bounce rate                    6.2 %    unknown" in lines
        assert (
            "hard bounce                        1          0         +1"
            "          1          0"
        ) in lines
        assert f"manual{0:30}{0:11}{0:11}{0:11}{0:11}" in lines
        assert [len(line) for line in lines if line.startswith("long.")] == [80]

    def test_unknown_numbers_are_unknown_and_never_zero(self) -> None:
        report = job.render_email_health(collect(unknown_because="SES is on holiday"))

        assert report.subject.endswith(": unknown")
        for body in (report.text, report.html):
            assert "0.0" not in body
            assert "SES gave no numbers: SES is on holiday" in body
        assert "bounce rate                  unknown    unknown" in report.text

    def test_a_week_without_attempts_has_no_rate(self) -> None:
        report = job.render_email_health(collect(SendingWeek(), SendingWeek(10)))

        assert "bounce rate                  unknown      0.0 %" in report.text
        assert "SES counted no delivery attempts this week" in report.text

    def test_what_the_clean_up_changed_is_told(self) -> None:
        changes = job.CleanupChanges(deactivated=31, deleted=47)

        report = job.render_email_health(collect(changes=changes))

        assert "Suppressions lifted: 31\n" in report.text
        assert "Stale bounce records deleted: 47\n" in report.text
        assert "<strong>31</strong>" in report.html
        assert "<strong>47</strong>" in report.html

    def test_a_hostile_domain_is_text_in_html_and_one_line_in_text(self) -> None:
        hostile = "<img src=x onerror=alert(1)>\r\nbcc: x"
        make_bounce(f"x@{hostile}", last=NOW, bounce_type="hard")
        make_suppression("x@example.com", added=NOW, reason="<b>&amp;")

        report = job.render_email_health(collect(unknown_because="<script>"))

        assert "<img" not in report.html
        assert "&lt;img src=x onerror=alert(1)&gt;\\u000d\\u000abcc: x" in report.html
        assert "<b>" not in report.html
        assert "&lt;b&gt;&amp;amp;" in report.html
        assert "<script>" not in report.html
        assert "<img src=x onerror=alert(1)>\\u000d\\u000abcc: x" in report.text
        assert "\n" not in report.subject

    def test_no_address_of_a_member_is_in_the_report(self) -> None:
        make_bounce("somebody@example.com", last=NOW)
        make_complaint("somebody@example.com", at=NOW)

        report = job.render_email_health(collect())

        assert "somebody" not in report.text + report.html


# -- what SES counted ---------------------------------------------------------------


def statistics(**changes: Any) -> SendingStatistics:
    return ses.sending_statistics(
        **{
            "access_key_id": "AKIAEXAMPLE",
            "secret_access_key": "very-secret",
            "region": REGION,
            "endpoint_url": "http://127.0.0.1:9",
            "now": NOW,
            **changes,
        }
    )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    """The answers of SES, in place of SES."""
    client = boto3.client(
        "ses",
        region_name=REGION,
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    monkeypatch.setattr(ses, "_client", lambda **options: client)
    with Stubber(client) as stubber:
        yield stubber


class TestSendingStatistics:
    def test_points_are_added_up_by_week(self, answers: Stubber) -> None:
        def point(at: datetime, attempts: int) -> dict[str, Any]:
            return {
                "Timestamp": at,
                "DeliveryAttempts": attempts,
                "Bounces": 2,
                "Complaints": 3,
                "Rejects": 4,
            }

        second = timedelta(seconds=1)
        answers.add_response(
            "get_send_statistics",
            {
                "SendDataPoints": [
                    point(NOW + second, 1),  # after now
                    point(NOW, 10),
                    point(NOW - WEEK, 1_000),  # last week's last moment
                    point(NOW - WEEK + second, 100),
                    point(NOW - 2 * WEEK + second, 10_000),
                    point(NOW - 2 * WEEK, 100_000),  # too old
                ]
            },
        )

        assert statistics() == SendingStatistics(
            this_week=SendingWeek(110, bounces=4, complaints=6, rejects=8),
            last_week=SendingWeek(11_000, bounces=4, complaints=6, rejects=8),
        )

    def test_no_points_mean_that_nothing_was_sent(self, answers: Stubber) -> None:
        answers.add_response("get_send_statistics", {})

        assert statistics() == SendingStatistics(SendingWeek(), SendingWeek())

    def test_a_user_who_may_not_ask_gets_the_reason_in_one_line(
        self, answers: Stubber
    ) -> None:
        answers.add_client_error(
            "get_send_statistics",
            service_error_code="AccessDenied",
            service_message="demo-ses-key with demo-ses-secret is not\nauthorized",
        )

        assert statistics() == SendingStatistics(
            unknown_because="SES answered AccessDenied: *** with *** is not authorized"
        )

    def test_an_ses_that_is_down_is_unknown_within_seconds(self) -> None:
        started = time.monotonic()

        found = statistics()

        assert time.monotonic() - started < 10
        assert found.this_week is found.last_week is None
        assert "Could not connect to the endpoint URL" in found.unknown_because

    def test_an_ses_that_never_answers_is_unknown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ses, "STATISTICS_SECONDS", 0.2)
        with fake_ses(answer=None) as (url, _):
            found = statistics(endpoint_url=url)

        assert found.unknown_because.startswith("ReadTimeoutError: Read timeout")

    @pytest.mark.parametrize("wrong", ["not a url", "http://", "http://[::"])
    def test_a_wrong_address_is_unknown(self, wrong: str) -> None:
        found = statistics(endpoint_url=wrong)

        assert found.this_week is None
        assert found.unknown_because

    def test_without_a_key_nobody_is_asked(self) -> None:
        assert statistics(access_key_id="") == SendingStatistics(
            unknown_because="AWS_SES_ACCESS_KEY_ID is not set"
        )

    def test_the_stand_in_for_ses_answers(self, services: LocalServices) -> None:
        found = statistics(endpoint_url=services.aws_url)

        assert found.unknown_because == ""
        assert found.this_week is not None


# -- mailing ------------------------------------------------------------------------


@pytest.fixture
def production_mail(settings: Settings) -> Settings:
    """Django's test runner puts mail into a list; this sends it."""
    settings.EMAIL_BACKEND = "starview_app.maintenance.ses.Backend"
    return settings


def send(**changes: Any) -> None:
    ses.send_report(
        **{
            "subject": "Health",
            "text": "as text",
            "html": "<p>as HTML</p>",
            "from_email": SENDER,
            "recipients": [ADMIN],
            "region": REGION,
            **changes,
        }
    )


@contextmanager
def fake_ses(answer: int | None) -> Iterator[tuple[str, list[str]]]:
    """A server that answers with a status, or not at all; its address and requests."""
    requests: list[str] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(self.headers["Authorization"])
            if answer is None:
                over.wait(15)
            elif answer:
                self.send_response(answer)
                self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.usefixtures("production_mail")
class TestSendReport:
    def test_one_mail_goes_to_all_recipients(self, services: LocalServices) -> None:
        before = len(services.sent_mail())

        send(recipients=[ADMIN, "second@example.com"])

        (raw,) = services.sent_mail()[before:]
        mail = message_from_string(raw, policy=policy.default)
        assert mail["To"] == f"{ADMIN}, second@example.com"
        assert (mail["From"], mail["Subject"]) == (SENDER, "Health")
        text, html = mail.iter_parts()
        assert text.get_content().strip() == "as text"
        assert html.get_content().strip() == "<p>as HTML</p>"

    def test_a_sender_that_ses_does_not_know_is_one_line_with_a_hint(self) -> None:
        with pytest.raises(JobError) as raised:
            send(from_email="stranger@example.org")

        (line,) = str(raised.value).splitlines()
        assert line.startswith(
            f"the e-mail report could not be sent to {ADMIN}:"
            " SES answered MessageRejected:"
        )
        assert "stranger@example.org" in line
        assert f" HINT: verify DEFAULT_FROM_EMAIL in SES, region {REGION};" in line

    def test_an_ses_that_is_down_is_one_line_within_seconds(
        self, production_mail: Settings
    ) -> None:
        production_mail.AWS_SES_REGION_ENDPOINT_URL = "http://127.0.0.1:9"
        started = time.monotonic()

        with pytest.raises(JobError) as raised:
            send()

        assert time.monotonic() - started < 10
        assert str(raised.value) == (
            f"the e-mail report could not be sent to {ADMIN}: EndpointConnectionError:"
            ' Could not connect to the endpoint URL: "http://127.0.0.1:9/" HINT: check'
            f" AWS_SES_REGION_NAME={REGION}, AWS_SES_ENDPOINT_URL and network."
        )

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            pytest.param(None, "ReadTimeoutError", id="never"),
            pytest.param(0, "ConnectionClosedError", id="connection lost"),
            pytest.param(500, "SES answered 500", id="broken"),
            pytest.param(503, "SES answered 503", id="overloaded"),
            pytest.param(200, "ResponseParserError", id="not what SES says"),
        ],
    )
    def test_without_a_clear_answer_it_is_unknown_and_not_sent_again(
        self,
        production_mail: Settings,
        monkeypatch: pytest.MonkeyPatch,
        answer: int | None,
        reason: str,
    ) -> None:
        monkeypatch.setattr(ses, "SEND_SECONDS", 0.2)
        with fake_ses(answer) as (url, requests):
            production_mail.AWS_SES_REGION_ENDPOINT_URL = url

            with pytest.raises(JobError) as raised:
                send()

        assert str(raised.value).startswith(
            f"it is unknown whether the e-mail report was sent to {ADMIN}: {reason}"
        )
        assert len(requests) == 1

    def test_the_r2_key_is_never_used_for_mail(
        self, production_mail: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "r2-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "r2-secret")
        with fake_ses(503) as (url, requests):
            production_mail.AWS_SES_REGION_ENDPOINT_URL = url

            with pytest.raises(JobError):
                send()
            production_mail.AWS_SES_ACCESS_KEY_ID = ""
            with pytest.raises(JobError, match="the SES access key is not set"):
                send()

        assert len(requests) == 1
        assert "Credential=demo-ses-key/" in requests[0]

    def test_a_recipient_with_a_line_break_cannot_add_a_header(self) -> None:
        with pytest.raises(ValueError, match="newline"):
            send(recipients=["a@example.com\nBcc: b@example.com"])


def test_starting_django_does_not_import_boto3() -> None:
    code = (
        "import django, sys; django.setup();"
        "import starview_app.management.commands.cleanup_email_suppressions;"
        "sys.exit(bool({'boto3', 'botocore', 'django_ses'} & set(sys.modules)))"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 0

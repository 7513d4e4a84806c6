"""REDACT_EMAILS=True: nobody reads a name or an address of an account."""

import email
import email.policy

import pytest

from demo.services import LocalServices
from starview.people import without_people
from starview_app.maintenance.models import JobRun
from tests.badges import give, make_badges
from tests.conftest import Manage
from tests.factories import (
    CLEANUP,
    days_ago,
    make_account,
    make_member,
    make_soft_suppression,
)

pytestmark = pytest.mark.django_db(transaction=True)

MASKED = {"REDACT_EMAILS": "True"}
PEOPLE = ("newcomer", "hubble", "bounced", "example.com", "example.net")


@pytest.fixture(autouse=True)
def accounts() -> None:
    make_account("newcomer")
    make_account("hubble", email="edwin@example.net").is_staff = True
    make_soft_suppression("bounced@example.net", last=days_ago(400))


def assert_masked(text: str) -> None:
    assert [word for word in PEOPLE if word in text] == []


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_output_and_no_record_has_them(log_format: str, manage: Manage) -> None:
    env = MASKED | {"LOG_FORMAT": log_format}

    done = manage("cleanup_unverified_users", env={"JOB": CLEANUP, **env})
    report = manage(
        "cleanup_email_suppressions", "--email-report=chief@example.net", env=env
    )

    assert (done.returncode, report.returncode) == (0, 0), report.stderr
    assert "Deleted: ***" in done.stdout
    assert "Email report sent to ***" in report.stdout
    assert_masked(done.stdout + done.stderr + report.stdout + report.stderr)
    for run in JobRun.objects.all():
        assert_masked(run.output + run.error + run.command)


def test_no_alert_has_them(manage: Manage, services: LocalServices) -> None:
    mails = len(services.sent_mail())

    done = manage(
        "cleanup_email_suppressions",
        "--email-report=",
        env=MASKED | {"JOB": "starview-cleanup-email-suppressions"},
    )

    assert done.returncode == 1
    (mail,) = services.sent_mail()[mails:]
    parsed = email.message_from_string(mail, policy=email.policy.default)
    body = parsed.get_body(("plain",))
    assert body is not None
    assert "Found 1 soft bounce suppressions" in body.get_content()
    assert_masked(body.get_content())


def test_an_error_and_what_other_programs_write_has_none(manage: Manage) -> None:
    done = manage("cleanup_email_suppressions", "--email-report=no address", env=MASKED)
    traced = manage("shell", "-c", "print('for edwin@example.net: ok')", env=MASKED)

    assert done.returncode == 2
    assert traced.stdout.endswith("for ***: ok\n")


def test_without_it_they_are_shown(manage: Manage) -> None:
    done = manage("cleanup_unverified_users", "--dry-run")

    assert "newcomer (newcomer@example.com)" in done.stdout


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("  - a b (a@b.c) - registered 9 days ago", "  - *** - registered 9 days ago"),
        ("  - Kept: a (a@b.c) (a review)", "  - Kept: *** (a review)"),
        ("  - Kept: a (no address) (staff)", "  - Kept: *** (staff)"),
        ("  - Kept: a (changed meanwhile)", "  - Kept: *** (changed meanwhile)"),
        ("  ✓ Deleted: a (a@b.c)", "  ✓ Deleted: ***"),
        ("  ✗ Not deleted: a: a trigger", "  ✗ Not deleted: ***: a trigger"),
        ("👤 User: a b", "👤 User: ***"),
        ("Auditing user: a", "Auditing user: ***"),
        (
            "  # 72 - a (joined: 2025-01-02) - AWARDED",
            "  # 72 - *** (joined: 2025-01-02) - AWARDED",
        ),
        ("no user 'a' HINT: names are", "no user *** HINT: names are"),
        # An alert has the hint elsewhere.
        ("    error  no user 'a'\nnext", "    error  no user ***\nnext"),
        ("'a' is a system account, which has", "*** is a system account, which has"),
        ("audit_badges --user=a --fix", "audit_badges --user=*** --fix"),
        ("audit_badges --user 'a b' --fix", "audit_badges --user *** --fix"),
    ],
)
def test_a_line_about_an_account_keeps_what_it_says(line: str, masked: str) -> None:
    assert without_people(line) == masked


@pytest.mark.parametrize(
    "command",
    [
        ["audit_badges"],
        ["audit_badges", "--fix", "--user=edwin"],
        ["award_pioneer_badges", "--dry-run"],
    ],
)
def test_the_badge_commands_name_nobody(command: list[str], manage: Manage) -> None:
    make_badges()
    give(make_member("edwin"), "explorer")

    done = manage(*command, env=MASKED)

    assert done.returncode == 0, done.stderr
    assert "***" in done.stdout
    assert "edwin" not in done.stdout + done.stderr
    assert not JobRun.objects.filter(command__contains="edwin").exists()


def test_a_line_that_never_ends_takes_no_longer_than_its_length() -> None:
    # Some minutes, where each sign of it could begin a name.
    assert len(without_people("x." * 500_000)) == 1_000_000

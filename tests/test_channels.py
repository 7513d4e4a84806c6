"""Channels: each has a file, a line and a memory of its own, and spoils no other's."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from demo.services import LocalServices
from starview_app.maintenance.catchup.memory import remember
from starview_app.maintenance.models import Announcement, JobRun
from starview_app.maintenance.notify import alerts, channels, words
from starview_app.maintenance.notify.channels import ALERTS, CHANNELS, Channel
from starview_app.maintenance.notify.message import Alert, Message, NotDelivered
from starview_app.maintenance.running import local_memory
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.schedule.crontab import ScheduledJob
from tests.conftest import ROOT
from tests.factories import make_known, make_run

pytestmark = pytest.mark.django_db(transaction=True)

SLOT = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
NOW = SLOT + timedelta(minutes=10)
JOB = ScheduledJob(
    1, "0 2 * * *", "JOB=job-a timeout -k 60 1h python manage.py run_job clearsessions"
)
DOWN = "database: connection refused HINT: is the database running?"
FAILED = "[Starview] job-a failed"
IS_DOWN = "[Starview] the database does not answer"
NOBODY = "nobody@unverified.example"  # whom SES refuses


@dataclass
class Webhook:
    """A channel for alerts; `error` is raised, or False returned, while it is set."""

    error: Exception | bool = False
    messages: list[Alert] = field(default_factory=list)

    def send(self, message: Message) -> bool:
        assert isinstance(message, Alert)
        if isinstance(self.error, Exception):
            raise self.error
        if not self.error:
            self.messages.append(message)
        return not self.error

    @property
    def subjects(self) -> list[str]:
        return [message.subject for message in self.messages]


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Webhook:
    """A file and a line more; here no file."""
    channel = Webhook()
    monkeypatch.setitem(
        sys.modules,
        "starview_app.maintenance.notify.webhook",
        SimpleNamespace(send=channel.send),
    )
    line = Channel("webhook", ALERTS, "HEARTBEAT_URL")
    monkeypatch.setattr(channels, "CHANNELS", (*CHANNELS, line))
    return channel


@pytest.fixture(autouse=True)
def _it_is_set_up(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EMAIL_BACKEND = "starview_app.maintenance.ses.Backend"
    settings.HEARTBEAT_URL = "http://127.0.0.1:9/ping/key"
    settings.DISABLE_EXTERNAL_APIS = False
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def mailed(services: LocalServices) -> Callable[[], int]:
    """How many mails SES has accepted."""
    before = len(services.sent_mail())
    return lambda: len(services.sent_mail()) - before


def fail(output: str = "", *, slot: datetime = SLOT) -> None:
    """A run of the schedule fails, and what is news of it is announced."""
    if not Announcement.objects.exists():
        make_known(JOB, since=SLOT - timedelta(hours=1))
    ended_at = slot + timedelta(minutes=1)
    make_run(
        JOB.job,
        slot=slot,
        command="clearsessions",
        started_at=slot,
        seconds=60.0,
        outcome=JobRun.Outcome.FAILED,
        error="it broke",
        output=output,
    )
    request = RunRequest(
        JOB.job, "clearsessions", JobRun.Trigger.SCHEDULE, slot=slot, schedule=JOB
    )
    ending = Ending(JobRun.Outcome.FAILED, 1, 60.0, ended_at, "it broke", {}, output)
    alerts.after_run(request, ending)


# -- the list ------------------------------------------------------------------------


def test_every_file_with_a_send_has_its_line() -> None:
    folder = ROOT / "starview_app/maintenance/notify"
    files = [path for path in folder.glob("*.py") if path.stem != "channels"]

    assert {path.stem for path in files if "\ndef send(" in path.read_text()} == {
        channel.name for channel in CHANNELS
    }


def test_a_channel_is_off_without_its_setting_and_without_external_apis(
    webhook: Webhook, settings: Settings
) -> None:
    settings.DISABLE_EXTERNAL_APIS = True
    fail()
    settings.DISABLE_EXTERNAL_APIS, settings.HEARTBEAT_URL = False, ""
    alerts.dispatch([JOB], NOW)

    assert webhook.messages == []


# -- one memory each -----------------------------------------------------------------


def test_a_mail_that_is_refused_keeps_no_other_channel_silent(
    webhook: Webhook, mailed: Callable[[], int], settings: Settings
) -> None:
    sender = settings.DEFAULT_FROM_EMAIL
    settings.DEFAULT_FROM_EMAIL = NOBODY
    fail()
    assert (webhook.subjects, mailed()) == ([FAILED], 0)

    settings.DEFAULT_FROM_EMAIL = sender
    alerts.dispatch([JOB], NOW)

    assert (webhook.subjects, mailed()) == ([FAILED], 1)


@pytest.mark.parametrize("error", [True, NotDelivered("HTTP 502"), KeyError("text")])
def test_what_a_channel_refuses_is_sent_again_to_it_alone(
    error: Exception | bool,
    webhook: Webhook,
    mailed: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhook.error = error
    fail()
    logged: list[Any] = [record.msg for record in caplog.records]
    reasons = [event["reason"] for event in logged if "reason" in event]
    expected = {NotDelivered: ["HTTP 502"], KeyError: ["KeyError: 'text'"], bool: []}
    assert reasons == expected[type(error)]

    webhook.error = False
    for _ in range(2):
        alerts.dispatch([JOB], NOW)

    assert (webhook.subjects, mailed()) == ([FAILED], 1)


def test_a_channel_hears_of_a_recovery_only_when_it_has_heard_of_the_failure(
    webhook: Webhook, mailed: Callable[[], int]
) -> None:
    webhook.error = True
    fail()
    webhook.error = False
    JobRun.objects.update(outcome=JobRun.Outcome.SUCCEEDED)

    alerts.dispatch([JOB], NOW)

    assert (webhook.subjects, mailed()) == ([], 2)


# -- outages -------------------------------------------------------------------------


def test_an_outage_that_a_channel_refuses_is_sent_again_to_it_alone(
    webhook: Webhook, mailed: Callable[[], int]
) -> None:
    webhook.error = True
    alerts.database_is_down("job-a", DOWN, now=SLOT)
    webhook.error = False
    for _ in range(2):
        alerts.database_is_down("job-b", DOWN, now=SLOT)
    assert (webhook.subjects, mailed()) == ([IS_DOWN], 1)

    webhook.error = True
    alerts.dispatch([JOB], NOW)
    webhook.error = False
    for _ in range(2):
        alerts.dispatch([JOB], NOW)

    works_again = "[Starview] the database works again"
    assert (webhook.subjects, mailed()) == ([IS_DOWN, works_again], 2)
    assert "That it did not answer was announced at" in webhook.messages[1].text


def test_an_outage_whose_sender_was_killed_is_sent_after_a_minute(
    webhook: Webhook, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        local_memory.announce_outage("webhook", _exit)
    alerts.database_is_down("job-a", DOWN, now=SLOT)
    assert webhook.messages == []

    (claim,) = tmp_path.glob("*/*webhook.claim")
    minute_ago = time.time() - 61
    os.utime(claim, (minute_ago, minute_ago))
    for _ in range(2):
        alerts.database_is_down("job-a", DOWN, now=SLOT)

    assert webhook.subjects == [IS_DOWN]


def _exit() -> bool:
    raise SystemExit


def test_the_end_of_an_outage_that_is_suspected_is_sent_until_it_is_accepted(
    webhook: Webhook, mailed: Callable[[], int]
) -> None:
    now = timezone.now()
    remember([JOB], SLOT)  # before the tests' server was started
    alerts.recall_outage(now)
    webhook.error = True
    alerts.dispatch([JOB], now)
    webhook.error = False
    for _ in range(2):
        alerts.recall_outage(now)
        alerts.dispatch([JOB], now)

    assert len(webhook.messages) == mailed() == 1
    assert "and this container is new since" in webhook.messages[0].text


# -- strangers -----------------------------------------------------------------------


def test_no_channel_but_the_mails_learns_the_name_or_address_of_anybody(
    webhook: Webhook, services: LocalServices
) -> None:
    fail("  - anna (anna@example.com) - registered 10 days ago\nbob@example.com failed")

    (alert,) = webhook.messages
    assert "    |   - *** - registered 10 days ago\n    | *** failed" in alert.text
    assert "anna" in services.sent_mail()[-1]


def test_a_name_stays_masked_where_the_output_is_cut_in_its_line(
    webhook: Webhook, services: LocalServices
) -> None:
    kept = "nabel (anna@example.com)\ny\n"  # and the last line, of the one that is cut
    last = "x" * (words.OUTPUT_CHARACTERS - len(kept))
    fail(f"  ✓ Deleted: an{kept}{last}")

    (alert,) = webhook.messages
    assert "nabel" not in alert.text
    assert f"    | y\n    | {last}\n" in alert.text

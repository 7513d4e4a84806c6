"""What Healthchecks and Sentry learn of a run, and what they may cost it."""

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from pytest_django import Settings

from starview.redaction import Redactor, secrets_of
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.notify import healthchecks as healthchecks_channel
from starview_app.maintenance.notify.healthchecks import site_of
from starview_app.maintenance.notify.monitors import run_ended, run_started
from starview_app.maintenance.running.ledger import Ending
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.schedule.crontab import ScheduledJob
from tests.conftest import ROOT, Manage
from tests.monitor_servers import (
    API_KEY,
    PING_KEY,
    PUBLIC_KEY,
    HealthchecksServer,
    MonitorServer,
    SentryServer,
    SilentServer,
    answer,
    closed_port,
    drip,
    echo,
    hang,
    hang_up,
    late,
    self_signed_certificate,
)

Outcome = JobRun.Outcome
JOB = "starview-clear-sessions"
RUN_ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
NOW = datetime(2026, 11, 22, 5, 0, 3, tzinfo=UTC)
BOUND_SECONDS = 6.5  # 5, and what a busy machine adds
FAILURES = [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED]


def request_for(
    job: str = JOB, *, times: str = "0 5 * * 0", deadline: str = "timeout -k 60 30m"
) -> RunRequest:
    line = ScheduledJob(
        1, times, f"JOB={job} {deadline} python manage.py run_job clearsessions"
    )
    trigger = JobRun.Trigger.SCHEDULE
    return RunRequest(job, "clearsessions", trigger, slot=NOW, schedule=line)


def ending(
    outcome: JobRun.Outcome = Outcome.SUCCEEDED,
    error: str = "",
    output: str = "deleted 2 sessions\n",
) -> Ending:
    code = 0 if outcome == Outcome.SUCCEEDED else 1
    return Ending(outcome, code, 1.25, NOW, error, {"deleted": 2}, output)


def run(
    request: RunRequest | None = None, end: Ending | None = None
) -> tuple[float, list[Any]]:
    """The pings of a run that ends at once: (seconds it waited, what was logged)."""
    with structlog.testing.capture_logs() as logs:
        began = time.monotonic()
        run_started(request or request_for(), RUN_ID)
        assert time.monotonic() - began < 1.5, "run_started() returns at once"
        run_ended(request or request_for(), RUN_ID, end or ending())
        return time.monotonic() - began, logs


@pytest.fixture(autouse=True)
def _nothing_is_set_up(settings: Settings) -> None:
    healthchecks_channel._new.clear()  # of other processes, as it were
    settings.DISABLE_EXTERNAL_APIS = False
    settings.HEARTBEAT_URL = settings.HEARTBEAT_API_KEY = settings.SENTRY_DSN = ""


@pytest.fixture
def healthchecks(settings: Settings) -> Iterator[HealthchecksServer]:
    with HealthchecksServer() as server:
        settings.HEARTBEAT_URL = server.ping_url
        settings.HEARTBEAT_API_KEY = API_KEY
        yield server


@pytest.fixture
def sentry(settings: Settings) -> Iterator[SentryServer]:
    with SentryServer() as server:
        settings.SENTRY_DSN = server.dsn
        yield server


# -- Healthchecks -----------------------------------------------------------------


def test_a_run_is_a_start_and_an_end_with_one_run_id(
    healthchecks: HealthchecksServer,
) -> None:
    _, logs = run()

    assert healthchecks.signals == [(JOB, "start"), (JOB, "success")]
    assert {ping.rid for ping in healthchecks.pings} == {str(RUN_ID)}
    assert healthchecks.pings[1].body == b""  # nothing of what it printed
    assert logs == []


PEOPLE = """\
Found 2 unverified user(s) older than 7 days:
  - anna (anna@example.com) - registered 10 days ago
  - bob.b (b+b@mail.example) - registered 15 days ago
  - carl () - registered 20 days ago
  ✓ Deleted: anna (anna@example.com)
  - Kept: bob.b (changed meanwhile)
  ✗ Not deleted: carl: row 7 is locked
  - "dora"@example.com: Last bounce 2025-01-15 (2x)
Email report sent to erin@example.com, frank@example.com
2026-11-25 [info] job_finished found=2
"""


@pytest.mark.parametrize("outcome", Outcome)
def test_no_monitor_learns_the_name_or_address_of_anybody(
    outcome: JobRun.Outcome, healthchecks: HealthchecksServer, sentry: SentryServer
) -> None:
    run(end=ending(outcome, "no mail to anna@example.com HINT: why", PEOPLE))

    body = healthchecks.pings[1].body.decode()
    for person in ("anna", "bob", "b+b", "carl", "dora", "erin", "frank"):
        assert person not in body
        assert person not in str(sentry.items)
    if outcome in FAILURES:
        assert body == (
            f"{outcome.value}: no mail to *** HINT: why\n\n"
            "Found 2 unverified user(s) older than 7 days:\n"
            "  - *** - registered 10 days ago\n"
            "  - *** - registered 15 days ago\n"
            "  - *** - registered 20 days ago\n"
            "  ✓ Deleted: ***\n"
            "  - Kept: *** (changed meanwhile)\n"
            "  ✗ Not deleted: ***: row 7 is locked\n"
            "  - ***: Last bounce 2025-01-15 (2x)\n"
            "Email report sent to ***, ***\n"
            "2026-11-25 [info] job_finished found=2\n"
        )
    else:
        assert "Found" not in body


@pytest.mark.parametrize("outcome", FAILURES)
def test_a_run_that_did_not_do_its_work_is_a_failure(
    healthchecks: HealthchecksServer, outcome: JobRun.Outcome
) -> None:
    run(end=ending(outcome, "no such table", "some\noutput\n"))

    assert healthchecks.signals == [(JOB, "start"), (JOB, "fail")]
    assert healthchecks.pings[1].body.decode() == (
        f"{outcome.value}: no such table\n\nsome\noutput\n"
    )


@pytest.mark.parametrize("outcome", [Outcome.INTERRUPTED, Outcome.SKIPPED])
def test_a_run_that_was_stopped_or_skipped_does_not_change_the_check(
    healthchecks: HealthchecksServer, outcome: JobRun.Outcome
) -> None:
    run(end=ending(outcome, "why", ""))

    assert healthchecks.signals == [(JOB, "start"), (JOB, "log")]
    is_again = b"it will be run again" in healthchecks.pings[1].body
    assert is_again == (outcome == Outcome.INTERRUPTED)


def test_nothing_is_started_when_the_database_was_down_from_the_beginning(
    healthchecks: HealthchecksServer,
) -> None:
    run_ended(request_for(), RUN_ID, ending(Outcome.FAILED, "no database"))

    assert healthchecks.signals == [(JOB, "fail")]


def test_the_body_is_the_error_and_the_tail_of_the_output_in_10_000_bytes(
    healthchecks: HealthchecksServer,
) -> None:
    run(end=ending(Outcome.FAILED, "why", "é" * 20_000 + "the end."))

    body = healthchecks.pings[1].body
    assert len(body) == 9_999  # half a character is left out
    assert body.decode().startswith("failed: why\n\né")
    assert body.decode().endswith("éthe end.")


def test_any_name_of_a_job_becomes_a_slug_that_the_server_takes(
    healthchecks: HealthchecksServer,
) -> None:
    run(request_for("Nightly_Jöb-ONE"))

    assert healthchecks.signals == [
        ("nightly_j-b-one", "start"),
        ("nightly_j-b-one", "success"),
    ]


def test_the_url_of_one_check_is_pinged_as_it_is(
    healthchecks: HealthchecksServer, settings: Settings
) -> None:
    settings.HEARTBEAT_URL = f"{healthchecks.url}/ping/{healthchecks.check_id}"

    _, logs = run()

    check = str(healthchecks.check_id)
    assert healthchecks.signals == [(check, "start"), (check, "success")]
    assert logs == []


@pytest.mark.parametrize(
    ("times", "deadline", "schedule", "grace"),
    [
        ("0 5 * * 0", "timeout -k 60 30m", "0 5 * * 0", 40 * 60),
        ("0 0 * * *", "timeout 1h", "0 0 * * *", 70 * 60),
        ("0 4 1 * *", "timeout 400d", "0 4 1 * *", 31_536_000),
        ("*/10 * * * *", "", "*/10 * * * *", 3_600),
    ],
)
def test_a_new_check_gets_the_schedule_of_its_job(
    healthchecks: HealthchecksServer,
    times: str,
    deadline: str,
    schedule: str,
    grace: int,
) -> None:
    _, logs = run(request_for(times=times, deadline=deadline))

    check = healthchecks.checks[JOB]
    assert (check["schedule"], check["grace"]) == (schedule, grace)
    assert (check["name"], check["tz"]) == (JOB, "UTC")
    assert logs == []


def test_a_check_that_people_have_set_up_is_left_alone(
    healthchecks: HealthchecksServer,
) -> None:
    theirs = {"slug": JOB, "timeout": 60, "grace": 60}
    healthchecks.checks[JOB] = theirs

    run()

    assert healthchecks.checks == {JOB: theirs}


def test_without_the_api_key_one_line_says_what_to_set(
    healthchecks: HealthchecksServer, settings: Settings
) -> None:
    settings.HEARTBEAT_API_KEY = ""

    _, first = run()
    _, second = run()

    (line,) = first
    assert line["event"] == "monitor_needs_you"
    assert line["advice"] == (
        f"the new check {JOB} expects a run a day: set its schedule '0 5 * * 0', UTC,"
        f" grace 40 minutes, at {healthchecks.url};"
        " with HEARTBEAT_API_KEY this is done for you"
    )
    assert second == []


def test_a_wrong_api_key_is_said_and_does_not_fail_the_ping(
    healthchecks: HealthchecksServer, settings: Settings
) -> None:
    settings.HEARTBEAT_API_KEY = "another-key"

    _, (line,) = run()

    assert healthchecks.signals == [(JOB, "start"), (JOB, "success")]
    assert "with HEARTBEAT_API_KEY: HTTP 401" in line["advice"]
    assert "another-key" not in str(line)


def test_a_schedule_that_could_not_be_set_at_the_start_is_set_at_the_end(
    healthchecks: HealthchecksServer,
) -> None:
    healthchecks.on("/api/v3/", answer(503), times=3)

    _, logs = run()

    assert healthchecks.checks[JOB]["schedule"] == "0 5 * * 0"
    assert logs == []


def test_a_hanging_api_does_not_cost_the_pings(
    healthchecks: HealthchecksServer,
) -> None:
    healthchecks.on("/api/v3/", hang)

    seconds, logs = run()

    assert healthchecks.signals == [(JOB, "start"), (JOB, "success")]
    assert [line["event"] for line in logs] == ["monitor_needs_you"]
    assert seconds < BOUND_SECONDS


@pytest.mark.parametrize(
    ("url", "site"),
    [
        (f"https://hc-ping.com/{PING_KEY}", "https://healthchecks.io"),
        (f"https://hc.example.org/ping/{PING_KEY}", "https://hc.example.org"),
        (f"http://hc:8000/sub/ping/{PING_KEY}", "http://hc:8000/sub"),
    ],
)
def test_the_management_api_is_at_the_site_that_the_ping_url_belongs_to(
    url: str, site: str
) -> None:
    assert site_of(url) == site


def test_no_secret_leaves_with_the_output(
    healthchecks: HealthchecksServer, sentry: SentryServer, settings: Settings
) -> None:
    run(end=ending(Outcome.FAILED, "demo-ses-secret is wrong"))

    assert b"*** is wrong" in healthchecks.pings[1].body
    assert "demo-ses-secret" not in str(sentry.items)


# -- Sentry -------------------------------------------------------------------------


def test_a_run_is_one_check_in_that_is_opened_and_closed(sentry: SentryServer) -> None:
    _, logs = run()

    opened, closed = sentry.of_type("check_in")
    config = {
        "schedule": {"type": "crontab", "value": "0 5 * * 0"},
        "timezone": "UTC",
        "checkin_margin": 10,
        "max_runtime": 30,
    }
    assert (opened["status"], closed["status"]) == ("in_progress", "ok")
    assert opened["check_in_id"] == closed["check_in_id"] == RUN_ID.hex
    assert opened["monitor_slug"] == closed["monitor_slug"] == JOB
    assert opened["monitor_config"] == closed["monitor_config"] == config
    assert closed["duration"] == 1.25
    assert logs == []


@pytest.mark.parametrize("outcome", FAILURES)
def test_a_failed_run_is_a_failed_check_in_and_an_error(
    sentry: SentryServer, outcome: JobRun.Outcome
) -> None:
    run(end=ending(outcome, "no such table"))

    assert [name for name, _ in sentry.items] == ["check_in", "check_in", "event"]
    assert sentry.items[1][1]["status"] == "error"
    (event,) = sentry.of_type("event")
    assert event["message"] == f"{JOB} {outcome.value}: no such table"
    assert event["level"] == "error"
    assert event["fingerprint"] == [JOB, outcome.value]
    assert event["tags"] == {
        "job": JOB,
        "outcome": outcome.value,
        "run_id": str(RUN_ID),
        "host": socket.gethostname(),
    }
    assert event["contexts"]["monitor"] == {"slug": JOB}


def test_an_error_holds_nothing_of_the_process(sentry: SentryServer) -> None:
    run(end=ending(Outcome.FAILED, "no such table"))

    (event,) = sentry.of_type("event")
    assert set(event) == {
        *("event_id", "timestamp", "platform", "sdk", "environment", "server_name"),
        *("level", "message", "fingerprint", "tags", "contexts"),
        *("breadcrumbs", "transaction_info"),  # empty
    }
    assert set(event["contexts"]) == {"monitor", "trace"}
    assert event["breadcrumbs"] == {"values": []}
    assert event["transaction_info"] == {}
    assert event["sdk"]["integrations"] == []


@pytest.mark.parametrize("outcome", [Outcome.INTERRUPTED, Outcome.SKIPPED])
def test_a_run_that_was_stopped_or_skipped_leaves_its_check_in_open(
    sentry: SentryServer, outcome: JobRun.Outcome
) -> None:
    run(end=ending(outcome, "why"))

    assert [item["status"] for _, item in sentry.items] == ["in_progress"]


@pytest.mark.parametrize(
    ("deadline", "minutes"), [("timeout 61", 2), ("timeout 2h", 120), ("", None)]
)
def test_the_longest_run_is_the_deadline_in_whole_minutes(
    sentry: SentryServer, deadline: str, minutes: int | None
) -> None:
    run(request_for("j" * 50, times="0 * * * *", deadline=deadline))

    check_in = sentry.of_type("check_in")[0]
    assert check_in["monitor_config"].get("max_runtime") == minutes
    assert check_in["monitor_config"]["schedule"]["value"] == "0 * * * *"
    assert check_in["monitor_slug"] == "j" * 50


def test_the_error_is_reported_where_the_check_in_is_refused(
    sentry: SentryServer, settings: Settings
) -> None:
    sentry.on("", answer(403), times=2)

    _, (line,) = run(end=ending(Outcome.FAILED, "no such table"))

    assert [name for name, _ in sentry.items] == ["event"]
    assert line["reason"] == "start: HTTP 403; end: HTTP 403"


# -- off -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_disabled", [True, False])
def test_nothing_is_sent_when_it_is_off(
    healthchecks: HealthchecksServer,
    sentry: SentryServer,
    settings: Settings,
    is_disabled: bool,
) -> None:
    settings.DISABLE_EXTERNAL_APIS = is_disabled
    if not is_disabled:
        settings.HEARTBEAT_URL = settings.SENTRY_DSN = ""

    run()

    assert healthchecks.calls == sentry.calls == []


def test_the_sdk_and_http_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys, threading, django; django.setup();"
        "import starview_app.maintenance.running.watcher;"
        "print(*{'sentry_sdk', 'urllib3'} & {*sys.modules}, threading.active_count())"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "starview.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout == "1\n", done.stderr


# -- faults --------------------------------------------------------------------------


def _expect_failure(logs: list[Any], seconds: float, *reasons: str) -> None:
    """One line for each monitor, within the time; without a key where it is written."""
    known = Redactor(
        secrets_of(
            {
                "HEARTBEAT_URL": f"https://hc/ping/{PING_KEY}",
                "HEARTBEAT_API_KEY": API_KEY,
                "SENTRY_DSN": f"https://{PUBLIC_KEY}@sentry/1",
            }
        )
    )
    assert seconds < BOUND_SECONDS
    assert [(line["event"], line["monitor"]) for line in logs] == [
        ("ping_failed", "healthchecks"),
        ("ping_failed", "sentry"),
    ]
    for line in logs:
        assert any(reason in line["reason"] for reason in reasons), line
        shown = known.text(str(line))
        for key in (PING_KEY, API_KEY, PUBLIC_KEY):
            assert key not in shown


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (answer(500, "oops"), "end: HTTP 500"),
        (answer(404, "not found"), "end: HTTP 404"),
        (answer(409, "ambiguous slug"), "end: HTTP 409"),
        (answer(200, "OK (not found)"), "end: OK (not found)"),
        (echo, "end: HTTP 400"),
        (hang_up, "end: ProtocolError"),
        (hang, "end: "),
        pytest.param(drip, "end: no answer in time", marks=pytest.mark.soak),
    ],
    ids=["500", "404", "409", "200 not found", "echo", "hang up", "hang", "drip"],
)
def test_a_failing_monitor_costs_a_run_5_seconds_and_one_line(
    healthchecks: HealthchecksServer, sentry: SentryServer, fault: Any, reason: str
) -> None:
    healthchecks.on("", fault)
    sentry.on("", fault)

    seconds, logs = run()

    if reason == "end: OK (not found)":  # of Healthchecks alone
        logs.append({**logs[0], "monitor": "sentry"})
    _expect_failure(logs, seconds, reason)


def _use(settings: Settings, scheme: str, address: str) -> None:
    settings.HEARTBEAT_URL = f"{scheme}://{address}/ping/{PING_KEY}"
    settings.SENTRY_DSN = f"{scheme}://{PUBLIC_KEY}@{address}/42"


def test_a_refused_connection_is_one_line(settings: Settings) -> None:
    _use(settings, "http", f"127.0.0.1:{closed_port()}")

    seconds, logs = run()

    _expect_failure(logs, seconds, "Connection refused")


@pytest.mark.soak  # in `make test` a process meets one
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_port_where_nobody_answers_costs_5_seconds(
    settings: Settings, scheme: str
) -> None:
    with SilentServer() as server:
        _use(settings, scheme, f"127.0.0.1:{server.port}")

        seconds, logs = run()

    _expect_failure(logs, seconds, "end: ReadTimeoutError", "end: no answer in time")


def test_tls_to_a_port_without_it_is_one_line(
    healthchecks: HealthchecksServer, settings: Settings
) -> None:
    _use(settings, "https", f"127.0.0.1:{healthchecks.port}")

    seconds, logs = run()

    _expect_failure(logs, seconds, "SSL")


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_key_goes_only_to_a_server_with_a_trusted_certificate(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_trusted: bool,
) -> None:
    certificate = self_signed_certificate(tmp_path)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HealthchecksServer(certificate=certificate) as server:
        settings.HEARTBEAT_URL = server.ping_url
        server.checks[JOB] = {}

        _, logs = run()

    assert len(server.calls) == (2 if is_trusted else 0)
    assert is_trusted or "CERTIFICATE_VERIFY_FAILED" in logs[0]["reason"]


def test_a_name_server_that_hangs_costs_5_seconds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: released.wait(60))
    _use(settings, "http", "monitor.example.org")

    seconds, logs = run()
    released.set()

    _expect_failure(logs, seconds, "start: no answer in time; end: no answer in time")


@pytest.mark.parametrize("seconds", [1, pytest.param(3.5, marks=pytest.mark.soak)])
def test_an_answer_after_some_seconds_is_waited_for(
    seconds: float, healthchecks: HealthchecksServer, sentry: SentryServer
) -> None:
    for server in (healthchecks, sentry):
        server.on("", late(seconds))
    healthchecks.checks[JOB] = {}

    began = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        run_ended(request_for(), RUN_ID, ending())

    assert logs == []
    assert healthchecks.signals == [(JOB, "success")]
    assert time.monotonic() - began < BOUND_SECONDS


def test_a_redirection_is_not_followed(
    healthchecks: HealthchecksServer, sentry: SentryServer
) -> None:
    with HealthchecksServer() as elsewhere:
        for server in (healthchecks, sentry):
            server.on("", answer(307, "moved", Location=elsewhere.ping_url))

        seconds, logs = run()

        assert elsewhere.calls == []
        _expect_failure(logs, seconds, "end: HTTP 307")


def test_a_server_that_fails_once_is_asked_again(
    healthchecks: HealthchecksServer, sentry: SentryServer
) -> None:
    for server in (healthchecks, sentry):
        server.on("", answer(502), times=1)

    _, logs = run()

    assert healthchecks.signals == [(JOB, "start"), (JOB, "success")]
    assert [item["status"] for _, item in sentry.items] == ["in_progress", "ok"]
    assert logs == []


def test_what_is_refused_is_not_tried_again(healthchecks: HealthchecksServer) -> None:
    healthchecks.on("", answer(404, "not found"))

    run()

    assert len(healthchecks.calls) == 2  # the start and the end


def test_the_end_gets_its_chance_while_the_start_hangs(
    healthchecks: HealthchecksServer, sentry: SentryServer
) -> None:
    healthchecks.on("/start", hang)
    sentry.on("", hang, times=1)

    seconds, logs = run()

    assert healthchecks.signals == [(JOB, "success")]
    assert [item["status"] for _, item in sentry.items] == ["ok"]
    _expect_failure(logs, seconds, "start: ReadTimeoutError", "start: no answer")
    assert "end" not in str([line["reason"] for line in logs])


def test_the_end_gets_its_chance_while_the_look_up_for_the_start_hangs(
    healthchecks: HealthchecksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    look_up, first = socket.getaddrinfo, iter([True])

    def slow_at_first(*args: Any, **more: Any) -> Any:
        if next(first, False):
            released.wait(60)
            raise socket.gaierror("too late")
        return look_up(*args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow_at_first)
    healthchecks.checks[JOB] = {}

    _, (line,) = run()
    released.set()

    assert healthchecks.signals == [(JOB, "success")]
    assert line["reason"] == "start: no answer in time"


def test_a_machine_without_another_thread_runs_its_jobs(
    healthchecks: HealthchecksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        _, (line,) = run()

    assert line["reason"] == (
        "start: can't start new thread; end: can't start new thread"
    )


# -- as a process -----------------------------------------------------------------


def _seconds_of_run(manage: Manage, **environment: str) -> tuple[float, str]:
    began = time.monotonic()
    done = manage("run_job", "clearsessions", env={"JOB": JOB, **environment})
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began, done.stderr


@pytest.mark.django_db(transaction=True)
def test_a_scheduled_run_tells_both_monitors(
    healthchecks: HealthchecksServer, sentry: SentryServer, manage: Manage
) -> None:
    _, stderr = _seconds_of_run(
        manage,
        HEARTBEAT_URL=healthchecks.ping_url,
        HEARTBEAT_API_KEY=API_KEY,
        SENTRY_DSN=sentry.dsn,
    )

    run_id = str(JobRun.objects.get(job=JOB).run_id)
    assert healthchecks.signals == [(JOB, "start"), (JOB, "success")]
    assert {ping.rid for ping in healthchecks.pings} == {run_id}
    assert healthchecks.checks[JOB]["schedule"] == "0 5 * * 0"
    assert [item["status"] for _, item in sentry.items] == ["in_progress", "ok"]
    assert "ping_failed" not in stderr


@pytest.mark.django_db(transaction=True)
def test_hanging_monitors_cost_a_process_5_seconds_and_do_not_fail_it(
    manage: Manage,
) -> None:
    alone, _ = _seconds_of_run(manage)
    JobRun.objects.all().delete()

    with ExitStack() as stack:
        healthchecks: MonitorServer = stack.enter_context(HealthchecksServer())
        silent = stack.enter_context(SilentServer())
        healthchecks.on("", drip)
        seconds, stderr = _seconds_of_run(
            manage,
            HEARTBEAT_URL=f"{healthchecks.url}/ping/{PING_KEY}",
            SENTRY_DSN=f"https://{PUBLIC_KEY}@127.0.0.1:{silent.port}/42",
        )

    assert seconds < 2 * alone + BOUND_SECONDS  # processes take what they take
    assert stderr.count("ping_failed") == 2
    assert PING_KEY not in stderr
    assert PUBLIC_KEY not in stderr

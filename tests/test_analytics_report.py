"""send_analytics_report: the mail, and that each period is mailed once."""

import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from demo.services import ADMIN, LocalServices
from starview_app.maintenance import exits
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.analytics import send as send_module
from starview_app.maintenance.jobs.analytics.figures import Figure
from starview_app.maintenance.jobs.analytics.measure import Analytics, measure
from starview_app.maintenance.jobs.analytics.period import Kind, last_whole
from starview_app.maintenance.jobs.analytics.send import send_analytics_report
from starview_app.maintenance.jobs.analytics.write import Mail, write_report
from starview_app.maintenance.jobs.audit_archive.transfer import StopRequested
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import SentReport
from starview_app.maintenance.stores.base import Store
from starview_app.models import AuditLog
from tests.conftest import ROOT, Manage, kill_run, started
from tests.factories import (
    in_thread,
    make_account,
    make_bounce,
    make_complaint,
    make_run,
    session,
    wait_until,
)
from tests.monitor_servers import MonitorServer, hang

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 25, 1, 0, tzinfo=UTC)
WEEK = last_whole(Kind.WEEK, NOW)
START = WEEK.start
COMMAND = "send_analytics_report"


@pytest.fixture(autouse=True)
def _a_log_that_reaches_back() -> None:
    AuditLog.objects.create(
        event_type="logout", timestamp=datetime(2020, 1, 1, tzinfo=UTC)
    )


def no_store() -> Store:
    raise AssertionError("the archive is not asked")


def measured(kind: Kind = Kind.WEEK) -> Analytics:
    return measure(
        now=NOW,
        period=last_whole(kind, NOW),
        open_store=no_store,
        should_stop=lambda: False,
    )


def written(kind: Kind = Kind.WEEK) -> Mail:
    return write_report(measured(kind))


def too_many_complaints() -> None:
    for number in range(11):
        make_complaint(f"{number}@example.com", at=START - timedelta(days=100))


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


# -- what is written -----------------------------------------------------------------


class TestMail:
    def test_the_subject_has_the_period_the_sign_ups_and_the_warnings(self) -> None:
        make_account(joined=START)

        assert written().subject == (
            "[Starview] Week 47 of 2026: 1 sign-up, no warnings"
        )
        too_many_complaints()
        assert written(Kind.MONTH).subject == (
            "[Starview] October 2026: 0 sign-ups, 1 warning"
        )

    def test_warnings_stand_before_all_figures(self) -> None:
        too_many_complaints()

        mail = written()

        warning = "11 complaints on record"
        assert f"1 WARNING\n- {warning} (more than 10):" in mail.text
        for body in (mail.text, mail.html):
            assert body.index(warning) < body.lower().index("sign-ups")

    def test_the_text_is_aligned_and_fits_eighty_columns(self) -> None:
        make_account(joined=START)
        make_run("starview-" + "long-" * 30, started_at=START, counts={"deleted": 7})
        too_many_complaints()

        lines = written().text.splitlines()

        assert [line for line in lines if len(line) > 80] == []
        assert [line for line in lines if line != line.rstrip()] == []
        assert f"{'sign-ups':47}{1:11}{0:11}{'+1':>11}" in lines
        assert f"{'complaints on record':47}{11:11}{10:11}" in lines

    def test_what_is_not_known_is_not_zero(self) -> None:
        unknown = (Figure("login_failed", None, 3),)
        analytics = measured()
        security = replace(
            analytics.security, events=unknown, notes=("Because.",), unknown=(WEEK,)
        )

        mail = write_report(replace(analytics, security=security))

        assert f"{'login failed':47}{'not known':>11}{3:11}\nBecause." in mail.text
        assert "Who did nothing but log in is missing among the active" in mail.text
        assert "security" not in [chart.name for chart in mail.charts]

    def test_what_the_active_members_are_is_said(self) -> None:
        assert "Active is who logged" in written().text

    def test_maintenance_without_a_run_has_nothing_on_record(self) -> None:
        mail = written()

        assert "nothing on record" in mail.text
        assert "nothing on record" in mail.html

    def test_failed_runs_are_told_apart(self) -> None:
        make_run("starview-archive", started_at=START, outcome="failed")

        assert f"{'archive: failed':47}{1:11}{0:11}{'+1':>11}\n" in written().text

    def test_hostile_texts_are_text(self) -> None:
        hostile = "<img src=x onerror=alert(1)>\r\nbcc: x"
        AuditLog.objects.create(event_type=hostile, timestamp=START)
        make_run(hostile, started_at=START, counts={"<b>": 1})
        make_bounce("x@example.com", last=START, bounce_type="<i>\n")

        mail = written()

        assert "<img src=x" not in mail.html
        assert "&lt;img src=x onerror=alert(1)&gt;\\u000d\\u000abcc: x" in mail.html
        assert "<b>" not in mail.html
        assert "<i>" not in mail.html
        assert not re.search(r"^bcc", mail.text, re.MULTILINE)


class TestCharts:
    def test_each_is_a_png_of_twice_its_size_with_a_text_that_says_the_same(
        self,
    ) -> None:
        make_account(joined=START)
        AuditLog.objects.create(event_type="login_failed", timestamp=START)

        charts = {chart.name: chart for chart in written().charts}

        assert set(charts) == {"members", "security"}
        assert png_size(charts["members"].png) == (1040, 520)
        assert charts["members"].alt == (
            "Sign-ups of each day. week 47: Mon 16 1, Tue 17 0, Wed 18 0, Thu 19 0,"
            " Fri 20 0, Sat 21 0, Sun 22 0; week 46: Mon 16 0, Tue 17 0, Wed 18 0,"
            " Thu 19 0, Fri 20 0, Sat 21 0, Sun 22 0."
        )

    def test_all_of_them_together_are_small(self) -> None:
        for number in range(31):
            make_account(
                f"a{number}", joined=datetime(2026, 10, 1 + number, tzinfo=UTC)
            )

        assert sum(len(chart.png) for chart in written(Kind.MONTH).charts) < 150_000

    def test_without_the_library_the_report_has_no_pictures_and_all_figures(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_account(joined=START)
        with_pictures = written()
        monkeypatch.setitem(
            sys.modules, "starview_app.maintenance.jobs.analytics.charts", None
        )

        mail = written()

        assert mail.charts == ()
        assert "<img" not in mail.html
        assert "The charts could not be drawn: " in mail.html
        assert mail.text == with_pictures.text

    def test_nothing_but_a_report_imports_them(self) -> None:
        code = (
            "import django, sys; django.setup();"
            f"import starview_app.management.commands.{COMMAND};"
            "sys.exit(bool({'pygal', 'resvg_py', 'boto3'} & set(sys.modules)))"
        )

        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)

        assert ended.returncode == 0


# -- once ----------------------------------------------------------------------------


def closing(work: Callable[[], None]) -> Callable[[], None]:
    """For a thread: its session ends with it."""

    def do() -> None:
        try:
            work()
        finally:
            connection.close()

    return do


def run(
    send: Callable[[Analytics], None],
    recipients: Sequence[str] = ("ops@example.com",),
    **options: Any,
) -> JobResult:
    return send_analytics_report(
        now=NOW,
        period=WEEK,
        recipients=recipients,
        open_store=no_store,
        send=send,
        should_stop=lambda: False,
        **options,
    )


class TestOnce:
    def test_a_period_is_sent_once_however_often_it_runs(self) -> None:
        sent: list[Analytics] = []

        results = [run(sent.append).counts["sent"] for _ in range(3)]

        assert (results, len(sent)) == ([1, 0, 0], 1)
        (row,) = SentReport.objects.values_list("kind", "period_start", "sent_at")
        assert row == ("week", START, NOW)

    def test_other_recipients_get_a_report_of_their_own(self) -> None:
        team = ["ops@example.com", "boss@example.com"]
        sent: list[Analytics] = []

        run(sent.append)
        results = [
            run(sent.append, recipients).counts["sent"]
            for recipients in (team, ["BOSS@example.com", "ops@example.com"], team[:1])
        ]

        assert (results, len(sent)) == ([1, 0, 0], 2)

    def test_what_an_earlier_version_sent_is_not_sent_to_anybody_again(self) -> None:
        sent: list[Analytics] = []
        run(sent.append)
        SentReport.objects.update(recipients_sha256="")

        assert run(sent.append, ["boss@example.com"]).counts["sent"] == 0

    def test_again_sends_it_again_and_keeps_what_was_measured_first(self) -> None:
        make_account(joined=START)
        sent: list[Analytics] = []
        run(sent.append)
        make_account("late", joined=START)

        run(sent.append, again=True)

        (row,) = SentReport.objects.all()
        assert len(sent) == 2
        assert row.figures["members"]["sign-ups"] == 1

    def test_a_mail_that_fails_is_sent_by_the_next_run(self) -> None:
        def fail(analytics: Analytics) -> None:
            raise JobError("SES is on holiday")

        sent: list[Analytics] = []

        with pytest.raises(JobError, match="SES is on holiday"):
            run(fail)

        assert SentReport.objects.count() == 0
        assert run(sent.append).counts["sent"] == len(sent) == 1

    def test_of_two_at_once_one_sends_and_the_other_waits_for_it(self) -> None:
        begun, go_on = threading.Event(), threading.Event()
        sent: list[str] = []
        results: list[int] = []

        def slowly(analytics: Analytics) -> None:
            begun.set()
            assert go_on.wait(15)
            sent.append("first")

        def first() -> None:
            results.append(run(slowly).counts["sent"])

        def second() -> None:
            results.append(run(lambda analytics: sent.append("second")).counts["sent"])

        with in_thread(closing(first)):
            assert begun.wait(15)
            with in_thread(closing(second)):
                wait_until(_somebody_waits, "the second waits for the first")
                go_on.set()

        assert sent == ["first"]
        assert sorted(results) == [0, 1]

    def test_when_the_one_that_it_waits_for_fails_the_other_sends(self) -> None:
        begun, go_on = threading.Event(), threading.Event()
        sent: list[str] = []

        def fails(analytics: Analytics) -> None:
            begun.set()
            assert go_on.wait(15)
            raise JobError("no")

        def first() -> None:
            with pytest.raises(JobError):
                run(fails)

        def second() -> None:
            run(lambda analytics: sent.append("second"))

        with in_thread(closing(first)):
            assert begun.wait(15)
            with in_thread(closing(second)):
                wait_until(_somebody_waits, "the second waits for the first")
                go_on.set()

        assert sent == ["second"]

    def test_a_run_that_is_stopped_while_it_measures_sends_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopped(**options: Any) -> Analytics:
            raise StopRequested

        monkeypatch.setattr(send_module, "measure", stopped)
        result = run(lambda analytics: pytest.fail("it was sent"))

        assert result.interrupted
        assert SentReport.objects.count() == 0


def _somebody_waits() -> bool:
    with session() as observer, observer.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            " AND query LIKE '%maintenance_sentreport%'"
        )
        (waiting,) = cursor.fetchone()
        return bool(waiting)


# -- the command ---------------------------------------------------------------------


class TestCommand:
    def test_it_mails_pictures_that_the_html_shows(
        self, manage: Manage, services: LocalServices
    ) -> None:
        make_account(joined=last_whole(Kind.WEEK, timezone.now()).start)
        mails = len(services.sent_mail())

        done = manage(COMMAND)

        assert done.returncode == 0, done.stderr
        assert f"was sent to {ADMIN}" in done.stdout
        (raw,) = services.sent_mail()[mails:]
        mail = message_from_string(raw, policy=policy.default)
        assert mail["To"] == ADMIN
        assert mail.get_content_type() == "multipart/related"
        html = mail.get_body(("html",))
        assert html is not None
        shown = set(re.findall(r'src="cid:([^"]+)"', html.get_content()))
        pictures = {
            part["Content-ID"].strip("<>"): part
            for part in mail.walk()
            if part.get_content_type() == "image/png"
        }
        assert shown == set(pictures) == {"members@starview"}
        png_size(pictures["members@starview"].get_content())
        assert "sign-ups" in mail.get_body(("plain",)).get_content()  # type: ignore[union-attr]

    def test_the_second_run_says_when_it_was_sent(
        self, manage: Manage, services: LocalServices
    ) -> None:
        manage(COMMAND, "--to=a@example.com")
        mails = len(services.sent_mail())

        done = manage(COMMAND, "--to=a@example.com")

        assert done.returncode == 0, done.stderr
        assert re.search(
            r"was sent before, at \d{4}-\d\d-\d\d \d\d:\d\d UTC: nothing was sent\."
            r" --again sends it once more\n$",
            done.stdout,
        )
        assert len(services.sent_mail()) == mails
        assert manage(COMMAND, "--again", "--to=b@example.com").returncode == 0
        assert len(services.sent_mail()) == mails + 1

    def test_of_two_processes_at_once_one_mails(
        self, manage: Manage, services: LocalServices
    ) -> None:
        mails = len(services.sent_mail())
        codes: list[int] = []

        def second() -> None:
            codes.append(manage(COMMAND).returncode)

        with in_thread(second):
            codes.append(manage(COMMAND).returncode)

        assert 0 in codes
        assert set(codes) <= {0, exits.RUNNING}
        assert len(services.sent_mail()) == mails + 1

    def test_a_run_that_is_killed_while_it_sends_leaves_the_report_to_the_next(
        self,
        manage: Manage,
        services: LocalServices,
        test_environment: dict[str, str],
        tmp_path: Path,
    ) -> None:
        mails = len(services.sent_mail())
        with MonitorServer() as silent_ses:
            silent_ses.on("/", hang)
            env = {**test_environment, "AWS_SES_ENDPOINT_URL": silent_ses.url}
            with started(COMMAND, env, tmp_path) as process:
                wait_until(lambda: bool(silent_ses.calls), "the mail is on its way")
                kill_run(process)

        assert SentReport.objects.count() == 0
        wait_until(lambda: manage(COMMAND).returncode == 0, "the next run sends")
        assert len(services.sent_mail()) == mails + 1

    def test_a_week_and_a_month_are_two_reports(
        self, manage: Manage, services: LocalServices
    ) -> None:
        mails = len(services.sent_mail())

        for period in ("week", "month"):
            assert manage(COMMAND, f"--period={period}").returncode == 0

        assert len(services.sent_mail()) == mails + 2
        kinds = SentReport.objects.values_list("kind", flat=True)
        assert sorted(kinds) == ["month", "week"]

    def test_a_mail_that_fails_is_a_failed_run_in_one_line(
        self, manage: Manage
    ) -> None:
        done = manage(COMMAND, env={"DEFAULT_FROM_EMAIL": "stranger@example.org"})

        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("CommandError: ")
        assert "could not be sent" in last
        assert " HINT: verify DEFAULT_FROM_EMAIL in SES" in last
        assert manage(COMMAND).returncode == 0

    def test_without_an_address_it_says_what_to_set(self, manage: Manage) -> None:
        done = manage(COMMAND, env={"ADMIN_EMAIL": None})

        assert done.returncode == 1
        assert "HINT: set ADMIN_EMAIL, or name an address with --to" in done.stderr

    def test_a_dry_run_prints_it_and_sends_nothing(
        self, manage: Manage, services: LocalServices
    ) -> None:
        mails = len(services.sent_mail())

        done = manage(COMMAND, "--dry-run", "--period=month")

        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Subject: [Starview] ")
        assert "\nSECURITY EVENTS\n" in done.stdout
        assert len(services.sent_mail()) == mails
        assert SentReport.objects.count() == 0

    def test_a_preview_is_one_file_with_its_pictures_and_sends_nothing(
        self, manage: Manage, services: LocalServices, tmp_path: Path
    ) -> None:
        make_account(joined=last_whole(Kind.WEEK, timezone.now()).start)
        mails = len(services.sent_mail())
        file = tmp_path / "report.html"

        done = manage(COMMAND, "--preview", str(file))

        assert done.returncode == 0, done.stderr
        html = file.read_text()
        assert 'src="data:image/png;base64,' in html
        assert "cid:" not in html
        assert not re.search(r"""(?:src|href)=["'](?!data:)""", html)
        assert len(services.sent_mail()) == mails
        assert SentReport.objects.count() == 0

    @pytest.mark.parametrize("file", [".", "no/such/folder/report.html", "/proc/x"])
    def test_a_preview_that_cannot_be_written_is_one_line(
        self, manage: Manage, file: str
    ) -> None:
        done = manage(COMMAND, "--preview", file)

        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"CommandError: {file} cannot be written: ")
        assert " HINT: " in last

    @pytest.mark.parametrize(
        "options",
        [
            ("--period=year",),
            ("--to=nobody",),
            ("--preview=a.html", "--again"),
        ],
    )
    def test_wrong_options_are_exit_code_2(
        self, manage: Manage, options: tuple[str, ...]
    ) -> None:
        assert manage(COMMAND, *options).returncode == 2

    def test_a_preview_needs_neither_mail_nor_archive(
        self, manage: Manage, tmp_path: Path
    ) -> None:
        AuditLog.objects.all().delete()
        file = tmp_path / "report.html"

        done = manage(
            COMMAND,
            f"--preview={file}",
            env={"AWS_SES_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        )

        assert done.returncode == 0, done.stderr
        assert "the archive is not set up: AWS_SECRET_ACCESS_KEY" in file.read_text()

    def test_nobodys_name_is_in_it_or_on_record_with_redact_emails(
        self, manage: Manage
    ) -> None:
        done = manage(COMMAND, "--to=chief@example.net", env={"REDACT_EMAILS": "True"})

        assert done.returncode == 0, done.stderr
        assert "was sent to ***" in done.stdout
        assert "chief" not in done.stdout + done.stderr

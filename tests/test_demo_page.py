"""What `docker compose up` shows at port 8090."""

import pytest
from django.core.mail import EmailMultiAlternatives
from django.db import connection
from django.test import Client
from pytest_django import Settings

from demo import page_settings
from demo.services import SENDER, LocalServices
from starview_app.maintenance.models import JobRun
from tests.factories import CLEANUP, contents, make_run

pytestmark = pytest.mark.django_db(transaction=True)

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def browser(services: LocalServices, settings: Settings) -> Client:
    for name in (
        *("ROOT_URLCONF", "ALLOWED_HOSTS"),
        *("MIDDLEWARE", "INSTALLED_APPS", "TEMPLATES"),
    ):
        setattr(settings, name, getattr(page_settings, name))
    settings.SECURE_SSL_REDIRECT = page_settings.SECURE_SSL_REDIRECT
    settings.EMAIL_BACKEND = "starview_app.maintenance.ses.Backend"
    return Client(headers={"host": "127.0.0.1:8090"})


def send(subject: str, text: str, html: str) -> None:
    mail = EmailMultiAlternatives(subject, text, SENDER, ["admin@example.com"])
    mail.attach_alternative(html, "text/html")
    mail.send()


def test_the_report_is_as_new_as_the_request(browser: Client) -> None:
    before = browser.get("/").content.decode()
    make_run(CLEANUP, outcome="failed", error="it broke")
    after = browser.get("/").content.decode()

    assert "it broke" not in before
    assert "it broke" in after
    assert 'http-equiv="refresh" content="60"' in after
    assert 'href="http://127.0.0.1:9001/browser/starview-media"' in after


def test_looking_changes_nothing(browser: Client) -> None:
    before = contents()

    browser.get("/")
    browser.get("/mails/")

    assert contents() == before


def test_a_mail_is_text_and_html_in_a_frame_that_may_do_nothing(
    browser: Client,
) -> None:
    send(f"Re {HOSTILE}", f"as text {HOSTILE}", f"<p>as HTML</p>{HOSTILE}")

    listed = browser.get("/mails/").content.decode()
    number = listed.partition('src="/mails/')[2].partition(".html")[0]
    framed = browser.get(f"/mails/{number}.html")

    assert "as text &lt;script&gt;" in listed
    assert HOSTILE not in listed
    assert "<iframe sandbox src=" in listed
    assert framed.content.decode().strip() == f"<p>as HTML</p>{HOSTILE}"
    policy = framed["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("; sandbox")


def test_the_newest_mail_is_the_first(browser: Client) -> None:
    for subject in ("the older one", "the newer one"):
        send(subject, "text", "<p>html</p>")

    listed = browser.get("/mails/").content.decode()

    assert listed.index("the newer one") < listed.index("the older one")


def test_another_name_of_this_machine_is_refused(browser: Client) -> None:
    assert browser.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("path", ["/", "/mails/", "/mails/1.html"])
def test_a_server_that_is_down_is_named_and_asked_again(
    path: str, browser: Client, settings: Settings
) -> None:
    settings.AWS_SES_REGION_ENDPOINT_URL = "http://127.0.0.1:9"
    if path == "/":
        JobRun.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE maintenance_jobrun RENAME TO away")
            cursor.execute("CREATE VIEW maintenance_jobrun AS SELECT 1 / 0 AS job")
    try:
        answer = browser.get(path)
    finally:
        if path == "/":
            with connection.cursor() as cursor:
                cursor.execute("DROP VIEW maintenance_jobrun")
                cursor.execute("ALTER TABLE away RENAME TO maintenance_jobrun")

    text = answer.content.decode()
    assert answer.status_code == 503
    assert ("The fake SES does not answer" in text) == (path != "/")
    assert 'http-equiv="refresh" content="5"' in text

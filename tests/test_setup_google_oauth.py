"""setup_google_oauth: one app, one site, and what changed is said."""

from collections.abc import Iterator

import pytest
from allauth.socialaccount.models import SocialApp
from django.contrib.sites.models import Site

from tests.conftest import Manage
from tests.factories import contents

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "setup_google_oauth"
SECRET = "GOCSPX-very-secret"  # noqa: S105 - of nobody
KEYS = {
    "GOOGLE_OAUTH_CLIENT_ID": "123.apps.googleusercontent.com",
    "GOOGLE_OAUTH_CLIENT_SECRET": SECRET,
}
TABLES = (
    "django_site",
    "socialaccount_socialapp",
    "socialaccount_socialapp_sites",
)


def set_site(domain: str) -> None:
    Site.objects.update_or_create(pk=1, defaults={"domain": domain, "name": domain})


def test_the_app_and_its_site_are_made_from_the_environment(manage: Manage) -> None:
    set_site("example.com")

    done = manage(NAME, "--domain=starview.app", env=KEYS)

    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "Changed: site 1 is starview.app, instead of example.com\n"
        "Changed: the app for Google is made\n"
        "Changed: its client id is 123.apps.googleusercontent.com\n"
        "Changed: its secret is the one of GOOGLE_OAUTH_CLIENT_SECRET\n"
        "Changed: the app is used on starview.app\n"
        "Google's console must list this as an authorised redirect URI:\n"
        "  https://starview.app/accounts/google/login/callback/\n"
    )
    app = SocialApp.objects.get()
    assert (app.provider, app.client_id) == ("google", KEYS["GOOGLE_OAUTH_CLIENT_ID"])
    assert app.secret == SECRET
    assert [site.domain for site in app.sites.all()] == ["starview.app"]


def test_a_second_run_changes_nothing_and_says_so(manage: Manage) -> None:
    set_site("starview.app")
    manage(NAME, env=KEYS)
    before = contents(*TABLES)

    done = manage(NAME, env=KEYS)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Nothing to change: ")
    assert contents(*TABLES) == before


def test_only_what_is_different_is_changed_and_no_secret_is_printed(
    manage: Manage,
) -> None:
    set_site("starview.app")
    manage(NAME, env=KEYS)
    other = SocialApp.objects.create(provider="github", name="GitHub", client_id="x")

    done = manage(NAME, env=KEYS | {"GOOGLE_OAUTH_CLIENT_SECRET": "GOCSPX-another"})

    assert done.stdout.startswith(
        "Changed: its secret is the one of GOOGLE_OAUTH_CLIENT_SECRET\nGoogle's"
    )
    assert "GOCSPX" not in done.stdout + done.stderr
    assert SocialApp.objects.get(provider="google").secret == "GOCSPX-another"
    other.refresh_from_db()
    assert other.client_id == "x"


def test_a_dry_run_says_what_it_would_change(manage: Manage) -> None:
    set_site("starview.app")
    before = contents(*TABLES)

    done = manage(NAME, "--dry-run", env=KEYS)

    assert "Would change: the app for Google is made" in done.stdout
    assert contents(*TABLES) == before


@pytest.mark.parametrize(
    ("env", "text"),
    [
        (KEYS | {"GOOGLE_OAUTH_CLIENT_ID": ""}, "GOOGLE_OAUTH_CLIENT_ID not set HINT"),
        ({}, "GOOGLE_OAUTH_CLIENT_ID and GOOGLE_OAUTH_CLIENT_SECRET not set HINT: "),
        (KEYS, "site 1 is example.com, so Google would send people to nobody HINT: "),
    ],
)
def test_what_an_operator_can_fix_is_one_line_and_exit_code_1(
    env: dict[str, str | None], text: str, manage: Manage
) -> None:
    set_site("example.com")
    before = contents(*TABLES)
    unset = dict.fromkeys(KEYS)

    done = manage(NAME, env={**unset, **env})

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("CommandError: ")
    assert text in last
    assert contents(*TABLES) == before


@pytest.fixture
def other_site() -> Iterator[Site]:
    set_site("example.com")
    site = Site.objects.create(domain="starview.app", name="other")
    yield site
    site.delete()


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_domain_that_another_site_has_is_refused(
    option: list[str], other_site: Site, manage: Manage
) -> None:
    before = contents(*TABLES)

    done = manage(NAME, "--domain=starview.app", *option, env=KEYS)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"CommandError: site {other_site.pk} is starview.app already"
    )
    assert contents(*TABLES) == before


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_the_table_does_not_take_is_refused(
    name: str, manage: Manage
) -> None:
    set_site("starview.app")
    before = contents(*TABLES)

    done = manage(NAME, env=KEYS | {name: "k" * 192})

    assert done.returncode == 1
    assert "has 192 characters, and the table takes 191 HINT" in done.stderr
    assert "kkk" not in done.stdout + done.stderr
    assert contents(*TABLES) == before


def test_two_apps_are_refused_with_their_numbers(manage: Manage) -> None:
    set_site("starview.app")
    one, two = (
        SocialApp.objects.create(provider="google", name=name, client_id=name)
        for name in ("old", "new")
    )

    done = manage(NAME, env=KEYS)

    assert done.returncode == 1
    assert (
        f"there are 2 apps for Google, of which allauth can use one: {one.pk} (old),"
        in (done.stderr)
    )
    assert f"{two.pk} (new) HINT: delete all but one" in done.stderr


def test_a_site_that_is_missing_is_made(manage: Manage) -> None:
    Site.objects.all().delete()

    done = manage(NAME, "--domain=starview.app", env=KEYS)

    assert done.returncode == 0, done.stderr
    assert "Changed: site 1 is starview.app\n" in done.stdout
    assert Site.objects.get(pk=1).name == "starview.app"


@pytest.mark.parametrize(
    "domain", ["https://starview.app", "a b", "*", "starview.app/x"]
)
def test_a_domain_is_a_host_name(domain: str, manage: Manage) -> None:
    done = manage(NAME, f"--domain={domain}", env=KEYS)

    assert done.returncode == 2
    assert "is not a host name" in done.stderr

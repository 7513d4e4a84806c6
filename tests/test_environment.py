"""Settings come from the environment; whatever is wrong with it is said at once."""

import email
import email.policy
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.management import get_commands, load_command_class
from django.db import connection

import starview.logging
from demo.services import LocalServices
from starview.env import ARCHIVE, EVERY_COMMAND, MAIL, Environment
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.models import AuditLog
from tests import plugin
from tests.conftest import ROOT, Manage, merged
from tests.factories import days_ago, make_member

GOOD: dict[str, str] = {
    "DEBUG": "False",
    "DJANGO_SECRET_KEY": "secret-django-" + "x1y2z3" * 10,
    "DATABASE_URL": "postgresql://starview:secret-database@db.example:5433/starview",
    "ALLOWED_HOSTS": "starview.app,www.starview.app",
    "CSRF_TRUSTED_ORIGINS": "https://starview.app",
    "DEFAULT_FROM_EMAIL": "noreply@starview.app",
    "AWS_ACCESS_KEY_ID": "secret-r2-id",
    "AWS_SECRET_ACCESS_KEY": "secret-r2",
    "AWS_STORAGE_BUCKET_NAME": "starview-media",
    "CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef0123456789abcdef",
    "AWS_SES_ACCESS_KEY_ID": "secret-ses-id",
    "AWS_SES_SECRET_ACCESS_KEY": "secret-ses",
    "AWS_SES_REGION_NAME": "us-east-2",
    "REDIS_URL": "redis://:secret-redis@cache.example:6379/0",
    "ADMIN_EMAIL": "admin@example.com",
}
NEEDED_BY = {
    "DJANGO_SECRET_KEY": EVERY_COMMAND,
    "DATABASE_URL": EVERY_COMMAND,
    "ALLOWED_HOSTS": EVERY_COMMAND,
    "AWS_ACCESS_KEY_ID": ARCHIVE,
    "AWS_SECRET_ACCESS_KEY": ARCHIVE,
    "CLOUDFLARE_ACCOUNT_ID": ARCHIVE,
    "AWS_SES_ACCESS_KEY_ID": MAIL,
    "AWS_SES_SECRET_ACCESS_KEY": MAIL,
}
# As in the web service, which may leave these out.
DEFAULTS = {
    "AWS_STORAGE_BUCKET_NAME": "starview-media",
    "AWS_SES_REGION_NAME": "us-east-1",
    "DEFAULT_FROM_EMAIL": "noreply@starview.app",
    "REDIS_URL": "redis://127.0.0.1:6379/1",
}
SETTING = {name: name for name in NEEDED_BY} | {"DJANGO_SECRET_KEY": "SECRET_KEY"}
# Every variable, and a value that it cannot have.
WRONG: list[tuple[str, str]] = [
    ("DEBUG", "yes"),
    ("DEBUG", "1"),
    ("DEBUG", "False "),
    ("DATABASE_URL", "mysql://u:secret-wrong@host/db"),
    ("DATABASE_URL", "starview"),
    ("DATABASE_URL", "sqlite:///db.sqlite3"),
    ("DATABASE_URL", "postgresql://u:secret-wrong@host"),
    ("DATABASE_URL", "postgresql://u:secret-wrong@host/"),
    ("DATABASE_URL", "postgresql://u:secret#wrong@host/db"),
    ("DATABASE_URL", "postgresql://u:secret-wrong@host:port/db"),
    ("DATABASE_URL", "postgresql://u:secret-wrong@[host/db"),
    ("DATABASE_URL", "postgresql://u:secret[wrong@host/db"),
    ("AWS_S3_ENDPOINT_URL", "https://user:secret/wr@ng@minio:9000"),
    ("ALLOWED_HOSTS", "https://starview.app"),
    ("ALLOWED_HOSTS", "starview.app/path"),
    ("ALLOWED_HOSTS", "starview.app www.starview.app"),
    ("ALLOWED_HOSTS", " , "),
    ("CSRF_TRUSTED_ORIGINS", "starview.app"),
    ("CSRF_TRUSTED_ORIGINS", "https://starview.app/path"),
    ("DEFAULT_FROM_EMAIL", "noreply"),
    ("DEFAULT_FROM_EMAIL", "a@b.example, c@d.example"),
    ("DEFAULT_FROM_EMAIL", "A <a@b.example>, B <c@d.example>"),
    ("DEFAULT_FROM_EMAIL", "A\r\nBcc: x@y.example <a@b.example>"),
    ("ADMIN_EMAIL", "admin@"),
    ("ADMIN_EMAIL", "a@b.example,nobody"),
    ("AWS_S3_ENDPOINT_URL", "minio:9000"),
    ("AWS_S3_ENDPOINT_URL", "https://user:secret-wrong@minio:9000"),
    ("AWS_S3_ENDPOINT_URL", "http://minio:port"),
    ("CLOUDFLARE_ACCOUNT_ID", "https://0123.r2.cloudflarestorage.com"),
    ("AWS_SES_REGION_NAME", "Ohio"),
    ("AWS_SES_ENDPOINT_URL", "127.0.0.1:5000"),
    ("AWS_S3_ENDPOINT_URL", "https://0123.r2.cloudflarestorage.com/starview-wrong"),
    ("AWS_S3_ENDPOINT_URL", "http://minio:9000/wrong/"),
    ("REDIS_URL", "http://:secret-wrong@cache"),
    ("REDIS_URL", "redis://:secret-wrong@cache:abc/0"),
    ("REDIS_URL", "redis://:secret-wrong@cache:65536/0"),
    ("LOG_FORMAT", "xml"),
    ("LOG_FORMAT", "JSON"),
    ("DISABLE_EXTERNAL_APIS", "on"),
    ("AUDIT_R2_BUCKET_NAME", "https://starview-audit"),
]
SECRET_VARIABLES = (
    "DJANGO_SECRET_KEY",
    "DATABASE_URL",
    "REDIS_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SES_ACCESS_KEY_ID",
    "AWS_SES_SECRET_ACCESS_KEY",
)

Load = Callable[[dict[str, str]], dict[str, Any]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Run settings.py with these variables and no others."""
    monkeypatch.setattr(starview.logging, "configure_logging", lambda log_format: None)
    monkeypatch.setattr(sys, "argv", ["manage.py", "check", "--deploy"])

    def run(values: dict[str, str]) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", dict(values))
            return runpy.run_path(str(ROOT / "starview" / "settings.py"))

    return run


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in GOOD.items() if name not in names}


def error_of(load: Load, values: dict[str, str]) -> str:
    """What an operator reads, from whichever command first needs the variable."""
    try:
        loaded = load(values)
    except ImproperlyConfigured as error:
        return str(error)
    with pytest.raises(ImproperlyConfigured) as failure:
        loaded["ENVIRONMENT"].require(ARCHIVE, MAIL)
    return str(failure.value)


def variables_in(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("  - ")]
    return [line.removeprefix("  - ").split()[0].split("=")[0] for line in lines]


# -- all is well ---------------------------------------------------------------------


def test_the_guides_variables_are_enough(load: Load) -> None:
    loaded = load(GOOD)

    assert loaded["ENVIRONMENT"].problems == []
    expected = {**GOOD, "ALLOWED_HOSTS": ["starview.app", "www.starview.app"]}
    names = [name for name in NEEDED_BY if name != "DATABASE_URL"]
    assert [loaded[SETTING[name]] for name in names] == [expected[x] for x in names]


def test_the_database_url_is_read_part_by_part(load: Load) -> None:
    database = load(GOOD)["DATABASES"]["default"]

    assert {name: database[name] for name in ("NAME", "USER", "PASSWORD", "HOST")} == {
        "NAME": "starview",
        "USER": "starview",
        "PASSWORD": "secret-database",
        "HOST": "db.example",
    }
    assert (database["ENGINE"], database["PORT"]) == (
        "django.db.backends.postgresql",
        5433,
    )


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgis"])
def test_every_way_to_write_postgresql_is_plain_postgresql(
    scheme: str, load: Load
) -> None:
    url = f"{scheme}://u:p%40ss%2Fword@host/name"

    database = load({**GOOD, "DATABASE_URL": url})["DATABASES"]["default"]

    assert database["ENGINE"] == "django.db.backends.postgresql"
    assert (database["NAME"], database["PASSWORD"]) == ("name", "p@ss/word")


def test_the_web_services_other_variables_are_accepted(load: Load) -> None:
    others = {
        "CELERY_ENABLED": "False",
        "MAPBOX_TOKEN": "pk.secret",
        "GOOGLE_OAUTH_CLIENT_ID": "id",
        "GOOGLE_OAUTH_CLIENT_SECRET": "secret",
        "DISABLE_EXTERNAL_APIS": "True",
    }

    assert load({**GOOD, **others})["ENVIRONMENT"].problems == []


def test_without_debug_in_the_environment_it_is_production(load: Load) -> None:
    assert load(without("DEBUG"))["DEBUG"] is False


@pytest.mark.parametrize(
    ("text", "debug"), [("True", True), ("true", True), ("False", False), ("", False)]
)
def test_debug_is_true_only_when_it_says_so(text: str, debug: bool, load: Load) -> None:
    assert load({**GOOD, "DEBUG": text})["DEBUG"] is debug


def test_development_needs_no_variable_but_debug(load: Load) -> None:
    loaded = load({"DEBUG": "True"})

    assert loaded["ENVIRONMENT"].problems == []
    assert loaded["EMAIL_BACKEND"] == "django.core.mail.backends.filebased.EmailBackend"


# -- something is missing ------------------------------------------------------------


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize("name", NEEDED_BY)
def test_a_missing_variable_is_named_with_where_to_find_it(
    name: str, value: str | None, load: Load
) -> None:
    values = without(name) | ({} if value is None else {name: value})

    text = error_of(load, values)

    assert variables_in(text) == [name]
    where = text.partition(f"{name} is required but not set (")[2].splitlines()[0]
    assert len(where) > 20
    assert text.splitlines()[-1].startswith("HINT: ")


def test_one_error_names_everything_that_is_missing(load: Load) -> None:
    assert sorted(variables_in(error_of(load, {}))) == sorted(NEEDED_BY)


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        (["diagnose_db"], {EVERY_COMMAND}),
        (["cleanup_unverified_users", "--days=7"], {EVERY_COMMAND}),
        (["cleanup_email_suppressions"], {EVERY_COMMAND}),
        (["cleanup_email_suppressions", "--email-report=a@b.c"], {EVERY_COMMAND, MAIL}),
        (["archive_audit_logs", "--days=30"], {EVERY_COMMAND, ARCHIVE}),
        (["run_job", "archive_audit_logs"], {EVERY_COMMAND, ARCHIVE}),
        (["check", "--deploy"], {EVERY_COMMAND, ARCHIVE, MAIL}),
    ],
)
def test_a_command_names_what_it_needs_and_no_more(
    words: list[str], needs: set[str], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["manage.py", *words])

    with pytest.raises(ImproperlyConfigured) as refusal:
        load({})

    needed = {name for name, needed_by in NEEDED_BY.items() if needed_by in needs}
    assert set(variables_in(str(refusal.value))) == needed


def test_the_commands_of_the_archive_are_known_to_the_settings(load: Load) -> None:
    ours = [name for name, app in get_commands().items() if app == "starview_app"]
    commands = {name: load_command_class("starview_app", name) for name in ours}

    needs = {name: getattr(each, "needs", ()) for name, each in commands.items()}
    assert {name: each for name, each in needs.items() if each} == {
        name: needs
        for name, needs in load(GOOD)["_NEEDS"].items()
        if not name.startswith("-")
    }


@pytest.mark.parametrize(
    "words",
    [
        ["jobs", "check"],
        ["jobs", "--json", "check", "x"],
        ["export_schedule", "systemd"],
    ],
)
def test_the_crontab_is_read_over_without_any_variable(
    words: list[str], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["manage.py", *words])

    load({})


def test_one_error_names_what_is_missing_and_what_is_wrong(load: Load) -> None:
    values = without("DJANGO_SECRET_KEY", "AWS_ACCESS_KEY_ID")
    values |= {"ALLOWED_HOSTS": "https://x/", "AWS_SES_REGION_NAME": "Ohio"}

    assert sorted(variables_in(error_of(load, values))) == [
        "ALLOWED_HOSTS",
        "AWS_ACCESS_KEY_ID",
        "AWS_SES_REGION_NAME",
        "DJANGO_SECRET_KEY",
    ]


@pytest.mark.parametrize("name", [name for name in NEEDED_BY if "KEY" in name])
def test_no_secret_has_a_default_in_production(name: str, load: Load) -> None:
    if NEEDED_BY[name] == EVERY_COMMAND:
        with pytest.raises(ImproperlyConfigured, match=name):
            load(without(name))
    else:
        assert load(without(name))[name] == ""


@pytest.mark.parametrize(("name", "needed_by"), NEEDED_BY.items())
def test_a_command_asks_only_for_what_it_uses(
    name: str, needed_by: str, load: Load
) -> None:
    if needed_by == EVERY_COMMAND:
        with pytest.raises(ImproperlyConfigured):
            load(without(name))
        return
    environment = load(without(name))["ENVIRONMENT"]
    other = MAIL if needed_by == ARCHIVE else ARCHIVE

    environment.require(other)

    with pytest.raises(ImproperlyConfigured, match=name):
        environment.require(needed_by)


def test_another_s3_needs_no_cloudflare_account(load: Load) -> None:
    values = without("CLOUDFLARE_ACCOUNT_ID")

    loaded = load({**values, "AWS_S3_ENDPOINT_URL": "http://minio:9000"})

    assert loaded["ENVIRONMENT"].problems == []
    assert loaded["AWS_S3_ENDPOINT_URL"] == "http://minio:9000"


def test_the_default_store_is_the_accounts_r2(load: Load) -> None:
    assert load(GOOD)["AWS_S3_ENDPOINT_URL"] == (
        "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"
    )


# -- something is wrong --------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda text: text[:40])
def test_a_wrong_value_is_named_and_a_secret_is_not_shown(
    name: str, value: str, load: Load
) -> None:
    text = error_of(load, {**GOOD, name: value})

    named = set(variables_in(text))
    assert named == {name}
    assert "secret" not in text.replace("SECRET", "")
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_a_secret_is_never_quoted_in_the_error_about_another_variable(
    name: str, load: Load
) -> None:
    text = error_of(load, {**GOOD, "LOG_FORMAT": "xml", "AWS_SES_REGION_NAME": "Ohio"})

    assert GOOD[name] not in text


AUDIT = {
    "AUDIT_R2_ACCESS_KEY_ID": "secret-audit-id",
    "AUDIT_R2_SECRET_ACCESS_KEY": "secret-audit",
    "AUDIT_R2_BUCKET_NAME": "starview-audit",
}


@pytest.mark.parametrize(
    "name", ["AUDIT_R2_ACCESS_KEY_ID", "AUDIT_R2_SECRET_ACCESS_KEY"]
)
def test_of_the_two_audit_keys_both_or_none_are_set(name: str, load: Load) -> None:
    text = error_of(load, GOOD | AUDIT | {name: ""})

    assert variables_in(text) == [name]
    assert "set both" in text


@pytest.mark.parametrize(
    ("own", "bucket", "keys"),
    [
        ([], "starview-media", "AWS_ACCESS_KEY_ID"),
        (list(AUDIT), "starview-audit", "AUDIT_R2_ACCESS_KEY_ID"),
        (list(AUDIT)[:2], "starview-audit-logs", "AUDIT_R2_ACCESS_KEY_ID"),
        (list(AUDIT)[2:], "starview-audit", "AWS_ACCESS_KEY_ID"),
    ],
)
@pytest.mark.django_db
def test_the_archive_goes_to_the_bucket_of_the_web_service_and_the_log_names_it(
    own: list[str], bucket: str, keys: str, manage: Manage
) -> None:
    done = manage(
        "archive_audit_logs", "--dry-run", env={name: AUDIT[name] for name in own}
    )

    assert re.search(rf"job_started bucket={bucket} .*keys={keys} ", done.stderr)


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_what_the_web_service_has_a_default_for_has_the_same_here(
    name: str, value: str, load: Load
) -> None:
    loaded = load(without(name))

    assert loaded["ENVIRONMENT"].problems == []
    assert loaded[name] == value


PARTS = {
    "DB_ENGINE": "postgresql",
    "DB_HOST": "db.example",
    "DB_NAME": "starview",
    "DB_USER": "owner",
    "DB_PASSWORD": "p@ss/w?rd",
}


def test_the_web_services_own_variables_name_the_database_with_tls(load: Load) -> None:
    database = load(without("DATABASE_URL") | PARTS)["DATABASES"]["default"]

    got = {
        name: database[name] for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD")
    }
    assert got == {
        "HOST": "db.example",
        "PORT": 5432,
        "NAME": "starview",
        "USER": "owner",
        "PASSWORD": "p@ss/w?rd",
    }
    assert database["OPTIONS"]["sslmode"] == "require"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "/var/run/postgresql"])
def test_a_database_on_this_machine_needs_no_tls(host: str, load: Load) -> None:
    values = without("DATABASE_URL") | PARTS | {"DB_HOST": host}

    assert "sslmode" not in load(values)["DATABASES"]["default"]["OPTIONS"]


def test_the_url_of_the_database_wins(load: Load) -> None:
    database = load(GOOD | PARTS)["DATABASES"]["default"]

    assert (database["HOST"], database["PORT"]) == ("db.example", 5433)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_ENGINE", "mysql"),
        ("DB_HOST", ""),
        ("DB_NAME", ""),
        ("DB_USER", ""),
        ("DB_PORT", "54x"),
    ],
)
def test_a_wrong_part_of_the_database_is_named(
    name: str, value: str, load: Load
) -> None:
    text = error_of(load, without("DATABASE_URL") | PARTS | {name: value})

    assert variables_in(text) == [name]
    assert PARTS["DB_PASSWORD"] not in text


def test_the_ses_keys_never_fall_back_to_the_r2_keys(load: Load) -> None:
    loaded = load(without("AWS_SES_ACCESS_KEY_ID", "AWS_SES_SECRET_ACCESS_KEY"))

    assert loaded["AWS_SES_ACCESS_KEY_ID"] == ""
    assert loaded["AWS_SES_SECRET_ACCESS_KEY"] == ""
    with pytest.raises(ImproperlyConfigured, match="AWS_SES_ACCESS_KEY_ID"):
        loaded["ENVIRONMENT"].require(MAIL)


# -- NAME_FILE -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDED_BY)
def test_every_variable_can_be_read_from_a_file(
    name: str, load: Load, tmp_path: Path
) -> None:
    path = tmp_path / "value"
    path.write_text(GOOD[name] + "\n", encoding="utf-8")

    loaded = load(without(name) | {f"{name}_FILE": str(path)})

    assert loaded["ENVIRONMENT"].problems == []
    expected = load(GOOD)
    setting = "DATABASES" if name == "DATABASE_URL" else SETTING[name]
    assert loaded[setting] == expected[setting]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"value", "value"),
        (b"value\n", "value"),
        (b"value\r\n", "value"),
        (b" value ", " value "),
        ("wért".encode(), "wért"),
    ],
)
def test_a_files_value_is_its_text_without_the_line_end(
    content: bytes, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "value"
    path.write_bytes(content)
    environment = Environment({"NAME_FILE": str(path)})

    assert environment.text("NAME") == value
    assert environment.problems == []


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_is_an_unset_variable(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(content)
    environment = Environment({"NAME_FILE": str(path)})

    assert environment.text("NAME", required=True) == ""
    assert [str(problem.variable) for problem in environment.problems] == ["NAME"]


def test_an_empty_name_of_a_file_counts_as_unset() -> None:
    environment = Environment({"NAME": "value", "NAME_FILE": ""})

    assert environment.text("NAME") == "value"
    assert environment.problems == []


def test_a_variable_and_its_file_are_not_both_set(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("secret-other")

    text = error_of(load, {**GOOD, "DJANGO_SECRET_KEY_FILE": str(path)})

    assert "DJANGO_SECRET_KEY_FILE are both set" in text
    assert "secret-" not in text


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_named_once_with_the_reason(
    kind: str, load: Load, tmp_path: Path
) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"secret-\xff\xfe")

    text = error_of(
        load, without("DJANGO_SECRET_KEY") | {"DJANGO_SECRET_KEY_FILE": str(path)}
    )

    assert variables_in(text) == ["DJANGO_SECRET_KEY_FILE"]
    assert f"DJANGO_SECRET_KEY_FILE='{path}' cannot be read: " in text
    assert "secret-" not in text


# -- the guide's Troubleshooting, as an operator meets it ----------------------------


def python(
    *arguments: str, env: dict[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def bare() -> dict[str, str]:
    """A machine on which nothing is configured."""
    return {"PATH": os.environ["PATH"]}


def test_nothing_configured_is_one_error_that_names_all_and_no_traceback(
    bare: dict[str, str],
) -> None:
    done = python("manage.py", "check", env=bare)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: invalid environment:\n")
    assert sorted(variables_in(done.stderr)) == sorted(NEEDED_BY)
    assert "Traceback" not in done.stderr


@pytest.mark.django_db
def test_secret_key_not_set_says_where_to_copy_it_from(manage: Manage) -> None:
    done = manage("archive_audit_logs", env={"DJANGO_SECRET_KEY": None})

    assert done.returncode == 1
    assert variables_in(done.stderr) == ["DJANGO_SECRET_KEY"]
    assert "copy it from the web service's Environment tab" in done.stderr


@pytest.mark.django_db
def test_an_error_that_is_the_cause_of_its_own_cause_ends_with_a_traceback(
    test_environment: dict[str, str],
) -> None:
    """As redis-py's, when Redis is dead."""
    code = (
        "a, b = ValueError('first'), ValueError('second');"
        " a.__cause__, b.__cause__, a.__context__, b.__context__ = b, a, b, a; raise a"
    )

    done = python("manage.py", "shell", "-c", code, env=merged(test_environment))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: first"


@pytest.mark.django_db
@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("jobs check", 1),
        ("--help", 1),
        ("nosuch", 1),
        # The log of a run is not the run.
        ("cleanup_unverified_users --days=7", 0),
    ],
)
def test_output_without_room_has_an_exit_code_of_ours(
    arguments: str, code: int, redirection: str, test_environment: dict[str, str]
) -> None:
    line = f"exec {sys.executable} manage.py {arguments} {redirection}"

    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=ROOT,
        env=merged(test_environment),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "arguments",
    [
        "archive_audit_logs",
        "backup_database",
        "catch_up",
        "cleanup_email_suppressions --email-report ops@example.com",
        "cleanup_unverified_users",
        "diagnose_db",
        "send_analytics_report",
        "verify_audit_archives",
    ],
)
def test_no_command_needs_room_for_files(
    arguments: str,
    test_environment: dict[str, str],
    backup_path: str,
    bucket: LocalServices,
) -> None:
    create_own_tables()
    make_member()
    AuditLog.objects.create(event_type="login_success", timestamp=days_ago(40))
    line = f"ulimit -f 0; exec {sys.executable} manage.py {arguments}"

    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=ROOT,
        env=merged(test_environment, {"PATH": backup_path}),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.django_db
@pytest.mark.parametrize(
    "module", ["django", "structlog", "dj_database_url", "psycopg2", "allauth"]
)
def test_a_missing_module_says_how_to_install_it(
    module: str, tmp_path: Path, test_environment: dict[str, str]
) -> None:
    missing = (
        f"raise ModuleNotFoundError(\"No module named '{module}'\", name='{module}')"
    )
    (tmp_path / f"{module}.py").write_text(missing)

    done = python(
        "manage.py",
        "archive_audit_logs",
        env=merged(test_environment, {"PYTHONPATH": str(tmp_path)}),
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert f"No module named '{module}'" in done.stderr
    assert (
        "HINT: install what requirements.txt lists: run ./build-cron.sh" in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.django_db
def test_a_database_that_does_not_exist_says_to_link_it(manage: Manage) -> None:
    url = plugin.services.database_url.replace("/starview", "/no_such_database")

    done = manage("archive_audit_logs", env={"DATABASE_URL": url})

    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert 'FATAL: database "no_such_database" does not exist' in line
    assert "HINT: Render: link the PostgreSQL instance" in line


@pytest.mark.django_db
def test_a_database_without_the_web_services_tables_says_so(manage: Manage) -> None:
    done = manage(
        "archive_audit_logs", env={"DATABASE_URL": plugin.services.database_url}
    )

    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert 'relation "starview_app_auditlog" does not exist' in line
    assert "HINT: the web service's tables are not in this database" in line
    assert "Traceback" not in done.stderr


@pytest.mark.django_db
def test_an_unknown_option_in_the_database_url_is_one_line(
    manage: Manage, test_environment: dict[str, str]
) -> None:
    url = test_environment["DATABASE_URL"] + "&no_such_option=1"

    done = manage("archive_audit_logs", env={"DATABASE_URL": url})

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no_such_option" in done.stderr
    assert "DATABASE_URL" in done.stderr


def test_from_another_directory_python_itself_names_the_missing_file(
    tmp_path: Path, bare: dict[str, str]
) -> None:
    done = python("manage.py", "archive_audit_logs", env=bare, cwd=tmp_path)

    assert done.returncode == 2
    assert "can't open file" in done.stderr


def test_help_answers_where_nothing_is_configured(bare: dict[str, str]) -> None:
    done = python("manage.py", "archive_audit_logs", "--help", env=bare)

    assert (done.returncode, done.stderr) == (0, "")
    assert "--days DAYS" in done.stdout


@pytest.mark.django_db
def test_check_deploy_is_clean_with_the_variables_of_production(manage: Manage) -> None:
    done = manage("check", "--deploy", "--fail-level", "INFO")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "System check identified no issues (0 silenced).\n"


@pytest.mark.django_db
def test_check_deploy_names_what_the_jobs_will_miss(manage: Manage) -> None:
    missing = dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SES_ACCESS_KEY_ID"])

    done = manage("check", "--deploy", env=missing)

    assert done.returncode == 1
    assert {name for name in missing if f"{name} is required" in done.stderr} == set(
        missing
    )


@pytest.mark.django_db
def test_the_tests_themselves_use_a_database_of_their_own() -> None:
    assert str(connection.settings_dict["NAME"]).startswith("test_")


def test_a_debug_run_on_render_is_refused_since_its_disk_does_not_last(
    load: Load,
) -> None:
    text = error_of(load, {"DEBUG": "True", "RENDER": "true"})

    assert variables_in(text) == ["DEBUG"]
    assert "set it to False" in text


@pytest.mark.parametrize(
    "password",
    ["p@ss", "p/ss", "p@ssw0rd/x", "p?ss", "p#ss", "50%", "5%zz", "p ss", "p@ss?x=y"],
)
@pytest.mark.parametrize(
    ("name", "address"),
    [("DATABASE_URL", "postgres://u:{}@db/n1"), ("REDIS_URL", "redis://:{}@h:6379/0")],
)
def test_an_address_whose_password_is_not_escaped_is_refused_and_not_shown(
    name: str, address: str, password: str, load: Load
) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        load({**GOOD, name: address.format(password)})

    assert f"{name} holds unescaped special characters" in str(refusal.value)
    assert "percent-encode" in str(refusal.value)
    assert password not in str(refusal.value).replace("%25", "").replace("%2F", "")


def test_an_escaped_password_is_taken_as_it_was_meant(load: Load) -> None:
    url = "postgres://u:p%40ss%2Fw%25%23%3F%20%3A@db/n1?application_name=a%40b"

    database = load({**GOOD, "DATABASE_URL": url})["DATABASES"]["default"]

    assert (database["PASSWORD"], database["HOST"]) == ("p@ss/w%#? :", "db")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Starview",
            "Starview, Inc.",
            "a: b; c",
            "me@home",
            'The "Star" view',
            "a (b)",
        ),
        *("back\\slash", "Zoë, Inc.", "Sterne & Co. 🔭", "[x]", '"', "'it'"),
    ],
)
@pytest.mark.parametrize("is_quoted", [False, True])
def test_any_name_of_a_sender_arrives_as_it_was_meant(
    name: str, is_quoted: bool, load: Load
) -> None:
    written = name
    if is_quoted:
        written = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'

    sender = load({**GOOD, "DEFAULT_FROM_EMAIL": f"{written} <a@example.com>"})[
        "DEFAULT_FROM_EMAIL"
    ]

    mail = EmailMessage("subject", "text", sender, ["b@example.com"]).message()
    parsed = email.message_from_bytes(mail.as_bytes(), policy=email.policy.default)
    (address,) = parsed["From"].addresses
    assert (address.display_name, address.addr_spec) == (name, "a@example.com")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_WAIT_SECONDS", "\u0663"),
        ("AWS_SES_REGION_NAME", "us-east-\u0661"),
        ("SENTRY_DSN", "https://k@h/\u0661"),
        ("AWS_S3_ENDPOINT_URL", "http://h:\u0669000"),
    ],
)
def test_digits_are_ascii_digits(name: str, value: str, load: Load) -> None:
    assert variables_in(error_of(load, {**GOOD, name: value}))[0] == name

"""Settings, all from the environment; `.env.example` explains every variable.

A problem with the variables of one job stops only that job (`JobCommand.needs`); a
problem with variables that every command needs is raised here. `manage.py check
--deploy` names all problems.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from starview import database
from starview import env as environment
from starview.env import ARCHIVE, BACKUP, MAIL
from starview.logging import configure_logging

BASE_DIR = Path(__file__).resolve().parent.parent

_WEB_SERVICE = "copy it from the web service's Environment tab in Render"
_R2_KEYS = "Cloudflare dashboard, R2, Manage R2 API Tokens"
_BUCKET = "Cloudflare dashboard, R2, the bucket's name"
_SES_USER = "AWS console, IAM, the SES sending user, Access keys; never the R2 key pair"

env = ENVIRONMENT = environment.Environment(os.environ)
if env.debug and os.environ.get("RENDER"):
    # Archives would be written to a disk that is lost with the container.
    env.report(
        "DEBUG", environment.EVERY_COMMAND, "is True on Render", "set it to False"
    )

# -- Every command ------------------------------------------------------------------

DEBUG = env.debug
SECRET_KEY = env.text(
    "DJANGO_SECRET_KEY",
    required=True,
    where=_WEB_SERVICE,
    debug_default="only-for-a-laptop-" + "not-a-secret-" * 4,
    secret=True,
)
DATABASES: dict[str, dict[str, Any]] = {
    "default": env.database(
        "DATABASE_URL",
        where="Render: link the PostgreSQL instance, or copy its Internal Database URL",
        debug_default="postgresql://localhost/starview",
    )
}
ALLOWED_HOSTS = env.words(
    "ALLOWED_HOSTS",
    required=True,
    where=_WEB_SERVICE,
    debug_default="localhost",
    check=environment.host_problem,
)
CSRF_TRUSTED_ORIGINS = env.words(
    "CSRF_TRUSTED_ORIGINS", where=_WEB_SERVICE, check=environment.origin_problem
)
REDIS_URL = env.text(
    "REDIS_URL",
    where="Render: link the Key Value instance, or copy its Internal URL",
    default="redis://127.0.0.1:6379/1",
    check=environment.redis_url_problem,
    secret=True,
)
LOG_FORMAT = env.text(
    "LOG_FORMAT",
    default="console",
    where="write console or json",
    check=environment.choice_problem("console", "json"),
)
ADMIN_EMAIL = env.words(
    "ADMIN_EMAIL",
    needed_by=MAIL,
    where="who gets health reports: plain addresses, comma-separated",
    check=environment.plain_email_problem,
)
# The only schedule. A relative path starts from BASE_DIR.
CRONTAB = BASE_DIR / "crontab"
DATABASE_WAIT_SECONDS = env.whole_number("DATABASE_WAIT_SECONDS", default=60)
# Here only for the check: `starview.output`, the filter of all output, reads it itself.
REDACT_EMAILS = env.boolean("REDACT_EMAILS", default=False)
DISABLE_EXTERNAL_APIS = env.boolean("DISABLE_EXTERNAL_APIS", default=False)

# -- Monitors of the runs, off when empty ---------------------------------------------

HEARTBEAT_URL = env.text(
    "HEARTBEAT_URL",
    where="Healthchecks: the ping URL with the project's ping key",
    check=environment.http_url_problem,
    secret=True,
)
HEARTBEAT_API_KEY = env.text(
    "HEARTBEAT_API_KEY",
    where="Healthchecks: the project's read-write API key",
    check=environment.key_problem,
    secret=True,
)
# The second name is for scheduled jobs: entrypoint.sh hides the first from supercronic,
# which would send its own events.
_SENTRY = "Sentry: Settings, Projects, Client Keys (DSN)"
SENTRY_DSN = env.text(
    "SENTRY_DSN", where=_SENTRY, check=environment.dsn_problem, secret=True
) or env.text(
    "STARVIEW_SENTRY_DSN", where=_SENTRY, check=environment.dsn_problem, secret=True
)

# -- Archives: R2 or any S3; a folder when DEBUG ------------------------------------

AUDIT_ARCHIVE_FOLDER = BASE_DIR / "audit_archives"
# A separate key pair and bucket for the audit archive.
AUDIT_R2_ACCESS_KEY_ID = env.text(
    "AUDIT_R2_ACCESS_KEY_ID",
    needed_by=ARCHIVE,
    required=env.is_set("AUDIT_R2_SECRET_ACCESS_KEY"),
    where="set both AUDIT_R2_ keys or none",
    check=environment.key_problem,
    secret=True,
)
AUDIT_R2_SECRET_ACCESS_KEY = env.text(
    "AUDIT_R2_SECRET_ACCESS_KEY",
    needed_by=ARCHIVE,
    required=env.is_set("AUDIT_R2_ACCESS_KEY_ID"),
    where="set both AUDIT_R2_ keys or none",
    check=environment.key_problem,
    secret=True,
)
_has_audit_keys = bool(AUDIT_R2_ACCESS_KEY_ID and AUDIT_R2_SECRET_ACCESS_KEY)
AUDIT_R2_BUCKET_NAME = env.text(
    "AUDIT_R2_BUCKET_NAME",
    needed_by=ARCHIVE,
    where=_BUCKET,
    default="starview-audit-logs" if _has_audit_keys else "",
    check=environment.bucket_problem,
)
AWS_ACCESS_KEY_ID = env.text(
    "AWS_ACCESS_KEY_ID",
    needed_by=ARCHIVE,
    required=not _has_audit_keys,
    where=_R2_KEYS,
    check=environment.key_problem,
    secret=True,
)
AWS_SECRET_ACCESS_KEY = env.text(
    "AWS_SECRET_ACCESS_KEY",
    needed_by=ARCHIVE,
    required=not _has_audit_keys,
    where=_R2_KEYS,
    check=environment.key_problem,
    secret=True,
)
AWS_STORAGE_BUCKET_NAME = env.text(
    "AWS_STORAGE_BUCKET_NAME",
    needed_by=ARCHIVE,
    where=_BUCKET,
    default="starview-media",
    check=environment.bucket_problem,
)
AWS_S3_ENDPOINT_URL = env.text(
    "AWS_S3_ENDPOINT_URL",
    needed_by=ARCHIVE,
    where="leave it empty for R2, or write https://HOST without the bucket",
    check=environment.endpoint_problem,
)
# The web service's variable: if it is set, its bucket is public and not for audit rows.
R2_PUBLIC_URL = env.text("R2_PUBLIC_URL")
if not env.is_set("AWS_S3_ENDPOINT_URL"):
    CLOUDFLARE_ACCOUNT_ID = env.text(
        "CLOUDFLARE_ACCOUNT_ID",
        needed_by=ARCHIVE,
        required=True,
        where="Cloudflare dashboard, R2 overview, Account ID; or set"
        " AWS_S3_ENDPOINT_URL for another S3",
        check=environment.account_id_problem,
    )
    AWS_S3_ENDPOINT_URL = f"https://{CLOUDFLARE_ACCOUNT_ID}.r2.cloudflarestorage.com"

# -- Backups of the database: beside the archives -------------------------------------

DATABASE_BACKUP_FOLDER = BASE_DIR / "database_backups"
BACKUP_ENCRYPTION_KEY = env.text(
    "BACKUP_ENCRYPTION_KEY",
    needed_by=BACKUP,
    where="the line that `age-keygen` prints; leave it empty for no encryption",
    check=environment.age_identity_problem,
    secret=True,
)

# -- Mail: Amazon SES; files when DEBUG ---------------------------------------------

DEFAULT_FROM_EMAIL = environment.quoted_sender(
    env.text(
        "DEFAULT_FROM_EMAIL",
        needed_by=MAIL,
        where="an address or domain that is verified in SES",
        default="noreply@starview.app",
        check=environment.email_problem,
    )
)
AWS_SES_ACCESS_KEY_ID = env.text(
    "AWS_SES_ACCESS_KEY_ID",
    needed_by=MAIL,
    required=True,
    where=_SES_USER,
    check=environment.key_problem,
    secret=True,
)
AWS_SES_SECRET_ACCESS_KEY = env.text(
    "AWS_SES_SECRET_ACCESS_KEY",
    needed_by=MAIL,
    required=True,
    where=_SES_USER,
    check=environment.key_problem,
    secret=True,
)
AWS_SES_REGION_NAME = env.text(
    "AWS_SES_REGION_NAME",
    needed_by=MAIL,
    where="the region in which SES has verified the sender",
    default="us-east-1",
    check=environment.region_problem,
)
AWS_SES_ENDPOINT_URL = env.text(
    "AWS_SES_ENDPOINT_URL",
    needed_by=MAIL,
    where="leave it empty for Amazon SES",
    check=environment.endpoint_problem,
)
AWS_SES_REGION_ENDPOINT_URL = (
    AWS_SES_ENDPOINT_URL or f"https://email.{AWS_SES_REGION_NAME}.amazonaws.com"
)
# The throttle first requests the quota, to which a least-privilege user has no right.
AWS_SES_AUTO_THROTTLE = None
EMAIL_BACKEND = (
    "django.core.mail.backends.filebased.EmailBackend"
    if DEBUG
    else "starview_app.maintenance.ses.Backend"
)
EMAIL_FILE_PATH = BASE_DIR / "sent_mail"
SERVER_EMAIL = DEFAULT_FROM_EMAIL

# -- Sign-in with Google, for setup_google_oauth ------------------------------------

GOOGLE_OAUTH_CLIENT_ID = env.text("GOOGLE_OAUTH_CLIENT_ID")
GOOGLE_OAUTH_CLIENT_SECRET = env.text("GOOGLE_OAUTH_CLIENT_SECRET", secret=True)

# -- Django -------------------------------------------------------------------------

INSTALLED_APPS = [
    "starview_app",  # first: its `migrate` guards the web service's tables
    "starview_app.maintenance",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.sites",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]
ROOT_URLCONF = "starview.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
    }
]
SITE_ID = 1
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"  # for the crontab's times, the cut-offs and the archive

if DATABASES["default"]:
    DATABASES["default"].setdefault("OPTIONS", {})
    DATABASES["default"]["OPTIONS"]["connection_factory"] = database.connect
    DATABASES["default"]["OPTIONS"].setdefault("connect_timeout", 10)
    DATABASES["default"]["OPTIONS"].setdefault("application_name", "starview-cron")
    # With these, a session that waits for hours ends if its server is gone.
    for _name, _seconds in (("idle", 60), ("interval", 15), ("count", 4)):
        DATABASES["default"]["OPTIONS"].setdefault(f"keepalives_{_name}", _seconds)
    DATABASES["default"]["OPTIONS"].setdefault("tcp_user_timeout", 60_000)  # ms

# Like the web service, whose keys are starview:1:NAME.
CACHES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "starview",
        "TIMEOUT": 900,  # seconds
        "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 5, "SOCKET_TIMEOUT": 5},  # seconds
    }
}
# Like the web service: web sessions are in Redis and expire there by themselves.
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_COOKIE_AGE = 1_209_600  # seconds: two weeks

# Like the web service: an account can be used only after a link, which is in the
# database, was followed.
ACCOUNT_EMAIL_VERIFICATION = "mandatory"
ACCOUNT_SIGNUP_FIELDS = ["email*", "username*", "password1*", "password2*"]
ACCOUNT_EMAIL_CONFIRMATION_HMAC = False
ACCOUNT_EMAIL_CONFIRMATION_EXPIRE_DAYS = 3

# This image serves no pages; without these `check --deploy` would warn nevertheless.
SECURE_SSL_REDIRECT = not DEBUG
SECURE_HSTS_SECONDS = 0 if DEBUG else 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = not DEBUG
SECURE_HSTS_PRELOAD = not DEBUG
SESSION_COOKIE_SECURE = not DEBUG
CSRF_COOKIE_SECURE = not DEBUG

LOGGING_CONFIG = None
configure_logging(LOG_FORMAT)

# -- Say what is wrong ----------------------------------------------------------------

# By a word of the command line, the needs of a command besides those of every command:
# all its problems are raised as one error. `check` names the problems of all commands.
_NEEDS = {
    "adopt_audit_archives": (ARCHIVE,),
    "archive_audit_logs": (ARCHIVE,),
    "backup_database": (ARCHIVE, BACKUP),
    "cleanup_audit_archives": (ARCHIVE,),
    "restore_audit_logs": (ARCHIVE,),
    "restore_database": (ARCHIVE, BACKUP),
    "send_analytics_report": (MAIL,),
    "verify_audit_archives": (ARCHIVE,),
    "--email-report": (MAIL,),
}
_words = {word.partition("=")[0] for word in sys.argv}
# These commands work on a machine without any configuration.
_command = [word for word in sys.argv[1:] if not word.startswith("-")]
_needs_nothing = (
    bool({"-h", "--help", "help", "--version", "version"} & _words)
    or _command[:2] == ["jobs", "check"]
    or _command[:1] == ["export_schedule"]
)
if env.problems_for() and not _needs_nothing:
    _needs = {need for word in _words for need in _NEEDS.get(word, ())}
    environment.raise_for(
        env.problems if "check" in _words else env.problems_for(*_needs)
    )

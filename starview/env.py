"""Read the environment once, typed, and collect everything that is wrong with it.

Every reader returns a usable value, and notes a `Problem` if the variable is missing or
wrong, so that an operator sees all mistakes at once. An empty variable counts as unset.
For every NAME, NAME_FILE may name a file with the value instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email

EVERY_COMMAND = "every command"
ARCHIVE = "archive_audit_logs"
MAIL = "the e-mail report"
BACKUP = "backup_database"

_DATABASE_SCHEMES = ("postgres", "postgresql", "postgis", "pgsql")
_DATABASE_PARTS = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
_ENGINE = "django.db.backends.postgresql"


@dataclass(frozen=True)
class Problem:
    """One missing or wrong variable. `text` never has the value of a secret."""

    variable: str
    needed_by: str
    text: str
    where: str

    def __str__(self) -> str:
        purpose = "" if self.needed_by == EVERY_COMMAND else f"for {self.needed_by}: "
        return f"{self.what} ({purpose}{self.where})"

    @property
    def what(self) -> str:
        """The variable and what is wrong with it."""
        joined = self.text.startswith(("=", "_FILE="))  # its value, or the file's name
        return f"{self.variable}{'' if joined else ' '}{self.text}"


class Environment:
    """Typed readers of `values`, which collect `problems`.

    With `debug` a variable that has a `debug_default` may be unset.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.problems: list[Problem] = []
        self.debug = False
        self.debug = self.boolean("DEBUG", default=False)

    # -- raising ------------------------------------------------------------------

    def problems_for(self, *needs: str) -> list[Problem]:
        """Return the problems that concern a command with these needs."""
        relevant = {EVERY_COMMAND, *needs}
        return [problem for problem in self.problems if problem.needed_by in relevant]

    def require(self, *needs: str) -> None:
        """Raise ImproperlyConfigured with all the problems of `needs`, if any."""
        raise_for(self.problems_for(*needs))

    # -- readers ------------------------------------------------------------------

    def text(
        self,
        name: str,
        *,
        needed_by: str = EVERY_COMMAND,
        where: str = "",
        required: bool = False,
        default: str = "",
        debug_default: str = "",
        check: Callable[[str], str | None] | None = None,
        secret: bool = False,
    ) -> str:
        """Return the variable, or `default`. A `required` one may be unset with DEBUG.

        A problem stops only the commands that `needed_by` names. `check` returns what
        is wrong with a value, or None. A `secret` value is never quoted in a problem.
        """
        value = self._raw(name, needed_by, where)
        if value is None:
            if self.debug and debug_default:
                return debug_default
            if required and not self.debug and not self._was_reported(name):
                self.report(name, needed_by, "is required but not set", where)
            return default
        wrong = check(value) if check else None
        if wrong:
            shown = "" if secret else f"={_without_password(value)!r} "
            self.report(name, needed_by, f"{shown}{wrong}", where)
            return default
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.text(
            name,
            check=lambda text: (
                None if text.lower() in {"true", "false"} else "is not True or False"
            ),
            where="write True or False",
        )
        return value.lower() == "true" if value else default

    def whole_number(self, name: str, *, default: int) -> int:
        value = self.text(
            name,
            check=lambda text: (
                None if re.fullmatch(r"[0-9]{1,6}", text) else "is not a whole number"
            ),
            where=f"write a whole number, or leave it empty for {default}",
        )
        return int(value) if value else default

    def words(
        self,
        name: str,
        *,
        needed_by: str = EVERY_COMMAND,
        where: str = "",
        required: bool = False,
        debug_default: str = "",
        check: Callable[[str], str | None] | None = None,
    ) -> list[str]:
        """A comma-separated list; blanks around a word and empty words are dropped."""
        text = self.text(
            name,
            needed_by=needed_by,
            where=where,
            required=required,
            debug_default=debug_default,
            check=_each(check) if check else None,
        )
        return [word.strip() for word in text.split(",") if word.strip()]

    def is_set(self, name: str) -> bool:
        """Whether there is a value, even a wrong one."""
        return bool(self._values.get(name) or self._values.get(f"{name}_FILE"))

    def database(self, name: str, *, where: str, debug_default: str) -> dict[str, Any]:
        """Return Django's dict for a PostgreSQL URL; {} if it is missing or wrong.

        Without the URL the web service's DB_HOST, DB_NAME, ... are used. postgis:// is
        read as plain PostgreSQL, since this image uses no geometry.
        """
        if not self.is_set(name) and any(map(self.is_set, _DATABASE_PARTS)):
            return self._database_of_parts(where)
        url = self.text(
            name,
            where=where,
            required=True,
            debug_default=debug_default,
            check=_database_url_problem,
            secret=True,
        )
        if not url:
            return {}
        settings: dict[str, Any] = dict(dj_database_url.parse(url))
        settings["ENGINE"] = _ENGINE
        return settings

    def report(self, name: str, needed_by: str, text: str, where: str) -> None:
        """Note a problem; for those that concern several variables."""
        self.problems.append(Problem(name, needed_by, text, where))

    # -- internal helpers ---------------------------------------------------------

    def _database_of_parts(self, where: str) -> dict[str, Any]:
        """Read DB_HOST, ... like the web service: with TLS unless the host is local."""
        self.text("DB_ENGINE", check=_engine_problem, where="write postgresql")
        host = self.text("DB_HOST", required=True, where=where)
        database = self.text("DB_NAME", required=True, where=where)
        user = self.text("DB_USER", required=True, where=where)
        password = self.text("DB_PASSWORD", secret=True)
        port = self.whole_number("DB_PORT", default=5432)
        is_local = host in {"localhost", "127.0.0.1", "::1"} or host.startswith("/")
        return {
            "ENGINE": _ENGINE,
            "HOST": host,
            "PORT": port,
            "NAME": database,
            "USER": user,
            "PASSWORD": password,
            "OPTIONS": {} if is_local else {"sslmode": "require"},
        }

    def _raw(self, name: str, needed_by: str, where: str) -> str | None:
        value = self._values.get(name) or None
        path = self._values.get(f"{name}_FILE") or None
        if path is None:
            return value
        if value is not None:
            self.report(
                name, needed_by, f"and {name}_FILE are both set; keep one", where
            )
            return value
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n") or None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            self.report(
                name, needed_by, f"_FILE={path!r} cannot be read: {reason}", where
            )
            return None

    def _was_reported(self, name: str) -> bool:
        return any(problem.variable == name for problem in self.problems)


def raise_for(problems: list[Problem]) -> None:
    """Raise ImproperlyConfigured that lists `problems`, unless there are none."""
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ImproperlyConfigured(
            f"invalid environment:\n{lines}\n"
            "HINT: copy the variables from the web service (Render: Environment tab) or"
            " link the environment group; .env.example explains each."
        )


# -- checks: what is wrong with a value, or None -----------------------------------


def email_problem(value: str) -> str | None:
    """Accepts `a@example.com` and `Name <a@example.com>`, with any name."""
    name, address = _sender_parts(value)
    if plain_email_problem(address) or "<" in name or not name.isprintable():
        return "is not an e-mail address"
    return None


def quoted_sender(value: str) -> str:
    """Return `Name <a@example.com>` for a header, with the name quoted if necessary.

    Without quotes `Starview, Inc. <a@example.com>` would be two addresses.
    """
    name, address = _sender_parts(value)
    if not name:
        return address
    if re.search(r"[()<>@,:;.\[\]\"\\]", name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"{name} <{address}>"


def _sender_parts(value: str) -> tuple[str, str]:
    """Return the name, without quotation marks around it, and the address."""
    match = re.fullmatch(r"(.*)<([^<>]+)>", value.strip(), re.DOTALL)
    if not match:
        return "", value.strip()
    name, address = match[1].strip(), match[2]
    if quoted := re.fullmatch(r'"((?:[^"\\]|\\.)*)"', name):
        name = re.sub(r"\\(.)", r"\1", quoted[1])
    return name, address


def plain_email_problem(value: str) -> str | None:
    """Accepts `a@example.com` only."""
    try:
        validate_email(value)
    except ValidationError:
        return "is not a plain e-mail address"
    return None


def http_url_problem(value: str) -> str | None:
    if re.fullmatch(
        r"https?://[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?(:[0-9]{1,5})?(/[^\s?#]*)?",
        value,
    ) or re.fullmatch(r"https?://\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?(/[^\s?#]*)?", value):
        return None
    return "is not an http:// or https:// address"


def endpoint_problem(value: str) -> str | None:
    """A store's address has no path, which would become a part of all object names."""
    if problem := http_url_problem(value):
        return problem
    if re.fullmatch(r"https?://[^/]+/?", value):
        return None
    return (
        "has a path behind the host; write the address alone, the bucket's name goes"
        " into the variable for it"
    )


def dsn_problem(value: str) -> str | None:
    if re.fullmatch(r"https?://[^\s/@]+@[^\s/@]+(/[^\s]*)?/[0-9]+", value):
        return None
    return "is not a DSN such as https://KEY@HOST/PROJECT"


def redis_url_problem(value: str) -> str | None:
    if not re.match(r"(redis|rediss|unix)://", value):
        return "is not a redis:// or rediss:// address"
    if problem := _unescaped_problem(value):
        return problem
    try:
        urlsplit(value).port  # noqa: B018 - it raises
    except ValueError:
        return "has a port that is not a number up to 65535"
    return None


def host_problem(value: str) -> str | None:
    if re.fullmatch(r"\*|\[?[A-Za-z0-9.:_-]+\]?", value):
        return None
    return "is not a host name; write it without https:// and path"


def origin_problem(value: str) -> str | None:
    if re.fullmatch(r"https?://[^\s/]+", value):
        return None
    return "does not start with https:// or has a path"


def key_problem(value: str) -> str | None:
    """A key with a blank or line end was copied wrong, and would be logged."""
    return None if re.fullmatch(r"[!-~]+", value) else "holds a blank or a line end"


def age_identity_problem(value: str) -> str | None:
    if re.fullmatch(r"AGE-SECRET-KEY-1[0-9A-Z]{58}", value):
        return None
    return "is not a key of age, one line that begins with AGE-SECRET-KEY-1"


def bucket_problem(value: str) -> str | None:
    """The rule of R2 and S3, plus the capitals and underscores of old S3 buckets."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", value):
        return None
    return "is not the name of a bucket"


def region_problem(value: str) -> str | None:
    if re.fullmatch(r"[a-z]{2,4}(-[a-z]+)+-[0-9]", value):
        return None
    return "is not an AWS region such as us-east-2"


def account_id_problem(value: str) -> str | None:
    if re.fullmatch(r"[A-Za-z0-9-]{1,63}", value):
        return None
    return "is not an account id; it has letters and digits only"


def choice_problem(*choices: str) -> Callable[[str], str | None]:
    return lambda value: (
        None if value in choices else f"is none of {', '.join(choices)}"
    )


def _without_password(value: str) -> str:
    """Return a URL without user and password, which end at the last @."""
    return re.sub(r"//.*@", "//***@", value, flags=re.DOTALL)


def _each(check: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Return a check of a comma-separated list, with the first problem of its words."""

    def check_all(text: str) -> str | None:
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not words:
            return "holds no value"
        return next((wrong for word in words if (wrong := check(word))), None)

    return check_all


def _unescaped_problem(url: str) -> str | None:
    """A password with @, /, ?, #, % or a blank must be escaped, or parts are shown."""
    _, _, rest = url.partition("://")
    before, at, after = rest.rpartition("@")
    is_cut = re.search(r"[@/?#]", before) or "#" in after
    if is_cut or re.search(r"%(?![0-9A-Fa-f]{2})|[\s\x00-\x1f\x7f]", rest):
        return (
            "holds unescaped special characters; percent-encode those of the user and"
            " the password: %40 for @, %2F for /, %25 for %"
        )
    return None


def _engine_problem(value: str) -> str | None:
    name = value.rpartition(".")[2]
    if name in _DATABASE_SCHEMES or name == "postgresql_psycopg2":
        return None
    return "is not postgresql"


def _database_url_problem(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _DATABASE_SCHEMES:
        return "is not a postgresql:// URL"
    if wrong := _unescaped_problem(url):
        return wrong
    address = re.split("[/?]", url.partition("://")[2].rpartition("@")[2])[0]
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(:[0-9]{1,5})?", address):
        return "has no host and port that can be read; write HOST or HOST:PORT"
    try:
        parsed = dj_database_url.parse(url)
    except Exception:  # noqa: BLE001 - the text of any parse error may hold the URL
        return "is not a valid URL; percent-encode special characters of the password"
    if not parsed.get("NAME"):
        return "names no database; it ends in /NAME"
    return None

"""The rights that docs/security.md names are enough for every job."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from django.db import connection

from demo.services import LocalServices
from tests.conftest import Manage

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
GRANTS, HAND_OVER = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
ROLE = "starview_maintenance"

# On and off in the crontab, with its options.
SCHEDULED = re.findall(
    r"(?m)^#?[\d*]\S* .* python manage\.py (.+)$", (ROOT / "crontab").read_text("utf-8")
)
BY_HAND = [
    "diagnose_db",
    "archive_audit_logs --days=1 --workers=2",
    "verify_audit_archives",
    "adopt_audit_archives",
    "audit_badges --fix",
    "audit_badges --award",
    "setup_google_oauth --domain starview.app",
]
GOOGLE = {
    "GOOGLE_OAUTH_CLIENT_ID": "x.apps.googleusercontent.com",
    "GOOGLE_OAUTH_CLIENT_SECRET": "abcdefghijkl",
}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def role() -> Iterator[str]:
    """The user that the page makes; other tests at the same time have one of theirs."""
    name = f"{ROLE}_{connection.settings_dict['NAME']}"
    with connection.cursor() as cursor:
        for statements in (GRANTS, HAND_OVER):
            cursor.execute(re.sub(rf"\b{ROLE}\b", name, statements))
        yield name
        cursor.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
        cursor.execute(f"DROP OWNED BY {name}")
        cursor.execute(f"DROP ROLE {name}")


def test_the_rights_of_the_page_are_enough_for_every_job(
    bucket: LocalServices,
    manage: Manage,
    test_environment: dict[str, str],
    backup_path: str,
    role: str,
) -> None:
    address = test_environment["DATABASE_URL"]
    user = psycopg2.extensions.parse_dsn(address)["user"]
    environment: dict[str, str | None] = {
        **GOOGLE,
        "DATABASE_URL": address.replace(f"//{user}@", f"//{role}@", 1),
        "PATH": backup_path,
    }
    refused = {}

    for command in (*SCHEDULED, *BY_HAND):
        words = command.replace('"$ADMIN_EMAIL"', "admin@example.com").split()
        ran = manage(*words, env=environment)
        said = ran.stdout + ran.stderr
        if ran.returncode or "denied" in said or "run_not_recorded" in said:
            refused[command] = said

    assert len(SCHEDULED) >= 9
    assert refused == {}

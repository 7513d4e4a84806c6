"""What is written for operators agrees with what the program reads and runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from starview_app.maintenance.schedule.crontab import ScheduledJob, read_crontab

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
VARIABLES_PAGE = (ROOT / "docs" / "variables.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = (ROOT / "starview" / "settings.py").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
BLUEPRINT = yaml.safe_load((ROOT / "render.yaml").read_text(encoding="utf-8"))
JOBS = read_crontab(ROOT / "crontab")

# Read by the entrypoint, by the web service, or before the settings.
READ_ELSEWHERE = set(
    re.findall(
        r"\w+",
        """
        DATABASE_WAIT_SECONDS DB_ENGINE DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD
        DEBUG
        CELERY_ENABLED TESTING CORS_ALLOWED_ORIGINS USE_R2_STORAGE MAPBOX_TOKEN
        OPENROUTESERVICE_API_KEY GEMINI_API_KEY TILE_SERVER_URL
        """,
    )
)
VARIABLES = READ_ELSEWHERE | set(re.findall(r"env\.\w+\(\s*\"([A-Z0-9_]+)\"", SETTINGS))
VARIABLES -= {"STARVIEW_SENTRY_DSN"}  # SENTRY_DSN, as entrypoint.sh hands it on


MADE_AT_RUN_TIME = {"audit_archives/", "sent_mail/"}


@pytest.mark.parametrize("variable", sorted(VARIABLES))
def test_every_variable_is_explained(variable: str) -> None:
    assert re.search(rf"^{variable}=", EXAMPLE, re.MULTILINE)
    assert f"`{variable}`" in VARIABLES_PAGE


def test_the_example_has_no_variable_that_nobody_reads() -> None:
    named = set(re.findall(r"^([A-Z0-9_]+)=", EXAMPLE, re.MULTILINE))

    assert named == VARIABLES


def test_the_example_holds_no_secret() -> None:
    secrets = re.findall(r"^\w*(?:SECRET|KEY|KEY_ID)=.*", EXAMPLE, re.MULTILINE)

    assert secrets
    assert all(line.endswith("=") for line in secrets)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_job_of_the_crontab_is_in_the_readme(job: ScheduledJob) -> None:
    command = job.command.partition("manage.py ")[2]

    assert f"| `{job.name}` | `{command}` |" in README


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_job_has_a_name_and_a_deadline(job: ScheduledJob) -> None:
    assert re.fullmatch(
        r"JOB=starview-[a-z-]+ timeout -k 60 \d+[hm] python manage\.py .+"
        # It waits for runs that keep deadlines of their own.
        r"|JOB=starview-catch-up python manage\.py catch_up",
        job.command,
    )


def test_a_job_that_is_off_can_be_switched_on_by_taking_its_sign_away(
    tmp_path: Path,
) -> None:
    text = (ROOT / "crontab").read_text(encoding="utf-8")
    switched_on = tmp_path / "crontab"
    switched_on.write_text(re.sub(r"(?m)^#(?=\d)", "", text), encoding="utf-8")

    names = {job.name for job in read_crontab(switched_on)}

    assert names > {job.name for job in JOBS}


# Its Quick Reference; a job of our own needs no entry here.
GUIDE = {
    "0 2 * * *": "cleanup_unverified_users --days=7",
    "0 3 * * 0": 'cleanup_email_suppressions --email-report "$ADMIN_EMAIL"',
    "0 4 1 * *": "archive_audit_logs --days=30",
    "0 5 * * 0": "clearsessions",
}


def test_the_schedule_is_the_guides() -> None:
    ours = {job.times: job.command.partition("manage.py ")[2] for job in JOBS}

    assert GUIDE.items() <= ours.items()


def test_the_blueprint_gives_the_worker_every_variable_it_needs() -> None:
    (worker,) = [s for s in BLUEPRINT["services"] if s["type"] == "worker"]
    (group,) = BLUEPRINT["envVarGroups"]
    own = {variable.get("key") for variable in worker["envVars"]} - {None}
    shared = {variable["key"] for variable in group["envVars"]}
    pattern = r'"([A-Z0-9_]+)",(?:\s*\w+=\w+,)*?\s*required=(?:True|not)'
    required = set(re.findall(pattern, SETTINGS))

    assert {"fromGroup": group["name"]} in worker["envVars"]
    assert len(required) >= 7
    assert required | {"DATABASE_URL", "REDIS_URL", "ADMIN_EMAIL"} <= own | shared
    assert own | shared <= VARIABLES


def test_the_blueprint_holds_no_secret() -> None:
    (worker,) = [s for s in BLUEPRINT["services"] if s["type"] == "worker"]
    (group,) = BLUEPRINT["envVarGroups"]
    asked = {v["key"] for v in worker["envVars"] if v.get("sync") is False}

    assert not [v for v in group["envVars"] if re.search(r"SECRET|KEY", v["key"])]
    assert {
        "DJANGO_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SES_SECRET_ACCESS_KEY",
    } <= asked


def test_the_blueprint_is_a_worker_with_time_to_stop() -> None:
    (worker,) = [s for s in BLUEPRINT["services"] if s["type"] == "worker"]

    assert worker["dockerfilePath"] == "./Dockerfile.cron"
    assert 30 <= worker["maxShutdownDelaySeconds"] <= 300
    assert "autoDeploy" not in worker  # deprecated


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_every_link_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # Decisions tell what was, and the guides for programmers what is to be added.
    if not {page.parent.name, page.stem} & {"decisions", "architecture", "extending"}:
        for path in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", text):
            if path not in MADE_AT_RUN_TIME:
                assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        if anchor:
            assert anchor in anchors_of(found), link


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Strict: no page without an entry, no link or anchor that leads nowhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (built.returncode, "WARNING" in built.stderr) == (0, False), built.stderr
    pages = [page for page in PAGES if page.name != "README.md"]
    made = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in pages]
    assert [str(page) for page in made if not (tmp_path / page).is_file()] == []
    assert (tmp_path / "search" / "search_index.json").is_file()


def test_a_page_of_the_site_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    index = (tmp_path / "index.html").read_text(encoding="utf-8")

    assert "<h1" in index
    assert (
        re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?:https?:)?//", index)
        == []
    )
    # A link that leaves docs/ has a copy to lead to.
    assert 'href="files/CHANGELOG.md.txt"' in index
    assert (tmp_path / "files" / "CHANGELOG.md.txt").is_file()


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}

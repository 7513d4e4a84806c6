"""The real image, in the real docker-compose.yml: what an operator sees of it.

Needs a Docker engine and the images of .ci/docker: `pytest -m container`.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import urllib3

import starview
from tests.deployment import IMAGE, PROJECT, ROOT, compose, docker, psql, run_once

DEADLINE_SECONDS = 90  # a job of every minute comes within it

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("deployment")]


@contextmanager
def scheduled(
    crontab: Path, line: str, times: str = "*/1 * * * * * *", **environment: str
) -> Iterator[str]:
    """A worker that runs `line`, every second; gives the container's name."""
    crontab.write_text(f"{times} {line}\n", encoding="utf-8")
    crontab.chmod(0o644)
    name = f"{PROJECT}-{uuid.uuid4().hex[:8]}"
    variables = [f"--env={key}={value}" for key, value in environment.items()]
    mount = f"--volume={crontab}:/app/crontab:ro"
    try:
        compose(*("run", "-d", "--no-deps", "--name", name, mount, *variables, "cron"))
        yield name
    finally:
        docker("rm", "-f", name, check=False)


def logs(container: str) -> str:
    return docker("logs", container).stdout


def wait_for_log(container: str, text: str) -> None:
    """Follow the container's log until `text` appears."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with subprocess.Popen(
        ["docker", "logs", "-f", container],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as follow:
        assert follow.stdout is not None
        try:
            for line in follow.stdout:
                if text in line:
                    return
                assert time.monotonic() < deadline, logs(container)
        finally:
            follow.kill()
    pytest.fail(f"{text!r} never came:\n{logs(container)}")


def wait_for(is_so: Callable[[], bool]) -> None:
    """Ask every second; what is waited for comes by the minute."""
    deadline = time.monotonic() + 2 * DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(1)


def stop(container: str, *, grace_seconds: int = 30) -> tuple[int, float]:
    """`docker stop`; returns the container's exit code and how long it took."""
    started = time.monotonic()
    docker("stop", "-t", str(grace_seconds), container)
    seconds = time.monotonic() - started
    code = docker("inspect", "-f", "{{.State.ExitCode}}", container).stdout.strip()
    return int(code), seconds


def page(path: str) -> str:
    """What the browser of this machine gets."""
    address = compose("port", "page", "8090").stdout.strip()
    answer = urllib3.request("GET", f"http://{address}{path}", timeout=30)
    assert address.startswith("127.0.0.1:")
    return answer.data.decode()


def test_there_is_something_to_look_at_once_all_is_healthy() -> None:
    report, mails = page("/"), page("/mails/")

    assert "Open http://127.0.0.1" in compose("logs", "page").stdout
    # Other tests may have made a job fail meanwhile: the verdict is not asked for.
    assert "starview-archive-audit-logs" in report
    assert "5.7 % of 4,368" in report
    assert "The chain was last verified on" in report
    assert "E-mail health" in mails


def test_only_page_and_console_are_published_and_to_this_machine_alone() -> None:
    rows = map(json.loads, compose("ps", "--format", "json").stdout.splitlines())
    published = {
        (row["Service"], port["URL"])
        for row in rows
        for port in row["Publishers"]
        if port["PublishedPort"]
    }

    assert published == {("page", "127.0.0.1"), ("minio", "127.0.0.1")}


def test_a_one_off_command_does_not_repeat_the_set_up() -> None:
    before = compose("logs", "page").stdout

    done = compose("run", "--rm", "-T", "cron", "python", "manage.py", "jobs")

    assert "starview-archive-audit-logs" in done.stdout
    assert compose("logs", "page").stdout.count("Tables are up") == before.count(
        "Tables are up"
    )


def test_a_fake_of_ses_that_was_started_anew_lets_the_sender_send() -> None:
    compose("restart", "--timeout", "1", "ses")
    compose("up", "-d", "--wait", "ses")

    done = run_once(
        *("python", "manage.py", "cleanup_email_suppressions"),
        "--email-report=admin@example.com",
    )

    assert done.returncode == 0, done.stdout
    assert page("/mails/").count("E-mail health") > 0


def test_two_builds_have_the_same_files(tmp_path: Path) -> None:
    """Their times differ, unless an exporter rewrites them (docs/security.md)."""
    bundle = os.environ.get("CA_BUNDLE", "demo/no-ca-bundle.pem")
    options = ("--no-cache", "-q", f"--secret=id=ca-bundle,src={bundle}")

    def built() -> set[tuple[object, ...]]:
        done = docker("build", *options, "-f", "Dockerfile.cron", ".")
        image = done.stdout.split()[-1]
        found = files(image, tmp_path / "files")
        docker("image", "rm", image)
        return found

    first, second = built(), built()

    assert len(first) > 10_000
    assert first == second


def files(image: str, archive: Path) -> set[tuple[object, ...]]:
    """Each file's name, rights, owner and contents."""
    container = docker("create", image).stdout.split()[-1]
    docker("export", f"--output={archive}", container)
    docker("rm", container)
    with tarfile.open(archive) as tar:
        return {
            (
                *(member.name, member.mode, member.uid, member.gid, member.linkname),
                hashlib.sha256(body.read()).digest() if body else b"",
            )
            for member in tar
            for body in [tar.extractfile(member) if member.isreg() else None]
        }


def test_the_label_has_the_version() -> None:
    labels = json.loads(
        docker("inspect", "-f", "{{json .Config.Labels}}", IMAGE).stdout
    )

    assert labels["org.opencontainers.image.version"] == starview.__version__
    assert labels["org.opencontainers.image.title"] == IMAGE


def test_the_first_thing_typed_explains_itself() -> None:
    done = docker("run", "--rm", IMAGE, "--help")

    assert "no arguments     run the schedule" in done.stdout


def test_a_command_explains_itself_without_any_variable() -> None:
    done = docker(
        *("run", "--rm", IMAGE),
        *("python", "manage.py", "cleanup_unverified_users", "--help"),
    )

    assert "never verified an address" in " ".join(done.stdout.split())


OF_EVERY_COMMAND = ["DJANGO_SECRET_KEY", "DATABASE_URL", "ALLOWED_HOSTS"]
OF_THE_WORKER = [
    *OF_EVERY_COMMAND,
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "CLOUDFLARE_ACCOUNT_ID"),
    *("AWS_SES_ACCESS_KEY_ID", "AWS_SES_SECRET_ACCESS_KEY"),
]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ([], OF_THE_WORKER),
        (["python", "manage.py", "clearsessions"], OF_EVERY_COMMAND),
    ],
    ids=["the worker", "a command"],
)
def test_missing_variables_are_all_named_at_once(
    command: list[str], names: list[str]
) -> None:
    done = docker("run", "--rm", IMAGE, *command, check=False)

    assert done.returncode == 1
    missing = re.findall(r"- (\w+) is required but not set", done.stdout)
    assert sorted(missing) == sorted(names)
    assert "Traceback" not in done.stdout


def test_the_schedule_does_not_start_with_the_mail_variables_missing() -> None:
    done = run_once(AWS_SES_SECRET_ACCESS_KEY="", AWS_SES_ACCESS_KEY_ID="")

    assert done.returncode == 1
    assert "AWS_SES_SECRET_ACCESS_KEY is required but not set" in done.stdout
    assert "AWS_SES_ACCESS_KEY_ID is required but not set" in done.stdout


def test_a_one_off_command_asks_only_for_what_it_uses() -> None:
    done = run_once(
        *("python", "manage.py", "cleanup_unverified_users", "--dry-run"),
        AWS_SES_ACCESS_KEY_ID="",
        AWS_ACCESS_KEY_ID="",
    )

    assert done.returncode == 0, done.stdout
    assert "unverified user(s) older than 7 days:" in done.stdout


# All that the web service's Environment tab holds, and nothing else.
OF_THE_WEB_SERVICE = {
    "DJANGO_SECRET_KEY": "x1y2z3" * 10,
    "DEBUG": "False",
    "TESTING": "False",
    "ALLOWED_HOSTS": "starview.app,www.starview.app",
    "CSRF_TRUSTED_ORIGINS": "https://starview.app",
    "CORS_ALLOWED_ORIGINS": "https://starview.app",
    "DB_ENGINE": "postgresql",
    "DB_HOST": "127.0.0.1",
    "DB_PORT": "5432",
    "DB_NAME": "starview",
    "DB_USER": "starview",
    "DB_PASSWORD": "only-for-compose",
    "REDIS_URL": "redis://redis:6379/1",
    "CELERY_ENABLED": "True",
    "USE_R2_STORAGE": "True",
    "AWS_ACCESS_KEY_ID": "r2-key",
    "AWS_SECRET_ACCESS_KEY": "r2-secret",
    "CLOUDFLARE_ACCOUNT_ID": "0123456789abcdef0123456789abcdef",
    "R2_PUBLIC_URL": "https://media.starview.app",
    "AUDIT_R2_ACCESS_KEY_ID": "audit-key",
    "AUDIT_R2_SECRET_ACCESS_KEY": "audit-secret",
    "AWS_SES_ACCESS_KEY_ID": "ses-key",
    "AWS_SES_SECRET_ACCESS_KEY": "ses-secret",
    "AWS_SES_REGION_NAME": "us-east-2",
    "GOOGLE_OAUTH_CLIENT_ID": "client.apps.googleusercontent.com",
    "GOOGLE_OAUTH_CLIENT_SECRET": "google-secret",
    "MAPBOX_TOKEN": "pk.mapbox",
    "OPENROUTESERVICE_API_KEY": "route-key",
    "GEMINI_API_KEY": "gemini-key",
    "TILE_SERVER_URL": "https://tiles.starview.app",
    "DISABLE_EXTERNAL_APIS": "False",
}


def test_the_web_services_own_variables_start_the_schedule() -> None:
    # In the network of the database: it is 127.0.0.1, where no TLS is asked for.
    network = "container:" + compose("ps", "-q", "postgres").stdout.strip()
    variables = [f"--env={name}={value}" for name, value in OF_THE_WEB_SERVICE.items()]
    name = f"{PROJECT}-web-service"
    try:
        docker("run", "-d", "--name", name, "--network", network, *variables, IMAGE)
        wait_for_log(name, "read crontab")
        check = docker(
            *("exec", name, "python", "manage.py"),
            *("check", "--deploy", "--fail-level=WARNING"),
        )
    finally:
        docker("rm", "-f", name, check=False)
    assert "no issues" in check.stdout


def test_what_it_is_made_of_is_listed() -> None:
    done = subprocess.run(
        [sys.executable, ".ci/sbom.py"], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    listed = json.loads((ROOT / ".sbom" / f"{IMAGE}.cdx.json").read_text())
    names = {part["purl"].partition("@")[0] for part in listed["components"]}
    assert names >= {
        *("pkg:pypi/django", "pkg:pypi/boto3", "pkg:deb/debian/libpq5"),
        *("pkg:deb/debian/supercronic", "pkg:deb/debian/postgresql-client-17"),
    }


def size_mb(image: str) -> float:
    return int(docker("inspect", "-f", "{{.Size}}", image).stdout) / 1e6


def test_it_adds_no_more_than_120_mb_to_its_base() -> None:
    assert size_mb(IMAGE) - size_mb("debian:trixie-slim") < 120


def test_it_has_no_compiler_no_pip_no_tests_and_no_program_that_becomes_root() -> None:
    script = (
        "command -v gcc cc pip pip3; ls /app/tests /app/demo;"
        " find / -xdev -perm /6000 -type f; true"
    )
    done = run_once("sh", "-c", f"{{ {script}; }} 2>/dev/null; echo end")

    assert done.stdout.splitlines()[-1:] == ["end"]
    assert re.findall("^/.*", done.stdout, re.MULTILINE) == []


def test_it_runs_as_an_ordinary_user_on_a_read_only_root() -> None:
    # Of two streams the lines may change places.
    script = "exec 2>&1; id -u; touch /app/file; touch /tmp/file && echo yes"
    done = run_once("sh", "-c", script)

    user, refusal, temporary = done.stdout.splitlines()[-3:]
    assert user == "10001"
    assert "Read-only file system" in refusal
    assert temporary == "yes"


def test_it_works_as_any_other_user() -> None:
    done = compose(
        *("run", "--rm", "-T", "--no-deps", "--user=54321:54321", "cron"),
        *("python", "manage.py", "cleanup_unverified_users", "--dry-run"),
    )

    assert "unverified user(s) older than 7 days:" in done.stdout


def test_waiting_for_the_next_time_takes_no_more_than_25_mb(tmp_path: Path) -> None:
    line = "JOB=idle timeout -k 60 1h python manage.py clearsessions"
    with scheduled(tmp_path / "crontab", line, times="0 0 29 2 *") as name:
        wait_for_log(name, "read crontab")
        stats = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name)

    used, unit = re.findall(r"^([\d.]+)(\w+) /", stats.stdout)[0]
    assert (float(used) < 25, unit) == (True, "MiB")


def test_a_one_off_command_runs_and_hands_on_its_exit_code() -> None:
    done = run_once("python", "manage.py", "cleanup_unverified_users", "--days=0")

    assert done.returncode == 2
    assert "'0' is not a whole number of days" in done.stdout


def test_what_the_shell_reads_may_come_from_a_file_too() -> None:
    done = run_once(
        *("sh", "-c", 'echo "address: $ADMIN_EMAIL"'),
        ADMIN_EMAIL="",
        ADMIN_EMAIL_FILE="/etc/debian_version",
    )

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("address: 13")


def test_a_command_that_is_not_there_is_said_in_the_format_of_the_log() -> None:
    done = run_once("nosuch", LOG_FORMAT="json")

    assert done.returncode == 127
    (line,) = [text for text in done.stdout.splitlines() if "nosuch" in text]
    record = json.loads(line)
    assert record["line"].startswith("error: no such command: nosuch")


RESTORE = (
    *("python", "manage.py", "restore_audit_logs"),
    *("--from=2000-01-01", "--to=2100-01-01"),
)


def test_archives_reach_the_bucket_and_leave_the_table() -> None:
    due = "SELECT count(*) FROM starview_app_auditlog WHERE timestamp < now() - '30 d'"
    run_once(*RESTORE)  # the set-up has archived them
    before = int(psql(f"{due}::interval"))

    done = run_once("python", "manage.py", "archive_audit_logs", "--days=30")

    assert before > 0
    assert done.returncode == 0, done.stdout
    assert f"Archived {before} audit logs" in done.stdout
    assert psql(f"{due}::interval") == "0"


def test_archives_are_verified_and_restored_from_the_bucket() -> None:
    due = "SELECT count(*) FROM starview_app_auditlog WHERE timestamp < now() - '30 d'"
    archived = run_once("python", "manage.py", "archive_audit_logs", "--days=30")
    held = int(psql(f"{due}::interval"))

    verified = run_once("python", "manage.py", "verify_audit_archives")
    restored = run_once(*RESTORE)

    assert archived.returncode == 0, archived.stdout
    assert verified.returncode == 0, verified.stdout
    assert "missing: 0, changed: 0, not in any manifest: 0" in verified.stdout
    assert restored.returncode == 0, restored.stdout
    assert held == 0
    assert int(psql(f"{due}::interval")) > 0


def test_the_images_own_programs_back_the_database_up_prove_and_restore_it() -> None:
    backup = ("python", "manage.py", "backup_database")

    made = run_once(*backup)
    proved = run_once(*backup, "--drill")
    psql("CREATE DATABASE restored")
    restored = run_once(
        *("python", "manage.py", "restore_database", "newest", "--into=restored")
    )

    assert made.returncode == 0, made.stdout
    assert "Read back and equal: SHA-256 " in made.stdout
    assert proved.returncode == 0, proved.stdout
    assert "Proved: restored and compared" in proved.stdout
    assert restored.returncode == 0, restored.stdout
    assert "Restored into restored and compared" in restored.stdout
    left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'starview_drill_%'"
    assert psql(left) == "0"


def test_an_encrypted_backup_passes_through_the_images_own_library() -> None:
    key = run_once(
        *("python", "-c"),
        "import pyrage; print(pyrage.x25519.Identity.generate())",
    ).stdout.split()[-1]
    backup = ("python", "manage.py", "backup_database")

    made = run_once(*backup, BACKUP_ENCRYPTION_KEY=key)
    proved = run_once(*backup, "--drill", BACKUP_ENCRYPTION_KEY=key)

    assert made.returncode == 0, made.stdout
    assert ".dump.age" in made.stdout
    assert proved.returncode == 0, proved.stdout


def test_the_schedule_runs_a_job_and_stops_cleanly(tmp_path: Path) -> None:
    line = "JOB=probe timeout -k 60 1h python manage.py cleanup_unverified_users"
    with scheduled(tmp_path / "crontab", line) as container:
        wait_for_log(container, "job_finished")

        code, seconds = stop(container)

        assert code == 0, logs(container)
        assert seconds < 10
        health = docker("exec", container, "true", check=False)
        assert health.returncode != 0  # it is down


def test_a_stop_reaches_the_running_job_at_once(tmp_path: Path) -> None:
    line = "JOB=probe timeout -k 60 1h python manage.py archive_audit_logs"
    lock = "BEGIN; LOCK TABLE starview_app_auditlog; SELECT pg_sleep(120)"
    client = ["exec", "-T", "-d", "postgres", "psql", "-U", "starview", "-c", lock]
    compose(*client)
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'"
    wait_for(lambda: psql(f"{held} AND granted") != "0")
    try:
        with scheduled(tmp_path / "crontab", line) as container:
            wait_for_log(container, "job_started")

            code, seconds = stop(container)

            # The job waits for a lock: it is told, has 5 s, then its query is ended.
            assert "archive_audit_logs was stopped by SIGTERM" in logs(container), logs(
                container
            )
            assert code == 0
            assert seconds < 15
    finally:
        psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%pg_sleep(120)%' AND pid <> pg_backend_pid()"
        )


def test_a_stop_reaches_a_one_off_command(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "time.sleep(120)\n"
    )
    name = f"{PROJECT}-one-off"
    docker(*("run", "-d", "--name", name, IMAGE, "python", "-c", program))
    try:
        wait_for_log(name, "ready")

        code, seconds = stop(name)

        assert (code, seconds < 5) == (7, True)
    finally:
        docker("rm", "-f", name, check=False)


def test_the_health_check_sees_the_scheduler(tmp_path: Path) -> None:
    check = ("python", "/app/manage.py", "jobs", "health")
    line = "JOB=probe timeout 1h python manage.py run_job clearsessions"
    with scheduled(tmp_path / "crontab", line, "0 0 1 1 *") as container:
        wait_for_log(container, "read crontab")
        alive = docker("exec", container, *check, check=False)
        # What is left when the scheduler hangs or is gone: no process of its name.
        docker("exec", container, "python", "-c", _FREEZE_AND_RENAME)
        dead = docker("exec", container, *check, check=False)

    assert alive.returncode == 0, alive.stdout
    assert "healthy: the scheduler runs; 1 jobs, none overdue" in alive.stdout
    assert dead.returncode == 1, dead.stdout
    assert "the scheduler is dead" in dead.stdout


def test_each_slot_is_run_once_while_one_worker_replaces_another(
    tmp_path: Path,
) -> None:
    """As a deploy of Render: the new worker starts, then the old one is stopped."""
    line = "JOB=probe timeout 50s python manage.py run_job clearsessions"
    runs = "SELECT slot FROM maintenance_jobrun WHERE job = 'probe' ORDER BY id"
    running = runs.replace("'probe'", "'probe' AND outcome = 'running'")
    psql("DELETE FROM maintenance_jobrun WHERE job = 'probe'")
    with scheduled(tmp_path / "a", line, "* * * * *") as old:
        wait_for_log(old, "job_finished")
        with scheduled(tmp_path / "b", line, "* * * * *") as new:
            # Both are awake at this one: one of the two says that it is taken.
            wait_for_log(new, "job succeeded")
            wait_for(lambda: not psql(running))  # it may still be the old one's
            stop(old)
            before = len(psql(runs).splitlines())
            wait_for(lambda: len(psql(runs).splitlines()) > before)
            wait_for(lambda: not psql(running))
            said = logs(old) + logs(new)

    slots = psql(runs).splitlines()
    minutes = {datetime.fromisoformat(slot) for slot in slots}
    assert len(minutes) == len(slots) >= 3
    assert max(minutes) - min(minutes) == timedelta(minutes=len(slots) - 1)
    assert said.count("is taken: run ") >= 1
    assert psql(f"{runs.replace('slot', 'outcome', 1)}") == "\n".join(
        ["succeeded"] * len(slots)
    )


# Stops the scheduler, so that it is there but does nothing.
_FREEZE_AND_RENAME = """
import os, pathlib, signal
for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
    if comm.read_text().strip() == "supercronic":
        os.kill(int(comm.parent.name), signal.SIGSTOP)
"""


def test_every_line_is_json_when_asked(tmp_path: Path) -> None:
    line = "JOB=probe timeout -k 60 1h python manage.py cleanup_unverified_users"
    crontab = tmp_path / "crontab"
    with scheduled(crontab, line, LOG_FORMAT="json", ADMIN_EMAIL="") as container:
        wait_for_log(container, "job_finished")
        code, _ = stop(container)

        records = [json.loads(text) for text in logs(container).splitlines()]

    events = {record.get("event") or record["msg"] for record in records}
    assert {"job_started", "job_finished", "output"} <= events
    assert code == 0


def test_it_waits_a_bounded_time_for_the_database() -> None:
    started = time.monotonic()

    done = run_once(
        *("python", "manage.py", "cleanup_unverified_users"),
        DATABASE_URL="postgresql://u:hidden-word@127.0.0.1:1/none",
        DATABASE_WAIT_SECONDS="2",
    )

    assert done.returncode == 1
    assert time.monotonic() - started < 30
    assert "waiting for the database" in done.stdout
    assert "Connection refused" in done.stdout
    assert "hidden-word" not in done.stdout
    assert "Traceback" not in done.stdout


def test_it_never_makes_tables_by_itself() -> None:
    psql("CREATE DATABASE empty")
    url = "postgresql://starview:only-for-compose@postgres:5432/empty"

    done = run_once("python", "manage.py", "cleanup_unverified_users", DATABASE_URL=url)

    tables = compose(
        *("exec", "-T", "postgres", "psql", "-XAtq", "-U", "starview", "-d", "empty"),
        *("-c", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
    )
    assert done.returncode == 1
    assert "the web service's tables are not in this database" in done.stdout
    assert tables.stdout.strip() == "0"

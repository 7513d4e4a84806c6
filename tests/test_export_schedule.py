"""export_schedule: the committed files are the crontab's, and what they promise."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from starview_app.maintenance.catchup.slots import MISSED_AFTER
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.schedule.crontab import parse_crontab
from starview_app.maintenance.schedule.export import kubernetes, render, systemd
from starview_app.maintenance.schedule.export.lines import ExportError, Line, read_lines
from starview_app.maintenance.schedule.export.platforms import PLATFORMS, as_one_text
from tests.conftest import merged

ROOT = Path(__file__).resolve().parent.parent
CRONTAB = (ROOT / "crontab").read_text(encoding="utf-8")
LINES = read_lines(CRONTAB)
# The one of the trial in docs, and the newest whose schemas are published.
KUBERNETES_VERSIONS = ("1.34", kubernetes_validate.latest_version())


def drifted(platform: str, crontab: str) -> list[str]:
    """The committed files that are not what the export of `crontab` prints."""
    folder = ROOT / PLATFORMS[platform].folder
    files = PLATFORMS[platform].files(crontab)
    # Of a folder of its own each file; besides those of Render there are others.
    of_its_own = folder.name == platform
    committed = {path.name for path in folder.iterdir()} if of_its_own else set()
    return sorted(
        name
        for name in {*files, *committed}
        if not (folder / name).is_file()
        or (folder / name).read_text(encoding="utf-8") != files.get(name)
    )


# -- the committed files -------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_committed_files_are_what_the_export_prints(platform: str) -> None:
    assert drifted(platform, CRONTAB) == [], f"run: make export (for {platform})"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("\n0 2 * * *  ", "\n0 3 * * *  "),
        ("JOB=starview-clear-sessions", "JOB=starview-clear-all-sessions"),
        ("\n#0 6 1 * *  JOB=", "\n0 6 1 * *  JOB="),
    ],
)
def test_of_an_edited_crontab_they_are_not(
    text: str, other: str, platform: str
) -> None:
    assert CRONTAB.count(text) == 1

    assert drifted(platform, CRONTAB.replace(text, other)) != []


@pytest.mark.parametrize("platform", ["kubernetes", "systemd"])
@pytest.mark.parametrize(
    ("text", "other"),
    [("-k 60 6h", "-k 60 5h"), ("-k 60 6h", "-k 90 6h"), ("logs --days=30", "logs")],
)
def test_a_deadline_and_an_option_are_in_what_runs_the_line_itself(
    text: str, other: str, platform: str
) -> None:
    assert drifted(platform, CRONTAB.replace(text, other)) != []


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_file_holds_a_secret(platform: str) -> None:
    text = as_one_text(PLATFORMS[platform].files(CRONTAB))

    assert not re.search(r"(SECRET|KEY|PASSWORD|TOKEN|DSN)\w*: *\S", text)
    assert not re.search(r"://[^\s/]*:[^\s/]*@", text)


# -- Render --------------------------------------------------------------------------

CRON_BLUEPRINT = yaml.safe_load((ROOT / "deploy" / "render-cron.yaml").read_text())
# The guide's Quick Reference: name, start command, schedule.
QUICK_REFERENCE = """
starview-cleanup-unverified-users
python manage.py cleanup_unverified_users --days=7
0 2 * * *
starview-cleanup-email-suppressions
python manage.py cleanup_email_suppressions --email-report YOUR-EMAIL@example.com
0 3 * * 0
starview-archive-audit-logs
python manage.py archive_audit_logs --days=30
0 4 1 * *
starview-clear-sessions
python manage.py clearsessions
0 5 * * 0
""".strip().splitlines()


def test_each_cron_job_is_the_guides() -> None:
    found = [
        word
        for job in CRON_BLUEPRINT["services"]
        for word in (job["name"], job["startCommand"], job["schedule"])
    ]
    # The address is no part of a repository.
    ours = [word.replace('"$ADMIN_EMAIL"', "YOUR-EMAIL@example.com") for word in found]

    assert ours == [
        *QUICK_REFERENCE,
        *("starview-catch-up", "python manage.py catch_up", "*/10 * * * *"),
    ]


def test_a_cron_job_has_the_fields_that_render_knows_and_nothing_of_its_own() -> None:
    assert set(CRON_BLUEPRINT) == {"services"}
    for job in CRON_BLUEPRINT["services"]:
        assert job == {
            "type": "cron",
            "name": job["name"],
            "runtime": "python",
            "region": "oregon",
            "branch": "main",
            "plan": "starter",
            "autoDeployTrigger": "commit",
            "buildCommand": "./build-cron.sh",
            "startCommand": job["startCommand"],
            "schedule": job["schedule"],
            "envVars": [
                {"key": "JOB", "value": job["name"]},
                {"fromGroup": "starview-shared"},
            ],
        }


def test_the_worker_has_only_fields_that_render_knows() -> None:
    blueprint = yaml.safe_load((ROOT / "render.yaml").read_text())
    (worker,) = [s for s in blueprint["services"] if s["type"] == "worker"]
    (redis,) = [s for s in blueprint["services"] if s["type"] == "keyvalue"]

    assert set(blueprint) == {"services", "databases", "envVarGroups"}
    assert set(worker) == {
        *("type", "name", "runtime", "dockerfilePath", "plan", "region", "branch"),
        *("autoDeployTrigger", "numInstances", "maxShutdownDelaySeconds", "envVars"),
    }
    assert set(redis) == {
        *("type", "name", "plan", "region", "maxmemoryPolicy", "ipAllowList"),
    }
    assert [set(database) for database in blueprint["databases"]] == [
        {"name", "plan", "region", "postgresMajorVersion", "ipAllowList"}
    ]


@pytest.mark.parametrize(("kill_after", "seconds"), [(5, 30), (60, 60), (900, 300)])
def test_the_worker_may_take_as_long_to_stop_as_its_most_patient_line(
    kill_after: int, seconds: int
) -> None:
    crontab = CRONTAB.replace("-k 60", "-k 5").replace("-k 5 6h", f"-k {kill_after} 6h")
    crontab = crontab.replace("python manage.py catch_up", "python manage.py run_job x")
    jobs = [job for job in parse_crontab(crontab)[0] if job.kill_after_seconds]

    files = render.worker([Line(job, []) for job in jobs])

    (worker, _) = yaml.safe_load(files["render.yaml"])["services"]
    assert worker["maxShutdownDelaySeconds"] == seconds


# -- Kubernetes ----------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    text = as_one_text(PLATFORMS["kubernetes"].files(CRONTAB))
    return list(yaml.safe_load_all(text))


MANIFESTS = manifests()
CRON_JOBS = [each for each in MANIFESTS if each["kind"] == "CronJob"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_each_manifest_is_what_kubernetes_has_published(
    manifest: dict[str, Any], version: str
) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_shared_archive_is_the_pod_of_the_schedule_with_another_command(
    version: str,
) -> None:
    job = yaml.safe_load((ROOT / "deploy" / "archive-job.yaml").read_text())
    (archive,) = (
        each["spec"]["jobTemplate"]["spec"]["template"]
        for each in CRON_JOBS
        if each["metadata"]["name"] == "starview-archive-audit-logs"
    )
    pod = job["spec"]["template"]

    kubernetes_validate.validate(job, version, strict=True)
    (container,), (scheduled,) = (
        pod["spec"]["containers"],
        archive["spec"]["containers"],
    )
    assert container["args"][-1] == "--workers=1"
    # `kubectl create` makes it anew each time.
    assert job["metadata"]["generateName"] == "starview-archive-shared-"
    assert "name" not in job["metadata"]
    for name in ("args", "resources"):
        container[name] = scheduled[name]
    assert pod == archive


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    wrong = {**CRON_JOBS[0], "spec": {**CRON_JOBS[0]["spec"], "timezone": "Etc/UTC"}}

    with pytest.raises(kubernetes_validate.ValidationError, match="timezone"):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_there_is_a_cron_job_for_each_line() -> None:
    found = [(each["metadata"]["name"], each["spec"]["schedule"]) for each in CRON_JOBS]

    assert found == [(line.name, line.job.times) for line in LINES]


@pytest.mark.parametrize(
    "cron_job", CRON_JOBS, ids=lambda each: each["metadata"]["name"]
)
def test_a_cron_job_leaves_to_the_runner_what_is_the_runners(
    cron_job: dict[str, Any],
) -> None:
    spec = cron_job["spec"]
    job = spec["jobTemplate"]["spec"]

    assert spec["timeZone"] == "Etc/UTC"
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == MISSED_AFTER.total_seconds()
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    "cron_job", CRON_JOBS, ids=lambda each: each["metadata"]["name"]
)
def test_a_pod_has_no_right_that_it_does_not_need(cron_job: dict[str, Any]) -> None:
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]
    assert {"memory"} <= set(container["resources"]["limits"])
    assert "env" not in container  # all variables are somewhere else
    assert container["envFrom"] == [
        {"configMapRef": {"name": "starview-maintenance"}},
        {"secretRef": {"name": "starview-maintenance"}},
    ]


def test_the_deadline_of_a_job_comes_after_that_of_its_line() -> None:
    deadlines = {
        each["metadata"]["name"]: each["spec"]["jobTemplate"]["spec"].get(
            "activeDeadlineSeconds"
        )
        for each in CRON_JOBS
    }

    hour = 3600
    assert deadlines == {
        "starview-cleanup-unverified-users": hour + 60 + 300,
        "starview-cleanup-email-suppressions": hour / 2 + 60 + 300,
        "starview-archive-audit-logs": 6 * hour + 60 + 300,
        "starview-clear-sessions": hour / 2 + 60 + 300,
        "starview-catch-up": None,  # each run that it starts keeps its own
    }


def test_a_late_start_is_never_that_of_the_next_time() -> None:
    ((job,), _) = parse_crontab("*/2 * * * *  JOB=x timeout 1 python manage.py x")

    assert kubernetes.CronJob(Line(job, [])).latest_start_seconds == 120


@pytest.mark.parametrize("name", ["a_b", "-a", "1a", "a-"])
def test_a_name_that_kubernetes_does_not_take_is_refused(name: str) -> None:
    ((job,), _) = parse_crontab(f"0 2 * * *  JOB={name} timeout 1 python manage.py x")

    with pytest.raises(ExportError, match=f"line 1: {name} is no name for Kubernetes"):
        kubernetes.CronJob(Line(job, []))


def test_what_the_network_policy_lets_out() -> None:
    (policy,) = [each for each in MANIFESTS if each["kind"] == "NetworkPolicy"]
    spec = policy["spec"]
    labels = {"app.kubernetes.io/name": "starview-maintenance"}
    ports = [port["port"] for rule in spec["egress"] for port in rule["ports"]]

    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == []
    assert ports == [53, 53, 5432, 6379, 443]
    assert spec["podSelector"] == {"matchLabels": labels}
    for each in CRON_JOBS:
        template = each["spec"]["jobTemplate"]["spec"]["template"]
        assert template["metadata"]["labels"] == labels


def test_kustomize_is_given_every_manifest() -> None:
    folder = ROOT / "deploy" / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())

    assert [*kustomization["resources"], "kustomization.yaml"] == sorted(
        path.name for path in folder.iterdir() if path.name != "kustomization.yaml"
    ) + ["kustomization.yaml"]
    assert {image["name"] for image in kustomization["images"]} == {"starview-cron"}


# -- systemd -------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    program = shutil.which("systemd-analyze")
    if not program:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is not installed", pytrace=False)
        pytest.skip("systemd-analyze is not installed")
    units = sorted((ROOT / "deploy" / "systemd").iterdir())

    done = subprocess.run(
        [program, "verify", "--man=no", *map(str, units)],
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_unit_ends_after_its_lines_own_deadline() -> None:
    files = PLATFORMS["systemd"].files(CRONTAB)
    limits = {
        name.removesuffix(".service"): re.findall(r"(?m)^RuntimeMaxSec=(\d+)", text)
        for name, text in files.items()
        if name.endswith(".service")
    }

    assert limits["starview-archive-audit-logs"] == [str(6 * 3600 + 60 + 60)]
    assert limits["starview-catch-up"] == []


def test_a_timer_makes_up_for_nothing() -> None:
    files = PLATFORMS["systemd"].files(CRONTAB)
    timers = [text for name, text in files.items() if name.endswith(".timer")]

    assert len(timers) == len(LINES)
    assert all("\nPersistent=false\n" in text for text in timers)


# -- what is started -----------------------------------------------------------------

ODD_LINE = (
    "0 2 * * *  JOB=no timeout 1 python manage.py x"
    r""" 'a: b #c $(X) %d {{ x }} "\' "$X y" ${X}"""
)


@pytest.fixture
def odd_line() -> Line:
    ((job,), _) = parse_crontab(ODD_LINE)
    return Line(job, ["# {{ comment }} %s"])


def test_in_yaml_the_line_is_the_lines_text(odd_line: Line) -> None:
    command = odd_line.command

    (cron,) = yaml.safe_load(render.cron_jobs([odd_line])["render-cron.yaml"])[
        "services"
    ]
    text = kubernetes.cron_jobs([odd_line])["cronjobs.yaml"]
    job = yaml.safe_load(text)
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]

    assert cron["name"] == job["metadata"]["name"] == "no"
    assert cron["startCommand"] == command[command.index("python") :]
    # Kubernetes makes $( of $$(.
    shell_command = container["args"][2].replace("$$(", "$(")
    assert container["args"][:2] == ["/bin/sh", "-c"]
    assert shell_command == f"exec env {command}"


def test_in_a_unit_the_line_is_the_lines_text(odd_line: Line) -> None:
    service = systemd.units([odd_line])["no.service"]

    (quoted,) = re.findall(r"(?m)^ExecStart=/bin/sh -c '(.*)'$", service)
    unquoted = re.sub(r"\\(.)", r"\1", quoted)
    started = unquoted.replace("%%", "%").replace("$$", "$")
    assert started == f"exec env {odd_line.command}"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("platform", ["render-cron", "kubernetes", "systemd"])
def test_what_a_platform_starts_is_the_run_of_its_time(
    platform: str, test_environment: dict[str, str]
) -> None:
    (line, *_) = LINES
    environment = {"JOB": line.name} if platform == "render-cron" else {}
    command = {
        "render-cron": line.bare_command,
        "kubernetes": kubernetes.CronJob(line).shell_command,
        "systemd": shlex.split(systemd.Unit(line).shell_command)[0],
    }[platform]

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env=merged(test_environment, {**environment, "PATH": path}),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    run = JobRun.objects.get()
    assert (run.job, run.trigger, run.outcome) == (line.name, "schedule", "succeeded")
    assert run.slot == line.job.last_due(run.started_at)


# -- the command ---------------------------------------------------------------------


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on a machine that has nothing configured."""
    return subprocess.run(
        [sys.executable, "manage.py", "export_schedule", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("platform", PLATFORMS)
def test_it_needs_no_variable_and_no_database(platform: str) -> None:
    done = export(platform)

    expected = as_one_text(PLATFORMS[platform].files(CRONTAB))
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_it_writes_the_files_of_a_crontab_into_a_folder(tmp_path: Path) -> None:
    crontab, folder = tmp_path / "crontab", tmp_path / "new" / "units"
    crontab.write_text(CRONTAB.replace("0 2 * * *", "0 3 * * *"))

    done = export("systemd", "--crontab", str(crontab), "--output", str(folder))

    assert (done.returncode, done.stdout) == (0, f"10 files in {folder}\n")
    timer = folder / "starview-cleanup-unverified-users.timer"
    assert "\nOnCalendar=*-*-* 03:00:00 UTC\n" in timer.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["nomad"], 2, "invalid choice: 'nomad'"),
        (["systemd", "--out=x"], 2, "unrecognized arguments: --out=x"),
        (["systemd", "--crontab=/nosuch"], 1, "cannot read /nosuch: "),
        (["systemd", "--output=/dev/null/x"], 1, "cannot write /dev/null/x: "),
    ],
)
def test_what_it_cannot_do_is_one_line(
    arguments: list[str], code: int, error: str
) -> None:
    done = export(*arguments)

    assert done.returncode == code
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("platform", "line", "error"),
    [
        (
            "systemd",
            "0 2 * * *  JOB=x timeout 1h python manage.py nosuch",
            "crontab line 2: unknown command 'nosuch' HINT: `manage.py help`",
        ),
        (
            "kubernetes",
            "0 2 L * *  JOB=x timeout 1h python manage.py run_job clearsessions",
            "crontab line 2: x is due on 'L', which Kubernetes does not know HINT: ",
        ),
    ],
)
def test_a_crontab_that_cannot_be_exported_is_told_with_its_fix(
    platform: str, line: str, error: str, tmp_path: Path
) -> None:
    crontab = tmp_path / "crontab"
    catch_up = "*/10 * * * *  JOB=starview-catch-up python manage.py catch_up"
    crontab.write_text(f"{catch_up}\n{line}\n")

    done = export(platform, f"--crontab={crontab}")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"CommandError: {error}")
    assert len(done.stderr.splitlines()) == 1

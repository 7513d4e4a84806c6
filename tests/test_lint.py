"""The crontab's mistakes: all of them at once, each with its line and its fix."""

import re
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands

from starview_app.maintenance.schedule.lint import (
    MANUAL,
    Finding,
    lint,
)
from tests.conftest import ROOT

CATCH_UP = "*/10 * * * *  JOB=starview-catch-up python manage.py catch_up\n"
ARCHIVE = "python manage.py archive_audit_logs --days=30"
DAILY = "0 2 * * *  JOB=starview-x timeout -k 60 1h"


def findings(line: str) -> list[str]:
    """What is wrong with `line`, in a crontab that is good otherwise."""
    found = lint(f"{CATCH_UP}{line}\n")
    assert {each.line for each in found} <= {2}
    assert all(each.fix for each in found)
    return [each.text for each in found]


# -- what is good --------------------------------------------------------------------


def test_the_crontab_of_the_project_has_no_mistake() -> None:
    assert lint((ROOT / "crontab").read_text()) == []


def test_nor_has_it_with_the_lines_that_are_commented_out() -> None:
    text = re.sub(r"(?m)^#(?=[\d*])", "", (ROOT / "crontab").read_text())

    assert text.count("\n0 6 1 * *  JOB=starview-cleanup-audit-archives") == 1
    assert lint(text) == []


@pytest.mark.parametrize(
    "line",
    [
        f"{DAILY} {ARCHIVE}",
        f"{DAILY} python manage.py run_job archive_audit_logs --days=30",
        f"{DAILY} python manage.py run_job clearsessions -v 2",
        "0 * * * *  JOB=x timeout 59m python manage.py cleanup_unverified_users",
        "NAME=value",
        "# 61 * * * * nothing",
    ],
)
def test_a_good_line_has_no_finding(line: str) -> None:
    assert findings(line) == []
    assert lint(f"{CATCH_UP}{line}") == []  # nor does the file need a last line feed


# -- times ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text", "fix"),
    [
        (f"61 * * * *  JOB=x timeout 1 {ARCHIVE}", "bad minute", "write minute, hour"),
        (
            f"* * * * */9  JOB=x timeout 1 {ARCHIVE}",
            "the step of '*/9'",
            "write minute",
        ),
        (f"@daily  JOB=x timeout 1 {ARCHIVE}", "not a line that can be", "write it as"),
        (f"0 2 31 6 *  JOB=x timeout 1 {ARCHIVE}", "never comes", "write minute"),
        (f"0 2 * * * 2027 JOB=x timeout 1 {ARCHIVE}", "not a line that", "write it as"),
        ("NAME=", "panic", 'write NAME=""'),
        ("JOB=x", "would name all jobs", "in front of the command"),
        ("SHELL=/bin/bash", "runs in /bin/sh", "/bin/sh"),
        ("CRON_TZ=Europe/Berlin", "all times are UTC", "write CRON_TZ=UTC"),
        ("0 2 * * *", "no command after the times", "write it as"),
        ("0\u00a02 * * *  cmd", "invisible character U+00A0", "plain blanks"),
        ("# " + "x" * 65_536, "longer than 64 KiB", "write a script"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_fix(
    line: str, text: str, fix: str
) -> None:
    (found,) = lint(f"{CATCH_UP}{line}\n")

    assert found.line == 2
    assert text in found.text
    assert fix in found.fix


def test_behind_bad_times_the_rest_of_the_line_is_read_as_well() -> None:
    assert findings("61 2 * * *  JOB=x python manage.py nosuch") == [
        "bad times: bad minute: '61'",
        "no time limit",
        "unknown command 'nosuch'",
    ]


# -- names ---------------------------------------------------------------------------


def test_no_two_lines_have_one_name() -> None:
    line = f"{DAILY} {ARCHIVE}\n"

    assert lint(f"{CATCH_UP}{line}# between\n{line}") == [
        Finding(
            4,
            "JOB=starview-x is the name of line 2 already",
            "give each line a name of its own",
        )
    ]


# -- time limits ---------------------------------------------------------------------


@pytest.mark.parametrize("timeout", ["", "timeout 0 "])
def test_a_job_needs_a_time_limit(timeout: str) -> None:
    assert findings(f"0 2 * * *  JOB=x {timeout}{ARCHIVE}") == ["no time limit"]


@pytest.mark.parametrize(
    ("times", "timeout", "text"),
    [
        ("*/10 * * * *", "9.9m", None),
        ("*/10 * * * *", "600", "it may take 10 minutes, but is due again after 10"),
        ("0 2,3 * * *", "90m", "it may take 90 minutes, but is due again after 1 hour"),
        ("0 4 1 * *", "27d", None),
        ("0 4 1 * *", "28d", "it may take 28 days, but is due again after 28 days"),
        ("* * * * *", "1.5m", "it may take 90 seconds, but is due again after 1 min"),
    ],
)
def test_a_job_has_ended_before_it_is_due_again(
    times: str, timeout: str, text: str | None
) -> None:
    found = findings(f"{times}  JOB=x timeout {timeout} {ARCHIVE}")

    assert [each.startswith(text or "") for each in found] == ([True] if text else [])


def test_catch_up_has_no_time_limit_of_its_own() -> None:
    (found,) = lint(CATCH_UP.replace("python", "timeout 1h python"))

    assert found.text.startswith("`timeout` in front of catch_up would stop the runs")
    assert found.fix == "take the `timeout` away"


@pytest.mark.parametrize("times", ["0 0 1 1 *", "0 3 * * *", "0 */2 * * *"])
def test_catch_up_that_comes_too_seldom_is_told(times: str) -> None:
    (found,) = lint(CATCH_UP.replace("*/10 * * * *", times))

    assert found.text.startswith("catch_up comes less than once an hour")


# -- commands ------------------------------------------------------------------------


def test_an_unknown_command_is_told_with_the_one_that_was_meant() -> None:
    for run_job in ("", "run_job "):
        line = f"{DAILY} python manage.py {run_job}archive_audit_log"

        (found,) = lint(f"{CATCH_UP}{line}\n")

        assert found.text == "unknown command 'archive_audit_log'"
        assert found.fix == "did you mean archive_audit_logs?"


@pytest.mark.parametrize("name", MANUAL)
@pytest.mark.parametrize("run_job", ["", "run_job "])
def test_the_guides_manual_commands_are_not_scheduled(name: str, run_job: str) -> None:
    (found,) = findings(f"{DAILY} python manage.py {run_job}{name}")

    assert found.startswith(f"{name} is run by hand, not on a schedule: ")


@pytest.mark.parametrize("run_job", ["", "run_job "])
def test_nothing_is_only_tried_on_a_schedule(run_job: str) -> None:
    (found,) = findings(f"{DAILY} python manage.py {run_job}{ARCHIVE[17:]} --dry-run")

    assert found.endswith("on a schedule: the work would never be done")


def test_a_report_that_is_only_printed_is_not_scheduled() -> None:
    (found,) = findings(f"{DAILY} python manage.py cleanup_email_suppressions --report")

    assert found.endswith("--report on a schedule: the work would never be done")


def test_a_command_that_is_not_ours_goes_through_run_job() -> None:
    (found,) = lint(f"{CATCH_UP}{DAILY} python manage.py showmigrations\n")

    assert "showmigrations is not run by the runner" in found.text
    assert found.fix == "write `python manage.py run_job showmigrations`"


@pytest.mark.parametrize(
    "line",
    [
        "0 2 * * *  JOB=x true",
        f"0 2 * * *  JOB=x nice -n 19 {ARCHIVE}",
        f"0 2 * * *  JOB=x root timeout -k 60 1h {ARCHIVE}",
        f"0 2 * * *  timeout 1h {ARCHIVE}",
        f"{DAILY} {ARCHIVE} 'a",
    ],
)
def test_a_line_that_is_not_of_the_one_form_is_told_with_the_form(line: str) -> None:
    (found,) = lint(f"{CATCH_UP}{line}\n")

    assert found.text == "not a line that can be recorded, repeated and reported"
    assert "JOB=starview-NAME timeout -k 60 1h python manage.py COMMAND" in found.fix


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("run_job", "names no command"),
        ("run_job --help", "names no command"),
        ("--help", "names no command"),
        ("run_job run_job clearsessions", "unknown command 'run_job'"),
    ],
)
def test_run_job_needs_the_name_of_a_command(command: str, text: str) -> None:
    assert findings(f"{DAILY} python manage.py {command}") == [text]


def test_a_command_that_cannot_be_loaded_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(get_commands(), "broken", "tests.no_such_app")

    (found,) = findings(f"{DAILY} python manage.py run_job broken")

    assert found.startswith("broken cannot be loaded: ModuleNotFoundError: ")


# -- options -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("archive_audit_logs --nosuch", "unrecognized arguments: --nosuch"),
        ("archive_audit_logs 30", "unrecognized arguments: 30"),
        ("archive_audit_logs --days", "argument --days: expected one argument"),
        ("archive_audit_logs --days=0", "argument --days: '0' is not a whole number"),
        ("archive_audit_logs --help", "--help and --version run nothing"),
        ("run_job clearsessions --days=7", "unrecognized arguments: --days=7"),
        ("run_job clearsessions -v 9", "argument -v/--verbosity: invalid choice: 9"),
    ],
)
def test_options_that_the_command_refuses_are_told_in_its_words(
    command: str, reason: str
) -> None:
    (found,) = findings(f"{DAILY} python manage.py {command}")

    name = command.removeprefix("run_job ").partition(" ")[0]
    assert found.startswith(f"{name}: {reason}")


@pytest.mark.parametrize("value", ["$X_DAYS", '"${X_DAYS}"', '"$X_DAYS"'])
def test_a_variable_that_is_not_set_here_is_taken_for_a_good_value(value: str) -> None:
    line = f"{DAILY} python manage.py archive_audit_logs --days={value}"

    assert findings(line) == []
    assert findings(f"{line} --nosuch") == [
        "archive_audit_logs: unrecognized arguments: --nosuch"
    ]


def test_a_variable_that_is_set_has_its_value_and_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = f'{DAILY} python manage.py archive_audit_logs --days="$X_DAYS"'
    monkeypatch.setenv("X_DAYS", "30")
    good = findings(line)
    monkeypatch.setenv("X_DAYS", "perhaps-a-secret")

    (bad,) = findings(line)

    assert good == []
    assert "argument --days: '$X_DAYS' is not a whole number" in bad


# -- the file as a whole -------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "CRON_TZ=UTC\n"])
def test_a_crontab_without_a_job_is_a_finding(text: str) -> None:
    (found,) = lint(text)

    assert (found.line, found.text) == (0, "the crontab has no job")


def test_without_catch_up_what_was_missed_stays_missed() -> None:
    (found,) = lint(f"{DAILY} {ARCHIVE}\n")

    assert found.line == 0
    assert found.text.startswith("no line runs catch_up")
    assert f"{CATCH_UP.strip()}`" in found.fix
    assert lint(f"{found.fix.removeprefix('add `').strip('`')}\n") == []


def test_catch_up_runs_once_and_by_itself() -> None:
    other = CATCH_UP.replace("JOB=starview-catch-up", "JOB=other")

    assert findings(other.strip()) == ["line 1 runs catch_up already"]
    assert [each.text for each in lint(other.replace("catch_up", "run_job catch_up"))][
        -1:
    ] == ["catch_up starts runs, and is none"]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines() -> None:
    text = "\n".join(
        [
            f"0 2 * * *  JOB=a timeout 1d {ARCHIVE} --nosuch",
            "NAME=",
            "# comment",
            f"61 * * * *  JOB=a timeout 1h {ARCHIVE}",
            f"0 2 * * *  JOB=b {ARCHIVE}",
        ]
    )

    assert [found.line for found in lint(text)] == [0, 1, 1, 2, 4, 4, 5]


def test_a_finding_is_one_line_whatever_the_crontab_holds() -> None:
    (found,) = findings(f"0 2 * * *  JOB=a\x1b[2Jb timeout 1h {ARCHIVE}")

    assert "\x1b" not in found


def test_what_has_no_finding_is_read_by_supercronic(
    supercronic: Path, tmp_path: Path
) -> None:
    path = tmp_path / "crontab"
    path.write_text(f"CRON_TZ=UTC\r\n{CATCH_UP}{DAILY} {ARCHIVE}")

    done = subprocess.run([str(supercronic), "-test", str(path)], capture_output=True)

    assert lint(path.read_bytes().decode()) == []
    assert done.returncode == 0

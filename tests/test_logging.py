"""With LOG_FORMAT=json every line that a process writes is one JSON object."""

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from demo.services import LocalServices
from starview.logging import configure_logging
from starview.output import JsonLines
from tests.conftest import ROOT, Manage, merged

JSON: dict[str, str | None] = {"LOG_FORMAT": "json"}


def objects(text: str) -> list[dict[str, Any]]:
    """Every line as the object that it must be."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(item, dict) for item in found)
    return found


def lines(text: str) -> list[str]:
    return [str(item["line"]) for item in objects(text)]


# -- the stream ----------------------------------------------------------------------


def written(*texts: str | bytes) -> list[str]:
    stream = JsonLines("stdout")
    parts = [text.encode() if isinstance(text, str) else text for text in texts]
    data = b"".join(map(stream.feed, parts)) + stream.finish()
    return data.decode().split("\n")[:-1]


def test_each_line_is_one_object_that_names_its_stream_and_time() -> None:
    (line,) = written("Found 3 audit logs\n")

    record = json.loads(line)
    moment = datetime.fromisoformat(record.pop("timestamp"))
    assert record == {
        "event": "output",
        "stream": "stdout",
        "line": "Found 3 audit logs",
    }
    assert moment.tzinfo is not None


@pytest.mark.parametrize(
    "texts",
    [("one\ntwo\n",), ("one\n", "two\n"), ("o", "ne\nt", "wo"), ("one", "\n", "two")],
)
def test_lines_are_the_same_however_they_are_written(texts: tuple[str, ...]) -> None:
    assert [json.loads(line)["line"] for line in written(*texts)] == ["one", "two"]


def test_empty_lines_are_dropped() -> None:
    assert written("\n", "  \n", "\n\n") == []


def test_a_line_that_is_an_object_already_passes_unchanged() -> None:
    line = '{"event": "job_started", "é": "\\u2028"}'

    assert written(line + "\n") == [line]


@pytest.mark.parametrize(
    "text",
    ["{not json}", "[1]", "12", '"text"', "{", "null", '{"a": NaN}', '{"a":' * 9999],
    ids=lambda text: text[:9],
)
def test_a_line_that_only_looks_like_json_is_wrapped(text: str) -> None:
    (line,) = written(text + "\n")

    assert json.loads(line)["line"] == text


@pytest.mark.parametrize(
    "text",
    ['say "hi"', "back\\slash", "tab\there", "\x1b[31m", "zoë 🔭", "\x00"],
    ids=ascii,
)
def test_any_character_survives_the_way_into_json(text: str) -> None:
    (line,) = written(text + "\n")

    assert json.loads(line)["line"] == text


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    (line,) = written(b'{"a": "\xff"}\n')

    assert json.loads(line)["line"] == '{"a": "\\xff"}'


def test_a_long_object_passes_unchanged_and_a_line_without_end_in_parts() -> None:
    long = json.dumps({"text": "x" * 200_000})
    assert written(long[:70_000], long[70_000:] + "\n") == [long]

    endless = written(*["x" * 500_000] * 5)
    assert "".join(json.loads(line)["line"] for line in endless) == "x" * 2_500_000


@pytest.mark.parametrize("sign", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_no_character_can_split_a_line_in_two(sign: str) -> None:
    found = written(f'one{sign}{{"event": "forged"}}\n')

    assert len(found) == 1
    assert json.loads(found[0])["event"] == "output"


# -- events --------------------------------------------------------------------------


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was logged; logging is set back after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    former = structlog.get_config()
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**former)


def test_an_event_is_one_object_with_its_values(stderr: Callable[[], str]) -> None:
    configure_logging("json")

    structlog.get_logger("starview_app.test").info("job_finished", found=3, job="x")

    (record,) = objects(stderr())
    assert record.pop("timestamp")
    assert record == {"event": "job_finished", "found": 3, "job": "x", "level": "info"}


def test_a_librarys_record_and_its_traceback_are_one_object(
    stderr: Callable[[], str],
) -> None:
    configure_logging("json")

    try:
        raise ValueError("line one\nline two")
    except ValueError:
        logging.getLogger("botocore").exception("it %s", "broke")

    (record,) = objects(stderr())
    assert (record["event"], record["level"]) == ("it broke", "error")
    assert record["exception"][0]["exc_value"] == "line one\nline two"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_logged_traceback_shows_no_values_of_variables(
    log_format: str, stderr: Callable[[], str]
) -> None:
    configure_logging(log_format)

    try:
        secret_access_key = "hunter" + "2"
        raise ValueError(len(secret_access_key))
    except ValueError:
        logging.getLogger("botocore").exception("it broke")

    text = stderr()
    assert "ValueError" in text
    assert "hunter2" not in text


def test_a_warning_of_a_library_is_logged_and_its_chatter_is_not(
    stderr: Callable[[], str],
) -> None:
    configure_logging("json")

    logging.getLogger("urllib3").info("chatter")
    logging.getLogger("urllib3").warning("warning")

    assert [record["event"] for record in objects(stderr())] == ["warning"]


def test_for_people_an_event_is_one_line_without_colours(
    stderr: Callable[[], str],
) -> None:
    configure_logging("console")

    structlog.get_logger("starview_app.test").info("job_finished", found=3)

    (line,) = stderr().splitlines()
    assert line.endswith("[info] job_finished found=3")
    assert "\x1b" not in line


def test_for_people_an_events_value_stays_on_its_line(
    stderr: Callable[[], str],
) -> None:
    configure_logging("console")

    structlog.get_logger("starview_app.test").info("event", text="a\nb\x1b[2K")

    (line,) = stderr().splitlines()
    assert "\x1b" not in line


# -- a process -----------------------------------------------------------------------


@pytest.mark.django_db
def test_a_run_writes_its_report_and_its_events_as_objects(manage: Manage) -> None:
    done = manage("archive_audit_logs", env=JSON)

    report = lines(done.stdout)
    assert done.returncode == 0
    assert report[0] == "Found 0 audit logs older than 30 days"
    assert report[2:] == ["No audit logs found to archive."]
    started, finished = objects(done.stderr)
    assert started["run_id"] == finished["run_id"]
    assert {key: started[key] for key in ("event", "job", "dry_run")} == {
        "event": "job_started",
        "job": "starview-archive-audit-logs",
        "dry_run": False,
    }
    assert finished["event"] == "job_finished"
    assert (finished["found"], finished["archived"], finished["objects"]) == (0, 0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["archive_audit_logs", "--days=0"], 2, "error: argument --days"),
        (["archive_audit_logs", "--nonsense\udcff"], 2, "unrecognized arguments"),
        (["no_such_command"], 1, "Unknown command: 'no_such_command'"),
        (["archive_audit_logs", "--help"], 0, ""),
    ],
)
def test_what_is_wrong_with_the_command_line_is_an_object(
    arguments: list[str], code: int, text: str, manage: Manage
) -> None:
    done = manage(*arguments, env=JSON)

    assert done.returncode == code
    assert lines(done.stdout + done.stderr)
    assert text in " ".join(lines(done.stderr))


@pytest.mark.django_db
def test_a_failed_run_ends_with_an_object(manage: Manage) -> None:
    done = manage(
        "archive_audit_logs", env={**JSON, "DATABASE_URL": "postgresql://127.0.0.1:9/x"}
    )

    assert done.returncode == 1
    assert "CommandError: database: " in lines(done.stderr)[-1]


@pytest.mark.django_db
def test_wrong_settings_are_objects(manage: Manage) -> None:
    done = manage("archive_audit_logs", env={**JSON, "DJANGO_SECRET_KEY": None})

    assert done.returncode == 1
    assert "DJANGO_SECRET_KEY is required" in " ".join(lines(done.stderr))


@pytest.mark.django_db
def test_a_bugs_traceback_is_objects(
    test_environment: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken_settings.py"
    broken.write_text(
        "from starview.settings import *\nraise ZeroDivisionError('bug')\n"
    )
    environment = merged(
        test_environment,
        {
            **JSON,
            "PYTHONPATH": str(tmp_path),
            "DJANGO_SETTINGS_MODULE": "broken_settings",
        },
    )

    done = run("manage.py", "archive_audit_logs", env=environment)

    text = lines(done.stderr)
    assert done.returncode == 1
    assert text[0] == "Traceback (most recent call last):"
    assert text[-1] == "ZeroDivisionError: bug"


def test_a_missing_module_is_objects_too() -> None:
    environment = {"PATH": os.environ["PATH"], "LOG_FORMAT": "json"}

    done = run("-S", "manage.py", "archive_audit_logs", env=environment)

    assert done.returncode == 1
    assert "No module named 'django'" in " ".join(lines(done.stderr))


@pytest.mark.django_db
def test_the_log_format_can_come_from_a_file_like_every_variable(
    manage: Manage, tmp_path: Path
) -> None:
    path = tmp_path / "format"
    path.write_text("json\n")

    done = manage("archive_audit_logs", env={"LOG_FORMAT_FILE": str(path)})

    assert done.returncode == 0
    assert lines(done.stdout)
    assert objects(done.stderr)


CHILD = r"""
import os, subprocess, sys
subprocess.run(["sh", "-c", "echo {not json}; printf '\\377\\n{}\\n' >&2"])
os.write(2, b'{"a": NaN}\n')
print("no end of line", end="")
"""


@pytest.mark.django_db(transaction=True)
def test_what_the_children_of_a_run_write_is_an_object_too(manage: Manage) -> None:
    done = manage("run_job", "shell", "-v0", "-c", CHILD, env=JSON)

    assert lines(done.stdout) == ["{not json}", "no end of line"]
    events = [record for record in objects(done.stderr) if "line" in record]
    assert [record["line"] for record in events] == ["\\xff", '{"a": NaN}']


@pytest.mark.django_db
def test_for_people_the_report_is_plain_text(manage: Manage) -> None:
    done = manage("archive_audit_logs", env={"LOG_FORMAT": "console"})

    assert done.stdout.startswith("Found 0 audit logs older than 30 days\n")
    assert len(done.stderr.splitlines()) == 2
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.django_db
def test_the_report_precedes_the_end_of_the_run_also_in_a_pipe(
    test_environment: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "archive_audit_logs"],
        cwd=ROOT,
        env=merged(test_environment, JSON),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )

    events = [record["event"] for record in objects(done.stdout)]
    assert events[0] == "job_started"
    assert events[-1] == "job_finished"
    assert set(events[1:-1]) == {"output"}


@pytest.mark.django_db
def test_a_process_without_a_stdout_does_its_work(
    bucket: LocalServices, test_environment: dict[str, str]
) -> None:
    done = subprocess.run(
        f"exec {shlex.quote(sys.executable)} manage.py archive_audit_logs >&-",
        shell=True,
        cwd=ROOT,
        env=merged(test_environment),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )

    assert (done.returncode, len(done.stderr.splitlines())) == (0, 2), done.stderr


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )

"""The crontab is the only schedule: our reader and supercronic must agree on it."""

import os
import re
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from starview_app.maintenance.runner.schedule import (
    CrontabError,
    ScheduledJob,
    read_crontab,
)
from tests.conftest import ROOT

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday
WAIT_SECONDS = 20

# Lines that schedule `cmd`, and when they are due next after NOW.
GOOD: dict[str, str] = {
    "* * * * * cmd": "2026-11-23 12:01",
    "*/5 * * * * cmd": "2026-11-23 12:05",
    "1-5/2 * * * * cmd": "2026-11-23 12:01",
    "5/15 * * * * cmd": "2026-11-23 12:05",
    "0,30 * * * * cmd": "2026-11-23 12:30",
    "0 2 * * * cmd": "2026-11-24 02:00",
    "00 02 * * * cmd": "2026-11-24 02:00",
    "0 */6 * * * cmd": "2026-11-23 18:00",
    "0 3 * * 0 cmd": "2026-11-29 03:00",
    "0 3 * * 7 cmd": "2026-11-29 03:00",
    "0 3 * * SUN cmd": "2026-11-29 03:00",
    "0 3 * * mon,wed cmd": "2026-11-25 03:00",
    "0 3 * * MON-FRI cmd": "2026-11-24 03:00",
    "0 4 1 * * cmd": "2026-12-01 04:00",
    "0 4 L * * cmd": "2026-11-30 04:00",
    "0 4 * * 5#2 cmd": "2026-12-11 04:00",
    "0 4 * * 5L cmd": "2026-11-27 04:00",
    "0 0 * JAN * cmd": "2027-01-01 00:00",
    "0 0 * jan-mar * cmd": "2027-01-01 00:00",
    "0 0 29 2 * cmd": "2028-02-29 00:00",
    # Either day counts when both are given, as in every cron.
    "0 0 1,25 * 1 cmd": "2026-11-25 00:00",
    "0 0 */2 * 1 cmd": "2026-11-25 00:00",
    "0 0 1-5 * */2 cmd": "2026-11-24 00:00",
    "@hourly cmd": "2026-11-23 13:00",
    "@daily cmd": "2026-11-24 00:00",
    "@weekly cmd": "2026-11-29 00:00",
    "@monthly cmd": "2026-12-01 00:00",
    "@yearly cmd": "2027-01-01 00:00",
    "@annually cmd": "2027-01-01 00:00",
    "  0 2 * * * cmd": "2026-11-24 02:00",
    "\t0\t2\t*\t*\t*\tcmd": "2026-11-24 02:00",
}
NO_JOB = ["", "   ", "# comment", "  # comment", "NAME=value", "NAME = value", "_A1=b"]
BAD = [
    "*/0 * * * * cmd",
    "60 * * * * cmd",
    "0 24 * * * cmd",
    "0 0 0 * * cmd",
    "0 0 32 * * cmd",
    "0 0 * 13 * cmd",
    "0 0 * 0 * cmd",
    "0 0 * * 8 cmd",
    "0 0 * * FRI-MON cmd",
    "5-1 * * * * cmd",
    "-1 * * * * cmd",
    "+1 * * * * cmd",
    "a * * * * cmd",
    "H * * * * cmd",
    "~ * * * * cmd",
    "0~30 * * * * cmd",
    "0 0 * * 1#6 cmd",
    "0 0 L-3 * * cmd",
    "@midnight cmd",
    "@reboot cmd",
    "@every 5m cmd",
    "@Daily cmd",
    "@daily",
    "* * * * *",
    "* * * *",
    "0 2 * * *cmd",
    "NAME",
    "=value",
    # supercronic refuses these, or panics.
    "NAME=",
    "NAME = ",
    "CRON_TZ=Nowhere/There",
    "*/61 * * * * cmd",
    "0 0-23/24 * * * cmd",
    "000 2 * * * cmd",
    "0 0 * * 1-7 cmd",
]
# supercronic takes these for seconds, a year or Sundays only: it runs something else,
# or at other times, than who reads the line expects.
AMBIGUOUS = [
    "* * * * * * cmd",
    "* * * * * 2027 cmd",
    "* * * * * * * cmd",
    "0 2 * * * 1 2 cmd",
    "0 3 * * 0-7 cmd",
]
# What supercronic takes and this image does not need: refused, never misread.
NOT_OURS = [
    "0 0 * january * cmd",
    "0 0 * * sunday cmd",
    "0 0 15W * * cmd",
    "0 0 ? * 1 cmd",
    "1,2,,3 * * * * cmd",
    "0 0 30 2 * cmd",
    "NA-ME=value",
]


def crontab(folder: Path, *lines: str) -> Path:
    path = folder / "crontab"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# -- the reader -----------------------------------------------------------------------


@pytest.mark.parametrize(("line", "due"), GOOD.items())
def test_a_good_line_is_due_at_the_time_it_says(
    line: str, due: str, tmp_path: Path
) -> None:
    (job,) = read_crontab(crontab(tmp_path, line))

    assert job.command == "cmd"
    assert f"{job.next_after(NOW):%Y-%m-%d %H:%M}" == due


@pytest.mark.parametrize("line", NO_JOB)
def test_comments_empty_lines_and_assignments_schedule_nothing(
    line: str, tmp_path: Path
) -> None:
    assert read_crontab(crontab(tmp_path, line)) == []


@pytest.mark.parametrize("line", [*BAD, *AMBIGUOUS, *NOT_OURS])
def test_a_line_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    path = crontab(tmp_path, "# first", "0 2 * * * cmd", line)

    with pytest.raises(CrontabError, match=r"^crontab line 3: "):
        read_crontab(path)


def test_a_job_has_its_line_times_command_and_name(tmp_path: Path) -> None:
    line = "0  4 1\t* *  JOB=starview-x  timeout 6h  cmd --a=1 # kept"

    assert read_crontab(crontab(tmp_path, "", line)) == [
        ScheduledJob(2, "0 4 1 * *", "JOB=starview-x  timeout 6h  cmd --a=1 # kept")
    ]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("JOB=starview-x cmd", "starview-x"),
        ("A=1 JOB=starview-x cmd", "starview-x"),
        ("cmd --days=7", "cmd --days=7"),
        ("MYJOB=x cmd", "MYJOB=x cmd"),
    ],
)
def test_a_job_without_a_name_is_called_by_its_command(command: str, name: str) -> None:
    assert ScheduledJob(1, "@daily", command).name == name


def test_the_next_time_is_after_the_moment_never_at_it() -> None:
    job = ScheduledJob(1, "0 2 * * *", "cmd")
    at_two = datetime(2026, 11, 24, 2, tzinfo=UTC)
    tick = timedelta(microseconds=1)

    assert job.next_after(at_two - tick) == at_two
    assert job.next_after(at_two) == at_two + timedelta(days=1)


def test_times_are_utc_whatever_zone_the_moment_has() -> None:
    job = ScheduledJob(1, "0 2 * * *", "cmd")
    tokyo = timezone(timedelta(hours=9))

    due = job.next_after(datetime(2026, 11, 24, 10, 59, tzinfo=tokyo))

    assert (due, due.utcoffset()) == (
        datetime(2026, 11, 24, 2, tzinfo=UTC),
        timedelta(0),
    )


def test_lines_are_counted_as_supercronic_counts_them(tmp_path: Path) -> None:
    # A form feed or a U+2028 in a comment ends no line.
    path = crontab(tmp_path, "# a\x0c0 2 * * * forged", "# b\u20280 3 * * * forged")

    assert read_crontab(path) == []


def test_windows_line_ends_do_not_become_part_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "crontab"
    path.write_bytes(b"0 2 * * * cmd\r\n")

    assert [job.command for job in read_crontab(path)] == ["cmd"]


# -- the real crontab -----------------------------------------------------------------


def test_the_guides_three_jobs_have_its_names_times_and_commands() -> None:
    jobs = {job.name: job for job in read_crontab(ROOT / "crontab")}

    guide = {
        "starview-cleanup-unverified-users": (
            "0 2 * * *",
            "python manage.py cleanup_unverified_users --days=7",
        ),
        "starview-cleanup-email-suppressions": (
            "0 3 * * 0",
            "python manage.py cleanup_email_suppressions --email-report",
        ),
        "starview-archive-audit-logs": (
            "0 4 1 * *",
            "python manage.py archive_audit_logs --days=30",
        ),
    }
    found = {name: (jobs[name].times, jobs[name].command) for name in guide}
    assert {name: times for name, (times, _) in found.items()} == {
        name: times for name, (times, _) in guide.items()
    }
    for name, (_, command) in guide.items():
        assert f" {command}" in found[name][1]


def test_every_job_of_the_crontab_has_a_name_of_its_own_and_a_time_limit() -> None:
    jobs = read_crontab(ROOT / "crontab")

    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) >= 3
    assert [
        job.name for job in jobs if not re.match(r"JOB=[a-z-]+ ", job.command)
    ] == []
    assert [job.name for job in jobs if " timeout -k " not in job.command] == []


def test_every_command_of_the_crontab_exists_and_takes_its_options() -> None:
    import shlex

    from django.core.management import get_commands, load_command_class

    for job in read_crontab(ROOT / "crontab"):
        words = shlex.split(job.command.replace('"$ADMIN_EMAIL"', "admin@example.com"))
        name, *options = words[words.index("manage.py") + 1 :]
        command = load_command_class(get_commands()[name], name)
        command.create_parser("manage.py", name).parse_args(options)


# -- the real supercronic -------------------------------------------------------------


def accepts(supercronic: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(supercronic), "-test", str(path)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )


def test_supercronic_accepts_the_crontab(supercronic: Path) -> None:
    done = accepts(supercronic, ROOT / "crontab")

    assert done.returncode == 0, done.stderr
    assert "crontab is valid" in done.stderr


def test_supercronic_accepts_every_good_line(supercronic: Path, tmp_path: Path) -> None:
    done = accepts(supercronic, crontab(tmp_path, *GOOD, *NO_JOB))

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", BAD)
def test_supercronic_refuses_every_bad_line(
    line: str, supercronic: Path, tmp_path: Path
) -> None:
    assert accepts(supercronic, crontab(tmp_path, line)).returncode != 0


def test_supercronic_takes_what_we_refuse_on_purpose(
    supercronic: Path, tmp_path: Path
) -> None:
    # When this fails, supercronic has become stricter: move the line to BAD.
    done = accepts(supercronic, crontab(tmp_path, *NOT_OURS, *AMBIGUOUS))

    assert done.returncode == 0, done.stderr


class Scheduler:
    """A running supercronic and the lines it has written so far."""

    def __init__(self, supercronic: Path, path: Path, *options: str) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [str(supercronic), *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TZ": "UTC"},
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify()

    def wait_for(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """The first `count` lines that match, as soon as they are there."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._news:
            while True:
                found = [match for x in self.lines if (match := re.search(pattern, x))]
                if len(found) >= count:
                    return found[:count]
                rest = deadline - time.monotonic()
                assert rest > 0, self.lines
                self._news.wait(rest)

    def stop(self) -> int:
        self._process.terminate()
        code = self._process.wait(WAIT_SECONDS)
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()
        return code


def test_supercronic_and_we_agree_when_each_line_is_due_next(
    supercronic: Path, tmp_path: Path
) -> None:
    path = crontab(tmp_path, *GOOD)
    before = datetime.now(UTC)
    scheduler = Scheduler(supercronic, path, "-debug")
    try:
        found = scheduler.wait_for(
            r"will run next at (\S+ \S+) \+0000 UTC.* job\.position=(\d+) ", len(GOOD)
        )
    finally:
        scheduler.stop()
    after = datetime.now(UTC)

    theirs = {int(match[2]): match[1] for match in found}
    differences = []
    for position, job in enumerate(read_crontab(path)):
        # Two moments: the minute may have changed in between.
        ours = {str(job.next_after(moment))[:19] for moment in (before, after)}
        if theirs[position] not in ours:
            differences.append((job.times, theirs[position], ours))
    assert differences == []


def test_supercronic_runs_a_line_and_passes_its_output_through(
    supercronic: Path, tmp_path: Path
) -> None:
    path = crontab(
        tmp_path,
        '* * * * * * *  JOB=starview-x NAME=hello; echo "{\\"$JOB\\": \\"$NAME\\"}"',
    )
    scheduler = Scheduler(supercronic, path, "-passthrough-logs")
    try:
        scheduler.wait_for("job succeeded")
    finally:
        code = scheduler.stop()

    assert '{"starview-x": "hello"}' in scheduler.lines
    assert code == 0


def test_supercronic_reports_a_failed_line_as_an_error(
    supercronic: Path, tmp_path: Path
) -> None:
    path = crontab(tmp_path, "* * * * * * *  echo said >&2; exit 1")
    scheduler = Scheduler(supercronic, path, "-passthrough-logs")
    try:
        (match,) = scheduler.wait_for("level=error")
    finally:
        scheduler.stop()

    assert "exit status 1" in match.string
    assert "said" in scheduler.lines


def test_a_time_limit_in_a_line_ends_what_ignores_sigterm(
    supercronic: Path, tmp_path: Path
) -> None:
    stubborn = "sh -c 'trap \"\" TERM; while :; do sleep 0.05; done'"
    path = crontab(tmp_path, f"* * * * * * *  timeout -k 0.2 0.2 {stubborn}")
    scheduler = Scheduler(supercronic, path, "-passthrough-logs")
    try:
        (match,) = scheduler.wait_for("level=error")
    finally:
        scheduler.stop()

    assert re.search(r"exit status 137|signal: killed", match.string)

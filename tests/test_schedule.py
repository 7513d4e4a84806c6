"""The crontab is the only schedule: our reader and supercronic must agree on it."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from random import Random

import pytest

from starview_app.maintenance.schedule.crontab import (
    CrontabError,
    ScheduledJob,
    parse_crontab,
    read_crontab,
)
from tests.conftest import ROOT

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday
WAIT_SECONDS = 20

COMMAND = "JOB=a python manage.py run_job clearsessions"
# Lines that schedule `cmd`, for COMMAND, and when they are due next after NOW.
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
    "0 0 */1 * 5 cmd": "2026-11-24 00:00",
    "0 0 1-31 * 5 cmd": "2026-11-24 00:00",
    "0 0 L 2 0L cmd": "2027-02-28 00:00",
    "0 0 LW * * cmd": "2026-11-30 00:00",
    "0 0 * 2 7#5 cmd": "2032-02-29 00:00",
    "0 0 * * 7,2 cmd": "2026-11-24 00:00",
    "0 0 * * 7L cmd": "2026-11-29 00:00",
    "0 0 * * MON#1,3#2 cmd": "2026-12-07 00:00",
    "5/20,10/25 * * * * cmd": "2026-11-23 12:05",
    "0 0 31 4,5 * cmd": "2027-05-31 00:00",
    # As supercronic has it, whatever was meant.
    "0 2 * * 03 cmd": "2026-11-29 02:00",
    "0 3 * * 0-7 cmd": "2026-11-29 03:00",
    "0 3 * * 3/4 cmd": "2026-11-25 03:00",
    "*,61 * * * * cmd": "2026-11-23 12:01",
    "1,2,,3 * * * * cmd": "2026-11-23 12:01",
    "0 0 *,25 * 6 cmd": "2026-11-28 00:00",
    "0 0 ? * 1 cmd": "2026-11-30 00:00",
    "0 0 15W * * cmd": "2026-12-15 00:00",
    "0 0 5-1/2 * 2 cmd": "2026-11-24 00:00",
    "0 0 * january sunday cmd": "2027-01-03 00:00",
    "0 0 31 JUN 1 cmd": "2027-06-07 00:00",
    "  0 2 * * * cmd": "2026-11-24 02:00",
    "\t0\t2\t*\t*\t*\tcmd": "2026-11-24 02:00",
}
GOOD = {line.replace("cmd", COMMAND): due for line, due in GOOD.items()}
NO_JOB = [
    *(
        "",
        "   ",
        "\r",
        "# comment",
        "  # comment",
        "# caf\u00e9\u00a0\x0c",
        "NAME=value",
    ),
    *("NAME = value", "_A1=b", 'NAME=""', "NAME='", "CRON_TZ=UTC", "CRON_TZ='UTC'"),
    "SHELL=/bin/sh",
]
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
    "0 0 L/2 * * cmd",
    "0 0 * * SAT-SUN cmd",
    "CRON_TZ=\"UTC'",
    "CRON_TZ=UTC ",
    "CRON_TZ=UTC # why",
    "CRON_TZ=utc",
    # Only blanks and tabs are blanks; a line ends before 64 KiB.
    "*\u00a0* * * * cmd",
    "\u00a0# comment",
    "\x0c# comment",
    "\ufeff0 2 * * * cmd",
    "0\v2 * * * cmd",
    "0 2 * * * cmd " + "x" * 65_522,
    "# " + "x" * 65_534,
]
BAD = [line.replace("cmd", COMMAND) for line in BAD]
# What supercronic takes and nobody records: refused, never misread.
NOT_OURS = [
    "* * * * * * cmd",
    "* * * * * 2027 cmd",
    "* * * * * * * cmd",
    "0 0 2 1 1 SUN 2027 cmd",
    "0 0 30 2 * cmd",
    "0 0 31 JUN * cmd",
    "@daily cmd",
    "*,=x * * * * cmd",
    "NA-ME=value",
    # Not what catch-up would run, or a name for all jobs.
    "SHELL=/bin/bash",
    "CRON_TZ=Europe/Berlin",
    "JOB=starview-x",
    # Not seen by who reads it.
    "0 2 * * * cmd\u00a0--days=7",
    "0 2 * * * cmd\x00",
    "0 2 * * * cmd\r0 3 * * * cmd",
    # Not the form of a command.
    "0 2 * * * true",
]
NOT_OURS = [line.replace("cmd", COMMAND) for line in NOT_OURS]


def crontab(folder: Path, *lines: str) -> Path:
    path = folder / "crontab"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


# -- the reader ----------------------------------------------------------------------


@pytest.mark.parametrize(("line", "due"), GOOD.items())
def test_a_good_line_is_due_at_the_time_it_says(
    line: str, due: str, tmp_path: Path
) -> None:
    (job,) = read_crontab(crontab(tmp_path, line))

    assert job.command == COMMAND
    assert f"{job.next_after(NOW):%Y-%m-%d %H:%M}" == due


@pytest.mark.parametrize("line", NO_JOB)
def test_comments_empty_lines_and_assignments_schedule_nothing(
    line: str, tmp_path: Path
) -> None:
    assert read_crontab(crontab(tmp_path, line)) == []


@pytest.mark.parametrize("line", [*BAD, *NOT_OURS])
def test_a_line_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    path = crontab(tmp_path, "# first", f"0 2 * * * {COMMAND}", line)

    with pytest.raises(CrontabError, match=r"^crontab line 3: "):
        read_crontab(path)


def test_a_job_has_its_line_times_command_and_name(tmp_path: Path) -> None:
    command = "JOB=starview-x  timeout 6h  python manage.py a --a=1"

    assert read_crontab(crontab(tmp_path, "", f"0  4 1\t* *  {command} ")) == [
        ScheduledJob(2, "0 4 1 * *", command)
    ]


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
    path.write_bytes(f"0 2 * * * {COMMAND}\r\n".encode())

    assert [job.command for job in read_crontab(path)] == [COMMAND]


def test_only_a_line_feed_ends_a_line_and_a_comment_may_be_any_bytes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "crontab"
    path.write_bytes(b"# caf\xe9\r0 2 * * * x\n0 3 * * * " + COMMAND.encode())

    assert read_crontab(path) == [ScheduledJob(2, "0 3 * * *", COMMAND)]


def test_bytes_that_are_no_text_are_refused_in_a_job(tmp_path: Path) -> None:
    path = tmp_path / "crontab"
    path.write_bytes(b"0 3 * * * cmd caf\xe9\n")

    with pytest.raises(CrontabError, match="line 1: holds the invisible character"):
        read_crontab(path)


def test_all_lines_that_cannot_be_read_are_told_beside_the_jobs_of_the_others() -> None:
    jobs, problems = parse_crontab(
        f"61 * * * * {COMMAND}\n0 2 * * * {COMMAND} -v2\nNAME=\n0 0 31 6 * {COMMAND}"
    )

    assert [job.command for job in jobs] == [f"{COMMAND} -v2"]
    assert [(found.line, found.text) for found in problems] == [
        (1, "bad times: bad minute: '61'"),
        (3, "NAME= with nothing after it makes supercronic panic"),
        (4, "bad times: '0 0 31 6 *' never comes"),
    ]
    assert [found.job.command for found in problems if found.job] == [COMMAND] * 2


# -- what a line says about itself ---------------------------------------------------


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ("0 * * * *", "At the start of every hour"),
        ("0 0 * * *", "At 00:00 every day"),
        ("0 0 * * 0", "At 00:00 on Sunday"),
        ("0 0 1 * *", "At 00:00 on the first day of every month"),
        ("0 0 1 1 *", "At 00:00 on January 1"),
        ("*/10 * * * *", "Every 10th minute of every hour"),
        ("0 9-17/2 * * *", "At minute 0 past every second hour from 9 through 17"),
        ("5,35 2 * * MON-FRI", "At 02:05 and 02:35 on Monday through Friday"),
        ("0 4 L * *", "At 04:00 on the last day of every month"),
        # With both days either counts, however the time is told.
        ("0 0 1 * 1", "At 00:00 on the first day of every month, or on Monday"),
        (
            "5 * 1,15 * 1",
            "At minute 5 of every hour on the first and the 15th day of month,"
            " or on Monday",
        ),
        ("* * 1 1 1", "Every minute on January 1, or on Monday in January"),
        (
            "0 0 1 * */1",
            "At 00:00 on the first day of every month, or every day",
        ),
        # What supercronic makes of it, not what was meant.
        ("0 3 * * 0-7", "At 03:00 on Sunday"),
        ("0 3 * * 03", "At 03:00 on Sunday"),
        ("*,61 3-3/2 * * ?", "Every minute from 03:00 through 03:59"),
        ("0 4 15W * *", "0 4 15W * *"),
    ],
)
def test_the_times_are_told_in_words(times: str, words: str) -> None:
    assert ScheduledJob(1, times, "cmd").in_words == words


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("a --days=7", ["a", "--days=7"]),
        ("a\t -v  2", ["a", "-v", "2"]),
        ("a '' \"b c\" 'd;e'\"f\"g", ["a", "", "b c", "d;efg"]),
        ("a \"it's\" '\"' '$X `date` \\' '# no comment'", None),
        ('a "$ADMIN_EMAIL" ${X} --x=$X_1', ["a", "$ADMIN_EMAIL", "${X}", "--x=$X_1"]),
    ],
)
def test_the_arguments_are_what_the_shell_would_pass(
    command: str, arguments: list[str] | None
) -> None:
    if arguments is None:
        arguments = ["a", "it's", '"', "$X `date` \\", "# no comment"]

    job = ScheduledJob(1, "0 0 * * *", f"JOB=x python manage.py {command}")
    script = f'printf "%s\\n" {command}'
    variables = {name: f"${name}" for name in ("ADMIN_EMAIL", "X_1")} | {"X": "${X}"}
    shell = subprocess.run(
        ["/bin/sh", "-c", script], env=variables, capture_output=True, text=True
    )

    assert job.arguments == arguments == shell.stdout.split("\n")[:-1]


GOOD_COMMANDS = [
    "JOB=a python manage.py run_job clearsessions",
    "JOB=a-b_1  timeout 1h\tpython manage.py a",
    "JOB=a timeout -k 60 1.5h python manage.py a 'b c' \"$X\"",
]
BAD_COMMANDS = [
    # Of the issue, and others of their kind.
    "JOB=a root timeout -k 60 1h python manage.py a",
    "JOB=a nice -n 19 python manage.py a",
    "JOB=a nice -n 19 pyhton manage.py a",
    "python manage.py a",
    "JOB= python manage.py a",
    "JOB=A python manage.py a",
    "JOB='a' python manage.py a",
    "JOB=$NAME python manage.py a",
    f"JOB={'x' * 51} python manage.py a",
    "JOB=a JOB=b python manage.py a",
    "X=1 JOB=a python manage.py a",
    "JOB=a; python manage.py a",
    "JOB=a python3 manage.py a",
    "JOB=a python /app/manage.py a",
    "JOB=a python -m manage a",
    "JOB=a ./manage.py a",
    "JOB=a python manage.py",
    "JOB=a cd /app && python manage.py a",
    "JOB=a exec python manage.py a",
    "JOB=a sh -c 'python manage.py a'",
    *(
        f"JOB=a {prefix} python manage.py a"
        for prefix in (
            *(
                "timeout",
                "timeout 5x",
                "timeout 1h30m",
                "timeout $LIMIT",
                "timeout -k 1",
            ),
            *(
                "timeout -v 5",
                "timeout -s INT 5",
                "timeout 30m -k 60",
                "timeout -k5 10",
            ),
            *("timeout 5 timeout 5", "/usr/bin/timeout 5", "timeout \u0665"),
        )
    ),
    *(
        f"JOB=a python manage.py a {rest}"
        for rest in (
            *("| tee log", "> log", ">log", "2>&1", "&", "&& b", "; b", "# why", "`b`"),
            *("$(b)", '"$(b)"', '"`b`"', "${X:-7}", "$1", "$", "a\\ b", "'a", '"a'),
            *("*", "a?", "~", "{a,b}", "!", "(a)", "caf\u00e9"),
        )
    ),
]


@pytest.mark.parametrize("command", GOOD_COMMANDS)
def test_a_line_of_the_one_form_is_read(command: str) -> None:
    (job,), problems = parse_crontab(f"0 2 * * *  {command}  \n")

    assert (job.command, problems) == (command, [])


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_any_other_line_is_refused_with_the_form(command: str) -> None:
    jobs, (problem,) = parse_crontab(f"0 2 * * *  {command}\n")

    assert jobs == []
    assert problem.text == "not a line that can be recorded, repeated and reported"
    assert "JOB=starview-NAME timeout -k 60 1h python manage.py COMMAND" in problem.fix


@pytest.mark.parametrize(
    ("arguments", "name"),
    [("run_job clearsessions", "clearsessions"), ("a --days=30", "a"), ("run_job", "")],
)
def test_the_django_command_is_found_within_run_job_too(
    arguments: str, name: str
) -> None:
    job = ScheduledJob(1, "0 0 * * *", f"JOB=a python manage.py {arguments}")

    assert job.django_command == name


# A line's `timeout`, the seconds that it allows, and those until it kills.
TIMEOUTS: dict[str, tuple[float | None, float | None]] = {
    "timeout 10": (10, None),
    "timeout 1.5m": (90, None),
    "timeout .5": (0.5, None),
    "timeout 3.": (3, None),
    "timeout 6h": (21_600, None),
    "timeout 2d": (172_800, None),
    "timeout 0": (None, None),
    "timeout 0.0h": (None, None),
    "timeout -k 60 1h": (3600, 60),
    "timeout -k 1m 1h": (3600, 60),
    "timeout -k 0 10": (10, None),
    "": (None, None),
}


@pytest.mark.parametrize("prefix", TIMEOUTS)
def test_the_deadline_is_what_timeout_allows(prefix: str) -> None:
    job = ScheduledJob(
        1,
        "0 0 * * *",
        f"JOB=a {prefix} python manage.py a timeout 4".replace("  ", " "),
    )
    done = subprocess.run(["/bin/sh", "-c", f"{prefix} true"], capture_output=True)

    assert (job.deadline_seconds, job.kill_after_seconds) == TIMEOUTS[prefix]
    assert done.returncode == 0


# -- when ----------------------------------------------------------------------------


def random_times(random: Random) -> str:
    def one_of(*choices: str) -> str:
        return random.choice(choices)

    def number(first: int, last: int) -> str:
        return str(random.randint(first, last))

    return " ".join(
        [
            one_of("*", "*/7", "0", number(0, 59), f"{number(0, 29)}-59/11", "0,59"),
            one_of("*", "*/5", "0", number(0, 23), "0-6", "9-17/4", "0,23"),
            one_of("*", "*", "1", "L", "LW", "29", "30,31", "*/9", number(1, 28)),
            one_of("*", "*", "2", "1,3", "FEB-MAR", number(1, 12)),
            one_of("*", "*", "0", "MON-FRI", "5L", "1#5", "*/3", number(0, 7)),
        ]
    )


def test_the_last_time_and_the_next_one_agree_at_every_moment() -> None:
    random = Random(4)  # noqa: S311
    first = datetime(2027, 12, 1, tzinfo=UTC)
    jobs, _ = parse_crontab(
        "".join(f"{random_times(random)} {COMMAND}\n" for _ in range(300))
    )
    assert len(jobs) > 200
    for job in jobs:
        # Over the end of months, and the 29th of February of 2028.
        moment = first + timedelta(seconds=random.randrange(120 * 86_400))
        if random.random() < 0.5:
            moment = job.next_after(moment)  # a due time itself

        last = job.last_due(moment)

        assert last <= moment, job.times
        assert job.next_after(last) > moment, job.times
        assert job.next_after(last - timedelta(microseconds=1)) == last, job.times
        assert (last == moment) == (job.last_due(moment - timedelta.resolution) < last)


def test_the_last_time_counts_at_the_exact_minute_and_in_any_zone() -> None:
    job = ScheduledJob(1, "0 2 29 2 *", "cmd")
    leap_day = datetime(2028, 2, 29, 2, tzinfo=UTC)

    assert job.last_due(leap_day) == leap_day
    assert job.last_due(leap_day + timedelta(seconds=59.9)) == leap_day
    assert job.last_due(leap_day - timedelta(microseconds=1)).year == 2024
    assert job.last_due(leap_day.astimezone(timezone(timedelta(hours=9)))) == leap_day


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        ("* * * * *", timedelta(minutes=1)),
        ("*/10 * * * *", timedelta(minutes=10)),
        ("*/25 * * * *", timedelta(minutes=10)),
        ("0 2 * * *", timedelta(days=1)),
        ("0 2,23 * * *", timedelta(hours=3)),
        ("0 3 * * 0", timedelta(days=7)),
        ("0 3 * * MON,WED", timedelta(days=2)),
        ("0 4 1 * *", timedelta(days=28)),
        ("0 4 L * *", timedelta(days=28)),
        ("0 4 1,29 2,3 *", timedelta(days=1)),  # in a leap year
        ("0 0 1 1 *", timedelta(days=365)),
        ("0 0 29 2 *", timedelta(days=1461)),
        ("0 4 1 * 0", timedelta(days=1)),
        ("59 23 30,31 12 *", timedelta(days=1)),
        # Only from the last day of a month to the first one of the next.
        ("*/10,59 0-20/2,23 1-31/2 * *", timedelta(minutes=1)),
        ("0 * * * *", timedelta(hours=1)),
    ],
)
def test_the_shortest_time_between_two_runs_is_found(
    times: str, gap: timedelta
) -> None:
    job = ScheduledJob(1, times, "cmd")

    assert timedelta(seconds=job.shortest_gap_seconds()) == gap


# -- the real crontab ----------------------------------------------------------------


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


# -- the real supercronic ------------------------------------------------------------


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
    done = accepts(supercronic, crontab(tmp_path, *NOT_OURS))

    assert done.returncode == 0, done.stderr


# -- supercronic's own parser ----------------------------------------------------------

PARSER = Path(__file__).parent / "supercronic_parser"


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that reads crontabs with supercronic's own Go module."""
    program = tmp_path_factory.mktemp("parser") / "parser"
    if not shutil.which("go"):
        if os.environ.get("CI"):
            pytest.fail("Go is not installed", pytrace=False)
        pytest.skip("Go is not installed")
    built = subprocess.run(
        ["go", "build", "-o", str(program)], cwd=PARSER, capture_output=True, text=True
    )
    if built.returncode and not os.environ.get("CI"):
        pytest.skip(f"supercronic's module could not be built: {built.stderr}")
    assert built.returncode == 0, built.stderr
    return program


def random_line(random: Random) -> str:
    """Any times, most of them odd ones, in front of COMMAND."""
    months = ["jan", "FEB", "may", "jul", "dec", "january", "july", "august", "sept"]
    weekdays = ["sun", "Mon", "tue", "sat", "sunday", "MONDAY", "thursday", "tues"]
    odd = ["", "000", "099", "x", "-1", "99", "*", "?", "@daily", "a=b", "+1", "\u0663"]

    def number(top: int, names: list[str]) -> str:
        spelled = [str(random.randint(0, top + 1)) for _ in range(12)]
        spelled += [f"0{random.randint(0, 9)}", f"0{random.randint(0, 9)}"]
        others = [random.choice(names or ["7"]), random.choice(odd)]
        return random.choice([*spelled, *others])

    def entry(top: int, names: list[str]) -> str:
        one, other = number(top, names), number(top, names)
        step = random.choice([str(random.randint(0, top + 1)), "1", "02", "010"])
        forms = ["*", "?", one, one, f"{one}-{other}", f"*/{step}", f"{one}/{step}"]
        forms += [f"{one}-{other}/{step}", "L", "lw", f"{one}L", f"{one}w"]
        return random.choice([*forms, f"{one}#{random.randint(0, 6)}"])

    def field(top: int, names: list[str]) -> str:
        if random.random() < 0.4:
            return random.choice(["*", "*", "1", "*/2"])
        entries = [entry(top, names) for _ in range(random.choice([1, 1, 1, 2, 3]))]
        return ",".join(entries) + random.choice([""] * 9 + [","])

    tops = [(59, []), (23, []), (31, []), (12, months), (6, weekdays)]
    return f"{' '.join(field(top, names) for top, names in tops)}  {COMMAND}"


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=pytest.mark.soak)]
)
def test_of_random_lines_we_read_those_that_supercronic_reads_at_its_times(
    count: int, parser: Path
) -> None:
    random = Random(count)  # noqa: S311
    lines = [random_line(random) for _ in range(count)]
    after = datetime(2026, 11, 23, 12, 0, 30, tzinfo=UTC)

    done = subprocess.run(
        [str(parser), after.isoformat(), "5"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )

    differences, read = [], 0
    for line, answer in zip(lines, done.stdout.splitlines(), strict=True):
        found = json.loads(answer)
        # It reads what never comes, too, and other times in front of other commands.
        is_ours = (len(found["schedule"].split()), found["command"]) == (5, COMMAND)
        theirs = (is_ours and found["due"]) or []
        jobs, _ = parse_crontab(line)
        ours, moment = [], after
        for _ in range(5 if jobs else 0):
            moment = jobs[0].next_after(moment)
            ours.append(moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
        read += bool(jobs)
        if ours[: len(theirs)] != theirs:  # it ends in 2099
            differences.append((line, theirs, ours))
    assert differences == []
    assert read > count / 10


def test_the_parser_is_the_supercronic_that_the_tests_run() -> None:
    script = (ROOT / "demo" / "get_supercronic.sh").read_text()
    (module, version) = re.findall(r"GO_MODULE=(\S+)@(\S+)", script)[0]

    assert f"{module} {version}\n" in (PARSER / "go.mod").read_text()


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


def test_supercronic_needs_no_line_feed_at_the_end(
    supercronic: Path, tmp_path: Path
) -> None:
    path = tmp_path / "crontab"
    path.write_text(f"0 2 * * * {COMMAND}")

    assert accepts(supercronic, path).returncode == 0
    assert [job.command for job in read_crontab(path)] == [COMMAND]


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

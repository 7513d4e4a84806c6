"""The times of the crontab in other dialects, read by those who will run them."""

import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from starview_app.maintenance.schedule.crontab import ScheduledJob, parse_crontab
from starview_app.maintenance.schedule.export.cron_fields import five_fields
from starview_app.maintenance.schedule.export.lines import ExportError, Line
from starview_app.maintenance.schedule.export.on_calendar import on_calendar
from tests.test_schedule import random_line

AFTER = datetime(2026, 11, 23, 12, 0, 30, tzinfo=UTC)
DUE_TIMES = 5
KUBERNETES = Path(__file__).parent / "kubernetes_cron"


def line_of(fields: str) -> Line:
    ((job,), _) = parse_crontab(f"{fields} JOB=x timeout 1 python manage.py x")
    return Line(job, [])


# -- what is written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "cron", "calendar"),
    [
        ("0 2 * * *", "0 2 * * *", ["*-*-* 02:00:00 UTC"]),
        ("0 3 * * 0", "0 3 * * 0", ["Sun *-*-* 03:00:00 UTC"]),
        ("0 4 1 * *", "0 4 1 * *", ["*-*-01 04:00:00 UTC"]),
        ("*/10 * * * *", "*/10 * * * *", ["*-*-* *:00/10:00 UTC"]),
        ("5 */6 * * *", "5 */6 * * *", ["*-*-* 00/6:05:00 UTC"]),
        ("5,6,7 8 * jan-mar ?", "5-7 8 * 1-3 *", ["*-01..03-* 08:05..07:00 UTC"]),
        # supercronic's dialect: 03 is a Sunday, and 1,* every minute.
        ("0 2 * * 03", "0 2 * * 0", ["Sun *-*-* 02:00:00 UTC"]),
        ("1,* 2 * * mon-tuesday", "* 2 * * 1-2", ["Mon,Tue *-*-* 02:*:00 UTC"]),
        # Other crons take */2 for a field that is not set.
        (
            "0 2 */15 * 1",
            "0 2 1,16,31 * 1",
            ["*-*-01,16,31 02:00:00 UTC", "Mon *-*-* 02:00:00 UTC"],
        ),
    ],
)
def test_the_times_are_written_as_everybody_reads_them(
    fields: str, cron: str, calendar: list[str]
) -> None:
    line = line_of(fields)

    assert (five_fields(line, "Kubernetes"), on_calendar(line)) == (cron, calendar)


def test_a_day_field_without_any_day_leaves_it_to_the_other() -> None:
    assert five_fields(line_of("0 2 20-5/3 * 1"), "Kubernetes") == "0 2 * * 1"
    assert five_fields(line_of("0 2 1 * 5-2/2"), "Kubernetes") == "0 2 1 * *"
    assert on_calendar(line_of("0 2 20-5/3 * 1")) == ["Mon *-*-* 02:00:00 UTC"]


@pytest.mark.parametrize("fields", ["0 2 */1 * 1", "0 2 1 * 0-6"])
def test_of_two_day_fields_one_that_is_every_day_leaves_none_out(fields: str) -> None:
    line = line_of(fields)

    assert five_fields(line, "Kubernetes") == "0 2 * * *"
    assert on_calendar(line) == ["*-*-* 02:00:00 UTC"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [("0 2 L * *", "L"), ("0 2 * * 5L", "5L"), ("0 2 * * 1,5#2", "5#2")],
)
def test_a_day_that_other_crons_do_not_know_is_refused_and_systemd_has_it(
    fields: str, word: str
) -> None:
    line = line_of(fields)

    with pytest.raises(ExportError) as refusal:
        five_fields(line, "Render")

    assert str(refusal.value) == (
        f"crontab line 1: x is due on {word!r}, which Render does not know"
    )
    assert refusal.value.fix == "write the days as numbers, such as 28-31"
    assert on_calendar(line)


def test_a_nearest_workday_is_refused_by_systemd_as_well() -> None:
    with pytest.raises(ExportError, match="'15W', which systemd cannot say"):
        on_calendar(line_of("0 2 15W * *"))


# -- when it is due ------------------------------------------------------------------


def random_jobs(count: int) -> list[ScheduledJob]:
    """Of lines with any times those that can be read."""
    random = Random(count)  # noqa: S311
    lines = (random_line(random) for _ in range(count))
    return [job for line in lines for job in parse_crontab(line)[0]]


def due(job: ScheduledJob, count: int = DUE_TIMES) -> list[datetime]:
    """Not beyond the five years that Kubernetes looks ahead."""
    found: list[datetime] = []
    moment = AFTER
    while len(found) < count:
        moment = job.next_after(moment)
        if moment.year > AFTER.year + 4:
            break
        found.append(moment)
    return found


@pytest.fixture(scope="session")
def kubernetes_parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that reads five fields with the Go module that Kubernetes uses."""
    program = tmp_path_factory.mktemp("kubernetes") / "parser"
    if not shutil.which("go"):
        missing("Go is not installed")
    built = subprocess.run(
        ["go", "build", "-o", str(program)],
        cwd=KUBERNETES,
        capture_output=True,
        text=True,
    )
    if built.returncode:
        missing(f"the module could not be built: {built.stderr}")
    return program


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=pytest.mark.soak)]
)
def test_of_random_lines_kubernetes_starts_each_at_the_crontabs_times(
    count: int, kubernetes_parser: Path
) -> None:
    expected = {}
    for job in random_jobs(count):
        with suppress(ExportError):
            fields = five_fields(Line(job, []), "Kubernetes")
            expected[fields] = [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in due(job)]

    done = subprocess.run(
        [str(kubernetes_parser), AFTER.isoformat(), str(DUE_TIMES)],
        input="".join(f"{fields}\n" for fields in expected),
        capture_output=True,
        text=True,
        check=True,
    )

    found = map(json.loads, done.stdout.splitlines())
    assert len(expected) > count / 40
    assert {
        fields: (theirs, ours)
        for (fields, ours), theirs in zip(expected.items(), found, strict=True)
        if theirs[: len(ours)] != ours
    } == {}


@pytest.mark.parametrize("count", [1_000, pytest.param(5_000, marks=pytest.mark.soak)])
def test_of_random_lines_systemd_starts_each_at_the_crontabs_times(count: int) -> None:
    expected = {}
    for job in random_jobs(count):
        with suppress(ExportError):
            expected[tuple(on_calendar(Line(job, [])))] = due(job)

    assert len(expected) > count / 40
    assert differences(expected, DUE_TIMES) == {}


def test_the_days_that_systemd_alone_knows_are_the_crontabs() -> None:
    days = ["L * *", *(f"* * {day}L" for day in range(7))]
    days += [f"* * {day}#{nth}" for day in range(7) for nth in range(1, 6)]
    lines = [line_of(f"0 2 {each}") for each in days]

    expected = {tuple(on_calendar(line)): due(line.job, 24) for line in lines}

    assert len(expected) == len(days)
    assert differences(expected, 24) == {}


Calendars = tuple[str, ...]


def differences(
    expected: dict[Calendars, list[datetime]], count: int
) -> dict[Calendars, tuple[list[datetime], list[datetime]]]:
    """Where systemd has other times than these: its own, and these."""
    found = elapses([each for calendars in expected for each in calendars], count)
    both = {
        calendars: (sorted({time for each in calendars for time in found[each]}), ours)
        for calendars, ours in expected.items()
    }
    return {
        calendars: (theirs, ours)
        for calendars, (theirs, ours) in both.items()
        if theirs[: len(ours)] != ours
    }


def elapses(calendars: list[str], count: int) -> dict[str, list[datetime]]:
    """When systemd says that each of them elapses."""
    if not shutil.which("systemd-analyze"):
        missing("systemd-analyze is not installed")
    done = subprocess.run(
        [
            "systemd-analyze",
            "calendar",
            f"--iterations={count}",
            f"--base-time={AFTER:%Y-%m-%d %H:%M:%S} UTC",
            *calendars,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "TZ": "UTC"},
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"\n\n(?=\s*Original form|\s*Normalized form)", done.stdout)
    return {
        calendar: [
            datetime.fromisoformat(f"{text}+00:00")
            for text in re.findall(
                r"(?:elapse|Iter\S* #\d+): \w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC",
                part,
            )
        ]
        for calendar, part in zip(calendars, parts, strict=True)
    }

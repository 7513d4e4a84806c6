"""Two runs beside each other, each frozen before each of its steps: no row is lost.

A step is a request to the store or a commit. Run A is frozen before one of its own, run
B before one of its own; then A goes on, then B. Nothing holds them apart: their locks
are lost, or A is killed. Afterwards one plain run leaves each row in exactly one
archive, and verification finds nothing. docs/reliability.md has the figures.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import pytest

from demo.services import LocalServices
from starview_app.maintenance.models import AuditArchive, AuditManifest
from tests.archive_processes import (
    NOVEMBER,
    OCTOBER,
    QUICK,
    Bucket,
    Command,
    Commands,
    Folder,
    Place,
    Rows,
    add_rows,
    archived_rows,
    assert_each_row_once,
    assert_verified,
    table_rows,
)
from tests.factories import execute
from tests.sizes import IS_LONG

pytestmark = pytest.mark.django_db(transaction=True)

ARCHIVE = "archive_audit_logs"
# Not alone: as one of several that share the work.
SHARED = f"{ARCHIVE} --workers=1"
CLEANUP = "cleanup_audit_archives"
DECEMBER = datetime.fromisoformat("2024-12-05T12:00:00Z")
MODES = ("killed", "frozen", "sessions ended")
MOST_STEPS = 60


@pytest.fixture
def place(bucket: LocalServices) -> Bucket:
    return Bucket(bucket)


class Pair:
    """Two commands on one place, each of which freezes before one of its steps."""

    def __init__(
        self, commands: Commands, place: Place, *, a: str, b: str, mode: str
    ) -> None:
        self._commands = commands
        self._place = place
        self._names = (a, b)
        self._mode = mode
        self.happened = ""

    def play(self, a_step: int, b_step: int) -> tuple[bool, bool]:
        """Whether A, and B, have come to their steps at all."""
        a = self._start(self._names[0], a_step)
        a_froze = a.freezes()
        if a_froze and self._mode == "killed":
            a.kill()
        if a_froze and self._mode == "sessions ended":
            a.end_sessions()
        b = self._start(self._names[1], b_step)
        b_froze = b.freezes()
        if self._mode != "killed" or not a_froze:
            a.thaw()
            a.finish()
        b.thaw()
        b.finish()
        self.happened = f"{self._names} {self._mode} {a_step} {b_step}\n{a.out()}"
        self.happened += f"{a.err()}\n---\n{b.out()}{b.err()}"
        return a_froze, b_froze

    def _start(self, name: str, step: int) -> Command:
        return self._commands.start(
            *name.split(),
            settings=self._place.settings,
            freeze_before=step,
            # Only whoever is killed, or loses its sessions, lets the other one begin.
            locked=self._mode != "frozen",
            constants=QUICK,
        )


def begin_anew(place: Place, *months: datetime) -> None:
    for table in ("starview_app_auditlog", "maintenance_auditarchive"):
        execute(f"DELETE FROM {table}")
    execute("DELETE FROM maintenance_auditmanifest")
    place.empty()
    for month in months:
        add_rows(month)


def run(commands: Commands, place: Place, name: str, *options: str) -> None:
    done = commands.run(name, *options, settings=place.settings)
    assert done.code == 0, done


def assert_settled(place: Place) -> None:
    ended = ("archived", "abandoned", "removed")
    assert not AuditArchive.objects.exclude(state__in=ended).exists()
    assert not AuditManifest.objects.filter(is_written=False).exists()
    assert_verified(place.store)


def _archives(
    names: tuple[str, str],
    commands: Commands,
    place: Place,
    mode: str,
    steps: tuple[int, int],
) -> tuple[bool, bool]:
    is_shared = SHARED in names
    begin_anew(place, OCTOBER, *([NOVEMBER] if is_shared else []))
    rows = table_rows()
    pair = Pair(commands, place, a=names[0], b=names[1], mode=mode)

    froze = pair.play(*steps)
    run(commands, place, ARCHIVE)

    try:
        assert table_rows() == {}
        assert_each_row_once(place, rows)
        assert_settled(place)
    except BaseException as error:
        error.add_note(pair.happened)
        raise
    return froze


def archive_beside_archive(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _archives((ARCHIVE, ARCHIVE), commands, place, mode, steps)


def shared_beside_shared(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _archives((SHARED, SHARED), commands, place, mode, steps)


def shared_beside_archive(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _archives((SHARED, ARCHIVE), commands, place, mode, steps)


def archive_beside_shared(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _archives((ARCHIVE, SHARED), commands, place, mode, steps)


def _with_cleanup(
    names: tuple[str, str],
    commands: Commands,
    place: Place,
    mode: str,
    steps: tuple[int, int],
) -> tuple[bool, bool]:
    """October's archive is old enough, November's is the newest, December's to come."""
    begin_anew(place, OCTOBER)
    run(commands, place, ARCHIVE)
    october = archived_rows(place)
    add_rows(NOVEMBER)
    run(commands, place, ARCHIVE)
    add_rows(DECEMBER)
    rows = {**archived_rows(place), **table_rows()}
    pair = Pair(commands, place, a=names[0], b=names[1], mode=mode)

    froze = pair.play(*steps)
    run(commands, place, ARCHIVE)
    try:
        assert_settled_but_for_removal(place)
        run(commands, place, CLEANUP)
        assert_settled(place)
        _assert_kept(place, rows, october)
    except BaseException as error:
        error.add_note(pair.happened)
        raise
    return froze


def assert_settled_but_for_removal(place: Place) -> None:
    assert table_rows() == {}
    assert_verified(place.store)


def _assert_kept(place: Place, rows: Rows, october: Rows) -> None:
    """Of the removed only October's, or November's once December's was there."""
    objects = place.objects()
    kept = {
        log["id"]
        for record in AuditArchive.objects.filter(state="archived")
        for name in record.names
        if name.endswith(".json")
        for log in json.loads(objects[name])["logs"]
    }
    newest = max(row["timestamp"] for row in rows.values())
    assert kept >= {key for key, row in rows.items() if row["timestamp"] == newest}
    assert kept.isdisjoint(october)


def archive_beside_cleanup(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _with_cleanup((ARCHIVE, CLEANUP), commands, place, mode, steps)


def cleanup_beside_archive(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _with_cleanup((CLEANUP, ARCHIVE), commands, place, mode, steps)


def cleanup_beside_cleanup(
    commands: Commands, place: Place, mode: str, steps: tuple[int, int]
) -> tuple[bool, bool]:
    return _with_cleanup((CLEANUP, CLEANUP), commands, place, mode, steps)


Scene = Callable[[Commands, Place, str, tuple[int, int]], tuple[bool, bool]]
SCENES: tuple[Scene, ...] = (
    archive_beside_archive,
    archive_beside_cleanup,
    cleanup_beside_archive,
    cleanup_beside_cleanup,
)
SHARED_SCENES: tuple[Scene, ...] = (
    shared_beside_shared,
    shared_beside_archive,
    archive_beside_shared,
)


@pytest.mark.parametrize(
    ("scene", "mode"),
    [
        *((archive_beside_archive, mode) for mode in MODES),
        *zip(SCENES[1:], MODES, strict=True),
        *((shared_beside_shared, mode) for mode in MODES),
        *zip(SHARED_SCENES[1:], MODES[1:], strict=True),
    ],
)
def test_at_a_random_pair_of_steps_no_row_is_lost(
    scene: Scene, mode: str, commands: Commands, place: Bucket
) -> None:
    scene(commands, place, mode, (random.randint(1, 14), random.randint(1, 14)))


@pytest.mark.parametrize("mode", MODES)
def test_in_a_folder_no_row_is_lost_either(
    mode: str, commands: Commands, bucket: LocalServices, tmp_path: Path
) -> None:
    place = Folder(tmp_path / "archives")
    archive_beside_archive(commands, place, mode, (3, 4))


# The other two shared ones take minutes each.
SOAKED = (*SCENES, *(SHARED_SCENES if IS_LONG else SHARED_SCENES[:1]))


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scene", SOAKED)
def test_at_all_pairs_of_steps_no_row_is_lost(
    scene: Scene, mode: str, commands: Commands, place: Bucket
) -> None:
    """All of them with LONG=1, else each step of A with two of B."""
    pairs = 0
    for a_step in range(1, MOST_STEPS):
        has_come = False
        for b_step in _steps_of_b(a_step):
            a_froze, b_froze = scene(commands, place, mode, (a_step, b_step))
            pairs += a_froze
            has_come |= a_froze
            if IS_LONG and not b_froze:
                break
        if not has_come:
            break
    assert pairs >= 10
    print(f"{pairs} pairs")  # noqa: T201 - with -s, the figure for the documentation


def _steps_of_b(a_step: int) -> Iterable[int]:
    if IS_LONG:
        return range(1, MOST_STEPS)
    return random.Random(a_step).sample(range(1, 15), 2)

"""The real supercronic for tests; where there is none, that is said loudly."""

import os
import shutil
from pathlib import Path

import pytest

_TOOLS = Path(__file__).resolve().parent.parent / ".tools" / "supercronic"
_MISSING = (
    "supercronic was not found in SUPERCRONIC, .tools/supercronic or PATH."
    " HINT: `make supercronic` gets it."
)
_skipped: list[str] = []


def find_supercronic() -> Path | None:
    """The program that SUPERCRONIC names, else the project's own, else PATH's."""
    candidates = [os.environ.get("SUPERCRONIC"), _TOOLS, shutil.which("supercronic")]
    paths = [Path(candidate) for candidate in candidates if candidate]
    return next((path for path in paths if os.access(path, os.X_OK)), None)


@pytest.fixture
def supercronic(request: pytest.FixtureRequest) -> Path:
    """The program. Without it the test is skipped, or fails where CI is set."""
    found = find_supercronic()
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail(_MISSING, pytrace=False)
    _skipped.append(request.node.nodeid)
    pytest.skip(_MISSING)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Nobody must take a run without these tests for a whole one."""
    if _skipped:
        terminalreporter.section("NOT TESTED: the schedule", "!", red=True, bold=True)
        terminalreporter.line(f"{len(_skipped)} tests were skipped: {_MISSING}")
        for name in _skipped:
            terminalreporter.line(f"  {name}")

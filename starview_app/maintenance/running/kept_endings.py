"""Ends of runs that could not be recorded, kept in files of this container."""

import json
from contextlib import suppress
from typing import Any

from starview_app.maintenance.running.local_memory import folder

_FILE = "ending-{}.json"  # of a run, by its id


def keep(run_id: str, columns: dict[str, Any]) -> None:
    """Write the columns of a run's end to a file. Raises OSError."""
    path = folder() / _FILE.format(run_id)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(columns), encoding="utf-8")
    part.replace(path)


def found() -> dict[str, dict[str, Any]]:
    """Return the kept columns by run id."""
    try:
        paths = list(folder().glob(_FILE.format("*")))
    except OSError:
        return {}
    columns = {}
    for path in paths:
        run_id = path.stem.partition("-")[2]
        with suppress(OSError, ValueError):  # another process may have just removed it
            columns[run_id] = json.loads(path.read_text(encoding="utf-8"))
    return columns


def forget(run_id: str) -> None:
    with suppress(OSError):
        (folder() / _FILE.format(run_id)).unlink(missing_ok=True)

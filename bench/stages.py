"""Runs a management command, and writes the seconds of its stages to a file.

    python -m bench.stages FILE archive_audit_logs --days=30

A clock around some dozen functions, which run a few hundred times in all: a profiler
would also time each of the millions of calls by which COPY hands over its rows.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OTHER = "start-up, records of the segments, manifest"
COPYING = "COPY of JSON and TXT, hashed and written"
DELETING = "DELETE"


class Clock:
    """Adds up seconds by stage. A stage inside another one is not counted twice."""

    def __init__(self) -> None:
        self.seconds = {OTHER: 0.0}
        self._stage = OTHER
        self._since = time.perf_counter()

    def enter(self, stage: str) -> str:
        """Count for `stage` from now on; returns the stage until now."""
        now = time.perf_counter()
        before = self._stage
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._stage, self._since = stage, now
        return before

    def watch(self, owner: Any, name: str, stage: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            before = self.enter(stage)
            try:
                return function(*arguments, **options)
            finally:
                self.enter(before)

        setattr(owner, name, watched)


def main(path: Path, arguments: list[str]) -> int:
    clock = Clock()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "starview.settings")
    import django

    django.setup()

    from django.db.backends.base.base import BaseDatabaseWrapper

    from starview_app.maintenance.jobs.audit_archive import archive as job
    from starview_app.maintenance.jobs.audit_archive import segments, transfer
    from starview_app.maintenance.stores import s3

    planning = "counting, planning, looking for references"
    for owner, name, stage in (
        (job, "_count_due", planning),
        (job, "plan", planning),
        (segments, "_summary", planning),
        (segments, "_refuse_referred", planning),
        (segments._Objects, "_copy", COPYING),
        (transfer.Source, "read_all", "read back and hashed"),
        (segments, "_delete", DELETING),
        (BaseDatabaseWrapper, "_commit", "COMMIT"),
        (os, "fsync", "fsync"),
        (s3._Upload, "_send_part", "upload"),
        (s3._Upload, "finish", "upload"),
    ):
        clock.watch(owner, name, stage)

    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage.py", *arguments])
    clock.enter(OTHER)
    path.write_text(json.dumps(clock.seconds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

#!/usr/bin/env python
"""Run a management command; errors that an operator can fix have no traceback."""

import errno
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from starview.output import filter_streams, finish_streams


def main() -> int:
    """Run the command in sys.argv and return its exit code."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "starview.settings")
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    filter_streams()
    code = 1
    try:
        code = _execute()
    finally:
        failure = finish_streams()
    if failure and not code:
        return _stopped_writing(failure)
    return code


def _execute() -> int:
    try:
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            traceback.print_exc()
            return 1
        # The reader of the report has gone (`| head`), or the disk is full. What was
        # committed is kept.
        return _stopped_writing(error)
    except Exception as error:
        text = _explain(error)
        if text is None:  # a bug keeps its traceback
            traceback.print_exc()
        else:
            print(f"error: {text}", file=sys.stderr)
        return 1
    return 0


def _stopped_writing(error: OSError) -> int:
    with suppress(OSError):
        print(f"error: stopped, writing failed: {error.strerror}", file=sys.stderr)
        sys.stderr.flush()
    return 1


def _nowhere() -> TextIO:
    """Return a stream for a process whose own was closed (`>&-`), so that it works."""
    return Path(os.devnull).open("w", encoding="utf-8")


def _explain(error: Exception) -> str | None:
    """Return one line about an error that an operator can fix; None for a bug."""
    missing = _missing_package(error)
    if missing:
        return (
            f"No module named {missing!r} HINT: install what requirements.txt lists:"
            " run ./build-cron.sh, or use the interpreter of the virtual environment"
        )
    from django.core.exceptions import ImproperlyConfigured

    from starview_app.maintenance.database_errors import explain

    return str(error) if isinstance(error, ImproperlyConfigured) else explain(error)


def _missing_package(error: BaseException | None) -> str:
    """Return the name of the package that an import, perhaps an inner one, lacks."""
    seen: set[int] = set()  # an error may be the cause of its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ModuleNotFoundError) and error.name:
            own = error.name.partition(".")[0] in {"starview", "starview_app"}
            return "" if own else error.name
        error = error.__cause__ or error.__context__
    return ""


if __name__ == "__main__":
    sys.exit(main())

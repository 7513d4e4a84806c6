#!/usr/bin/env python
"""Run a management command; what an operator can fix is said without a traceback."""

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
        # Nobody reads the report any more (`| head`), or it has no room; whatever was
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
    """A stream for a process whose own was closed (`>&-`): it works all the same."""
    return Path(os.devnull).open("w", encoding="utf-8")


def _explain(error: Exception) -> str | None:
    """What an operator can fix about `error`; None for a bug."""
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
    """The package that an import, perhaps deep inside, did not find."""
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

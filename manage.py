#!/usr/bin/env python
"""Run a management command; what an operator can fix is said without a traceback."""

import os
import sys
import traceback


def main() -> int | str | None:
    """Run the command in sys.argv; returns what `sys.exit` takes."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end a run half-way.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "starview.settings")
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import Error as DatabaseError

        from starview.logging import finish_streams, wrap_streams_as_json
    except ModuleNotFoundError as error:
        return (
            f"error: {error}\nHINT: install what requirements.txt lists: run"
            " ./build-cron.sh, or use the interpreter of the virtual environment."
        )
    if os.environ.get("LOG_FORMAT") == "json":
        wrap_streams_as_json()
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except DatabaseError as error:  # from a command that is not one of the jobs
        return _explain_or_trace(error)
    except Exception:  # a bug keeps its traceback, in the format of the log
        traceback.print_exc()
        return 1
    finally:
        finish_streams()
    return 0


def _explain_or_trace(error: Exception) -> int:
    from starview_app.maintenance.runner.database_errors import explain

    text = explain(error)
    if text is None:
        traceback.print_exc()
    else:
        print(f"error: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

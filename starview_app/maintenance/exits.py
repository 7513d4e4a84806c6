"""The exit codes of runs and commands: the exit code is the alarm."""

DONE = 0  # also when there was nothing to do, or another worker has the slot
FAILED = 1  # or incomplete, with one line that says why
WRONG_OPTIONS = 2
# Of sysexits.h. EX_UNAVAILABLE: without the database nothing was claimed, or run.
UNCLAIMED = 69
RUNNING = 75  # EX_TEMPFAIL: another run of this job is under way
# Of a shell, `env` or `timeout`: the program of the line was not found, or not started.
NOT_STARTED = (126, 127)


def as_shell_shows(code: int) -> int:
    """Of a process that a signal killed (a negative code): 128 and the number."""
    return code if code >= 0 else 128 - code

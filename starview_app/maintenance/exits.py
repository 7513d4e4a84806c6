"""The exit codes of runs and commands, by which supercronic notices a failure."""

DONE = 0  # also if there was nothing to do, or another run has claimed the slot
FAILED = 1  # or incomplete, with one line that has the reason
WRONG_OPTIONS = 2
# From sysexits.h. EX_UNAVAILABLE: without the database nothing was claimed or run.
UNCLAIMED = 69
RUNNING = 75  # EX_TEMPFAIL: another run of this job is under way
# From a shell, `env` or `timeout`: the program was not found or could not be started.
NOT_STARTED = (126, 127)


def as_shell_shows(code: int) -> int:
    """Return 128 plus the signal's number for a negative code, others unchanged."""
    return code if code >= 0 else 128 - code

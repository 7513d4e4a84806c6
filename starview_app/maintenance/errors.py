"""The error that a job raises for an operator."""


class JobError(Exception):
    """An error that an operator can fix. Its text is one line, perhaps with a HINT.

    Code that raises it guarantees that nothing was lost: the next run finds again what
    is not finished.
    """

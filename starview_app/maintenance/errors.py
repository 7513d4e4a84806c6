"""What a job raises for people."""


class JobError(Exception):
    """Something an operator can fix; its text is one line, with a HINT where one helps.

    Whoever raises it guarantees that nothing was lost: what was not finished is found
    again by the next run.
    """

"""Work on many rows of which the database may refuse some."""

from collections.abc import Callable, Sequence

from django.db import DatabaseError, connection

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.jobs.result import ShouldStop

# Of a trigger or a rule that keeps a row, without an error.
KEPT_SILENTLY = "the database kept it without an error (a trigger or rule)"


def work_on(
    ids: Sequence[int],
    work: Callable[[Sequence[int]], object],
    *,
    refused: Callable[[int, str], object],
    should_stop: ShouldStop,
) -> None:
    """Call `work` with all the ids; if the database refuses, with half of them each.

    An id that is refused alone is given to `refused`, with the reason in one line.
    `work` is one transaction. It is called with no ids to find out whether the error
    concerns every row (missing rights, for example). Such an error is raised, as is
    that of a lost session, and any error after a stop was asked for.
    """
    try:
        work(ids)
    except DatabaseError as error:
        gone = connection.connection is None or connection.connection.closed
        if gone or should_stop():
            raise
        work([])
        if len(ids) == 1:
            refused(ids[0], message_of(error))
            return
        middle = len(ids) // 2
        for half in (ids[:middle], ids[middle:]):
            work_on(half, work, refused=refused, should_stop=should_stop)

"""Runs all the checks of the database; changes nothing."""

from collections.abc import Iterator

from starview_app.maintenance.jobs.diagnosis import needs, server, tables, work
from starview_app.maintenance.jobs.diagnosis.section import (
    Check,
    Section,
    Situation,
    guarded,
)

_CHECKS: tuple[tuple[str, Check], ...] = (
    ("the connection", server.check_connection),
    ("the limits", server.check_limits),
    ("the clock", server.check_clock),
    ("transactions and locks", server.check_transactions),
    ("the largest tables", tables.check_largest),
    ("unused indexes", tables.check_unused_indexes),
    ("missing indexes", tables.check_missing_indexes),
    ("the migrations", needs.check_migrations),
    ("tables and columns", needs.check_columns),
    ("the rights", needs.check_rights),
    ("the work to do", work.check_work),
    ("the proofs", work.check_proofs),
)


def diagnose(situation: Situation) -> Iterator[Section]:
    """Yield each section when it is done. Raises DatabaseError without a session."""
    for title, check in _CHECKS:
        yield guarded(title, check, situation)

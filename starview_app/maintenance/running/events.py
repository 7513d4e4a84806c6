"""The events of a run, as Django signals; `notify` listens to them.

They are sent with `send_robust`: if a listener raises, that is logged, and the run goes
on.
"""

from django.dispatch import Signal

# A run is claimed, and its command is about to begin.
# Arguments: request: RunRequest, run_id: UUID.
run_started = Signal()
# A run has ended. Arguments: request, run_id, ending: Ending, is_recorded: bool,
# why_unrecorded: str, empty unless a run that should have a record has none.
run_ended = Signal()
# A run could not be claimed, or its end not be recorded.
# Arguments: job: str, error: str, now: datetime.
database_went_away = Signal()

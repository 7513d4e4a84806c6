"""What happens to a run, for whoever announces it: `notify` listens.

These are Django signals, sent with `send_robust`: a listener that raises is logged, and
changes nothing about the run.
"""

from django.dispatch import Signal

# request: RunRequest, run_id: UUID. The run is claimed, and its command about to begin.
run_started = Signal()
# request, run_id, ending: Ending, is_recorded: bool. `why_unrecorded`: str, says why a
# run that was meant to be on record is not on any.
run_ended = Signal()
# job: str, error: str, now: datetime. A run could not be claimed, or its end recorded.
database_went_away = Signal()

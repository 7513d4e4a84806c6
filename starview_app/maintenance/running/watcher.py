"""The watching process of a run, from the claim of the slot to the announcement."""

import json
import signal
import sys
import time
import uuid
from contextlib import suppress
from datetime import datetime

import structlog
from django.db import DatabaseError, connection, connections
from django.utils import timezone

from starview.output import finish_streams
from starview.redaction import redact
from starview_app.maintenance import exits
from starview_app.maintenance.database_errors import (
    explain,
    in_one_line,
    is_away,
    message_of,
)
from starview_app.maintenance.models import JobRun
from starview_app.maintenance.running.events import (
    database_went_away,
    run_ended,
    run_started,
)
from starview_app.maintenance.running.ledger import (
    Ending,
    RunRecord,
    prune,
)
from starview_app.maintenance.running.lock import lock_run
from starview_app.maintenance.running.process import Ended, Watched, fork
from starview_app.maintenance.running.request import RunRequest
from starview_app.maintenance.text import one_line

logger = structlog.get_logger(__name__)

_LONGEST_ERROR = 500  # characters

Outcome = JobRun.Outcome


def fork_run(request: RunRequest) -> "Watcher | None":
    """Fork; return a Watcher in this process, and None in the new one, which works.

    The new process waits until the watcher has claimed the run, and ends if it cannot.
    """
    run_id = uuid.uuid4()
    connections.close_all()
    structlog.contextvars.bind_contextvars(job=request.job, run_id=run_id.hex[:12])
    watched = fork()
    if watched:
        return Watcher(request, run_id, watched)
    lock_run(run_id)
    return None


class Watcher:
    """The watching process's part of a run: claim, watch, record and announce it."""

    def __init__(
        self, request: RunRequest, run_id: uuid.UUID, watched: Watched
    ) -> None:
        self._request = request
        self._run_id = run_id
        self._watched = watched
        self._record = RunRecord(request, run_id)
        self._why_unrecorded = ""
        self._is_saved = True
        self._started_at = timezone.now()
        self._clock_at_start = time.monotonic()  # the wall clock may be set meanwhile

    def watch(self) -> int:
        """Run the command, and return the exit code for this process.

        0: done, or not begun because the slot is taken or the job paused; 1: failed;
        69: not begun because the database did not answer; 2 and 75: the command's own.
        """
        try:
            return self._watch()
        finally:
            finish_streams()  # a log that cannot be written does not fail the run

    # -- internal helpers ---------------------------------------------------------

    def _watch(self) -> int:
        code = self._claim()
        if code is not None:
            self._watched.dismiss()
            return code
        run_started.send_robust(type(self), request=self._request, run_id=self._run_id)
        ended = self._watched.watch(
            deadline_seconds=self._request.deadline_seconds,
            kill_after_seconds=self._request.kill_after_seconds,
            save_output=self._save,
        )
        ending = conclude(ended, seconds=self._seconds(), now=timezone.now())
        _log_what_the_command_could_not(ended, ending)
        is_recorded = self._is_recorded(ending)
        self._announce_end(ending, is_recorded=is_recorded)
        # A run that was refused may have been so because of this machine's clock.
        if is_recorded and ending.outcome == Outcome.SUCCEEDED:
            self._prune(ending.finished_at)
        self._watched.flush()
        if ending.outcome == Outcome.SKIPPED and self._request.slot:
            return exits.DONE
        return ended.exit_code if ended.exit_code >= 0 else exits.FAILED

    def _claim(self) -> int | None:
        """Claim the run; return None if it may begin, else this process's exit code."""
        try:
            refusal = self._record.begin(self._started_at)
        except Exception as error:
            if is_away(error) and self._request.slot:
                self._database_is_down(in_one_line(error))
                return exits.UNCLAIMED
            # A command that a person typed reports by itself that the database is away.
            is_connected = connection.connection is not None
            if not is_away(error) and (self._request.slot or is_connected):
                self._not_recorded(error)
        else:
            if refusal:
                logger.info("job_skipped", reason=refusal.text)
                return exits.DONE
        return None

    def _seconds(self) -> float:
        return round(time.monotonic() - self._clock_at_start, 3)

    def _save(self, output: str) -> bool:
        """Save the output; return whether that worked. Logs only the first failure."""
        try:
            self._record.save_output(output)
        except Exception as error:
            if self._is_saved:
                logger.warning("output_not_saved", error=one_line(error))
            self._is_saved = False
        else:
            self._is_saved = True
        return self._is_saved

    def _prune(self, now: datetime) -> None:
        try:
            prune(now)
        except DatabaseError as error:
            logger.warning("runs_not_pruned", error=one_line(error))

    def _announce_end(self, ending: Ending, *, is_recorded: bool) -> None:
        run_ended.send_robust(
            type(self),
            request=self._request,
            run_id=self._run_id,
            ending=ending,
            is_recorded=is_recorded,
            # If only the end is missing in the record, `settle` adds it later.
            why_unrecorded="" if self._record.id else self._why_unrecorded,
        )

    def _is_recorded(self, ending: Ending) -> bool:
        """Record the end, and the begin if that has failed; return whether it did."""
        if not self._record.id and not self._why_unrecorded:
            return False  # a command that a person typed, without a database
        try:
            taken = self._record.finish(ending)
        except Exception as error:
            self._not_recorded(error)
            if is_away(error):
                self._announce_outage(in_one_line(error), ending.finished_at)
            return False
        if taken:
            self._why_unrecorded = taken.text
            logger.warning("run_not_recorded", error=taken.text)
        return not taken

    def _database_is_down(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(f"CommandError: {text}\n")
        logger.error("job_finished", outcome=Outcome.FAILED.value, error=text)
        now = timezone.now()
        ending = Ending(
            Outcome.FAILED, exits.UNCLAIMED, self._seconds(), now, text, {}, text
        )
        self._announce_end(ending, is_recorded=False)
        self._announce_outage(text, now)

    def _announce_outage(self, error: str, now: datetime) -> None:
        database_went_away.send_robust(
            type(self), job=self._request.job, error=error, now=now
        )

    def _not_recorded(self, error: Exception) -> None:
        text = explain(error) or f"{type(error).__name__}: {message_of(error)}"
        text = one_line(redact(text))
        if text != self._why_unrecorded:  # else it is logged already
            logger.warning("run_not_recorded", error=text)
        self._why_unrecorded = text


def _log_what_the_command_could_not(ended: Ended, ending: Ending) -> None:
    if ended.exit_code < 0:  # killed by a signal
        logger.error("job_finished", outcome=ending.outcome.value, error=ending.error)
    if ended.not_handed_on:
        logger.warning("output_not_handed_on", reason=ended.not_handed_on)


def conclude(ended: Ended, *, seconds: float, now: datetime) -> Ending:
    """Decide the outcome of a run. One that exits with 0 after a signal succeeded."""
    outcome, error = _outcome(ended), ""
    if outcome != Outcome.SUCCEEDED:
        error = ended.facts.get("error") or _last_line(ended.output)
        if not error:
            error = f"it wrote nothing, and ended with {ended.exit_code}"
    if ended.exit_code < 0:
        error = f"killed by signal {-ended.exit_code}"
        if outcome == Outcome.CRASHED and ended.exit_code == -signal.SIGKILL:
            error += ": perhaps it ran out of memory"
    if outcome == Outcome.INTERRUPTED and ended.stopped_by not in error:
        error = f"stopped by {ended.stopped_by}: {error}"
    if outcome == Outcome.TIMED_OUT:
        error = f"its deadline was over: {error}"
    return Ending(
        outcome=outcome,
        exit_code=exits.as_shell_shows(ended.exit_code),
        seconds=seconds,
        finished_at=now,
        error=redact(one_line(error))[:_LONGEST_ERROR],
        counts=ended.facts.get("counts", {}),
        output=ended.output,
    )


def _outcome(ended: Ended) -> JobRun.Outcome:
    if ended.exit_code == 0:
        return Outcome.SUCCEEDED
    if ended.timed_out:
        return Outcome.TIMED_OUT
    if ended.stopped_by or ended.facts.get("interrupted"):
        return Outcome.INTERRUPTED
    if ended.exit_code < 0:
        return Outcome.CRASHED
    return Outcome.SKIPPED if ended.facts.get("refused") else Outcome.FAILED


def _last_line(output: str) -> str:
    """Return the last line that is not empty; for a line of JSON, its message."""
    for line in reversed(output.splitlines()):
        text = line
        with suppress(ValueError, AttributeError, RecursionError):
            record = json.loads(line)
            text = str(record.get("line") or record.get("event") or line)
        if text.strip() and "job_started" not in text and "job_finished" not in text:
            return text.strip()
    return ""

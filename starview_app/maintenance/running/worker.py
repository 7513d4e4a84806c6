"""The working process of a run: it handles the stop, the lock, the log and the report.

Both a job of this project (`JobCommand`) and any other command (`run_job`) use it.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import structlog
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from psycopg2.errors import QueryCanceled

from starview_app.maintenance import exits
from starview_app.maintenance.database_errors import explain, hide_details, message_of
from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import JobResult, count_anew, counts_so_far
from starview_app.maintenance.running.lock import (
    JobIsRunningError,
    job_lock,
    sessions_named,
)
from starview_app.maintenance.running.process import report
from starview_app.maintenance.running.stop import StopNow, StopRequest, stop_on_signals
from starview_app.maintenance.text import one_line

logger = structlog.get_logger(__name__)

Work = Callable[[StopRequest], JobResult]

_LOST_HINT = (
    "HINT: the database was restarted, or somebody, a pooler or a firewall ended the"
    " session"
)


def work(
    job: str,
    do: Work,
    *,
    name: str = "",
    lock_name: str = "",
    is_locked: bool = True,
    is_shared: bool = False,
    grace_seconds: float | None = None,
    if_unfinished: str = "",
    log_fields: Mapping[str, object] = MappingProxyType({}),
) -> JobResult:
    """Call `do` as one run of `job`, and return its result.

    `lock_name` and `is_shared`: see `job_lock`. Without `is_locked` no lock is taken. A
    signal asks `do` to stop, and forces it to after `grace_seconds`: see `stop.py`.

    Raises JobIsRunningError, without a call of `do`, when another run holds the lock;
    JobError when `do` was stopped before it was done, or lost its lock. The error names
    `name`, or else the job, and ends with `if_unfinished`.
    """
    # Django has a connection for each thread; the thread that cancels needs this one.
    session = connections[DEFAULT_DB_ALIAS]

    def cancel_query() -> None:
        if session.connection:
            session.connection.cancel()

    name = name or job
    with sessions_named(job), stop_on_signals(cancel_query, grace_seconds) as stop:
        lock = job_lock(job, lock_name, on_lost=stop.fail, is_shared=is_shared)
        with lock if is_locked else nullcontext():
            result = _logged(do, stop, log_fields)
    if stop.failure:
        raise JobError(f"{name} {stop.failure}{if_unfinished} {_LOST_HINT}")
    if result.interrupted:
        text = f"{name} was stopped by {stop.signal_name} before it was done"
        raise JobError(text + if_unfinished)
    return result


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors that an operator can fix into one line; a bug keeps its traceback."""
    try:
        yield
    except JobIsRunningError as error:
        report(refused=True)
        raise CommandError(str(error), returncode=exits.RUNNING) from error
    except (JobError, ImproperlyConfigured) as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        text = explain(error)
        if text is None:
            hide_details(error)
            raise
        raise CommandError(text) from error


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Report an error to the watching process in one line, and raise it again."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if not isinstance(error, CommandError):
            text = explain(error) or f"{type(error).__name__}: {message_of(error)}"
        report(error=one_line(" ".join(text.split())))
        hide_details(error)
        raise


def _logged(do: Work, stop: StopRequest, fields: Mapping[str, object]) -> JobResult:
    pid, started = os.getpid(), time.monotonic()
    logger.info("job_started", **fields)
    outcome = "failed"
    count_anew()
    try:
        result = _until_stopped(do, stop)
        if not stop.failure:
            outcome = _outcome(result)
            report(interrupted=result.interrupted)
        return result
    except SystemExit as end:  # only commands of others raise it
        if stop.failure:
            return JobResult()  # the error came of the sessions that the stop cut off
        outcome = "failed" if end.code else "succeeded"
        raise
    finally:
        if os.getpid() == pid:  # else this is a fork of the command
            sys.stdout.flush()  # the output must come before the log line
            seconds = round(time.monotonic() - started, 3)
            write = logger.info if outcome == "succeeded" else logger.error
            counts = counts_so_far()
            write("job_finished", outcome=outcome, seconds=seconds, **counts)
            if counts:
                report(counts=counts)


def _until_stopped(do: Work, stop: StopRequest) -> JobResult:
    try:
        try:
            return do(stop)
        finally:
            stop.is_over = True  # only the report is left to do
    except StopNow:
        stop.is_over = True
        return JobResult(counts_so_far(), interrupted=True)
    except RuntimeError as error:
        # Before Python 3.12 an exception is wrapped if a class was just being made, as
        # imports do.
        if not isinstance(error.__cause__, StopNow):
            raise
        return JobResult(counts_so_far(), interrupted=True)
    except DatabaseError as error:
        if stop() and isinstance(error.__cause__, QueryCanceled):
            return JobResult(counts_so_far(), interrupted=True)
        raise


def _outcome(result: JobResult) -> str:
    if result.interrupted:
        return "interrupted"
    return "failed" if result.problems else "succeeded"

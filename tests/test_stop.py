"""A run that is asked to stop is insisted on until it has ended, and no longer."""

import os
import signal
import sys
import time
from contextlib import suppress
from threading import Semaphore
from types import FrameType

import pytest

from starview_app.maintenance.jobs.result import JobResult, count_anew
from starview_app.maintenance.running.stop import StopNow, StopRequest, stop_on_signals
from starview_app.maintenance.running.worker import _until_stopped
from tests.factories import DEADLINE_SECONDS

LOST = "lost its lock and was stopped"


def test_a_run_that_goes_on_after_its_grace_is_made_to_stop() -> None:
    is_insisted = Semaphore(0)

    def go_on(stop: StopRequest) -> JobResult:
        result = JobResult({"deleted": 1})
        stop.fail(LOST)
        while is_insisted.acquire(timeout=DEADLINE_SECONDS):
            pass
        return result

    count_anew()
    with stop_on_signals(is_insisted.release, grace_seconds=0.0) as stop:
        result = _until_stopped(go_on, stop)

    assert result == JobResult({"deleted": 1}, interrupted=True)


def test_the_signal_is_known_even_if_its_handler_is_cut_off() -> None:
    def hold(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "note":
            time.sleep(DEADLINE_SECONDS)

    def stop_itself(stop: StopRequest) -> JobResult:
        sys.setprofile(hold)
        os.kill(os.getpid(), signal.SIGTERM)
        return JobResult()

    count_anew()
    try:
        with stop_on_signals(lambda: None, grace_seconds=0.0) as stop:
            result = _until_stopped(stop_itself, stop)
    finally:
        sys.setprofile(None)

    assert result.interrupted
    assert stop.signal_name == "SIGTERM"


@pytest.mark.parametrize("error", [None, ValueError("a bug"), StopNow()])
def test_what_follows_the_job_is_left_alone(error: BaseException | None) -> None:
    is_insisted = Semaphore(0)

    def end(stop: StopRequest) -> JobResult:
        if error:
            raise error
        return JobResult()

    with stop_on_signals(is_insisted.release, grace_seconds=0.0) as stop:
        with suppress(ValueError):
            _until_stopped(end, stop)
        stop.fail(LOST)
        # Of the second time it is known that the first has been delivered.
        for _ in range(2):
            assert is_insisted.acquire(timeout=DEADLINE_SECONDS)


def test_a_stop_that_comes_while_a_class_is_made_is_a_stop() -> None:
    class Insists:
        def __set_name__(self, owner: type, name: str) -> None:
            raise StopNow

    def do(stop: StopRequest) -> JobResult:
        type("Made", (), {"attribute": Insists()})
        return JobResult()

    done = _until_stopped(do, StopRequest(lambda data: None))

    assert done.interrupted

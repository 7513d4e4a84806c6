"""What this process has set up is undone in the processes that it forks.

A command that forks (multiprocessing, an executor, `os.fork`) finds its children as
they would be without the runner. What leaves a block in such a child, by an exception
for example, must compare `os.getpid()` first: nothing there is the child's.

A job that shares its work forks by `in_processes`.
"""

import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connections

# How soon the helpers hear of a stop.
LOOK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1

_undo: list[Callable[[], None]] = []
_mask: set[int] = set()


def undo_in_children(undo: Callable[[], None]) -> None:
    """Call `undo` in each process that is forked from now on."""
    _undo.append(undo)


@contextmanager
def undone_in_children(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` in each process that is forked while the block runs."""
    undo_in_children(undo)
    try:
        yield
    finally:
        if undo in _undo:
            _undo.remove(undo)


def _before() -> None:
    # A signal for the child that comes before its handlers are undone must wait.
    if _undo:
        _mask.update(signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()))


def _in_parent() -> None:
    if _undo:
        _unblock()


def _in_child() -> None:
    if _undo:
        while _undo:
            _undo.pop()()
        _unblock()


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
    _mask.clear()


os.register_at_fork(
    before=_before, after_in_parent=_in_parent, after_in_child=_in_child
)


# -- helpers ---------------------------------------------------------------------------


def in_processes(
    count: int,
    do: Callable[[Callable[[int], None]], None],
    heard: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> list[int]:
    """Call `do` in so many forks of this process; returns the exit codes of all.

    `do` gets a function that hands a number on to `heard`, which is called in this
    process. The forks have no session with the database, nor has this process right
    after. They get SIGTERM when this one should stop; whatever ends this call or this
    process kills them. The code of one that a signal killed is its number, negative.
    """
    helpers: list[int] = []
    reader, writer = os.pipe()
    try:
        try:
            connections.close_all()  # two processes must not share a session
            for _ in range(count):
                helpers.append(_fork(do, reader, writer))
        finally:
            os.close(writer)
        _hear(reader, heard, should_stop, helpers)
        return [_code_of(helpers.pop()) for _ in range(count)]
    finally:
        os.close(reader)
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so it is this one's id
            os.waitpid(pid, 0)


def end_with(parent: int, number: signal.Signals) -> None:
    """Get this signal when the process that has forked this one is killed (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(0)


def _fork(do: Callable[[Callable[[int], None]], None], reader: int, writer: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        # Of the threads: one waits for signals, one for the end of the lock's session.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        end_with(parent, signal.SIGKILL)
        os.close(reader)
        # So short a line is written whole or not at all.
        do(lambda number: _write(writer, number))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - it must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _write(writer: int, number: int) -> None:
    os.write(writer, f"{number}\n".encode())


def _hear(
    reader: int,
    heard: Callable[[int], None],
    should_stop: Callable[[], bool],
    helpers: list[int],
) -> None:
    """Until all have closed their ends, since they have ended."""
    rest, is_stopped = b"", False
    while True:
        if should_stop() and not is_stopped:
            is_stopped = True
            for pid in helpers:
                os.kill(pid, signal.SIGTERM)
        if not select.select([reader], [], [], LOOK_SECONDS)[0]:
            continue
        data = os.read(reader, 4096)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            heard(int(line))


def _code_of(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)

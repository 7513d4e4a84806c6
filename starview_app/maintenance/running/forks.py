"""Forks: the runner's set-up is undone in children, and jobs can fork helpers.

When a command forks (multiprocessing, an executor, `os.fork`), its children must not
inherit the runner's signal handlers, locks and pipes. A child may also leave a `with`
block of the runner, for example by an exception; so the code at the end of such a block
compares `os.getpid()` before it cleans up what belongs to the parent.

A job that shares its work among processes starts them with `in_processes`.
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

# How often a stop is looked for, to pass it on to the helpers.
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
    # A signal that reaches the child before its handlers are undone must wait.
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
    """Call `do` in `count` forks of this process, and return their exit codes.

    `do` gets a function that sends a number to this process, which calls `heard` with
    it. Django's connections are closed before the forks. When `should_stop` returns
    True, the forks get SIGTERM; when this call ends by an exception, or this process is
    killed, they are killed. A negative exit code is the number of the signal that
    killed the fork.
    """
    helpers: list[int] = []
    reader, writer = os.pipe()
    try:
        try:
            connections.close_all()  # two processes must not share a database session
            for _ in range(count):
                helpers.append(_fork(do, reader, writer))
        finally:
            os.close(writer)
        _hear(reader, heard, should_stop, helpers)
        return [_code_of(helpers.pop()) for _ in range(count)]
    finally:
        os.close(reader)
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the id is not reused
            os.waitpid(pid, 0)


def end_with(parent: int, number: signal.Signals) -> None:
    """Let the kernel send this process a signal when `parent` ends (Linux only)."""
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
        # Python warns of forks with threads. Here are two: one waits for signals, the
        # other for the end of the lock's session.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        end_with(parent, signal.SIGKILL)
        os.close(reader)
        # A pipe takes a line as short as this whole or not at all.
        do(lambda number: _write(writer, number))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the child must not run the parent's code
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
    """Pass numbers on to `heard` until all helpers have ended."""
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

"""What this process has set up is undone in the processes that it forks.

A command that forks (multiprocessing, an executor, `os.fork`) finds its children as
they would be without the runner. What leaves a block in such a child, by an exception
for example, must compare `os.getpid()` first: nothing there is the child's.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

"""One stream of a command: read, kept for the record, and handed on without waiting.

Nobody reading the log, or a disk that is full, neither holds up the watching process
nor ends the job.
"""

import os
import select
from collections.abc import Callable, Iterable

from starview.output import Passage

_READ_BYTES = 64 * 1024
_LAST_CHUNKS = 16  # a pipe holds one


class Relay:
    """From the descriptor `source`, which becomes its own, to `target`.

    `keep` gets what people may read of it. What cannot be written is left out, and
    `failure` says why; what comes later is tried anew.
    """

    def __init__(
        self,
        source: int,
        target: int,
        *,
        keep: Callable[[bytes], None],
    ) -> None:
        self.failure = ""
        self.is_open = True  # until the command, and what it has started, closed it
        self._source = source
        self._target = target
        name = "stderr" if target == 2 else "stdout"
        self._passage = Passage(name, is_terminal=os.isatty(target), keep=keep)
        self._pending = b""

    @property
    def is_blocked(self) -> bool:
        """Whether nobody takes what was written; then no more is read."""
        return bool(self._pending)

    def register(self, poll: select.poll) -> None:
        """Wait for what comes next: room, or something to read."""
        if self._pending:
            poll.register(self._target, select.POLLOUT)
        elif self.is_open:
            poll.register(self._source, select.POLLIN)

    def step(self) -> None:
        """Do what can be done without waiting."""
        self.hand_on()
        if not self._pending:
            self._take()
            self.hand_on()

    def hand_on(self) -> None:
        """Write what the other side takes now."""
        while self._pending and _is_ready(self._target, select.POLLOUT):
            try:
                # Where a pipe has room at all it has room for so much.
                written = os.write(self._target, self._pending[: select.PIPE_BUF])
            except BlockingIOError:
                return
            except OSError as error:
                self.failure = error.strerror or str(error)
                self._pending = b""
            else:
                self._pending = self._pending[written:]

    def end(self) -> None:
        """Take what the command has left behind, and no more."""
        for _ in range(_LAST_CHUNKS):
            self._take()
        self._pending += self._passage.finish()
        self.hand_on()

    # -- internal helpers ---------------------------------------------------------

    def _take(self) -> None:
        if not self.is_open or not _is_ready(self._source):
            return
        chunk = self._read()
        if chunk:
            self._pending += self._passage.feed(chunk)
        else:
            os.close(self._source)
            self.is_open = False

    def _read(self) -> bytes:
        """b"" at the end, which on a terminal is an error."""
        try:
            return os.read(self._source, _READ_BYTES)
        except OSError:
            return b""


def flush(relays: Iterable[Relay], *, is_over: Callable[[], bool]) -> None:
    """Wait until all is handed on, or `is_over`, which is asked every second."""
    while blocked := [relay for relay in relays if relay.is_blocked]:
        if is_over():
            return
        poll = select.poll()
        for relay in blocked:
            relay.register(poll)
        poll.poll(1000)
        for relay in blocked:
            relay.hand_on()


def _is_ready(descriptor: int, event: int = select.POLLIN) -> bool:
    """Whether it can be read or written without waiting; an error is one way."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(0))

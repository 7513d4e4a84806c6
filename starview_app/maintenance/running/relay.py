"""Relays one stream of a command: reads, keeps and writes it, without blocking.

A log that nobody reads, or a full disk, neither blocks the watching process nor ends
the job.
"""

import os
import select
from collections.abc import Callable, Iterable

from starview.output import Passage

_READ_BYTES = 64 * 1024
_LAST_CHUNKS = 16  # more than a pipe can hold


class Relay:
    """Copies the descriptor `source`, which it owns from then on, to `target`.

    `keep` gets the output without secrets. Output that cannot be written is dropped,
    and `failure` has the reason; later output is tried again.
    """

    def __init__(
        self,
        source: int,
        target: int,
        *,
        keep: Callable[[bytes], None],
    ) -> None:
        self.failure = ""
        self.is_open = True  # until the command and its children have closed it
        self._source = source
        self._target = target
        name = "stderr" if target == 2 else "stdout"
        self._passage = Passage(name, is_terminal=os.isatty(target), keep=keep)
        self._pending = b""

    @property
    def is_blocked(self) -> bool:
        """Whether the target takes no more output; then no more is read."""
        return bool(self._pending)

    def register(self, poll: select.poll) -> None:
        """Register for room in the target, or for something to read."""
        if self._pending:
            poll.register(self._target, select.POLLOUT)
        elif self.is_open:
            poll.register(self._source, select.POLLIN)

    def step(self) -> None:
        """Read and write what is possible without blocking."""
        self.hand_on()
        if not self._pending:
            self._take()
            self.hand_on()

    def hand_on(self) -> None:
        """Write as much of the pending output as the target takes without blocking."""
        while self._pending and _is_ready(self._target, select.POLLOUT):
            try:
                # A pipe that is ready for writing takes PIPE_BUF bytes.
                written = os.write(self._target, self._pending[: select.PIPE_BUF])
            except BlockingIOError:
                return
            except OSError as error:
                self.failure = error.strerror or str(error)
                self._pending = b""
            else:
                self._pending = self._pending[written:]

    def end(self) -> None:
        """Read what the command has left in the pipe, at most _LAST_CHUNKS chunks."""
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
        """Return b"" at the end of the stream, which a terminal reports as an error."""
        try:
            return os.read(self._source, _READ_BYTES)
        except OSError:
            return b""


def flush(relays: Iterable[Relay], *, is_over: Callable[[], bool]) -> None:
    """Wait until all output is written, or `is_over`, called each second, is True."""
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
    """Whether a read or a write would return at once, perhaps with an error."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(0))

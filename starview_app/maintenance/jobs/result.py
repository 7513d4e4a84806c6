"""The result of a job."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

# Called between steps after which a job can stop; True means that it must stop now.
ShouldStop = Callable[[], bool]

_counts: ContextVar[dict[str, int] | None] = ContextVar("counts", default=None)


@dataclass
class JobResult:
    """The counts by name (`{"deleted": 2}`). A run with `problems` has failed.

    `interrupted`: the job was asked to stop and did, between two batches; what it has
    done is kept, and the next run continues.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        _counts.set(self.counts)


def counts_so_far() -> dict[str, int]:
    """Return the counts of the newest JobResult, even if the job has raised."""
    return _counts.get() or {}


def count_anew() -> None:
    """Forget the counts, since another job begins."""
    _counts.set(None)

"""What every job hands back."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

# Asked between two steps that may each be the last: True means stop now.
ShouldStop = Callable[[], bool]

_counts: ContextVar[dict[str, int] | None] = ContextVar("counts", default=None)


@dataclass
class JobResult:
    """`counts` by name (`{"deleted": 2}`); a run with `problems` has failed.

    `interrupted`: the job was asked to stop and did so between two batches; what was
    done stays done and the next run continues.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        _counts.set(self.counts)


def counts_so_far() -> dict[str, int]:
    """What the newest result has counted: a job that raises hands none back."""
    return _counts.get() or {}


def count_anew() -> None:
    """Another job begins."""
    _counts.set(None)

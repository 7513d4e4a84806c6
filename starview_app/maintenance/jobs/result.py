"""What every job hands back."""

from collections.abc import Callable
from dataclasses import dataclass, field

# Asked between two steps that may each be the last: True means stop now.
ShouldStop = Callable[[], bool]


@dataclass
class JobResult:
    """`counts` by name (`{"deleted": 2}`); a run with `problems` has failed.

    `interrupted`: the job was told to stop and did so between two batches; what was
    done stays done and the next run continues.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False

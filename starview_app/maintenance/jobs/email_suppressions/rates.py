"""The two rates by which Amazon SES judges an account."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from starview_app.maintenance.ses import SendingWeek

FEWEST_ATTEMPTS_TO_JUDGE = 200  # with fewer, a single bounce changes the state


class State(StrEnum):
    HEALTHY = "healthy"
    REVIEW = "review"
    PAUSE = "sending may be paused"
    TOO_FEW = "too few mails to judge"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rate:
    """A rate, `events` / `attempts`, from SES's figures; unknown without attempts.

    From the rate `review` on (inclusive) SES reviews the account; from `pause` on it
    may stop the account from sending.
    """

    name: str
    events: int
    attempts: int
    review: Fraction
    pause: Fraction
    decimals: int

    @property
    def state(self) -> State:
        if not self.attempts:
            return State.UNKNOWN
        share = Fraction(self.events, self.attempts)
        if share >= self.pause:
            return State.PAUSE
        return State.REVIEW if share >= self.review else State.HEALTHY

    def __str__(self) -> str:
        """The rate, rounded down, so that a limit shows only when it is reached."""
        if not self.attempts:
            return "unknown"
        steps = 10**self.decimals  # per percent
        shown = math.floor(Fraction(100 * steps * self.events, self.attempts))
        if self.events and not shown:
            return f"<{1 / steps} %"
        return f"{shown / steps:.{self.decimals}f} %"


def rates(week: SendingWeek | None) -> tuple[Rate, Rate]:
    """Return the bounce rate and the complaint rate; unknown without a week."""
    week = week or SendingWeek()
    return (
        Rate(
            "bounce rate",
            week.bounces,
            week.attempts,
            review=Fraction("0.05"),
            pause=Fraction("0.10"),
            decimals=1,
        ),
        Rate(
            "complaint rate",
            week.complaints,
            week.attempts,
            review=Fraction("0.001"),
            pause=Fraction("0.005"),
            decimals=2,
        ),
    )

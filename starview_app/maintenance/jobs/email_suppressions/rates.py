"""The two rates by which Amazon SES judges an account."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Protocol

FEWEST_ATTEMPTS_TO_JUDGE = 200  # with fewer, a single bounce changes the state


class State(StrEnum):
    HEALTHY = "healthy"
    REVIEW = "review"
    PAUSE = "sending may be paused"
    TOO_FEW = "too few mails to judge"
    UNKNOWN = "unknown"


class Week(Protocol):
    """SES's counts of one week."""

    @property
    def attempts(self) -> int: ...
    @property
    def bounces(self) -> int: ...
    @property
    def complaints(self) -> int: ...


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

    @property
    def percent(self) -> float:
        """Rounded down: a limit shows only when it is reached. Needs attempts."""
        steps: int = 10**self.decimals
        share = Fraction(self.events, self.attempts)
        return math.floor(100 * steps * share) / steps

    def __str__(self) -> str:
        if not self.attempts:
            return "unknown"
        if self.events and not self.percent:
            return f"<{1 / 10**self.decimals} %"
        return f"{self.percent:.{self.decimals}f} %"


def rates(week: Week | None) -> tuple[Rate, Rate]:
    """Return the bounce rate and the complaint rate; unknown without a week."""
    attempts = week.attempts if week else 0
    return (
        Rate(
            "bounce rate",
            week.bounces if week else 0,
            attempts,
            review=Fraction("0.05"),
            pause=Fraction("0.10"),
            decimals=1,
        ),
        Rate(
            "complaint rate",
            week.complaints if week else 0,
            attempts,
            review=Fraction("0.001"),
            pause=Fraction("0.005"),
            decimals=2,
        ),
    )

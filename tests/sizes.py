"""How much of a repeated test runs: `make test`, `make soak`, `make soak LONG=1`."""

import os
from typing import Any

import pytest

IS_LONG = bool(os.environ.get("LONG"))


def sizes(test: int, *, soak: int, long: int, of: Any) -> list[Any]:
    """Parameters for a test that repeats: (`of`, rounds), in a soak more of them.

    A soak is run by CI as well, all of it in 8 minutes on two cores.
    """
    rounds = long if IS_LONG else soak
    return [(of, test), pytest.param(of, rounds, marks=pytest.mark.soak)]

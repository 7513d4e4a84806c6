"""How much of a repeated test runs: `make test`, `make soak`, `make soak LONG=1`."""

import os
from typing import Any

import pytest

IS_LONG = bool(os.environ.get("LONG"))


def sizes(test: int, *, soak: int, long: int) -> list[Any]:
    """Parameters for a test that repeats: `test` rounds in the suite, more in a soak.

    A soak is run by CI as well, all of it in 8 minutes on two cores.
    """
    return [test, pytest.param(long if IS_LONG else soak, marks=pytest.mark.soak)]

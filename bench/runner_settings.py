"""The settings, with the crontab that the benchmark names."""

import os
from pathlib import Path

from starview.settings import *  # noqa: F403 - all of them

CRONTAB = Path(os.environ["BENCH_CRONTAB"])

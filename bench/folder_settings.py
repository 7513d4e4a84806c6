"""The settings, with archives in the folder that the benchmark names."""

import os
from pathlib import Path

from starview.settings import *  # noqa: F403 - all of them

AUDIT_ARCHIVE_FOLDER = Path(os.environ["BENCH_ARCHIVE_FOLDER"])

"""The machine of the measurement."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.laboratory import Laboratory


def machine() -> str:
    """Processor, cores, memory and system, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory,"
        f" {platform.system()} {platform.machine()}"
    )


def versions(laboratory: Laboratory, *, has_minio: bool) -> str:
    database = laboratory.ask("postgres", "SHOW server_version")
    s3_server = "MinIO" if has_minio else f"moto {version('moto')}"
    return (
        f"Python {platform.python_version()}, PostgreSQL {database}, boto3"
        f" {version('boto3')}, S3 server {s3_server}"
    )


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or "unknown processor"

"""A container's memory of an outage, for while its database does not answer.

While a channel knows of an outage, a file for that channel exists; its modification
time is the begin of the outage. The folder is in the temporary directory, private to
the user and named after the database. If it cannot be created, nothing is remembered,
and every job announces the outage.
"""

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from django.db import connection

_DOWN = "database-is-down-{}"  # by the channel's name
_BEGUN = "begun"  # as old as the memory of this container
# An older claim belongs to a process that was killed: an alert takes half as long.
_CLAIM_SECONDS = 60


def folder() -> Path:
    """Return the folder, created if it does not exist. Raises OSError."""
    database = connection.settings_dict
    address = [str(database[name]) for name in ("HOST", "PORT", "NAME")]
    digest = hashlib.sha256(json.dumps(address).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"starview-maintenance-{digest}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if found.st_uid != os.getuid() or not is_private:
        raise PermissionError(f"{path} is not a private folder of this user")
    return path


def is_new() -> bool:
    """Return True once in a container, and never after `announce_outage` was called."""
    try:
        (folder() / _BEGUN).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # without a memory no outage can be suspected
        return False
    return True


def announce_outage(channel: str, send: Callable[[], bool]) -> None:
    """Call `send`, unless it succeeded in this outage or another process is calling it.

    The claim is a file of another name, which is renamed when `send` returns True. If
    the process is killed in between, the outage is announced twice, but never not at
    all.
    """
    try:
        claim = _claimed(channel)
    except OSError:
        send()
        return
    if claim:
        is_announced = send()
        with suppress(OSError):
            claim.replace(claim.with_suffix("")) if is_announced else claim.unlink()


def down_since(channel: str) -> datetime | None:
    """Return when the outage began that `channel` knows of, or None."""
    with suppress(OSError):
        return _time(folder() / _DOWN.format(channel))
    return None


def is_of_this_container(since: datetime) -> bool:
    """Whether the outage began in the lifetime of this container."""
    with suppress(OSError):
        return since >= _time(folder() / _BEGUN)
    return False


def suspect_outage(channel: str, since: datetime) -> None:
    """Remember an outage that an earlier container may have announced."""
    with suppress(OSError):
        path = folder() / _DOWN.format(channel)
        path.touch()
        os.utime(path, (since.timestamp(), since.timestamp()))


def forget_outage(channel: str) -> None:
    with suppress(OSError):
        (folder() / _DOWN.format(channel)).unlink(missing_ok=True)


def _claimed(channel: str) -> Path | None:
    """Create and return the claim, or return None if it is not ours. Raises OSError."""
    is_new()
    path = folder() / _DOWN.format(channel)
    claim = path.with_suffix(".claim")
    if path.exists():
        return None
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        if time.time() - claim.stat().st_mtime < _CLAIM_SECONDS:
            return None
        claim.touch()
    return claim


def _time(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)

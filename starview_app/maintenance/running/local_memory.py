"""What a container remembers of an outage while its database does not answer.

A file for each channel exists while that channel knows of an outage; its time is since
when. The folder belongs to one database, in the temporary directory, and is private to
the user. Where it cannot be, nothing is remembered: every job announces the outage.
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
# A claim that is older belongs to a process that was killed: an alert takes half of it.
_CLAIM_SECONDS = 60


def folder() -> Path:
    """Raises OSError where it cannot be."""
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
    """Whether nobody has asked this before, and no outage was announced."""
    try:
        (folder() / _BEGUN).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # nothing is remembered, and so nothing suspected
        return False
    return True


def announce_outage(channel: str, send: Callable[[], bool]) -> None:
    """Call `send`, unless it has succeeded in this outage or another process calls it.

    The file is claimed under another name, and gets its own when `send` returns True:
    a process that is killed in between leads to a second announcement, not to none.
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
    """Since when `channel` knows of an outage; None when it knows of none."""
    with suppress(OSError):
        return _time(folder() / _DOWN.format(channel))
    return None


def is_of_this_container(since: datetime) -> bool:
    """Whether an outage was announced by this container, not by one before it."""
    with suppress(OSError):
        return since >= _time(folder() / _BEGUN)
    return False


def suspect_outage(channel: str, since: datetime) -> None:
    """Remember an outage that a container before this one may have announced."""
    with suppress(OSError):
        path = folder() / _DOWN.format(channel)
        path.touch()
        os.utime(path, (since.timestamp(), since.timestamp()))


def forget_outage(channel: str) -> None:
    with suppress(OSError):
        (folder() / _DOWN.format(channel)).unlink(missing_ok=True)


def _claimed(channel: str) -> Path | None:
    """The file of a claim; None when there is nothing to claim. Raises OSError."""
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

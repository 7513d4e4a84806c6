"""What is remembered in files, since the database did not answer.

In a folder of the temporary directory that belongs to one database and is private to
the user. Where it cannot be, nothing is remembered: what is told is told again.
"""

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db import connection

_DOWN = "database-is-down"  # exists when this was mailed, and nothing since
_SUSPECTED = "database-may-have-been-down"
_BEGUN = "begun"
_SAID = "said"  # what the log says of mails that nobody gets
_ENDING = "ending-{}.json"  # of a run, by its id


def _folder() -> Path:
    """Raises OSError where it cannot be."""
    database = connection.settings_dict
    address = [str(database[name]) for name in ("HOST", "PORT", "NAME")]
    digest = hashlib.sha256(json.dumps(address).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"starview-maintenance-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if found.st_uid != os.getuid() or not is_private:
        raise PermissionError(f"{folder} is not a private folder of this user")
    return folder


# -- an outage -----------------------------------------------------------------------


def down_since() -> datetime | None:
    """When it was mailed that the database does not answer; None when it does."""
    with suppress(OSError):
        return datetime.fromtimestamp((_folder() / _DOWN).stat().st_mtime, UTC)
    return None


def remember_down() -> None:
    with suppress(OSError):
        (_folder() / _DOWN).touch(exist_ok=False)


def forget_down() -> None:
    with suppress(OSError):
        (_folder() / _DOWN).unlink(missing_ok=True)
        (_folder() / _SUSPECTED).unlink(missing_ok=True)


def suspected_since() -> datetime | None:
    """Since when the container before this one may have mailed an outage."""
    with suppress(OSError):
        return datetime.fromtimestamp((_folder() / _SUSPECTED).stat().st_mtime, UTC)
    return None


def suspect_down(since: datetime) -> None:
    with suppress(OSError):
        path = _folder() / _SUSPECTED
        path.touch()
        os.utime(path, (since.timestamp(), since.timestamp()))


def is_new() -> bool:
    """Whether nobody has asked this before: the memory begins here."""
    try:
        (_folder() / _BEGUN).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # nothing is remembered, and so nothing suspected
        return False
    return True


@contextmanager
def file_lock() -> Iterator[bool]:
    """Whether it is ours; also where files cannot be. Free when its owner dies."""
    try:
        file = (_folder() / "lock").open("w")
    except OSError:
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError as error:  # a file system may know no locks
            is_ours = not isinstance(error, BlockingIOError)
        yield is_ours


def is_said(text: str) -> bool:
    """Whether this was the last that was remembered as said."""
    with suppress(OSError):
        return (_folder() / _SAID).read_text(encoding="utf-8") == text
    return False


def remember_said(text: str) -> None:
    with suppress(OSError):
        (_folder() / _SAID).write_text(text, encoding="utf-8")


# -- ends of runs that could not be recorded -----------------------------------------


def keep_ending(run_id: str, columns: dict[str, Any]) -> None:
    """Keep how a run ended; raises OSError where that cannot be."""
    path = _folder() / _ENDING.format(run_id)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(columns), encoding="utf-8")
    part.replace(path)


def kept_endings() -> dict[str, dict[str, Any]]:
    """What was kept, by the run's id."""
    try:
        paths = list(_folder().glob(_ENDING.format("*")))
    except OSError:
        return {}
    found = {}
    for path in paths:
        run_id = path.stem.partition("-")[2]
        with suppress(OSError, ValueError):  # another process has just settled it
            found[run_id] = json.loads(path.read_text(encoding="utf-8"))
    return found


def forget_ending(run_id: str) -> None:
    with suppress(OSError):
        (_folder() / _ENDING.format(run_id)).unlink(missing_ok=True)

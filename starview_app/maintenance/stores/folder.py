"""Archives in a folder: for development, with the guarantees of the bucket."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from starview_app.maintenance.stores.base import StoreError

_READ_BYTES = 1 << 20


class FolderStore:
    """Objects are files of `folder`, which is made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Write aside, fsync, then link into place, which never overwrites."""
        with self._errors(name):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, aside = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                with self._errors(name):
                    file.flush()
                    os.fsync(file.fileno())
                    Path(self._folder / name).hardlink_to(aside)
        except OSError as error:
            raise self._error(name, error) from error
        finally:
            with suppress(OSError):
                Path(aside).unlink()
        self._sync_folder()

    def read(self, name: str) -> Iterator[bytes]:
        with self._errors(name), (self._folder / name).open("rb") as file:
            while piece := file.read(_READ_BYTES):
                yield piece

    def delete(self, name: str) -> None:
        with self._errors(name):
            (self._folder / name).unlink(missing_ok=True)
            self._sync_folder()

    def _sync_folder(self) -> None:
        """Make a new or removed name survive a power cut."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(name, error) from error

    def _error(self, name: str, error: OSError) -> StoreError:
        return StoreError(f"{self._folder / name}: {error.strerror or error}")

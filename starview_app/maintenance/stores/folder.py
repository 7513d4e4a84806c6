"""Archives in a folder: for development, with the guarantees of the bucket."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from starview_app.maintenance.stores.base import (
    Listed,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
)

_READ_BYTES = 1 << 20
_UNFINISHED = ".part"


class FolderStore:
    """Objects are files in `folder`, which is created when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def location(self) -> str:
        return str(self._folder)

    @contextmanager
    def writer(self, name: str, *, overwrite: bool = False) -> Iterator[BinaryIO]:
        """Write to another name, fsync, then link, which never overwrites."""
        with self._errors(name):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, aside = tempfile.mkstemp(
                dir=self._folder, prefix=f".{name}.", suffix=_UNFINISHED
            )
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                with self._errors(name):
                    file.flush()
                    os.fsync(file.fileno())
                    if overwrite:
                        Path(aside).replace(self._folder / name)
                    else:
                        (self._folder / name).hardlink_to(aside)
        except OSError as error:
            raise self._error(name, error) from error
        finally:
            with suppress(OSError):
                Path(aside).unlink()
        with self._errors(name):
            self._sync_folder()

    def read(self, name: str) -> Iterator[bytes]:
        with self._errors(name), (self._folder / name).open("rb") as file:
            while piece := file.read(_READ_BYTES):
                yield piece

    def delete(self, name: str) -> None:
        with self._errors(name):
            (self._folder / name).unlink(missing_ok=True)
            self._sync_folder()

    def discard_unfinished(self, name: str) -> None:
        with self._errors(name):
            for path in self._files():
                # The part of the name that mkstemp adds has no dot.
                if re.fullmatch(rf"\.{re.escape(name)}\.[^.]+\.part", path.name):
                    path.unlink()

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        with self._errors(""):
            for path in self._files():
                if path.name.startswith(prefix) and not self._is_unfinished(path):
                    yield Listed(path.name, path.stat().st_size)

    def _files(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if path.is_file())

    def _is_unfinished(self, path: Path) -> bool:
        return path.name.startswith(".") and path.suffix == _UNFINISHED

    def _sync_folder(self) -> None:
        """Make the creation or removal of a file durable."""
        if not self._folder.is_dir():
            return
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
        kinds = {
            FileExistsError: ObjectExistsError,
            FileNotFoundError: ObjectMissingError,
        }
        kind = kinds.get(type(error), StoreError)
        return kind(f"{self._folder / name}: {error.strerror or error}")

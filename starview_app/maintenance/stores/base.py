"""The interface of a store for archives and backups."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class StoreError(Exception):
    """The store refused, is down or has unexpected content; the text is one line."""


class ObjectExistsError(StoreError):
    """An object of this name exists; it was not changed."""


class ObjectMissingError(StoreError):
    """There is no object of this name."""


class ObjectLockedError(StoreError):
    """A lock of the store keeps the object; it was not changed."""


class ObjectWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Listed(NamedTuple):
    name: str
    size_bytes: int


class Store(Protocol):
    """A flat set of named objects. Every method may raise StoreError."""

    @property
    def location(self) -> str:
        """Return a text that identifies this store in every run, without secrets."""

    def writer(
        self, name: str, *, overwrite: bool = False
    ) -> AbstractContextManager[ObjectWriter]:
        """Write one object, which exists, complete and durable, after the block.

        If the block raises, no object is left, unless a StoreError leaves that in
        doubt. A process that is killed may leave an unfinished object, which no reader
        sees. Raises ObjectExistsError if the name is taken, unless `overwrite` is set.
        """

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the object's bytes in pieces of limited size, never from a cache.

        Raises ObjectMissingError.
        """

    def delete(self, name: str) -> None:
        """Remove the object; it is not an error if there is none.

        Raises ObjectLockedError.
        """

    def discard_unfinished(self, name: str) -> None:
        """Remove the unfinished objects that killed writers of `name` have left."""

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        """Yield every object whose name begins with `prefix`, ordered by name."""

"""What an archive needs of the place it goes to."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class StoreError(Exception):
    """The store refused, is down or has other content; the text is one line."""


class ObjectExistsError(StoreError):
    """The name is taken; what is there was not touched."""


class ObjectMissingError(StoreError):
    """There is no object of this name."""


class ObjectLockedError(StoreError):
    """A rule of the store keeps the object; it was not touched."""


class ObjectWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Listed(NamedTuple):
    name: str
    size_bytes: int


class Store(Protocol):
    """A flat set of named objects. Every method raises StoreError for what it does."""

    @property
    def location(self) -> str:
        """Which place this is, the same in every run; it holds no secret."""

    def writer(
        self, name: str, *, overwrite: bool = False
    ) -> AbstractContextManager[ObjectWriter]:
        """Write one object: it is there, whole and durable, once the block has ended.

        When the block raises, no object is left, unless a StoreError leaves that in
        doubt; a process that is killed may leave an unfinished one, which no reader
        sees. A name that is taken raises ObjectExistsError, unless `overwrite` is set.
        """

    def read(self, name: str) -> Iterator[bytes]:
        """The object's bytes, from the store itself, in pieces of bounded size.

        Raises ObjectMissingError.
        """

    def delete(self, name: str) -> None:
        """Remove the object; one that is not there is no error.

        Raises ObjectLockedError.
        """

    def discard_unfinished(self, name: str) -> None:
        """Remove what a killed writer of `name` has left."""

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        """Every object whose name begins with `prefix`, page by page, by name."""

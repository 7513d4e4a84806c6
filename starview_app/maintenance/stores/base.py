"""What an archive needs of the place it goes to."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class StoreError(Exception):
    """The store refused, is down or has other content; the text is one line."""


class ObjectWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Store(Protocol):
    """A flat set of named objects, written once and never overwritten.

    Every method raises StoreError for what the store does.
    """

    def writer(self, name: str) -> AbstractContextManager[ObjectWriter]:
        """Write one object: it is there, whole and durable, once the block has ended.

        When the block raises, no object is left. A name that exists is refused.
        """

    def read(self, name: str) -> Iterator[bytes]:
        """The object's bytes, from the store itself, in pieces of bounded size."""

    def delete(self, name: str) -> None:
        """Remove the object; one that is not there is no error."""

"""Several object stores as one: the first that has an object serves it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import BinaryIO

from mlstate.digests import Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.objects.interface import ObjectStore

__all__ = ["ChainObjectStore"]


class ChainObjectStore:
    """Object stores asked one after the other, for instance read-only caches before one's own.

    Args:
        stores: At least one; the last one is where a missing object would belong.
    """

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        if not stores:
            raise ValueError("a chain needs at least one object store")
        self.stores = tuple(stores)

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if no store has it."""
        sizes = (store.size(digest) for store in self.stores)
        return next((size for size in sizes if size is not None), None)

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object in the first store that has it.

        Raises:
            ObjectNotFoundError: None has it.
        """
        for store in self.stores[:-1]:
            with contextlib.suppress(ObjectNotFoundError):
                return store.open(digest)
        return self.stores[-1].open(digest)

    def locate(self, digest: Digest) -> str:
        """Where the object is, or in the last store would be."""
        having = (store for store in self.stores if store.size(digest) is not None)
        return next(having, self.stores[-1]).locate(digest)

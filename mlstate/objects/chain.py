"""Several object stores as one: a chain, and a cache, the last of which takes what is fetched."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from mlstate.digests import Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.format import layout
from mlstate.objects.files import make_folders
from mlstate.objects.folder import FolderObjectStore
from mlstate.objects.interface import ObjectStore

__all__ = ["Cache", "ChainObjectStore", "folders_of"]


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


def folders_of(objects: ObjectStore) -> list[FolderObjectStore]:
    """The folders that an object store reads, in order; none for one that is in no folder."""
    stores = objects.stores if isinstance(objects, ChainObjectStore) else (objects,)
    return [store for store in stores if isinstance(store, FolderObjectStore)]


class Cache(ChainObjectStore):
    """Object stores asked one after the other; what is known to be damaged is passed over.

    Args:
        stores: At least one. The last one, if it is a folder, takes what is fetched.
    """

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        super().__init__(stores)
        last = self.stores[-1]
        self.own = last if isinstance(last, FolderObjectStore) else None
        self._damaged: set[tuple[ObjectStore, Digest]] = set()

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if no store has it."""
        sizes = (store.size(digest) for store in self._asked(digest))
        return next((size for size in sizes if size is not None), None)

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object in the first store that has it.

        Raises:
            ObjectNotFoundError: None has it.
        """
        for store in self._asked(digest):
            with suppress(ObjectNotFoundError):
                return store.open(digest)
        raise ObjectNotFoundError(
            "an object is not in the cache", path=self.stores[-1].locate(digest), expected=digest
        )

    def locate(self, digest: Digest) -> str:
        """Where the object is, or in the last store would be."""
        having = (store for store in self._asked(digest) if store.size(digest) is not None)
        return next(having, self.stores[-1]).locate(digest)

    def copies(self, digest: Digest) -> int:
        """How many of the stores have an object."""
        return sum(store.size(digest) is not None for store in self._asked(digest))

    def set_aside(self, digest: Digest) -> str:
        """Take a damaged object out of the way; it is kept, and no longer served.

        In the own folder it goes to trash/. In any other store it stays, and is passed over.

        Returns:
            Where it is now.
        """
        having = (store for store in self._asked(digest) if store.size(digest) is not None)
        store = next(having, self.stores[-1])
        if store is not self.own:
            self._damaged.add((store, digest))
            return store.locate(digest)
        trash = self.own.root / layout.TRASH
        make_folders(self.own.root, trash)
        target = trash / f"{digest}{layout.DAMAGED_SUFFIX}.{uuid.uuid4().hex}"
        try:
            os.replace(self.own.path(digest), target)
        except FileNotFoundError:
            return f"{self.own.path(digest)} (another process has set it aside)"
        return str(target)

    def _asked(self, digest: Digest) -> list[ObjectStore]:
        return [store for store in self.stores if (store, digest) not in self._damaged]

"""What the encoded objects of a store are built on, and whether they can be decoded.

Whoever takes a plain object away that has an encoded form publishes that form first, takes the
plain one away, and *then* looks (`Chains.needs_plain`): is everything there that the encoded form
is built on, and is whatever is built on this object at a greater depth? If not, the plain one comes
back. So of two processes that encode two objects against each other at the same moment, one at
least sees what the other has done, whatever they had planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.format.encoded_object import HEAD_SIZE, Head
from mlstate.objects.interface import EncodedObjectStore
from mlstate.parallel import for_each

__all__ = ["Chains"]

IsPlain = Callable[[Digest], bool]


class Chains:
    """The heads of the encoded objects of a store, as they were when somebody last looked.

    Args:
        store: The store.
        threads: How many heads are read at once.
    """

    def __init__(self, store: EncodedObjectStore, threads: int) -> None:
        self._store = store
        self._threads = threads
        self._heads: dict[Digest, Head] = {}
        self._built_on: dict[Digest, set[Digest]] = {}

    def look(self, anew: Iterable[Digest] | None = ()) -> None:
        """Read the heads of what has come since the last look, and forget what is gone.

        Args:
            anew: Encoded objects that are read again, since they may have been replaced; None: all.
        """
        there = set(self._store.encoded_digests())
        kept = set() if anew is None else self._heads.keys() - set(anew)
        for digest in self._heads.keys() - (kept & there):
            self._forget(digest)
        heads: dict[Digest, Head] = {}

        def read(digest: Digest) -> None:
            head = self.read(digest)
            if head is not None:
                heads[digest] = head

        for_each(read, there - kept, self._threads)
        for digest, head in heads.items():
            self._heads[digest] = head
            if head.base is not None:
                self._built_on.setdefault(head.base, set()).add(digest)

    def read(self, digest: Digest) -> Head | None:
        """The head of an encoded object now; None without one, or if it cannot be understood."""
        with suppress(FormatError, ObjectNotFoundError):
            file = self._store.open_encoded(digest)
            try:
                return Head.peek(file.read(0, HEAD_SIZE))
            finally:
                file.close()
        return None

    def _forget(self, digest: Digest) -> None:
        head = self._heads.pop(digest)
        if head.base is not None:
            self._built_on[head.base].discard(digest)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._heads

    def head(self, digest: Digest) -> Head | None:
        """The head of an encoded object; None of one that is not encoded."""
        return self._heads.get(digest)

    def depth(self, digest: Digest) -> int:
        """The depth of the encoded form of an object; 0 of one that has none."""
        head = self._heads.get(digest)
        return 0 if head is None else head.depth

    def dependants(self, digest: Digest) -> list[int]:
        """The depths of the encoded objects that are built on an object."""
        return [self._heads[one].depth for one in self._built_on.get(digest, ())]

    def is_good(self, digest: Digest, is_plain: IsPlain) -> bool:
        """Whether the encoded form of an object is there, and all that it is built on."""
        head = self._heads.get(digest)
        while head is not None and head.base is not None:
            if is_plain(head.base):
                return True
            base = self._heads.get(head.base)
            if base is None or base.depth >= head.depth:
                return False
            head = base
        return head is not None

    def needs_plain(self, digest: Digest, is_plain: IsPlain) -> bool:
        """Whether an object has to be there plainly, as far as is known here.

        That is so if its encoded form cannot be decoded, or if others are built on it that would be
        of no greater depth than that form, and are refused then.
        """
        depth = self.depth(digest)
        return not self.is_good(digest, is_plain) or any(
            other <= depth for other in self.dependants(digest)
        )

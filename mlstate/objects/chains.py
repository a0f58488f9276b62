"""What the encoded objects of a store are built on, and whether they can be decoded.

Whoever takes a plain object away that has an encoded form publishes that form first, and *then*
looks (`Chains.may_go`): is everything there that the form is built on, has its base no form that is
as deep, and is whatever is built on this object deeper? Only if so the plain one goes. So of two
processes that encode two objects against each other at the same moment, the one that looks last
sees what the other has published, and keeps its plain object; whatever both had planned, and where
either is killed. A look afterwards (`Chains.needs_plain`) brings the plain one back if a form was
replaced meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.format.encoded_object import Head
from mlstate.objects.encoded_forms import head_of
from mlstate.objects.interface import EncodedObjectStore
from mlstate.parallel import for_each

__all__ = ["Chains", "is_sound"]

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
            with suppress(FormatError, ObjectNotFoundError):
                heads[digest] = head_of(self._store, digest)

        for_each(read, there - kept, self._threads)
        for digest, head in heads.items():
            self._heads[digest] = head
            if head.base is not None:
                self._built_on.setdefault(head.base, set()).add(digest)

    def _forget(self, digest: Digest) -> None:
        head = self._heads.pop(digest)
        if head.base is not None:
            self._built_on[head.base].discard(digest)

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

    def may_go(self, digest: Digest, is_plain: IsPlain) -> bool:
        """Whether the plain form of an object may be taken away, as far as is known here.

        The base may lose its plain form at this moment if it has another one: that has to do.
        """
        head = self._heads.get(digest)
        if head is None or self.needs_plain(digest, is_plain):
            return False
        base = None if head.base is None else self._heads.get(head.base)
        return base is None or base.depth < head.depth

    def needs_plain(self, digest: Digest, is_plain: IsPlain) -> bool:
        """Whether an object has to be there plainly, as far as is known here.

        That is so if its encoded form cannot be decoded, or if others are built on it that would be
        of no greater depth than that form, and are refused then.
        """
        depth = self.depth(digest)
        return not self.is_good(digest, is_plain) or any(
            other <= depth for other in self.dependants(digest)
        )


def is_sound(store: EncodedObjectStore, digest: Digest) -> bool:
    """Whether an object that has just got an encoded form, and no other, can be relied on.

    As of `Chains.may_go`, for an object that nothing is built on.
    """
    if store.size(digest) is None:
        return False
    with suppress(FormatError, ObjectNotFoundError):
        head = head_of(store, digest)
        if head.base is None or store.encoded_size(head.base) is None:
            return True
        return head_of(store, head.base).depth < head.depth
    return False

"""The forms in which objects of a store are there: what is encoded, how large, on which base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.format.encoded_object import Head
from mlstate.format.tensor_object import DATA_OFFSET
from mlstate.index import number_of
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.encoded_forms import head_of
from mlstate.objects.interface import EncodedObjectStore
from mlstate.operations.usage_report import EncodedUsage
from mlstate.parallel import for_each

__all__ = ["ObjectForms"]


class ObjectForms:
    """What is encoded in some object stores; nothing is decoded.

    Args:
        stores: The stores.
        threads: How many heads are read at once.

    Attributes:
        encoded: The objects that have an encoded form -> the store with it, which comes first.
    """

    def __init__(self, stores: Iterable[EncodedObjectStore], threads: int) -> None:
        self._threads = threads
        self.encoded: dict[Digest, EncodedObjectStore] = {}
        self._listed: dict[Digest, int] = {}  # of buckets, which give sizes with a list
        self._plain: set[Digest] = set()
        for store in stores:
            if isinstance(store, BucketObjectStore):
                self._listed = store.encoded_sizes()
                self._plain = set(store.digests()) if self._listed else set()
            for digest in self._listed or store.encoded_digests():
                self.encoded.setdefault(digest, store)

    def __bool__(self) -> bool:
        return bool(self.encoded)

    @cached_property
    def numbers(self) -> dict[int, Digest]:
        """The encoded objects, by their numbers in the index."""
        return {number_of(digest): digest for digest in self.encoded}

    @cached_property
    def _heads(self) -> dict[Digest, Head]:
        heads: dict[Digest, Head] = {}

        def read(digest: Digest) -> None:
            with suppress(FormatError, ObjectNotFoundError):  # which `verify` reports
                heads[digest] = head_of(self.encoded[digest], digest)

        for_each(read, self.encoded, self._threads)
        return heads

    def head(self, digest: Digest) -> Head | None:
        """The head of an encoded object; None of another, or of one that cannot be understood."""
        return self._heads.get(digest) if digest in self.encoded else None

    def is_plain(self, digest: Digest) -> bool:
        """Whether an encoded object is there plainly, too."""
        if digest in self._listed:
            return digest in self._plain
        return self.encoded[digest].plain_size(digest) is not None

    def _encoded_size(self, digest: Digest) -> int:
        size = self._listed.get(digest)
        return (self.encoded[digest].encoded_size(digest) if size is None else size) or 0

    def size(self, number: int, plain: int) -> int:
        """The bytes that an object takes in all of its forms, if it has so many in plain form."""
        digest = self.numbers.get(number)
        if digest is None:
            return plain
        encoded = self._encoded_size(digest)
        return encoded + plain if self.is_plain(digest) else encoded

    def bases(self, number: int) -> Iterator[tuple[Digest, int]]:
        """What an object is built on, down to what is plain, each with its bytes in all forms."""
        digest = self.numbers.get(number)
        while digest is not None and not self.is_plain(digest):
            head = self._heads.get(digest)
            if head is None or head.base is None:
                return
            yield head.base, self.size(number_of(head.base), DATA_OFFSET + head.nbytes)
            digest = head.base if head.base in self.encoded else None

    def usage(self) -> EncodedUsage:
        """What is in encoded form only, and what that saves."""
        only = [digest for digest in self.encoded if not self.is_plain(digest)]
        nbytes = sum(map(self._encoded_size, only))
        heads = [self._heads[digest] for digest in only if digest in self._heads]
        plain = sum(DATA_OFFSET + head.nbytes for head in heads)
        return EncodedUsage(len(only), nbytes, plain - nbytes)

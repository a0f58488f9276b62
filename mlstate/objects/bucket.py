"""Objects in a bucket, in the layout of stores: how to find, read and write them."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from threading import BoundedSemaphore, Lock
from typing import Any, BinaryIO

from mlstate.buckets.client import PART, PARTS_AT_ONCE, BucketClient
from mlstate.buckets.listing import spread_items
from mlstate.buckets.upload import chunks, copied
from mlstate.buckets.values import ChunkReader, Item
from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import (
    BucketError,
    FormatError,
    IntegrityError,
    NoRangesError,
    ObjectNotFoundError,
)
from mlstate.format import layout
from mlstate.objects.encoded_bucket import EncodedBucket
from mlstate.objects.encoded_forms import bases_of, size_of_encoded
from mlstate.objects.prefix import BucketPlace

__all__ = [
    "LARGE_AT_ONCE",
    "PARTS_EACH",
    "BucketObjectStore",
    "BucketObjectWriter",
    "BucketPresence",
]

ONE_BY_ONE = 16
"""The number of objects to ask for one by one before a list, which costs as much as dozens."""
PAGE = 1000
"""The objects that one request lists. To list a larger bucket may cost too much."""
_ALL = "\U0010ffff"


class BucketPresence:
    """The presence of the objects of a store; see `Survey`."""

    def __init__(self, store: BucketObjectStore) -> None:
        self._store = store
        self._plain = _Items(store.place, layout.OBJECTS)
        self._encoded = _Items(store.place, layout.ENCODED)

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""
        item = self.item(digest)
        if item is not None:
            return item.size
        return size_of_encoded(self._store, digest) if self.is_encoded(digest) else None

    def item(self, digest: Digest) -> Item | None:
        """A plain object, or None if it is not here."""
        return self._plain.item(self._store.path(digest))

    def is_encoded(self, digest: Digest) -> bool:
        """Whether an object that is not here plainly is here in encoded form."""
        if not self._store.place.says_encoded():
            return False
        return self._encoded.item(self._store.encoded_path(digest)) is not None


class _Items:
    """The items of a folder of a store, asked for one by one, and listed if they are many."""

    def __init__(self, place: BucketPlace, folder: str) -> None:
        self._place = place
        self._folder = folder
        self._lock = Lock()
        self._asked = 0
        self._listed: dict[str, Item] | None = None
        self._until = ""

    def item(self, path: str) -> Item | None:
        """An item, or None if it is not here."""
        with self._lock:  # other threads wait for the list
            self._asked += 1
            if self._asked > ONE_BY_ONE and self._listed is None:
                self._listed = self._list()
            if self._listed is not None and path <= self._until:
                return self._listed.get(path)
        return self._place.client.head(path)

    def _list(self) -> dict[str, Item]:
        """The first page of the items, by their paths; `_until` is the last of these."""
        items = self._place.client.items(self._place.path(self._folder))
        listed = {item.path: item for item in islice(items, PAGE)}
        if len(listed) < PAGE:
            self._until = _ALL
        elif list(listed) == sorted(listed):
            self._until = max(listed)
        return listed


_FRESH_SECONDS = 3600.0
"""An object of so many seconds is reused as it is; to freshen it costs a request, a copy onto
itself, and where versions are kept a version. (A pruning with a shorter grace period may move such
an object to trash/ and back.)"""
_SKEW = 900.0
"""By so many seconds the server's clock may be ahead: signatures hold for no longer."""
LARGE_AT_ONCE = 2
"""How many objects are uploaded in parts at once."""
PARTS_EACH = PARTS_AT_ONCE + 2
"""How many parts of one of them are in memory: being sent, held back, and being copied."""
_BUFFER = 1 << 20


class BucketObjectStore(EncodedBucket):
    """The objects below a prefix of a bucket: ``objects/ab/cdef...``, and encoded ones."""

    def __init__(self, place: BucketPlace) -> None:
        self.place = place

    def __repr__(self) -> str:
        return f"BucketObjectStore({self.place.address!r})"

    def path(self, digest: Digest) -> str:
        """The path of an object in the bucket."""
        return self.place.path(layout.object_path(digest))

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""
        size = self.plain_size(digest)
        if size is None and self.place.says_encoded():
            return size_of_encoded(self, digest)
        return size

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object for reading; its bytes are requested as they are read."""
        item = self.place.client.head(self.path(digest))
        if item is None:
            raise ObjectNotFoundError(
                "an object is missing", path=self.locate(digest), expected=digest
            )
        raw = _BucketFile(self.place.client, item.path, item.size)
        return io.BufferedReader(raw, _BUFFER)

    def locate(self, digest: Digest) -> str:
        """The address of the object."""
        return self.place.locate(layout.object_path(digest))

    def digests(self) -> Iterator[Digest]:
        """Every object that is here, in no order; things with other names are passed over."""
        for item in spread_items(self.place.client, self.place.path(layout.OBJECTS)):
            if digest := layout.digest_of_object_path(self.place.name(item.path)):
                yield digest

    def trashed(self) -> dict[Digest, list[Item]]:
        """The objects that prunings have moved to trash/; each may be there several times."""
        found: dict[Digest, list[Item]] = {}
        for item in self.place.client.items(self.place.path(layout.TRASH)):
            if match := layout.TRASHED_OBJECT.fullmatch(item.path.rpartition("/")[2]):
                found.setdefault(Digest(match[1]), []).append(item)
        return found

    def survey(self) -> BucketPresence:
        """See `SurveyedObjectStore.survey`."""
        return BucketPresence(self)

    def writer(self) -> BucketObjectWriter:
        """Begin an act of saving, after making the prefix a store."""
        self.place.prepare()
        return BucketObjectWriter(self)


class BucketObjectWriter:
    """Saves objects into a bucket. What `put` has written is durable when it returns.

    Also an `EncodedReuser`.
    """

    def __init__(self, store: BucketObjectStore) -> None:
        self._store = store
        self._present = store.survey()
        self._large = BoundedSemaphore(LARGE_AT_ONCE)
        self._written: dict[Digest, int] = {}
        self.took_encoded = False

    def reuse(self, digest: Digest, size: int) -> bool:
        """Take an object that is here; see `ObjectWriter.reuse`."""
        if self._written.get(digest) == size:  # the list below may have been made before
            return True
        item = self._present.item(digest)
        if item is None:
            return self._present.is_encoded(digest) and self._reuse_encoded(digest, size)
        return item.size == size and self._made_young(item)

    def _reuse_encoded(self, digest: Digest, size: int) -> bool:
        """Take an object that is here in encoded form, with all that it needs to be decoded."""
        store, client = self._store, self._store.place.client
        if store.size(digest) != size:
            return False
        try:
            needed = list(bases_of(store, digest))
        except (ObjectNotFoundError, FormatError):  # another process takes it away
            return False
        for one, is_plain in needed:
            item = client.head(store.path(one) if is_plain else store.encoded_path(one))
            if item is None or not self._made_young(item):
                return False
        self.took_encoded = True
        return True

    def _made_young(self, item: Item) -> bool:
        if -_SKEW < time.time() - item.modified < _FRESH_SECONDS:
            return True
        try:
            return self._store.place.client.control.freshen(item)
        except BucketError:  # without the right to copy, it can still be written
            return False

    def put(self, digest: Digest, parts: Iterable[Bytes]) -> None:
        """Write an object; see `ObjectWriter.put`."""
        uploads, path = self._store.place.uploads, self._store.path(digest)
        whole = list(parts)
        size = sum(memoryview(part).nbytes for part in whole)
        if size <= PART:
            data = copied(whole)  # what is hashed is what is written
            self._check(digest, Digest.of(data))
            uploads.put(path, data)
        else:
            with self._large:
                uploads.put_large(path, lambda: self._verified(digest, whole))
        self._written[digest] = size

    def flush(self) -> None:
        """Do nothing: a write to a bucket is durable once it has returned."""

    def _verified(self, digest: Digest, parts: list[Bytes]) -> Iterator[Bytes]:
        """Copies of the bytes, the last one only if they are right: another thread may change them.

        Nobody sees an upload without its last bytes.
        """
        hasher = Hasher()
        before: Bytes | None = None
        for chunk in chunks(parts, PART):
            hasher.update(chunk)
            if before is not None:
                yield before
            before = chunk
        self._check(digest, hasher.digest())
        if before is not None:
            yield before

    def _check(self, digest: Digest, found: Digest) -> None:
        if found != digest:
            raise IntegrityError(
                "the bytes changed while they were uploaded; nothing was stored under their name",
                path=self._store.locate(digest),
                expected=digest,
                found=found,
                remedy="do not modify the tensors while they are saved",
            )


class _BucketFile(io.RawIOBase):
    """An object as a file, with a new request after each seek."""

    def __init__(self, client: BucketClient, path: str, size: int) -> None:
        self._client = client
        self._path = path
        self._size = size
        self._position = 0
        self._reply = ExitStack()
        self._chunks: ChunkReader | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {0: 0, 1: self._position, 2: self._size}[whence]
        if position < 0:
            raise ValueError("before the start of the object")
        if position != self._position:
            self._end_reply()
            self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        if self._chunks is None:
            self._chunks = ChunkReader(self._request())
        count = self._chunks.readinto(memoryview(buffer).cast("B"))
        self._position += count
        return count

    def close(self) -> None:
        self._end_reply()
        super().close()

    def _request(self) -> Iterator[Bytes]:
        """The bytes from the position on."""
        begin = self._reply.enter_context
        try:
            return begin(self._client.reading(self._path, self._position)).chunks
        except NoRangesError:
            return _skipped(begin(self._client.reading(self._path)).chunks, self._position)

    def _end_reply(self) -> None:
        self._chunks = None
        self._reply.close()


def _skipped(chunks: Iterator[Bytes], count: int) -> Iterator[Bytes]:
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        left = view[count:]
        count = max(0, count - len(view))
        if len(left):
            yield left

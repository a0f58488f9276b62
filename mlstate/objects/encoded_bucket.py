"""Encoded objects below a prefix of a bucket: ``encoded/ab/cdef...``."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from itertools import chain

from mlstate.buckets.client import PART, BucketClient
from mlstate.buckets.listing import spread_items
from mlstate.buckets.upload import chunks, copied
from mlstate.buckets.values import ChunkReader, Item
from mlstate.digests import Bytes, Digest
from mlstate.errors import (
    BucketError,
    FormatError,
    IntegrityError,
    NoRangesError,
    ObjectNotFoundError,
)
from mlstate.format import layout
from mlstate.objects.encoded_forms import (
    no_encoded_form,
    no_plain_form,
    restore_chain,
    says_no_encoded,
)
from mlstate.objects.prefix import BucketPlace

__all__ = ["BucketRanges", "EncodedBucket"]

_MISSING = 404
_SKIPPED = 1 << 20


class BucketRanges:
    """An item of a bucket as an `EncodedFile`: a request for each range."""

    def __init__(self, client: BucketClient, item: Item) -> None:
        self._client = client
        self._path = item.path
        self.size = item.size

    def read(self, start: int, size: int) -> bytes:
        """See `EncodedFile.read`."""
        if not size:
            return b""
        try:
            return self._read(start, size)
        except BucketError as error:
            if error.status != _MISSING:
                raise
            raise ObjectNotFoundError(
                "an encoded object was taken away while it was read",
                path=self._client.locate(self._path),
            ) from error

    def close(self) -> None:
        """Do nothing: nothing is open between two requests."""

    def _read(self, start: int, size: int) -> bytes:
        try:
            with self._client.reading(self._path, start, start + size) as reading:
                return self._filled(ChunkReader(reading.chunks), size)
        except NoRangesError:
            with self._client.reading(self._path) as reading:
                reader = ChunkReader(reading.chunks)
                while start:
                    start -= len(self._filled(reader, min(start, _SKIPPED)))
                return self._filled(reader, size)

    def _filled(self, reader: ChunkReader, size: int) -> bytes:
        data = bytearray(size)
        position = 0
        while position < size:
            count = reader.readinto(memoryview(data)[position:])
            if not count:
                raise IntegrityError(
                    "an encoded object ends too early", path=self._client.locate(self._path)
                )
            position += count
        return bytes(data)


class EncodedBucket(abc.ABC):
    """What the objects of a bucket can do in encoded form; see `EncodingObjectStore`."""

    place: BucketPlace

    @abc.abstractmethod
    def path(self, digest: Digest) -> str:
        """The path of the plain object in the bucket."""

    def encoded_path(self, digest: Digest) -> str:
        """The path of the encoded form of an object in the bucket."""
        return self.place.path(layout.encoded_path(digest))

    def plain_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.plain_size`."""
        item = self.place.client.head(self.path(digest))
        return None if item is None else item.size

    def encoded_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.encoded_size`."""
        item = self.place.client.head(self.encoded_path(digest))
        return None if item is None else item.size

    def open_encoded(self, digest: Digest) -> BucketRanges:
        """See `EncodedObjectStore.open_encoded`."""
        client = self.place.client
        item = client.head(self.encoded_path(digest))
        if item is None:
            item = next(iter(self.trashed_forms(digest)), None)
        if item is None:
            raise ObjectNotFoundError(
                "an encoded object is missing",
                path=client.locate(self.encoded_path(digest)),
                expected=digest,
            )
        return BucketRanges(client, item)

    def encoded_digests(self) -> Iterator[Digest]:
        """See `EncodedObjectStore.encoded_digests`."""
        yield from self.encoded_sizes()

    def encoded_sizes(self) -> dict[Digest, int]:
        """The objects that have an encoded form here, with its size in bytes; one list."""
        found: dict[Digest, int] = {}
        for item in spread_items(self.place.client, self.place.path(layout.ENCODED)):
            if digest := layout.digest_of_encoded_path(self.place.name(item.path)):
                found[digest] = item.size
        return found

    def trashed_forms(self, digest: Digest) -> Iterator[Item]:
        """The encoded forms of an object in trash/."""
        for item in self.place.client.items(self.place.path(layout.TRASH)):
            match = layout.TRASHED_ENCODED.fullmatch(item.path.rpartition("/")[2])
            if match and match[1] == digest:
                yield item

    def put_encoded(self, digest: Digest, parts: Iterable[Bytes], *, replace: bool = True) -> bool:
        """See `EncodingObjectStore.put_encoded`.

        What is uploaded in parts replaces what another process has uploaded since the last look.
        """
        self.place.prepare()
        uploads, path, whole = self.place.uploads, self.encoded_path(digest), list(parts)
        if not replace and self.encoded_size(digest) is not None:
            return False
        if sum(memoryview(part).nbytes for part in whole) > PART:
            uploads.put_large(path, lambda: chunks(whole, PART))
        elif replace or not self.place.honours_conditions():
            uploads.put(path, copied(whole))
        else:
            return uploads.create(path, bytes(copied(whole)))
        return True

    def put_encoded_index(self, state: Digest, data: bytes | None) -> None:
        """See `EncodingObjectStore.put_encoded_index`."""
        path = self.place.path(layout.encoded_index_path(state))
        if data is not None:
            self.place.prepare()
            self.place.uploads.put(path, data)
        else:
            self.place.client.delete(path)

    def encoded_index(self, state: Digest) -> bytes | None:
        """See `EncodingObjectStore.encoded_index`."""
        try:
            found = self.place.read(layout.encoded_index_path(state))
        except FormatError:
            return None
        return None if found is None else found[0]

    def compacts(self) -> bool:
        """See `EncodingObjectStore.compacts`."""
        return self.place.compacts()

    def retire_plain(self, digest: Digest) -> bool:
        """See `EncodingObjectStore.retire_plain`."""
        if not self.place.says_encoded(again=True):
            raise says_no_encoded(self.place.locate(layout.SETTINGS), digest)
        if self.encoded_size(digest) is None:
            raise no_encoded_form(self.place.locate(layout.encoded_path(digest)), digest)
        moved = self._move_to_trash(self.path(digest), layout.trashed_name(digest))
        if moved and not self.place.says_encoded(again=True):  # somebody undid it at this moment
            self.say_encoded()
        return moved

    def drop_encoded(self, digest: Digest) -> bool:
        """See `EncodingObjectStore.drop_encoded`."""
        if self.plain_size(digest) is None:
            raise no_plain_form(self.place.locate(layout.object_path(digest)), digest)
        name = layout.trashed_name(digest, encoded=True)
        return self._move_to_trash(self.encoded_path(digest), name)

    def say_encoded(self) -> None:
        """See `EncodingObjectStore.say_encoded`."""
        self.place.require(layout.ENCODED_OBJECTS, wanted=True)

    def say_plain(self) -> None:
        """See `EncodingObjectStore.say_plain`."""
        self.place.require(layout.ENCODED_OBJECTS, wanted=False)

    def restore(self, digest: Digest) -> bool:
        """Put an object back that a pruning has moved to trash/; see `TrashingObjectStore`.

        If it is there in encoded form only, what it needs to be decoded is put back with it.
        """
        return restore_chain(self, digest, self._put_back)  # type: ignore[arg-type]

    def _put_back(self, digest: Digest) -> bool:
        copy = self.place.client.control.copy  # which makes it young
        plain = self.trashed().get(digest, ())
        moves = chain(
            ((item, self.path(digest)) for item in plain),
            ((item, self.encoded_path(digest)) for item in self.trashed_forms(digest)),
        )
        return any(copy(item, path) for item, path in moves)

    @abc.abstractmethod
    def trashed(self) -> dict[Digest, list[Item]]:
        """The objects that prunings have moved to trash/; each may be there several times."""

    def _move_to_trash(self, path: str, name: str) -> bool:
        client = self.place.client
        item = client.head(path)
        target = self.place.path(f"{layout.TRASH}/{name}")
        if item is None or not client.control.copy(item, target):
            return False
        client.delete(path)
        return True

"""Saving several objects together: each once, and only what is not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import Lock

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError
from mlstate.format.tensor_object import spec_in_header
from mlstate.objects.interface import (
    AddingWriter,
    EncodedObjectStore,
    EncodedReuser,
    ObjectStore,
    ObjectWriter,
    SurveyedObjectStore,
    WritableObjectStore,
)
from mlstate.objects.verified import digest_of
from mlstate.parallel import THREADS, for_each

__all__ = ["EncodeObject", "ObjectSaver", "OpenParts", "absent"]

EncodeObject = Callable[[Digest, Bytes, "ObjectSaver"], bool]
"""Writes an object in encoded form, if that is worth it; False: it is written as it is."""

OpenParts = Callable[[], AbstractContextManager[Sequence[Bytes]]]
"""Gives the bytes of an object, for as long as the context lasts."""


_QUICK = 60.0
"""A saving of fewer seconds is over before anything that it wrote can be too old for it."""
_SURE = 2
"""So many new objects in a row, and the next one is taken to be new, too."""


class ObjectSaver:
    """One act of saving: takes each object once, reuses what is there, remembers what it reused.

    With ``verify`` what is there is read before it is reused, and written again if it is damaged.
    ``threads`` objects are looked at at once. ``encode`` is asked first to write what is new.
    """

    def __init__(
        self,
        objects: WritableObjectStore,
        *,
        verify: bool,
        threads: int = THREADS,
        encode: EncodeObject | None = None,
    ) -> None:
        self._objects = objects
        self._threads = threads
        self._writer: ObjectWriter = objects.writer()
        self._adding = self._writer if isinstance(self._writer, AddingWriter) else None
        self._verify = verify
        self._encode = encode
        self._taken: set[Digest] = set()
        self._lock = Lock()
        self.reused: dict[Digest, int] = {}  # what was there already: digest -> size in bytes
        self._written: dict[Digest, int] = {}
        self._begun = time.monotonic()
        self._new_of_late = 0

    def store(self, parts: Sequence[Bytes]) -> Digest:
        """Store an object whose digest nobody knows yet; returns the digest.

        One that is there needs to be hashed only. One that is new can be hashed and written in one
        pass. Which it is, nobody knows before: it is taken to be new if those before it were.
        """
        likely_new = self._new_of_late >= _SURE and not self._verify
        if likely_new and self._adding is not None:
            digest, new = self._adding.add(parts)
            with self._lock:
                known = digest in self._taken
                self._taken.add(digest)
            if not known:
                size = _nbytes(parts)
                (self._written if new else self.reused)[digest] = size
        else:
            digest = Digest.of(*parts)
            new = self.take(digest, parts)
        self._new_of_late = self._new_of_late + 1 if new else 0
        return digest

    def take(self, digest: Digest, parts: Sequence[Bytes]) -> bool:
        """Store an object, unless it is there; says whether it did."""
        return self.take_if_needed(digest, _nbytes(parts), lambda: nullcontext(parts))

    def take_if_needed(self, digest: Digest, size: int | None, parts: OpenParts) -> bool:
        """Store an object whose bytes are not at hand, unless it is there; says whether it did.

        Of a ``size`` of None, whatever is there under its name will do. ``parts`` gives the bytes;
        it is not called if they are there.
        """
        with self._lock:
            if digest in self._taken:
                return False
            self._taken.add(digest)
        size = self._objects.size(digest) if size is None else size
        if (
            size is not None
            and self._writer.reuse(digest, size)
            and not (self._verify and self._damaged(digest, parts))
        ):
            self.reused[digest] = size
            return False
        with parts() as found:
            if self._encode is not None and self._encode(digest, found[-1], self):
                pass
            elif self._adding is None:
                self._writer.put(digest, found)
            else:
                self._adding.add(found, digest)
            self._written[digest] = _nbytes(found)
        return True

    def reuse(self, digest: Digest, size: int) -> bool:
        """Take an object that is here and that another is built on; False if it is not."""
        is_there = self._writer.reuse(digest, size)
        if is_there:
            self.reused[digest] = size
        return is_there

    @property
    def took_encoded(self) -> bool:
        """Whether something that is here in encoded form only was taken."""
        return isinstance(self._writer, EncodedReuser) and self._writer.took_encoded

    @contextmanager
    def settled(self) -> Iterator[None]:
        """At the end all that was stored is in its place; after a failure nothing is under way."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what failed first is told
                self.settle()
            raise
        self.settle()

    def settle(self) -> None:
        """Wait until all that was stored is in its place."""
        if self._adding is not None:
            self._adding.settle()

    def flush(self) -> None:
        """Make all that was taken durable."""
        self._writer.flush()

    def lost(self) -> bool:
        """Whether something that was taken is gone since: pruning was at work.

        What was written is young, and only a pruning with a grace period shorter than this saving
        takes it. To ask a bucket for it costs requests, and is left out of a saving that was quick.
        """
        looked = self.reused
        is_cheap = not isinstance(self._objects, SurveyedObjectStore)
        if is_cheap or time.monotonic() - self._begun > _QUICK:
            looked = looked | self._written
        return bool(absent(self._objects, looked, self._threads))

    def _damaged(self, digest: Digest, parts: OpenParts) -> bool:
        spec, objects = None, self._objects
        if isinstance(objects, EncodedObjectStore) and objects.plain_size(digest) is None:
            with parts() as found:
                spec = spec_in_header(found[0])
        try:
            return digest_of(objects, digest, spec) != digest
        except (IntegrityError, FormatError):  # the latter of one in encoded form
            return True


def _nbytes(parts: Sequence[Bytes]) -> int:
    return sum(memoryview(part).nbytes for part in parts)


def absent(
    objects: ObjectStore, sizes: Mapping[Digest, int | None], threads: int = THREADS
) -> list[Digest]:
    """The objects that are not there, or have another size than is given (None: any will do)."""
    found: list[Digest] = []
    there = objects.survey() if isinstance(objects, SurveyedObjectStore) else objects

    def look(item: tuple[Digest, int | None]) -> None:
        digest, expected = item
        size = there.size(digest)
        if size is None or (expected is not None and size != expected):
            found.append(digest)

    for_each(look, sizes.items(), threads)
    return found

"""Storing several objects as one act: each once, and only what is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

from mlstate.digests import Bytes, Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.objects.interface import ObjectStore, ObjectWriter, WritableObjectStore
from mlstate.objects.verified import digest_of
from mlstate.parallel import THREADS, for_each

__all__ = ["OpenParts", "SaveAct", "absent"]

OpenParts = Callable[[], AbstractContextManager[Sequence[Bytes]]]
"""Gives the bytes of an object, for as long as the context lasts."""


class SaveAct:
    """One act of saving: takes each object once, reuses what is there, remembers what it reused.

    Args:
        objects: Where to store.
        verify: Read what is there before it is reused, and write it again if it is damaged.
        threads: How many objects to look at at once.
    """

    def __init__(
        self, objects: WritableObjectStore, *, verify: bool, threads: int = THREADS
    ) -> None:
        self._objects = objects
        self._threads = threads
        self._writer: ObjectWriter = objects.writer()
        self._verify = verify
        self._taken: set[Digest] = set()
        self._lock = Lock()
        self._reused: dict[Digest, int] = {}

    def take(self, digest: Digest, parts: Sequence[Bytes]) -> None:
        """Store an object, unless it is there; called from several threads."""
        size = sum(memoryview(part).nbytes for part in parts)
        self.take_if_needed(digest, size, lambda: nullcontext(parts))

    def take_if_needed(self, digest: Digest, size: int | None, parts: OpenParts) -> None:
        """Store an object whose bytes are not at hand, unless it is there.

        Args:
            digest: Its digest.
            size: Its size in bytes; of None, whatever is there under its name will do.
            parts: Gives its bytes; not called if they are there.
        """
        with self._lock:
            if digest in self._taken:
                return
            self._taken.add(digest)
        size = self._objects.size(digest) if size is None else size
        if (
            size is not None
            and self._writer.reuse(digest, size)
            and not (self._verify and self._damaged(digest))
        ):
            self._reused[digest] = size
        else:
            with parts() as found:
                self._writer.put(digest, found)

    def flush(self) -> None:
        """Make all that was taken durable."""
        self._writer.flush()

    def lost(self) -> bool:
        """Whether something that was reused is gone since: pruning was at work."""
        return bool(absent(self._objects, self._reused, self._threads))

    def _damaged(self, digest: Digest) -> bool:
        try:
            return digest_of(self._objects, digest) != digest
        except ObjectNotFoundError:
            return True


def absent(
    objects: ObjectStore, sizes: Mapping[Digest, int | None], threads: int = THREADS
) -> list[Digest]:
    """Which of these objects are not there, or have another size.

    Args:
        objects: Where to look.
        sizes: The objects, each with its size in bytes, or None if any size will do.
        threads: How many to look at at once.
    """
    found: list[Digest] = []

    def look(item: tuple[Digest, int | None]) -> None:
        digest, expected = item
        size = objects.size(digest)
        if size is None or (expected is not None and size != expected):
            found.append(digest)

    for_each(look, sizes.items(), threads)
    return found

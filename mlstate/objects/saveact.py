"""Storing several objects as one act: each once, and only what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from mlstate.digests import Bytes, Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.objects.interface import ObjectWriter, WritableObjectStore
from mlstate.objects.verified import digest_of

__all__ = ["SaveAct"]


class SaveAct:
    """One act of saving: takes each object once, reuses what is there, remembers what it reused.

    Args:
        objects: Where to store.
        verify: Read what is there before it is reused, and write it again if it is damaged.
    """

    def __init__(self, objects: WritableObjectStore, *, verify: bool) -> None:
        self._objects = objects
        self._writer: ObjectWriter = objects.writer()
        self._verify = verify
        self._taken: set[Digest] = set()
        self._lock = Lock()
        self._reused: dict[Digest, int] = {}

    def take(self, digest: Digest, parts: Sequence[Bytes]) -> None:
        """Store an object, unless it is there; called from several threads."""
        with self._lock:
            if digest in self._taken:
                return
            self._taken.add(digest)
        size = sum(memoryview(part).nbytes for part in parts)
        if self._writer.reuse(digest, size) and not (self._verify and self._damaged(digest)):
            self._reused[digest] = size
        else:
            self._writer.put(digest, parts)

    def flush(self) -> None:
        """Make all that was taken durable."""
        self._writer.flush()

    def lost(self) -> bool:
        """Whether something that was reused is gone since: pruning was at work."""
        return any(self._objects.size(digest) != size for digest, size in self._reused.items())

    def _damaged(self, digest: Digest) -> bool:
        try:
            return digest_of(self._objects, digest) != digest
        except ObjectNotFoundError:
            return True

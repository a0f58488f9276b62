"""A mirror in the store layout: every object under its own digest, as a folder has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import NoRangesError, TransportError, concerning
from mlstate.fetch.context import Ground
from mlstate.fetch.download import bring_whole, read_object
from mlstate.fetch.plan import Piece
from mlstate.fetch.segments import LARGE, Segments, Take
from mlstate.format import layout
from mlstate.objects.partial import Partial
from mlstate.transport import Resource

__all__ = ["ObjectMirror"]

_GONE = frozenset({404, 410})
"""The statuses by which a server says that it lacks one thing, which says nothing of others."""


class ObjectMirror:
    """Brings objects from one mirror.

    Args:
        address: The address of the store: what ``objects/`` is below.
        ground: What the fetch shares.

    Attributes:
        lacking: Objects that it turned out not to have.
    """

    def __init__(self, address: str, ground: Ground) -> None:
        self._address = address.rstrip("/")
        self._ground = ground
        self._lock = Lock()
        self._large = Segments(ground.receiver)
        self.lacking: set[Digest] = set()

    def read(self, digest: Digest, max_size: int) -> bytes | None:
        """A small object, verified; None if the mirror lacks it.

        Raises:
            TransportError: It could not be read.
            IntegrityError: It has other bytes, or too many.
        """
        with self._unless_lacking(digest):
            return read_object(self._open(digest), digest, max_size)
        return None

    def gather(self, wanted: Mapping[Digest, int | None]) -> None:
        """Bring objects, many at once; see `lacking` afterwards.

        Args:
            wanted: Which, each with its size in bytes, if that is known.

        Raises:
            TransportError: One could not be read, for another reason than that it is not there.
            IntegrityError: One has other bytes.
        """
        sizes = [size for size in wanted.values() if size is not None]
        self._ground.reader.meter.expect(sum(sizes) if len(sizes) == len(wanted) else None)
        try:
            self._ground.reader.all(self._requests(wanted))
        finally:
            self._large.close()

    def _requests(self, wanted: Mapping[Digest, int | None]) -> Iterator[Callable[[], None]]:
        for digest, size in sorted(wanted.items(), key=lambda item: -(item[1] or 0)):
            if size is not None and size >= LARGE:
                yield from self._segments(digest, size)
            else:
                yield partial(self._fetch, digest, size)

    def _fetch(self, digest: Digest, size: int | None) -> None:
        with self._unless_lacking(digest):
            bring_whole(self._open(digest), digest, size, self._ground)

    def _segments(self, digest: Digest, size: int) -> Iterator[Callable[[], None]]:
        """A large object in segments; whole, if the server gives no ranges."""
        resource, reader = self._open(digest), self._ground.reader
        alone = Lock()

        def complete(whole: Partial) -> None:
            self._large.publish(whole, digest)

        def fetch(piece: Piece[Take]) -> None:
            if digest in self.lacking:
                return
            with self._unless_lacking(digest), concerning(path=resource.address):
                try:
                    reader.read_run(resource, (piece,))
                except NoRangesError:
                    if alone.acquire(blocking=False):
                        self._large.discard(digest)
                        self._fetch(digest, size)

        left = size
        for piece in self._large.pieces(digest, size, complete):
            left -= piece.stop - piece.start
            yield partial(fetch, piece)
        reader.meter.spare(left)

    def address_of(self, digest: Digest) -> str:
        """Where an object is, if it is there."""
        return f"{self._address}/{layout.object_path(digest)}"

    def _open(self, digest: Digest) -> Resource:
        return self._ground.open(self.address_of(digest))

    @contextmanager
    def _unless_lacking(self, digest: Digest) -> Iterator[None]:
        """Take the answer that something is not there as a fact, not as an error."""
        try:
            yield
        except TransportError as error:
            if error.status not in _GONE:
                raise
            with self._lock:
                self.lacking.add(digest)

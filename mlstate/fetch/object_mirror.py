"""Mirrors in the store layout, which have many objects; and single objects, whole and verified."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, NoRangesError, TransportError, concerning
from mlstate.fetch.attempts import Context
from mlstate.fetch.header import begins_with
from mlstate.fetch.plan import LARGE, Piece, Segments, Take
from mlstate.fetch.reader import read_exactly
from mlstate.format import layout
from mlstate.format.encoded_index import MAX_INDEX, EncodedIndex
from mlstate.format.state_object import INLINE_LIMIT, MAX_HEADER
from mlstate.objects.partial import Partial
from mlstate.objects.receiving import check_arrived
from mlstate.transport import Resource

__all__ = [
    "ENCODED_FROM",
    "GONE",
    "ObjectMirror",
    "bring_object",
    "read_encoded_index",
    "read_state_object",
]

_ENDS = re.compile(rb'"data_offsets":\[\d{1,19},(\d{1,19})\]')
ENCODED_FROM = 16 << 20
"""If so many bytes are missing a mirror is asked at once which objects it has encoded."""
_UNSAID = 4
"""Of what a file may have, a quarter may come of one whose length the server does not say."""

GONE = frozenset({404, 410})
"""The statuses by which a server says that it lacks one thing, which says nothing of others."""


def bring_object(
    resource: Resource, digest: Digest | None, size: int | None, context: Context
) -> Digest:
    """Bring an object of any size into the cache, from front to back; returns its digest.

    Where digest or size are not known, they are None; the context then limits what is taken.
    Another length raises a `FormatError`, other bytes an `IntegrityError`.
    """
    most = context.max_bytes if size is None else size
    with concerning(path=resource.address), resource.read() as stream:
        length = stream.total
        if length is not None and (length > most or length != (size or length)):
            raise FormatError(
                "an object of a mirror has the wrong length",
                expected=f"{'at most ' if size is None else ''}{most} bytes",
                found=f"{length} bytes",
            )
        if length is None and size is None:  # it may have no end
            most //= _UNSAID
        with context.receiver.arriving() as arriving:
            arriving.fill(context.reader.some(stream, most + 1))
            if arriving.size > most:
                raise FormatError(
                    "an object of a mirror has the wrong length",
                    expected=f"{'at most ' if size is None else ''}{most} bytes",
                    found="more, and the server does not say how many",
                )
            return arriving.publish(digest)


def read_state_object(resource: Resource, digest: Digest, max_size: int) -> bytes:
    """Read a state object of at most ``max_size`` bytes.

    It says at its front how long it is, so what has no end ends there.

    Raises:
        IntegrityError: It is larger, or has other bytes.
    """
    with concerning(path=resource.address), resource.read() as stream:
        if stream.total is not None:
            _check_size(stream.total, max_size)
        front = read_exactly(stream, 8)
        header = _length_of(front, max_size)
        front += read_exactly(stream, header)
        data = front + read_exactly(stream, _inline_length(front, max_size) + 1)
        check_arrived(Digest.of(data), digest)
    return data


def read_encoded_index(resource: Resource, state: Digest) -> EncodedIndex | None:
    """Read which objects of a state a mirror has encoded; see `ObjectMirror.encoded_index`."""
    try:
        with concerning(path=resource.address), resource.read() as stream:
            return EncodedIndex.parse(read_exactly(stream, MAX_INDEX + 1), state)
    except TransportError as error:
        if error.unreachable or (error.transient and error.status is None):
            raise
        return None  # whatever else it says, it may have objects


def _length_of(front: bytes, max_size: int) -> int:
    length = int.from_bytes(front, "little")
    if len(front) < 8 or length > MAX_HEADER:
        raise IntegrityError("this is no state object", found=begins_with(front))
    _check_size(8 + length, max_size)
    return length


def _inline_length(front: bytes, max_size: int) -> int:
    """The bytes that follow the header of a state object, as it says: it is not trusted."""
    ends = [int(match[1]) for match in _ENDS.finditer(front)]
    length = max(ends, default=0)
    _check_size(len(front) + length, min(max_size, len(front) + len(ends) * INLINE_LIMIT))
    return length


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise IntegrityError(
            "this is larger than it can be",
            expected=f"at most {most} bytes",
            found=f"{size} bytes",
            remedy="if that is right, write the size of the state into its manifest",
        )


class ObjectMirror:
    """Brings objects from one mirror: ``objects/`` is below its address."""

    def __init__(self, address: str, context: Context) -> None:
        self._address = address.rstrip("/")
        self._context = context
        self._lock = Lock()
        self._segments: Segments | None = None
        self.lacking: set[Digest] = set()  # that it turned out not to have

    def read(self, digest: Digest, max_size: int) -> bytes | None:
        """A state object, verified; None if the mirror lacks it. See `read_state_object`."""
        with self._unless_lacking(digest):
            return read_state_object(self._open(digest), digest, max_size)
        return None

    def encoded_index(self, state: Digest) -> EncodedIndex | None:
        """Which objects of a state the mirror has encoded; None if it does not say.

        Raises a `FormatError` if it says it in a form that is not known, and a `TransportError` if
        it cannot be reached.
        """
        address = f"{self._address}/{layout.encoded_index_path(state)}"
        return read_encoded_index(self._context.open(address), state)

    def gather(self, wanted: Mapping[Digest, int | None]) -> None:
        """Bring objects, each with its size if that is known; see `lacking` afterwards.

        Raises a `TransportError` if one cannot be read for another reason than that it is not
        there, and an `IntegrityError` if one has other bytes.
        """
        sizes = [size for size in wanted.values() if size is not None]
        self._context.reader.meter.expect(sum(sizes) if len(sizes) == len(wanted) else None)
        try:
            self._context.reader.all(self._requests(wanted))
        finally:
            if self._segments is not None:
                self._segments.close()
            self._context.receiver.claims.give_all()

    def address_of(self, digest: Digest) -> str:
        """The address of an object, if the mirror has it."""
        return f"{self._address}/{layout.object_path(digest)}"

    def _requests(self, wanted: Mapping[Digest, int | None]) -> Iterator[Callable[[], None]]:
        for digest, size in sorted(wanted.items(), key=lambda item: -(item[1] or 0)):
            if size is not None and size >= LARGE:
                self._segments = self._segments or Segments(self._context.receiver)
                yield from self._large(digest, size, self._segments)
            else:
                yield partial(self._bring, digest, size)

    def _bring(self, digest: Digest, size: int | None) -> None:
        if not self._context.claim(digest, size):
            return
        with self._unless_lacking(digest):
            bring_object(self._open(digest), digest, size, self._context)
        self._context.receiver.claims.give(digest)

    def _large(self, digest: Digest, size: int, segments: Segments) -> Iterator[Callable[[], None]]:
        """The requests for a large object: segments, or all of it if the server has no ranges."""
        resource, reader = self._open(digest), self._context.reader
        alone = Lock()
        if not self._context.claim(digest, size):
            return

        def complete(whole: Partial) -> None:
            segments.publish(whole, digest)
            self._context.receiver.claims.give(digest)

        def fetch(piece: Piece[Take]) -> None:
            if digest in self.lacking:
                return
            with self._unless_lacking(digest), concerning(path=resource.address):
                try:
                    reader.read_run(resource, (piece,))
                except NoRangesError:
                    if alone.acquire(blocking=False):
                        segments.discard(digest)
                        self._bring(digest, size)

        left = size
        for piece in segments.pieces(digest, size, complete, span=reader.span):
            left -= piece.stop - piece.start
            yield partial(fetch, piece)
        reader.meter.spare(left)

    def _open(self, digest: Digest) -> Resource:
        return self._context.open(self.address_of(digest))

    @contextmanager
    def _unless_lacking(self, digest: Digest) -> Iterator[None]:
        """Take the answer that something is not there as a fact, not as an error."""
        try:
            yield
        except TransportError as error:
            if error.status not in GONE:
                raise
            with self._lock:
                self.lacking.add(digest)

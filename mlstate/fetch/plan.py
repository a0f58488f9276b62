"""Which bytes to ask for: pieces of a file joined into requests, large objects in segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError
from mlstate.objects.partial import SEGMENT, Partial
from mlstate.objects.receiving import Receiver, check_arrived

__all__ = [
    "LARGE",
    "MOST",
    "WASTE",
    "DamagedPartialError",
    "Piece",
    "Segments",
    "Take",
    "join",
    "wrong_crc",
]

LARGE = 64 << 20
"""Objects from this size on come in segments: bytes."""

MOST = 16 << 20
"""The most bytes that one request asks for, where the pieces allow it."""

WASTE = 0.02
"""Bytes that nobody wants, for bytes that are wanted: what joining ranges may cost."""

_Want = TypeVar("_Want")

Take = Callable[[Iterator[Bytes]], None]
"""Takes exactly the bytes of a piece, as they come."""


@dataclass(frozen=True)
class Piece(Generic[_Want]):
    """A range of bytes of a resource, from ``start`` to before ``stop``, and its consumer."""

    start: int
    stop: int
    want: _Want


def join(
    pieces: Iterable[Piece[_Want]], *, waste: float = WASTE, spent: int = 0, most: int = MOST
) -> list[tuple[Piece[_Want], ...]]:
    """Put pieces of one resource together into runs: one run, one request.

    Pieces that touch are joined. Gaps between others are read and thrown away, the smallest
    first, as long as that costs no more than ``waste`` of what is wanted; ``spent`` bytes were
    thrown away before (a header). A run is cut between two pieces where it would exceed ``most``
    bytes, so that several connections share the work; a larger piece is a run of its own.
    """
    ordered = sorted(pieces, key=lambda piece: (piece.start, piece.stop))
    runs: list[list[Piece[_Want]]] = []
    bridged = _bridged(ordered, waste, spent)
    for index, piece in enumerate(ordered):
        if runs and index in bridged and piece.stop - runs[-1][0].start <= most:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [tuple(run) for run in runs]


def _bridged(ordered: Sequence[Piece[_Want]], waste: float, spent: int) -> set[int]:
    """The pieces that go with the one before: the gap is empty, or small enough to be read."""
    budget = waste * sum(piece.stop - piece.start for piece in ordered) - spent
    gaps = sorted(
        (ordered[index].start - ordered[index - 1].stop, index) for index in range(1, len(ordered))
    )
    bridged = set()
    for gap, index in gaps:
        budget -= gap
        if gap and budget < 0:
            break
        bridged.add(index)
    return bridged


def _joined(
    segments: Sequence[tuple[int, int]], span: Callable[[], int]
) -> Iterator[tuple[int, int]]:
    """Segments, joined with those that follow as far as a span goes that is asked for each time."""
    at = 0
    while at < len(segments):
        begin, stop = segments[at]
        at, most = at + 1, span()
        while at < len(segments) and segments[at][0] == stop and segments[at][1] - begin <= most:
            stop, at = segments[at][1], at + 1
        yield begin, stop


class DamagedPartialError(Exception):
    """What an earlier run left was damaged; it is forgotten, and this run may begin anew."""


def wrong_crc(expected: int, found: int) -> IntegrityError:
    """The error for a storage with another CRC-32 than its file gives."""
    return IntegrityError(
        "a storage of this checkpoint is damaged",
        expected=f"CRC-32 {expected:08x}",
        found=f"{found:08x}",
    )


class Segments:
    """Puts large objects together from segments. Used by several threads."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._open: dict[str, Partial] = {}
        self._discarded: list[Partial] = []
        self._lock = Lock()

    def pieces(
        self,
        name: str,
        size: int,
        complete: Callable[[Partial], None],
        *,
        head: bytes = b"",
        start: int = 0,
        convert: Callable[[Iterable[Bytes]], Iterable[Bytes]] = iter,
        span: Callable[[], int] = lambda: SEGMENT,
    ) -> Iterator[Piece[Take]]:
        """The pieces of an object that are not here yet; it is opened for the first of them.

        A later run finds it by ``name``, 64 hex digits. ``complete`` is called once, when all of it
        is here: it publishes or stages it. ``head`` is its first bytes, if they need not be read,
        and ``start`` where in the resource the bytes after the head begin. ``convert`` changes the
        bytes on their way, but not their number. ``span`` is asked for each piece how many bytes it
        may have; fewer than `SEGMENT` mean as many.
        """
        partial = self._receiver.partial(name, size)
        with self._lock:
            self._open[name] = partial
        partial.write(0, head)
        missing = partial.missing()
        if not missing:  # an earlier run was stopped right before the end
            self._complete(name, complete)
        for begin, stop in _joined(missing, span):
            first = max(begin, len(head))

            def take(chunks: Iterator[Bytes], begin: int = begin, position: int = first) -> None:
                for chunk in convert(chunks):
                    partial.write(position, chunk)
                    position += len(chunk)
                    begin = partial.mark(begin, position)
                if partial.claim():
                    self._complete(name, complete)

            shift = start - len(head)
            yield Piece(first + shift, stop + shift, take)

    def publish(self, partial: Partial, digest: Digest) -> None:
        """Give a complete object the name of its digest.

        One with another digest is removed: with an `IntegrityError`, or a `DamagedPartialError` if
        a part of it is from an earlier run.
        """
        try:
            check_arrived(partial.digest(), digest)
        except IntegrityError:
            partial.discard()
            if partial.resumed:
                raise DamagedPartialError from None
            raise
        self._receiver.publish_partial(partial, digest)

    def check_crc(self, partial: Partial, start: int, expected: int) -> None:
        """Compare the CRC-32 of an object from some byte on; errors as of `publish`."""
        found = partial.crc(start)
        if found != expected:
            partial.discard()
            if partial.resumed:
                raise DamagedPartialError
            raise wrong_crc(expected, found)

    def discard(self, name: str) -> None:
        """Remove the bytes that are here of an object, which comes in another way.

        Other streams may be writing to it. So it is closed when all of them have ended.
        """
        with self._lock:
            partial = self._open.pop(name, None)
            if partial is not None:
                self._discarded.append(partial)
                partial.forget()

    def forget(self) -> None:
        """Remove what is here of incomplete objects, which no later run could use."""
        with self._lock:
            names = list(self._open)
        for name in names:
            self.discard(name)

    def close(self) -> None:
        """Close incomplete objects; a later run may go on with them."""
        with self._lock:
            partials, self._open = [*self._open.values(), *self._discarded], {}
            self._discarded = []
        for partial in partials:
            partial.close()

    def _complete(self, name: str, complete: Callable[[Partial], None]) -> None:
        with self._lock:
            partial = self._open.pop(name)
        try:
            complete(partial)
        finally:
            partial.close()

"""Large objects in segments: many requests for one object, which go on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError
from mlstate.fetch.plan import Piece
from mlstate.objects.partial import Partial
from mlstate.objects.receiving import Receiver, check_arrived

__all__ = ["LARGE", "DamagedPartialError", "Segments", "Take"]

LARGE = 64 << 20
"""Objects from this size on come in segments: bytes."""

Take = Callable[[Iterator[Bytes]], None]
"""Takes exactly the bytes of a piece, as they come."""


class DamagedPartialError(Exception):
    """What an earlier run left was damaged; it has been forgotten, and this one may begin anew."""


def as_they_are(chunks: Iterable[Bytes]) -> Iterable[Bytes]:
    """Change nothing."""
    return chunks


class Segments:
    """Puts large objects together. Used by several threads.

    Args:
        receiver: Where they go.
    """

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
        convert: Callable[[Iterable[Bytes]], Iterable[Bytes]] = as_they_are,
    ) -> Iterator[Piece[Take]]:
        """What of an object is not here yet. It is opened when the first piece is asked for.

        Args:
            name: 64 hex digits by which a later run finds it.
            size: The size of the object in bytes.
            complete: Called once, when all of it is here: publishes or stages it.
            head: Its first bytes, if they need not be read.
            start: Where in the resource the bytes after the head begin.
            convert: What to do with the bytes on their way; keeps their number.
        """
        partial = self._receiver.partial(name, size)
        with self._lock:
            self._open[name] = partial
        partial.write(0, head)
        missing = partial.missing()
        if not missing:  # an earlier run was stopped right before the end
            self._complete(name, complete)
        for begin, stop in missing:
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

        Raises:
            IntegrityError: It has another digest; it is gone.
            DamagedPartialError: The same, but a part of it is from an earlier run.
        """
        try:
            check_arrived(partial.digest(), digest)
        except IntegrityError:
            partial.discard()
            if partial.resumed:
                raise DamagedPartialError from None
            raise
        self._receiver.publish_partial(partial, digest)

    def discard(self, name: str) -> None:
        """Remove what is here of an object: it comes in another way.

        Other streams may be writing to it. So it is closed when all of them have ended.
        """
        with self._lock:
            partial = self._open.pop(name, None)
            if partial is not None:
                self._discarded.append(partial)
                partial.forget()

    def close(self) -> None:
        """Let go of what is not complete; a later run may go on."""
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

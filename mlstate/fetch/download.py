"""A whole file into tmp/, for what can only be read when it is complete: a torch checkpoint."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError, NoRangesError, concerning
from mlstate.fetch.context import Ground
from mlstate.fetch.header import read_exactly
from mlstate.fetch.plan import Piece
from mlstate.fetch.reader import Reader
from mlstate.fetch.segments import LARGE, DamagedPartialError, Segments
from mlstate.objects.partial import Partial
from mlstate.objects.receiving import Arriving, Receiver, Staged, check_arrived
from mlstate.transport import Resource

__all__ = ["Downloaded", "bring_whole", "download", "fill", "read_object"]


def bring_whole(
    resource: Resource, digest: Digest | None, size: int | None, ground: Ground
) -> Digest:
    """Bring an object of any size into the cache, from front to back.

    Args:
        resource: Where it is.
        digest: Its digest; None if it is what it is.
        size: Its size in bytes, if that is known.
        ground: Reads it, and says how much is taken at most if it is not.

    Returns:
        Its digest.

    Raises:
        TransportError: It could not be read.
        FormatError: It has another length.
        IntegrityError: It has other bytes.
    """
    most = ground.max_bytes if size is None else size
    with concerning(path=resource.address), resource.read() as stream:
        length = stream.total
        if length is not None and (length > most or length != (size or length)):
            raise FormatError(
                "an object of a mirror has the wrong length",
                expected=f"{'at most ' if size is None else ''}{most} bytes",
                found=f"{length} bytes",
            )
        with ground.receiver.arriving() as arriving:
            fill(ground.reader.some(stream, most + 1), arriving)
            return arriving.publish(digest)


def read_object(resource: Resource, digest: Digest, max_size: int) -> bytes:
    """A small object, whole and verified, in memory.

    Args:
        resource: Where it is.
        digest: Its digest.
        max_size: The most bytes that it may have.

    Raises:
        TransportError: It could not be read.
        IntegrityError: It has other bytes, or too many.
    """
    with concerning(path=resource.address), resource.read() as stream:
        if stream.total is not None and stream.total > max_size:
            raise IntegrityError(
                "this is larger than it can be",
                expected=f"at most {max_size} bytes",
                found=f"{stream.total} bytes",
            )
        data = read_exactly(stream, max_size + 1)
        check_arrived(Digest.of(data), digest)
    return data


class Downloaded:
    """A file in tmp/ that came from somewhere.

    Attributes:
        path: Where it lies.
        resumed: Whether an earlier run brought it, or a part of it.
    """

    def __init__(self, staged: Staged, *, resumed: bool) -> None:
        self._staged = staged
        self.path: Path = staged.path
        self.resumed = resumed

    def blame(self) -> None:
        """It is not what it should be.

        Raises:
            DamagedPartialError: That may be due to an earlier run; another try begins anew.
        """
        if self.resumed:
            self.discard()
            raise DamagedPartialError from None

    def discard(self) -> None:
        """Remove it."""
        self._staged.discard()


def download(
    resource: Resource, receiver: Receiver, reader: Reader, *, max_bytes: int, resume: bool = True
) -> Downloaded:
    """Bring a file, or the rest of it.

    Args:
        resource: Where it is.
        receiver: Whose tmp/ it goes to.
        reader: Reads the streams.
        max_bytes: The most bytes that it may have.
        resume: Whether to use what an earlier run left. If nobody can tell whether the whole is
            right, it might be of another version of the file.

    Raises:
        TransportError: It could not be had.
        FormatError: It is larger than that.
    """
    # Known before many are asked for at once: the first that fails ends them all.
    ranges = _gives_ranges(resource)
    size = resource.size()
    if size is not None and size > max_bytes:
        raise _too_large(resource, max_bytes, f"{size} bytes")
    reader.meter.expect(size)
    run = "" if resume else uuid.uuid4().hex
    name = Digest.of(f"download\n{resource.address}\n{size}\n{run}".encode())
    if size is not None and (staged := receiver.staged(name, size)):
        return Downloaded(staged, resumed=True)
    if ranges and size is not None and size >= LARGE:
        return _by_ranges(resource, receiver, reader, name, size)
    with resource.read() as stream, receiver.arriving() as arriving:
        if size is None:
            fill(reader.some(stream, max_bytes + 1), arriving)
            if arriving.size > max_bytes:
                raise _too_large(resource, max_bytes, "more")
        else:
            reader.feed(stream, 0, [Piece(0, size, partial(fill, arriving=arriving))])
        return Downloaded(arriving.stage(name), resumed=False)


def _gives_ranges(resource: Resource) -> bool:
    try:
        with resource.read(0, 1) as stream:
            while stream.read(1):
                pass
    except NoRangesError:
        return False
    return True


def _by_ranges(
    resource: Resource, receiver: Receiver, reader: Reader, name: Digest, size: int
) -> Downloaded:
    segments = Segments(receiver)
    found: list[Downloaded] = []

    def complete(whole: Partial) -> None:
        resumed = whole.resumed
        found.append(Downloaded(receiver.stage_partial(whole, name, name), resumed=resumed))

    try:
        pieces = segments.pieces(name, size, complete)
        reader.all(partial(reader.read_run, resource, (piece,)) for piece in pieces)
    finally:
        segments.close()
    return found[0]


def fill(chunks: Iterator[Bytes], arriving: Arriving) -> None:
    """Write all that comes."""
    for chunk in chunks:
        arriving.write(chunk)


def _too_large(resource: Resource, most: int, found: str) -> FormatError:
    return FormatError(
        "this file is much larger than the state, or than what is allowed",
        path=resource.address,
        expected=f"at most {most} bytes",
        found=found,
        remedy="if that is right, give a larger max_size",
    )

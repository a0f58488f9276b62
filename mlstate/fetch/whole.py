"""One object as a whole, under its own address: verified as it comes."""

from __future__ import annotations

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, concerning
from mlstate.fetch.context import Ground
from mlstate.fetch.download import fill
from mlstate.fetch.header import read_exactly
from mlstate.objects.receiving import check_arrived
from mlstate.transport import Resource

__all__ = ["bring_whole", "read_object"]


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

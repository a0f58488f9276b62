"""Whole files into tmp/, for what is read when it is complete; and the SHA-256 of files."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, NoRangesError
from mlstate.fetch.plan import LARGE, Piece, Segments
from mlstate.fetch.reader import Reader
from mlstate.objects.partial import Partial
from mlstate.objects.receiving import Receiver, Staged
from mlstate.transport import Resource
from mlstate.transport.interface import Stream
from mlstate.units import LARGER

__all__ = ["MAX_SIZE", "SummedStream", "check_sha256", "download", "too_large"]


MAX_SIZE = 1 << 40
"""The most bytes that are taken of a state whose size nobody gives, unless somebody says more."""

_UNSAID = 16 << 30
"""The most bytes that are taken of a file of which the server does not say how long it is."""


def download(
    resource: Resource,
    receiver: Receiver,
    reader: Reader,
    *,
    max_bytes: int,
    resume: bool = True,
    ranges: bool | None = None,
) -> tuple[Staged, bool]:
    """Bring a file, or the rest of it; says, too, whether an earlier run brought a part of it.

    With ``resume`` what an earlier run left is used: not if nobody can tell whether the whole is
    right, for it might be of another version of the file. ``ranges`` says whether the server gives
    ranges, if that is known. More than ``max_bytes`` raises a `FormatError`.
    """
    # Known before many are asked for at once: the first that fails ends them all.
    ranges = _gives_ranges(resource) if ranges is None else ranges
    size = resource.size()
    if size is not None and size > max_bytes:
        raise too_large(resource, max_bytes, f"{size} bytes")
    reader.meter.expect(size)
    text = f"download\n{resource.address}"
    name = Digest.of(text.encode()) if resume else receiver.unsure_name(text)
    if resume and size is not None and (staged := receiver.staged(name, size)):
        return staged, True
    if ranges and size is not None and size >= LARGE:
        return _by_ranges(resource, receiver, reader, name, size, kept=resume)
    with resource.read() as stream, receiver.arriving() as arriving:
        if size is None:
            most = min(max_bytes, _UNSAID)
            arriving.fill(reader.some(stream, most + 1))
            if arriving.size > most:
                raise too_large(resource, most, "more, and the server does not say how many")
        else:
            reader.feed(stream, 0, [Piece(0, size, arriving.fill)])
        receiver.remove_partial(name)  # what came in parts before
        return arriving.stage(name), False


def _gives_ranges(resource: Resource) -> bool:
    try:
        with resource.read(0, 1) as stream:
            while stream.read(1):
                pass
    except NoRangesError:
        return False
    return True


def _by_ranges(
    resource: Resource, receiver: Receiver, reader: Reader, name: Digest, size: int, *, kept: bool
) -> tuple[Staged, bool]:
    segments = Segments(receiver)
    found: list[tuple[Staged, bool]] = []

    def complete(whole: Partial) -> None:
        resumed = whole.resumed
        found.append((receiver.stage_partial(whole, name, name), resumed))

    try:
        pieces = segments.pieces(name, size, complete, span=reader.span)
        reader.all(partial(reader.read_run, resource, (piece,)) for piece in pieces)
    finally:
        if not kept:
            segments.forget()
        segments.close()
    return found[0]


def too_large(resource: Resource, most: int, found: str) -> FormatError:
    """The error for a file that holds much more than the state."""
    return FormatError(
        "this file is much larger than the state, or than what is allowed",
        path=resource.address,
        expected=f"at most {most} bytes",
        found=found,
        remedy="if that is right, " + LARGER,
    )


def check_sha256(path: Path, digits: str, origin: str) -> str:
    """Compare a file's SHA-256 with the digits, all or the leading ones, that its publisher gives.

    Returns the whole sum. Raises an `IntegrityError`, which names ``origin``, if the file has
    another sum, and a `FormatError` if there are no digits: every file would satisfy these.
    """
    if not digits:
        raise FormatError(
            "sha256 is 1 to 64 lower-case hex digits", path=origin, found=repr(digits)
        )
    with path.open("rb") as file:
        return _compare(hashlib.file_digest(file, "sha256").hexdigest(), digits, origin)


class SummedStream(Stream):
    """A stream whose SHA-256 is computed as it is read."""

    def __init__(self, stream: Stream) -> None:
        self.length, self.total = stream.length, stream.total
        self._stream = stream
        self._hasher = hashlib.sha256()

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes; see `Stream.readinto`."""
        count = self._stream.readinto(buffer)
        self._hasher.update(buffer[:count])
        return count

    def check(self, digits: str, origin: str) -> str:
        """Compare the sum of all that was read, as `check_sha256` does."""
        return _compare(self._hasher.hexdigest(), digits, origin)


def _compare(found: str, digits: str, origin: str) -> str:
    if found[: len(digits)] != digits:
        raise IntegrityError(
            "a file does not have the SHA-256 that its mirror gives",
            path=origin,
            expected=digits if len(digits) == len(found) else f"{digits}...",
            found=found,
        )
    return found

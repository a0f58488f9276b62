"""The sum that a publisher gives of a file, compared before anything in the file is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlstate.errors import FormatError, IntegrityError
from mlstate.transport.interface import Stream

__all__ = ["SummedStream", "check_sha256"]


def check_sha256(path: Path, digits: str, origin: str) -> None:
    """Compare a file's SHA-256 with what its publisher says.

    Args:
        path: The file.
        digits: The SHA-256 in lower-case hex digits, whole or the leading ones.
        origin: Where the file is from, for the error.

    Raises:
        IntegrityError: The file has another sum.
        FormatError: No digits, which every file would satisfy.
    """
    if not digits:
        raise FormatError(
            "sha256 is 1 to 64 lower-case hex digits", path=origin, found=repr(digits)
        )
    with path.open("rb") as file:
        _compare(hashlib.file_digest(file, "sha256").hexdigest(), digits, origin)


class SummedStream(Stream):
    """A stream whose SHA-256 is computed as it is read.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Stream) -> None:
        self.length, self.total = stream.length, stream.total
        self._stream = stream
        self._hasher = hashlib.sha256()

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes; see `Stream.readinto`."""
        count = self._stream.readinto(buffer)
        self._hasher.update(buffer[:count])
        return count

    def check(self, digits: str, origin: str) -> None:
        """Compare the sum of all that was read; as `check_sha256`.

        Raises:
            IntegrityError: It is another.
        """
        _compare(self._hasher.hexdigest(), digits, origin)


def _compare(found: str, digits: str, origin: str) -> None:
    if found[: len(digits)] != digits:
        raise IntegrityError(
            "a file does not have the SHA-256 that its mirror gives",
            path=origin,
            expected=digits if len(digits) == len(found) else f"{digits}...",
            found=found,
        )

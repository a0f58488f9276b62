"""Digests: BLAKE3 hashes of 256 bits, written as exactly 64 lower-case hex digits."""

from __future__ import annotations

import re
from mmap import mmap

from blake3 import blake3

from mlstate.errors import FormatError

__all__ = ["Bytes", "Digest", "Hasher"]

Bytes = bytes | bytearray | memoryview

_HEX = re.compile(r"[0-9a-f]{64}")


class Digest(str):
    """A BLAKE3 digest, a validated value: a string that is nothing but 64 lower-case hex digits.

    Raises:
        FormatError: The text is anything else: upper case, a prefix, another length.

    Example:
        >>> Digest.of(b"")[:16]
        'af1349b9f5f9a1a6'
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Check the text."""
        if not isinstance(text, str) or not _HEX.fullmatch(text):
            raise FormatError(
                "not a BLAKE3 digest",
                expected="exactly 64 lower-case hex digits",
                found=repr(text)[:80],
            )
        return super().__new__(cls, text)

    @classmethod
    def of(cls, *parts: Bytes) -> Digest:
        """The digest of these bytes, one part after the other."""
        hasher = Hasher()
        for part in parts:
            hasher.update(part)
        return hasher.digest()


class Hasher:
    """A digest under way; more than one thread pays for updates of megabytes."""

    def __init__(self, threads: int = 1) -> None:
        self._state = blake3(max_threads=threads)

    def update(self, data: Bytes | mmap) -> None:
        """Add the next bytes."""
        self._state.update(data)

    def digest(self) -> Digest:
        """The digest of all bytes so far."""
        return Digest(self._state.hexdigest())

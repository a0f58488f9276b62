"""Bytes of the index with a checksum, and numbers as bytes."""

from __future__ import annotations

import sys
import zlib
from array import array

__all__ = ["array_of", "little", "sealed", "unsealed"]

_SEAL = 4


def sealed(name: str, said: bytes) -> bytes:
    """Bytes with a checksum, against accidents, over themselves and what they are kept under."""
    return said + _seal(name, said)


def unsealed(name: str, data: object) -> bytes | None:
    """The inverse of `sealed`; None for what is damaged, or was kept under another name."""
    if not isinstance(data, bytes) or len(data) < _SEAL:
        return None
    said = data[:-_SEAL]
    return said if data[-_SEAL:] == _seal(name, said) else None


def _seal(name: str, said: bytes) -> bytes:
    return zlib.crc32(said, zlib.crc32(name.encode())).to_bytes(_SEAL)


def little(numbers: array[int]) -> bytes:
    """The bytes of numbers, the same on every machine."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def array_of(data: bytes) -> array[int]:
    """The inverse of `little`."""
    numbers = array("q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers

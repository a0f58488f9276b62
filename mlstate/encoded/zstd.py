"""Zstandard: the standard library's module from Python 3.14 on, its backport before."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlstate.digests import Bytes
from mlstate.errors import FormatError

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

__all__ = ["Compressors", "content_size", "decompressed"]

_MAGIC = b"\x28\xb5\x2f\xfd"
_SINGLE_SEGMENT, _NO_CONTENT_SIZE_BITS = 0x20, 0x3F
_FIELD_SIZES = (1, 2, 4, 8)  # of the content size, by the two highest bits of the descriptor

_SEARCH: dict[Any, int] = {
    zstd.CompressionParameter.strategy: zstd.Strategy.fast,
    zstd.CompressionParameter.min_match: 7,
    zstd.CompressionParameter.hash_log: 6,
    zstd.CompressionParameter.target_length: 0,
}
_LITERALS = 1002
"""zstd's own number of the parameter that makes it compress literals, whatever the strategy."""
_STEP = 1 << 17


class Compressors:
    """Two ways to compress, for one thread.

    A search for repeated bytes costs speed, both ways, and makes bytes that do not repeat larger:
    the lengths of chance matches take more room than the bytes. So there is a way without.
    """

    def __init__(self) -> None:
        self._search = zstd.ZstdCompressor(options=_SEARCH)
        self._entropy = _entropy_coder() or self._search

    def compress(self, *parts: Bytes, search: bool) -> bytes:
        """Bytes as one frame that says how many they are; each part gets codes of its own."""
        compressor = self._search if search else self._entropy
        *first, last = parts
        if first:  # of a single one zstd knows it
            compressor.set_pledged_input_size(sum(map(len, parts)))
        frame = [compressor.compress(part, zstd.ZstdCompressor.FLUSH_BLOCK) for part in first]
        return b"".join((*frame, compressor.compress(last, zstd.ZstdCompressor.FLUSH_FRAME)))


def _entropy_coder() -> zstd.ZstdCompressor | None:
    """A compressor that steps over its input, and codes nearly all of it as literals.

    None if this zstd does not have that parameter, which is not part of its stable interface.
    """
    step = {zstd.CompressionParameter.target_length: _STEP, _LITERALS: 1}
    try:
        return zstd.ZstdCompressor(options={**_SEARCH, **step})
    except (zstd.ZstdError, ValueError):
        return None


def decompressed(frame: Bytes, size: int) -> bytes:
    """The bytes of a frame: exactly ``size``, which its header is held against before it is read.

    Raises:
        FormatError: It is not one frame of a single segment, without dictionary and checksum, that
            gives exactly these bytes.
    """
    content = content_size(frame)
    if content != size:
        raise _no_frame(f"{size} bytes", f"a frame of {content} bytes")
    reader = zstd.ZstdDecompressor()
    try:
        data = reader.decompress(frame, size)
    except zstd.ZstdError as error:
        raise _no_frame(f"{size} bytes", str(error)) from None
    if len(data) == size and reader.eof and not reader.unused_data:
        return data
    more = "more" if len(data) == size else "no more"
    raise _no_frame(f"{size} bytes", f"{len(data)} bytes, and {more}")


def content_size(frame: Bytes) -> int:
    """How many bytes a frame gives by its header.

    Raises:
        FormatError: It is not the header of a frame of a single segment, without dictionary and
            checksum.
    """
    start = bytes(frame[:14])
    if len(start) < 6 or start[:4] != _MAGIC:
        raise _no_frame("its size", f"bytes that begin with {start[:4].hex()}")
    descriptor = start[4]
    if descriptor & _NO_CONTENT_SIZE_BITS != _SINGLE_SEGMENT:
        raise _no_frame("its size", f"a frame with descriptor {descriptor:#04x}")
    length = _FIELD_SIZES[descriptor >> 6]
    field = start[5 : 5 + length]
    if len(field) < length:
        raise _no_frame("its size", "a header that is cut short")
    return int.from_bytes(field, "little") + (256 if length == 2 else 0)


def _no_frame(size: str, found: str) -> FormatError:
    return FormatError(
        "a plane of an encoded object is not one zstd frame of its size",
        expected=f"one segment of {size}, without dictionary and checksum",
        found=found,
    )

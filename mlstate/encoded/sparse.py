"""Sparse planes: the few bytes of a plane that are not 0, and how far each is from the last one.

All distances come first, then all values. A distance is the number of bytes 0 between two entries;
a longer one than fits a byte is spanned by entries whose value is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mlstate.digests import Bytes
from mlstate.encoded.elements import CHUNK, chunks, part_of
from mlstate.encoded.zstd import Compressors, content_size, decompressed
from mlstate.errors import FormatError
from mlstate.format.encoded_object import SPARSE_SHARE

__all__ = ["Entries", "SparseEncoder", "sparse_entries"]

_WORD = 8
_ENTRIES = CHUNK // 2
"""The entries that are made together: with those that span the distances, less than a chunk."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Some of the bytes of a plane that are not 0.

    Attributes:
        places: Where they are, int64, ascending.
        values: They, uint8.
    """

    places: torch.Tensor
    values: torch.Tensor


class SparseEncoder:
    """Encodes sparse planes of up to so many bytes, for one thread."""

    def __init__(self, elements: int, compressors: Compressors) -> None:
        self._compressors = compressors
        most = elements // SPARSE_SHARE
        self._places = torch.empty(most + 1, dtype=torch.int64, device="cpu")
        self._places[0] = -1  # in front of the first one
        self._distances, self._values = bytearray(most), bytearray(most)

    def frame(self, plane: torch.Tensor) -> bytes | None:
        """The frame of a plane, uint8; None if too many of its bytes are not 0, or none is."""
        most = len(plane) // SPARSE_SHARE
        count, end = self._find_places(plane, most), 0
        for start in range(0, count, _ENTRIES):
            places = self._places[start + 1 : 1 + min(start + _ENTRIES, count)]
            gaps = torch.sub(places, self._places[start : start + len(places)]).sub_(1)
            after_spans = (gaps >> 8).add_(1).cumsum_(0).sub_(1)
            size = int(after_spans[-1]) + 1
            if end + size > most:
                return None
            _bytes(self._distances, end, size).fill_(255).scatter_(
                0, after_spans, gaps.to(torch.uint8)
            )
            _bytes(self._values, end, size).zero_().scatter_(
                0, after_spans, plane.index_select(0, places)
            )
            end += size
        if not end:
            return None
        parts = (memoryview(content)[:end] for content in (self._distances, self._values))
        return self._compressors.compress(*parts, search=False)

    def _find_places(self, plane: torch.Tensor, most: int) -> int:
        """Note where a plane is not 0; gives the number of places, or 0 if there are too many.

        Words of it are looked at first, and then the bytes of those that are not 0.
        """
        whole, count = len(plane) // _WORD * _WORD, 0
        words = plane[:whole].view(torch.int64)
        for number, chunk in enumerate(chunks(words)):
            of_chunk = chunk.nonzero().view(-1).add_(number * CHUNK)
            for some in chunks(of_chunk, CHUNK // _WORD):
                inside = words.index_select(0, some).view(torch.uint8).nonzero().view(-1)
                if count + len(inside) > most:
                    return 0
                places = some.mul_(_WORD).index_select(0, inside >> 3).add_(inside & 7)
                count = self._note(places, count)
        rest = plane[whole:].nonzero().view(-1)
        return 0 if count + len(rest) > most else self._note(rest.add_(whole), count)

    def _note(self, places: torch.Tensor, count: int) -> int:
        self._places[count + 1 : count + 1 + len(places)].copy_(places)
        return count + len(places)


def sparse_entries(frame: Bytes, elements: int) -> Iterator[Entries]:
    """The entries of a frame, some at a time.

    Args:
        frame: What `SparseEncoder.frame` gave.
        elements: The bytes of the plane.

    Raises:
        FormatError: It is no such frame, or names a place outside of the plane.
    """
    size, most = content_size(frame), elements // SPARSE_SHARE
    if size % 2 or not 2 <= size <= 2 * most:
        raise FormatError(
            "a sparse plane of an encoded object has a number of entries that is not possible",
            expected=f"1 to {most} entries of 2 bytes",
            found=f"{size} bytes",
        )
    content, count, last = decompressed(frame, size), size // 2, -1
    distances = chunks(part_of(content, torch.uint8, 0, count))
    values = chunks(part_of(content, torch.uint8, count, count))
    for near, found in zip(distances, values, strict=True):
        places = near.to(torch.int64).add_(1).cumsum_(0).add_(last)
        last = int(places[-1])
        if last >= elements:
            raise FormatError(
                "a sparse plane of an encoded object has an entry outside of it",
                expected=f"places below {elements}",
                found=last,
            )
        yield Entries(places, found)


def _bytes(memory: bytearray, start: int, count: int) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=start)

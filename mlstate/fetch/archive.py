"""The structure of a torch checkpoint elsewhere, by ranges: its directory and its pickle alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlstate.errors import FormatError, concerning
from mlstate.fetch.header import HeaderRoom, front_of
from mlstate.fetch.reader import read_exactly
from mlstate.format.tensor_object import TensorSpec
from mlstate.pickled import Archive, CheckpointTensor, read_archive
from mlstate.pickled.source import check_range
from mlstate.transport import Resource

__all__ = ["RangedSource", "RemoteCheckpoint", "fetch_archive"]

_ZIP = b"PK\3\4"
_MORE = 1 << 10
"""What the other small entries, and the ends of the archive, take: bytes."""
_WINDOW = 64 << 10
"""What is asked for at least, where something is missing that was not expected there: bytes."""


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A zip archive elsewhere.

    Attributes:
        resource: The file.
        source: What was read of it.
        archive: Its structure.
        tensors: Its tensors, by the names of the state.
        specs: Their types and shapes.
    """

    resource: Resource
    source: RangedSource
    archive: Archive
    tensors: Mapping[str, CheckpointTensor]
    specs: Mapping[str, TensorSpec]


class RangedSource:
    """A file elsewhere, a few ranges of which are held in memory: see `mlstate.pickled.Source`.

    Args:
        resource: The file.
        size: Its size in bytes.
        room: What may be read of it.

    Attributes:
        size: Its size in bytes.
        spent: The bytes that were read.
    """

    def __init__(self, resource: Resource, size: int, room: HeaderRoom) -> None:
        self.size = size
        self.spent = 0
        self._resource = resource
        self._room = room
        self._held: list[tuple[int, bytes]] = []

    def hold(self, start: int, data: bytes) -> None:
        """Keep a range that was read."""
        self._room.take(len(data), self._resource)
        self.spent += len(data)
        self._held.append((start, data))

    def held(self, start: int, size: int) -> bytes | None:
        """A range that was read already; None of another."""
        for begin, data in self._held:
            if begin <= start and start + size <= begin + len(data):
                return data[start - begin : start - begin + size]
        return None

    def read(self, start: int, size: int) -> bytes:
        """See `mlstate.pickled.Source.read`: what is not held is asked for, and a bit more."""
        check_range(start, size, self.size)
        if (found := self.held(start, size)) is not None:
            return found
        fronts = (held[start - begin :] for begin, held in self._held if begin <= start)
        data = max(fronts, key=len, default=b"")
        begin = start + len(data)
        stop = min(self.size, max(start + size, begin + _WINDOW))
        self._room.take(stop - begin, self._resource)  # before memory is spent
        with self._resource.read(begin, stop) as stream:
            more = read_exactly(stream, stop - begin)
        self.spent += len(more)
        data += more
        if len(data) < size:
            raise FormatError("a file became shorter while it was read")
        self._held.append((start, data))
        return data[:size]


def fetch_archive(
    resource: Resource, expected: int, room: HeaderRoom
) -> tuple[Archive, RangedSource] | None:
    """Read the structure of a zip archive by ranges: by two requests, if it is as expected.

    torch.save writes the pickle first, and a zip archive ends with its directory.

    Args:
        resource: The file.
        expected: How many bytes the header of a safetensors file with these tensors may well have:
            a pickle has about as many, and a directory two thirds (as torch 2 writes them).
        room: What may be read.

    Returns:
        The structure; None of anything but a zip archive, of which all has to be read.

    Raises:
        NoRangesError: The server gives the whole file only.
        FormatError: It is damaged, no checkpoint, or its structure is too long.
    """
    most = expected * 5 // 4 + _MORE
    with front_of(resource, most) as stream:
        front = read_exactly(stream, most)
        size = stream.total
    if not front.startswith(_ZIP):
        return None
    size = resource.size() if size is None else size
    if size is None:
        return None
    source = RangedSource(resource, size, room)
    source.hold(0, front)
    tail = max(len(front), size - expected * 3 // 4 - _MORE)
    if tail < size:
        with resource.read(tail, size) as stream:
            end = read_exactly(stream, size - tail)
        if tail == len(front):  # all of it is here
            front, tail, end = b"", 0, front + end
        source.hold(tail, end)
    try:
        with concerning(path=resource.address), room.one_at_a_time():
            return read_archive(source), source
    except MemoryError:
        raise FormatError(
            "there is not enough memory to read the structure of a checkpoint",
            path=resource.address,
            found=f"{source.spent} bytes of it",
        ) from None

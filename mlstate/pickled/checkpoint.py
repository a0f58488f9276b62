"""What a checkpoint holds, and where in its file each storage is."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlstate.errors import FormatError
from mlstate.pickled.source import Source
from mlstate.pickled.tensor import StorageClaim
from mlstate.pickled.values import Value

__all__ = ["Checkpoint", "Place"]

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """The range of a file that is a storage.

    Attributes:
        start: Where it begins.
        size: Its size in bytes.
        crc: The CRC-32 of these bytes, or None if the file has none.
    """

    start: int
    size: int
    crc: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file: its structure was read, its tensors were not.

    Attributes:
        root: What was saved, as inert values: see `mlstate.pickled.values`.
        places: Where each storage is, by its key. All lie in the file.
    """

    root: Value = field(repr=False)
    places: Mapping[str, Place] = field(repr=False)
    _checked: set[str] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def start(self, storage: StorageClaim) -> int:
        """Where in the file a storage begins."""
        return self.places[storage.key].start + storage.start

    def check(self, source: Source, storage: StorageClaim) -> None:
        """Compare the bytes of a storage with their CRC-32, if the file has one, the first time.

        Raises:
            FormatError: They are others.
        """
        place = self.places[storage.key]
        with self._lock:
            if place.crc is None or storage.key in self._checked:
                return
        crc = 0
        for at in range(0, place.size, _PIECE):
            crc = zlib.crc32(source.read(place.start + at, min(_PIECE, place.size - at)), crc)
        if crc != place.crc:
            raise FormatError(
                "a storage of this checkpoint is damaged",
                expected=f"CRC-32 {place.crc:08x}",
                found=f"{crc:08x}",
            )
        with self._lock:
            self._checked.add(storage.key)

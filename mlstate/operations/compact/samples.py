"""The distances of objects from each other, from samples of 4 KiB, each of which is read once."""

from __future__ import annotations

from mlstate.digests import Digest
from mlstate.format.state_object import TensorRef
from mlstate.objects.encoding import sample_of
from mlstate.objects.interface import EncodingObjectStore

__all__ = ["Distances"]

_SAMPLES = 20_000
"""The samples that are kept at a time: 4 KiB each."""


class Distances:
    """The distances of objects, from a sample of each, which is read once."""

    def __init__(self, objects: EncodingObjectStore) -> None:
        self._objects = objects
        self._samples: dict[Digest, bytes] = {}

    def distance(self, ref: TensorRef, other: TensorRef) -> float:
        """How far two objects of a type and shape are from each other; see `Known.distance`."""
        from mlstate.encoded import distance

        return distance(self._sample(ref), self._sample(other), ref.spec)

    def _sample(self, ref: TensorRef) -> bytes:
        if ref.digest not in self._samples:
            if len(self._samples) >= _SAMPLES:
                self._samples.pop(next(iter(self._samples)))
            self._samples[ref.digest] = sample_of(self._objects, ref)
        return self._samples[ref.digest]

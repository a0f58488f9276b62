"""What a state object says, as far as the index keeps it, and the bytes that it is kept as."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

from mlstate.digests import Digest
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import object_size
from mlstate.index.sealed import array_of, little, sealed, unsealed

__all__ = ["Said", "begin_of", "number_of"]

_NUMBERS = struct.Struct("<QQQQ")
_MOST = (1 << 63) - 1


def number_of(digest: Digest) -> int:
    """A number for an object: the first 16 digits of its digest, as SQLite keeps integers.

    Numbers are compared in statistics, never to find an object.
    """
    return int(digest[:16], 16) - (1 << 63)


def begin_of(number: int) -> str:
    """The inverse of `number_of`, as far as there is one: how the digest begins."""
    return f"{number + (1 << 63):016x}"


@dataclass(frozen=True, slots=True)
class Said:
    """What a state object says.

    Attributes:
        size: The bytes of the state object itself.
        nbytes: The bytes of tensor data, every name counted.
        inline: Those of them that are within the state object.
        tensors: How many names there are.
        objects: The objects that it names, each once, by their numbers.
        sizes: The bytes of each of these.
    """

    size: int
    nbytes: int
    inline: int
    tensors: int
    objects: array[int]
    sizes: array[int]

    @classmethod
    def of(cls, state: StateObject, size: int) -> Said:
        """What a state object of so many bytes says."""
        sizes = {
            number_of(ref.digest): min(object_size(ref.spec), _MOST) for ref in state.refs.values()
        }
        inline = sum(tensor.spec.nbytes for tensor in state.inline.values())
        return cls(
            size,
            state.nbytes,
            inline,
            len(state.inline) + len(state.refs),
            array("q", sizes),
            array("q", sizes.values()),
        )

    def encode(self, digest: Digest) -> bytes:
        """The bytes that the index keeps for a state digest."""
        fixed = _NUMBERS.pack(self.size, self.nbytes, self.inline, self.tensors)
        return sealed(digest, fixed + little(self.objects) + little(self.sizes))

    @classmethod
    def decode(cls, digest: Digest, data: object) -> Said | None:
        """The inverse of `encode`; None for bytes that it did not make."""
        said = unsealed(digest, data)
        if said is None or len(said) < _NUMBERS.size or (len(said) - _NUMBERS.size) % 16:
            return None
        middle = (len(said) + _NUMBERS.size) // 2
        objects, sizes = array_of(said[_NUMBERS.size : middle]), array_of(said[middle:])
        size, nbytes, inline, tensors = _NUMBERS.unpack_from(said)
        return cls(size, nbytes, inline, tensors, objects, sizes)

"""What a state object says, as far as the index keeps it, and the bytes that it is kept as."""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass

from mlstate.digests import Digest
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import object_size

__all__ = ["Said", "number_of", "sealed", "unsealed"]

_NUMBERS = struct.Struct("<QQQQ")
_SEAL = 8
_MOST = (1 << 63) - 1


def number_of(digest: Digest) -> int:
    """A number for an object: the first 16 digits of its digest, as SQLite keeps integers.

    Numbers are compared in statistics, never to find an object.
    """
    return int(digest[:16], 16) - (1 << 63)


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
        return sealed(digest, fixed + _little(self.objects) + _little(self.sizes))

    @classmethod
    def decode(cls, digest: Digest, data: object) -> Said | None:
        """The inverse of `encode`; None for bytes that it did not make."""
        said = unsealed(digest, data)
        if said is None or len(said) < _NUMBERS.size or (len(said) - _NUMBERS.size) % 16:
            return None
        middle = (len(said) + _NUMBERS.size) // 2
        objects, sizes = _array(said[_NUMBERS.size : middle]), _array(said[middle:])
        return cls(*_NUMBERS.unpack_from(said), objects, sizes)


def sealed(name: str, said: bytes) -> bytes:
    """Bytes with a checksum over themselves and what they are kept under."""
    return said + _seal(name, said)


def unsealed(name: str, data: object) -> bytes | None:
    """The inverse of `sealed`; None for what is damaged, or was kept under another name."""
    if not isinstance(data, bytes) or len(data) < _SEAL:
        return None
    said = data[:-_SEAL]
    return said if data[-_SEAL:] == _seal(name, said) else None


def _seal(name: str, said: bytes) -> bytes:
    return bytes.fromhex(Digest.of(name.encode() + b"\0" + said)[: 2 * _SEAL])


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _array(data: bytes) -> array[int]:
    numbers = array("q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers

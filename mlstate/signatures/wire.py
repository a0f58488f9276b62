"""SSH's binary encoding (RFC 4251, section 5): strings with a length, and numbers."""

from __future__ import annotations

import struct

__all__ = ["WireError", "WireReader", "wire_string"]


class WireError(ValueError):
    """Bytes that are not in SSH's encoding. It does not leave this package."""


class WireReader:
    """Reads a sequence of values from bytes that may be hostile.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            WireError: There are fewer.
        """
        end = self._position + size
        if end > len(self._data):
            raise WireError("it ends too early")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def uint32(self) -> int:
        """The next number of four bytes."""
        number: int = struct.unpack(">I", self.take(4))[0]
        return number

    def string(self) -> bytes:
        """The next string: its length, then its bytes."""
        return self.take(self.uint32())

    def text(self) -> str:
        """The next string, which is printable ASCII."""
        data = self.string()
        if not all(0x20 <= byte < 0x7F for byte in data):
            raise WireError("a name in it is not printable ASCII")
        return data.decode("ascii")

    def mpint(self) -> int:
        """The next number of any size; negative ones and superfluous zeros are refused."""
        data = self.string()
        if data and (data[0] & 0x80 or (data[0] == 0 and not (len(data) > 1 and data[1] & 0x80))):
            raise WireError("a number in it is negative, or longer than it has to be")
        return int.from_bytes(data)

    @property
    def at_end(self) -> bool:
        """Whether nothing follows."""
        return self._position == len(self._data)

    def end(self) -> None:
        """Check that nothing follows.

        Raises:
            WireError: There are more bytes.
        """
        if not self.at_end:
            raise WireError("more bytes follow than belong to it")


def wire_string(data: bytes) -> bytes:
    """Bytes as a string of SSH's encoding."""
    return struct.pack(">I", len(data)) + data

"""What a checkpoint may ask of its reader at most; whatever asks for more is refused by name."""

from __future__ import annotations

from mlstate.errors import FormatError

__all__ = [
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_DIRECTORY",
    "MAX_ENTRIES",
    "MAX_INTEGER",
    "MAX_KEY_DEPTH",
    "MAX_LINE",
    "MAX_MEMO",
    "MAX_OPCODES",
    "MAX_PICKLE",
    "MAX_REPEAT",
    "MAX_STACK",
    "MAX_TEXT",
    "SMALL",
    "capped",
]

MAX_PICKLE = 32 << 20
"""The longest pickle, and all pickles of a legacy file together, in bytes."""
MAX_OPCODES = 2_000_000
"""The most opcodes of one pickle. A tensor takes about 40."""
MAX_STACK = 1_000_000
"""The most values on the stack of a pickle that is read."""
MAX_MEMO = 1_000_000
"""The most values in the memo of a pickle."""
MAX_DEPTH = 1000
"""The most containers inside each other, and the most open marks."""
MAX_TEXT = 8 << 20
"""The longest text or byte string in a pickle, in bytes."""
MAX_LINE = 4000
"""The longest line of an opcode of protocol 0, in bytes: names, numbers and quoted texts."""
MAX_INTEGER = 256
"""The longest integer in a pickle, in bytes."""
MAX_KEY_DEPTH = 8
"""The most tuples inside each other in the key of a mapping."""
MAX_DIMENSIONS = 64
"""The most dimensions of a tensor, as torch has it."""
MAX_ENTRIES = 200_000
"""The most entries of a zip archive."""
MAX_DIRECTORY = 32 << 20
"""The longest directory of a zip archive, in bytes."""
MAX_REPEAT = 16
"""A tensor is at most so many times as large as its storage (which ``expand`` makes possible), and
all tensors together so many times as large as the file..."""
SMALL = 1 << 20
"""...or up to this many bytes, whichever is more."""


def capped(what: str, most: int, found: int | str = "more") -> FormatError:
    """The error for more than a cap of this module allows."""
    return FormatError(f"this checkpoint has {what}", expected=f"at most {most}", found=found)

"""Shared blocks: a copy that costs nothing, where the file system can do it (btrfs, XFS)."""

from __future__ import annotations

import struct
from typing import BinaryIO

from mlstate.files import LACKING
from mlstate.system import LINUX

__all__ = ["clone_range"]

_FICLONERANGE = 0x4020940D
_CANNOT = {None, *LACKING}
"""What the system says where blocks cannot be shared; None of a file that is in memory."""


def clone_range(source: BinaryIO, offset: int, size: int, descriptor: int, start: int) -> bool:
    """Let a file share blocks of another; all numbers are multiples of the block size.

    Returns:
        False if that cannot be done here: nothing was written, and the bytes are to be copied.
    """
    if not LINUX:
        return False
    import fcntl

    try:
        argument = struct.pack("=qQQQ", source.fileno(), offset, size, start)
        fcntl.ioctl(descriptor, _FICLONERANGE, argument)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True

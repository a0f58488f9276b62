"""Sharing blocks between files, where the file system can (btrfs, XFS)."""

from __future__ import annotations

import errno
import io
import struct
import sys
from typing import BinaryIO

__all__ = ["clone_range"]

_FICLONERANGE = 0x4020940D
_UNSUPPORTED = frozenset(
    {
        errno.EINVAL,  # no blocks of this size, or a file that must not share
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EXDEV,
    }
)


def clone_range(
    source: BinaryIO, source_start: int, size: int, descriptor: int, start: int
) -> bool:
    """Let a range of one file share its blocks with a range of another, from ``start`` on.

    All numbers are multiples of the block size. Returns False if that cannot be done here:
    nothing was written, and the bytes are to be copied.
    """
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        argument = struct.pack("=qQQQ", source.fileno(), source_start, size, start)
        fcntl.ioctl(descriptor, _FICLONERANGE, argument)
    except io.UnsupportedOperation:  # no real file: it is in memory
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True

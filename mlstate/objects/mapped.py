"""Which files may be mapped: those that nobody else can change unnoticed."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from functools import cache
from typing import BinaryIO

__all__ = ["MAP_FROM", "libc", "may_map"]

MAP_FROM = 1 << 20
"""Smaller files are read, for 50,000 maps would meet the kernel's limit; of small tensor objects
some are mapped all the same, and counted (`tensors.memory`)."""

_NETWORK_FILE_SYSTEMS = frozenset(
    {
        0x6969,  # nfs
        0x517B,  # smb
        0xFF534D42,  # cifs
        0xFE534D42,  # smb2
        0x01021997,  # 9p
        0x65735546,  # fuse
        0x00C36400,  # ceph
        0x0BD00BD0,  # lustre
        0x47504653,  # gpfs
        0x19830326,  # beegfs
        0x5346414F,  # afs
        0x73757245,  # coda
        0x20030528,  # orangefs
    }
)


def may_map(file: BinaryIO | int, devices: dict[int, bool] | None = None) -> bool:
    """Whether a file may be mapped: our own or root's, on a local file system.

    A map shows what others do to the file later; and where the file may become shorter, the
    process that reads it there is killed.

    Args:
        file: The open file, or its descriptor.
        devices: What was found out of other files in the same act: device -> whether it is local.
            Added to. Not to be kept for long: what is mounted changes.
    """
    if not sys.platform.startswith("linux"):
        return False  # no way known here to tell a network mount
    try:
        descriptor = file if isinstance(file, int) else file.fileno()
    except OSError:
        return False
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        return False
    local = None if devices is None else devices.get(found.st_dev)
    if local is None:
        local = _file_system(descriptor) not in _NETWORK_FILE_SYSTEMS
        if devices is not None:
            devices[found.st_dev] = local
    return local


@cache
def libc() -> ctypes.CDLL:
    """The C library, looked up once: each lookup makes a class of its own, which takes 0.4 ms."""
    return ctypes.CDLL(None, use_errno=True)


def _file_system(descriptor: int) -> int:
    """The kernel's magic number of the file system (statfs, which Python does not offer)."""
    buffer = ctypes.create_string_buffer(256)
    if libc().fstatfs(descriptor, buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(struct.unpack_from("@l", buffer)[0]) & 0xFFFFFFFF

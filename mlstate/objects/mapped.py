"""Writing new files with their digests, and which files may be mapped into memory."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from mmap import ACCESS_READ, mmap
from typing import BinaryIO

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.system import LINUX, is_own, write_views

__all__ = ["MAP_FROM", "libc", "may_map", "view_of", "write_all", "write_hashed"]

_BLOCK = 2 << 20
"""Written at once, at multiples of it: the kernel can then keep it in one piece, which makes
mapping it cheaper (docs/performance.md)."""
_PIECE = 1 << 18
"""Copied and hashed at once, while it is in the core's own cache."""
_MOST_VIEWS = 1024
"""So many pieces of memory the system takes by one call."""
_SPARE = 8
_spare: list[bytearray] = []
"""Buffers for the next files: new memory costs a page fault for every 4 KB."""


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of it, however many calls that takes."""
    while len(data):
        data = data[os.write(descriptor, data) :]


def write_hashed(
    descriptor: int, parts: Iterable[Bytes], devices: dict[int, bool] | None = None
) -> tuple[Digest, int]:
    """Write the parts to an empty file, which is open for reading and writing.

    ``devices`` is as for `may_map`. Returns the digest of the bytes that the file has now,
    whatever happened to the parts meanwhile, and how many these are.
    """
    views = [memoryview(part).cast("B") for part in parts]
    size = sum(map(len, views))
    hasher = Hasher()
    if size < MAP_FROM:
        content = b"".join(views)
        hasher.update(content)
        write_all(descriptor, memoryview(content))
    else:
        whole = _mapped(descriptor, size, devices)
        if whole is None:
            _write_copied(descriptor, views, hasher)
        else:
            with whole:
                _write_mapped(descriptor, views, whole, hasher)
    return hasher.digest(), size


def _mapped(descriptor: int, size: int, devices: dict[int, bool] | None) -> mmap | None:
    """The file that is to be written, as memory; or None where that is not safe or not possible."""
    if not may_map(descriptor, devices):
        return None
    try:
        os.ftruncate(descriptor, size)
        return mmap(descriptor, size, access=ACCESS_READ)
    except OSError:  # the process may not map any more, say; a full disk is met by the writing
        return None


def _write_mapped(
    descriptor: int, views: Sequence[memoryview], whole: mmap, hasher: Hasher
) -> None:
    """Hash each block where it was written to: that takes no copy, and it is in the cache still."""
    position = 0
    with memoryview(whole) as written:
        for block in _blocks(views):
            end = position + _write_block(descriptor, block)
            with written[position:end] as piece:
                hasher.update(piece)
            position = end


def _write_copied(descriptor: int, views: Sequence[memoryview], hasher: Hasher) -> None:
    """Write through a buffer of our own: exactly the bytes that are written are hashed."""
    try:
        whole = _spare.pop()
    except IndexError:
        whole = bytearray(_BLOCK)
    buffer = memoryview(whole)
    for block in _blocks(views):
        filled = 0
        for view in block:
            for start in range(0, len(view), _PIECE):
                source = view[start : start + _PIECE]
                piece = buffer[filled : filled + len(source)]
                piece[:] = source
                hasher.update(piece)
                filled += len(source)
        write_all(descriptor, buffer[:filled])
    if len(_spare) < _SPARE:
        _spare.append(whole)


def _blocks(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The content in blocks, each of which may be made of several parts."""
    block: list[memoryview] = []
    room = _BLOCK
    for view in views:
        position = 0
        while position < len(view):
            piece = view[position : position + room]
            block.append(piece)
            position += len(piece)
            room -= len(piece)
            if not room:
                yield block
                block, room = [], _BLOCK
    if block:
        yield block


def _write_block(descriptor: int, block: list[memoryview]) -> int:
    """Write a block, by one call if the system takes all of it at once."""
    size = sum(map(len, block))
    if len(block) > _MOST_VIEWS:
        block = [memoryview(b"".join(block))]
    written = write_views(descriptor, block)
    if written < size:
        for view in block:
            write_all(descriptor, view[written:])
            written = max(0, written - len(view))
    return size


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
    process that reads it there is killed. ``devices`` notes, of other files in the same act, which
    devices are local: not to be kept for long, for what is mounted changes.
    """
    if not LINUX:
        return False  # no way known here to tell a network mount
    try:
        descriptor = file if isinstance(file, int) else file.fileno()
    except OSError:
        return False
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or not is_own(found):
        return False
    local = None if devices is None else devices.get(found.st_dev)
    if local is None:
        try:
            local = _file_system(descriptor) not in _NETWORK_FILE_SYSTEMS
        except OSError:  # a file system that does not say what it is
            local = False
        if devices is not None:
            devices[found.st_dev] = local
    return local


def view_of(file: BinaryIO, size: int) -> memoryview:
    """All bytes of a file of this size: mapped, where that is safe, so that they take no memory."""
    if size >= MAP_FROM and may_map(file):
        with suppress(OSError):  # a file system without maps
            return memoryview(mmap(file.fileno(), size, access=ACCESS_READ))
    file.seek(0)
    return memoryview(file.read())


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

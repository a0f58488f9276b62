"""The bytes of a tensor, and tensors over bytes of a file, without numpy and without copies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
import sys
from typing import BinaryIO

import torch

from mlstate.errors import IntegrityError
from mlstate.format.dtypes import TensorSpec
from mlstate.tensors.dtypes import torch_dtype, torch_shape

__all__ = ["MAP_FROM", "as_bytes", "as_tensor", "file_tensor"]

MAP_FROM = 1 << 20
"""Files smaller than this are read, not mapped: 50,000 maps would meet the kernel's limit."""

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


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor. The view keeps the tensor alive."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * size).from_address(tensor.data_ptr())
    array.tensor = tensor  # type: ignore[attr-defined]  # the memory lives as long as the view
    return memoryview(array).cast("B")


def as_tensor(raw: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """Bytes (uint8, one dimension, exactly the data) as the tensor that they are."""
    return raw.view(torch_dtype(spec)).reshape(torch_shape(spec))


def file_tensor(file: BinaryIO, size: int) -> torch.Tensor:
    """A file's bytes as a private, writable uint8 tensor: mapped where that is safe, or read.

    Nothing that is done to the tensor reaches the file. A map shows what others do to the file
    later, so only files that nobody else can change unnoticed are mapped: our own or root's, on a
    local file system.

    Args:
        file: The open file; it may be closed afterwards.
        size: Its size in bytes.
    """
    if size >= MAP_FROM and _may_map(file):
        # By way of the descriptor: it is the file that was looked at, whatever the name has come
        # to mean. torch closes its own descriptor after mapping (mmap of Python 3.11 keeps one for
        # each map, and a large model would use up the process's limit).
        # Where there is no /dev/fd, or the process may not map any more, the file is read.
        with contextlib.suppress(RuntimeError):
            return torch.from_file(
                f"/dev/fd/{file.fileno()}",
                shared=False,
                size=size,
                dtype=torch.uint8,
                device="cpu",  # whatever the default device is
            )
    raw = torch.empty(size, dtype=torch.uint8, device="cpu")
    view = as_bytes(raw)
    position = 0
    file.seek(0)
    while position < size:
        count = file.readinto(view[position:])  # type: ignore[attr-defined]
        if not count:
            raise IntegrityError(
                "a file was cut short while it was read",
                expected=f"{size} bytes",
                found=f"{position} bytes",
            )
        position += count
    return raw


def _may_map(file: BinaryIO) -> bool:
    if not sys.platform.startswith("linux"):
        return False  # no way known here to tell a network mount
    try:
        descriptor = file.fileno()
    except OSError:
        return False
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        return False
    return _file_system(descriptor) not in _NETWORK_FILE_SYSTEMS


def _file_system(descriptor: int) -> int:
    """The kernel's magic number of the file system (statfs, which Python does not offer)."""
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fstatfs(descriptor, buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(struct.unpack_from("@l", buffer)[0]) & 0xFFFFFFFF

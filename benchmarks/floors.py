"""What verifying costs at least, without mlstate: the same bytes, hashed on two threads.

A load that verifies before it hands anything out cannot be faster than mapping and hashing the
files, and a save not faster than writing and hashing them. So these stand in the tables beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from mmap import PROT_READ, mmap
from pathlib import Path

import torch
from blake3 import blake3

from mlstate.parallel import for_each
from mlstate.tensors.memory import as_bytes

__all__ = ["hash_files", "hash_tensors", "objects_of", "write_and_hash"]

_BLOCK = 2 << 20


def objects_of(store: Path) -> list[Path]:
    """The files of a store's objects, the largest first."""
    return sorted(store.glob("objects/*/*"), key=lambda path: -path.stat().st_size)


def hash_files(paths: list[Path]) -> None:
    """Map and hash every file."""

    def work(path: Path) -> None:
        raw = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        blake3(as_bytes(raw)).digest()

    for_each(work, paths)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Hash every tensor where it is."""
    for_each(lambda tensor: (blake3(as_bytes(tensor)).digest(), None)[1], _largest_first(tensors))


def write_and_hash(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write every tensor into a file of its own, and hash what was written; nothing is flushed."""
    folder.mkdir()

    def work(item: tuple[int, torch.Tensor]) -> None:
        number, tensor = item
        descriptor = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(descriptor, tensor.nbytes)
        view, hasher = as_bytes(tensor), blake3()
        with mmap(descriptor, tensor.nbytes, prot=PROT_READ) as whole, memoryview(whole) as written:
            for start in range(0, tensor.nbytes, _BLOCK):
                os.write(descriptor, view[start : start + _BLOCK])
                with written[start : start + _BLOCK] as piece:
                    hasher.update(piece)
        os.close(descriptor)
        hasher.digest()

    for_each(work, enumerate(_largest_first(tensors)))


def _largest_first(tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    large = [tensor for tensor in tensors.values() if tensor.nbytes >= 1 << 14]
    return sorted(large, key=lambda tensor: -tensor.nbytes)

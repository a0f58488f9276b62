"""Checkpoints that ``torch.load`` reads, written from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import torch

__all__ = ["write_checkpoint"]


class _Noting:
    """A file that keeps what went wrong: torch raises an error of its own instead."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def write_checkpoint(tensors: Mapping[str, torch.Tensor], file: BinaryIO) -> None:
    """Write a state dict by ``torch.save``; no tensor is copied on the way.

    Args:
        tensors: Name -> CPU tensor.
        file: An open file. By its name torch would call what is inside; so the same tensors always
            make the same bytes.

    Raises:
        OSError: The file cannot be written: the disk is full, say.
    """
    noting = _Noting(file)
    try:
        torch.save(dict(tensors), cast("BinaryIO", noting))
    except RuntimeError as error:
        if noting.failure is None:
            raise
        raise noting.failure from error

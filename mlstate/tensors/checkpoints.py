"""Checkpoints written by torch.save; they are read by `mlstate.pickled`, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import torch

__all__ = ["write_checkpoint"]


class _Noting:
    """A file that keeps the error of a write, instead of which torch raises its own."""

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
    """Write a state dict of CPU tensors by ``torch.save``; none is copied on the way.

    The file is an open one: by its name torch would call what is inside, and the same tensors are
    always to make the same bytes. Errors of writing are an OSError.
    """
    noting = _Noting(file)
    try:
        torch.save(dict(tensors), cast("BinaryIO", noting))
    except RuntimeError as error:
        if noting.failure is None:
            raise
        raise noting.failure from error

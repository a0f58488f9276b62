"""Checkpoints that ``torch.load`` reads, written from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import torch

__all__ = ["write_checkpoint"]


def write_checkpoint(tensors: Mapping[str, torch.Tensor], file: BinaryIO) -> None:
    """Write a state dict by ``torch.save``; no tensor is copied on the way.

    Args:
        tensors: Name -> CPU tensor.
        file: An open file. By its name torch would call what is inside; so the same tensors always
            make the same bytes.
    """
    torch.save(dict(tensors), file)

"""Checkpoints that torch.save wrote, read without running anything that they contain."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from mlstate.errors import FormatError

__all__ = ["load_checkpoint"]


def load_checkpoint(data: bytes, path: str) -> dict[str, Any]:
    """The state dict in a checkpoint, with ``weights_only=True``.

    Args:
        data: The file's content.
        path: Where it is from, for the error.

    Returns:
        Name -> CPU tensor.

    Raises:
        FormatError: Not a checkpoint, one that holds more than plain data, or no mapping.
    """
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch promises no type for what is damaged or hostile
        raise FormatError(
            "this file is not a checkpoint of plain tensors",
            path=path,
            found=type(error).__name__,  # torch's text advises to switch the protection off
        ) from None
    if not isinstance(loaded, Mapping):
        raise FormatError(
            "this checkpoint holds no state dict",
            path=path,
            expected="a mapping from names to tensors",
            found=type(loaded).__name__,
        )
    return dict(loaded)

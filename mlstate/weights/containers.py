"""The container of a file of weights, as its first bytes or its name tell."""

from __future__ import annotations

import re

from mlstate.candidates import METADATA, named_container
from mlstate.errors import FormatError
from mlstate.fetch.header import begins_with
from mlstate.foreign import FRONT, check_not_foreign, container_by_front
from mlstate.locations import ARRAYS, DISTRIBUTED, SAFETENSORS, TORCH

__all__ = ["FRONT", "container_of"]


def container_of(name: str, front: bytes) -> str:
    """The container of a file by its first `FRONT` bytes, or its name; else a `FormatError`."""
    found = container_by_front(front)
    if found == TORCH and re.split(r"[/\\]", name)[-1] == METADATA:
        return DISTRIBUTED
    if found not in (SAFETENSORS, ARRAYS):
        check_not_foreign(front, name)
    found = found or named_container(name)
    if found is None:
        raise FormatError(
            "this is no file of weights that can be read",
            path=name,
            expected="a safetensors file, or a checkpoint that torch.save wrote",
            found=begins_with(front[:16]),
        )
    return found

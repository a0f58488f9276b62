"""The container of a file of weights, as its first bytes or its name tell."""

from __future__ import annotations

from mlstate.candidates import named_container
from mlstate.errors import FormatError
from mlstate.fetch.header import begins_with
from mlstate.foreign import FRONT, check_not_foreign, container_by_front
from mlstate.locations import SAFETENSORS

__all__ = ["FRONT", "container_of"]


def container_of(name: str, front: bytes) -> str:
    """The container of a file by its first `FRONT` bytes, or its name; else a `FormatError`."""
    found = container_by_front(front)
    if found != SAFETENSORS:
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

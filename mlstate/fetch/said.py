"""What a file of weights says beside the bytes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass

from mlstate.pickled.select import Selected

__all__ = ["Said"]


@dataclass(frozen=True)
class Said:
    """What a file says.

    Attributes:
        names: Of a safetensors file, the names of its tensors.
        metadata: Of a safetensors file, its ``__metadata__``, unchecked; None if it has none.
        chosen: Of a torch checkpoint, what was chosen inside, without its tensors.
    """

    names: tuple[str, ...] = ()
    metadata: object = None
    chosen: Selected | None = None

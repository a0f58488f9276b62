"""The container of a file of weights, as its first bytes or its name tell."""

from __future__ import annotations

import re

from mlstate.errors import FormatError
from mlstate.fetch.header import begins_with
from mlstate.foreign import FRONT, check_not_foreign

__all__ = [
    "ARRAYS",
    "DISTRIBUTED",
    "FRONT",
    "LOCAL_ONLY",
    "METADATA",
    "SAFETENSORS",
    "TORCH",
    "TORCH_GZIP",
    "container_of",
    "is_arrays_name",
    "named_container",
]

SAFETENSORS, TORCH, TORCH_GZIP = "safetensors", "torch", "torch-gzip"
"""The containers, as `mlstate.locations.Mirror.format` names them."""
ARRAYS, DISTRIBUTED = "npz", "dcp"
"""Containers that are read on this machine only: of NumPy arrays, and of distributed torch."""
LOCAL_ONLY = {
    ARRAYS: "an archive of NumPy arrays (.npz)",
    DISTRIBUTED: "a distributed checkpoint (torch.distributed.checkpoint)",
}
"""What they are, for errors."""
METADATA = ".metadata"
"""The file of a distributed checkpoint's folder that stands for the whole."""

_ENDINGS = (
    (re.compile(r"\.safetensors(\.index(\.\w+)?\.json)?$", re.IGNORECASE), SAFETENSORS),
    (re.compile(r"\.(pt|pth|ckpt|bin)(\.tar|\.index(\.\w+)?\.json)?$", re.IGNORECASE), TORCH),
    (re.compile(r"\.(pt|pth|ckpt|bin|tar)\.gz$", re.IGNORECASE), TORCH_GZIP),
)


def container_of(name: str, front: bytes) -> str:
    """The container of a file by its first `FRONT` bytes, or its name; else a `FormatError`."""
    found = _by_front(front)
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


def named_container(name: str) -> str | None:
    """The container that a name or an address tells, or None."""
    path = re.split(r"[?#]", name)[0] if "://" in name else name
    return next((form for pattern, form in _ENDINGS if pattern.search(path)), None)


def is_arrays_name(name: str) -> bool:
    """Whether a name is that of an archive of NumPy arrays."""
    return name.lower().endswith(".npz")


def _by_front(front: bytes) -> str | None:
    # First: the length of a header may look like the beginning of the others.
    if front[4:9] == b"\0\0\0\0{":
        return SAFETENSORS
    if front.startswith(b"\x1f\x8b"):
        return TORCH_GZIP
    if front.startswith(b"PK\x03\x04") and _first_entry(front).endswith(b".npy"):
        return ARRAYS
    if front.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", front):
        return TORCH  # a zip; or the older format, which is a pickle
    if front[257:262] == b"ustar":
        return TORCH  # the oldest, which is a tar
    return None


def _first_entry(front: bytes) -> bytes:
    """The name of the first entry of a zip archive."""
    return front[30 : 30 + int.from_bytes(front[26:28], "little")]

"""The container of a file of weights, as its first bytes or its name tell."""

from __future__ import annotations

import re

from mlstate.errors import FormatError
from mlstate.fetch.header import begins_with
from mlstate.foreign import FRONT, check_not_foreign

__all__ = [
    "FRONT",
    "SAFETENSORS",
    "TORCH",
    "TORCH_GZIP",
    "container_of",
    "named_container",
]

SAFETENSORS, TORCH, TORCH_GZIP = "safetensors", "torch", "torch-gzip"
"""The containers, as `mlstate.locations.Mirror.format` names them."""

_ENDINGS = (
    (re.compile(r"\.safetensors(\.index(\.\w+)?\.json)?$", re.IGNORECASE), SAFETENSORS),
    (re.compile(r"\.(pt|pth|ckpt|bin)(\.tar|\.index(\.\w+)?\.json)?$", re.IGNORECASE), TORCH),
    (re.compile(r"\.(pt|pth|ckpt|bin|tar)\.gz$", re.IGNORECASE), TORCH_GZIP),
)


def container_of(name: str, front: bytes) -> str:
    """The container of a file by its first `FRONT` bytes, or its name; else a `FormatError`."""
    found = _by_front(front)
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


def named_container(name: str) -> str | None:
    """The container that a name or an address tells, or None."""
    path = re.split(r"[?#]", name)[0] if "://" in name else name
    return next((form for pattern, form in _ENDINGS if pattern.search(path)), None)


def _by_front(front: bytes) -> str | None:
    # First: the length of a header may look like the beginning of the others.
    if front[4:9] == b"\0\0\0\0{":
        return SAFETENSORS
    if front.startswith(b"\x1f\x8b"):
        return TORCH_GZIP
    if front.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", front):
        return TORCH  # a zip; or the older format, which is a pickle
    if front[257:262] == b"ustar":
        return TORCH  # the oldest, which is a tar
    return None

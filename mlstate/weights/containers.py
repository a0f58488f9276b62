"""The container of a file of weights, as its first bytes or its name tell."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlstate.errors import FormatError
from mlstate.fetch.header import begins_with
from mlstate.format import layout
from mlstate.phrases import Phrase

__all__ = [
    "FRONT",
    "INDEX",
    "SAFETENSORS",
    "TORCH",
    "TORCH_GZIP",
    "container_of",
    "named_container",
    "weights_in",
]

SAFETENSORS, TORCH, TORCH_GZIP = "safetensors", "torch", "torch-gzip"
"""The containers, as `mlstate.locations.Mirror.format` names them."""
INDEX = ".index.json"
"""The end of the name of an index of shards, in any container."""
FRONT = 16
"""This many first bytes of a file tell its container."""

_NAMES = (
    (re.compile(r"\.safetensors(\.index\.json)?$", re.IGNORECASE), SAFETENSORS),
    (re.compile(r"\.(pt|pth|ckpt|bin)(\.tar|\.index\.json)?$", re.IGNORECASE), TORCH),
    (re.compile(r"\.(pt|pth|ckpt|bin|tar)\.gz$", re.IGNORECASE), TORCH_GZIP),
)
_USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ANY = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin", ".pt", ".pth")


def container_of(name: str, front: bytes = b"") -> str:
    """The container of a file by its first bytes, if known, or its name; else a `FormatError`."""
    found = _by_front(front) or named_container(name)
    if found is None:
        raise FormatError(
            "this is no file of weights that can be read",
            path=name,
            expected="a safetensors file, or a checkpoint that torch.save wrote",
            found=begins_with(front),
        )
    return found


def named_container(name: str) -> str | None:
    """The container that a name or an address tells, or None."""
    path = re.split(r"[?#]", name)[0] if "://" in name else name
    return next((form for pattern, form in _NAMES if pattern.search(path)), None)


def _by_front(front: bytes) -> str | None:
    # First: the length of a header may look like the beginning of the others.
    if front[4:9] == b"\0\0\0\0{":
        return SAFETENSORS
    if front.startswith(b"\x1f\x8b"):
        return TORCH_GZIP
    if front.startswith((b"PK\x03\x04", b"\x80\x02")):  # a zip; the older format, which is a pickle
        return TORCH
    return None


def weights_in(folder: Path) -> str:
    """The name of the one file in a folder that holds or lists its weights, or a `FormatError`."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in _USUAL:
        if name in names:
            return name
    if layout.SETTINGS in names:
        raise FormatError(
            "this folder is a store, not a file of weights",
            path=folder,
            remedy="bring its states over with "
            + Phrase("mlstate.copy", "mlstate copy")
            + ", or give one a key of this store",
        )
    for ending in _ANY:
        fitting = [name for name in names if name.endswith(ending)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise FormatError(
                "this folder has several files of weights",
                path=folder,
                found=", ".join(fitting[:8]),
                remedy="give the path of one of them",
            )
    raise FormatError("this folder has no weights", path=folder, expected=" or ".join(_USUAL))

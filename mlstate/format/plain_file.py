"""Plain safetensors files: what a state becomes for tools that know nothing of a store.

The data begins at a multiple of 4096, and the tensors that fill whole blocks come first, so that a
file system can share these blocks with tensor objects. What follows is ordered by element width,
widest first: each tensor is then aligned to its elements, without gaps, which safetensors forbids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlstate.errors import FormatError
from mlstate.format import canonical
from mlstate.format.dtypes import BITS, TensorSpec
from mlstate.format.state_object import MAX_HEADER

__all__ = [
    "BLOCK",
    "INDEX_NAME",
    "PlainFile",
    "format_index",
    "is_weights_name",
    "shard_names",
    "split",
]

BLOCK = 4096
"""What file systems share is a multiple of this many bytes."""
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_METADATA = {"__metadata__": {"format": "pt"}}  # transformers asks for it
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", re.IGNORECASE)


@dataclass(frozen=True)
class PlainFile:
    """The layout of one plain safetensors file.

    Attributes:
        header: Its first bytes, up to the data: a multiple of `BLOCK`.
        specs: What it holds, in the order of the data.
        starts: Where in the file the data of each tensor begins.
        size: The size of the whole file.
    """

    header: bytes
    specs: Mapping[str, TensorSpec]
    starts: Mapping[str, int]
    size: int

    @classmethod
    def lay_out(cls, specs: Mapping[str, TensorSpec]) -> PlainFile:
        """The layout of these tensors; the same for the same names, types and shapes.

        Raises:
            FormatError: The header would exceed 100,000,000 bytes.
        """
        entries: dict[str, Any] = dict(_METADATA)
        ordered = {name: specs[name] for name in sorted(specs, key=lambda n: _place(n, specs[n]))}
        position, starts = 0, {}
        for name, spec in ordered.items():
            starts[name], end = position, position + spec.nbytes
            entries[name] = {
                "data_offsets": [position, end],
                "dtype": spec.dtype,
                "shape": list(spec.shape),
            }
            position = end
        text = canonical.dumps(entries)
        length = len(text) + -(8 + len(text)) % BLOCK
        if length > MAX_HEADER:
            raise FormatError(
                "the header of a plain file is too long",
                expected=f"at most {MAX_HEADER} bytes",
                found=f"{length} bytes",
            )
        header = length.to_bytes(8, "little") + text.ljust(length, b" ")
        starts = {name: len(header) + start for name, start in starts.items()}
        return cls(header, ordered, starts, len(header) + position)

    @classmethod
    def parse(cls, header: bytes) -> PlainFile:
        """Read the header of a file that was laid out here; the inverse of `lay_out`.

        Args:
            header: The first bytes of the file, up to the data.

        Raises:
            FormatError: Anything that `lay_out` would not have written exactly so.
        """
        entries = canonical.loads(header[8:], "the header of a plain file")
        entries.pop("__metadata__", None)
        specs = {}
        for name, entry in entries.items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if not isinstance(shape, list):
                raise FormatError("a tensor's entry is malformed", tensor=name, found=entry)
            specs[name] = TensorSpec(entry.get("dtype"), tuple(shape))
        layout = cls.lay_out(specs)
        if layout.header != header:
            raise FormatError("a plain file is laid out in another way")
        return layout


def _place(name: str, spec: TensorSpec) -> tuple[bool, int, int, str]:
    blocks = spec.nbytes > 0 and spec.nbytes % BLOCK == 0
    return (not blocks, 0 if blocks else -BITS[spec.dtype], -spec.nbytes, name)


def split(specs: Mapping[str, TensorSpec], most: int | None) -> list[dict[str, TensorSpec]]:
    """Spread tensors over files: whole ones, by name, so that a layer's are together.

    Args:
        specs: All tensors.
        most: The most bytes of data in a file that holds several; None for no limit.

    Returns:
        At least one mapping; each but the last is as full as it can be.
    """
    files: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name in sorted(specs):
        size = specs[name].nbytes
        if most is not None and files[-1] and filled + size > most:
            files.append({})
            filled = 0
        files[-1][name] = specs[name]
        filled += size
    return files


def shard_names(count: int) -> list[str]:
    """The file names of so many shards, as transformers gives them; of one, the plain name."""
    if count == 1:
        return [WEIGHTS_NAME]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def is_weights_name(name: str) -> bool:
    """Whether a tool takes a file of this name for weights or for their index."""
    return _WEIGHTS.fullmatch(name) is not None


def format_index(names: Sequence[str], shards: Sequence[Mapping[str, TensorSpec]]) -> bytes:
    """The index of a sharded state, as transformers writes it.

    Args:
        names: The file name of each shard.
        shards: What each holds.
    """
    total = sum(spec.nbytes for shard in shards for spec in shard.values())
    files = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"

"""Plain safetensors files: a state for tools that know nothing of a store.

The data begins at a multiple of 4096, and the tensors that fill whole blocks come first, so that a
file system can share these blocks with tensor objects. What follows is ordered by element width,
widest first: each tensor is then aligned to its elements, without gaps, which safetensors forbids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlstate.errors import FormatError
from mlstate.format.tensor_object import (
    BITS,
    TensorSpec,
    encode_header,
    entry_text,
    parse_json,
    parse_spec,
)

__all__ = [
    "BLOCK",
    "INDEX_NAME",
    "USUAL_METADATA",
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

USUAL_METADATA = {"format": "pt"}
"""What every file of torch says; transformers asks for it."""

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", re.IGNORECASE)


@dataclass(frozen=True)
class PlainFile:
    """The layout of one plain safetensors file."""

    header: bytes  # all up to the data, a multiple of `BLOCK`
    specs: Mapping[str, TensorSpec]  # in the order of the data
    starts: Mapping[str, int]  # where in the file each tensor's data begins
    size: int

    @classmethod
    def lay_out(
        cls, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = USUAL_METADATA
    ) -> PlainFile:
        """The layout of these tensors; the same for the same names, types, shapes and metadata."""
        compact = json.dumps(dict(metadata), separators=(",", ":"), sort_keys=True)
        entries = {"__metadata__": compact}
        ordered = {name: specs[name] for name in sorted(specs, key=lambda n: _place(n, specs[n]))}
        position, starts = 0, {}
        for name, spec in ordered.items():
            starts[name] = position
            entries[name] = entry_text(spec, position)
            position += spec.nbytes
        header = encode_header(entries, BLOCK, "the header of a plain file")
        starts = {name: len(header) + start for name, start in starts.items()}
        return cls(header, ordered, starts, len(header) + position)

    @classmethod
    def parse(cls, header: bytes) -> PlainFile:
        """Read all up to the data; a `FormatError` if `lay_out` would write anything else."""
        entries = parse_json(header[8:], "the header of a plain file")
        entries.pop("__metadata__", None)
        specs = {name: parse_spec(name, entry) for name, entry in entries.items()}
        layout = cls.lay_out(specs)
        if layout.header != header:
            raise FormatError("a plain file is laid out in another way")
        return layout


def _place(name: str, spec: TensorSpec) -> tuple[bool, int, int, str]:
    blocks = spec.nbytes > 0 and spec.nbytes % BLOCK == 0
    return (not blocks, 0 if blocks else -BITS[spec.dtype], -spec.nbytes, name)


def split(specs: Mapping[str, TensorSpec], most: int | None) -> list[dict[str, TensorSpec]]:
    """Spread tensors over files: whole ones, by name, so that a layer's are together.

    At most ``most`` bytes of data are in a file that holds several. There is at least one file, and
    each but the last is as full as it can be.
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
    """The index of a sharded state, as transformers writes it, for files of these names."""
    total = sum(spec.nbytes for shard in shards for spec in shard.values())
    files = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"

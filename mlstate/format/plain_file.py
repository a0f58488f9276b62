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

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.format.tensor_object import (
    BITS,
    TensorSpec,
    encode_header,
    entry_text,
    parse_json,
    parse_spec,
    quoted,
)

__all__ = [
    "BLOCK",
    "INDEX_NAME",
    "USUAL_METADATA",
    "WEIGHTS_NAME",
    "WEIGHTS_STEM",
    "PlainFile",
    "content_digest",
    "format_index",
    "index_name",
    "is_weights_name",
    "shard_names",
    "split",
    "stem_of_shard",
]

BLOCK = 4096
"""What file systems share is a multiple of this many bytes."""
WEIGHTS_STEM = "model"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

USUAL_METADATA: Mapping[str, str] = {"format": "pt"}
"""The metadata of a file that was not read from elsewhere: transformers asks for it."""

_METADATA = "__metadata__"
_SHARD = re.compile(r"(-\d+-of-\d+)?\.safetensors$", re.IGNORECASE)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", re.IGNORECASE)


@dataclass(frozen=True)
class PlainFile:
    """The layout of one plain safetensors file."""

    header: bytes  # all up to the data, a multiple of `BLOCK`
    specs: Mapping[str, TensorSpec]  # in the order of the data
    starts: Mapping[str, int]  # where in the file each tensor's data begins
    size: int
    metadata: Mapping[str, str] | None = None

    @classmethod
    def lay_out(
        cls, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = USUAL_METADATA
    ) -> PlainFile:
        """The layout of these tensors; the same for the same names, types, shapes and metadata."""
        entries = {} if metadata is None else {_METADATA: _text(metadata)}
        ordered = {name: specs[name] for name in sorted(specs, key=lambda n: _place(n, specs[n]))}
        position, starts = 0, {}
        for name, spec in ordered.items():
            starts[name] = position
            entries[name] = entry_text(spec, position)
            position += spec.nbytes
        header = encode_header(entries, BLOCK, "the header of a plain file")
        starts = {name: len(header) + start for name, start in starts.items()}
        return cls(header, ordered, starts, len(header) + position, metadata)

    @classmethod
    def parse(cls, header: bytes, *, any_metadata: bool = False) -> PlainFile:
        """Read all up to the data; a `FormatError` if `lay_out` would write anything else.

        It writes the usual metadata, unless ``any_metadata`` says that others do as well.
        """
        entries = parse_json(header[8:], "the header of a plain file")
        metadata = entries.pop(_METADATA, None)
        if not (metadata is None or isinstance(metadata, dict)):
            raise FormatError("the metadata of a plain file are no object", found=repr(metadata))
        specs = {name: parse_spec(name, entry) for name, entry in entries.items()}
        layout = cls.lay_out(specs, metadata if any_metadata else USUAL_METADATA)
        if layout.header != header:
            raise FormatError("a plain file is laid out in another way")
        return layout


def _text(metadata: Mapping[str, str]) -> str:
    """Metadata as canonical JSON.

    Raises:
        FormatError: A value is no text.
    """
    if not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("the metadata of a plain file are texts", found=repr(metadata))
    items = (f"{quoted(name)}:{quoted(text)}" for name, text in sorted(metadata.items()))
    return f"{{{','.join(items)}}}"


def content_digest(tensors: Digest, metadata: Mapping[str, str] | None) -> Digest:
    """What tells one plain file from another: the state digest of its tensors, and its metadata.

    With the usual metadata it is that state digest.
    """
    if metadata == USUAL_METADATA:
        return tensors
    text = "null" if metadata is None else _text(metadata)
    return Digest.of(f"{tensors}\n{text}".encode())


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


def shard_names(count: int, stem: str = WEIGHTS_STEM) -> list[str]:
    """The file names of so many shards, as transformers gives them; of one, the plain name."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def index_name(stem: str) -> str:
    """The name of the index of shards, as transformers and diffusers give it.

    Example:
        >>> index_name("model"), index_name("unet/model.fp16")
        ('model.safetensors.index.json', 'unet/model.safetensors.index.fp16.json')
    """
    folder, slash, last = stem.rpartition("/")
    name, dot, variant = last.partition(".")
    return f"{folder}{slash}{name}.safetensors.index{dot}{variant}.json"


def stem_of_shard(name: str) -> str:
    """What the name of a file of weights begins with, without its number and its ending."""
    return _SHARD.sub("", name)


def is_weights_name(name: str) -> bool:
    """Whether a tool takes a file of this name for weights or for their index."""
    return _WEIGHTS.fullmatch(name) is not None


def format_index(names: Sequence[str], shards: Sequence[Mapping[str, TensorSpec]]) -> bytes:
    """The index of a sharded state, as transformers writes it, for files of these names."""
    total = sum(spec.nbytes for shard in shards for spec in shard.values())
    files = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"

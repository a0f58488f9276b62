"""Folders that hold several models, and the layout of a folder of weights.

A pipeline of diffusers lists its parts in ``model_index.json``, sentence-transformers in
``modules.json``: each part that has weights is a component, in a folder of its own. The names of
its tensors begin with the path of the folder and a slash: `unet/conv_in.weight`. No name that
PyTorch makes has a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlstate.errors import FormatError
from mlstate.files import UnfitFileError, read_file
from mlstate.format.plain_file import PT, stem_of_shard
from mlstate.format.tensor_object import MAX_HEADER
from mlstate.layouts import WeightsFile
from mlstate.locations import check_file_names
from mlstate.texts import load_json, parse_json
from mlstate.weights.containers import SAFETENSORS, named_container, weights_in

__all__ = ["Component", "SourceLayout", "components_of", "layout_of_files", "read_header"]

_LARGEST = 1 << 20
_TORCH_STEM = re.compile(r"(-\d+-of-\d+)?\.(bin|pt|pth|ckpt)(\.tar)?(\.gz)?$", re.IGNORECASE)
_STEMS = {"pytorch_model": "model"}
_KEPT_STEMS = ("adapter_model", "diffusion_pytorch_model")


@dataclass(frozen=True)
class Component:
    """A model in a folder: its file of weights, or their index, and the prefix of its names."""

    weights: Path
    prefix: str


@dataclass(frozen=True)
class SourceLayout:
    """The layout of a source, and the indexes of shards in it: name -> path."""

    files: dict[str, WeightsFile] = field(default_factory=dict)
    indexes: dict[str, Path] = field(default_factory=dict)


def components_of(path: Path) -> list[Component]:
    """The models of a pipeline's folder that have weights; none of any other path.

    Raises:
        FormatError: The list of its parts cannot be read, or a part has several files of weights.
    """
    if not path.is_dir():
        return []
    found = []
    for name in _listed(path):
        folder = path / name if name else path
        if folder.is_dir() and any(named_container(file.name) for file in folder.iterdir()):
            prefix = f"{name}/" if name else ""
            found.append(Component(folder / weights_in(folder), prefix))
    return found


def _listed(folder: Path) -> Iterator[str]:
    """The folders of a pipeline's parts, as its own list names them; the folder itself is empty."""
    pipeline, modules = folder / "model_index.json", folder / "modules.json"
    names: list[Any] = []
    if pipeline.is_file():
        parts = load_json(_text(pipeline), "model_index.json", most=_LARGEST)
        names = [name for name, value in parts.items() if isinstance(value, list)]
    elif modules.is_file():
        listed = parse_json(_text(modules), "modules.json", most=_LARGEST)
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise FormatError("modules.json is a list of modules", path=modules)
        names = [item.get("path") for item in listed]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        if name:
            check_file_names([name])
        yield name


def _text(path: Path) -> bytes:
    try:
        return read_file(path, _LARGEST)
    except UnfitFileError as unfit:
        raise FormatError(
            "this list of parts cannot be read", path=path, found=unfit.found
        ) from None


def layout_of_files(
    folder: Path,
    prefix: str,
    files: list[tuple[Path, str]],
    index: Mapping[str, str] | None,
    index_path: Path,
) -> SourceLayout:
    """The layout of one model's files in a folder.

    Args:
        folder: The folder that the paths of the layout begin in.
        prefix: The prefix of the model's names in the state.
        files: Each file with its container.
        index: What the index of shards says, if there is one: name -> shard.
        index_path: The index, or the file itself.

    Returns:
        The layout; an empty one of shards with tensors that the index does not place. Files of
        other containers become safetensors files in the same place.

    Raises:
        FormatError: A header cannot be read.
    """
    first = files[0][0]
    if any(container != SAFETENSORS for _, container in files):
        name = (first.parent / f"{_stem(first.name)}.safetensors").relative_to(folder).as_posix()
        return SourceLayout({name: WeightsFile(prefix, metadata=PT)})
    layout: dict[str, WeightsFile] = {}
    listed = None if index is None else index_path.relative_to(folder).as_posix()
    for path, _ in files:
        header = read_header(path)
        metadata = header.pop("__metadata__", None)
        if index is not None and any(index.get(name) != path.name for name in header):
            return SourceLayout()
        name = path.relative_to(folder).as_posix()
        layout[name] = WeightsFile(prefix, listed, metadata)
    return SourceLayout(layout, {} if listed is None else {listed: index_path})


def _stem(name: str) -> str:
    """The stem of a safetensors file in the place of a torch checkpoint."""
    stem = stem_of_shard(_TORCH_STEM.sub("", name))
    head, dot, variant = stem.partition(".")
    if head in _KEPT_STEMS or head in _STEMS:
        return f"{_STEMS.get(head, head)}{dot}{variant}"
    return "model"


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file on this machine: its names, and its metadata.

    Raises:
        FormatError: It is none.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise FormatError("the header of a safetensors file is too long", path=path)
        header = load_json(file.read(length), "the header of a safetensors file", most=MAX_HEADER)
    metadata = header.get("__metadata__")
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values())
    ):
        raise FormatError("the metadata of a safetensors file are texts", path=path)
    return header

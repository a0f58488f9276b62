"""The layout of a source of weights on this machine, which its state records."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlstate.errors import FormatError
from mlstate.format.plain_file import USUAL_METADATA, WEIGHTS_NAME, stem_of_shard
from mlstate.format.tensor_object import MAX_HEADER
from mlstate.layouts import WeightsFile
from mlstate.texts import load_json
from mlstate.weights.components import Component, components_of
from mlstate.weights.containers import SAFETENSORS
from mlstate.weights.files import files_and_index

__all__ = ["SourceLayout", "layout_of"]

_TORCH = re.compile(r"(-\d+-of-\d+)?\.(bin|pt|pth|ckpt)(\.tar)?(\.gz)?$", re.IGNORECASE)
_STEMS = {
    "pytorch_model": "model",
    "adapter_model": "adapter_model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
}
_WHAT = "the header of a safetensors file"


@dataclass(frozen=True)
class SourceLayout:
    """The layout of a source, and the indexes of shards in it: name -> path."""

    files: dict[str, WeightsFile] = field(default_factory=dict)
    indexes: dict[str, Path] = field(default_factory=dict)


def layout_of(
    path: Path, *, weights: str | None = None, form: str | None = None, renamed: bool = False
) -> SourceLayout:
    """The layout of a file or a folder of weights; see `mlstate.layouts`.

    Of a single file it is what its metadata says. What a folder of one model is by itself, a
    ``model.safetensors`` with the usual metadata, needs no record. Shards that no index lists, and
    those with tensors that their index does not list, have none: their tensors become one file.
    Torch checkpoints become safetensors files in the same place.

    Args:
        path: The source.
        weights: The file that was chosen in it.
        form: The container, if it was said.
        renamed: Whether the state has other names than the files, of which no index knows.

    Raises:
        FormatError: There are no weights, or a header cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    components = components_of(path) if weights is None else []
    found = SourceLayout()
    for model in components or [Component(path, "")]:
        one = _of_model(model, folder, weights, form)
        if not one.files or (one.indexes and renamed):
            return SourceLayout()
        found.files.update(one.files)
        found.indexes.update(one.indexes)
    if path.is_file() and not found.indexes:
        (said,) = found.files.values()
        found = SourceLayout(
            {WEIGHTS_NAME: replace(said, metadata=said.metadata or USUAL_METADATA)}
        )
    if found.files == {WEIGHTS_NAME: WeightsFile(metadata=USUAL_METADATA)}:
        return SourceLayout()
    return found


def _of_model(
    model: Component, folder: Path, weights: str | None, form: str | None
) -> SourceLayout:
    files, index = files_and_index(model.folder, weights)
    first = files[0][0]
    if any((form or container) != SAFETENSORS for _, container in files):
        name = _name(first.parent / _plain(first.name), folder)
        return SourceLayout({name: WeightsFile(model.prefix, None, USUAL_METADATA)})
    if index is None:
        if len(files) > 1:
            return SourceLayout()
        said = WeightsFile(model.prefix, None, _header(first).get("__metadata__"))
        return SourceLayout({_name(first, folder): said})
    place = Path(index.address)
    layout: dict[str, WeightsFile] = {}
    for path, _ in files:
        header = _header(path)
        metadata = header.pop("__metadata__", None)
        shard = path.relative_to(place.parent).as_posix()
        if any(index.places.get(name) != shard for name in header):
            return SourceLayout()
        layout[_name(path, folder)] = WeightsFile(model.prefix, _name(place, folder), metadata)
    return SourceLayout(layout, {_name(place, folder): place})


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _plain(name: str) -> str:
    """The name of the safetensors file in the place of a torch checkpoint."""
    head, dot, variant = stem_of_shard(_TORCH.sub("", name)).partition(".")
    return f"{_STEMS[head]}{dot}{variant}.safetensors" if head in _STEMS else WEIGHTS_NAME


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file on this machine: its names, and its metadata.

    Of what is none it is empty: who reads the tensors says what is wrong.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = load_json(file.read(min(length, MAX_HEADER)), _WHAT, most=MAX_HEADER)
        except FormatError:
            return {}
    metadata = header.get("__metadata__")
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values())
    ):
        raise FormatError(
            "the metadata of a safetensors file are texts", path=path, found=repr(metadata)
        )
    return header

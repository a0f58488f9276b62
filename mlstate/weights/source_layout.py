"""The layout of a source of weights, which its state records; see `mlstate.layouts`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlstate.errors import FormatError
from mlstate.fetch.said import Said
from mlstate.format.plain_file import USUAL_METADATA, WEIGHTS_NAME, stem_of_shard
from mlstate.format.tensor_object import MAX_HEADER
from mlstate.layouts import Layout, WeightsFile
from mlstate.locations import SAFETENSORS
from mlstate.texts import load_json
from mlstate.weights.components import Component, components_of
from mlstate.weights.paths import files_and_index

__all__ = ["Model", "layout_of", "layout_of_models"]

_TORCH = re.compile(r"(-\d+-of-\d+)?\.(bin|pt|pth|ckpt)(\.tar)?(\.gz)?$", re.IGNORECASE)
_STEMS = {
    "pytorch_model": "model",
    "adapter_model": "adapter_model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
}
_WHAT = "the header of a safetensors file"


@dataclass(frozen=True)
class Model:
    """The files of one model of a source, by their paths in its folder.

    Attributes:
        files: Those that have its tensors.
        prefix: What the names of its tensors begin with in the state.
        plain: Whether they are safetensors files.
        index: The index that lists them, if one does.
        places: What that says: tensor -> name of the file, from the folder of the index.
    """

    files: tuple[str, ...]
    prefix: str = ""
    plain: bool = True
    index: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def layout_of(
    path: Path, *, weights: str | None = None, form: str | None = None, renamed: bool = False
) -> Layout:
    """The layout of a file or a folder of weights on this machine.

    Args:
        path: The source.
        weights: The file that was chosen in it.
        form: The container, if it was said.
        renamed: As of `layout_of_models`.

    Raises:
        FormatError: There are no weights, or a header cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    components = components_of(path) if weights is None else []
    models = [
        _model(component, folder, weights, form) for component in components or [Component(path)]
    ]
    return layout_of_models(
        models, lambda name: _header(folder / name), alone=path.is_file(), renamed=renamed
    )


def layout_of_models(
    models: Iterable[Model], said: Callable[[str], Said], *, alone: bool, renamed: bool
) -> Layout:
    """The layout of the models of a source.

    Of a file on its own it is what its metadata says. What a folder of one model is by itself, a
    ``model.safetensors`` with the usual metadata, needs no record. Shards that no index lists, or
    whose index does not list a tensor of theirs, become one file in the same place, with what all
    of them say. So do torch checkpoints, as safetensors files.

    Args:
        models: The models.
        said: Gives what a safetensors file says, by its path.
        alone: Whether the source is one file, or one index, in no folder of its own.
        renamed: Whether the state has other names than the files, of which no index knows.

    Raises:
        FormatError: The metadata of a file are no texts.
    """
    found: dict[str, WeightsFile] = {}
    for model in models:
        one = _of_model(model, said, renamed)
        if alone and all(file.index is None for file in one.values()):
            (only,) = one.values()
            one = {WEIGHTS_NAME: replace(only, metadata=only.metadata or USUAL_METADATA)}
        found.update(one)
    return {} if found == {WEIGHTS_NAME: WeightsFile(metadata=USUAL_METADATA)} else found


def _of_model(model: Model, said: Callable[[str], Said], renamed: bool) -> dict[str, WeightsFile]:
    place, slash, name = model.files[0].rpartition("/")
    if not model.plain:
        return {place + slash + _plain(name): WeightsFile(model.prefix, None, USUAL_METADATA)}
    if len(model.files) == 1 and model.index is None:
        (only,) = model.files
        return {only: WeightsFile(model.prefix, None, _texts(said(only), only))}
    metadata = {path: _texts(said(path), path) for path in model.files}
    if model.index is None or renamed or not _is_complete(model, said):
        joined = f"{place}{slash}{stem_of_shard(name)}.safetensors"
        return {joined: WeightsFile(model.prefix, None, _common([*metadata.values()]))}
    return {path: WeightsFile(model.prefix, model.index, texts) for path, texts in metadata.items()}


def _is_complete(model: Model, said: Callable[[str], Said]) -> bool:
    """Whether the index says of each tensor in which shard it is."""
    place = posixpath.dirname(model.index or "") or "."
    return all(
        model.places.get(name) == posixpath.relpath(path, place)
        for path in model.files
        for name in said(path).names
    )


def _common(said: list[Mapping[str, str] | None]) -> Mapping[str, str]:
    """What all of several files say in their metadata; the usual, if that is nothing."""
    first = said[0] or {}
    found = {n: text for n, text in first.items() if all((m or {}).get(n) == text for m in said)}
    return found or USUAL_METADATA


def _texts(said: Said, path: str) -> Mapping[str, str] | None:
    """The metadata of a safetensors file, which are texts."""
    metadata = said.metadata
    if metadata is None:
        return None
    if isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()):
        return metadata
    raise FormatError(
        "the metadata of a safetensors file are texts", path=path, found=repr(metadata)
    )


def _model(component: Component, folder: Path, weights: str | None, form: str | None) -> Model:
    files, index = files_and_index(component.folder, weights)
    plain = all((form or container) == SAFETENSORS for _, container in files)
    names = tuple(path.relative_to(folder).as_posix() for path, _ in files)
    if index is None:
        return Model(names, component.prefix, plain)
    place = Path(index.address).relative_to(folder).as_posix()
    return Model(names, component.prefix, plain, place, index.places)


def _plain(name: str) -> str:
    """The name of the safetensors file in the place of a torch checkpoint."""
    head, dot, variant = stem_of_shard(_TORCH.sub("", name)).partition(".")
    return f"{_STEMS[head]}{dot}{variant}.safetensors" if head in _STEMS else WEIGHTS_NAME


def _header(path: Path) -> Said:
    """What the header of a safetensors file on this machine says.

    Of what is none it is nothing: who reads the tensors says what is wrong.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = load_json(
                file.read(min(length, MAX_HEADER)), _WHAT, most=MAX_HEADER
            )
        except FormatError:
            return Said()
    metadata = header.pop("__metadata__", None)
    return Said(tuple(header), metadata)

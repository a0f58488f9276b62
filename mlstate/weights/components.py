"""Folders that hold several models.

A pipeline of diffusers lists its parts in ``model_index.json``, sentence-transformers in
``modules.json``: each part that has weights is a component, in a folder of its own. The names of
its tensors begin with the path of the folder and a slash: `unet/conv_in.weight`. No name that
PyTorch makes has a slash.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstate.errors import FormatError
from mlstate.files import UnfitFileError, read_file
from mlstate.locations import check_file_names
from mlstate.texts import parse_json
from mlstate.weights.candidates import is_beside_weights
from mlstate.weights.containers import named_container

__all__ = ["Component", "components_of", "listed_parts"]

_LARGEST = 1 << 20


@dataclass(frozen=True)
class Component:
    """A model in a folder, and the prefix of its names in the state."""

    folder: Path
    prefix: str


def components_of(path: Path) -> list[Component]:
    """The models of a pipeline's folder that have weights; none of a folder of one model."""
    found = []
    for name in listed_parts(path) if path.is_dir() else ():
        folder = path / name if name else path
        if folder.is_dir() and any(_is_weights(file.name) for file in folder.iterdir()):
            found.append(Component(folder, f"{name}/" if name else ""))
    return found if any(component.prefix for component in found) else []


def _is_weights(name: str) -> bool:
    return named_container(name) is not None and not is_beside_weights(name)


def listed_parts(folder: Path) -> list[str]:
    """The folders that diffusers and sentence-transformers list as parts of the model here.

    A part that lies in the folder itself has an empty name. Of a list that says nothing of the
    kind, or names what leads elsewhere, that is passed over.
    """
    pipeline, modules = _read(folder / "model_index.json"), _read(folder / "modules.json")
    names: list[Any] = []
    if isinstance(pipeline, dict):
        names = [name for name, value in pipeline.items() if isinstance(value, list)]
    elif isinstance(modules, list):
        names = [item.get("path") for item in modules if isinstance(item, dict)]
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and _is_plain(name)]


def _read(path: Path) -> Any:
    try:
        return parse_json(read_file(path, _LARGEST), path.name, most=_LARGEST)
    except (FileNotFoundError, UnfitFileError, FormatError):
        return None


def _is_plain(name: str) -> bool:
    try:
        check_file_names([name] if name else [])
    except FormatError:
        return False
    return True

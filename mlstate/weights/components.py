"""Folders that hold several models.

A pipeline of diffusers lists its parts in ``model_index.json``, sentence-transformers in
``modules.json``: each part that has weights is a component, in a folder of its own. The names of
its tensors begin with the path of the folder and a slash: `unet/conv_in.weight`. No name that
PyTorch makes has a slash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstate.candidates import is_beside_weights, named_container
from mlstate.errors import FormatError
from mlstate.files import UnfitFileError, read_file
from mlstate.locations import check_file_names
from mlstate.texts import parse_json

__all__ = ["LARGEST_LIST", "Component", "components_of", "listed_parts", "parts_with_weights"]

LARGEST_LIST = 1 << 20
"""How long a list of parts may be, in bytes."""


@dataclass(frozen=True)
class Component:
    """A model in a folder, and the prefix of its names in the state."""

    folder: Path
    prefix: str = ""


def components_of(path: Path) -> list[Component]:
    """The models of a pipeline's folder that have weights; none of a folder of one model."""

    def names_in(name: str) -> list[str]:
        folder = path / name
        return [file.name for file in folder.iterdir()] if folder.is_dir() else []

    parts = listed_parts(path) if path.is_dir() else []
    found = parts_with_weights(parts, names_in)
    return [Component(path / name, f"{name}/" if name else "") for name in found]


def parts_with_weights(parts: list[str], names_in: Callable[[str], Iterable[str]]) -> list[str]:
    """The folders of those parts that have weights; none, if that is the folder itself alone.

    Args:
        parts: What `listed_parts` gives.
        names_in: Gives the names of what is in one of these folders.
    """
    found = [name for name in parts if any(map(_is_weights, names_in(name)))]
    return found if any(found) else []


def _is_weights(name: str) -> bool:
    return named_container(name) is not None and not is_beside_weights(name)


def listed_parts(read: Callable[[str], bytes | None] | Path) -> list[str]:
    """The folders that diffusers and sentence-transformers list as parts of the model here.

    A part that lies in the folder itself has an empty name. Of a list that says nothing of the
    kind, or names what leads elsewhere, that is passed over.

    Args:
        read: The folder; or what gives a file in it by its name, and None if it is not there.
    """
    given = _reader(read) if isinstance(read, Path) else read
    pipeline, modules = _read(given, "model_index.json"), _read(given, "modules.json")
    names: list[Any] = []
    if isinstance(pipeline, dict):
        names = [name for name, value in pipeline.items() if isinstance(value, list)]
    elif isinstance(modules, list):
        names = [item.get("path") for item in modules if isinstance(item, dict)]
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and _is_plain(name)]


def _reader(folder: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        try:
            return read_file(folder / name, LARGEST_LIST)
        except (FileNotFoundError, UnfitFileError):
            return None

    return read


def _read(read: Callable[[str], bytes | None], name: str) -> Any:
    try:
        text = read(name)
        return None if text is None else parse_json(text, name, most=LARGEST_LIST)
    except FormatError:
        return None


def _is_plain(name: str) -> bool:
    try:
        check_file_names([name] if name else [])
    except FormatError:
        return False
    return True

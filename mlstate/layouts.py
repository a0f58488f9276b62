"""The layout of a state: the safetensors files that its tensors came in, as validated values.

A layout says what each file was called, what the names of its tensors began with in the state, and
what it said in its ``__metadata__``. Nothing is opened here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlstate.errors import FormatError, StateNotFoundError
from mlstate.locations import check_file_names

__all__ = [
    "MAX_WEIGHTS_FILES",
    "Layout",
    "WeightsFile",
    "check_layout",
    "component_names",
    "component_prefix",
    "metadata_of",
    "place_tensors",
    "within",
]

MAX_WEIGHTS_FILES = 10_000
"""The most files that a layout may list: many more than the shards of any model."""

_MAX_PREFIX = 1000
_ENDING = ".safetensors"


@dataclass(frozen=True)
class WeightsFile:
    """A file that tensors of a state came in.

    Attributes:
        prefix: What is put before a name in the file to make the name in the state.
        index: The file of the state that says which of its tensors are in which shard: the path
            of the index; None of a file that has all tensors with its prefix.
        metadata: The ``__metadata__`` of the file; None if it had none.
        unknown: Keys of a later version: kept, not understood.
    """

    prefix: str = ""
    index: str | None = None
    metadata: Mapping[str, str] | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)


Layout = Mapping[str, WeightsFile]
"""Path of a file in the folder -> the file."""


def check_layout(layout: Layout) -> None:
    """Refuse a layout that no folder could have.

    Raises:
        FormatError: A name that leaves the folder, ends otherwise than a safetensors file, or is a
            folder of another; too many files; a prefix too long; an index in another folder than
            its shards.
    """
    if len(layout) > MAX_WEIGHTS_FILES:
        raise FormatError(
            "a layout lists too many files",
            expected=f"at most {MAX_WEIGHTS_FILES}",
            found=len(layout),
        )
    indexes = {file.index for file in layout.values() if file.index is not None}
    check_file_names({*layout, *indexes})
    for name, file in layout.items():
        if len(file.prefix) > _MAX_PREFIX:
            raise FormatError(
                "a prefix of a layout is too long",
                path=name,
                expected=f"at most {_MAX_PREFIX} characters",
                found=len(file.prefix),
            )
        if not name.lower().endswith(_ENDING):
            raise FormatError(
                "a file of a layout is a safetensors file",
                expected=f"a name that ends in {_ENDING}",
                found=repr(name),
            )
        if file.index is not None and (
            posixpath.dirname(file.index) != posixpath.dirname(name) or file.index in layout
        ):
            raise FormatError(
                "the index of shards is another file of their folder",
                path=name,
                found=repr(file.index),
            )


def place_tensors(
    layout: Layout, names: Mapping[str, Any], indexes: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Say which tensor goes into which file of a layout, and under which name.

    A tensor belongs to the longest prefix that its name begins with: to the file with that prefix,
    or to the shard that the index of that prefix names.

    Args:
        layout: The layout.
        names: The names of the state's tensors.
        indexes: Path of an index -> what it says: name in the file -> name of the shard.

    Returns:
        Path of each file -> name in it -> name in the state.

    Raises:
        FormatError: A tensor would be in no file, or in two.
    """
    owners = _owners(layout)
    lengths = sorted({len(prefix) for prefix in owners}, reverse=True)  # each at most 1000
    placed: dict[str, dict[str, str]] = {path: {} for path in layout}
    for name in names:
        prefix = next((name[:n] for n in lengths if name[:n] in owners), None)
        if prefix is None:
            raise _misfit("no file of it takes this tensor", tensor=name)
        path, inner = owners[prefix], name[len(prefix) :]
        if path not in layout:  # an index
            shard = indexes[path].get(inner)
            index, path = path, posixpath.join(posixpath.dirname(path), shard or "")
            if shard is None or path not in layout or layout[path].index != index:
                raise _misfit(f"{index} names no shard of it for this tensor", tensor=name)
        placed[path][inner] = name
    return placed


def _owners(layout: Layout) -> dict[str, str]:
    """Prefix -> the one file that has its tensors, or the index that says which has which."""
    owners: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for name, file in layout.items():
        owner = name if file.index is None else file.index
        other = owners.setdefault(file.prefix, owner)
        if other != owner:
            raise _misfit("two files of it would hold the same tensors", found=f"{other}, {owner}")
        if prefixes.setdefault(owner, file.prefix) != file.prefix:
            raise _misfit("shards of one index have different prefixes", path=owner)
    return owners


def _misfit(reason: str, **fields: Any) -> FormatError:
    return FormatError(
        f"the layout of this state does not fit its tensors: {reason}; nothing was written",
        **fields,
    )


def component_prefix(component: str) -> str:
    """The prefix of the names, and of the paths, of a part of a state: a folder of a pipeline.

    Raises:
        FormatError: It is no plain relative path.
    """
    check_file_names([component])
    return f"{component}/"


def component_names(names: Iterable[str], component: str) -> list[str]:
    """The names of a part of a state, with their prefix.

    Raises:
        StateNotFoundError: It has no such part.
    """
    prefix, listed = component_prefix(component), list(names)
    found = [name for name in listed if name.startswith(prefix)]
    if not found:
        parts = sorted({name.rpartition("/")[0] for name in listed if "/" in name})
        raise StateNotFoundError(
            "this state has no such component",
            found=repr(component),
            expected=", ".join(parts[:10]) or "it has none: its names have no /",
        )
    return found


def metadata_of(layout: Layout) -> Mapping[str, str] | None:
    """What all files of a layout say in their metadata, if that is the same; else None."""
    said = [file.metadata for file in layout.values()]
    return said[0] if said and all(other == said[0] for other in said) else None


def within(layout: Layout, prefix: str) -> dict[str, WeightsFile]:
    """The part of a layout that is below a folder, seen from that folder.

    Raises:
        FormatError: The names of its tensors do not begin with the folder.
    """
    found = {}
    for path, file in layout.items():
        if path.startswith(prefix):
            if not file.prefix.startswith(prefix):
                raise _misfit(f"names of this file's tensors do not begin with {prefix}", path=path)
            index = None if file.index is None else file.index[len(prefix) :]
            inner = file.prefix[len(prefix) :]
            found[path[len(prefix) :]] = WeightsFile(inner, index, file.metadata, file.unknown)
    return found

"""A source of weights: where its tensors and files are, as values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlstate.candidates import companions, named_container
from mlstate.errors import FormatError
from mlstate.fetch.said import Said
from mlstate.layouts import Layout
from mlstate.locations import Mirror, parse_mirror
from mlstate.operations.adopt_choice import Choice, chosen_files
from mlstate.weights.source_layout import Model, layout_of_models

__all__ = [
    "Elsewhere",
    "WeightSource",
    "around",
    "check_names_stay",
    "check_one_file",
    "joined",
]


@dataclass(frozen=True)
class Elsewhere:
    """The files of a source that is not on this machine, each with its address.

    Attributes:
        models: The models, each of files with paths in the source's folder.
        addresses: Where the files of the models are, by path.
        indexes: The indexes of shards, by path.
        beside: The files to keep.
        alone: Whether it is one file, in no folder of its own.
        renamed: Whether the state has other names than its files.
    """

    models: tuple[Model, ...]
    addresses: Mapping[str, str]
    indexes: Mapping[str, Mirror] = field(default_factory=dict)
    beside: Mapping[str, Mirror] = field(default_factory=dict)
    alone: bool = False
    renamed: bool = False

    def layout(self, said: Mapping[str, Said]) -> Layout:
        """The layout, now that it is known what the files say, by their addresses.

        Raises:
            FormatError: The metadata of a file are no texts.
        """
        return layout_of_models(
            self.models,
            lambda path: said.get(self.addresses[path], Said()),
            alone=self.alone,
            renamed=self.renamed,
        )


@dataclass(frozen=True)
class WeightSource:
    """Weights as a mirror with absolute paths, and what lies beside them.

    Attributes:
        mirror: Where they are.
        path: Their file or folder, if it is on this machine.
        files: The files to keep that are on this machine, by name.
        indexes: The indexes of shards on this machine that the layout names, by name.
        layout: Where its tensors lie in their folder, if that is on this machine.
        elsewhere: Its files, if it is not on this machine.
        taken: What is taken of a folder or a repository, by name: weights and files.
        skipped: What of it is left.
        is_pipeline: Whether it has components, whose names in the state are those that are read.
        local: What it is, if it is of a container that is read on this machine only.
    """

    mirror: Mirror
    path: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    indexes: Mapping[str, Path] = field(default_factory=dict)
    layout: Layout = field(default_factory=dict)
    elsewhere: Elsewhere | None = None
    taken: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    is_pipeline: bool = False
    local: str | None = None

    @property
    def translated(self) -> tuple[Mirror, ...]:
        """What turns the names in the files into those of the state: one for each reading.

        The names of a pipeline's components are those of the state when they are read.
        """
        return (Mirror(),) if self.is_pipeline else self.mirror.parts or (self.mirror,)


def joined(mirrors: Iterable[Mirror]) -> Mirror:
    """A mirror whose parts are these, one for each component of a pipeline."""
    parts: list[Any] = [
        {"url": mirror.toml} if isinstance(mirror.toml, str) else mirror.toml for mirror in mirrors
    ]
    found = parse_mirror({"parts": parts})
    assert isinstance(found, Mirror)
    return found


def check_one_file(place: object, choice: Choice) -> None:
    """Refuse choices among files where there is one file."""
    for option in ("weights", "include", "exclude"):
        if given := getattr(choice, option):
            raise FormatError(
                "this source is one file: nothing in it can be chosen by name",
                path=place,
                found=f"{option}: {given}",
                remedy="give a folder or a repository, or leave it out",
            )


def check_names_stay(place: object, choice: Choice) -> None:
    """Refuse to give the tensors of a pipeline other names."""
    for option in ("strip_prefix", "add_prefix", "rename", "select"):
        if given := getattr(choice, option):
            raise FormatError(
                "the names in a pipeline are those of its components",
                path=place,
                found=f"{option}: {given}",
                remedy="adopt the folder of one component",
            )


def around(
    names: Collection[str], parts: Collection[str], weights: Collection[str], choice: Choice
) -> tuple[list[str], tuple[str, ...]]:
    """What lies beside the weights in a folder: the files to keep, and the others.

    Folders below that have weights of their own, checkpoints of a training say, are left out,
    unless they are parts of this model.

    Args:
        names: All names in the folder, those in folders below with their paths.
        parts: The folders that are listed as parts of the model.
        weights: The files that have the tensors, or list them.
        choice: Which files to keep besides.
    """
    full = {name.rpartition("/")[0] for name in names if named_container(name) is not None}
    listed = {*parts}

    def is_apart(folder: str) -> bool:
        if not folder or folder in listed or folder.partition("/")[0] in listed:
            return False
        return folder in full or is_apart(folder.rpartition("/")[0])

    folders = {name.rpartition("/")[0] for name in names}
    apart = {folder for folder in folders if is_apart(folder)}
    usual = companions(name for name in names if name.rpartition("/")[0] not in apart)
    kept = chosen_files(names, usual, weights, choice)
    return kept, tuple(sorted({*names} - {*kept} - {*weights}))

"""The files and folders of weights below a folder, each of which is one model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from mlstate.candidates import is_model_folder, models_in, stem_of
from mlstate.errors import FormatError, MlstateError
from mlstate.manifests.folder import is_store
from mlstate.toml_keys import near_miss
from mlstate.weights.components import components_of
from mlstate.weights.paths import shards_of

__all__ = ["FIELDS", "FoundWeights", "find_weights", "key_template"]

FIELDS = ("folders", "parent", "stem")
"""What a template of keys may name."""

_FIELD = re.compile(r"\{([^{}]*)\}")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class FoundWeights:
    """A model.

    Attributes:
        file: The file that holds or lists its weights, or begins them; of a pipeline the folder.
        source: What is to be adopted: the file, or the folder that is this model.
        weights: Of a folder with several, the file that is meant; else None.
        name: The path of the source from the folder that was searched, with slashes.
    """

    file: Path
    source: Path
    name: str
    weights: str | None = None


def find_weights(
    folder: Path, *, match: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[FoundWeights]:
    """The models below a folder, sorted by name.

    A folder is one model if its only file of weights has a usual name (`model.safetensors`), is an
    index of shards, or is the first of them, or if it is a pipeline; otherwise each file is. Hidden
    folders, stores, and what a training keeps beside its weights are passed over.

    Args:
        folder: The folder.
        match: Patterns of paths or names: only these. A ``*`` matches a slash, too.
        skip: Patterns of what is left out.
    """
    found = sorted(_walk(folder), key=lambda each: (each.name, str(each.file)))
    return [
        each
        for each in found
        if (not match or _fits(each, folder, match)) and not _fits(each, folder, skip)
    ]


def _fits(found: FoundWeights, folder: Path, patterns: Sequence[str]) -> bool:
    path = found.file.relative_to(folder).as_posix()
    texts = (path, found.name, found.file.name)
    return any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)


def _walk(top: Path) -> Iterator[FoundWeights]:
    for place, folders, names in os.walk(top):
        here = Path(place)
        name = here.relative_to(top).as_posix()
        if is_store(here):
            folders.clear()
            continue
        if components_of(here):
            folders.clear()
            yield FoundWeights(here, here, name)
            continue
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        files = [each for each in names if not each.startswith(".")]
        yield from _in_folder(here, name, models_in(files, partial(_shards, here)))


def _shards(folder: Path, index: str) -> list[str]:
    with suppress(MlstateError, OSError):  # whoever adopts it says what is wrong with it
        return shards_of(folder / index)
    return []


def _in_folder(here: Path, name: str, models: list[str]) -> Iterator[FoundWeights]:
    front = "" if name == "." else f"{name}/"
    for model in models:
        sharded = stem_of(model) + Path(model).suffix != model and "-of-" in model
        if len(models) == 1 and (sharded or is_model_folder(model)):
            yield FoundWeights(here / model, here, name)
        elif sharded:
            yield FoundWeights(here / model, here, name, weights=model)
        else:
            yield FoundWeights(here / model, here / model, f"{front}{model}")


def key_template(template: str) -> Callable[[FoundWeights, Path], str]:
    """What makes the text of a key of weights that were found in a folder.

    ``{parent}`` is the name of the folder that the file is in, ``{stem}`` that of the file without
    endings (of a pipeline: ``model``), ``{folders}`` all folders from the one that was searched,
    with dots between. What no key may have becomes ``-``.

    Raises:
        FormatError: The template names something else.
    """
    names = _FIELD.findall(template)
    unknown = next((name for name in names if name not in FIELDS), None)
    if unknown is not None:
        raise FormatError(
            "this template of keys names something that is not known",
            expected=", ".join(f"{{{name}}}" for name in FIELDS),
            found=f"{{{unknown}}}",
            remedy=near_miss(unknown, FIELDS),
        )
    if {*"{}"} & {*_FIELD.sub("", template)} or not names:
        raise FormatError(
            "this is no template of keys",
            expected="for instance pytorch.bert.{parent}.{stem}",
            found=repr(template),
        )

    def key(found: FoundWeights, folder: Path) -> str:
        is_file = found.file != found.source or not found.file.is_dir()
        parent = found.file.parent if is_file else found.file
        folders = parent.relative_to(folder).parts
        values = {
            "parent": _fit(parent.name),
            "stem": _fit(stem_of(found.file.name)) if is_file else "model",
            "folders": ".".join(map(_fit, folders)),
        }
        text = _FIELD.sub(lambda match: values[match[1]], template)
        return re.sub(r"\.{2,}", ".", text).strip(".")

    return key


def _fit(name: str) -> str:
    return _UNFIT.sub("-", name)

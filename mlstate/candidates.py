"""Which files are weights, by their names, and which of a folder's are meant.

It is one choice for folders here and on the hub: one file, or all shards of one model; or a
refusal that names them all. Nothing is opened here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from mlstate.errors import FormatError
from mlstate.locations import SAFETENSORS, TORCH, TORCH_GZIP
from mlstate.phrases import Phrase

__all__ = [
    "BESIDE_CHUNKS",
    "METADATA",
    "check_no_chunks",
    "check_whole",
    "choose_weights",
    "companions",
    "has_chunks",
    "is_arrays_name",
    "is_beside_weights",
    "is_index_name",
    "is_model_folder",
    "missing_shards",
    "models_in",
    "named_container",
    "possible_weights",
    "shown_names",
    "stem_of",
    "usual_shards",
    "weights_among",
]

_ENDINGS = (
    (re.compile(r"\.safetensors(\.index(\.\w+)?\.json)?$", re.IGNORECASE), SAFETENSORS),
    (re.compile(r"\.(pt|pth|ckpt|bin)(\.tar|\.index(\.\w+)?\.json)?$", re.IGNORECASE), TORCH),
    (re.compile(r"\.(pt|pth|ckpt|bin|tar)\.gz$", re.IGNORECASE), TORCH_GZIP),
)
_INDEX = re.compile(r"\.index(\.\w+)?\.json$", re.IGNORECASE)
_KEPT = re.compile(
    r"\.(json|jinja|md|model|tiktoken|txt|yaml|yml)$|^(licen[cs]e|notice|readme)[\w.-]*$",
    re.IGNORECASE,
)
"""What a model folder has beside its weights: configs, tokenizers, its card and its licence."""
_SHOWN = 8
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<rest>\..+)", re.DOTALL)
_ENDING = re.compile(
    r"(\.(safetensors|pt|pth|ckpt|bin|tar|gz|json)|\.index(\.\w+)?)+$", re.IGNORECASE
)
_USUAL = re.compile(
    r"(?P<stem>(?:pytorch_|diffusion_pytorch_|adapter_)?model)(?:\.(?P<variant>[A-Za-z]\w*))?"
    r"(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index(?:\.(?P<last>\w+))?\.json)?",
    re.IGNORECASE,
)
"""The names that transformers, diffusers and peft look for; a variant is for instance ``fp16``."""
_PARTS = re.compile(
    r"(?P<stem>.+)(?P<form>\.(?:safetensors|bin))\.index(?:\.(?P<variant>\w+))?\.json",
    re.IGNORECASE,
)
_TRAINING = re.compile(
    r"(?:optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)[\w-]*"
    r"\.(?:pt|pth|bin|pkl)",
    re.IGNORECASE,
)
"""What transformers and accelerate write beside a model to go on with its training."""
_CHUNKS = ".distcp"
METADATA = ".metadata"
"""The file of a distributed checkpoint's folder that stands for the whole."""
BESIDE_CHUNKS = ("meta.pt",)
"""What Lightning writes beside the chunks of a distributed checkpoint: no tensors."""


def named_container(name: str) -> str | None:
    """The container that a name or an address tells, or None."""
    path = re.split(r"[?#]", name)[0] if "://" in name else name
    return next((form for pattern, form in _ENDINGS if pattern.search(path)), None)


def is_arrays_name(name: str) -> bool:
    """Whether a name is that of an archive of NumPy arrays."""
    return name.lower().endswith(".npz")


def is_index_name(name: str) -> bool:
    """Whether a name, or an address without a query, is that of an index of shards.

    One of a variant is for instance ``model.safetensors.index.fp16.json``.
    """
    return _INDEX.search(name) is not None


def companions(files: Iterable[str]) -> list[str]:
    """The files of a folder that belong to its model: configs, tokenizers, card, licence."""
    return sorted(
        name
        for name in files
        if _KEPT.search(posixpath.basename(name))
        and not is_index_name(name)
        and not posixpath.basename(name).startswith(".")
    )


def weights_among(
    names: Collection[str],
    place: object,
    wanted: str | None,
    listed: Callable[[str], Collection[str]],
) -> tuple[str, ...]:
    """Choose the weights of a folder of which all names are given, those in folders below, too.

    ``wanted`` may be in a folder below; see `choose_weights`.
    """
    if wanted is not None and "/" in wanted and wanted in names:
        check_whole(wanted)
        return (wanted,)
    return choose_weights([n for n in names if "/" not in n], place, wanted, listed)


def has_chunks(names: Iterable[str]) -> bool:
    """Whether a folder with these names has chunks of a distributed checkpoint."""
    return any(name.endswith(_CHUNKS) for name in names)


def choose_weights(
    names: Collection[str],
    place: object,
    wanted: str | None,
    listed: Callable[[str], Collection[str]],
) -> tuple[str, ...]:
    """Choose the files that hold or list the weights of one folder.

    Files of a usual name stand for each other (a safetensors file is taken before a ``.bin``, one
    without a variant before those with one); all others stand for themselves.

    Args:
        names: The names in the folder.
        place: The folder, for errors.
        wanted: The one to take, where several could be meant.
        listed: Gives the names that an index lists.

    Returns:
        One name; several, if they are all shards of a set that has no index.

    Raises:
        FormatError: There are none, or several that are no parts of one another; or some of a set
            of shards are missing. They are named.
    """
    units, shards = _units_and_shards(names, listed)
    if wanted is not None:
        return _wanted(wanted, names, units, shards, place)
    found = _models(units)
    if not found:
        raise FormatError(
            "this folder has no weights",
            path=place,
            expected="model.safetensors, or another safetensors file or torch checkpoint",
            found=shown_names(units) if units else None,
            remedy=_choose(min(units)) if units else None,
        )
    if len(found) > 1:
        raise FormatError(
            "this folder has several files of weights",
            path=place,
            found=shown_names(found),
            remedy="say which one is meant: " + _choose(min(found)),
        )
    ((name, unit),) = found.items()
    return _complete(name, unit, place)


def _may_be_weights(name: str) -> bool:
    return named_container(name) is not None or name == METADATA


def models_in(names: Collection[str], listed: Callable[[str], Collection[str]]) -> list[str]:
    """The files of one folder that each hold, list or begin a model; arguments as above.

    They are what `choose_weights` chooses from: none stands for another, or is a part of one.
    """
    return sorted(_models(_units_and_shards(names, listed)[0]))


def is_model_folder(name: str) -> bool:
    """Whether a file has a name by which the folder that it is in is one model."""
    return _USUAL.fullmatch(name) is not None or is_index_name(name)


def possible_weights(
    names: Collection[str], place: object, listed: Callable[[str], Collection[str]]
) -> list[tuple[str, ...]]:
    """All that could be the weights of a folder, as `choose_weights` sees it: each one whole.

    Raises:
        FormatError: There is one alone, and some of its shards are missing.
    """
    found = _models(_units_and_shards(names, listed)[0])
    if len(found) == 1:
        ((name, unit),) = found.items()
        return [_complete(name, unit, place)]
    return [(name,) for name in sorted(found)]


def usual_shards(names: Collection[str]) -> Callable[[str], list[str]]:
    """Tells which files an index lists by their names alone, as programs choose them."""

    def listed(index: str) -> list[str]:
        found = _PARTS.fullmatch(index)
        stem, form = (found["stem"], found["form"]) if found else ("", "")
        variant = f".{found['variant']}" if found and found["variant"] else ""
        matches = ((name, _SHARD.fullmatch(name)) for name in names)
        return [n for n, m in matches if m and (m["stem"], m["rest"]) == (stem + variant, form)]

    return listed


def _units_and_shards(
    names: Collection[str], listed: Callable[[str], Collection[str]]
) -> tuple[dict[str, list[str]], set[str]]:
    """The files of weights that are each one whole, and those that an index lists."""
    weights = [name for name in sorted(names) if _may_be_weights(name)]
    weights = weights or [name for name in sorted(names) if is_arrays_name(name)]
    shards = {shard for name in weights if is_index_name(name) for shard in listed(name)}
    return _units(name for name in weights if name not in shards), shards


def _models(units: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The units that may be meant: no state of a training, none that stands behind another."""
    found = {name: unit for name, unit in units.items() if not is_beside_weights(name)}
    return {name: unit for name, unit in found.items() if not _stands_behind(name, found)}


def stem_of(name: str) -> str:
    """The name of a file of weights without its endings, and without the number of a shard.

    Example:
        >>> stem_of("model-00001-of-00002.safetensors"), stem_of("best.pth.tar")
        ('model', 'best')
    """
    found = _SHARD.fullmatch(name)
    return found["stem"] if found is not None else _ENDING.sub("", name)


def is_beside_weights(name: str) -> bool:
    """Whether a name is that of a training's state: its optimizer, its random numbers, say."""
    return _TRAINING.fullmatch(name.rpartition("/")[2]) is not None


def check_whole(name: str) -> None:
    """Refuse a file that says of itself that it is a part of a model.

    Raises:
        FormatError: It is one of several shards.
    """
    found = _SHARD.fullmatch(name.replace("\\", "/").rpartition("/")[2])
    if found is not None and int(found["count"]) > 1 and not is_index_name(name):
        raise FormatError(
            "this file is one shard of a model, and not the whole",
            path=name,
            remedy="give the index beside it, or its folder",
        )
    check_no_chunks(name)


def check_no_chunks(name: str) -> None:
    """Refuse, by a FormatError, a file of chunks of a distributed checkpoint."""
    if name.lower().endswith(_CHUNKS):
        raise FormatError(
            "this file is a part of a distributed checkpoint, and not the whole",
            path=name,
            remedy="give its folder, on this machine",
        )


def _units(names: Iterable[str]) -> dict[str, list[str]]:
    """Files that are one whole, each set under its first name: shards without an index."""
    units: dict[str, list[str]] = {}
    heads: dict[tuple[str, ...], str] = {}
    for name in names:
        found = _SHARD.fullmatch(name)
        if found is None or is_index_name(name):
            units[name] = [name]
            continue
        head = heads.setdefault((found["stem"], found["count"], found["rest"]), name)
        units.setdefault(head, []).append(name)
    return units


def _complete(name: str, unit: list[str], place: object) -> tuple[str, ...]:
    found = _SHARD.fullmatch(name)
    if found is None or is_index_name(name):
        return (name,)
    width, count = len(found["number"]), int(found["count"])
    numbers = {int(match["number"]) for each in unit if (match := _SHARD.fullmatch(each))}
    first = 0 if 0 in numbers else 1
    lacking = [
        number for number in range(first, min(first + count, 10_000)) if number not in numbers
    ]
    if lacking or len(unit) != count:
        missing = [
            f"{found['stem']}-{number:0{width}}-of-{found['count']}{found['rest']}"
            for number in lacking
        ]
        raise missing_shards(missing, place)
    return tuple(unit)


def missing_shards(missing: Collection[str], place: object) -> FormatError:
    """The error that some shards of a model are not there."""
    return FormatError(
        "some shards of this model are missing",
        path=place,
        found=f"missing: {shown_names(missing)}",
        remedy="bring them here, too: a part of a model is not taken for the whole",
    )


def _stands_behind(name: str, others: Collection[str]) -> bool:
    """Whether another file is the same model in a better known container, or without a variant."""
    mine = _rank(name)
    if mine is None:
        return False
    stem, variant, container = mine
    for other in others:
        theirs = _rank(other)
        if other == name or theirs is None or theirs[0] != stem:
            continue
        if (not theirs[1] and variant) or (theirs[1] == variant and theirs[2] < container):
            return True
    return False


def _rank(name: str) -> tuple[str, str, int] | None:
    """What a usual name says: the model, its variant, and how well known its container is."""
    found = _USUAL.fullmatch(name)
    if found is None:
        return None
    stem = found["stem"].lower().replace("pytorch_model", "model")
    return stem, found["variant"] or found["last"] or "", named_container(name) != SAFETENSORS


def _wanted(
    wanted: str,
    names: Collection[str],
    units: dict[str, list[str]],
    shards: Collection[str],
    place: object,
) -> tuple[str, ...]:
    if wanted not in names:
        raise FormatError(
            "there is no such file of weights in this folder",
            path=place,
            expected=wanted,
            found=shown_names(units) or "no files of weights",
        )
    if wanted in shards:
        raise FormatError(
            "this file is one shard of a model, and not the whole",
            path=wanted,
            remedy="choose the index that lists it",
        )
    unit = next(((head, unit) for head, unit in units.items() if wanted in unit), None)
    return (wanted,) if unit is None else _complete(*unit, place)


def _choose(name: str) -> Phrase:
    return Phrase(f"weights={name!r}", f"--weights {name}")


def shown_names(names: Collection[str]) -> str:
    """Some of these names, and how many more there are, for an error."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more

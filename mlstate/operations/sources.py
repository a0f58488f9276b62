"""The sources that weights are adopted from: files, folders and addresses, as mirrors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlstate import settings
from mlstate.errors import FormatError, NoRangesError
from mlstate.fetch.addresses import companions, hub_weights, is_index_name
from mlstate.fetch.header import front_of
from mlstate.fetch.reader import read_exactly
from mlstate.format.plain_file import USUAL_METADATA, WEIGHTS_NAME
from mlstate.layouts import WeightsFile
from mlstate.locations import Mirror, check_url, local_path, parse_mirror
from mlstate.operations.adopt_choice import Choice, chosen_files
from mlstate.transport import Retries, Transports, retried, retrying
from mlstate.transport.hub import HubAddress, parse_hub_address
from mlstate.transport.local import file_path
from mlstate.weights.candidates import check_whole
from mlstate.weights.components import Component, components_of, listed_parts
from mlstate.weights.containers import (
    DISTRIBUTED,
    FRONT,
    LOCAL_ONLY,
    SAFETENSORS,
    TORCH,
    container_of,
    named_container,
)
from mlstate.weights.distributed import files_of
from mlstate.weights.files import files_and_index
from mlstate.weights.source_layout import SourceLayout, layout_of

__all__ = ["WeightSource", "below", "find_source", "mirror_of_file"]


@dataclass(frozen=True)
class WeightSource:
    """Weights as a mirror with absolute paths, and what lies beside them.

    Attributes:
        mirror: Where they are.
        path: Their file or folder, if it is on this machine.
        files: The files to keep that are on this machine, by name.
        beside: The names of the files to keep of a repository on the hub.
        taken: What is taken of a folder or a repository, by name: weights and files.
        skipped: What of it is left.
        layout: Where its tensors lie in their folder.
        local: What it is, if it is of a container that is read on this machine only.
    """

    mirror: Mirror
    path: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    layout: SourceLayout = field(default_factory=SourceLayout)
    local: str | None = None

    @property
    def translated(self) -> tuple[Mirror, ...]:
        """What turns the names in the files into those of the state: one for each reading.

        The names of a pipeline's components are those of the state when they are read.
        """
        if any(part.urls != self.mirror.parts[0].urls for part in self.mirror.parts):
            return (Mirror(),)
        return self.mirror.parts or (self.mirror,)


def find_source(
    source: str | os.PathLike[str], choice: Choice, *, offline: bool | None
) -> WeightSource:
    """Find out where weights are and which container they are in; arguments as of `adopt`.

    Raises a `FormatError` if it is no source of weights or the choice does not fit it, a
    `TransportError`, or an `OfflineError` if it is elsewhere.
    """
    address = os.fspath(source)
    if reason := check_url(address):
        raise FormatError(
            f"weights cannot be read from there: {reason}",
            found=f"{address.partition('://')[0]}://...",
            expected="a path, or an address of http, https, file, s3, gs, az or hf",
        )
    if address[:7].lower() == "file://":
        address = str(file_path(address, None))
    if "://" not in address:
        return _on_this_machine(local_path(address), choice)
    with Transports(offline=settings.offline() if offline is None else offline) as transports:
        if address.startswith("hf://"):
            where = parse_hub_address(address)
            if where.path is None:
                return _repository(where, transports, choice)
        form = choice.form or named_container(address) or _looked_up(address, transports)
    _check_readable_there(form, address)
    name = address.partition("?")[0]
    _check_one_file(address, choice)
    check_whole(name)
    if form == TORCH and is_index_name(name):
        raise _torch_shards(address)
    return WeightSource(choice.mirror((address,), form), taken=(name.rpartition("/")[2],))


def _check_readable_there(form: str, address: str) -> None:
    """Refuse what is read on this machine only."""
    if form in LOCAL_ONLY:
        raise FormatError(
            f"{LOCAL_ONLY[form]} is adopted from this machine only",
            path=address,
            remedy="download it, and give its path",
        )


def _torch_shards(address: str) -> FormatError:
    return FormatError(
        "the shards of a torch checkpoint are adopted from this machine only",
        path=address,
        remedy="download them, and give the folder",
    )


def _check_one_file(place: object, choice: Choice) -> None:
    """Refuse choices among files where there is one file."""
    for option in ("weights", "include", "exclude"):
        if given := getattr(choice, option):
            raise FormatError(
                "this source is one file: nothing in it can be chosen by name",
                path=place,
                found=f"{option}: {given}",
                remedy="give a folder or a repository, or leave it out",
            )


def _on_this_machine(path: Path, choice: Choice) -> WeightSource:
    path = Path(os.path.abspath(path))  # without what leads out and in again
    if not path.is_dir():
        check_whole(path.name)
        _check_one_file(path, choice)
    renamed = bool(choice.strip_prefix or choice.add_prefix or choice.rename)
    layout = layout_of(path, weights=choice.weights, form=choice.form, renamed=renamed)
    components = components_of(path) if choice.weights is None else []
    if components:
        return _pipeline(path, components, choice, layout)
    mirror, weights, local = _model(path, choice)
    if not path.is_dir():
        names = tuple(sorted(os.path.basename(name) for name in weights))
        return WeightSource(mirror, path, taken=names, layout=layout, local=local)
    own = {Path(name).relative_to(path).as_posix() for name in weights}
    beside, skipped = _around(path, own, choice)
    taken = tuple(sorted(name for name in {*own, *beside} if not name.startswith(".")))
    return WeightSource(mirror, path, beside, (), taken, skipped, layout, local)


def _pipeline(
    path: Path, components: list[Component], choice: Choice, layout: SourceLayout
) -> WeightSource:
    """The folder of a pipeline: a mirror with a part for each component."""
    for option in ("strip_prefix", "add_prefix", "rename", "select"):
        if given := getattr(choice, option):
            raise FormatError(
                "the names in a pipeline are those of its components",
                path=path,
                found=f"{option}: {given}",
                remedy="adopt the folder of one component",
            )
    parts: list[Any] = []
    own: set[str] = set()
    for component in components:
        mirror, weights, _ = _model(component.folder, replace(choice, add_prefix=component.prefix))
        parts.append({"url": mirror.toml} if isinstance(mirror.toml, str) else mirror.toml)
        own |= {Path(name).relative_to(path).as_posix() for name in weights}
    joined = parse_mirror({"parts": parts})
    assert isinstance(joined, Mirror)
    beside, skipped = _around(path, own, choice)
    return WeightSource(joined, path, beside, (), tuple(sorted({*own, *beside})), skipped, layout)


def _model(path: Path, choice: Choice) -> tuple[Mirror, set[str], str | None]:
    """One model on this machine: its mirror, and the paths of all its files, with the index.

    The last is what it is, if it can be no mirror.
    """
    files, index = files_and_index(path, choice.weights)
    forms = {choice.form} if choice.form else {form for _, form in files}
    if len(forms) > 1:
        raise FormatError("these shards are of different kinds", path=path, found=sorted(forms))
    form = forms.pop()
    addresses = [str(file) for file, _ in files]
    weights = {*addresses, *([index.address] if index else ())}
    if form == SAFETENSORS and index is not None:
        addresses = [index.address]
    if form == DISTRIBUTED:
        weights |= {str(file) for file in files_of(files[0][0])}
    return choice.mirror(tuple(addresses), form), weights, LOCAL_ONLY.get(form)


def _repository(where: HubAddress, transports: Transports, choice: Choice) -> WeightSource:
    """A whole repository of the hub, or by a choice a file of it, with what lies beside it."""
    listing = retried(lambda: transports.hub_files(str(where)), Retries())
    names = [name for name in listing.files if not name.rpartition("/")[2].startswith(".")]
    plain = any(name.endswith(".safetensors") for name in names)
    form = TORCH if "pytorch_model.bin" in names and not plain else SAFETENSORS
    chosen = (
        hub_weights(listing.files, form, str(where)) if choice.weights is None else choice.weights
    )
    if chosen not in names:
        raise FormatError(
            "there is no such file in this repository",
            path=where,
            expected=chosen,
            found=", ".join(sorted(names)[:20]),
        )
    check_whole(chosen)
    address = str(where)
    if choice.weights is not None:
        address = str(replace(where, path=chosen))
        form = choice.form or named_container(chosen) or _looked_up(address, transports)
    _check_readable_there(form, address)
    if form == TORCH and is_index_name(chosen):
        raise _torch_shards(address)
    weights = {chosen}
    if is_index_name(chosen):
        stem = chosen.partition(".safetensors")[0]
        weights |= {name for name in names if name.startswith(f"{stem}-") and named_container(name)}
    beside = chosen_files(names, companions(listing.files), weights, choice)
    taken = {*weights, *beside}
    skipped = tuple(sorted({*names} - taken))
    mirror = choice.mirror((address,), form)
    layout = SourceLayout()
    if form == SAFETENSORS and not is_index_name(chosen) and chosen != WEIGHTS_NAME:
        # Its header is read later: the metadata are those that nearly all files have.
        layout = SourceLayout({chosen: WeightsFile(metadata=USUAL_METADATA)})
    return WeightSource(mirror, None, {}, tuple(beside), tuple(sorted(taken)), skipped, layout)


def _looked_up(address: str, transports: Transports) -> str:
    """The container of what is elsewhere, where the address does not say it."""
    resource = retrying(transports.open(address), Retries())
    try:
        with front_of(resource, FRONT) as stream:
            return container_of(address, read_exactly(stream, FRONT))
    except NoRangesError:
        with resource.read() as stream:  # no more of it is read than that
            return container_of(address, read_exactly(stream, FRONT))


def _around(
    folder: Path, weights: set[str], choice: Choice
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """What lies beside the weights in a folder: the files to keep, and the names of the others.

    Kept are the files of a hub's repository that would be. Folders below that have weights of
    their own, checkpoints of a training say, are left out, unless they are parts of this model.
    """
    found: dict[str, Path] = {}
    apart: set[str] = set()
    parts = set(listed_parts(folder))
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = here.relative_to(folder).as_posix()
        part = below in parts or below.partition("/")[0] in parts
        other = here != folder and (
            below.rpartition("/")[0] in apart or (not part and any(map(named_container, names)))
        )
        if other:
            apart.add(below)
        for name in names:
            if not name.startswith("."):
                found[(here / name).relative_to(folder).as_posix()] = here / name
    usual = companions(tuple(name for name in found if name.rpartition("/")[0] not in apart))
    chosen = chosen_files(found, usual, weights, choice)
    kept = {name: found[name] for name in chosen if found[name].is_file()}
    return kept, tuple(sorted({*found} - {*kept} - weights))


def mirror_of_file(path: str | os.PathLike[str]) -> Mirror:
    """A file of this machine as the mirror of a file of a state."""
    return Choice().mirror((os.path.abspath(path),), SAFETENSORS)


def below(mirror: Mirror, folder: Path) -> Mirror:
    """A mirror whose paths below a folder are relative to it, as its manifest writes them."""

    def relative(address: str) -> str:
        if "://" in address or not Path(address).is_relative_to(folder):
            return address
        return Path(address).relative_to(folder).as_posix()

    changed = tuple(map(relative, mirror.urls))
    parts = tuple(below(part, folder) for part in mirror.parts)
    if (changed, parts) == (mirror.urls, mirror.parts):
        return mirror
    return replace(mirror, urls=changed, parts=parts)

"""Weights at an address, in a file or in a repository of the hub, as a source to adopt from.

Lists of parts and indexes of shards are read here, and the first bytes of a file whose name does
not say what it is; tensors are not.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

from mlstate.candidates import (
    BESIDE_CHUNKS,
    check_whole,
    has_chunks,
    is_index_name,
    missing_shards,
    named_container,
    weights_among,
)
from mlstate.errors import FormatError, NoRangesError
from mlstate.fetch.addresses import LARGEST_INDEX, ShardIndex, beside, parse_index
from mlstate.fetch.header import front_of
from mlstate.fetch.reader import read_exactly
from mlstate.foreign import FRONT
from mlstate.locations import DISTRIBUTED, LOCAL_ONLY, SAFETENSORS, Mirror
from mlstate.operations.adopt_choice import Choice
from mlstate.operations.weight_source import (
    Elsewhere,
    WeightSource,
    around,
    check_names_stay,
    check_one_file,
    joined,
)
from mlstate.transport import Retries, Transports, retried, retrying
from mlstate.transport.hub import HubAddress, parse_hub_address
from mlstate.weights.components import LARGEST_LIST, listed_parts, parts_with_weights
from mlstate.weights.containers import container_of
from mlstate.weights.source_layout import Model

__all__ = ["source_elsewhere"]


def source_elsewhere(address: str, transports: Transports, choice: Choice) -> WeightSource:
    """The weights at an address; see `mlstate.operations.sources.find_source`."""
    if not address.startswith("hf://"):
        return _one_file(address, transports, choice)
    where = parse_hub_address(address)
    transports.check_copies()  # nobody knows a digest yet
    if where.is_commit and where.path is not None and named_container(where.path):
        return _one_file(address, transports, choice)
    listing = retried(lambda: transports.hub_files(str(replace(where, path=None))), Retries())
    exact = replace(where, revision=listing.commit)
    below = "" if exact.path is None else f"{exact.path}/"
    names = [name[len(below) :] for name in listing.files if name.startswith(below)]
    if exact.path is not None and (exact.path in listing.files or not names):
        return _one_file(str(exact), transports, choice)
    return _folder(_Folder(exact, tuple(filter(_is_shown, names)), transports), choice)


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


@dataclass(frozen=True)
class _Folder:
    """A repository of the hub at a commit, or a folder of one.

    Attributes:
        where: Its address.
        names: All files in it, by their paths from there.
        transports: What reads them.
        indexes: The indexes that were read.
    """

    where: HubAddress
    names: tuple[str, ...]
    transports: Transports
    indexes: dict[str, ShardIndex] = field(default_factory=dict)

    def address(self, name: str) -> str:
        return str(replace(self.where, path=posixpath.join(self.where.path or "", name)))

    def read(self, name: str) -> bytes | None:
        """The bytes of a list of parts; None if it is not there."""
        if name not in self.names:
            return None
        return _read(self.address(name), self.transports, LARGEST_LIST)

    def index(self, name: str) -> ShardIndex:
        if name not in self.indexes:
            self.indexes[name] = _index(self.address(name), self.transports)
        return self.indexes[name]

    def below(self, folder: str) -> list[str]:
        """The names in a folder of it, and below, from there; an empty one is the folder itself."""
        front = f"{folder}/" if folder else ""
        return [name[len(front) :] for name in self.names if name.startswith(front)]


def _folder(folder: _Folder, choice: Choice) -> WeightSource:
    parts = listed_parts(folder.read)
    components: list[str] = []
    if choice.weights is None:
        components = parts_with_weights(
            parts, lambda part: (name for name in folder.below(part) if "/" not in name)
        )
    if components:
        check_names_stay(folder.where, choice)
    models: list[Model] = []
    mirrors: list[Mirror] = []
    for part in components or [""]:
        prefix = f"{part}/" if part else ""
        named = replace(choice, add_prefix=prefix) if components else choice
        model, mirror = _model(folder, part, prefix, named)
        models.append(model)
        mirrors.append(mirror)
    own = {name for model in models for name in (*model.files, model.index) if name is not None}
    kept, skipped = around(folder.names, parts, own, choice)
    elsewhere = Elsewhere(
        tuple(models),
        {name: folder.address(name) for model in models for name in model.files},
        _mirrors(folder, [model.index for model in models if model.index is not None]),
        _mirrors(folder, kept),
        renamed=choice.renames,
    )
    return WeightSource(
        joined(mirrors) if components else mirrors[0],
        elsewhere=elsewhere,
        taken=tuple(sorted({*own, *kept})),
        skipped=skipped,
        is_pipeline=bool(components),
    )


def _mirrors(folder: _Folder, names: Collection[str]) -> dict[str, Mirror]:
    return {name: Mirror((folder.address(name),)) for name in names}


def _model(folder: _Folder, part: str, prefix: str, choice: Choice) -> tuple[Model, Mirror]:
    """The one model of a folder, and its mirror."""
    place = folder.address(part) if part else str(folder.where)

    def listed(name: str) -> list[str]:
        return folder.index(posixpath.join(part, name)).shards

    names = folder.below(part)
    if choice.weights is None and _is_distributed(names):
        _check_readable_there(DISTRIBUTED, place)
    chosen = weights_among(names, place, choice.weights, listed)
    files = [posixpath.join(part, name) for name in chosen]
    index, places = None, {}
    if is_index_name(files[0]):
        (index,) = files
        places = {**folder.index(index).places}
        near = posixpath.dirname(index)
        files = [posixpath.join(near, shard) for shard in folder.index(index).shards]
        if lacking := [name for name in files if name not in folder.names]:
            raise missing_shards(lacking, folder.address(index))
    addresses = [folder.address(name) for name in files]
    form = _form_of(addresses, folder.transports, choice)
    plain = form == SAFETENSORS
    urls = addresses if index is None or not plain else [folder.address(index)]
    model = Model(tuple(files), prefix, plain, index, places)
    return model, choice.mirror(tuple(urls), form)


def _is_distributed(names: Collection[str]) -> bool:
    """Whether what a folder has of weights are chunks; its ``.metadata`` is not listed here."""
    own = [name for name in names if "/" not in name and name not in BESIDE_CHUNKS]
    return has_chunks(own) and not any(named_container(name) for name in own)


def _one_file(address: str, transports: Transports, choice: Choice) -> WeightSource:
    """The file at an address; or all shards, if it is an index."""
    path = urlsplit(address).path if not address.startswith("hf://") else address
    name = path.rpartition("/")[2]
    if address[:4].lower() == "http":
        name = unquote(name)
    check_one_file(address, choice)
    check_whole(name)
    if not is_index_name(name):
        form = _form_of([address], transports, choice)
        only = Elsewhere((Model((name,), plain=form == SAFETENSORS),), {name: address}, alone=True)
        return WeightSource(choice.mirror((address,), form), elsewhere=only, taken=(name,))
    index = _index(address, transports)
    addresses = {shard: beside(address, shard) for shard in index.shards}
    form = _form_of([*addresses.values()], transports, choice)
    plain = form == SAFETENSORS
    elsewhere = Elsewhere(
        (Model(tuple(addresses), "", plain, name, index.places),),
        addresses,
        {name: Mirror((address,))},
        alone=True,
        renamed=choice.renames,
    )
    urls = (address,) if plain else tuple(addresses.values())
    taken = tuple(sorted({name, *addresses}))
    return WeightSource(choice.mirror(urls, form), elsewhere=elsewhere, taken=taken)


def _form_of(addresses: list[str], transports: Transports, choice: Choice) -> str:
    """The container of files, all of one; as the choice says, or their names, or first bytes."""
    if choice.form:
        return choice.form
    forms = {named_container(address) or _looked_up(address, transports) for address in addresses}
    if len(forms) > 1:
        raise FormatError(
            "these shards are of different kinds", path=addresses[0], found=sorted(forms)
        )
    form = forms.pop()
    _check_readable_there(form, addresses[0])
    return form


def _check_readable_there(form: str, address: str) -> None:
    """Refuse what is read on this machine only."""
    if form in LOCAL_ONLY:
        raise FormatError(
            f"{LOCAL_ONLY[form]} is adopted from this machine only",
            path=address,
            remedy="download it, and give its path",
        )


def _index(address: str, transports: Transports) -> ShardIndex:
    return parse_index(_read(address, transports, LARGEST_INDEX), address)


def _read(address: str, transports: Transports, most: int) -> bytes:
    """All of a small file; one byte more of one that is too long."""
    with retrying(transports.open(address), Retries()).read() as stream:
        return read_exactly(stream, most + 1)


def _looked_up(address: str, transports: Transports) -> str:
    """The container of what is elsewhere, where the address does not say it."""
    resource = retrying(transports.open(address), Retries())
    try:
        with front_of(resource, FRONT) as stream:
            return container_of(address, read_exactly(stream, FRONT))
    except NoRangesError:
        with resource.read() as stream:  # no more of it is read than that
            return container_of(address, read_exactly(stream, FRONT))

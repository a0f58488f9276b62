"""The sources that weights are adopted from: files, folders and addresses, as mirrors."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlstate import settings
from mlstate.errors import FormatError, TransportError
from mlstate.fetch.addresses import companions
from mlstate.fetch.reader import read_exactly
from mlstate.locations import Mirror, check_url, local_path, parse_mirror
from mlstate.phrases import Phrase
from mlstate.transport import Retries, Transports, retried, retrying
from mlstate.transport.hub import parse_hub_address
from mlstate.transport.local import file_path
from mlstate.weights.components import Component, SourceLayout, components_of
from mlstate.weights.containers import (
    FRONT,
    INDEX,
    SAFETENSORS,
    TORCH,
    container_of,
    named_container,
    weights_in,
)
from mlstate.weights.files import layout_of, local_files

__all__ = ["WeightSource", "below", "find_source", "mirror_of_file"]


@dataclass(frozen=True)
class WeightSource:
    """Weights as a mirror with absolute paths; their file or folder, if it is on this machine."""

    mirror: Mirror
    path: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)  # beside them, by name
    layout: SourceLayout = field(default_factory=SourceLayout)


def find_source(
    source: str | os.PathLike[str], select: str | None, *, offline: bool | None
) -> WeightSource:
    """Find out where weights are and which container they are in; arguments as of `adopt`.

    Raises a `FormatError` if it is no source of weights or ``select`` does not fit it, a
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
        return _on_this_machine(local_path(address), select)
    form = named_container(address)
    if form is None:
        with Transports(offline=settings.offline() if offline is None else offline) as transports:
            form = _looked_up(address, transports)
    if form == TORCH and address.partition("?")[0].endswith(INDEX):
        raise FormatError(
            "the shards of a torch checkpoint are adopted from this machine only",
            path=address,
            remedy="download them, and give the folder",
        )
    return WeightSource(_mirror((address,), form, select))


def _on_this_machine(path: Path, select: str | None) -> WeightSource:
    path = Path(os.path.abspath(path))  # without what leads out and in again
    layout = layout_of(path)
    if components := components_of(path):
        beside = _companions(path, {component.weights.parent for component in components})
        return WeightSource(_joined(components, select), path, beside, layout)
    files = local_files(path)
    forms = {form for _, form in files}
    if len(forms) > 1:
        raise FormatError("these shards are of different kinds", path=path, found=sorted(forms))
    addresses = [str(file) for file, _ in files]
    index = path / weights_in(path) if path.is_dir() else path
    if forms == {SAFETENSORS} and index.name.endswith(f".safetensors{INDEX}"):
        addresses = [str(index)]
    beside = _companions(path) if path.is_dir() else {}
    return WeightSource(_mirror(tuple(addresses), forms.pop(), select), path, beside, layout)


def _joined(components: list[Component], select: str | None) -> Mirror:
    """Several models as one mirror, of parts."""
    parts = []
    for component in components:
        part = _on_this_machine(component.weights, select).mirror
        table = {"url": part.toml} if isinstance(part.toml, str) else dict(part.toml)
        parts.append(table | ({"add_prefix": component.prefix} if component.prefix else {}))
    mirror = parse_mirror({"parts": parts})
    assert isinstance(mirror, Mirror)
    return mirror


def _mirror(addresses: tuple[str, ...], form: str, select: str | None) -> Mirror:
    """The mirror as a manifest would have it, with nothing in it that goes without saying."""
    if select is not None and form == SAFETENSORS:
        raise FormatError(
            "a safetensors file has nothing inside that could be selected",
            path=addresses[0],
            found=Phrase(f"select={select!r}", f"--select {select!r}"),
        )
    table: dict[str, Any] = {"url": addresses[0]} if len(addresses) == 1 else {"urls": [*addresses]}
    table |= {} if form == SAFETENSORS else {"format": form}
    table |= {} if select is None else {"select": select}
    mirror = parse_mirror(table if len(table) > 1 else addresses[0])
    assert isinstance(mirror, Mirror)
    return mirror


def _looked_up(address: str, transports: Transports) -> str:
    """The container of what is elsewhere, where the address does not say it."""
    if address.startswith("hf://") and parse_hub_address(address).path is None:
        names = retried(lambda: transports.hub_files(address), Retries()).files
        plain = any(name.endswith(".safetensors") for name in names)
        return TORCH if "pytorch_model.bin" in names and not plain else SAFETENSORS
    resource = retrying(transports.open(address), Retries())
    try:
        with resource.read(0, FRONT) as stream:
            return container_of(address, read_exactly(stream, FRONT))
    except TransportError as error:
        if error.status is not None or error.transient:
            raise
    with resource.read() as stream:  # it gives no ranges, or is shorter
        return container_of(address, read_exactly(stream, FRONT))


def _companions(folder: Path, components: Collection[Path] = ()) -> dict[str, Path]:
    """The config and the tokenizer in a folder of weights, by the rule for a hub's repository.

    Folders below that have weights of their own, checkpoints of a training say, are left out,
    unless they are components of it.
    """
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if here not in (folder, *components) and any(named_container(name) for name in names):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            found[(here / name).relative_to(folder).as_posix()] = here / name
    chosen = companions(tuple(found))
    return {name: found[name] for name in chosen if found[name].is_file()}


def mirror_of_file(path: str | os.PathLike[str]) -> Mirror:
    """A file of this machine as the mirror of a file of a state."""
    return _mirror((os.path.abspath(path),), SAFETENSORS, None)


def below(mirror: Mirror, folder: Path) -> Mirror:
    """A mirror whose paths below a folder are relative to it, as its manifest writes them."""

    def relative(address: str) -> str:
        if "://" in address or not Path(address).is_relative_to(folder):
            return address
        return Path(address).relative_to(folder).as_posix()

    if mirror.parts:
        parts = [below(part, folder).toml for part in mirror.parts]
        tables = [{"url": part} if isinstance(part, str) else part for part in parts]
        added = [{"add_prefix": p.add_prefix} if p.add_prefix else {} for p in mirror.parts]
        joined = parse_mirror({"parts": [t | a for t, a in zip(tables, added, strict=True)]})
        assert isinstance(joined, Mirror)
        return joined
    changed = tuple(map(relative, mirror.urls))
    return mirror if changed == mirror.urls else _mirror(changed, mirror.format, mirror.select)

"""The places that a store's bytes can come from, each once, with one thing that is to be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlstate.buckets.open import parse_bucket_address
from mlstate.errors import MlstateError
from mlstate.format import layout
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import Manifest, StateEntry
from mlstate.operations.doctor.check import Check, failed
from mlstate.transport.hub import parse_hub_address
from mlstate.transport.local import file_path
from mlstate.transport.urls import Url

__all__ = ["GITHUB", "Place", "place_of", "places_of", "unusable"]

GITHUB = "github:"
"""How the address of a repository's releases begins: ``github:owner/name``."""


@dataclass(frozen=True)
class Place:
    """A server, bucket, repository or folder: its name, and the address of something there."""

    name: str
    address: str
    form: str = "safetensors"  # what a repository on the hub is to have
    lacking: str | None = None  # what it means if nothing is there, where that is no trouble

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return "://" not in self.address and not self.address.startswith(GITHUB)


def places_of(manifest: Manifest) -> list[Place | Check]:
    """Every place that a manifest names, sorted by name; a failed check for what is none."""
    found: dict[str, Place | Check] = {}
    for entry in manifest.states.values():
        base = Path(entry.origin).parent if entry.origin else None
        for address, form, lacking in _addresses(entry):
            try:
                place: Place | Check = place_of(address, base, form, lacking)
            except MlstateError as error:
                place = failed(f"a mirror of {entry.key}", error)
            found.setdefault(place.name, place)
    return [found[name] for name in sorted(found)]


def place_of(
    address: str, base: Path | None = None, form: str = "safetensors", lacking: str | None = None
) -> Place:
    """The place that an address is at; an MlstateError if it is malformed."""
    scheme = address.partition("://")[0].lower() if "://" in address else "file"
    match scheme:
        case "http" | "https":
            name = Url.parse(address).root
        case "s3" | "gs" | "az":
            address = f"{scheme}{address[len(scheme) :]}"
            name = f"{scheme}://{parse_bucket_address(address)[1]}"
        case "hf":
            name = f"hf://{parse_hub_address(address).repo}"
        case _:
            path = file_path(address, base)
            # Of a copy of a store its folder is known, of a file only where it lies.
            name, address = str(path if lacking else path.parent), str(path)
    return Place(name, address, form, lacking)


def unusable(manifest: Manifest) -> Check | None:
    """A check of the mirrors that this version cannot use, if there are any."""
    reasons = [
        mirror.reason
        for entry in manifest.states.values()
        for mirror in (*entry.mirrors, *(m for f in entry.files.values() for m in f.mirrors))
        if isinstance(mirror, UnusableMirror)
    ]
    if not reasons:
        return None
    found = f"{len(reasons):,} cannot be used by this version: {', '.join(sorted(set(reasons)))}"
    return Check("mirrors", None, found, "install a newer mlstate, or correct the manifest")


def _addresses(entry: StateEntry) -> Iterator[tuple[str, str, str | None]]:
    mirrors = [*entry.mirrors, *(m for file in entry.files.values() for m in file.mirrors)]
    for mirror in mirrors:
        if isinstance(mirror, Mirror):
            yield from _of_mirror(mirror)
    for address in entry.objects:
        if "://" not in address or address.lower().startswith("file:"):
            yield address, "safetensors", "it lacks objects"
            continue
        # Who has not every object is a mirror all the same.
        name = layout.SETTINGS if entry.digest is None else layout.object_path(entry.digest)
        lacking = f"it lacks {name}" if entry.digest is None else f"it lacks {entry.key}"
        yield f"{address.rstrip('/')}/{name}", "safetensors", lacking


def _of_mirror(mirror: Mirror) -> Iterator[tuple[str, str, str | None]]:
    for address in (*mirror.urls, *([] if mirror.state is None else [mirror.state])):
        yield address, mirror.format, None
    for part in mirror.parts:
        yield from _of_mirror(part)

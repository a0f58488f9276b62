"""The manifests that other libraries bring along, and register by entry points.

A library says where its manifests are in its `pyproject.toml`::

    [project.entry-points."mlstate.manifests"]
    weights = "mylibrary:manifests"

The value is a package, and behind a colon a folder or a file in it; dots stand for slashes, as some
tools take names alone. The package is found, and not imported: it may take seconds, and run
anything. It may lie in a zip, a wheel on ``sys.path`` say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec, module_from_spec
from pathlib import Path

from mlstate.errors import FormatError, ManifestError, MlstateError, SignatureError
from mlstate.manifests import Manifest, warn_of_misspelt
from mlstate.manifests.folder import LARGEST, is_manifest_text, is_store
from mlstate.manifests.merge import merged_aliases, merged_states
from mlstate.manifests.required import RequiredSignature, read_required, required_policy
from mlstate.states import StateKey
from mlstate.warn import warn

__all__ = ["GROUP", "LibraryManifest", "registered", "with_libraries"]

GROUP = "mlstate.manifests"
"""The group of entry points."""

_EXPECTED = 'a package with a folder or a .toml file in it: "mylibrary:manifests"'


@dataclass(frozen=True)
class LibraryManifest:
    """What a library lists.

    Attributes:
        library: The name of its distribution.
        manifest: Its states.
    """

    library: str
    manifest: Manifest


def with_libraries(manifest: Manifest, libraries: Sequence[LibraryManifest]) -> Manifest:
    """A manifest with the states of libraries behind its own.

    Raises:
        ManifestError: Two libraries give one key different weights, or one of them and the manifest
            do.
    """
    if not libraries:
        return manifest
    _refuse_clashes(libraries)
    warn_of_misspelt([each.manifest for each in libraries])
    together = [manifest, *(each.manifest for each in libraries)]
    states = merged_states(each.states for each in together)
    return Manifest(states, aliases=merged_aliases(together))


def _refuse_clashes(libraries: Iterable[LibraryManifest]) -> None:
    """Refuse one key with different weights, or two that differ in case only, by both names."""
    owners: dict[str, tuple[str, StateKey]] = {}
    digests: dict[StateKey, object] = {}
    for each in libraries:
        for key, entry in each.manifest.states.items():
            library, other = owners.setdefault(str(key).lower(), (each.library, key))
            known = digests.get(key)
            digests[key] = entry.digest or known
            if library != each.library and (
                other != key or (entry.digest and known and entry.digest != known)
            ):
                raise ManifestError(
                    "two libraries give one key different weights",
                    key=key,
                    expected=f"{other} {known or ''} of {library}",
                    found=f"{key} {entry.digest or ''} of {each.library}",
                    remedy="uninstall one of them, or ask their authors for keys of their own",
                )


def registered(required: RequiredSignature = None) -> list[LibraryManifest]:
    """The manifests that libraries have registered, sorted by the names of these.

    What is wrong with one of them is a warning, and the others count all the same.

    Args:
        required: Whose signatures are needed; see `RequiredSignature`.
    """
    found = []
    points = sorted(entry_points(group=GROUP), key=lambda point: (_library(point), point.name))
    for point in points:
        try:
            found.append(LibraryManifest(_library(point), _read(point.value, required)))
        except Exception as error:
            said = error.message if isinstance(error, MlstateError) else repr(error)
            where = getattr(error, "path", None)
            place = f" ({where})" if isinstance(where, str) else ""
            warn(
                f"the manifests of the library {_library(point)} are passed over, "
                f"{point.name} = {point.value!r}: {said}{place}"
            )
    return found


def _library(point: EntryPoint) -> str:
    return point.name if point.dist is None else point.dist.name


def _read(value: str, required: RequiredSignature) -> Manifest:
    manifests = [_parsed(file, required) for file in _manifests_in(_resource(value))]
    if not manifests:
        raise FormatError("there is no manifest at this place", expected=_EXPECTED, found=value)
    states = merged_states(manifest.states for manifest in manifests)
    return Manifest(states, aliases=merged_aliases(manifests))


def _parsed(file: Traversable, required: RequiredSignature) -> Manifest:
    if isinstance(file, Path):
        return read_required([file], required)
    if required_policy(required, str(file)) is not None:
        raise SignatureError(
            "the signature of a manifest in an archive cannot be checked", path=str(file)
        )
    return Manifest.parse(_content(file), str(file))


def _manifests_in(place: Traversable) -> Iterator[Traversable]:
    """The manifests at a place: itself, or those in the folder and below, sorted by name."""
    if place.is_file():
        yield place
        return
    if isinstance(place, Path) and is_store(place):
        return
    for item in sorted(place.iterdir(), key=lambda item: item.name):
        if item.is_dir() and not item.name.startswith((".", "__")):
            yield from _manifests_in(item)
        elif item.is_file() and item.name.endswith(".toml") and is_manifest_text(_content(item)):
            yield item


def _content(file: Traversable) -> bytes:
    with file.open("rb") as stream:
        data = bytes(stream.read(LARGEST + 1))
    if len(data) > LARGEST:
        raise FormatError(
            "a manifest is too long", path=str(file), expected=f"at most {LARGEST} bytes"
        )
    return data


def _resource(value: str) -> Traversable:
    """The folder or file that the value of an entry point names; nothing of it is imported.

    Raises:
        FormatError: There is no such package, or no such folder or file in it.
    """
    module, _, inside = value.partition(":")
    top, *below = module.strip().split(".")
    inside = inside.partition("[")[0].strip()
    names = [*below, *inside.split("/")] if inside else below
    if ".." in names or "\\" in inside or inside.startswith("/"):
        raise FormatError("a path in a package", expected=_EXPECTED, found=value)
    for root in _roots(top, value):
        for parts in _readings(names):
            place = root.joinpath(*parts) if parts else root
            if place.is_dir() or place.is_file():
                return place
    raise FormatError("this package has no such folder or file", expected=_EXPECTED, found=value)


def _readings(names: list[str]) -> Iterator[list[str]]:
    """The paths that names may mean: as they are, and with slashes for dots."""
    yield names
    if names and "." in names[-1]:
        *folders, ending = names[-1].split(".")
        yield [*names[:-1], *folders, ending]
        if folders:
            yield [*names[:-1], *folders[:-1], f"{folders[-1]}.{ending}"]


def _roots(top: str, value: str) -> Iterator[Traversable]:
    """The places of a package: folders, or what its loader gives, of a zip say."""
    spec = find_spec(top) if top.isidentifier() else None
    if spec is None or spec.submodule_search_locations is None:
        raise FormatError(
            "there is no such package" if spec is None else "this is a module, and no package",
            expected=_EXPECTED,
            found=value,
        )
    folders = [Path(location) for location in spec.submodule_search_locations]
    if all(folder.is_dir() for folder in folders):
        yield from folders
        return
    yield files(module_from_spec(spec))  # the module is made, and its code not run

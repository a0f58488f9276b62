"""`enlist` and `unlist` write states into a manifest file, and take them out of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mlstate.errors import ManifestError, StateExistsError, StateNotFoundError
from mlstate.locations import local_path
from mlstate.manifests import Manifest, StateEntry, manifest_files
from mlstate.manifests.update import change_manifest
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore
from mlstate.stores.cache import PathLike
from mlstate.stores.manifest import manifest_of

__all__ = ["enlist", "own_objects", "read_manifests", "replace_entry", "unlist"]


def enlist(
    manifest: PathLike,
    store: AnyStore,
    keys: Iterable[StateKey] | None = None,
    *,
    objects: Sequence[str] | None = (),
    overwrite: bool = False,
) -> list[StateKey]:
    """Write states of a store into a manifest file, beside what it lists already.

    Args:
        manifest: The file; made if it is missing. All else in it stays, comments included.
        store: Any store that knows its states by digest.
        keys: Which; all by default.
        objects: As for `mlstate.manifest_of`; None: the store's own folder, if it is in one.
        overwrite: Replace what the manifest says of a state with another digest.

    Returns:
        The states whose entries are new or changed.

    Raises:
        StateNotFoundError: The store has no such state.
        StateExistsError: The manifest lists other weights under a key; it stays as it is.
        ManifestError: The manifest cannot be read or edited, or lists other object mirrors.
    """
    own = own_objects(store, manifest) if objects is None else objects
    new = manifest_of(store, keys, objects=own)
    changed: list[StateKey] = []

    def join(old: Manifest) -> Manifest:
        _check_free(old, new, manifest, overwrite=overwrite)
        changed[:] = (key for key, entry in new.states.items() if old.states.get(key) != entry)
        objects_said = old.objects if old.states else new.objects
        return replace(old, states={**old.states, **new.states}, objects=objects_said)

    change_manifest(manifest, join)
    return changed


def own_objects(store: object, manifest: PathLike) -> list[str]:
    """The address under which a manifest names the folder of a store; none of another store.

    The address is relative if the folder is below that of the manifest.
    """
    folder = getattr(store, "folder", None)
    if not isinstance(folder, Path):
        return []
    place, base = folder.resolve(), local_path(manifest).parent.resolve()
    return [place.relative_to(base).as_posix() if place.is_relative_to(base) else str(place)]


def _check_free(old: Manifest, new: Manifest, path: PathLike, *, overwrite: bool) -> None:
    for key, entry in new.states.items():
        listed = old.states.get(key)
        if listed and listed.digest not in (None, entry.digest) and not overwrite:
            raise StateExistsError(
                "the manifest lists other weights under this key",
                key=key,
                path=path,
                expected=listed.digest,
                found=entry.digest,
                remedy="give it another training id, or " + OVERWRITE,
            )
    if old.states and new.objects and old.objects != new.objects:
        raise ManifestError(
            "the manifest lists other object mirrors for all its states",
            path=path,
            expected=", ".join(old.objects) or "none",
            found=", ".join(new.objects),
            remedy="write these states into a manifest of their own",
        )


def unlist(manifest: PathLike, keys: Iterable[StateKey]) -> None:
    """Take states out of a manifest, and their aliases. Their bytes stay where they are.

    Args:
        manifest: A manifest, or a folder of them: a state is taken out of every file that lists it.
        keys: The states.

    Raises:
        StateNotFoundError: It lists no such state; nothing was changed.
        ManifestError: A manifest cannot be read or edited.
    """
    leaving = set(check_keys(keys))

    def leave(old: Manifest) -> Manifest:
        staying = {key: entry for key, entry in old.states.items() if key not in leaving}
        aliases = {name: key for name, key in old.aliases.items() if key not in leaving}
        return replace(old, states=staying, aliases=aliases)

    for path, read in read_manifests(manifest, sorted(leaving)):
        if leaving & {*read.states, *read.aliases.values()}:
            change_manifest(path, leave)


def read_manifests(
    manifest: PathLike, keys: Iterable[StateKey] = ()
) -> list[tuple[Path, Manifest]]:
    """Read a manifest, or all of a folder.

    Raises a `StateNotFoundError` if none of them lists one of these keys, and a `ManifestError` if
    one cannot be read.
    """
    files = [(path, Manifest.read(path)) for path in manifest_files(local_path(manifest))]
    for key in keys:
        if not any(key in read.states for _, read in files):
            raise StateNotFoundError("the manifest lists no such state", key=key, path=manifest)
    return files


def replace_entry(path: PathLike, old: StateEntry | None, new: StateEntry) -> bool:
    """Write an entry in place of the one read before, or of none; False if another is there now."""

    def write(now: Manifest) -> Manifest:
        if now.states.get(new.key) != old:
            raise _ChangedMeanwhileError
        return replace(now, states={**now.states, new.key: new})

    try:
        change_manifest(path, write)
    except _ChangedMeanwhileError:  # nothing was written
        return False
    return True


class _ChangedMeanwhileError(Exception):
    """Another process has changed an entry."""

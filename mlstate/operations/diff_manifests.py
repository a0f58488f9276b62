"""`diff_manifests` says what a change of a manifest means: for its states, and for their layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.locations import local_path
from mlstate.manifests import Manifest, StateEntry
from mlstate.manifests.blocks import exact
from mlstate.manifests.write import plain_state, plain_top
from mlstate.objects import FolderObjectStore, ObjectStore
from mlstate.objects.cache import ChainObjectStore
from mlstate.operations.diff import StateDiff, compare_states
from mlstate.reading import read_state
from mlstate.states import StateKey

if TYPE_CHECKING:
    from mlstate.stores.cache import CacheLike, PathLike

__all__ = [
    "EntryChange",
    "FieldChange",
    "ListedState",
    "ManifestDiff",
    "MovedState",
    "RenamedState",
    "diff_manifests",
]


@dataclass(frozen=True)
class ListedState:
    """A state that only one of two manifests lists.

    Attributes:
        key: Its key.
        digest: Its state digest; None if it is not pinned.
        size: The bytes of its tensors, as the manifest says; or None.
    """

    key: StateKey
    digest: Digest | None
    size: int | None


@dataclass(frozen=True)
class MovedState:
    """A state that has another digest now: other weights.

    Attributes:
        key: Its key.
        first: The digest in the first manifest; None if it was not pinned there.
        second: The digest in the second; likewise.
        layers: Which tensors differ, without numbers; None unless both states are on this machine.
    """

    key: StateKey
    first: Digest | None
    second: Digest | None
    layers: StateDiff | None = None


@dataclass(frozen=True)
class RenamedState:
    """The same weights under another key: in the first manifest, and in the second."""

    first: StateKey
    second: StateKey
    digest: Digest


@dataclass(frozen=True)
class FieldChange:
    """A value that differs; None on the side that has none. Of a list it is one of its items.

    Attributes:
        name: Where it stands: ``mirrors``, ``files.config.json`` or ``meta.license``, say.
        first: The value in the first manifest.
        second: The value in the second.
    """

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class EntryChange:
    """What else differs in the entry of a state; of a renamed one the key is the second."""

    key: StateKey
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True)
class ManifestDiff:
    """The differences between two manifests.

    Attributes:
        added: The states that only the second lists, sorted by key.
        dropped: The states that only the first lists.
        moved: The states with another digest.
        renamed: Pairs of one that only the first and one that only the second lists, with the same
            digest: these are in neither `added` nor `dropped`.
        changed: What else differs in entries: mirrors, files, layout, meta.
        top: What differs outside of states: object mirrors, name, serial.
    """

    added: tuple[ListedState, ...] = ()
    dropped: tuple[ListedState, ...] = ()
    moved: tuple[MovedState, ...] = ()
    renamed: tuple[RenamedState, ...] = ()
    changed: tuple[EntryChange, ...] = ()
    top: tuple[FieldChange, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both say the same, whatever their order and their comments."""
        return self == ManifestDiff()


def diff_manifests(
    first: PathLike | Manifest,
    second: PathLike | Manifest,
    *,
    cache: CacheLike | None = None,
    folder: PathLike | None = None,
) -> ManifestDiff:
    r"""Compare two versions of a manifest. Nothing is fetched.

    Args:
        first: The older version: a file, a folder of them, or a `Manifest`. ``/dev/null`` lists
            nothing.
        second: The newer one.
        cache: Where states are looked for, to say which of their tensors differ; as for
            `mlstate.ManifestStore`. So are the object mirrors of a manifest that are folders.
        folder: The folder of the manifests, which their relative paths begin at; by default each
            is where it is read from.

    Returns:
        What differs.

    Raises:
        ManifestError: One of them cannot be read.

    Example:
        >>> old = Manifest.parse(b"version = 1", "old.toml")
        >>> new = Manifest.parse(b'version = 1\n[states."pytorch.net.a"]\nsize = 4', "new.toml")
        >>> [str(state.key) for state in diff_manifests(old, new).added]
        ['pytorch.net.a']
    """
    one, other = _read(first), _read(second)
    mine, theirs = one.states, other.states
    renamed = _renamed(one, other)
    pairs = [(key, key) for key in mine if key in theirs]
    pairs += [(pair.first, pair.second) for pair in renamed]
    gone = {pair.first for pair in renamed}
    come = {pair.second for pair in renamed}
    changes = [(new, _entry_changes(mine[old], theirs[new])) for old, new in sorted(pairs)]
    return ManifestDiff(
        added=_listed(theirs, theirs.keys() - mine.keys() - come),
        dropped=_listed(mine, mine.keys() - theirs.keys() - gone),
        moved=_moved(one, other, cache, folder),
        renamed=renamed,
        changed=tuple(EntryChange(key, fields) for key, fields in sorted(changes) if fields),
        top=tuple(_changes("", plain_top(one), plain_top(other))),
    )


def _read(given: PathLike | Manifest) -> Manifest:
    if isinstance(given, Manifest):
        return given
    return Manifest({}) if os.fspath(given) == os.devnull else Manifest.read(given)


def _folders(manifests: tuple[Manifest, ...], folder: PathLike | None) -> Iterator[ObjectStore]:
    """The object mirrors on this machine, which have what was never fetched."""
    found: dict[Path, None] = {}
    for manifest in manifests:
        for entry in manifest.states.values():
            base = Path(entry.origin or ".").parent if folder is None else local_path(folder)
            found |= {base / each: None for each in entry.objects if "://" not in each}
    yield from (FolderObjectStore(path.absolute()) for path in found if path.is_dir())


def _listed(states: Mapping[StateKey, StateEntry], keys: set[StateKey]) -> tuple[ListedState, ...]:
    return tuple(ListedState(key, states[key].digest, states[key].size) for key in sorted(keys))


def _renamed(one: Manifest, other: Manifest) -> tuple[RenamedState, ...]:
    """Pairs of keys with one digest; of several with the same, in their order."""
    free: dict[Digest, list[StateKey]] = {}
    for key in sorted(other.states.keys() - one.states.keys()):
        if (digest := other.states[key].digest) is not None:
            free.setdefault(digest, []).append(key)
    found = []
    for key in sorted(one.states.keys() - other.states.keys()):
        digest = one.states[key].digest
        if digest is not None and free.get(digest):
            found.append(RenamedState(key, free[digest].pop(0), digest))
    return tuple(found)


def _moved(
    one: Manifest, other: Manifest, cache: CacheLike | None, folder: PathLike | None
) -> tuple[MovedState, ...]:
    pairs = [
        (one.states[key], other.states[key]) for key in sorted(one.states) if key in other.states
    ]
    pairs = [(old, new) for old, new in pairs if old.digest != new.digest]
    if not pairs:
        return ()
    from mlstate.stores.cache import open_cache  # which imports all that fetches

    objects = ChainObjectStore([open_cache(cache), *_folders((one, other), folder)])
    return tuple(
        MovedState(old.key, old.digest, new.digest, _layers(old, new, objects))
        for old, new in pairs
    )


def _layers(old: StateEntry, new: StateEntry, objects: ObjectStore) -> StateDiff | None:
    if old.digest is None or new.digest is None:
        return None
    if objects.size(old.digest) is None or objects.size(new.digest) is None:
        return None
    try:
        states = read_state(old, objects), read_state(new, objects)
    except (MlstateError, OSError):  # damaged: `verify` says so
        return None
    return compare_states((old.digest, states[0]), (new.digest, states[1]))


def _entry_changes(old: StateEntry, new: StateEntry) -> tuple[FieldChange, ...]:
    """What differs but for the digest, and for the size that goes with it."""
    left_out = {"blake3"} if old.digest == new.digest else {"blake3", "size"}
    one, other = (
        {name: value for name, value in plain_state(entry).items() if name not in left_out}
        for entry in (old, new)
    )
    return tuple(_changes("", one, other))


def _changes(name: str, old: Any, new: Any) -> Iterator[FieldChange]:
    if exact(old) == exact(new):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for each in [*old, *(each for each in new if each not in old)]:
            yield from _changes(f"{name}.{each}" if name else each, old.get(each), new.get(each))
    elif isinstance(new, Mapping) and old is None:
        yield from _changes(name, {}, new)
    elif isinstance(old, Mapping) and new is None:
        yield from _changes(name, old, {})
    elif isinstance(old, list | None) and isinstance(new, list | None):
        yield from _items(name, old or [], new or [])
    else:
        yield FieldChange(name, old, new)


def _items(name: str, old: list[Any], new: list[Any]) -> Iterator[FieldChange]:
    """The items of a list that went and came; the lists themselves if only their order differs."""
    before, after = list(map(exact, old)), list(map(exact, new))
    gone = [item for item in old if exact(item) not in after]
    come = [item for item in new if exact(item) not in before]
    if not gone and not come:
        yield FieldChange(name, old, new)
    yield from (FieldChange(name, item, None) for item in gone)
    yield from (FieldChange(name, None, item) for item in come)

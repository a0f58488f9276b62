"""What lies on the disk of a store, or in its bucket: every file, counted once, by what it is."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.format import layout
from mlstate.index import Index, is_index_folder, number_of
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.cache import folders_of, read_roots
from mlstate.objects.plain_folders import PLACE, is_folder_name
from mlstate.operations.object_forms import ObjectForms
from mlstate.operations.usage_counter import Counter
from mlstate.operations.usage_report import DiskUsage
from mlstate.settings import STATISTICS
from mlstate.states import StateKey
from mlstate.stores.known import KnownStates
from mlstate.stores.read import StateStore
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["disk_usage", "objects_of_others"]

_FOLDERS = (
    layout.OBJECTS,
    layout.ENCODED,
    layout.STATES,
    layout.ROOTS,
    layout.TRASH,
    layout.TEMPORARIES,
)
_ENCODED_STATES = f"{layout.ENCODED}/{layout.STATES}/"
_ROOT = re.compile(rf"{layout.ROOTS}/[0-9a-f]{{64}}")
_ANY = StateKey.parse("any.state.root")
"""A key for a state that is known by its digest alone."""
_BLOCK = 512  # bytes, by which a file system counts what a file takes


def disk_usage(
    store: StateStore, counted: Counter, others: Mapping[Path, set[int]]
) -> DiskUsage | None:
    """Measure what lies in the folder or bucket of a store, or in the cache of a view.

    Args:
        store: The store.
        counted: Its states, all of which were added.
        others: As `objects_of_others` gives it.

    Returns:
        What is there; None for a store that is in neither.
    """
    counter = _Counter(counted)
    if isinstance(store.own, BucketObjectStore):
        for name, size in _in_bucket(store.own):
            counter.add(name, size)
    elif store.place is not None:
        return None  # a release: nobody lists what is in the cache for it
    else:
        folders = _folders_of(store)
        if not folders:
            return None
        for folder in folders:
            counter.others = others[folder.root]
            for name, size in _in_folder(folder.root):
                counter.add(name, size)
    counter.sizes["own"] += counted.checkpoints
    return DiskUsage(sum(counter.sizes.values()), **counter.sizes)


def objects_of_others(store: StateStore, index: Index, forms: ObjectForms) -> dict[Path, set[int]]:
    """The objects of states that are not the store's, by number, in each folder that has its bytes.

    Args:
        store: The store.
        index: What state objects say.
        forms: What is encoded.
    """
    saved = store.own is None
    found = {f.root: _of_other_states(f, index, saved=saved) for f in _folders_of(store)}
    for others in found.values():
        bases = [number_of(base) for number in others for base, _ in forms.bases(number)]
        others.update(bases)
    return found


def _folders_of(store: StateStore) -> list[FolderObjectStore]:
    if store.place is not None:
        return []
    return list(folders_of(store.objects if store.own is None else store.own))


class _Counter:
    """Sums over files, each given by its path in the layout of stores."""

    def __init__(self, counted: Counter) -> None:
        self._counted = counted
        self._seen: set[bytes] = set()
        self._encoded: set[bytes] = set()
        self.others: set[int] = set()  # objects of states that are not the store's, by number
        self.sizes = dict.fromkeys(DiskUsage.parts(), 0)

    def add(self, name: str, size: int) -> None:
        """Count a file."""
        self.sizes[self._kind(name)] += size

    def _kind(self, name: str) -> str:
        folder = name.partition("/")[0]
        if folder == layout.TRASH:
            return "trash"
        if folder == layout.TEMPORARIES:
            return "unfinished"
        if folder == PLACE:
            return "folders" if is_folder_name(name.split("/")[1]) else "foreign"
        if folder == layout.ENCODED:
            digest = layout.digest_of_encoded_path(name)
            if digest is not None:
                return self._kind_of_object(digest, self._encoded)
            return "records" if name.startswith(_ENCODED_STATES) else "foreign"
        digest = layout.digest_of_object_path(name) if folder == layout.OBJECTS else None
        if digest is not None:
            return self._kind_of_object(digest, self._seen)
        plain = name.removesuffix(layout.SIGNATURE_SUFFIX)
        is_record = plain == layout.SETTINGS or _ROOT.fullmatch(name) or _is_derived(folder)
        return "records" if is_record or layout.key_of_state_path(plain) else "foreign"

    def _kind_of_object(self, digest: Digest, seen: set[bytes]) -> str:
        is_shared = self._counted.is_shared(digest)
        if is_shared is None:
            return "others" if number_of(digest) in self.others else "unnamed"
        if (short := bytes.fromhex(digest)) in seen:
            return "copies"
        seen.add(short)
        return "shared" if is_shared else "own"


def _of_other_states(folder: FolderObjectStore, index: Index, *, saved: bool) -> set[int]:
    """The objects of what a folder keeps as a cache, and of the states that were ``saved`` in it.

    Those of a store are its own, and were counted as such.
    """
    others: set[int] = set()
    entries = [StateEntry(_ANY, root.digest) for root in read_roots(folder.root)]
    for root in read_roots(folder.root):
        others.update(map(number_of, root.files))
    for entry in _saved_in(folder, index) if saved else ():
        entries.append(entry)
        others.update(number_of(file.digest) for file in entry.files.values())
    index.load(entry.digest for entry in entries if entry.digest is not None)
    for entry in entries:
        if entry.digest is None:
            continue
        others.add(number_of(entry.digest))
        with suppress(MlstateError):  # a cache need not be whole
            others.update(index.said(entry, folder).objects)
    return others


def _saved_in(folder: FolderObjectStore, index: Index) -> list[StateEntry]:
    """The entries of the states that were saved in a folder, as far as these can be read."""
    states = FolderStateFiles(folder.root)
    known = KnownStates(states, folder, index, None)
    found: list[StateEntry] = []
    for listing in states.listing():
        entry = known.entry(listing)
        if entry is None:
            with suppress(MlstateError, OSError):  # nobody knows what it needs
                entry = states.recorded(listing.key)
            known.learn(listing, entry)
        if entry is not None:
            found.append(entry)
    known.keep()
    return found


def _in_folder(root: Path) -> Iterator[tuple[str, int]]:
    """The files of a store's folder, each by its path in it, with its size in bytes."""
    for name in (layout.SETTINGS, layout.SETTINGS + layout.SIGNATURE_SUFFIX):
        with suppress(OSError):
            found = (root / name).lstat()
            if stat.S_ISREG(found.st_mode):
                yield name, found.st_size
    for name in (*_FOLDERS, PLACE, *_derived_folders(root)):
        if not (root / name).is_symlink():  # what a link names is elsewhere
            yield from _below(root, name)


def _is_derived(folder: str) -> bool:
    """Whether a folder of a cache has what was computed from states: an index, or statistics."""
    return is_index_folder(folder) or folder == STATISTICS


def _derived_folders(root: Path) -> list[str]:
    try:
        return [name for name in os.listdir(root) if _is_derived(name)]
    except OSError:  # it is not there, or closed
        return []


def _below(root: Path, folder: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(root / folder))
    except OSError:  # it is not there, no folder, or closed
        return
    for entry in entries:
        name = f"{folder}/{entry.name}"
        with suppress(OSError):  # it is gone
            if entry.is_dir(follow_symlinks=False):
                yield from _below(root, name)
            elif entry.is_file(follow_symlinks=False):
                yield name, _size(entry.stat(follow_symlinks=False), folder)


def _size(found: os.stat_result, folder: str) -> int:
    """The bytes of a file. One that is on its way is made as long as it will be, with holes."""
    if folder == layout.TEMPORARIES and hasattr(found, "st_blocks"):  # not so on Windows
        return min(found.st_size, found.st_blocks * _BLOCK)
    return found.st_size


def _in_bucket(objects: BucketObjectStore) -> Iterator[tuple[str, int]]:
    """The items of a store's prefix, by their names in it: 1,000 for each request."""
    place = objects.place
    settings = place.client.head(place.path(layout.SETTINGS))
    if settings is not None:
        yield layout.SETTINGS, settings.size
    for folder in _FOLDERS:
        for item in place.client.items(place.path(folder)):
            yield place.name(item.path), item.size

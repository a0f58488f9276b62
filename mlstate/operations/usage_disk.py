"""What lies on the disk of a store, or in its bucket: every file, counted once, by what it is."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.cache import folders_of, read_roots
from mlstate.objects.plain_folders import PLACE, is_folder_name
from mlstate.operations.usage_report import DiskUsage
from mlstate.stores.prune import objects_of_root, objects_of_states
from mlstate.stores.read import StateStore
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["disk_usage"]

_FOLDERS = (layout.OBJECTS, layout.STATES, layout.ROOTS, layout.TRASH, layout.TEMPORARIES)
_ROOT = re.compile(rf"{layout.ROOTS}/[0-9a-f]{{64}}")
_BLOCK = 512  # bytes, by which a file system counts what a file takes


def disk_usage(
    store: StateStore, sharing: Callable[[Digest], bool | None], checkpoints: int
) -> DiskUsage | None:
    """Measure what lies in the folder or bucket of a store, or in the cache of a view.

    Args:
        store: The store.
        sharing: Says of an object whether several of the store's states name it; None if none does.
        checkpoints: The bytes of states that are files of their own, of an older layout.

    Returns:
        What is there; None for a store that is in neither.
    """
    counter = _Counter(sharing)
    if isinstance(store.own, BucketObjectStore):
        for name, size in _in_bucket(store.own):
            counter.add(name, size)
    elif store.place is not None:
        return None  # a release: nobody lists what is in the cache for it
    else:
        folders = folders_of(store.objects if store.own is None else store.own)
        if not folders:
            return None
        for folder in folders:
            counter.others = _of_other_states(folder, saved=store.own is None)
            for name, size in _in_folder(folder.root):
                counter.add(name, size)
    counter.sizes["own"] += checkpoints
    return DiskUsage(sum(counter.sizes.values()), **counter.sizes)


class _Counter:
    """Sums over files, each given by its path in the layout of stores."""

    def __init__(self, sharing: Callable[[Digest], bool | None]) -> None:
        self._sharing = sharing
        self._seen: set[bytes] = set()
        self.others: set[Digest] = set()  # objects of states that are not the store's
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
        digest = layout.digest_of_object_path(name) if folder == layout.OBJECTS else None
        if digest is not None:
            return self._kind_of_object(digest)
        plain = name.removesuffix(layout.SIGNATURE_SUFFIX)
        is_record = plain == layout.SETTINGS or _ROOT.fullmatch(name)
        return "records" if is_record or layout.key_of_state_path(plain) else "foreign"

    def _kind_of_object(self, digest: Digest) -> str:
        is_shared = self._sharing(digest)
        if is_shared is None:
            return "others" if digest in self.others else "unnamed"
        if (short := bytes.fromhex(digest)) in self._seen:
            return "copies"
        self._seen.add(short)
        return "shared" if is_shared else "own"


def _of_other_states(folder: FolderObjectStore, *, saved: bool) -> set[Digest]:
    """The objects of what a folder keeps as a cache, and of the states that were ``saved`` in it.

    Those of a store are its own, and were counted as such.
    """
    others = set().union(*(objects_of_root(root, folder) for root in read_roots(folder.root)))
    if saved:
        others.update(*objects_of_states(FolderStateFiles(folder.root), folder).values())
    return others


def _in_folder(root: Path) -> Iterator[tuple[str, int]]:
    """The files of a store's folder, each by its path in it, with its size in bytes."""
    for name in (layout.SETTINGS, layout.SETTINGS + layout.SIGNATURE_SUFFIX):
        with suppress(OSError):
            found = (root / name).lstat()
            if stat.S_ISREG(found.st_mode):
                yield name, found.st_size
    for name in (*_FOLDERS, PLACE):
        if not (root / name).is_symlink():  # what a link names is elsewhere
            yield from _below(root, name)


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
    if folder == layout.TEMPORARIES:
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

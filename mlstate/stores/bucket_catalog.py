"""State files in a bucket, and checkpoints of MLModule.

A state file is created by one request on the condition that there is none, and replaced by one on
the condition that the old one, which is in trash/ by then, is unchanged. Some servers ignore
conditions; see `BucketPlace.honours_conditions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mlstate.buckets.values import Item
from mlstate.errors import FormatError, ManifestError
from mlstate.fetch import Fetcher
from mlstate.format import layout
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.objects.prefix import BucketPlace
from mlstate.parallel import ProcessLock
from mlstate.signatures.sshsig import MAX_SIGNATURE
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing, TrashedState
from mlstate.stores.checkpoints import SUFFIX, Checkpoints, key_of_checkpoint
from mlstate.stores.remote_entries import from_elsewhere
from mlstate.stores.statefiles import StateFiles, find_case_variant

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateSignatures

__all__ = ["BucketCheckpoints", "BucketStateFiles"]

_OURS = frozenset(
    {
        *(layout.OBJECTS, layout.ENCODED, layout.STATES),
        *(layout.TEMPORARIES, layout.TRASH, layout.ROOTS),
    }
)


class BucketStateFiles(StateFiles):
    """State files below a prefix of a bucket; see `StateFiles`."""

    remote = True

    def __init__(
        self,
        place: BucketPlace,
        signatures: StateSignatures | None = None,
        service: str | None = None,
    ) -> None:
        self.place = place
        self.signatures = signatures
        self._service = service
        self._lock = ProcessLock()

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are here, from the paths alone; of one type, only its own are listed."""
        if not self.place.check():
            return []
        folder = layout.STATES if state_type is None else layout.state_folder(state_type)
        return sorted(listing.key for listing in self._list(folder))

    def listing(self) -> Iterator[Listing]:
        """All keys, each with when it was written, by the server's clock."""
        if self.place.check():
            yield from self._list(layout.STATES)

    def indexed_as(self) -> str | None:
        """The address of the store, and its service; None with signatures."""
        return self._served(self.place.address) if self.signatures is None else None

    def placed(self, entry: StateEntry) -> StateEntry:
        """An entry with the bucket as its first object mirror."""
        entry = from_elsewhere(entry, self.place.address)
        return replace(entry, objects=(self.place.address, *entry.objects))

    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""
        found = self._read(key) if self.place.check() else None
        return None if found is None else found[0]

    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file that is not there yet; see `StateFiles.create`."""
        self.place.prepare()
        path = self.place.path(layout.state_path(key))
        if self.place.honours_conditions():
            return self.place.uploads.create(path, data)
        with self._lock:  # the best that can be done: it is right within this process
            if self._read(key) is not None:
                return False
            self.place.uploads.put(path, data)
            found = self._read(key)
        return found is not None and found[0] == data

    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there; what was there is kept in trash/."""
        self.place.prepare()
        path = self.place.path(layout.state_path(key))
        while True:
            old = self._old(key)
            if old is None:
                if self.place.uploads.create(path, data):
                    return
                continue
            content, etag = old
            if content is not None:
                self._keep_in_trash(key, content)
            if etag is None:
                self.place.uploads.put(path, data)
                return
            if self.place.uploads.replace(path, data, etag):
                return

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Write a state file over exactly this content; see `StateFiles.change`."""
        self.place.prepare()
        path = self.place.path(layout.state_path(key))
        with self._lock:  # for servers that ignore conditions
            found = self._read(key)
            if found is None or found[0] != old:
                return False
            if found[1] is not None:
                return self.place.uploads.replace(path, new, found[1])
            self.place.uploads.put(path, new)
            return True

    def read_beside(self, key: StateKey) -> bytes | None:
        """The content of a signature file beside a state file; see `StateFiles.read_beside`."""
        path = self.place.path(f"{layout.state_path(key)}{layout.SIGNATURE_SUFFIX}")
        found = self.place.client.read_small(path, MAX_SIGNATURE)
        return None if found is None else found[0]

    def remove(self, key: StateKey) -> bool:
        """Move a state file to trash/, so that what it names lives on for the grace period."""
        found = self._read(key) if self.place.check() else None
        if found is None:
            return False
        self._keep_in_trash(key, found[0])
        self.place.client.delete(self.place.path(layout.state_path(key)))
        return True

    def trashed(self) -> Iterator[TrashedState]:
        """The state files in trash/."""
        if not self.place.check():
            return
        for item in self.place.client.items(self.place.path(layout.TRASH)):
            if key := layout.key_of_trashed_state(item.path.rpartition("/")[2]):
                name = self.place.name(item.path)
                read = partial(self._read_trashed, name)
                yield TrashedState(key, item.modified, self.place.locate(name), read)

    def _read_trashed(self, name: str) -> bytes | None:
        found = self.place.read(name, ManifestError)
        return None if found is None else found[0]

    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs in case only: a copy on a disk may not tell them apart."""
        if not self.place.check():
            return None
        return find_case_variant(key, self._names)

    def locate(self, key: StateKey) -> str:
        """The address of the state file."""
        return self.place.locate(layout.state_path(key))

    def identity(self, key: StateKey) -> str:
        """The address of the state file, and the service that has it if that is not AWS."""
        return self._served(self.locate(key))

    def _served(self, address: str) -> str:
        return " at ".join(filter(None, [address, self._service]))

    def _list(self, folder: str) -> Iterator[Listing]:
        for item in self.place.client.items(self.place.path(folder)):
            if key := layout.key_of_state_path(self.place.name(item.path)):
                version = f"{item.etag} {item.size} {item.modified}" if item.etag else None
                yield Listing(key, item.modified, version=version)

    def _names(self, folder: str) -> list[str]:
        folders, items = self.place.client.children(self.place.path(folder))
        return [*folders, *(item.path.rpartition("/")[2] for item in items)]

    def _read(self, key: StateKey) -> tuple[bytes, str | None] | None:
        return self.place.read(layout.state_path(key), ManifestError)

    def _old(self, key: StateKey) -> tuple[bytes | None, str | None] | None:
        """The state file and its ETag; without both where the item is too large for one."""
        try:
            return self._read(key)
        except ManifestError:
            return None, None

    def _keep_in_trash(self, key: StateKey, data: bytes) -> None:
        """What the state file names lives on for the grace period: a load may be under way."""
        self.place.uploads.put(
            self.place.path(f"{layout.TRASH}/{layout.trashed_state_name(key)}"), data
        )


class BucketCheckpoints(Checkpoints):
    """Checkpoints of MLModule below a prefix; the fetcher brings them into the cache."""

    remedy = "remove it from the bucket"

    def __init__(self, place: BucketPlace, fetcher: Fetcher) -> None:
        self.place = place
        self._fetcher = fetcher
        self._pinned: dict[tuple[StateKey, str | None], StateEntry] = {}

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are compatible with a type, or all; other items are passed over."""
        if state_type is None:
            found = self._all()
        else:
            found = self._named(state_type.backend, f"{state_type.architecture}.")
        return sorted(key for key, _ in found)

    def listing(self) -> Iterator[Listing]:
        """All of them, with their sizes and times."""
        return (Listing(key, item.modified, item.size) for key, item in self._all())

    def exists(self, key: StateKey) -> bool:
        """Whether there is a checkpoint for a key."""
        return self._item(key) is not None

    def checkpoint(self, key: StateKey) -> Found | None:
        """A checkpoint as a state, downloaded into the cache once for each store object."""
        item = self._item(key)
        if item is None:
            return None
        known = (key, item.etag)
        if known not in self._pinned:
            url = self.locate(key)
            mirror = parse_mirror({"url": url, "format": "torch"})
            entry = StateEntry(key, None, mirrors=(mirror,), origin=url)
            self._pinned[known] = self._fetcher.pin(entry)
        return Found(self._pinned[known], self._fetcher.cache)

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint, or None without one; a FormatError if it is too large."""
        most = self._fetcher.max_size
        found = self.place.client.read_small(self._path(key), most)
        if found is not None and len(found[0]) > most:
            raise FormatError("this checkpoint is too large", path=self.locate(key), expected=most)
        return None if found is None else found[0]

    def locate(self, key: StateKey) -> str:
        """The address of the checkpoint of a key, whether it is there or not."""
        return self.place.client.locate(self._path(key))

    def _item(self, key: StateKey) -> Item | None:
        return self.place.client.head(self._path(key))

    def _path(self, key: StateKey) -> str:
        backend, _, rest = str(key).partition(".")
        return self.place.path(f"{backend}/{rest}{SUFFIX}")

    def _all(self) -> Iterator[tuple[StateKey, Item]]:
        folders, _ = self.place.client.children(self.place.base)
        for backend in folders:
            if backend not in _OURS:
                yield from self._named(backend, "")

    def _named(self, backend: str, begin: str) -> Iterator[tuple[StateKey, Item]]:
        """Checkpoints of a backend whose names begin so; buckets list in the order of names."""
        folder = self.place.path(backend)
        after = f"{folder}/{begin}" if begin else None
        for item in self.place.client.items(folder, after):
            name = item.path.removeprefix(f"{folder}/")
            if not name.startswith(begin):
                return
            if "/" not in name and (key := key_of_checkpoint(f"{backend}.{name}")):
                yield key, item

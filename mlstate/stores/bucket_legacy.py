"""The predecessor's prefixes, ``backend/architecture.extra.training_id.pt``: read only."""

from __future__ import annotations

from collections.abc import Iterator

from mlstate.buckets.values import Item
from mlstate.errors import FormatError
from mlstate.fetch import Fetcher
from mlstate.format import layout
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.objects.prefix import BucketPlace
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing

__all__ = ["LegacyPrefix"]

_SUFFIX = ".pt"
_OURS = frozenset({layout.OBJECTS, layout.STATES, layout.TEMPORARIES, layout.TRASH, layout.ROOTS})


class LegacyPrefix:
    """Checkpoints of the predecessor below a prefix of a bucket.

    Args:
        place: The prefix.
        fetcher: Brings a checkpoint into the cache.
    """

    remedy = "remove it from the bucket"

    def __init__(self, place: BucketPlace, fetcher: Fetcher) -> None:
        self.place = place
        self._fetcher = fetcher
        self._pinned: dict[tuple[StateKey, str | None], StateEntry] = {}

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are compatible with a type, or all; other things are none of ours."""
        if state_type is None:
            found = self._all()
        else:
            found = self._named(state_type.backend, f"{state_type.architecture}.")
        return (key for key, _ in found)

    def listing(self) -> Iterator[Listing]:
        """All of them, with their sizes and times."""
        return (Listing(key, item.modified, item.size) for key, item in self._all())

    def exists(self, key: StateKey) -> bool:
        """Whether there is a checkpoint for a key."""
        return self._item(key) is not None

    def find(self, key: StateKey) -> Found | None:
        """A checkpoint as a state, in the cache; None without one.

        It is downloaded and unpickled as plain tensors only, once for each store object.
        """
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

    def read(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint, or None without one.

        Raises:
            FormatError: It is larger than what may be fetched.
        """
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
        return self.place.path(f"{backend}/{rest}{_SUFFIX}")

    def _all(self) -> Iterator[tuple[StateKey, Item]]:
        folders, _ = self.place.client.children(self.place.base)
        for backend in folders:
            if backend not in _OURS:
                yield from self._named(backend, "")

    def _named(self, backend: str, begin: str) -> Iterator[tuple[StateKey, Item]]:
        """Those of a backend whose names begin so: buckets list by name, and can begin anywhere."""
        folder = self.place.path(backend)
        after = f"{folder}/{begin}" if begin else None
        for item in self.place.client.items(folder, after):
            name = item.path.removeprefix(f"{folder}/")
            if not name.startswith(begin):
                return
            if "/" not in name and name.endswith(_SUFFIX):
                try:
                    key = StateKey.parse(f"{backend}.{name.removesuffix(_SUFFIX)}")
                except FormatError:
                    continue
                yield key, item

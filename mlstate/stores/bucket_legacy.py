"""The predecessor's prefixes, ``backend/architecture.extra.training_id.pt``: read only."""

from __future__ import annotations

from collections.abc import Iterator

from mlstate.buckets.values import Item
from mlstate.errors import FormatError
from mlstate.format import layout
from mlstate.objects.prefix import BucketPlace
from mlstate.states import StateKey, StateType
from mlstate.stores.read import Listing

__all__ = ["LegacyPrefix"]

_SUFFIX = ".pt"
_OURS = frozenset({layout.OBJECTS, layout.STATES, layout.TEMPORARIES, layout.TRASH, layout.ROOTS})


class LegacyPrefix:
    """Checkpoints of the predecessor below a prefix of a bucket.

    Args:
        place: The prefix.
    """

    remedy = "remove it from the bucket"

    def __init__(self, place: BucketPlace) -> None:
        self.place = place

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
        return self.item(key) is not None

    def item(self, key: StateKey) -> Item | None:
        """The checkpoint of a key, or None if there is none."""
        return self.place.client.head(self._path(key))

    def read(self, key: StateKey, most: int) -> bytes | None:
        """The bytes of the checkpoint of a key, or None if there is none.

        Raises:
            FormatError: It has more than so many bytes.
        """
        found = self.place.client.read_small(self._path(key), most)
        if found is not None and len(found[0]) > most:
            raise FormatError("this checkpoint is too large", path=self.locate(key), expected=most)
        return None if found is None else found[0]

    def locate(self, key: StateKey) -> str:
        """The address of the checkpoint of a key, whether it is there or not."""
        return self.place.client.locate(self._path(key))

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

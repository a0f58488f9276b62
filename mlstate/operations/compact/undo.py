"""The undoing of a compaction: encoded objects become plain ones, and their encoded forms go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, MlstateError
from mlstate.fetch.progress import Meter
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import object_size
from mlstate.objects.interface import EncodingObjectStore
from mlstate.objects.verified import digest_of
from mlstate.operations.compact.run import make_plain, write_plain
from mlstate.parallel import for_each
from mlstate.reading import read_state
from mlstate.stores.read import StateStore

__all__ = ["Undoing", "refs_in_trash"]


class Undoing:
    """One undoing.

    Args:
        objects: The store.
        threads: How many objects are decoded at once.
        meter: Is told of each object that is done.

    Attributes:
        sizes: What is plain again, with the sizes that the encoded forms had in bytes.
        unread: What could not be decoded, with the error; its encoded form stays.
    """

    def __init__(self, objects: EncodingObjectStore, threads: int, meter: Meter) -> None:
        self._objects = objects
        self._threads = threads
        self._meter = meter
        self._lock = Lock()
        self.sizes: dict[Digest, int] = {}
        self.unread: dict[Digest, MlstateError] = {}

    def undo(self, refs: Mapping[Digest, TensorRef]) -> None:
        """Write each object plainly, drop its encoded form, and look again.

        Another process may have retired the plain object before the encoded form went: then it
        comes back.

        Raises:
            OSError: The disk is full, or cannot be written. What was done before stays done.
        """

        def undo(ref: TensorRef) -> None:
            try:
                size = self._objects.encoded_size(ref.digest)
                self._restore(ref)
                while self._dropped(ref.digest) and not self._is_plain(ref.digest):
                    make_plain(self._objects, ref)
            except (IntegrityError, FormatError) as error:
                with self._lock:
                    self.unread[ref.digest] = error
            else:
                self.sizes[ref.digest] = size or 0
            self._meter.add(object_size(ref.spec))

        for_each(undo, refs.values(), self._threads)

    def _restore(self, ref: TensorRef) -> None:
        """Have an object in plain form, decoded; one in the trash helps if that cannot be done."""
        if self._is_plain(ref.digest):
            return
        try:
            write_plain(self._objects, ref)
        except IntegrityError:
            make_plain(self._objects, ref)
            if digest_of(self._objects, ref.digest) != ref.digest:
                self._objects.retire_plain(ref.digest)
                raise

    def _dropped(self, digest: Digest) -> bool:
        """Drop an encoded form; False if it is needed again, or gone."""
        try:
            return self._objects.drop_encoded(digest)
        except FormatError:  # another process has retired the plain object meanwhile
            return False

    def _is_plain(self, digest: Digest) -> bool:
        return self._objects.plain_size(digest) is not None

    def release(self) -> int:
        """Require no readers that know encoded objects, if none is needed.

        What is encoded only and named by no state is needed, too: a save may use it again.

        Returns:
            How many objects are in encoded form only.
        """
        if left := self._encoded_only():
            return left
        self._objects.say_plain()
        if left := self._encoded_only():  # another process has encoded something since
            self._objects.say_encoded()
        return left

    def _encoded_only(self) -> int:
        return sum(not self._is_plain(digest) for digest in self._objects.encoded_digests())


def refs_in_trash(store: StateStore, objects: EncodingObjectStore) -> Iterable[TensorRef]:
    """The tensor objects of states that were deleted, and can be restored yet."""
    for state in store.catalog.trashed() or ():
        with suppress(MlstateError, OSError):  # it is deleted, and need not be whole
            data = state.read()
            if data is not None:
                entry = store.catalog.trashed_entry(state, data)
                yield from read_state(entry, objects).refs.values()

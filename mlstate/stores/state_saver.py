"""Saving states: objects first, then the state object, then the state file, in this order.

So a crash at any point leaves the complete state or none, and at most objects that nothing names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mlstate.digests import Bytes, Digest
from mlstate.errors import (
    ManifestError,
    concerning,
)
from mlstate.format import tensor_object
from mlstate.format.encode import (
    EncodedState,
    TensorSource,
    check_sources,
    encode_state,
)
from mlstate.manifests import StateEntry
from mlstate.objects import WritableObjectStore
from mlstate.objects.saving import ObjectSaver, absent
from mlstate.parallel import THREADS, for_each
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.stores.catalog import Catalog
from mlstate.stores.save_request import (
    Content,
    SaveRequest,
    case_variant_exists,
    content_of,
    is_same,
    other_exists,
    warn_of_meta,
)
from mlstate.stores.statefiles import StateFiles, format_state_file

if TYPE_CHECKING:
    pass

__all__ = ["StateSaver"]

_LARGE = 1 << 24


class StateSaver:
    """Saves into state files, and an object store beside them; see `Saver`.

    Args:
        files: The state files.
        objects: Where objects go.
        catalog: The store's catalog, which may know states that have no state file.
        threads: How many objects are looked at, hashed and written at once.
    """

    def __init__(
        self,
        files: StateFiles,
        objects: WritableObjectStore,
        catalog: Catalog,
        threads: int = THREADS,
    ) -> None:
        self.files = files
        self.objects = objects
        self.threads = threads
        self._catalog = catalog

    def is_taken(self, key: StateKey) -> bool:
        """Whether the key is taken; see `Saver.is_taken`."""
        return self._catalog.exists(key) or self.files.case_variant(key) is not None

    def delete(self, key: StateKey) -> bool:
        """Remove a state file; see `Saver.delete`. The objects stay until pruning takes them."""
        return self.files.remove(key)

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        """Save a state, each object hashed and written in one pass; see `Saver.save`."""
        with concerning(key):
            # Before anything is written: meta that TOML cannot hold is refused here.
            wanted = request.entry(key)
            check_sources(sources)
            existing = self._existing(key, overwrite=request.overwrite)
            if existing is not None:
                encoded = encode_state(sources)
                if self._is_settled(existing, encoded, wanted, request):
                    if request.other_meta(existing.entry, wanted):
                        warn_of_meta(key)
                    return
            act = self._act(verify=request.verify)
            with act.settled():
                encoded = encode_state(sources, threads=self.threads, store=act.store)
                for name, entry in wanted.files.items():
                    act.take(entry.digest, [content_of(request.files[name])])
            with act.settled():
                act.take(encoded.digest, [encoded.data])
                self._complete(act, encoded, wanted, request)

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        """Save a state of another store; see `Saver.receive`."""
        key = wanted.key
        with concerning(key):
            existing = self._existing(key, overwrite=request.overwrite)
            if existing is not None and self._is_settled(existing, encoded, wanted, request):
                if request.other_meta(existing.entry, wanted):
                    warn_of_meta(key)
                return False
            act = self._act(verify=request.verify)
            self._put_all(act, encoded, wanted, request)
            self._complete(act, encoded, wanted, request)
        return True

    def stored(self, key: StateKey) -> tuple[StateEntry | None, bool]:
        """The entry of what has the key, and whether it was saved: else it is a checkpoint.

        Raises:
            ManifestError: The state file cannot be read.
        """
        entry = self._catalog.recorded(key)
        if entry is not None:
            return entry, True
        found = self._catalog.checkpoint(key)
        return (None if found is None else found.entry), False

    def _existing(self, key: StateKey, *, overwrite: bool) -> _Existing | None:
        try:
            entry, is_saved = self.stored(key)
        except ManifestError as error:
            if not overwrite:
                error.remedy = "save with " + OVERWRITE + " to replace it"
                raise
            entry, is_saved = None, False  # what cannot be read is replaced
        if entry is None:
            if variant := self.files.case_variant(key):
                raise case_variant_exists(variant)
            return None
        return _Existing(entry, is_saved)

    def _is_settled(
        self, existing: _Existing, encoded: EncodedState, wanted: StateEntry, request: SaveRequest
    ) -> bool:
        """Whether the state is there and stays as it is; then what is missing of it is mended.

        Raises:
            StateExistsError: Another is there.
        """
        other_meta = request.other_meta(existing.entry, wanted)
        renew = request.overwrite and (other_meta or not existing.is_saved)
        if is_same(existing.entry, encoded.digest, wanted) and not renew:
            if existing.is_saved:
                self._keep(encoded, wanted, request)
            return True
        if not request.overwrite:
            raise other_exists(existing.entry, encoded.digest, wanted)
        return False

    def _keep(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> None:
        """The same weights and files again: mend what is missing of them."""
        if absent(self.objects, _sizes(encoded, wanted), self.threads) or request.verify:
            act = self._act(verify=request.verify)
            self._put_all(act, encoded, wanted, request)

    def _complete(
        self, act: ObjectSaver, encoded: EncodedState, wanted: StateEntry, request: SaveRequest
    ) -> None:
        """All objects were taken: publish the state."""
        act.flush()
        self._publish(replace(wanted, digest=encoded.digest, size=encoded.state.nbytes), request)
        # Pruning may have taken a reused object before the state file named it: put it again.
        if act.lost():
            again = self._act(verify=False)
            self._put_all(again, encoded, wanted, request)
        if request.reused is not None:
            tensors = encoded.sources.items()
            request.reused.update({d: s.spec.nbytes for d, s in tensors if d in act.reused})

    def _publish(self, entry: StateEntry, request: SaveRequest) -> None:
        data = format_state_file(entry)
        if request.overwrite:
            self.files.replace(entry.key, data)
            return
        while not self.files.create(entry.key, data):
            winner = self._catalog.recorded(entry.key)
            if winner is None:
                continue  # it was deleted since: the key is free again
            if not is_same(winner, entry.pinned_digest, entry):
                raise other_exists(winner, entry.pinned_digest, entry)
            return

    def _act(self, *, verify: bool) -> ObjectSaver:
        return ObjectSaver(self.objects, verify=verify, threads=self.threads)

    def _put_all(
        self, act: ObjectSaver, encoded: EncodedState, wanted: StateEntry, request: SaveRequest
    ) -> None:
        """Put what is not there, the state object last, and make it durable."""
        sizes = encoded.sizes()
        if request.source is not None:
            needed = _sizes(encoded, wanted)
            request.source.bring(lambda: absent(self.objects, needed, self.threads))

        def put(digest: Digest) -> None:
            act.take_if_needed(digest, sizes[digest], partial(_parts, encoded.sources[digest]))
            if request.source is not None:
                request.source.passed(digest, sizes[digest])

        # Few large ones at once: a store may have to hold all of one in memory.
        with act.settled():
            for large, threads in ((True, min(THREADS, self.threads)), (False, self.threads)):
                chosen = [digest for digest in encoded.sources if (sizes[digest] > _LARGE) is large]
                for_each(put, sorted(chosen, key=lambda digest: -sizes[digest]), threads)
            for name, file in wanted.files.items():
                act.take_if_needed(file.digest, None, partial(_content_parts, request.files, name))
        with act.settled():
            act.take(encoded.digest, [encoded.data])
            act.flush()


@dataclass(frozen=True)
class _Existing:
    """What has the key already: its entry, and whether it was saved here or is a checkpoint."""

    entry: StateEntry
    is_saved: bool


def _sizes(encoded: EncodedState, wanted: StateEntry) -> dict[Digest, int | None]:
    """All objects of a state; the size of a file is not known without its bytes."""
    sizes: dict[Digest, int | None] = {file.digest: None for file in wanted.files.values()}
    sizes.update(encoded.sizes())
    return sizes


@contextmanager
def _parts(source: TensorSource) -> Iterator[list[Bytes]]:
    with source.data() as data:
        yield [tensor_object.header(source.spec), data]


@contextmanager
def _content_parts(files: Mapping[str, Content], name: str) -> Iterator[list[Bytes]]:
    yield [content_of(files[name])]

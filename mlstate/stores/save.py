"""Saving states: objects first, then the state object, then the state file, in this order.

So a crash at any point leaves the complete state or none, and at most objects that nothing names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mlstate.digests import Bytes, Digest
from mlstate.errors import (
    IncompatibleStateError,
    ManifestError,
    StateNotFoundError,
    concerning,
)
from mlstate.format import tensor_object
from mlstate.format.encode import (
    EncodedState,
    TensorSource,
    bytes_source,
    check_sources,
    encode_state,
)
from mlstate.manifests import StateEntry
from mlstate.models import BytesModel, TensorModel, state_type_of
from mlstate.objects import ObjectStore, WritableObjectStore
from mlstate.objects.saving import ObjectSaver, absent
from mlstate.parallel import THREADS, for_each
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey, check_key
from mlstate.stores.catalog import Catalog
from mlstate.stores.read import StateStore
from mlstate.stores.request import (
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
    from mlstate.fetch import Fetcher

__all__ = ["Saver", "SavingStore", "StateSaver"]

_LARGE = 1 << 24


class Saver(Protocol):
    """The part of a store that saves and deletes states."""

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        """Save the tensors that these sources give under a key."""

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        """Save a state whose digests are known already. Its bytes are verified on the way.

        Args:
            encoded: The state.
            wanted: What is to be said of it, without digest and size.
            request: As for `save`.

        Returns:
            False if it was there.
        """

    def is_taken(self, key: StateKey) -> bool:
        """Whether there is a state of this key, or of one that differs in case only."""

    def delete(self, key: StateKey) -> bool:
        """Remove a state.

        Returns:
            False if there was none.
        """


class SavingStore(StateStore):
    """A store that saves, too.

    Args:
        catalog: As for `StateStore`.
        objects: As for `StateStore`.
        saver: Saves and deletes.
        fetcher: As for `StateStore`.
    """

    def __init__(
        self,
        catalog: Catalog,
        objects: ObjectStore,
        saver: Saver,
        fetcher: Fetcher | None = None,
    ) -> None:
        super().__init__(catalog, objects, fetcher)
        self.saver = saver

    def save(
        self,
        model: Any,
        training_id: str,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
    ) -> StateKey:
        """Save a model's state under its ``state_type`` and a training id.

        What the store has already is not written again, whichever state it came with. Saving the
        same weights and files again changes nothing.

        Args:
            model: A ``torch.nn.Module`` with a ``state_type``, or another model.
            training_id: What made this state, for instance ``"2022-01-01-finetuned-imagenet"``.
            files: Files to keep with it: name -> bytes, or the path of a file.
            meta: Free information: licence, description, metrics. Of an unchanged state the
                stored one stays, and a warning says so.
            overwrite: Replace another state that has this key.
            verify: Read objects that are reused, and write those that are damaged again.

        Returns:
            The key that it is stored under.

        Raises:
            StateExistsError: Other weights or files have this key; nothing was written.
            FormatError: An entry of the state dict cannot be stored; nothing was written.
            IncompatibleStateError: The model has no state type.
        """
        key = StateKey(state_type_of(model), training_id)
        with concerning(key):
            sources = _sources_of(model)
        self.saver.save(key, sources, SaveRequest(files or {}, meta, overwrite, verify))
        return key

    def save_state_dict(
        self,
        state_dict: Mapping[str, Any],
        key: StateKey,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
    ) -> StateKey:
        """Save tensors without a model: merged or averaged weights, an adapter, a checkpoint.

        Args:
            state_dict: Name -> tensor.
            key: The key to store it under.
            files: As for `save`.
            meta: As for `save`.
            overwrite: As for `save`.
            verify: As for `save`.

        Returns:
            The key.

        Raises:
            StateExistsError: Other weights or files have this key; nothing was written.
            FormatError: An entry cannot be stored; nothing was written.
        """
        from mlstate.tensors import tensor_sources

        check_key(key)
        with concerning(key):
            sources = tensor_sources(state_dict)
        self.saver.save(key, sources, SaveRequest(files or {}, meta, overwrite, verify))
        return key

    def delete(self, key: StateKey) -> None:
        """Remove a state. Of a folder or a bucket its objects go with the prunings after it.

        Raises:
            StateNotFoundError: There is no such state.
            ReadOnlyStoreError: A checkpoint of the predecessor has this key: it is not deleted, and
                would take the place of a newer state that was. Or a release is immutable.
            BucketError: The store is in a bucket, which cannot be asked.
            AccessError: The token is missing, wrong, or may not write.
        """
        check_key(key)
        if error := self.catalog.undeletable(key):
            raise error
        if not self.saver.delete(key):
            self.get(key)  # says what is there instead
            raise StateNotFoundError("another process deleted this state first", key=key)


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


def _sources_of(model: Any) -> list[TensorSource]:
    if isinstance(model, TensorModel):
        from mlstate.tensors import tensor_sources

        return tensor_sources(model.state_dict())
    if isinstance(model, BytesModel):
        return [bytes_source(model.get_state())]
    raise IncompatibleStateError(
        f"this {type(model).__name__} has no state to save",
        expected="state_dict() and load_state_dict(), or get_state() and set_state()",
    )


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

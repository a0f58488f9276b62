"""Saving states: objects first, then the state object, then the state file, in this order.

So a crash at any point leaves the complete state or none, and at most objects that nothing names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from mlstate.digests import Bytes, Digest
from mlstate.errors import ManifestError, StateNotFoundError, concerning
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, TensorSource, check_sources, encode_state
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore, WritableObjectStore
from mlstate.objects.saving import SaveAct, absent
from mlstate.parallel import THREADS, for_each
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import check_key, check_state_type
from mlstate.stores.read import Found, Listing, StateView
from mlstate.stores.request import (
    FROM_COPY,
    Content,
    Saves,
    Wish,
    case_variant_exists,
    content_of,
    is_same,
    other_exists,
    warn_of_meta,
)
from mlstate.stores.statefiles import StateFiles, format_state_file, parse_state_file

__all__ = ["Content", "SavingStore"]

_LARGE = 1 << 24


class SavingStore(Saves, StateView):
    """A store of one's own: state files, and objects beside them.

    Args:
        states: The state files.
        target: Where objects are saved to; states are read from `objects`, which is the same,
            unless a subclass reads by way of a cache.
    """

    threads = THREADS
    """How many objects are looked at, hashed and written at once."""

    def __init__(self, states: StateFiles, target: WritableObjectStore) -> None:
        self.states = states
        self.target = target
        self.objects: ObjectStore = target

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields."""
        if state_type is not None:
            check_state_type(state_type)
        return list(self.states.keys(state_type))

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        check_key(state_key)
        return self.states.read(state_key) is not None

    def listing(self) -> Iterator[Listing]:
        """All states with what listing them tells, in no order."""
        return (Listing(key, modified) for key, modified in self.states.dated())

    def recorded(self, key: StateKey) -> StateEntry | None:
        """What the state file says; see `StateView.recorded`."""
        data = self.states.read(key)
        return None if data is None else parse_state_file(data, key, self.states.locate(key))

    def find(self, key: StateKey) -> Found | None:
        """Find a state; see `StateView.find`."""
        entry = SavingStore.recorded(self, key)
        return None if entry is None else Found(entry, self.objects)

    def delete(self, key: StateKey) -> None:
        """Remove a state. Its objects stay until pruning finds them unused.

        Raises:
            StateNotFoundError: There is no such state.
        """
        check_key(key)
        if not self.states.remove(key):
            self.get(key)  # says what is there instead
            raise StateNotFoundError("another process deleted this state first", key=key)

    def _save(self, key: StateKey, sources: list[TensorSource], wish: Wish) -> StateKey:
        with concerning(key):
            # Before anything is written: meta that TOML cannot hold is refused here.
            wanted = wish.entry(key)
            check_sources(sources)
            existing = self._existing(key, overwrite=wish.overwrite)
            if existing is not None:
                encoded = encode_state(sources)
                if self._is_settled(existing, encoded, wanted, wish):
                    if wish.other_meta(existing.entry, wanted):
                        warn_of_meta(key)
                    return key
            act = self._act(verify=wish.verify)
            with act.settled():
                encoded = encode_state(sources, threads=self.threads, store=act.store)
                for name, entry in wanted.files.items():
                    act.take(entry.digest, [content_of(wish.files[name])])
            with act.settled():
                act.take(encoded.digest, [encoded.data])
                self._complete(act, encoded, wanted, wish)
        return key

    def _receive(self, encoded: EncodedState, wanted: StateEntry, wish: Wish) -> bool:
        key = wanted.key
        with concerning(key):
            existing = self._existing(key, overwrite=wish.overwrite)
            if existing is not None and self._is_settled(existing, encoded, wanted, wish):
                if wish.other_meta(existing.entry, wanted):
                    warn_of_meta(key, stacklevel=FROM_COPY)
                return False
            act = self._act(verify=wish.verify)
            self._put_all(act, encoded, wanted, wish)
            self._complete(act, encoded, wanted, wish)
        return True

    def _existing(self, key: StateKey, *, overwrite: bool) -> Found | None:
        try:
            found = self.find(key)
        except ManifestError as error:
            if not overwrite:
                error.remedy = "save with " + OVERWRITE + " to replace it"
                raise
            found = None  # what cannot be read is replaced
        if found is None and (variant := self.states.case_variant(key)):
            raise case_variant_exists(variant)
        return found

    def _is_settled(
        self, existing: Found, encoded: EncodedState, wanted: StateEntry, wish: Wish
    ) -> bool:
        """Whether the state is there and stays as it is; then what is missing of it is mended.

        Raises:
            StateExistsError: Another is there.
        """
        other_meta = wish.other_meta(existing.entry, wanted)
        renew = wish.overwrite and (other_meta or existing.objects is not self.objects)
        if is_same(existing.entry, encoded.digest, wanted) and not renew:
            if existing.objects is self.objects:
                self._keep(encoded, wanted, wish)
            return True
        if not wish.overwrite:
            raise other_exists(existing.entry, encoded.digest, wanted)
        return False

    def _keep(self, encoded: EncodedState, wanted: StateEntry, wish: Wish) -> None:
        """The same weights and files again: mend what is missing of them."""
        if absent(self.target, _sizes(encoded, wanted), self.threads) or wish.verify:
            act = self._act(verify=wish.verify)
            self._put_all(act, encoded, wanted, wish)

    def _complete(
        self, act: SaveAct, encoded: EncodedState, wanted: StateEntry, wish: Wish
    ) -> None:
        """All objects were taken: publish the state."""
        act.flush()
        self._publish(replace(wanted, digest=encoded.digest, size=encoded.state.nbytes), wish)
        # Pruning may have taken a reused object before the state file named it: put it again.
        if act.lost():
            again = self._act(verify=False)
            self._put_all(again, encoded, wanted, wish)
        if wish.reused is not None:
            tensors = encoded.sources.items()
            wish.reused.update({d: s.spec.nbytes for d, s in tensors if d in act.reused})

    def _publish(self, entry: StateEntry, wish: Wish) -> None:
        data = format_state_file(entry)
        if wish.overwrite:
            self.states.replace(entry.key, data)
            return
        while not self.states.create(entry.key, data):
            winner = self.find(entry.key)
            if winner is None:
                continue  # it was deleted since: the key is free again
            if not is_same(winner.entry, entry.pinned_digest, entry):
                raise other_exists(winner.entry, entry.pinned_digest, entry)
            return

    def _act(self, *, verify: bool) -> SaveAct:
        return SaveAct(self.target, verify=verify, threads=self.threads)

    def _put_all(self, act: SaveAct, encoded: EncodedState, wanted: StateEntry, wish: Wish) -> None:
        """Put what is not there, the state object last, and make it durable."""
        sizes = encoded.sizes()
        if wish.source is not None:
            needed = _sizes(encoded, wanted)
            wish.source.bring(lambda: absent(self.target, needed, self.threads))

        def put(digest: Digest) -> None:
            act.take_if_needed(digest, sizes[digest], partial(_parts, encoded.sources[digest]))
            if wish.source is not None:
                wish.source.passed(digest, sizes[digest])

        # Few large ones at once: a store may have to hold all of one in memory.
        with act.settled():
            for large, threads in ((True, min(THREADS, self.threads)), (False, self.threads)):
                chosen = [digest for digest in encoded.sources if (sizes[digest] > _LARGE) is large]
                for_each(put, sorted(chosen, key=lambda digest: -sizes[digest]), threads)
            for name, file in wanted.files.items():
                act.take_if_needed(file.digest, None, partial(_content_parts, wish.files, name))
        with act.settled():
            act.take(encoded.digest, [encoded.data])
            act.flush()


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

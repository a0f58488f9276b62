"""Saving states: objects first, then the state object, then the state file, in this order.

So a crash at any point leaves the complete state or none, and at most objects that nothing names.
"""

from __future__ import annotations

from dataclasses import replace

from mlstate.digests import Digest
from mlstate.errors import ManifestError, StateNotFoundError, concerning
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, TensorSource, check_sources, encode_state
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore, WritableObjectStore
from mlstate.objects.saveact import SaveAct, absent
from mlstate.parallel import THREADS
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import check_key, check_state_type
from mlstate.stores.statefiles import StateFiles, format_state_file, parse_state_file
from mlstate.stores.view import Found, StateView
from mlstate.stores.wishes import (
    Content,
    Saves,
    Wish,
    case_variant_exists,
    content_of,
    is_same,
    other_exists,
    warn_of_meta,
)

__all__ = ["Content", "SavingStore"]


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
        return sorted(self.states.keys(state_type))

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        check_key(state_key)
        return self.states.read(state_key) is not None

    def find(self, key: StateKey) -> Found | None:
        """Find a state; see `StateView.find`."""
        data = self.states.read(key)
        if data is None:
            return None
        return Found(parse_state_file(data, key, self.states.locate(key)), self.objects)

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
                other_meta = wish.other_meta(existing.entry, wanted)
                renew = wish.overwrite and (other_meta or existing.objects is not self.objects)
                if is_same(existing.entry, encoded.digest, wanted) and not renew:
                    self._keep(existing, encoded, wanted, wish)
                    if other_meta:
                        warn_of_meta(key)
                    return key
                if not wish.overwrite:
                    raise other_exists(existing.entry, encoded.digest, wanted)
            elif variant := self.states.case_variant(key):
                raise case_variant_exists(variant)
            act = self._act(verify=wish.verify)
            encoded = encode_state(sources, act.take, self.threads)
            for name, entry in wanted.files.items():
                act.take(entry.digest, [content_of(wish.files[name])])
            act.take(encoded.digest, [encoded.data])
            act.flush()
            self._publish(replace(wanted, digest=encoded.digest, size=encoded.state.nbytes), wish)
            self._look_again(act, encoded, wish)
        return key

    def _existing(self, key: StateKey, *, overwrite: bool) -> Found | None:
        try:
            return self.find(key)
        except ManifestError as error:
            if overwrite:
                return None  # what cannot be read is replaced
            error.remedy = "save with overwrite=True to replace it"
            raise

    def _keep(self, existing: Found, encoded: EncodedState, wanted: StateEntry, wish: Wish) -> None:
        """The same weights and files again: mend what is missing of them."""
        if existing.objects is self.objects:
            sizes: dict[Digest, int | None] = {f.digest: None for f in wanted.files.values()}
            sizes.update(encoded.sizes())
            if absent(self.target, sizes, self.threads) or wish.verify:
                act = self._act(verify=wish.verify)
                self._put_all(act, encoded, wish)
                act.flush()

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

    def _look_again(self, act: SaveAct, encoded: EncodedState, wish: Wish) -> None:
        """Pruning may have taken a reused object before the state file named it: put it again."""
        if act.lost():
            again = self._act(verify=False)
            self._put_all(again, encoded, wish)
            again.flush()

    def _act(self, *, verify: bool) -> SaveAct:
        return SaveAct(self.target, verify=verify, threads=self.threads)

    def _put_all(self, act: SaveAct, encoded: EncodedState, wish: Wish) -> None:
        for digest, source in encoded.sources.items():
            with source.data() as data:
                act.take(digest, [tensor_object.header(source.spec), data])
        for content in wish.files.values():
            data = content_of(content)
            act.take(Digest.of(data), [data])
        act.take(encoded.digest, [encoded.data])

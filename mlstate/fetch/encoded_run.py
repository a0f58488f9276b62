"""What a run over the mirrors of a state does about encoded objects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from mlstate.digests import Digest
from mlstate.errors import FormatError, MlstateError
from mlstate.fetch.attempts import Attempts, Context
from mlstate.fetch.encoded_choice import EncodedChoice, choose
from mlstate.fetch.object_mirror import (
    ENCODED_FROM,
    ObjectMirror,
    read_encoded_index,
    read_state_object,
)
from mlstate.format import layout
from mlstate.format.encoded_index import EncodedIndex
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.reading import Needs, needs_of, state_object_limit
from mlstate.transport import Resource

__all__ = ["EncodedRun", "estimated_bytes"]

_TWICE = 2
"""What comes encoded, with the bases for it, is at most so many times as much as without: who made
an index need not mean well."""


class EncodedRun:
    """Brings what mirrors have encoded in fewer bytes, or only so; the rest comes as it is.

    Args:
        attempts: At the mirrors of the state.
        cache: Where bases are.
    """

    def __init__(self, attempts: Attempts, cache: ObjectStore) -> None:
        self._attempts = attempts
        self._cache = cache
        self._indexes: dict[str, EncodedIndex | None] = {}  # what mirrors say, each asked once

    def bring(self, address: str, needs: Needs, *, lacking: bool = False) -> None:
        """Bring what is missing from a mirror, as far as it is better had encoded.

        With ``lacking`` the mirror turned out not to have it plainly, whatever its index says: that
        is older than a compaction which is under way.
        """
        if lacking and self._indexes.get(address) is None:
            return
        self._attempts.attempt(
            address, lambda context: self._bring(address, context, needs, lacking)
        )

    def _bring(self, address: str, context: Context, needs: Needs, lacking: bool) -> None:
        choice = self._chosen(address, context, needs, lacking)
        if not choice.encoded:
            return
        try:
            from mlstate.fetch.encoded_mirror import EncodedMirror  # which imports torch
        except ImportError as error:
            without = f"its encoded objects are not read without {error.name}"
            self._attempts.note(address, without)
            return
        mirror = EncodedMirror(address, context, self._cache, _specs(choice, needs))
        try:
            mirror.gather(choice)
        finally:
            for place, reason in mirror.failed.items():
                self._attempts.note(place, reason)
            for place, reason in mirror.damaged.items():
                self._attempts.note_damage(place, reason)

    def _chosen(self, address: str, context: Context, needs: Needs, lacking: bool) -> EncodedChoice:
        if address not in self._indexes:
            self._indexes[address] = None
            try:
                state = self._attempts.entry.pinned_digest
                self._indexes[address] = ObjectMirror(address, context).encoded_index(state)
            except FormatError as error:
                self._attempts.note(address, f"{error.message}; where: {error.path}")
        index = self._indexes[address]
        if index is not None and lacking:
            missing = needs.objects.keys()
            forms = {
                d: replace(f, plain=f.plain and d not in missing) for d, f in index.forms.items()
            }
            index = EncodedIndex(index.state, forms)
        return _choice(index, needs, self._cache)


def estimated_bytes(
    entry: StateEntry, cache: ObjectStore, open_at: Callable[[str], Resource]
) -> int | None:
    """The bytes that a fetch would bring of tensors from the first mirror of objects that answers.

    It is asked for the state object, if that is not in the cache, and for the index. None if no
    mirror says, or so little is missing that none would be asked at once.

    Args:
        entry: What a manifest says of the state.
        cache: What is there.
        open_at: Opens an address.
    """
    digest = entry.pinned_digest
    for address in entry.objects if (entry.size or ENCODED_FROM) >= ENCODED_FROM else ():
        place = address.rstrip("/")
        with suppress(MlstateError):
            needs = needs_of(entry, cache, None, files=False)
            if needs.state is None:
                resource = open_at(f"{place}/{layout.object_path(digest)}")
                data = read_state_object(resource, digest, state_object_limit(entry))
                state = StateObject.parse(data)
                needs = needs_of(entry, cache, None, files=False, state=state)
            plain = sum(needs.objects.values())
            if plain < ENCODED_FROM:
                return plain
            resource = open_at(f"{place}/{layout.encoded_index_path(digest)}")
            choice = _choice(read_encoded_index(resource, digest), needs, cache)
            return choice.nbytes if choice.encoded else plain
    return None


def _choice(index: EncodedIndex | None, needs: Needs, cache: ObjectStore) -> EncodedChoice:
    if index is None:
        return EncodedChoice()
    wanted = needs.objects
    choice = choose(wanted, index.forms, lambda one, size: cache.size(one) == size)
    return choice if choice.nbytes <= _TWICE * sum(wanted.values()) else EncodedChoice()


def _specs(choice: EncodedChoice, needs: Needs) -> dict[Digest, TensorSpec]:
    """The type and shape of each object that may come: a base has those of what is built on it."""
    specs = {ref.digest: ref.spec for ref in needs.refs.values()}
    for digest in reversed(list(choice.encoded)):  # each comes after its base
        base = choice.encoded[digest].base
        if base is not None:
            specs.setdefault(base, specs[digest])
    return specs

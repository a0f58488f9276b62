"""What a run over the mirrors of a state does about encoded objects."""

from __future__ import annotations

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.fetch.attempts import Attempts, Context
from mlstate.fetch.encoded_choice import EncodedChoice, choose
from mlstate.fetch.object_mirror import ObjectMirror
from mlstate.format.encoded_index import EncodedIndex
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects import ObjectStore
from mlstate.reading import Needs

__all__ = ["EncodedRun"]

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

    def bring(self, address: str, needs: Needs) -> None:
        """Bring what is missing from a mirror, as far as it is better had encoded."""
        self._attempts.attempt(address, lambda context: self._bring(address, context, needs))

    def _bring(self, address: str, context: Context, needs: Needs) -> None:
        choice = self._chosen(address, context, needs)
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

    def _chosen(self, address: str, context: Context, needs: Needs) -> EncodedChoice:
        if address not in self._indexes:
            self._indexes[address] = None
            try:
                state = self._attempts.entry.pinned_digest
                self._indexes[address] = ObjectMirror(address, context).encoded_index(state)
            except FormatError as error:
                self._attempts.note(address, f"{error.message}; where: {error.path}")
        index, wanted = self._indexes[address], needs.objects
        if index is None:
            return EncodedChoice()
        choice = choose(wanted, index.forms, lambda one, size: self._cache.size(one) == size)
        return choice if choice.nbytes <= _TWICE * sum(wanted.values()) else EncodedChoice()


def _specs(choice: EncodedChoice, needs: Needs) -> dict[Digest, TensorSpec]:
    """The type and shape of each object that may come: a base has those of what is built on it."""
    specs = {ref.digest: ref.spec for ref in needs.refs.values()}
    for digest in reversed(list(choice.encoded)):  # each comes after its base
        base = choice.encoded[digest].base
        if base is not None:
            specs.setdefault(base, specs[digest])
    return specs

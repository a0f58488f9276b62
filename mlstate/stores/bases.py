"""The bases of a state that is saved encoded: tensors of near states, of the same names.

Only a few states are looked at: the one that the caller names, or the oldest and the newest of the
family. Where these are built on others, so is the new one, so that no chain gets longer for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError, MlstateError
from mlstate.format import layout
from mlstate.format.encoded_object import DEPTH_LIMIT
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import object_size
from mlstate.objects.cache import ChainObjectStore
from mlstate.objects.chains import is_sound
from mlstate.objects.encoded_forms import head_of
from mlstate.objects.encoding import (
    Original,
    distance_to,
    encode_beside,
    is_near,
    stands_alone,
    tensor_data,
)
from mlstate.objects.interface import EncodingObjectStore, ObjectStore
from mlstate.objects.saving import ObjectSaver
from mlstate.reading import read_state
from mlstate.states import StateKey
from mlstate.stores.catalog import Catalog

__all__ = ["StateEncoder", "bases_in_family", "bases_in_state"]

_STATES = 8
"""So many states of a family are looked at."""


class StateEncoder:
    """Encodes the tensors of a state that is being saved, where that saves a tenth.

    Args:
        objects: The store.
        state: The state.
        bases: The states in which bases are looked for.
        deeper: Whether what is built on others may be a base, as deep as readers take it.
        near: Another store that may have bases, and is asked first for their bytes.
    """

    def __init__(
        self,
        objects: EncodingObjectStore,
        state: StateObject,
        bases: Sequence[StateObject],
        *,
        deeper: bool,
        near: ObjectStore | None = None,
    ) -> None:
        self._objects = objects
        self._bytes = objects if near is None else ChainObjectStore([near, objects])
        self._bases = bases
        self._deeper = deeper
        self._has_said = False
        self._names: dict[Digest, list[str]] = {}
        self._refs = {ref.digest: ref for ref in state.refs.values()}
        for name, ref in state.refs.items():
            self._names.setdefault(ref.digest, []).append(name)

    def encode(self, digest: Digest, data: Bytes, saver: ObjectSaver) -> bool:
        """Write an object in encoded form only; False if it has to be written plainly.

        What it is built on is made young, and looked for again with all else that is reused.
        """
        ref = self._refs.get(digest)
        base = None if ref is None else self._nearest(ref, data)
        if ref is None or (base is None and not stands_alone(ref.spec)):
            return False
        with suppress(IntegrityError, FormatError):  # the base is damaged, or goes at this moment
            if base is not None and not saver.reuse(base[0].digest, object_size(ref.spec)):
                return False
            if not self._has_said:
                self._objects.say_encoded()
                self._has_said = True
            written = self._encode(ref, data, base)
            return written is not None and is_sound(self._objects, digest)
        return False

    def _encode(
        self, ref: TensorRef, data: Bytes, base: tuple[TensorRef, int] | None
    ) -> int | None:
        if base is None:
            return encode_beside(self._objects, ref, data, None, threads=1)
        with tensor_data(self._bytes, base[0]) as its:
            original = Original(base[0], its, base[1])
            return encode_beside(self._objects, ref, data, original, threads=1)

    def _nearest(self, ref: TensorRef, data: Bytes) -> tuple[TensorRef, int] | None:
        """The nearest base of an object, with the depth of that; None if all are far."""
        near: dict[float, tuple[TensorRef, int]] = {}
        for base, depth in dict(self._candidates(ref)).items():
            with suppress(MlstateError):  # one that cannot be read is none
                distance = distance_to(self._bytes, base, data)
                if is_near(distance, ref.spec):
                    near.setdefault(distance, (base, depth))
        return near[min(near)] if near else None

    def _candidates(self, ref: TensorRef) -> Iterator[tuple[TensorRef, int]]:
        for name in self._names[ref.digest]:
            for state in self._bases:
                base = state.refs.get(name)
                if base is not None and base.spec == ref.spec and base.digest != ref.digest:
                    with suppress(MlstateError):
                        yield self._bearing(base)

    def _bearing(self, ref: TensorRef) -> tuple[TensorRef, int]:
        """An object that can be a base, with its depth: this one, or what it is built on."""
        while self._objects.plain_size(ref.digest) is None:
            head = head_of(self._objects, ref.digest)
            if head.base is None or (self._deeper and head.depth < DEPTH_LIMIT):
                return ref, head.depth
            ref = TensorRef(ref.spec, head.base)
        return ref, 0


def bases_in_state(
    objects: EncodingObjectStore, catalog: Catalog, key: StateKey
) -> list[StateObject]:
    """The state that a caller names.

    Raises:
        StateNotFoundError: There is none.
        MlstateError: It cannot be read.
    """
    entry = catalog.recorded(key)
    if entry is None:
        raise catalog.absent(key, objects)
    return [read_state(entry, objects)]


def bases_in_family(
    objects: EncodingObjectStore, catalog: Catalog, key: StateKey
) -> list[StateObject]:
    """The oldest state of a family, and the newest ones, as far as they can be read."""
    folder = layout.state_folder(key.state_type)
    listed = sorted(catalog.listing_in(folder), key=lambda listing: listing.modified or 0.0)
    keys = [listing.key for listing in listed] or catalog.keys(key.state_type)
    found = []
    for one in dict.fromkeys([*keys[:1], *keys[1 - _STATES :]]):
        with suppress(MlstateError, OSError):
            if (entry := catalog.recorded(one)) is not None and entry.digest is not None:
                found.append(read_state(entry, objects))
    return found

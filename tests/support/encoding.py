"""Stores in which every object that can be is in encoded form only."""

from __future__ import annotations

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from mlstate import LocalStateStore, StateKey
from mlstate.digests import Digest
from mlstate.encoded import Base, encode
from mlstate.format.encode import EncodedState, TensorSource
from mlstate.format.encoded_object import DEPTH_LIMIT
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorSpec, header
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.interface import EncodingObjectStore, ObjectStore
from mlstate.reading import read_state
from mlstate.stores.read import StateStore
from mlstate.stores.save_request import SaveRequest
from mlstate.stores.state_saver import StateSaver

__all__ = [
    "EncodedStateStore",
    "encode_all",
    "encode_one",
    "encode_store",
    "near_tensors",
    "put_tensor",
    "refs_in",
]


def put_tensor(objects: EncodingObjectStore, spec: TensorSpec, data: bytes) -> TensorRef:
    """Put a plain tensor object."""
    writer = objects.writer()
    digest = Digest.of(header(spec), data)
    writer.put(digest, [header(spec), data])
    writer.flush()
    return TensorRef(spec, digest)


def encode_one(
    objects: EncodingObjectStore, ref: TensorRef, base: TensorRef | None = None, depth: int = 0
) -> None:
    """Write the encoded form of a plain object; ``depth`` is that of its base."""
    against = None if base is None else Base(base.digest, _data(objects, base), depth)
    objects.put_encoded(ref.digest, list(encode(_data(objects, ref), ref.spec, against)))


def encode_all(objects: EncodingObjectStore, refs: Iterable[TensorRef]) -> None:
    """Encode objects, each against the one before of its type and shape, and retire them all."""
    by_spec: defaultdict[TensorSpec, dict[Digest, TensorRef]] = defaultdict(dict)
    for ref in refs:
        by_spec[ref.spec][ref.digest] = ref
    objects.say_encoded()
    for group in by_spec.values():
        before, depth = None, -1
        for ref in group.values():
            if depth == DEPTH_LIMIT:
                before, depth = None, -1
            encode_one(objects, ref, before, depth)
            before, depth = ref, depth + 1
    for group in by_spec.values():
        for digest in group:
            assert objects.retire_plain(digest)
            assert objects.plain_size(digest) is None


def refs_in(store: StateStore) -> list[TensorRef]:
    """All tensor objects that the states of a store name, in the order of their keys."""
    found: list[TensorRef] = []
    for key in store.get_state_keys():
        entry, objects = store.get(key)
        found += read_state(entry, objects).refs.values()
    return found


def encode_store(store: LocalStateStore) -> LocalStateStore:
    """Leave a store no plain tensor object, not even in trash/."""
    encode_all(store.own, refs_in(store))
    shutil.rmtree(store.folder / "trash")
    return store


def near_tensors(seed: int, step: int = 0, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Tensors that differ a little from those of the step before, as training has them."""
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=chance)
        noise = torch.randn(shape, generator=chance)
        found[name] = (value + step * 1e-4 * noise).to(torch.bfloat16)
    return found


_ENCODING = threading.Lock()


class _EncodingSaver(StateSaver):
    """Leaves no plain tensor object after a saving."""

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        super().save(key, sources, request)
        self._encode(key)

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        is_new = super().receive(encoded, wanted, request)
        self._encode(wanted.key)
        return is_new

    def _encode(self, key: StateKey) -> None:
        with _ENCODING:
            entry, _ = self.stored(key)
            assert isinstance(self.objects, FolderObjectStore)
            refs = [] if entry is None else read_state(entry, self.objects).refs.values()
            plain = [ref for ref in refs if self.objects.plain_size(ref.digest) is not None]
            if plain:
                encode_all(self.objects, plain)
                shutil.rmtree(self.objects.root / "trash")


class EncodedStateStore(LocalStateStore):
    """A folder in which every saving encodes what it has written."""

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(folder, **options)
        self.saver = _EncodingSaver(self._files, self._objects, self.catalog)


def _data(objects: ObjectStore, ref: TensorRef) -> bytes:
    with objects.open(ref.digest) as file:
        return file.read()[DATA_OFFSET:]

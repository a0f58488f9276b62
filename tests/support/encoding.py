"""Stores in which every object that can be is in encoded form only."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable

import torch

from mlstate import LocalStateStore
from mlstate.digests import Digest
from mlstate.encoded import Base, encode
from mlstate.format.encoded_object import DEPTH_LIMIT
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorSpec, header
from mlstate.objects.interface import EncodingObjectStore, ObjectStore
from mlstate.reading import read_state

__all__ = ["encode_all", "encode_one", "encode_store", "near_tensors", "put_tensor", "refs_in"]


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


def refs_in(store: object) -> list[TensorRef]:
    """All tensor objects that the states of a store name, in the order of their keys."""
    found: list[TensorRef] = []
    for key in sorted(store.keys()):  # type: ignore[attr-defined]
        entry, objects = store.get(key)  # type: ignore[attr-defined]
        found += read_state(entry, objects).refs.values()
    return found


def encode_store(store: LocalStateStore) -> LocalStateStore:
    """Leave a store no plain tensor object, not even in trash/."""
    encode_all(store.own, refs_in(store))
    shutil.rmtree(store.own.root / "trash")
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


def _data(objects: ObjectStore, ref: TensorRef) -> bytes:
    with objects.open(ref.digest) as file:
        return file.read()[DATA_OFFSET:]

"""States whose bytes are known, made and checked without torch."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlstate import LocalStateStore, StateKey
from mlstate import verify as verify_store
from mlstate.digests import Digest
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, encode_state
from mlstate.format.tensor_object import TensorSpec
from mlstate.stores.read import StateStore
from mlstate.stores.save import SavingStore
from mlstate.stores.save_request import SaveRequest

__all__ = [
    "KNOWN",
    "Known",
    "LostStateError",
    "WrongBytesError",
    "check_folder",
    "key_of",
    "known",
    "save",
    "whole",
    "write_plain",
]

_SIZES = {"shared.weight": 20_000, "own.weight": 40_000, "large.weight": 1_200_000, "own.bias": 64}


class WrongBytesError(AssertionError):
    """A store gave bytes that are not those of the state, and no error."""


class LostStateError(AssertionError):
    """A state is not there, or another is."""


@dataclass(frozen=True)
class _Source:
    name: str
    spec: TensorSpec
    content: bytes

    @property
    def memory(self) -> int:
        return id(self.content)

    @contextmanager
    def data(self) -> Iterator[bytes]:
        yield self.content


@dataclass(frozen=True)
class Known:
    """The state of a number: tensors of which one is that of all others, and a file."""

    tensors: Mapping[str, bytes]
    files: Mapping[str, bytes]

    @property
    def sources(self) -> list[_Source]:
        """Its tensors, as the stores take them."""
        return [
            _Source(name, TensorSpec("U8", (len(data),)), data)
            for name, data in self.tensors.items()
        ]

    @property
    def encoded(self) -> EncodedState:
        """What it becomes."""
        return encode_state(self.sources)

    def objects(self) -> dict[Digest, bytes]:
        """All objects that it needs, made anew."""
        encoded = self.encoded
        objects = {Digest.of(data): data for data in self.files.values()}
        objects[encoded.digest] = encoded.data
        for digest, source in encoded.sources.items():
            data = self.tensors[source.name]
            objects[digest] = tensor_object.header(source.spec) + data
        return objects


@cache
def known(seed: int, scale: float = 1.0) -> Known:
    """The state of a number; ``scale`` makes its tensors smaller or larger."""
    tensors = {}
    for name, size in _SIZES.items():
        chance = random.Random(f"{name} {0 if name.startswith('shared') else seed}")
        tensors[name] = chance.randbytes(max(1, int(size * scale)))
    files = {"labels.json": json.dumps([seed]).encode(), "same.txt": b"of all"}
    return Known(tensors, files)


@cache
def _objects(seed: int, scale: float) -> tuple[Digest, dict[Digest, bytes]]:
    state = known(seed, scale)
    return state.encoded.digest, state.objects()


KNOWN = range(8)
"""The numbers of the states that are used."""


def key_of(name: str) -> StateKey:
    """A key for a state."""
    return StateKey.parse(f"pytorch.torture.{name}")


def save(
    store: SavingStore,
    name: str,
    seed: int,
    *,
    scale: float = 1.0,
    overwrite: bool = False,
    verify: bool = False,
) -> None:
    """Save a known state."""
    state = known(seed, scale)
    request = SaveRequest(dict(state.files), None, overwrite, verify)
    store.saver.save(key_of(name), list(state.sources), request)


def whole(store: StateStore, name: str, scale: float = 1.0) -> int | None:
    """Which known state a store has under a name; None if there is none.

    Of a store in a bucket the bucket itself is read, of a view over mirrors its cache. Raises an
    AssertionError if it is not whole, or has a byte that is not right.
    """
    entry = store.catalog.recorded(key_of(name))
    if entry is None:
        return None
    seeds = [seed for seed in KNOWN if _objects(seed, scale)[0] == entry.digest]
    assert seeds, f"{name} has a digest that nobody saved: {entry.digest}"
    objects = store.objects if store.own is None else store.own
    for digest, data in _objects(seeds[0], scale)[1].items():
        with objects.open(digest) as file:
            if file.read() != data:
                raise WrongBytesError(f"an object of {name} has wrong bytes: {digest}")
    assert {file.digest for file in entry.files.values()} <= _objects(seeds[0], scale)[1].keys()
    return seeds[0]


def check_folder(
    folder: Path, expected: Mapping[str, Collection[int | None]], scale: float = 1.0
) -> dict[str, int | None]:
    """Hold a store's folder against what it may have: for each name the numbers of states.

    Returns what it has. Nothing else is in it, and `verify` finds no damage.
    """
    store = LocalStateStore(folder)
    found = {name: whole(store, name, scale) for name in expected}
    for name, seed in found.items():
        if seed not in expected[name]:
            raise LostStateError(f"{name} is {seed}, and not one of {expected[name]}")
    listed = {key.training_id for key in store.get_state_keys()}
    there = {name for name, seed in found.items() if seed is not None}
    assert listed == there, f"listed are {listed}, and there are {there}"
    report = verify_store(store)
    assert report.findings == (), str(report.findings[0])
    return found


def write_plain(path: Path, seed: int, scale: float = 1.0) -> None:
    """Write a known state as a plain safetensors file."""
    entries, data = {}, b""
    for name, content in known(seed, scale).tensors.items():
        place = [len(data), len(data) + len(content)]
        entries[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": place}
        data += content
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)

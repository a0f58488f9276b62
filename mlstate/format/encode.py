"""Encoding: named tensors become a state object and tensor objects.

A tensor comes as a `TensorSource`: what it is, and a way to get at its bytes. So this needs no
torch, and a tensor that must be copied first (from a GPU, from a view) is in memory only while it
is hashed or written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError
from mlstate.format import tensor_object
from mlstate.format.state_object import (
    BYTES_NAME,
    INLINE_LIMIT,
    InlineTensor,
    StateObject,
    TensorRef,
    check_bytes_state,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.parallel import THREADS, begun

__all__ = [
    "EncodedState",
    "OnObject",
    "StoreObject",
    "TensorSource",
    "bytes_source",
    "check_not_empty",
    "check_sources",
    "encode_state",
]


_FIRST = 2


class TensorSource(Protocol):
    """A named tensor whose bytes can be read again and again."""

    @property
    def name(self) -> str:
        """Its name in the state."""

    @property
    def spec(self) -> TensorSpec:
        """Its element type and shape."""

    @property
    def memory(self) -> Hashable:
        """A value that is equal for sources of the same memory read the same way (tied weights)."""

    def data(self) -> AbstractContextManager[Bytes]:
        """Its bytes in C order, little-endian, for as long as the context lasts."""


@dataclass(frozen=True)
class _BytesSource:
    name: str
    spec: TensorSpec
    memory: Hashable
    content: Bytes

    def data(self) -> AbstractContextManager[Bytes]:
        return nullcontext(self.content)


def bytes_source(content: Bytes) -> TensorSource:
    """Opaque bytes, of a model of the older protocol, as the one tensor of a state."""
    return _BytesSource(BYTES_NAME, TensorSpec("U8", (len(content),)), id(content), content)


OnObject = Callable[[Digest, Sequence[Bytes]], object]
"""Takes a tensor object, digest and parts, while its bytes are at hand; called from threads."""

StoreObject = Callable[[Sequence[Bytes]], Digest]
"""Gives the digest of a tensor object, and stores it meanwhile; called from threads."""


@dataclass(frozen=True)
class EncodedState:
    """A state, encoded; ``sources`` has a source of the bytes of each tensor object."""

    state: StateObject
    data: bytes
    digest: Digest
    sources: dict[Digest, TensorSource]

    def sizes(self) -> dict[Digest, int]:
        """Every object of the state with its size in bytes, the state object last."""
        sizes = {
            digest: tensor_object.object_size(source.spec)
            for digest, source in self.sources.items()
        }
        sizes[self.digest] = len(self.data)
        return sizes


def encode_state(
    sources: Iterable[TensorSource],
    on_object: OnObject | None = None,
    threads: int = THREADS,
    *,
    store: StoreObject | None = None,
) -> EncodedState:
    """Hash every tensor, each name once, and make the state object; ``threads`` tensors at once.

    ``on_object`` is called for each tensor object, with the same one twice if tensors are equal;
    ``store`` likewise, for its digest. A `FormatError` says that the format does not allow a name
    or a set of names.
    """
    listed = list(sources)
    headers = check_sources(listed)
    refs: dict[str, TensorRef] = {}
    inline: dict[str, InlineTensor] = {}
    by_digest: dict[Digest, TensorSource] = {}
    large: dict[Hashable, list[TensorSource]] = {}
    for source in listed:
        if source.name in headers:
            large.setdefault((source.memory, source.spec), []).append(source)

    def encode(tied: list[TensorSource]) -> None:
        first = tied[0]
        header = headers[first.name]
        with first.data() as data:
            digest = store((header, data)) if store else Digest.of(header, data)
            if on_object is not None:
                on_object(digest, (header, data))
        by_digest[digest] = first
        for source in tied:
            refs[source.name] = TensorRef(source.spec, digest)

    # The largest first, so that the threads end together. Before them a few small ones, from
    # which a store learns whether it has these tensors already.
    ordered = sorted(large.values(), key=lambda tied: -tied[0].spec.nbytes)
    for _ in range(min(_FIRST, len(ordered)) if store else 0):
        encode(ordered.pop())
    with begun(encode, ordered, threads) as finish:
        for source in listed:
            if source.name not in headers:
                with source.data() as content:
                    inline[source.name] = InlineTensor(source.spec, bytes(content))
        finish()
    state = StateObject(inline, refs)
    data = state.encode()
    return EncodedState(state, data, Digest.of(data), by_digest)


def check_not_empty(tensors: Collection[object]) -> None:
    """Refuse to store nothing, by a `FormatError`. The format has such a state, for readers."""
    if not tensors:
        raise FormatError(
            "a state without tensors is not stored",
            expected="at least one tensor",
            found="none: a model without parameters and buffers, or an empty mapping",
        )


def check_sources(sources: list[TensorSource]) -> dict[str, bytes]:
    """The headers of tensor objects by name; a `FormatError` if the format forbids any of them."""
    specs = {source.name: source.spec for source in sources}
    if len(specs) != len(sources):
        raise FormatError("a state names a tensor twice")
    check_bytes_state(specs)
    headers = {}
    for name, spec in specs.items():
        if spec.nbytes >= INLINE_LIMIT:
            try:
                headers[name] = tensor_object.header(spec)
            except FormatError as error:
                error.tensor = name
                raise
    return headers

"""What tests of encoded objects on their way share: fine-tunes, and folders with these encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from mlstate.digests import Digest
from mlstate.encoded import Base, encode
from mlstate.format import layout, tensor_object
from mlstate.format.encoded_index import EncodedForm, EncodedIndex
from mlstate.format.state_object import StateObject, TensorRef

__all__ = ["encode_object", "encode_state", "near", "read_refs", "weights", "write_index"]


def weights(seed: int = 0, *, count: int = 3, size: int = 1 << 20) -> dict[str, torch.Tensor]:
    """A state of bf16 tensors of so many elements each, as a model has them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{i}.w": torch.randn(size, generator=generator).mul_(0.02).to(torch.bfloat16)
        for i in range(count)
    }


def near(state: Mapping[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """A fine-tune: all weights are a little other."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        tuned[name] = (tensor.float() * (1 + 0.002 * noise)).to(tensor.dtype)
    return tuned


def read_refs(folder: Path, state: Digest) -> dict[str, TensorRef]:
    """The tensor objects of a state in the folder of a store."""
    return dict(StateObject.parse((folder / layout.object_path(state)).read_bytes()).refs)


def encode_object(
    folder: Path, ref: TensorRef, base: Digest | None = None, depth: int = 0
) -> EncodedForm:
    """Write the encoded form of an object beside it; the depth is that of the base's own form."""

    def data_of(digest: Digest) -> bytes:
        return (folder / layout.object_path(digest)).read_bytes()[tensor_object.DATA_OFFSET :]

    given = None if base is None else Base(base, data_of(base), depth)
    file = b"".join(encode(data_of(ref.digest), ref.spec, given))
    path = folder / layout.encoded_path(ref.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)
    return EncodedForm(len(file), base, 0 if base is None else depth + 1)


def write_index(folder: Path, state: Digest, forms: Mapping[Digest, EncodedForm]) -> Path:
    """Write the index of a state."""
    path = folder / layout.encoded_index_path(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(EncodedIndex(state, forms).encode())
    return path


def encode_state(
    folder: Path, state: Digest, base: Digest | None = None, *, gone: Iterable[str] | None = None
) -> dict[Digest, EncodedForm]:
    """Encode the objects of a state against those of the same names of another, and index them.

    Args:
        folder: Of the store.
        state: The digest of the state.
        base: That of the other; None: each object alone.
        gone: The names of the tensors whose plain objects are removed then; all by default.
    """
    refs = read_refs(folder, state)
    bases = {} if base is None else read_refs(folder, base)
    removed = set(refs) if gone is None else set(gone)
    forms: dict[Digest, EncodedForm] = {}
    for name, ref in refs.items():
        form = encode_object(folder, ref, bases[name].digest if name in bases else None)
        plain = name not in removed
        forms[ref.digest] = EncodedForm(form.size, form.base, form.depth, plain)
    for name in removed:
        (folder / layout.object_path(refs[name].digest)).unlink()
    write_index(folder, state, forms)
    return forms

"""From tensor objects to tensors: mapped or read, and verified before anyone sees them."""

from __future__ import annotations

from collections.abc import Collection

import torch

from mlstate.digests import Digest
from mlstate.errors import FormatError, MlstateError
from mlstate.format import tensor_object
from mlstate.format.dtypes import check_values
from mlstate.format.state_object import InlineTensor, StateObject, TensorRef
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_digest, check_size
from mlstate.parallel import for_each
from mlstate.tensors.memory import as_bytes, as_tensor, file_tensor

__all__ = ["read_tensors"]


def read_tensors(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None = None,
    *,
    shared: bool = False,
) -> dict[str, torch.Tensor]:
    """Read and verify tensors of a state.

    Args:
        objects: Where the tensor objects are.
        state: The verified state object.
        names: Those to read; all by default. Nothing else is read or verified.
        shared: Let equal tensors share memory: for who only copies from them.

    Returns:
        Name -> CPU tensor, private and writable, in the order of `names` or of the state object.

    Raises:
        IntegrityError: An object is missing or damaged; the error names tensor and path.
        FormatError: An object is not what the state object says of it, or this torch lacks its
            element type.
    """
    specs = state.specs
    wanted = list(specs) if names is None else list(names)
    found: dict[str, torch.Tensor] = {}
    groups: dict[TensorRef, list[str]] = {}
    for name in wanted:
        if name in state.inline:
            found[name] = _inline(name, state.inline[name])
        else:
            groups.setdefault(state.refs[name], []).append(name)

    def read(item: tuple[TensorRef, list[str]]) -> None:
        ref, same = item
        try:
            tensor = _read(objects, ref)
        except MlstateError as error:
            error.tensor = same[0]
            raise
        found[same[0]] = tensor
        for name in same[1:]:
            found[name] = tensor if shared else tensor.clone()

    for_each(read, sorted(groups.items(), key=lambda item: -item[0].spec.nbytes))
    return {name: found[name] for name in wanted}


def _inline(name: str, entry: InlineTensor) -> torch.Tensor:
    raw = (
        torch.frombuffer(bytearray(entry.data), dtype=torch.uint8)
        if entry.data
        else torch.empty(0, dtype=torch.uint8, device="cpu")
    )
    try:
        return as_tensor(raw, entry.spec)
    except FormatError as error:
        error.tensor = name
        raise


def _read(objects: ObjectStore, ref: TensorRef) -> torch.Tensor:
    size = tensor_object.object_size(ref.spec)
    what = "a tensor object"
    with objects.open(ref.digest) as file:
        check_size(objects, ref.digest, size, file.seek(0, 2), what=what)
        raw = file_tensor(file, size)
    view = as_bytes(raw)
    check_digest(objects, ref.digest, Digest.of(view), what=what)
    offset = tensor_object.DATA_OFFSET
    if view[:offset] != tensor_object.header(ref.spec):
        raise FormatError(
            "a tensor object is not the tensor that the state object says it is",
            path=objects.locate(ref.digest),
            expected=f"{ref.spec.dtype} {list(ref.spec.shape)}",
            found=bytes(view[8:200]).rstrip(),
        )
    check_values(ref.spec, view[offset:])
    # A storage of the data alone: who saves the tensor elsewhere does not save our header.
    return as_tensor(torch.frombuffer(view, dtype=torch.uint8, offset=offset), ref.spec)

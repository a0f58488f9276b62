"""From tensor objects to tensors: mapped or read, and verified before anyone sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from mlstate.digests import Digest
from mlstate.errors import FormatError, MlstateError
from mlstate.format import tensor_object
from mlstate.format.dtypes import BITS, check_values
from mlstate.format.state_object import InlineTensor, StateObject, TensorRef
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_digest, check_size
from mlstate.parallel import begun
from mlstate.tensors.memory import as_bytes, as_tensor, file_tensor

__all__ = ["read_tensors", "reading"]


def read_tensors(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None = None,
    *,
    shared: bool = False,
    packed: bool = False,
) -> dict[str, torch.Tensor]:
    """Read and verify tensors of a state.

    Args:
        objects: Where the tensor objects are.
        state: The verified state object.
        names: Those to read; all by default. Nothing else is read or verified.
        shared: Let equal tensors share memory: for who only copies from them.
        packed: Let small tensors be parts of one memory: for who soon lets go of all of them.

    Returns:
        Name -> CPU tensor, private and writable, in the order of `names` or of the state object.

    Raises:
        IntegrityError: An object is missing or damaged; the error names tensor and path.
        FormatError: An object is not what the state object says of it, or this torch lacks its
            element type.
    """
    with reading(objects, state, names, shared=shared, packed=packed) as read:
        return read()


@contextmanager
def reading(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None = None,
    *,
    shared: bool = False,
    packed: bool = False,
) -> Iterator[Callable[[], dict[str, torch.Tensor]]]:
    """Like `read_tensors`, with time to compare names and shapes while the first bytes are read.

    Yields:
        A call that gives what `read_tensors` returns, and raises what it raises. Without that
        call the reading ends with the context.
    """
    wanted = list(state.specs) if names is None else list(names)
    found: dict[str, torch.Tensor] = {}
    groups: dict[TensorRef, list[str]] = {}
    for name in wanted:
        if name in state.refs:
            groups.setdefault(state.refs[name], []).append(name)
    source = _Source(objects)

    def read(item: tuple[TensorRef, list[str]]) -> None:
        ref, same = item
        try:
            tensor = source.tensor(ref)
        except MlstateError as error:
            error.tensor = same[0]
            raise
        found[same[0]] = tensor
        for name in same[1:]:
            found[name] = tensor if shared else tensor.clone()

    # The largest first, so that the threads end together.
    with begun(read, sorted(groups.items(), key=lambda item: -item[0].spec.nbytes)) as finish:

        def result() -> dict[str, torch.Tensor]:
            small = (name for name in wanted if name in state.inline)
            found.update(_inline(state.inline, small, packed=packed))
            finish()
            return {name: found[name] for name in wanted}

        yield result


def _inline(
    tensors: Mapping[str, InlineTensor], names: Iterable[str], *, packed: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The small tensors, each with its name.

    By one memory for all and one call that splits it: a model can have thousands of them.
    """
    # Widest first: each of them is then aligned.
    ordered = sorted(names, key=lambda name: -BITS[tensors[name].spec.dtype])
    data = bytearray().join(tensors[name].data for name in ordered)
    whole = torch.empty(0, dtype=torch.uint8, device="cpu")
    if data:
        whole = torch.frombuffer(data, dtype=torch.uint8)
    parts = whole.split_with_sizes([tensors[name].spec.nbytes for name in ordered])
    for name, part in zip(ordered, parts, strict=True):
        try:
            yield name, as_tensor(part if packed else part.clone(), tensors[name].spec)
        except FormatError as error:
            error.tensor = name
            raise


class _Source:
    """One act of reading tensor objects."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._devices: dict[int, bool] = {}

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """A tensor, verified."""
        objects, digest, spec = self._objects, ref.digest, ref.spec
        size = tensor_object.object_size(spec)
        what = "a tensor object"
        with objects.open(digest) as file:
            check_size(objects, digest, size, file.seek(0, 2), what=what)
            raw = file_tensor(file, size, self._devices)
        view = as_bytes(raw)
        check_digest(objects, digest, Digest.of(view), what=what)
        offset = tensor_object.DATA_OFFSET
        if bytes(view[:offset]) != tensor_object.header(spec):
            raise FormatError(
                "a tensor object is not the tensor that the state object says it is",
                path=objects.locate(digest),
                expected=f"{spec.dtype} {list(spec.shape)}",
                found=bytes(view[8:200]).rstrip(),
            )
        check_values(spec, view[offset:])
        # A storage of the data alone: who saves the tensor elsewhere does not save our header.
        return as_tensor(torch.frombuffer(view, dtype=torch.uint8, offset=offset), spec)

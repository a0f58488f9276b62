"""From tensor objects to tensors: mapped or read, and verified before anyone sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import BinaryIO

import torch

from mlstate.digests import Digest
from mlstate.errors import FormatError, concerning
from mlstate.format import tensor_object
from mlstate.format.dtypes import check_values
from mlstate.format.state_object import InlineTensor, StateObject, TensorRef
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_digest, check_size
from mlstate.parallel import begun
from mlstate.tensors.memory import MAP_FROM, as_bytes, as_tensor, mapped_tensor, read_tensor

__all__ = ["read_tensors", "reading"]

_WHAT = "a tensor object"


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
    with reading(objects, state, names, shared=shared) as read:
        return read()


@contextmanager
def reading(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None = None,
    *,
    shared: bool = False,
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
    # The largest first, so that the threads end together.
    ordered = sorted(groups.items(), key=lambda item: -item[0].spec.nbytes)
    queue: SimpleQueue[_Object | None] = SimpleQueue()

    def verify(one: _Object) -> None:
        with concerning(tensor=one.names[0]):
            tensor = one.verified()
        found[one.names[0]] = tensor
        for name in one.names[1:]:
            found[name] = tensor if shared else tensor.clone()

    with begun(verify, iter(queue.get, None)) as finish:
        try:
            _enqueue(objects, ordered, queue)
        finally:
            queue.put(None)

        def result() -> dict[str, torch.Tensor]:
            small = (name for name in wanted if name in state.inline)
            found.update(_inline(state.inline, small))
            finish()
            return {name: found[name] for name in wanted}

        yield result


def _enqueue(
    objects: ObjectStore,
    ordered: list[tuple[TensorRef, list[str]]],
    queue: SimpleQueue[_Object | None],
) -> None:
    """Hand out the objects, those that can be mapped as maps.

    One thread maps them, so that the others do little else than hash: whenever they let go of the
    interpreter's lock, for each call of the system, they may have to wait for it afterwards.
    """
    devices: dict[int, bool] = {}
    ahead = True
    for ref, names in ordered:
        one = _Object(objects, ref, names, devices)
        if ahead and one.size >= MAP_FROM:
            with concerning(tensor=names[0]):
                ahead = one.open()
        queue.put(one)


def _inline(tensors: Mapping[str, InlineTensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The small tensors: copied by one call, for a model can have thousands."""
    listed = [(name, tensors[name]) for name in names]
    data = bytearray().join([tensor.data for _, tensor in listed])
    whole = torch.empty(0, dtype=torch.uint8, device="cpu")
    if data:
        whole = torch.frombuffer(data, dtype=torch.uint8)
    sizes = [tensor.spec.nbytes for _, tensor in listed]
    parts = torch.split_with_sizes_copy(whole, sizes)  # type: ignore[func-returns-value]
    found = {}
    try:
        for (name, tensor), part in zip(listed, parts, strict=True):  # type: ignore[call-overload]
            found[name] = as_tensor(part, tensor.spec)
    except FormatError as error:
        error.tensor = name
        raise
    return found


class _Object:
    """A tensor object that is being read.

    Args:
        objects: Where it is.
        ref: Which it is.
        names: The names of the state that it stands for.
        devices: As for `may_map`.
    """

    def __init__(
        self, objects: ObjectStore, ref: TensorRef, names: list[str], devices: dict[int, bool]
    ) -> None:
        self._objects = objects
        self._ref = ref
        self._devices = devices
        self._file: BinaryIO | None = None
        self._raw: torch.Tensor | None = None
        self.names = names
        self.size = tensor_object.object_size(ref.spec)

    def open(self) -> bool:
        """Open it, and map it if that is possible.

        Returns:
            False if it is not, and the file is open until `verified` reads it.

        Raises:
            IntegrityError: It is missing, or has the wrong length.
        """
        file = self._objects.open(self._ref.digest)
        try:
            found = file.seek(0, 2)
            check_size(self._objects, self._ref.digest, self.size, found, what=_WHAT)
            self._raw = mapped_tensor(file, self.size, self._devices)
            if self._raw is None:
                self._file = file
        finally:
            if self._file is None:
                file.close()
        return self._raw is not None

    def verified(self) -> torch.Tensor:
        """The tensor.

        Raises:
            IntegrityError: It is missing or damaged.
            FormatError: It is another than the state object says.
        """
        objects, digest, spec = self._objects, self._ref.digest, self._ref.spec
        view = as_bytes(self._content())
        check_digest(objects, digest, Digest.of(view), what=_WHAT)
        offset = tensor_object.DATA_OFFSET
        if view[:offset] != tensor_object.header(spec):
            raise FormatError(
                "a tensor object is not the tensor that the state object says it is",
                path=objects.locate(digest),
                expected=f"{spec.dtype} {list(spec.shape)}",
                found=bytes(view[8:200]).rstrip(),
            )
        check_values(spec, view[offset:])
        # A storage of the data alone: who saves the tensor elsewhere does not save our header.
        return as_tensor(torch.frombuffer(view, dtype=torch.uint8, offset=offset), spec)

    def _content(self) -> torch.Tensor:
        if self._file is None and self._raw is None:
            self.open()
        if self._raw is None:
            assert self._file is not None
            with self._file as file:
                self._raw = read_tensor(file, self.size)
        return self._raw

"""Tensors from tensor objects: mapped, read or sent to a device, and verified before use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from queue import SimpleQueue
from typing import Any, BinaryIO

import torch

from mlstate.errors import FormatError, concerning
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, TensorSpec, object_size
from mlstate.models import TensorModel
from mlstate.objects import ObjectStore
from mlstate.objects.decoded import DecodedObject
from mlstate.objects.verified import check_tensor, open_tensor
from mlstate.parallel import begun
from mlstate.tensors.fit import entries
from mlstate.tensors.gpu import Lanes, is_accelerator
from mlstate.tensors.memory import (
    as_bytes,
    as_tensor,
    mapped_tensor,
    read_tensor,
    torch_dtype,
    torch_shape,
)

__all__ = [
    "OpenedObject",
    "Places",
    "inline_tensors",
    "places_of",
    "places_on",
    "read_tensors",
    "reading",
]

Places = Mapping[str, torch.device]
"""The tensors that are wanted on another device than the CPU, and where."""

_SHARE = 0.8
"""How much of the room on a device is counted on: it may be in pieces."""


class OpenedObject:
    """A tensor object that is being read, for these names of the state.

    ``device`` is where it is wanted, if not on the CPU; ``local`` is as for `may_map`.
    """

    def __init__(
        self,
        objects: ObjectStore,
        ref: TensorRef,
        names: list[str],
        device: torch.device | None,
        local: dict[int, bool],
    ) -> None:
        self._objects = objects
        self._ref = ref
        self._device = device
        self._local = local
        self._file: BinaryIO | None = None
        self._raw: torch.Tensor | None = None
        self.names = names
        self.size = object_size(ref.spec)

    def open(self) -> bool:
        """Open it, and say whether no file stays open for `verified`: it is mapped, or encoded.

        A missing object, or one of the wrong length, raises an `IntegrityError`.
        """
        file = open_tensor(self._objects, self._ref)
        if isinstance(file, DecodedObject):
            self._file = file  # which opens nothing before it is read
            return True
        try:
            if self._device is None:
                self._raw = mapped_tensor(file, self.size, self._local)
            if self._raw is None:
                self._file = file
        finally:
            if self._file is None:
                file.close()
        return self._raw is not None

    def verified(self, lanes: Lanes | None) -> torch.Tensor:
        """The tensor, private; on a device it is complete when the lanes have settled.

        An IntegrityError or a FormatError says that the object is not the one of the reference.
        """
        if self._raw is None and self._file is None:
            self.open()
        if isinstance(self._file, DecodedObject) and self._device is None:
            memory = self._file.memory  # verified, and ours
            data = torch.frombuffer(memory, dtype=torch.uint8, offset=DATA_OFFSET)
            return as_tensor(data, self._ref.spec)
        seen = TensorCheck(self._ref.spec)
        if self._device is not None:
            assert self._file is not None
            assert lanes is not None
            with self._file as file:
                file.seek(0)
                seen.update(file.read(DATA_OFFSET))
                data = lanes.receive(file, self._ref.spec, self._device, seen)
        else:
            if self._raw is None:
                assert self._file is not None
                with self._file as file:
                    self._raw = read_tensor(file, self.size)
            view = as_bytes(self._raw)
            seen.update(view)
            # A storage of the data alone: who saves the tensor elsewhere saves no header of ours.
            data = torch.frombuffer(view, dtype=torch.uint8, offset=DATA_OFFSET)
        check_tensor(self._objects, self._ref, seen)
        return as_tensor(data, self._ref.spec)


_Group = tuple[TensorRef, torch.device | None]


def read_tensors(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None = None,
    *,
    shared: bool = False,
    places: Places | None = None,
) -> dict[str, torch.Tensor]:
    """Read and verify tensors of a state, in the order of ``names`` or of the state object.

    Only ``names`` are read, if given. Tensors are private and writable; with ``shared`` equal ones
    share memory: for copies only. Those with ``places`` go to another device than the CPU.

    Raises an `IntegrityError`, which names tensor and path, if an object is missing or damaged, and
    a `FormatError` if it is not what the state object says or this torch lacks its element type.
    """
    with reading(objects, state, names, shared=shared, places=places) as read:
        return read()


@contextmanager
def reading(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None = None,
    *,
    shared: bool = False,
    places: Places | None = None,
) -> Iterator[Callable[[], dict[str, torch.Tensor]]]:
    """Like `read_tensors`, with time to compare names and shapes while the first bytes are read.

    Yields a call that gives what `read_tensors` returns, and raises what it raises. Without that
    call the reading ends with the context. Where the room on a device does not suffice after all,
    since somebody else has taken it meanwhile, all tensors are on the CPU.
    """
    with ExitStack() as stack:
        read = stack.enter_context(_reading(objects, state, names, shared, places or {}))

        def read_somewhere() -> dict[str, torch.Tensor]:
            try:
                return read()
            except torch.OutOfMemoryError:
                if not places:
                    raise
            stack.close()  # what came as far as the device makes room again
            return read_tensors(objects, state, names, shared=shared)

        yield read_somewhere


@contextmanager
def _reading(
    objects: ObjectStore,
    state: StateObject,
    names: Collection[str] | None,
    shared: bool,
    places: Places,
) -> Iterator[Callable[[], dict[str, torch.Tensor]]]:
    wanted = list(state.specs) if names is None else list(names)
    found: dict[str, torch.Tensor] = {}
    groups, small = _grouped(state, wanted, places)
    # The largest first, so that the threads end together.
    ordered = sorted(groups.items(), key=lambda item: -item[0][0].spec.nbytes)
    queue: SimpleQueue[OpenedObject | None] = SimpleQueue()
    lanes = Lanes(places.values()) if places else None
    settle = lanes.settle if lanes else lambda: None

    def verify(one: OpenedObject) -> None:
        with concerning(tensor=one.names[0]):
            found[one.names[0]] = one.verified(lanes)

    try:
        with begun(verify, iter(queue.get, None), cancel=lambda: queue.put(None)) as finish:
            refused: Exception | None = None
            try:
                _enqueue(objects, ordered, queue)
            except Exception as error:  # raised only when it is clear that the state fits
                refused = error
            queue.put(None)

            def result() -> dict[str, torch.Tensor]:
                if refused is not None:
                    raise refused
                for device, listed in small.items():
                    found.update(inline_tensors(state, listed, device))
                finish()
                settle()  # only then can tensors be copied
                for first, *others in groups.values():
                    for name in others:
                        found[name] = found[first] if shared else found[first].clone()
                return {name: found[name] for name in wanted}

            yield result
    finally:
        settle()  # before the memory that is copied to can be used for anything else
        found.clear()


def _grouped(
    state: StateObject, wanted: list[str], places: Places
) -> tuple[dict[_Group, list[str]], dict[torch.device | None, list[str]]]:
    """The names of each tensor object and device, and those of small tensors by device."""
    groups: dict[_Group, list[str]] = {}
    small: dict[torch.device | None, list[str]] = {}
    for name in wanted:
        if name in state.refs:
            groups.setdefault((state.refs[name], places.get(name)), []).append(name)
        else:
            small.setdefault(places.get(name), []).append(name)
    return groups, small


def _enqueue(
    objects: ObjectStore,
    ordered: list[tuple[_Group, list[str]]],
    queue: SimpleQueue[OpenedObject | None],
) -> None:
    """Hand out the objects, those that can be mapped as maps.

    One thread maps them, so that the others do little else than hash: whenever they let go of the
    interpreter's lock, for each call of the system, they may have to wait for it afterwards.
    """
    local: dict[int, bool] = {}
    ahead = True
    for (ref, device), names in ordered:
        one = OpenedObject(objects, ref, names, device, local)
        if ahead and device is None:
            with concerning(tensor=names[0]):
                ahead = one.open()
        queue.put(one)


def inline_tensors(
    state: StateObject, names: Iterable[str], device: torch.device | None = None
) -> dict[str, torch.Tensor]:
    """The small tensors: those of a type are copied by one call, for a model can have thousands."""
    tensors = state.inline
    by_dtype: dict[str, list[str]] = {}
    for name in names:
        by_dtype.setdefault(tensors[name].spec.dtype, []).append(name)
    found: dict[str, torch.Tensor] = {}
    for listed in by_dtype.values():
        try:
            shapes = []
            for name in listed:
                dtype = torch_dtype(tensors[name].spec)
                shapes.append(torch_shape(tensors[name].spec))
        except FormatError as error:
            error.tensor = name
            raise
        data = bytearray().join([tensors[name].data for name in listed])
        whole = torch.empty(0, dtype=dtype, device="cpu")
        if data:
            whole = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
        if device is not None:
            whole = whole.to(device)
        # torch's stubs say of it that it returns nothing.
        parts = torch.split_with_sizes_copy(  # type: ignore[func-returns-value]
            whole, [prod(shape) for shape in shapes]
        )
        for name, shape, part in zip(listed, shapes, parts, strict=True):  # type: ignore[call-overload]
            found[name] = part if len(shape) == 1 else part.view(shape)
    return found


def places_of(model: TensorModel, specs: Mapping[str, TensorSpec]) -> Places:
    """The devices of a model's entries that a state has values for, if they are accelerators.

    What is sent there is not the model's own memory, which stays as it is until all is verified.
    So it takes as much again; where there is no room for that, nothing is placed, and the values
    come by way of the CPU.
    """
    in_use: Any = torch.cuda.is_initialized  # has no types; without it nothing is on a GPU
    if not isinstance(model, torch.nn.Module) or not in_use():
        return {}
    wanted: dict[torch.device, list[str]] = {}
    for name, entry in entries(model).items():
        if name in specs and isinstance(entry, torch.Tensor) and is_accelerator(entry.device):
            wanted.setdefault(entry.device, []).append(name)
    return {
        name: device
        for device, names in wanted.items()
        if sum(specs[name].nbytes for name in names) < _SHARE * _room(device)
        for name in names
    }


def places_on(device: Any, names: Iterable[str]) -> Places:
    """The same device, a ``torch.device`` or what names one, for all names; none for a CPU."""
    try:
        place = torch.device(device)
    except (TypeError, RuntimeError):  # something else that Tensor.to takes, or refuses
        return {}
    if not is_accelerator(place):
        return {}
    if place.index is None:
        place = torch.device(place.type, torch.cuda.current_device())
    return dict.fromkeys(names, place)


def _room(device: torch.device) -> int:
    """The bytes that can be had on a device: nobody's, and those that torch keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept

"""Tensors on their way to a GPU: read, sent and hashed in one pass, piece by piece.

What is read goes into pinned memory, from which the device copies by itself. Meanwhile the same
bytes are hashed, and the next piece is read into the next buffer. So the host keeps a few
megabytes, whatever the size of a state, and what was hashed is what was sent.

The tensors on the device are new ones that nobody has seen: they become the model's own, or are
copied into it, when all of a state is verified.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import torch

from mlstate.format.tensor_object import TensorCheck, TensorSpec
from mlstate.tensors.memory import as_bytes, read_into

__all__ = ["Lanes", "is_accelerator"]

PIECE = 2 << 20
"""Read, sent and hashed at once: it stays in the core's cache until it is hashed."""
_BUFFERS = 4
"""Pieces under way, for each thread and device."""


def is_accelerator(device: torch.device | None) -> bool:
    """Whether tensors are sent to a device through lanes: whether it is a GPU."""
    return device is not None and device.type == "cuda"


class Lanes:
    """The ways to devices in one act of reading: each thread has a lane of its own to each device.

    Made by the thread that asks for the tensors: they are as if it had made them, on the streams
    that it works on.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._streams = {
            device: torch.cuda.current_stream(device) if is_accelerator(device) else None
            for device in set(devices)
        }
        self._own = threading.local()
        self._all: list[_Lane] = []

    def receive(
        self, file: BinaryIO, spec: TensorSpec, device: torch.device, seen: TensorCheck
    ) -> torch.Tensor:
        """Read a tensor's data onto a device: uint8, one dimension, complete when `settle` returns.

        The open file is at the first byte of the data; an `IntegrityError` says that it became
        shorter. ``seen`` takes all bytes, in order.
        """
        lanes: dict[torch.device, _Lane] | None = getattr(self._own, "lanes", None)
        if lanes is None:
            lanes = self._own.lanes = {}
        if device not in lanes:
            lanes[device] = _Lane(device, self._streams[device])
            self._all.append(lanes[device])
        return lanes[device].receive(file, spec, seen)

    def settle(self) -> None:
        """Wait until the devices have all that was sent; after a failure, too."""
        for lane in self._all:
            lane.settle()


class _Lane:
    """One thread's way to one device: a ring of buffers, and a stream that copies from them.

    On the CPU there is neither pinned memory nor a stream, and the rest is the same.
    """

    def __init__(self, device: torch.device, owner: Any) -> None:
        self._device = device
        self._owner = owner
        make: Any = torch.cuda.Stream  # has no types
        self._stream = None if owner is None else make(device)
        self._buffers = [
            torch.empty(PIECE, dtype=torch.uint8, device="cpu", pin_memory=owner is not None)
            for _ in range(_BUFFERS)
        ]
        self._sent: list[Any] = [None] * _BUFFERS
        self._next = 0

    def receive(self, file: BinaryIO, spec: TensorSpec, seen: TensorCheck) -> torch.Tensor:
        with _working_on(self._owner):
            target = torch.empty(spec.nbytes, dtype=torch.uint8, device=self._device)
        if self._stream is not None:
            # The memory may be in use still, by what was asked of the device before.
            self._stream.wait_stream(self._owner)
        for start in range(0, spec.nbytes, PIECE):
            part = target[start : start + PIECE]
            piece = self._free_buffer()[: len(part)]
            view = as_bytes(piece)
            read_into(file, view)
            self._sent[self._next] = self._send(piece, part)
            self._next = (self._next + 1) % _BUFFERS
            seen.update(view)
        return target

    def settle(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _free_buffer(self) -> torch.Tensor:
        """The next buffer, once the device is done with it."""
        sent = self._sent[self._next]
        if sent is not None:
            sent.synchronize()
        return self._buffers[self._next]

    def _send(self, piece: torch.Tensor, part: torch.Tensor) -> Any:
        """Begin to copy; returns an event that says when that is done, or None if it is."""
        with _working_on(self._stream):
            part.copy_(piece, non_blocking=True)
        return None if self._stream is None else self._stream.record_event()


def _working_on(stream: Any) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)

"""One tensor object on its way to a tensor: opened, mapped or read, and verified."""

from __future__ import annotations

from typing import BinaryIO

import torch

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import FormatError
from mlstate.format import tensor_object
from mlstate.format.dtypes import check_values
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import DATA_OFFSET
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_digest, check_size
from mlstate.tensors.gpu import Lanes
from mlstate.tensors.memory import as_bytes, as_tensor, mapped_tensor, read_tensor

__all__ = ["OpenedObject"]

_WHAT = "a tensor object"


class OpenedObject:
    """A tensor object that is being read.

    Args:
        objects: Where it is.
        ref: Which it is.
        names: The names of the state that it stands for.
        device: Where it is wanted, if not on the CPU.
        local: As for `may_map`.
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
            if self._device is None:
                self._raw = mapped_tensor(file, self.size, self._local)
            if self._raw is None:
                self._file = file
        finally:
            if self._file is None:
                file.close()
        return self._raw is not None

    def verified(self, lanes: Lanes) -> torch.Tensor:
        """The tensor, private.

        Args:
            lanes: What it goes through, if it is wanted on another device; it is there when they
                have settled.

        Raises:
            IntegrityError: It is missing or damaged.
            FormatError: It is another than the state object says.
        """
        if self._device is not None:
            data = self._sent(self._device, lanes)
        else:
            view = as_bytes(self._content())
            self._check(Digest.of(view), view[:DATA_OFFSET])
            check_values(self._ref.spec, view[DATA_OFFSET:])
            # A storage of the data alone: who saves the tensor elsewhere saves no header of ours.
            data = torch.frombuffer(view, dtype=torch.uint8, offset=DATA_OFFSET)
        return as_tensor(data, self._ref.spec)

    def _check(self, found: Digest, header: Bytes) -> None:
        objects, digest, spec = self._objects, self._ref.digest, self._ref.spec
        check_digest(objects, digest, found, what=_WHAT)
        if header != tensor_object.header(spec):
            raise FormatError(
                "a tensor object is not the tensor that the state object says it is",
                path=objects.locate(digest),
                expected=f"{spec.dtype} {list(spec.shape)}",
                found=bytes(header[8:200]).rstrip(),
            )

    def _sent(self, device: torch.device, lanes: Lanes) -> torch.Tensor:
        hasher = Hasher()
        with self._opened() as file:
            file.seek(0)
            header = file.read(DATA_OFFSET)
            hasher.update(header)
            try:
                data = lanes.receive(file, self._ref.spec, device, hasher)
            except FormatError:
                hasher.update(file.read())
                self._check(hasher.digest(), header)  # damage is damage first
                raise
        self._check(hasher.digest(), header)
        return data

    def _content(self) -> torch.Tensor:
        if self._raw is None and self._file is None:
            self.open()
        if self._raw is None:
            with self._opened() as file:
                self._raw = read_tensor(file, self.size)
        return self._raw

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.open()
        assert self._file is not None
        return self._file

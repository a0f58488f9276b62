"""The files of a state, as `materialize` writes them, read without writing any.

The bytes of a weights file are put together as they are read, and each tensor is fetched and
verified before the first of its bytes is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import BinaryIO

from mlstate.errors import concerning
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_tensor, open_tensor
from mlstate.reading import Only, read_state
from mlstate.states import StateKey
from mlstate.stores.abstract import Found
from mlstate.stores.materialize import outputs_of
from mlstate.stores.read import StateStore
from mlstate.weights.writer import Output, WeightsOutput

__all__ = ["Content", "StateFiles"]

_OPEN = 16
"""How many tensor objects a file keeps open."""
_PIECE = 1 << 20


class StateFiles:
    """The files of a state, as `materialize` writes them."""

    def __init__(self, store: StateStore, key: StateKey) -> None:
        self.store = store
        self.key = key

    def files(self) -> dict[str, tuple[int, str]]:
        """Each file with its size in bytes and its digest."""
        content = self.store.files(self.key)
        found = {
            name: (_size(output, content), str(output.digest))
            for name, output in self._outputs().items()
        }
        return dict(sorted(found.items()))

    def content(self, name: str) -> Content:
        """The bytes of a file."""
        output = self._outputs()[name]
        if isinstance(output, WeightsOutput):
            return _WeightsContent(self.store, self.store.get(self.key), self._state(), output)
        return Content(output.content or self.store.files(self.key)[name])

    def _outputs(self) -> dict[str, Output]:
        def plan(found: Found) -> list[Output]:
            self.store.access.bring(found.entry, Only.STATE_OBJECT)
            return outputs_of(found.entry, read_state(*found), found.objects, None)

        outputs = self.store.reading(self.key, plan, Only.STATE_OBJECT)
        return {output.name: output for output in outputs}

    def _state(self) -> StateObject:
        return self.store.reading(
            self.key, lambda found: read_state(*found), Only.STATE_OBJECT, files=False
        )


def _size(output: Output, content: Mapping[str, bytes]) -> int:
    if isinstance(output, WeightsOutput):
        return output.layout.size
    return len(output.content or content[output.name])


class Content:
    """Bytes that are in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, start: int, end: int) -> bytes:
        """The bytes from one place to another."""
        return self._data[start:end]

    def close(self) -> None:
        """Let go of what is open."""


class _WeightsContent(Content):
    """The bytes of a weights file, put together of tensors that are verified as they are met."""

    def __init__(
        self, store: StateStore, found: Found, whole: StateObject, output: WeightsOutput
    ) -> None:
        super().__init__(output.layout.header)
        # What is fetched is named as the state names it; a file may call it something else.
        self._names = {ref.digest: name for name, ref in whole.refs.items()}
        self._store = store
        self._found = found
        self._layout = output.layout
        self._state = output.state
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def read(self, start: int, end: int) -> bytes:
        """See `Content.read`."""
        parts = [super().read(start, end)]
        for name, spec in self._layout.specs.items():
            first = self._layout.starts[name]
            low, high = max(start, first), min(end, first + spec.nbytes)
            if low < high:
                parts.append(self._part(name, low - first, high - first))
        return b"".join(parts)

    def close(self) -> None:
        """See `Content.close`."""
        while self._open:
            self._open.popitem()[1].close()

    def _part(self, name: str, low: int, high: int) -> bytes:
        if name in self._state.inline:
            return bytes(self._state.inline[name].data[low:high])
        if name not in self._open:
            while len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[name] = self._verified(name)
        file = self._open[name]
        file.seek(DATA_OFFSET + low)
        data = b""
        while len(data) < high - low and (piece := file.read(high - low - len(data))):
            data += piece
        return data

    def _verified(self, name: str) -> BinaryIO:
        """The object of a tensor, all of which has been compared with its digest.

        It stays open, so that what is read later is of the same file. A file that is opened again
        is verified again.
        """
        entry, ref = self._found.entry, self._state.refs[name]
        known = [self._names[ref.digest]]

        def read() -> BinaryIO:
            self._store.access.bring(entry, known, files=False)
            return _opened(self._found.objects, ref)

        with concerning(entry.key, tensor=name):
            return self._store.access.repaired(entry, read, known, files=False)


def _opened(objects: ObjectStore, ref: TensorRef) -> BinaryIO:
    """Open a tensor object, after all of it was verified.

    Raises:
        IntegrityError: It is missing or damaged.
    """
    file = open_tensor(objects, ref)
    try:
        file.seek(0)
        seen = TensorCheck(ref.spec)
        seen.update(file.read(DATA_OFFSET))
        while piece := file.read(_PIECE):
            seen.update(piece)
        check_tensor(objects, ref, seen)
    except BaseException:
        file.close()
        raise
    return file

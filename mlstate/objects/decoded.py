"""Objects that are in encoded form only, decoded into memory of the reader's own, and verified.

What a loader finds may change while it looks: an object is encoded, and the plain one retired, or
the other way round. So each is looked for plainly, then encoded, and then once more.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError, MlstateError, ObjectNotFoundError
from mlstate.format.encoded_object import Head
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import (
    DATA_OFFSET,
    TensorSpec,
    check_values,
    header,
    object_size,
)
from mlstate.objects.interface import EncodedFile, EncodedObjectStore, ObjectStore
from mlstate.objects.mapped import MAP_FROM, view_of
from mlstate.phrases import flag

__all__ = ["REMEDY", "DecodedObject", "find_encoded"]

REMEDY = "restore this object from a backup, or bring the state again with " + flag("verify")
"""What helps against damage in a store of one's own."""

_LOOKS = 2


class DecodedObject(io.RawIOBase):
    """A tensor object as a file in memory: decoded when its first byte is read, and verified.

    No file is open before and after. Whoever reads it may keep the memory, and write to it.
    """

    def __init__(self, store: EncodedObjectStore, ref: TensorRef) -> None:
        self._store = store
        self._ref = ref
        self._memory: memoryview | None = None
        self._position = 0

    @property
    def memory(self) -> memoryview:
        """All bytes of the object: the header, and the data from `DATA_OFFSET` on.

        Raises:
            IntegrityError: It is missing or damaged, or something that it needs is; the error names
                that.
            FormatError: It is not the tensor of the reference, or needs a newer mlstate.
        """
        if self._memory is None:
            try:
                self._memory = _object_in_memory(self._store, self._ref)
            except MlstateError as error:
                _free(error)
                raise
        return self._memory

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; nothing is decoded for that."""
        position = offset + {0: 0, 1: self._position, 2: object_size(self._ref.spec)}[whence]
        if position < 0:
            raise ValueError("before the start of the object")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Fill memory with the next bytes; returns how many there were."""
        view = memoryview(buffer).cast("B")
        piece = self.memory[self._position : self._position + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        """The rest."""
        rest = self.memory[self._position :]
        self._position += len(rest)
        return bytes(rest)


def _free(error: BaseException | None) -> None:
    """Let go of what the calls held that an error went through: a tensor, perhaps two.

    An error and these calls refer to each other, and would wait for the garbage collector.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def find_encoded(store: ObjectStore, digest: Digest, spec: TensorSpec) -> DecodedObject | None:
    """A tensor object that is in encoded form; None if it is not."""
    if not isinstance(store, EncodedObjectStore):
        return None
    try:
        store.open_encoded(digest).close()
    except ObjectNotFoundError:
        return None
    return DecodedObject(store, TensorRef(spec, digest))


@dataclass(frozen=True)
class _Form:
    """The encoded form of an object of a chain."""

    digest: Digest
    file: EncodedFile
    head: Head


def _object_in_memory(store: EncodedObjectStore, ref: TensorRef) -> memoryview:
    with ExitStack() as stack:
        forms, base = _opened_chain(store, ref, stack)
        whole = _new_memory(object_size(ref.spec))
        data = whole[DATA_OFFSET:]
        whole[:DATA_OFFSET] = header(ref.spec)
        if forms:
            _decode_chain(store, ref, forms, base, data)
        else:  # it is plain again
            assert base is not None
            data[:] = base
            _check(store, ref.digest, ref.spec, data)
        return whole


def _opened_chain(
    store: EncodedObjectStore, ref: TensorRef, stack: ExitStack
) -> tuple[list[_Form], Bytes | None]:
    """The encoded forms that an object is made of, its own first, and the data of the plain base.

    Not more than its first depth says, which is bounded: each base has a lower one.
    """
    from mlstate.encoded import read_head

    forms: list[_Form] = []
    wanted: Digest | None = ref.digest
    while wanted is not None:
        plain, file = _open_either(store, wanted, needed_by=forms[-1].digest if forms else None)
        if plain is not None:
            return forms, stack.enter_context(_plain_data(store, wanted, ref.spec, plain))
        assert file is not None
        stack.enter_context(closing(file))
        with _blaming(store, wanted):
            head = read_head(file, ref.spec)
            if forms:
                forms[-1].head.check_base(head)
        forms.append(_Form(wanted, file, head))
        wanted = head.base
    return forms, None


def _open_either(
    store: EncodedObjectStore, digest: Digest, *, needed_by: Digest | None
) -> tuple[BinaryIO, None] | tuple[None, EncodedFile]:
    """Open an object plainly, or its encoded form."""
    for _ in range(_LOOKS):
        with suppress(ObjectNotFoundError):
            return store.open(digest), None
        with suppress(ObjectNotFoundError):
            return None, store.open_encoded(digest)
    try:
        return store.open(digest), None
    except ObjectNotFoundError as error:
        if needed_by is not None:
            error.message = "the base of an encoded object is missing"
            error.found = f"an object that needs it: {needed_by}"
        raise


@contextmanager
def _plain_data(
    store: ObjectStore, digest: Digest, spec: TensorSpec, file: BinaryIO
) -> Iterator[Bytes]:
    """The data of a plain tensor object, not verified: mapped where that is safe, or read."""
    size = object_size(spec)
    with file:
        found = file.seek(0, 2)
        if found != size:
            raise IntegrityError(
                "the base of an encoded object is damaged: it has the wrong length",
                path=store.locate(digest),
                expected=f"{size} bytes",
                found=f"{found} bytes",
                remedy=REMEDY,
            )
        view = view_of(file, size)
        if len(view) != size:
            raise IntegrityError("a file became shorter while it was read", path=digest)
    yield view[DATA_OFFSET:]


def _decode_chain(
    store: EncodedObjectStore,
    ref: TensorRef,
    forms: list[_Form],
    base: Bytes | None,
    out: memoryview,
) -> None:
    """Decode from the last form to the first, each into the memory that the next does not read.

    Only what comes out at the end is verified; if it is wrong, all is decoded once more, and the
    first that is wrong is named.
    """
    from mlstate.encoded import decode

    other = out if len(forms) == 1 else _new_memory(ref.spec.nbytes)

    def data_of(verify: bool) -> Bytes | None:
        below = base
        if verify and base is not None:
            named = forms[-1].head.base
            assert named is not None
            _check(store, named, ref.spec, base, what="the base of an encoded object")
        for number in reversed(range(len(forms))):
            target = other if number % 2 else out
            with _blaming(store, forms[number].digest):
                decode(forms[number].file, ref.spec, target, below)
            if verify or number == 0:
                _check(store, forms[number].digest, ref.spec, target)
            below = target
        return below

    try:
        data_of(verify=False)
    except IntegrityError:
        data_of(verify=True)
        raise


def _check(
    store: ObjectStore,
    digest: Digest,
    spec: TensorSpec,
    data: Bytes,
    *,
    what: str = "an encoded object",
) -> None:
    """Refuse, by an IntegrityError, data that are not those of an object."""
    found = Digest.of(header(spec), data)
    if found != digest:
        raise IntegrityError(
            f"{what} is damaged: its bytes are not those that its digest names",
            path=store.locate(digest),
            expected=digest,
            found=found,
            remedy=REMEDY,
        )
    try:
        check_values(spec, data)
    except FormatError as error:
        error.path = store.locate(digest)
        raise


@contextmanager
def _blaming(store: ObjectStore, digest: Digest) -> Iterator[None]:
    """Say which object is damaged whose encoded form is not what readers take."""
    try:
        yield
    except FormatError as error:
        path = store.locate(digest)
        if error.remedy is not None:  # a form that a newer version knows
            error.path = path
            raise
        raise IntegrityError(
            f"an encoded object is damaged: {error.message}",
            path=path,
            expected=error.expected,
            found=error.found,
            remedy=REMEDY,
        ) from None


def _new_memory(size: int) -> memoryview:
    """Memory that may be written, of this process alone; large one is not filled with zeros first.

    A map begins with a page, which suits every element type.
    """
    if size < MAP_FROM or not hasattr(mmap, "MAP_ANONYMOUS"):
        return memoryview(bytearray(size))
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

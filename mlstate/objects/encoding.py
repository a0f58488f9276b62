"""An object gets an encoded form beside it, which is read back before anyone relies on it.

Imports torch when something is encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from mlstate.digests import Bytes
from mlstate.errors import FormatError, IntegrityError
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, TensorSpec, object_size
from mlstate.objects.decoded import DecodedObject
from mlstate.objects.encoded_forms import head_of
from mlstate.objects.interface import EncodingObjectStore, ObjectStore
from mlstate.objects.mapped import view_of
from mlstate.objects.verified import check_tensor, open_tensor
from mlstate.parallel import THREADS

__all__ = [
    "Original",
    "distance_to",
    "encode_beside",
    "encoded_estimate",
    "is_near",
    "sample_of",
    "stands_alone",
    "tensor_data",
]

_NEAR = {"BF16": 0.5, "F16": 0.7}
_NEAR_ELSE = 0.75
"""The distance, by type, from which on an object takes no fewer bytes as a difference than alone.
Measured on normal values; tensors that have nothing to do with each other are at 0.7, 0.8, 0.85."""


@dataclass(frozen=True, slots=True)
class Original:
    """What an object is encoded as the difference to: its reference, its data, verified, its depth.

    The depth is that of its own encoded form; 0 if it is plain, or encoded alone.
    """

    ref: TensorRef
    data: Bytes
    depth: int = 0


@contextmanager
def tensor_data(store: ObjectStore, ref: TensorRef) -> Iterator[memoryview]:
    """The data of a tensor object, plain or decoded, verified; mapped where that is safe.

    Raises:
        IntegrityError: It is missing or damaged, or something that it is built on is.
        FormatError: It is another tensor than the reference says.
    """
    with open_tensor(store, ref) as file:
        if isinstance(file, DecodedObject):
            yield file.memory[DATA_OFFSET:]  # which is verified
            return
        view = view_of(file, object_size(ref.spec))
    check = TensorCheck(ref.spec)
    check.update(view)
    check_tensor(store, ref, check)
    yield view[DATA_OFFSET:]


def sample_of(store: ObjectStore, ref: TensorRef) -> bytes:
    """The sample of a tensor object, as `mlstate.encoded.distance` takes it; not verified.

    Raises:
        IntegrityError: It is missing, or has the wrong length.
    """
    from mlstate.encoded import sample_ranges

    with open_tensor(store, ref) as file:
        parts = []
        for place in sample_ranges(ref.spec):
            file.seek(DATA_OFFSET + place.start)
            parts.append(file.read(len(place)))
    return b"".join(parts)


def distance_to(store: ObjectStore, ref: TensorRef, data: Bytes) -> float:
    """How far data in memory are from a tensor object of the same type and shape.

    Raises:
        IntegrityError: The object is missing, or has the wrong length.
    """
    from mlstate.encoded import distance, sample_ranges

    view = memoryview(data)
    sample = b"".join(view[place.start : place.stop] for place in sample_ranges(ref.spec))
    return distance(sample, sample_of(store, ref), ref.spec)


def is_near(distance: float, spec: TensorSpec) -> bool:
    """Whether an object takes fewer bytes as a difference to one at this distance than alone."""
    return distance < _NEAR.get(spec.dtype, _NEAR_ELSE)


def stands_alone(spec: TensorSpec) -> bool:
    """Whether objects of a type are encoded alone where they are near to none.

    Half of the bits of bfloat16 are sign and exponent, which are few different ones.
    """
    return spec.dtype == "BF16"


def encoded_estimate(data: Bytes, spec: TensorSpec, base: Original | None) -> int | None:
    """About how many bytes an encoded form would take; None if that saves less than a tenth."""
    from mlstate.encoded import Base, estimated_size, saves_enough

    its = None if base is None else Base(base.ref.digest, base.data, base.depth)
    size = estimated_size(data, spec, its)
    return size if saves_enough(size, spec) else None


def encode_beside(
    store: EncodingObjectStore,
    ref: TensorRef,
    data: Bytes,
    base: Original | None,
    threads: int = THREADS,
) -> int | None:
    """Write the encoded form of an object, read it back, decode it, and hold it against the digest.

    The plain object, if there is one, stays; so does a form that is there already and is good,
    whatever its base.

    Args:
        store: The store.
        ref: The object.
        data: Its data.
        base: What it is encoded against; None: alone.
        threads: How many blocks are encoded at once.

    Returns:
        The size of the encoded form in bytes; None if it saves less than a tenth, and is not kept.

    Raises:
        IntegrityError: What was read back is not what was written: the disk or the memory is not to
            be trusted. The encoded form is dropped.
    """
    from mlstate.encoded import Base, encode

    if store.encoded_size(ref.digest) is not None:
        return _taken_over(store, ref, threads)
    if encoded_estimate(data, ref.spec, base) is None:
        return None
    its = None if base is None else Base(base.ref.digest, base.data, base.depth)
    parts = _limited(encode(data, ref.spec, its, threads=threads), ref)
    try:
        if not store.put_encoded(ref.digest, parts, replace=False):
            return _taken_over(store, ref, threads)
    except _TooLargeError:
        return None
    _check(store, ref, None if base is None else base.data, threads)
    return store.encoded_size(ref.digest)


def _taken_over(store: EncodingObjectStore, ref: TensorRef, threads: int) -> int | None:
    """The size of the form that an object has already, of one who was killed say; None if bad.

    It is never replaced: another process may have given up the plain object for it just now.
    """
    try:
        base = head_of(store, ref.digest).base
        if base is None:
            _check(store, ref, None, threads)
        else:
            with tensor_data(store, TensorRef(ref.spec, base)) as its:
                _check(store, ref, its, threads)
    except (IntegrityError, FormatError):
        return None
    return store.encoded_size(ref.digest)


class _TooLargeError(Exception):
    """An encoded form that saves less than its estimate promised."""


def _limited(parts: Iterable[bytes], ref: TensorRef) -> Iterator[bytes]:
    """The parts of an encoded form, up to the size from which on it is not worth keeping."""
    from mlstate.encoded import saves_enough

    size = 0
    for part in parts:
        size += len(part)
        if not saves_enough(size, ref.spec):
            raise _TooLargeError
        yield part


def _check(store: EncodingObjectStore, ref: TensorRef, base: Bytes | None, threads: int) -> None:
    """Decode what was written, from where it was written to; what is bad is dropped."""
    from mlstate.encoded import decode_verified

    out = memoryview(bytearray(ref.spec.nbytes))
    try:
        with closing(store.open_encoded(ref.digest)) as source:
            decode_verified(source, ref, out, base, threads=threads)
    except (IntegrityError, FormatError):
        with suppress(FormatError):  # there is no plain object
            store.drop_encoded(ref.digest)
        raise

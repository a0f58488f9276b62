"""Verified reading: no byte is used before its digest was compared."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import BinaryIO

from mlstate.digests import Digest, Hasher
from mlstate.errors import IntegrityError, MlstateError, ObjectNotFoundError
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import TensorCheck, TensorSpec, object_size
from mlstate.objects.decoded import REMEDY, find_encoded
from mlstate.objects.interface import ObjectStore

__all__ = [
    "REMEDY",
    "check_digest",
    "check_size",
    "check_tensor",
    "digest_of",
    "is_disk_error",
    "open_object",
    "open_tensor",
    "pieces_of",
    "read_verified",
]

_TENSOR = "a tensor object"
_PIECE = 1 << 20
"""The bytes that are read at once: a piece is hashed while it is in the processor's cache. This is
as fast as hashing memory, and no slower than a map (measured); and of a map, a file that becomes
shorter meanwhile kills the process."""
_FIRST = 1 << 16  # most objects are smaller, and need no more


def read_verified(
    store: ObjectStore,
    digest: Digest,
    *,
    what: str,
    max_size: int | None = None,
    spec: TensorSpec | None = None,
) -> bytes:
    """Read a whole object and verify it.

    Args:
        store: Where from.
        digest: Which object.
        what: What it is, for the error: "the state object", say.
        max_size: The most bytes that it may have; checked before memory is spent.
        spec: Of a tensor object its type and shape: then it may be in encoded form.

    Raises:
        IntegrityError: It is missing, too large, or has others bytes than its digest says.
    """
    with open_object(store, digest, spec) as file:
        size = file.seek(0, 2)
        if max_size is not None and size > max_size:
            raise IntegrityError(
                f"{what} is too large",
                path=store.locate(digest),
                expected=f"at most {max_size} bytes",
                found=f"{size} bytes",
            )
        file.seek(0)
        data = file.read()
    check_digest(store, digest, Digest.of(data), what=what)
    return data


def open_object(store: ObjectStore, digest: Digest, spec: TensorSpec | None = None) -> BinaryIO:
    """Open an object, of a tensor if a type and shape are given: one that may be encoded.

    What is in encoded form only is a file in memory, which is verified when it is first read:
    `mlstate.objects.decoded`. All else is not verified.

    Raises:
        ObjectNotFoundError: It is not here.
    """
    try:
        return store.open(digest)
    except ObjectNotFoundError:
        if spec is None:
            raise
        found = find_encoded(store, digest, spec)
        # If it is not encoded either, it may have become plain between the two looks.
        return store.open(digest) if found is None else found  # type: ignore[return-value]


def pieces_of(
    store: ObjectStore, digest: Digest, spec: TensorSpec | None = None
) -> Iterator[memoryview]:
    """The bytes that an object really has, piece by piece, not verified; arguments as above.

    All pieces are in the same memory, so each is valid until the next one is asked for.
    """
    with open_object(store, digest, spec) as file:
        buffer = memoryview(bytearray(_FIRST))
        while count := file.readinto(buffer):  # type: ignore[attr-defined]  # all that is opened has it
            yield buffer[:count]
            if count == len(buffer) < _PIECE:
                buffer = memoryview(bytearray(_PIECE))


def digest_of(store: ObjectStore, digest: Digest, spec: TensorSpec | None = None) -> Digest:
    """The digest of the bytes that an object really has, read piece by piece.

    Raises an `IntegrityError` if it is in encoded form, as of `open_object`, and damaged.
    """
    hasher = Hasher()
    for piece in pieces_of(store, digest, spec):
        hasher.update(piece)
    return hasher.digest()


def is_disk_error(error: OSError) -> bool:
    """Whether an error says that the disk cannot give the bytes that are on it."""
    return error.errno == errno.EIO and not isinstance(error, MlstateError)


def check_digest(store: ObjectStore, expected: Digest, found: Digest, *, what: str) -> None:
    """Refuse, by an IntegrityError, an object whose bytes have another digest."""
    if found != expected:
        raise IntegrityError(
            f"{what} is damaged: its bytes are not those that its digest names",
            path=store.locate(expected),
            expected=expected,
            found=found,
            remedy=REMEDY,
        )


def open_tensor(store: ObjectStore, ref: TensorRef) -> BinaryIO:
    """Open a tensor object of the right length; the position is then at the end of the file.

    Raises an `ObjectNotFoundError`, or an `IntegrityError` if it is too short or too long.
    """
    file = open_object(store, ref.digest, ref.spec)
    try:
        size = file.seek(0, 2)
        check_size(store, ref.digest, object_size(ref.spec), size, what=_TENSOR)
    except BaseException:
        file.close()
        raise
    return file


def check_tensor(store: ObjectStore, ref: TensorRef, seen: TensorCheck) -> None:
    """Refuse a tensor object, all of whose bytes were seen, that is not the one of a reference.

    Raises an `IntegrityError` if it is damaged, and a `FormatError` if it is another tensor than
    the state object says.
    """
    check_digest(store, ref.digest, seen.digest(), what=_TENSOR)
    problem = seen.problem(ref.spec)
    if problem is not None:
        problem.path = store.locate(ref.digest)
        raise problem


def check_size(store: ObjectStore, digest: Digest, expected: int, found: int, *, what: str) -> None:
    """Refuse, by an IntegrityError, an object of the wrong length, without reading it."""
    if found != expected:
        raise IntegrityError(
            f"{what} is damaged: it has the wrong length",
            path=store.locate(digest),
            expected=f"{expected} bytes",
            found=f"{found} bytes",
            remedy=REMEDY,
        )

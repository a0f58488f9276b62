"""What the heads of encoded objects say: how large an object is, and which others it needs.

Nothing is decoded here, and no torch is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, ObjectNotFoundError
from mlstate.format.encoded_object import DEPTH_LIMIT, HEAD_SIZE, Head
from mlstate.format.layout import ENCODED_OBJECTS
from mlstate.format.tensor_object import DATA_OFFSET
from mlstate.objects.interface import EncodedObjectStore
from mlstate.system import pread

__all__ = [
    "BytesFile",
    "RangeFile",
    "bases_of",
    "head_of",
    "no_encoded_form",
    "no_plain_form",
    "restore_chain",
    "says_no_encoded",
    "size_of_encoded",
]


class RangeFile:
    """A file as an `EncodedFile`: any thread may read."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self.size = os.fstat(file.fileno()).st_size

    def read(self, start: int, size: int) -> bytes:
        """See `EncodedFile.read`."""
        parts: list[bytes] = []
        while size:
            part = pread(self._file.fileno(), size, start)
            if not part:
                raise IntegrityError("a file became shorter while it was read", path=self._path)
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BytesFile:
    """Bytes in memory as an `EncodedFile`."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path
        self.size = len(data)

    def read(self, start: int, size: int) -> bytes:
        """See `EncodedFile.read`."""
        if start + size > self.size:
            raise IntegrityError(
                "an encoded object ends too early",
                path=self._path,
                expected=f"{start + size} bytes",
                found=f"{self.size} bytes",
            )
        return self._data[start : start + size]

    def close(self) -> None:
        """Do nothing."""


def head_of(store: EncodedObjectStore, digest: Digest) -> Head:
    """The head of the encoded form of an object.

    Raises:
        ObjectNotFoundError: There is none.
        FormatError: It is not one that this version knows.
    """
    file = store.open_encoded(digest)
    try:
        return Head.peek(file.read(0, min(HEAD_SIZE, file.size)))
    finally:
        file.close()


def size_of_encoded(store: EncodedObjectStore, digest: Digest) -> int | None:
    """The bytes that an object would have whose encoded form is in a store, with all its bases.

    None if something of this is missing, or is not what readers take.
    """
    try:
        needed = list(bases_of(store, digest))
        return DATA_OFFSET + head_of(store, needed[0][0]).nbytes
    except (ObjectNotFoundError, FormatError):
        return None


def bases_of(store: EncodedObjectStore, digest: Digest) -> Iterator[tuple[Digest, bool]]:
    """An object that is in encoded form only, and what it needs: down to one that is plain.

    Yields:
        The digest of each, and whether it is plain; the last one is, or needs no base.

    Raises:
        ObjectNotFoundError: One of them is missing.
        FormatError: One of them is not what readers take.
    """
    above: Head | None = None
    wanted: Digest | None = digest
    while wanted is not None:
        if above is not None and store.plain_size(wanted) is not None:
            yield wanted, True
            return
        head = head_of(store, wanted)
        if above is not None:
            above.check_base(head)
        yield wanted, False
        above, wanted = head, head.base


def restore_chain(
    store: EncodedObjectStore, digest: Digest, put_back: Callable[[Digest], bool]
) -> bool:
    """Put an object back from the trash, and what its encoded form needs, down to the last base.

    A pruning that was killed may have moved some of this only.

    Args:
        store: The store.
        digest: The object.
        put_back: Puts one object back, in the form that the trash has; False if it is not there.

    Returns:
        Whether something was put back.
    """
    restored = put_back(digest)
    for _ in range(DEPTH_LIMIT):
        try:
            base = None if store.plain_size(digest) is not None else head_of(store, digest).base
        except (ObjectNotFoundError, FormatError):
            break
        if base is None:
            break
        if store.plain_size(base) is None and store.encoded_size(base) is None:
            restored |= put_back(base)
        digest = base
    return restored


def no_encoded_form(path: object, digest: Digest) -> FormatError:
    """The error for an object that is to be given up, and has no other form."""
    return FormatError(
        "an object without an encoded form is not given up",
        path=path,
        expected=digest,
    )


def no_plain_form(path: object, digest: Digest) -> FormatError:
    """The error for an encoded form that is to be given up, of an object that has no other."""
    return FormatError(
        "the encoded form of an object is given up only where the object is here plainly, too",
        path=path,
        expected=digest,
    )


def says_no_encoded(path: object, digest: Digest) -> FormatError:
    """The error for an object that is to be given up in a store that its readers misunderstand."""
    return FormatError(
        "the settings of this store do not say that it has encoded objects",
        path=path,
        expected=f"requires = [{ENCODED_OBJECTS!r}]",
        found=f"an object that is to be in encoded form only: {digest}",
    )

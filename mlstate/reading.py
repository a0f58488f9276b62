"""From an entry and an object store to what the entry names: verified, and without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError, StateNotFoundError, concerning
from mlstate.format.state_object import BYTES_NAME, MAX_HEADER, StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, object_size
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore, read_verified
from mlstate.objects.verified import check_tensor, open_tensor

__all__ = [
    "VerifiedFiles",
    "read_bytes_state",
    "read_state",
    "read_state_object",
    "state_object_limit",
    "tensor_pieces",
]

_UNKNOWN_SIZE = 1 << 30
"""The largest state object that is read for a state whose size its manifest does not give."""
_PIECE = 1 << 20


def read_state(entry: StateEntry, objects: ObjectStore) -> StateObject:
    """The verified state object of an entry: names, types, shapes, digests. Needs no torch.

    Raises:
        UnpinnedStateError: The entry gives no digest.
        IntegrityError: The object is missing, damaged, too large, or not of the size that the
            entry gives.
        FormatError: It is not in canonical form.
    """
    state = read_state_object(entry.pinned_digest, objects, state_object_limit(entry))
    if entry.size is not None and entry.size != state.nbytes:
        raise IntegrityError(
            "a state has another size than its manifest says",
            path=entry.origin,
            expected=f"{entry.size} bytes",
            found=f"{state.nbytes} bytes",
        )
    return state


def read_state_object(
    digest: Digest, objects: ObjectStore, max_size: int = _UNKNOWN_SIZE
) -> StateObject:
    """The verified state object with a digest.

    Raises:
        IntegrityError: The object is missing, damaged or too large.
        FormatError: It is not in canonical form.
    """
    data = read_verified(objects, digest, what="a state object", max_size=max_size)
    return StateObject.parse(data)


def state_object_limit(entry: StateEntry) -> int:
    """The most bytes that the state object of an entry can have."""
    return _UNKNOWN_SIZE if entry.size is None else 8 + MAX_HEADER + entry.size


def read_bytes_state(state: StateObject, objects: ObjectStore) -> bytes:
    """The opaque bytes of a state of the older protocol, verified; these need no torch."""
    if BYTES_NAME in state.inline:
        return bytes(state.inline[BYTES_NAME].data)
    ref = state.refs[BYTES_NAME]
    size = object_size(ref.spec)
    data = read_verified(objects, ref.digest, what="a tensor object", max_size=size)
    return data[DATA_OFFSET:]


def tensor_pieces(objects: ObjectStore, ref: TensorRef) -> Iterator[Bytes]:
    """The data of a tensor object, piece by piece: for who waits for the end before it is used.

    Yields:
        Bytes that are not verified before the last piece was taken and the iteration has ended.

    Raises:
        IntegrityError: At the end: the object was damaged; or at once: it is missing.
        FormatError: At the end: it is not what the state object says of it.
    """
    seen = TensorCheck(ref.spec)
    with open_tensor(objects, ref) as file:
        file.seek(0)
        seen.update(file.read(DATA_OFFSET))
        while piece := file.read(_PIECE):
            seen.update(piece)
            yield piece
    check_tensor(objects, ref, seen)


class VerifiedFiles(Mapping[str, bytes]):
    """The files of a state, read and verified as they are looked up.

    Args:
        entry: What is said of the state.
        read: Reads one of them, verified.
    """

    def __init__(self, entry: StateEntry, read: Callable[[str], bytes]) -> None:
        self._entry = entry
        self._read = read

    def __getitem__(self, name: str) -> bytes:
        if name not in self._entry.files:
            raise StateNotFoundError(
                "this state has no file of this name",
                key=self._entry.key,
                path=name,
                expected=", ".join(self) or "it has no files",
            )
        with concerning(self._entry.key):
            return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entry.files))

    def __len__(self) -> int:
        return len(self._entry.files)

    def __repr__(self) -> str:
        return f"<files of {self._entry.key}: {', '.join(self) or 'none'}>"

"""Reading what an entry names in an object store, without torch: missing or there, verified."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError, ObjectNotFoundError, StateNotFoundError, concerning
from mlstate.format.state_object import BYTES_NAME, MAX_HEADER, StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, object_size
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import ObjectStore, read_verified
from mlstate.objects.verified import check_tensor, open_tensor

__all__ = [
    "Names",
    "Needs",
    "Only",
    "VerifiedFiles",
    "check_state_size",
    "needs_of",
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

    Raises an `UnpinnedStateError` if the entry gives no digest, an `IntegrityError` if the object
    is missing, damaged, too large or not of the size that the entry gives, and a `FormatError` if
    it is not in canonical form.
    """
    state = read_state_object(entry.pinned_digest, objects, state_object_limit(entry))
    check_state_size(entry, state.nbytes)
    return state


def check_state_size(entry: StateEntry, nbytes: int) -> None:
    """Refuse, by an IntegrityError, a state of another size than its entry gives."""
    if entry.size is not None and entry.size != nbytes:
        raise IntegrityError(
            "a state has another size than its manifest says",
            path=entry.origin,
            expected=f"{entry.size} bytes",
            found=f"{nbytes} bytes",
        )


def read_state_object(
    digest: Digest, objects: ObjectStore, max_size: int = _UNKNOWN_SIZE
) -> StateObject:
    """The verified state object with a digest; raises as `read_state`."""
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
    what = "a tensor object"
    data = read_verified(objects, ref.digest, what=what, max_size=size, spec=ref.spec)
    return data[DATA_OFFSET:]


def tensor_pieces(objects: ObjectStore, ref: TensorRef) -> Iterator[Bytes]:
    """The data of a tensor object, piece by piece: not verified before the iteration has ended.

    Raises an `IntegrityError` at once if it is missing, and at the end if it is damaged; at the
    end, too, a `FormatError` if it is not what the state object says of it.
    """
    seen = TensorCheck(ref.spec)
    with open_tensor(objects, ref) as file:
        file.seek(0)
        seen.update(file.read(DATA_OFFSET))
        while piece := file.read(_PIECE):
            seen.update(piece)
            yield piece
    check_tensor(objects, ref, seen)


@dataclass(frozen=True)
class Needs:
    """What is missing of a state; of an unknown state no tensor can be named."""

    state: StateObject | None  # None, too, if no tensors are needed
    refs: dict[str, TensorRef] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
    present: int = 0  # bytes of tensor data that are there; those in the state object do not count
    tensors: bool = True  # whether tensors are needed at all

    def __bool__(self) -> bool:
        return self.lacks_state or bool(self.refs) or bool(self.files)

    @property
    def lacks_state(self) -> bool:
        """Whether the state object is needed and not there."""
        return self.tensors and self.state is None

    @property
    def objects(self) -> dict[Digest, int]:
        """The tensor objects that are missing, with their sizes in bytes."""
        refs = self.refs.values()
        return {ref.digest: object_size(ref.spec) for ref in refs}

    def in_words(self) -> str:
        """A list of what is missing, for an error."""
        parts = []
        if self.lacks_state:
            parts.append("its state object")
        if self.refs:
            names, size = _some(self.refs), sum(self.objects.values())
            count = len(self.objects)
            parts.append(f"{count} tensor{'s'[: count > 1]} of {size} bytes ({names})")
        if self.files:
            parts.append(f"the files {_some(self.files)}")
        return "; ".join(parts)


class Only(enum.Enum):
    """A part of a state without its tensors, in the place of names of tensors."""

    STATE_OBJECT = enum.auto()
    """The state object, which says which tensors there are."""
    FILES = enum.auto()
    """The state's files: nothing of its tensors, nor the state object."""


Names = Collection[str] | Only | None
"""The tensors of a state that are needed: by name, a part without any, or None for all."""


def needs_of(
    entry: StateEntry,
    objects: ObjectStore,
    names: Names,
    *,
    files: bool,
    state: StateObject | None = None,
) -> Needs:
    """What is missing of a state in a cache, judged by names and sizes: no tensor is read.

    ``files`` says whether the state's files are needed, too; ``state`` is its state object, if that
    was read before. Raises an `UnpinnedStateError` if the entry gives no digest, and an
    `IntegrityError` if the state object is there and damaged.
    """
    lacking = {
        name: file
        for name, file in (entry.files.items() if files else ())
        if objects.size(file.digest) is None
    }
    if names is Only.FILES:
        return Needs(None, {}, lacking, tensors=False)
    try:
        state = state or read_state(entry, objects)
    except ObjectNotFoundError:
        return Needs(None, {}, lacking)
    wanted = state.refs if names is None else () if isinstance(names, Only) else names
    refs = {name: state.refs[name] for name in wanted if name in state.refs}
    missing = {
        digest
        for digest, size in Needs(state, refs).objects.items()
        if objects.size(digest) != size
    }
    present = sum(ref.spec.nbytes for ref in refs.values() if ref.digest not in missing)
    refs = {name: ref for name, ref in refs.items() if ref.digest in missing}
    return Needs(state, refs, lacking, present)


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


class VerifiedFiles(Mapping[str, bytes]):
    """The files of a state, read and verified by ``read`` as they are looked up."""

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

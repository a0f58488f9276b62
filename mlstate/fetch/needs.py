"""What of a state is missing in a cache: judged by names and sizes, without reading tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.format import tensor_object
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import ObjectStore
from mlstate.reading import read_state

__all__ = ["Needs", "needs_of"]


@dataclass(frozen=True)
class Needs:
    """What is missing of a state.

    Attributes:
        state: The state object, if it is there, and if tensors are needed.
        refs: The tensors that are missing, by name; of an unknown state none can be named.
        files: The files that are missing, by name.
        present: Bytes of tensor data that are there, those inside the state object not counted.
        tensors: Whether tensors are needed at all.
    """

    state: StateObject | None
    refs: dict[str, TensorRef] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
    present: int = 0
    tensors: bool = True

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
        return {ref.digest: tensor_object.object_size(ref.spec) for ref in refs}

    def in_words(self) -> str:
        """What is missing, for an error."""
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


def needs_of(
    entry: StateEntry,
    objects: ObjectStore,
    names: Collection[str] | None,
    *,
    files: bool,
    state: StateObject | None = None,
) -> Needs:
    """Look for a state in a cache.

    Args:
        entry: What a manifest says of it.
        objects: The cache.
        names: The tensors that are needed; None: all.
        files: Whether the state's files are needed, too.
        state: The state object, if it was read before.

    Raises:
        UnpinnedStateError: The entry gives no digest.
        IntegrityError: The state object is there and damaged.
    """
    lacking = {
        name: file
        for name, file in (entry.files.items() if files else ())
        if objects.size(file.digest) is None
    }
    if names is not None and not names:
        return Needs(None, {}, lacking, tensors=False)
    try:
        state = state or read_state(entry, objects)
    except ObjectNotFoundError:
        return Needs(None, {}, lacking)
    wanted = state.specs if names is None else names
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

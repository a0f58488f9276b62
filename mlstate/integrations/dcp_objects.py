"""Objects of a store as a rank of a job sees them: mapped, and verified once for all of its node.

Ranks of one node that map the same file read the same pages: what one of them has verified, the
others need not hash again.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, MlstateError, concerning
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, object_size
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_tensor, open_tensor
from mlstate.parallel import for_each
from mlstate.stores.abstract import Found
from mlstate.stores.read import StateStore
from mlstate.tensors import read_tensors
from mlstate.tensors.memory import as_bytes, as_tensor, mapped_tensor

__all__ = ["FileId", "RankObjects", "shares"]

_Result = TypeVar("_Result")
_PIECE = 1 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class FileId(NamedTuple):
    """A file that is open: no other one has the same, as long as it is."""

    node: str
    device: int
    number: int


@dataclass(frozen=True)
class MappedObject:
    """A tensor object in memory as its file has it; `raw` is None if it cannot be mapped."""

    file: FileId | None
    raw: torch.Tensor | None

    def tensor(self, ref: TensorRef) -> torch.Tensor | None:
        """The tensor in it, if it is mapped."""
        if self.raw is None:
            return None
        view = as_bytes(self.raw)
        data = torch.frombuffer(view, dtype=torch.uint8, offset=DATA_OFFSET)
        return as_tensor(data, ref.spec)


def map_object(objects: ObjectStore, ref: TensorRef, local: dict[int, bool]) -> MappedObject:
    """Map an object, of which nothing is read yet; ``local`` is as for `may_map`.

    Raises:
        IntegrityError: It is missing, or of the wrong length.
    """
    with open_tensor(objects, ref) as file:
        raw = mapped_tensor(file, object_size(ref.spec), local)
        if raw is None:
            return MappedObject(None, None)
        found = os.fstat(file.fileno())
        return MappedObject(FileId(_node(), found.st_dev, found.st_ino), raw)


def verify_object(objects: ObjectStore, ref: TensorRef, mapped: MappedObject) -> None:
    """Compare all bytes of an object with its digest: those that are mapped, or of its file.

    Raises:
        IntegrityError: It is missing or damaged.
        FormatError: It is not what the state object says.
    """
    seen = TensorCheck(ref.spec)
    if mapped.raw is not None:
        seen.update(as_bytes(mapped.raw))
    else:
        with open_tensor(objects, ref) as file:
            file.seek(0)
            while piece := file.read(_PIECE):
                seen.update(piece)
    check_tensor(objects, ref, seen)


def shares(needed: Sequence[Mapping[Digest, tuple[FileId | None, int]]]) -> list[set[Digest]]:
    """Which objects each rank verifies, so that each file is verified by one, evenly by bytes.

    Args:
        needed: For each rank the objects that it needs: the file that it has mapped, and its size.
            What is not mapped is verified by each that needs it.
    """
    given: list[set[Digest]] = [set() for _ in needed]
    loads = [0] * len(needed)
    files: dict[tuple[Digest, FileId], tuple[int, list[int]]] = {}
    for rank, objects in enumerate(needed):
        for digest, (file, size) in objects.items():
            if file is None:
                given[rank].add(digest)
                loads[rank] += size
            else:
                files.setdefault((digest, file), (size, []))[1].append(rank)
    for (digest, _), (size, ranks) in sorted(files.items(), key=_largest_first):
        chosen = min(ranks, key=lambda rank: (loads[rank], rank))
        given[chosen].add(digest)
        loads[chosen] += size
    return given


def _largest_first(
    item: tuple[tuple[Digest, FileId], tuple[int, list[int]]],
) -> tuple[int, Digest, FileId]:
    (digest, file), (size, _) = item
    return -size, digest, file


class RankObjects:
    """The tensors that a rank needs of a checkpoint, each of which is verified before it is given.

    Args:
        store: The store.
        found: The state.
        state: Its state object.
        names: The tensors that are needed.
    """

    def __init__(
        self, store: StateStore, found: Found, state: StateObject, names: Iterable[str]
    ) -> None:
        self._store = store
        self._found = found
        self._state = state
        self._names = {state.refs[name].digest: name for name in names if name in state.refs}
        self._mapped: dict[Digest, MappedObject] = {}
        self._checked: set[Digest] = set()

    def bring(self) -> dict[Digest, tuple[FileId | None, int]]:
        """Fetch what is missing, and map all; for each object its file, and its size in bytes.

        Raises:
            IntegrityError: Something is missing, or of the wrong length.
            FetchError: Something is missing, and no mirror could give it.
        """
        local: dict[int, bool] = {}

        def work(objects: ObjectStore) -> None:
            for digest, name in self._names.items():
                with concerning(tensor=name):
                    self._mapped[digest] = map_object(objects, self._state.refs[name], local)

        self._reading([*self._names.values()], work)
        return {
            digest: (self._mapped[digest].file, object_size(self._state.refs[name].spec))
            for digest, name in self._names.items()
        }

    def verify(self, digests: Iterable[Digest] | None = None) -> None:
        """Verify these objects, or all.

        Raises:
            IntegrityError: One is missing or damaged.
            FormatError: One is not what the state object says.
        """
        wanted = set(self._names if digests is None else digests)
        local: dict[int, bool] = {}

        def work(objects: ObjectStore) -> None:
            def verify(digest: Digest) -> None:
                ref = self._state.refs[self._names[digest]]
                with concerning(tensor=self._names[digest]):
                    mapped = map_object(objects, ref, local)  # the file that it has by now
                    verify_object(objects, ref, mapped)
                self._mapped[digest] = mapped
                self._checked.add(digest)

            todo = wanted - self._checked
            for_each(verify, sorted(todo, key=self._size, reverse=True))

        if wanted - self._checked:
            self._reading([self._names[digest] for digest in wanted], work)

    def verify_together(self, share: Iterable[Digest], group: dist.ProcessGroup | None) -> None:
        """Verify a share of what the ranks of a group need, and learn what others have verified.

        Raises:
            MlstateError: Something is missing or damaged, on whichever rank: all raise it.
        """
        error: Exception | None = None
        try:
            self.verify(share)
        except MlstateError as caught:
            error = caught
        except Exception as caught:  # the others wait to be told, whatever it is
            error = OSError(f"{type(caught).__name__}: {caught}")  # which can be sent
            error.__cause__ = caught
        done = {(digest, self._mapped[digest].file) for digest in self._checked}
        said: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(said, (error, done), group)
        if error is not None:
            raise error
        for other, verified in said:
            if other is not None:
                raise other
            done |= verified
        for digest, mapped in self._mapped.items():
            if mapped.file is not None and (digest, mapped.file) in done:
                self._checked.add(digest)
        self.verify()  # what another rank has under another file: after a repair, say

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, verified; its memory is not to be written to."""
        ref = self._state.refs.get(name)
        if ref is not None and ref.digest in self._checked:
            mapped = self._mapped[ref.digest].tensor(ref)
            if mapped is not None:
                return mapped
        return self._reading(
            [name], lambda objects: read_tensors(objects, self._state, [name])[name]
        )

    def _size(self, digest: Digest) -> int:
        return self._state.refs[self._names[digest]].spec.nbytes

    def _reading(self, names: list[str], work: Callable[[ObjectStore], _Result]) -> _Result:
        """Call `work` with the objects, which are fetched first, and mended if they are damaged."""

        def checked(found: Found) -> _Result:
            if found.entry.pinned_digest != self._found.entry.pinned_digest:
                raise IntegrityError(
                    "the state was replaced while it was loaded",
                    expected=self._found.entry.digest,
                    found=found.entry.digest,
                    remedy="load it again",
                )
            self._store.access.bring(found.entry, names, files=False)
            return work(found.objects)

        key = self._found.entry.key
        with concerning(key):
            return self._store.reading(key, checked, names, files=False, found=self._found)


@cache
def _node() -> str:
    """What the ranks of one running system have in common, whatever their containers."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return platform.node()

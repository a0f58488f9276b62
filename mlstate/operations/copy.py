"""`copy`: states from any store into any other, object by object, each verified on its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlstate.errors import (
    AccessError,
    CopyError,
    FetchError,
    FormatError,
    IntegrityError,
    MlstateError,
    ReadOnlyStoreError,
    TransportError,
    concerning,
)
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import listener
from mlstate.format.encode import EncodedState, bytes_source, encode_state
from mlstate.manifests import FileEntry, StateEntry
from mlstate.operations.transfer import Cargo, Count
from mlstate.phrases import ANY_STORE
from mlstate.reading import VerifiedFiles
from mlstate.states import StateKey
from mlstate.stores.abstract import AbstractStateStore, DescribedStore, check_keys
from mlstate.stores.read import StateView
from mlstate.stores.request import Saves, Wish

__all__ = ["CopyReport", "copy"]


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        copied: The states that the target has now and did not have before.
        present: The states that it had already.
        nbytes: The bytes of tensor objects that were read from the source for it. What a target
            had already is not among them; of a new state a release takes all.
    """

    copied: tuple[StateKey, ...]
    present: tuple[StateKey, ...]
    nbytes: int


def copy(
    source: AbstractStateStore[Any],
    target: AbstractStateStore[Any],
    keys: Iterable[StateKey] | None = None,
    *,
    overwrite: bool = False,
    verify: bool = False,
    progress: OnProgress | bool | None = None,
) -> CopyReport:
    """Bring states from one store into another, with their files and meta.

    Objects that the target has are not read, let alone written. All others are verified on their
    way, and a state is there when all of its objects are. A copy that was stopped goes on where it
    was if it is run again. Where source and target know their states by digest, no torch is
    needed, unless a state of the source is a torch checkpoint.

    A state that concerns only itself (one that is damaged, that is missing, or whose key has other
    weights in the target) does not keep the others from being copied. What goes wrong with a store
    as a whole (no access, no connection) ends the copy at once; states that were copied before
    stay.

    Args:
        source: Any store that gives state dicts without a model: each of mlstate's, or one of your
            own with `load_state_dict`.
        target: A `LocalStateStore`, `MemoryStateStore`, `S3StateStore` or `GitHubReleaseStore`.
        keys: Which states; by default all of the source.
        overwrite: Replace other states that have the same keys.
        verify: Read the objects that the target has already, and write anew what is damaged. (A
            release has none to be read.)
        progress: Told how far each state is; True: a bar on the terminal.

    Returns:
        What was copied, and what was there.

    Raises:
        StateExistsError: The target has other weights or files under a key; they stay.
        IntegrityError: A state of the source is damaged; nothing of it is in the target.
        StateNotFoundError: The source has no such state.
        CopyError: Of several states some could not be copied, one at least. The error lists them;
            all others were. Of a single state its own error is raised.
        ReadOnlyStoreError: Nothing can be saved into the target.
        AccessError: A credential is missing, or does not allow this.
        TransportError: A store cannot be reached.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> ours, theirs = MemoryStateStore(), MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = ours.save_state_dict({"weight": torch.ones(2)}, key)
        >>> copy(ours, theirs, [key]).copied == (key,)
        True
        >>> theirs.digest(key) == ours.digest(key)
        True
    """
    if not isinstance(target, Saves):
        raise ReadOnlyStoreError(
            "nothing can be copied into this store",
            path=target,
            expected=ANY_STORE,
        )
    chosen = _keys(source, keys)
    told = listener(progress)
    copied: list[StateKey] = []
    present: list[StateKey] = []
    failed: list[tuple[StateKey, MlstateError]] = []
    nbytes = 0
    for key in chosen:
        count = Count(key, told)
        try:
            with concerning(key):
                done = _copy_one(source, target, key, _Manner(overwrite, verify), count)
            (copied if done else present).append(key)
        except (AccessError, TransportError):
            raise  # the next state would meet the same
        except MlstateError as error:
            failed.append((key, error))
        finally:
            count.meter.end()
        nbytes += count.nbytes
    if failed and len(chosen) == 1:
        raise failed[0][1]
    if failed:
        were = "1 state" if len(failed) == 1 else f"{len(failed)} states"
        raise CopyError(
            f"{were} could not be copied; {len(copied) + len(present)} others are in the target",
            path=target,
            failures=tuple(failed),
            copied=tuple(copied),
            present=tuple(present),
            nbytes=nbytes,
        )
    return CopyReport(tuple(copied), tuple(present), nbytes)


class _Manner(NamedTuple):
    """How states are to be received: as in `Wish`."""

    overwrite: bool
    verify: bool


def _keys(source: AbstractStateStore[Any], keys: Iterable[StateKey] | None) -> list[StateKey]:
    if not isinstance(source, StateView) and not hasattr(source, "load_state_dict"):
        raise FormatError(
            f"{type(source).__name__} does not give its states without a model",
            expected="a store with load_state_dict(key)",
            remedy="load each state into a model, and save that into the target",
        )
    if keys is not None:
        return list(dict.fromkeys(check_keys(keys)))
    if not isinstance(source, StateView):
        raise FormatError("a store of one's own does not list all its states", expected="keys=")
    return source.get_state_keys()


def _copy_one(
    source: AbstractStateStore[Any], target: Saves, key: StateKey, manner: _Manner, count: Count
) -> bool:
    if not isinstance(source, StateView):
        encoded, wanted, wish = _described(source, key, manner)
        return target._receive(encoded, wanted, wish)
    try:
        found = source.get(key)
    except (FormatError, FetchError):
        opaque = _opaque(source, key, manner)
        if opaque is None:
            raise
        return target._receive(*opaque)
    for again in (True, False):
        try:
            cargo = Cargo(source, found, count)
            files = VerifiedFiles(found.entry, lambda name: source.read_file(found, name))
            wish = Wish(files, found.entry.meta or None, *manner, source=cargo)
            with cargo.blamed():
                return target._receive(cargo.encoded, _said_of(found.entry), wish)
        except IntegrityError:
            if not (again and source.mend(found.entry)):
                raise
    raise AssertionError  # the second time ends it


def _said_of(entry: StateEntry) -> StateEntry:
    """What is to be said of a state elsewhere: not where its bytes are here."""
    files = {name: FileEntry(file.digest) for name, file in entry.files.items()}
    return StateEntry(entry.key, None, files=files, meta=entry.meta)


def _opaque(
    source: StateView, key: StateKey, manner: _Manner
) -> tuple[EncodedState, StateEntry, Wish] | None:
    """A file of the predecessor that no checkpoint of torch needs to be: its bytes as they are."""
    raw = None if key.state_type.backend == "pytorch" else source.raw_bytes(key)
    if raw is None:
        return None
    return encode_state([bytes_source(raw)]), StateEntry(key, None), Wish({}, None, *manner)


def _described(
    source: Any, key: StateKey, manner: _Manner
) -> tuple[EncodedState, StateEntry, Wish]:
    """A state of a store that somebody wrote."""
    from mlstate.tensors import encode_tensors

    encoded = encode_tensors(source.load_state_dict(key))
    described = isinstance(source, DescribedStore)
    if described and source.digest(key) != encoded.digest:
        raise IntegrityError(
            "a store gives other weights than it says",
            path=source,
            expected=source.digest(key),
            found=encoded.digest,
        )
    wish = Wish(dict(source.files(key)) if described else {}, None, *manner)
    return encoded, wish.entry(key), wish

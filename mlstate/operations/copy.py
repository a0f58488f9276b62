"""`copy`: states from any store into any other, object by object, each verified on its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlstate.errors import (
    AccessError,
    CopyError,
    FetchError,
    FormatError,
    MlstateError,
    TransportError,
    UnsupportedStoreError,
    concerning,
)
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import listener
from mlstate.format.encode import bytes_source, encode_state
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects.interface import EncodingObjectStore
from mlstate.operations.plan import planned_copy
from mlstate.operations.tables import Table, Tabular, size_cell
from mlstate.operations.transfer import ObjectCounter, StateTransfer
from mlstate.phrases import Phrase
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AbstractStateStore, Found
from mlstate.stores.custom import saver_of, state_store
from mlstate.stores.read import StateStore
from mlstate.stores.save import Saver
from mlstate.stores.save_request import SaveRequest

__all__ = ["CopyReport", "copy", "copy_one"]


@dataclass(frozen=True)
class CopyReport(Tabular):
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

    def _table(self) -> Table:
        rows = [(str(key), "copied") for key in self.copied]
        rows += [(str(key), "there already") for key in self.present]
        return Table(("KEY", "RESULT"), rows, f"{size_cell(self.nbytes)} of tensor objects copied")


def copy(
    source: AbstractStateStore[Any],
    target: AbstractStateStore[Any],
    keys: Iterable[StateKey] | None = None,
    *,
    overwrite: bool = False,
    verify: bool = False,
    encode: bool | StateKey | str | None = None,
    progress: OnProgress | bool | None = None,
    dry_run: bool = False,
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
        target: A `LocalStateStore`, `MemoryStateStore`, `S3StateStore` or `GitHubReleaseStore`; or
            one of your own with `save_state_dict`.
        keys: Which states; by default all of the source.
        overwrite: Replace other states that have the same keys.
        verify: Read the objects that the target has already, and write anew what is damaged. (A
            release has none to be read.)
        encode: Write tensors encoded, as `compact=` of `save` does: True, or the key of a state in
            the target that they are compared with. States that are copied one after the other are
            bases of the later ones. By default as the target's settings say.
        progress: Told how far each state is; True: a bar on the terminal.
        dry_run: Change nothing, and report what would be copied. State objects are read, no
            tensors; what is damaged is not found.

    Returns:
        What was copied, and what was there.

    Raises:
        StateExistsError: The target has other weights or files under a key; they stay.
        IntegrityError: A state of the source is damaged; nothing of it is in the target.
        StateNotFoundError: The source has no such state.
        CopyError: Of several states some could not be copied, one at least. The error lists them;
            all others were. Of a single state its own error is raised.
        ReadOnlyStoreError: Nothing can be saved into the target.
        UnsupportedStoreError: A store of one's own lacks a method that this needs, or the target
            takes no encoded objects (`encode`): a release has one plain file for each state.
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
    saver = saver_of(target)
    view = state_store(source)
    chosen = view.get_state_keys() if keys is None else list(dict.fromkeys(check_keys(keys)))
    request = SaveRequest({}, None, overwrite, verify, compact=_encoding(target, encode))
    on_progress = listener(progress)
    copied: list[StateKey] = []
    present: list[StateKey] = []
    failed: list[tuple[StateKey, MlstateError]] = []
    nbytes = 0
    for key in chosen:
        counter = ObjectCounter(key, on_progress)
        try:
            with concerning(key):
                if dry_run:
                    is_new, planned = planned_copy(view, target, key, overwrite=overwrite)
                    nbytes += planned
                else:
                    is_new = copy_one(view, saver, key, request, counter)
            (copied if is_new else present).append(key)
        except (AccessError, TransportError):
            raise  # the next state would meet the same
        except MlstateError as error:
            failed.append((key, error))
        finally:
            counter.meter.end()
        nbytes += counter.nbytes
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


def _encoding(
    target: AbstractStateStore[Any], encode: bool | StateKey | str | None
) -> bool | StateKey | None:
    """How tensors are written; an UnsupportedStoreError where they cannot be encoded."""
    chosen = StateKey.parse(encode) if isinstance(encode, str) else encode
    own = target.own if isinstance(target, StateStore) else None
    if chosen and not isinstance(own, EncodingObjectStore):
        raise UnsupportedStoreError(
            "tensors are not encoded in this store",
            expected="a folder, or a bucket",
            found=target,
            remedy="copy without " + Phrase("encode=", "--encode"),
        )
    return chosen


def copy_one(
    source: StateStore,
    target: Saver,
    key: StateKey,
    request: SaveRequest,
    counter: ObjectCounter,
    *,
    as_key: StateKey | None = None,
) -> bool:
    """Copy a state, under another key if one is given; return whether the target did not have it.

    Raises what `copy` raises.
    """
    new_key = as_key or key
    try:
        found = source.get_pinned(key)
    except (FormatError, FetchError):
        # A file of MLModule that need not be a torch checkpoint is copied as the bytes it is.
        is_torch = key.state_type.backend == "pytorch"
        raw = None if is_torch else source.catalog.checkpoint_bytes(key)
        if raw is None:
            raise
        encoded = encode_state([bytes_source(raw)])
        return target.receive(encoded, StateEntry(new_key, None), request)

    def send(found: Found) -> bool:
        transfer = StateTransfer(source, found, counter)
        files, meta = source.files_of(found), found.entry.meta
        # Not where the bytes are here: they will be elsewhere.
        entries = {name: FileEntry(file.digest) for name, file in found.entry.files.items()}
        layout = found.entry.layout
        wanted = StateEntry(new_key, None, files=entries, meta=meta, layout=layout)
        asked = replace(request, files=files, meta=meta or None, layout=layout or None)
        return transfer.save_into(target, wanted, asked)

    return source.reading(key, send, found=found)

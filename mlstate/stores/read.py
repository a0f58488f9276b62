"""Reading states: a view over entries (which digest) and objects (the bytes)."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlstate.digests import Digest
from mlstate.errors import IncompatibleStateError, concerning
from mlstate.format.state_object import BYTES_NAME
from mlstate.manifests import StateEntry
from mlstate.models import BytesModel, LoadResult, TensorModel
from mlstate.objects import ObjectStore, read_verified
from mlstate.reading import VerifiedFiles, read_bytes_state, read_state
from mlstate.states import StateKey, StateType
from mlstate.stores.absent import check_names, check_pin, not_found
from mlstate.stores.abstract import AbstractStateStore, check_compatible, check_key, check_list
from mlstate.stores.materialize import materialize_state

if TYPE_CHECKING:
    import torch

__all__ = ["Found", "Listing", "StateView"]


class Found(NamedTuple):
    """A state, found: what is said of it, and where its bytes are."""

    entry: StateEntry
    objects: ObjectStore


class Listing(NamedTuple):
    """A state, as far as a listing tells.

    Attributes:
        key: Its key.
        modified: When it was saved, in seconds since the epoch; or None.
        size: The bytes of a thing of its own that it is, such as a checkpoint of the predecessor;
            None for what is made of objects.
    """

    key: StateKey
    modified: float | None = None
    size: int | None = None


class StateView(AbstractStateStore[Any]):
    """A store that finds what is said of a state, and its bytes in an object store.

    Torch is imported by what needs it, when it is called: listing, digests and files need none.
    """

    objects: ObjectStore
    """Where the bytes are."""

    @abc.abstractmethod
    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields."""

    def listing(self) -> Iterator[Listing]:
        """All states with what listing them tells, in no order."""
        return map(Listing, self.get_state_keys())

    @abc.abstractmethod
    def find(self, key: StateKey) -> Found | None:
        """Find a state.

        Returns:
            None if this store has no such state.

        Raises:
            ManifestError: What it says of the state cannot be read.
        """

    def get(self, key: StateKey) -> Found:
        """Find a state that is to be there.

        Raises:
            StateNotFoundError: It is not; near misses are named.
            ManifestError: What this store says of the state cannot be read.
        """
        check_key(key)
        found = self.find(key)
        if found is not None:
            return found
        raise not_found(key, self, self.get_state_keys(key.state_type))

    def recorded(self, key: StateKey) -> StateEntry | None:
        """What this store has on record of a state, by digest: nothing is downloaded for it.

        Returns:
            None if it has no such record. There may be a checkpoint of the predecessor all the
            same, which carries no digest.

        Raises:
            ManifestError: The record cannot be read.
        """
        found = self.find(key)
        return None if found is None else found.entry

    def bring(
        self, entry: StateEntry, names: Sequence[str] | None = None, *, files: bool = True
    ) -> None:
        """Make sure that the objects of a state are there, before they are read.

        A store of its own has them; a view over mirrors fetches what is missing.

        Args:
            entry: What is said of the state.
            names: The tensors that are needed; all by default.
            files: Whether the state's files are needed, too.
        """

    def mend(self, entry: StateEntry) -> bool:
        """Replace what is damaged of a state, where that is possible: in a cache, from a mirror.

        Args:
            entry: What is said of the state.

        Returns:
            Whether something was replaced, so that it is worth to read again.
        """
        return False

    def digest(self, key: StateKey) -> Digest:
        """The state digest of a state: exactly which weights are these?

        Raises:
            StateNotFoundError: There is no such state.
            UnpinnedStateError: The manifest gives no digest.
        """
        return self.get(key).entry.pinned_digest

    def meta(self, key: StateKey) -> Mapping[str, Any]:
        """What was noted with a state: licence, description, metrics. Not authenticated.

        Raises:
            StateNotFoundError: There is no such state.
        """
        return self.get(key).entry.meta

    def raw_bytes(self, key: StateKey) -> bytes | None:
        """What a model of the older protocol wrote itself, where a store still has such a file.

        Returns:
            None, in every store but those that read the predecessor's layout.
        """
        return None

    def files(self, key: StateKey) -> Mapping[str, bytes]:
        """The files of a state.

        Returns:
            Name -> content. A file is read and verified when it is looked up; the names cost
            nothing. What is done to the bytes does not reach the store.

        Raises:
            StateNotFoundError: There is no such state.
        """
        found = self.get(key)
        return VerifiedFiles(found.entry, lambda name: self.read_file(found, name))

    def read_file(self, found: Found, name: str) -> bytes:
        """A file of a state, verified.

        Args:
            found: The state.
            name: One of its files.

        Raises:
            IntegrityError: It is damaged or missing.
        """
        file = found.entry.files[name]
        return read_verified(found.objects, file.digest, what=f"the file {name!r}")

    def load(
        self,
        model: Any,
        state_key: StateKey,
        *,
        strict: bool = True,
        assign: bool = False,
        ignore_mismatched_sizes: bool = False,
        digest: str | None = None,
    ) -> LoadResult:
        """Load a state into a model: all of it verified before the first value changes.

        A refused or failed load leaves the model exactly as it was; one that is stopped by Ctrl-C,
        as it was or, if all was verified by then, loaded. (A model whose own load hooks
        rename or raise gets its tensors back, but what else a hook did is beyond this.)

        Args:
            model: A ``torch.nn.Module`` with a ``state_type``, or another model.
            state_key: The state to load.
            strict: As in torch: refuse if a name is missing or unexpected.
            assign: Make the stored tensors the model's own, mapped from their files without a
                copy, instead of copying their values. The files never change through them, and
                parameters can be trained. For models on the meta device, too.
            ignore_mismatched_sizes: Skip tensors whose shapes differ, as transformers does, rather
                than refuse.
            digest: Refuse anything but the state with exactly this digest.

        Returns:
            Torch's pair ``(missing_keys, unexpected_keys)``, with ``mismatched_keys``,
            ``cast_keys`` (values go into the model's own dtype and device) and ``digest``.

        Raises:
            IncompatibleStateError: The state does not fit the model.
            IntegrityError: Bytes are damaged or missing, or `digest` is another; the error names
                the tensor and the file.
            StateNotFoundError: There is no such state.
            UnpinnedStateError: The manifest gives no digest.
        """
        check_compatible(model, state_key)
        if isinstance(model, BytesModel) and not isinstance(model, TensorModel):
            raw = self.raw_bytes(state_key)
            if raw is not None:
                model.set_state(raw)
                return LoadResult()
        found = self.get(state_key)
        pinned = found.entry.pinned_digest
        with concerning(state_key):
            check_pin(pinned, digest)
            self.bring(found.entry)
            state = read_state(*found)
            if BYTES_NAME in state.specs and isinstance(model, BytesModel):
                model.set_state(read_bytes_state(state, found.objects))
                return LoadResult(digest=pinned)
            if not isinstance(model, TensorModel):
                raise IncompatibleStateError(
                    f"this {type(model).__name__} takes no tensors",
                    expected="state_dict() and load_state_dict()",
                )
            from mlstate.tensors import load_tensors, places_of, reading

            places = places_of(model, state.specs)
            with reading(found.objects, state, shared=True, places=places) as read:
                return load_tensors(
                    model,
                    state.specs,
                    read,
                    strict=strict,
                    assign=assign,
                    ignore_mismatched_sizes=ignore_mismatched_sizes,
                    digest=pinned,
                )

    def load_state_dict(
        self, key: StateKey, names: Sequence[str] | None = None, device: Any = "cpu"
    ) -> dict[str, torch.Tensor]:
        """The tensors of a state, without a model.

        Args:
            key: The state.
            names: Those to load; nothing else is read or verified. All by default.
            device: Where to put them: a ``torch.device`` or what names one.

        Returns:
            Name -> tensor, verified. On the CPU they are mapped where that is safe, private and
            writable: the store never changes through them.

        Raises:
            StateNotFoundError: There is no such state, or no such name in it.
            IntegrityError: Bytes are damaged or missing.
        """
        from mlstate.tensors import places_on, read_tensors

        found = self.get(key)
        with concerning(key):
            self.bring(found.entry, check_list(names), files=names is None)
            state = read_state(*found)
            wanted = check_names(names, state.specs)
            places = places_on(device, state.specs if wanted is None else wanted)
            tensors = read_tensors(found.objects, state, wanted, places=places)
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def materialize(
        self,
        key: StateKey,
        folder: str | os.PathLike[str],
        *,
        max_shard_size: int | str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a state as a plain folder: for `from_pretrained`, stock safetensors, and the like.

        It holds ``model.safetensors`` and the state's files. All is verified before the first file
        gets its name. Blocks are shared with the store where the file system can (btrfs, XFS). A
        folder that holds an earlier state is brought up to date: files that are right already are
        not touched, those of the earlier state are replaced, or removed where this one has none.

        Args:
            key: The state.
            folder: The folder; made if it is missing.
            max_shard_size: Split the tensors over several files of at most so many bytes, with an
                index, as transformers does: a number, or for instance ``"5GB"``.
            overwrite: Replace files that mlstate did not write or that were changed since, and
                remove weights that a tool would read instead.

        Returns:
            The folder.

        Raises:
            StateExistsError: Such a file is in the way; nothing was changed.
            IntegrityError: Bytes are damaged or missing; the folder is as it was.
            FormatError: The state holds no tensors, or a file of it has the name of a weights file.
            StateNotFoundError: There is no such state.
        """
        found = self.get(key)
        with concerning(key):
            self.bring(found.entry)
            return materialize_state(
                *found, folder, max_shard_size=max_shard_size, overwrite=overwrite
            )

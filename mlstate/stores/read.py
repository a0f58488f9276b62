"""The store that reads: a catalog has the entries of states, an object store their bytes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mlstate.digests import Digest
from mlstate.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    concerning,
)
from mlstate.layouts import component_names, component_prefix
from mlstate.lazy import public
from mlstate.manifests import Manifest, StateEntry
from mlstate.models import BytesModel, LoadResult, TensorModel
from mlstate.objects import ObjectStore, read_verified
from mlstate.parallel import THREADS
from mlstate.phrases import FOLDER, Phrase
from mlstate.reading import Names, Only, VerifiedFiles, needs_of, read_state
from mlstate.states import StateKey, StateType, check_key, check_state_type
from mlstate.stores.abstract import AbstractStateStore, Found, Listing, RemotePlace
from mlstate.stores.access import Access
from mlstate.stores.arguments import check_compatible, check_list, check_names, check_pin
from mlstate.stores.catalog import Catalog
from mlstate.stores.load import load_into

if TYPE_CHECKING:
    import numpy

    from mlstate.buckets.client import BucketClient
    from mlstate.fetch import Fetcher, FetchReport
    from mlstate.stores.first_use import FirstUse
    from mlstate.tensors import Tensor

__all__ = ["StateStore", "is_sharded"]

_Result = TypeVar("_Result")


class StateStore(AbstractStateStore[Any]):
    """A store made of a catalog, an object store, and perhaps a fetcher; see `SavingStore`, too.

    Torch is imported by what needs it, when it is called: listing, digests and files need none.

    Args:
        catalog: Which states there are.
        objects: The object store with their bytes; of a store with a fetcher, its cache.
        fetcher: Brings missing objects into the cache; None where all bytes are at hand.

    Attributes:
        own: The object store that saved states go to, where the store has one; else None.
        folder: The folder that the store is, or None.
        manifest: The manifest that lists its states, or None.
        place: Its place on the network, or None.
        places: The names under which the settings may speak of it: its address, the paths of its
            folder.
        clients: The clients of the buckets that it is in, by their addresses.
        threads: How many objects are looked at, hashed and moved at once.
        first_use: Pins a state without a digest, where that is allowed; None: it is refused.
    """

    own: ObjectStore | None = None
    folder: Path | None = None
    manifest: Manifest | None = None
    place: RemotePlace | None = None
    places: tuple[str, ...] = ()
    threads = THREADS
    clients: Mapping[str, BucketClient] = MappingProxyType({})
    first_use: FirstUse | None = None
    _read_only = "this store is only read"

    def __init__(
        self, catalog: Catalog, objects: ObjectStore, fetcher: Fetcher | None = None
    ) -> None:
        self.catalog = catalog
        self.objects = objects
        self.fetcher = fetcher
        self.access = Access(fetcher)

    @property
    def phrase(self) -> Phrase:
        """What errors call the store; for the command line, what one gives it as ``--store``."""
        name = f"{type(self).__name__}()"
        return Phrase(name, name)

    def __repr__(self) -> str:
        return str(self.phrase)

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all; sorted by fields.

        Unpinned states of a manifest are among them. Of a bucket, only what is below the type's own
        prefix is listed; of a release, the API is used.

        Raises:
            BucketError: The bucket cannot be asked: no such bucket, no permission, no network.
            AccessError: There is no such repository, or it is not for this caller.
            RateLimitError: GitHub allows no more requests for now; `reset` says until when.
            OfflineError: The store is elsewhere, and sockets are not allowed.
        """
        if state_type is not None:
            check_state_type(state_type)
        return self.catalog.keys(state_type)

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        check_key(state_key)
        return self.catalog.exists(state_key)

    @property
    def aliases(self) -> Mapping[str, StateKey]:
        """Other names for states, which a manifest gives: alias -> key."""
        return self.catalog.aliases

    def listing(self) -> Iterator[Listing]:
        """All states with what listing them tells, in no order."""
        return self.catalog.listing()

    def find(self, key: StateKey) -> Found | None:
        """Find a state.

        Returns:
            Its entry and where its bytes are; None if this store has no such state.

        Raises:
            ManifestError: The entry of the state cannot be read.
        """
        entry = self.catalog.recorded(key)
        return self.catalog.checkpoint(key) if entry is None else Found(entry, self.objects)

    def get(self, key: StateKey) -> Found:
        """Find a state that is to be there.

        Raises:
            StateNotFoundError: It is not; near misses are named.
            ManifestError: The entry of the state cannot be read.
        """
        check_key(key)
        found = self.find(key)
        if found is None:
            raise self.catalog.absent(key, self)
        return found

    def get_pinned(self, key: StateKey) -> Found:
        """Find a state that is about to be read, as `get` does.

        One without a digest is fetched and pinned, if this is its first use and that may be.

        Raises:
            MlstateError: As `get`, and as `mlstate.stores.first_use.FirstUse`.
        """
        return self._pinned(self.get(key))

    def _pinned(self, found: Found) -> Found:
        if found.entry.digest is not None or self.first_use is None:
            return found
        return Found(self.first_use.pinned(found.entry), found.objects)

    def digest(self, key: StateKey) -> Digest:
        """The state digest of a state: exactly which weights are these?

        Raises:
            StateNotFoundError: There is no such state.
            UnpinnedStateError: The manifest gives no digest.
        """
        return self.get(key).entry.pinned_digest

    def meta(self, key: StateKey) -> Mapping[str, Any]:
        """The free information of a state: licence, description, metrics. Not authenticated.

        Raises:
            StateNotFoundError: There is no such state.
        """
        return self.get(key).entry.meta

    def fetch(self, key: StateKey, *, names: Sequence[str] | None = None) -> FetchReport:
        """Bring what is missing of a state into the cache, without loading it.

        Tensors that are there are judged by name and size, and not read. Needs no torch, unless a
        mirror is a torch checkpoint. A store whose bytes are its own has nothing to fetch.

        Args:
            key: The state.
            names: The tensors that are needed; by default all, and the state's files.

        Returns:
            How many bytes came, and how many were there already.

        Raises:
            StateNotFoundError: There is no such state.
            UnpinnedStateError: The manifest gives no digest, and its first use cannot pin it.
            PinMismatchError: It gives other weights than those that were pinned.
            ObjectNotFoundError: Something is missing, and no mirror is listed.
            OfflineError: Something is missing, and the network may not be used.
            FetchError: Something is missing, and no mirror could give it; it lists them all.
        """
        wanted = check_list(names)
        files = wanted is None

        def fetch(found: Found) -> FetchReport:
            report = self.access.bring(found.entry, wanted, files=files)
            if report is not None:
                pin = found.entry.pin
                if pin is None or pin.came is None:
                    return report
                fetched = report.fetched + pin.came
                return replace(report, fetched=fetched, spared=0, pinned_now=True)
            needs = needs_of(found.entry, found.objects, wanted, files=files)
            if needs:
                raise ObjectNotFoundError(
                    "a state is not whole",
                    path=found.objects.locate(found.entry.pinned_digest),
                    found=f"missing: {needs.in_words()}",
                    remedy="save it again, or restore the objects from a copy",
                )
            from mlstate.fetch import FetchReport

            return FetchReport(found.entry.pinned_digest, 0, needs.present)

        return self.reading(key, fetch, wanted, files=files)

    def files(self, key: StateKey) -> Mapping[str, bytes]:
        """The files of a state.

        Returns:
            Name -> content. A file is read and verified when it is looked up; the names cost
            nothing. Changes to the bytes do not reach the store.

        Raises:
            StateNotFoundError: There is no such state.
        """
        return self.files_of(self.get(key))

    def files_of(self, found: Found) -> VerifiedFiles:
        """The files of a state that was found; see `files`."""

        def read(name: str) -> bytes:
            self.access.bring(found.entry, Only.FILES)
            file = found.entry.files[name]
            return read_verified(found.objects, file.digest, what=f"the file {name!r}")

        return VerifiedFiles(
            found.entry,
            lambda name: self.access.repaired(found.entry, lambda: read(name), Only.FILES),
        )

    def load(
        self,
        model: Any,
        state_key: StateKey,
        *,
        strict: bool = True,
        assign: bool = False,
        ignore_mismatched_sizes: bool = False,
        digest: str | None = None,
        component: str | None = None,
        group: Any = None,
    ) -> LoadResult:
        """Load a state into a model: all of it verified before the first value changes.

        A refused or failed load leaves the model exactly as it was. After Ctrl-C the model is as it
        was or, if all was verified by then, loaded. (A model whose own load hooks rename or raise
        gets its tensors back, but other effects of a hook remain.)

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
            component: Load a part of the state alone, a folder of a pipeline: the tensors whose
                names begin with ``component/``, by what follows. No others are read, and the model
                needs no state type.
            group: The process group whose ranks load together: all of them call this, each object
                is read and verified once, and the models of all change, or none. A model with
                DTensors (FSDP2, tensor parallel) is always loaded so, by all ranks if no group is
                given; any other one by this process alone.

        Returns:
            Torch's pair ``(missing_keys, unexpected_keys)``, with ``mismatched_keys``,
            ``cast_keys`` (values go into the model's own dtype and device), ``digest``, and
            ``pinned_now``.

        Raises:
            IncompatibleStateError: The state does not fit the model.
            IntegrityError: Bytes are damaged or missing, or `digest` is another; the error names
                the tensor and the file.
            StateNotFoundError: There is no such state.
            UnpinnedStateError: The manifest gives no digest, and its first use cannot pin it.
            PinMismatchError: It gives other weights than those that were pinned.
            PeerError: Another rank failed, was killed or stopped; no model was changed.
        """
        if component is None:
            check_compatible(model, state_key)
        else:
            check_key(state_key)
        if group is not None or is_sharded(model):
            together = importlib.import_module("mlstate.distributed.load")  # above the stores
            options = together.LoadOptions(
                strict, assign, ignore_mismatched_sizes, digest, component
            )
            result: LoadResult = together.load_sharded(self, model, state_key, options, group=group)
            return result

        def load(found: Found) -> LoadResult:
            check_pin(found.entry.pinned_digest, digest)
            names = self._names_in(found, component)
            self.access.bring(found.entry, names, files=names is None)
            result = load_into(
                model,
                found,
                strict=strict,
                assign=assign,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                component=component,
            )
            result.pinned_now = found.entry.pinned_now
            return result

        if digest is not None and (cached := self.cached(state_key, Digest(digest))):
            # To replace damaged objects takes the mirrors that the entry names.
            with suppress(IntegrityError), concerning(state_key):
                return load(cached)
        found = None
        if isinstance(model, BytesModel) and not isinstance(model, TensorModel):
            # Its checkpoints need not be mappings of tensors, which `get` requires.
            entry = self.catalog.recorded(state_key)
            if entry is not None:
                found = Found(entry, self.objects)
            elif (raw := self.catalog.checkpoint_bytes(state_key)) is not None:
                model.set_state(raw)
                return LoadResult()
        return self.reading(state_key, load, found=found)

    @overload
    def load_state_dict(
        self,
        key: StateKey,
        names: Sequence[str] | None = None,
        device: Any = "cpu",
        *,
        framework: Literal["torch"] = "torch",
        component: str | None = None,
    ) -> dict[str, Tensor]: ...

    @overload
    def load_state_dict(
        self,
        key: StateKey,
        names: Sequence[str] | None = None,
        *,
        framework: Literal["numpy"],
        component: str | None = None,
    ) -> dict[str, numpy.ndarray[Any, Any]]: ...

    def load_state_dict(
        self,
        key: StateKey,
        names: Sequence[str] | None = None,
        device: Any = "cpu",
        *,
        framework: str = "torch",
        component: str | None = None,
    ) -> dict[str, Any]:
        """The tensors of a state, without a model.

        Args:
            key: The state.
            names: The tensors to load; no others are read or verified. All by default.
            device: The device for them: a ``torch.device`` or its name.
            framework: ``"torch"``, or ``"numpy"`` for arrays, which have the same memory.
            component: The part of the state to load, as for `load`. Names are those within it.

        Returns:
            Name -> tensor, verified. On the CPU they are mapped where that is safe, private and
            writable: the store never changes through them.

        Raises:
            StateNotFoundError: There is no such state, or no such name in it.
            IntegrityError: Bytes are damaged or missing.
            FormatError: There is no such framework, or NumPy has no such element type.
        """
        from mlstate.tensors import arrays_of, places_on, read_tensors

        if framework not in ("torch", "numpy") or (framework == "numpy" and str(device) != "cpu"):
            raise FormatError(
                "tensors cannot be had so",
                expected="framework 'torch', or 'numpy' on the CPU",
                found=f"framework {framework!r}, device {str(device)!r}",
            )
        given = check_list(names)
        prefix = "" if component is None else component_prefix(component)
        if given is not None:
            given = [prefix + name for name in given]
        whole = given is None and component is None

        def read(found: Found) -> dict[str, Tensor]:
            given_here = self._names_in(found, component) if given is None else given
            self.access.bring(found.entry, given_here, files=whole)
            state = read_state(*found)
            wanted = check_names(given_here, state.specs)
            places = places_on(device, state.specs if wanted is None else wanted)
            return read_tensors(found.objects, state, wanted, places=places)

        read_all = self.reading(key, read, given, files=whole)
        tensors = {name[len(prefix) :]: tensor for name, tensor in read_all.items()}
        if framework == "numpy":
            return arrays_of(tensors)
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def load_optimizer_state_dict(self, key: StateKey, device: Any = "cpu") -> dict[str, Any]:
        """The state dict that `save_optimizer_state_dict` saved, for ``load_state_dict`` of torch.

        Args:
            key: The state.
            device: The device for its tensors: a ``torch.device`` or its name.

        Returns:
            The same nesting with the same values and kinds; tensors are verified and private.

        Raises:
            StateNotFoundError: There is no such state.
            IntegrityError: Bytes are damaged or missing.
            FormatError: It is another kind of state.
        """
        from mlstate.tensors import unflattened

        tensors = self.load_state_dict(key, device=device)
        with concerning(key):
            return unflattened(tensors)

    def materialize(
        self,
        key: StateKey,
        folder: str | os.PathLike[str],
        *,
        max_shard_size: int | str | None = None,
        overwrite: bool = False,
        component: str | None = None,
    ) -> Path:
        """Write a state as a plain folder: for `from_pretrained`, stock safetensors, and the like.

        It holds the state's files, and its tensors in the files that they came in, where that is
        known (of a state that was adopted from a folder: ``adapter_model.safetensors``, shards, the
        folders of a pipeline), else in ``model.safetensors``. All is verified before the first file
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
            component: Write a part of the state alone, a folder of a pipeline, as a folder.

        Returns:
            The folder.

        Raises:
            StateExistsError: Such a file is in the way; nothing was changed.
            IntegrityError: Bytes are damaged or missing; the folder is as it was.
            FormatError: The state holds no tensors, a file of it has the name of a weights file, or
                its layout does not fit its tensors; nothing was written.
            StateNotFoundError: There is no such state, or no such component in it.
        """
        from mlstate.stores.materialize import check_folder_name, materialize_state

        check_folder_name(folder)  # before anything is fetched for it

        def write(found: Found) -> Path:
            self.access.bring(found.entry, self._names_in(found, component))
            return materialize_state(
                *found,
                folder,
                max_shard_size=max_shard_size,
                overwrite=overwrite,
                component=component,
            )

        return self.reading(key, write)

    def report(self, keys: Iterable[StateKey] | None = None, *, values: bool = True) -> Any:
        """Look at this store: a notebook shows the result; see `mlstate.report`.

        Args:
            keys: Tell of these states only.
            values: Compare the values of tensors that differ.

        Returns:
            A report with a method ``write(path)``, which makes one HTML file of it.
        """
        return public("report")(self, keys, values=values, progress=True)

    def save(self, model: Any, training_id: str) -> StateKey:
        """Refuse to save, since this store is only read.

        Raises:
            ReadOnlyStoreError: Always.
        """
        raise ReadOnlyStoreError(self._read_only, path=self, remedy="save into " + FOLDER)

    def reading(
        self,
        key: StateKey,
        work: Callable[[Found], _Result],
        names: Names = None,
        *,
        files: bool = True,
        found: Found | None = None,
    ) -> _Result:
        """Find a state, unless `found` has it, and call `work`, which fetches and reads it.

        `work` is called again after damaged objects of the tensors named, and of the files, have
        been replaced, or if the state was overwritten between the look at its entry and the fetch.

        Returns:
            What `work` returns.

        Raises:
            StateNotFoundError: There is no such state.
            MlstateError: As `work`.
        """

        def repaired(state: Found) -> _Result:
            return self.access.repaired(state.entry, lambda: work(state), names, files=files)

        found = self.get(key) if found is None else found
        with concerning(key):
            found = self._pinned(found)
            try:
                return repaired(found)
            except (FetchError, ObjectNotFoundError):
                now = self.find(key)
                if now is None or now.entry.digest == found.entry.digest:
                    raise
                return repaired(now)

    def _names_in(self, found: Found, component: str | None) -> list[str] | None:
        """The names of a component, for which the state object is fetched; None for no component.

        Raises:
            StateNotFoundError: The state has no such component.
        """
        if component is None:
            return None
        self.access.bring(found.entry, Only.STATE_OBJECT, files=False)
        return component_names(read_state(*found).specs, component)

    def cached(self, key: StateKey, digest: Digest) -> Found | None:
        """A state of a remote store that is in the cache, found by its digest alone."""
        # Where a signature is needed, a digest alone is none.
        if self.catalog.remote and not self.catalog.requires_signature:
            entry = StateEntry(key, digest)
            with suppress(IntegrityError):
                if not needs_of(entry, self.objects, None, files=False):
                    return Found(entry, self.objects)
        return None


def is_sharded(model: Any) -> bool:
    """Whether a model has DTensors in it, without which torch is not imported here."""
    if not isinstance(model, TensorModel) or "torch.distributed.tensor" not in sys.modules:
        return False
    from mlstate.tensors import has_shards

    return has_shards(model)

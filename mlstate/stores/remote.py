"""Stores elsewhere: a pointer there says what a state is, and its bytes come through the cache."""

from __future__ import annotations

import abc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlstate.digests import Digest
from mlstate.errors import FetchError, IntegrityError
from mlstate.fetch import Fetcher, FetchReport
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import FileEntry, StateEntry
from mlstate.models import BytesModel, LoadResult, TensorModel
from mlstate.reading import needs_of
from mlstate.states import StateKey
from mlstate.stores.abstract import check_compatible
from mlstate.stores.fetching import FetchingView
from mlstate.stores.read import Found

if TYPE_CHECKING:
    import torch

__all__ = ["RemoteView", "without_local_places"]

_Result = TypeVar("_Result")
_Mirrors = tuple[Mirror | UnusableMirror, ...]


class RemoteView(FetchingView):
    """A store whose pointers are elsewhere. Each is read once in a call, however often it counts.

    Args:
        fetcher: Brings missing objects into the cache.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        super().__init__(fetcher)
        self._call = threading.local()

    @abc.abstractmethod
    def look(self, key: StateKey) -> Found | None:
        """Find a state by its pointer, which is read now.

        Returns:
            None if there is none.
        """

    def find(self, key: StateKey) -> Found | None:
        """Find a state; see `StateView.find`."""
        known = self._known
        if known is None:
            return self.look(key)
        if key not in known:
            known[key] = self.look(key)
        return known[key]

    def is_known(self, key: StateKey) -> bool:
        """Whether this call has looked for a state already."""
        return key in (self._known or {})

    def remember(self, found: Found) -> None:
        """Spare the rest of this call a look for a state."""
        if self._known is not None:
            self._known[found.entry.key] = found

    @property
    def _known(self) -> dict[StateKey, Found | None] | None:
        return getattr(self._call, "known", None)

    def load(self, model: Any, state_key: StateKey, **options: Any) -> LoadResult:
        """Load a state into a model; see `StateView.load`, which has the options.

        With `digest`, weights that are in the cache load without a look at the pointer.

        Raises:
            MlstateError: As `FetchingView.load`.
        """
        check_compatible(model, state_key)
        if found := self._cached(state_key, options.get("digest")):
            # What is damaged in the cache needs the mirrors that the pointer names.
            with suppress(IntegrityError), self._once(found):
                return super().load(model, state_key, **options)
        load = super().load

        def look_and_load() -> LoadResult:
            if isinstance(model, BytesModel) and not isinstance(model, TensorModel):
                # Before it is looked for as a state of tensors, which it may not be.
                raw = self.raw_bytes(state_key)
                if raw is not None:
                    model.set_state(raw)
                    return LoadResult()
            return load(model, state_key, **options)

        return self._steadily(state_key, look_and_load)

    def load_state_dict(
        self, key: StateKey, names: Sequence[str] | None = None, device: Any = "cpu"
    ) -> dict[str, torch.Tensor]:
        """The tensors of a state, without a model; see `FetchingView.load_state_dict`."""
        load = super().load_state_dict
        return self._steadily(key, lambda: load(key, names, device))

    def materialize(self, key: StateKey, folder: str | os.PathLike[str], **options: Any) -> Path:
        """Write a state as a plain folder; see `StateView.materialize`, which has the options."""
        write = super().materialize
        return self._steadily(key, lambda: write(key, folder, **options))

    def fetch(self, key: StateKey, *, names: Sequence[str] | None = None) -> FetchReport:
        """Bring what is missing of a state into the cache; see `FetchingView.fetch`."""
        fetch = super().fetch
        return self._steadily(key, lambda: fetch(key, names=names))

    def _steadily(self, key: StateKey, work: Callable[[], _Result]) -> _Result:
        """Work on a state; once more if it was overwritten after its pointer had been read."""
        with self._once():
            try:
                return work()
            except FetchError:
                assert self._known is not None
                before = self._known.pop(key, None)
                now = self.find(key)
                if before is None or now is None or now.entry.digest == before.entry.digest:
                    raise
            return work()

    def _cached(self, key: StateKey, digest: object) -> Found | None:
        """A state of which everything but its files is in the cache, by its digest alone."""
        if digest is None:
            return None
        entry = StateEntry(key, Digest(digest))  # type: ignore[arg-type]  # it checks
        with suppress(IntegrityError):
            if not needs_of(entry, self.objects, None, files=False):
                return Found(entry, self.objects)
        return None

    @contextmanager
    def _once(self, found: Found | None = None) -> Iterator[None]:
        """While one call lasts, remember what was found."""
        self._call.known = {} if found is None else {found.entry.key: found}
        try:
            yield
        finally:
            del self._call.known


def without_local_places(entry: StateEntry) -> StateEntry:
    """An entry from elsewhere, whose mirrors on this machine are passed over.

    Args:
        entry: What a manifest that somebody else wrote, in another place, says of a state.
    """
    files = {
        name: FileEntry(file.digest, _elsewhere(file.mirrors), file.unknown)
        for name, file in entry.files.items()
    }
    objects = tuple(address for address in entry.objects if _is_elsewhere(address))
    return replace(entry, mirrors=_elsewhere(entry.mirrors), files=files, objects=objects)


def _elsewhere(mirrors: _Mirrors) -> _Mirrors:
    return tuple(
        mirror
        if isinstance(mirror, UnusableMirror) or all(map(_is_elsewhere, _addresses(mirror)))
        else UnusableMirror("a place on this machine, in a manifest from elsewhere", mirror.toml)
        for mirror in mirrors
    )


def _addresses(mirror: Mirror) -> Iterator[str]:
    yield from mirror.urls
    if mirror.state is not None:
        yield mirror.state
    for part in mirror.parts:
        yield from _addresses(part)


def _is_elsewhere(address: str) -> bool:
    return "://" in address and not address.lower().startswith("file:")

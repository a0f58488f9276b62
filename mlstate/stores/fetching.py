"""Reading states whose bytes are elsewhere: fetched into a cache, once, and mended there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlstate.errors import FetchError, IntegrityError, ObjectNotFoundError, OfflineError
from mlstate.manifests import StateEntry
from mlstate.models import LoadResult
from mlstate.states import StateKey
from mlstate.stores.abstract import check_list
from mlstate.stores.read import Found, StateView

if TYPE_CHECKING:
    import torch

    from mlstate.fetch import Fetcher, FetchReport

__all__ = ["FetchingView"]

_Result = TypeVar("_Result")
_TRIES = 3
"""Other processes may be mending the same, and set aside what this one has just brought."""


class FetchingView(StateView):
    """A store that says of each state where its bytes are, and fetches what the cache lacks.

    Args:
        fetcher: Brings missing objects into the cache.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.objects = fetcher.cache

    def fetch(self, key: StateKey, *, names: Sequence[str] | None = None) -> FetchReport:
        """Bring what is missing of a state into the cache, without loading it.

        Tensors that are there are judged by name and size, and not read. Needs no torch, unless a
        mirror is a torch checkpoint.

        Args:
            key: The state.
            names: The tensors that are needed; all by default, and the state's files.

        Returns:
            How many bytes came, and how many were there already.

        Raises:
            StateNotFoundError: There is no such state.
            UnpinnedStateError: The manifest gives no digest.
            ObjectNotFoundError: Something is missing, and no mirror is listed.
            OfflineError: Something is missing, and the network may not be used.
            FetchError: Something is missing, and no mirror could give it; it lists them all.
        """
        entry = self.get(key).entry
        wanted = check_list(names)
        fetch = self._fetcher.fetch
        return self._repaired(
            entry, lambda: fetch(entry, wanted, files=wanted is None), wanted, files=wanted is None
        )

    def bring(
        self, entry: StateEntry, names: Sequence[str] | None = None, *, files: bool = True
    ) -> None:
        """Fetch what is missing; see `StateView.bring`."""
        self._fetcher.fetch(entry, names, files=files)

    def load(self, model: Any, state_key: StateKey, **options: Any) -> LoadResult:
        """Load a state into a model; see `StateView.load`, which has the options.

        What is missing in the cache is fetched. What is damaged there is set aside, kept in the
        cache's trash/, and fetched again; a warning says so.

        Raises:
            FetchError: Something is missing, and no mirror could give it.
            OfflineError: Something is missing, and the network may not be used.
            MlstateError: As `StateView.load`.
        """
        entry = self.get(state_key).entry
        load = super().load
        return self._repaired(entry, lambda: load(model, state_key, **options))

    def load_state_dict(
        self, key: StateKey, names: Sequence[str] | None = None, device: Any = "cpu"
    ) -> dict[str, torch.Tensor]:
        """The tensors of a state, without a model; see `StateView.load_state_dict`.

        Missing ones are fetched, those of `names` alone, and damaged ones fetched again.

        Raises:
            MlstateError: As `load`.
        """
        entry = self.get(key).entry
        load = super().load_state_dict
        wanted = check_list(names)
        return self._repaired(
            entry, lambda: load(key, wanted, device), wanted, files=wanted is None
        )

    def read_file(self, found: Found, name: str) -> bytes:
        """A file of a state, fetched if it is missing; see `StateView.read_file`."""
        read = super().read_file

        def bring_and_read() -> bytes:
            self.bring(found.entry, ())
            return read(found, name)

        return self._repaired(found.entry, bring_and_read, (), stacklevel=6)

    def materialize(self, key: StateKey, folder: str | os.PathLike[str], **options: Any) -> Path:
        """Write a state as a plain folder; see `StateView.materialize`, which has the options.

        Raises:
            MlstateError: As `load`, and as `StateView.materialize`.
        """
        entry = self.get(key).entry
        write = super().materialize
        return self._repaired(entry, lambda: write(key, folder, **options))

    def mend(
        self,
        entry: StateEntry,
        names: Sequence[str] | None = None,
        *,
        files: bool = True,
        stacklevel: int = 5,
    ) -> bool:
        """Set aside what is damaged of a state in the cache, and fetch it again; warns if it did.

        Args:
            entry: What is said of the state.
            names: The tensors to look at; all by default.
            files: Whether to look at the state's files, too.
            stacklevel: Whom the warning concerns: as for `warnings.warn`.

        Raises:
            IntegrityError: Something is damaged and no mirror is listed; it stays where it is.
            MlstateError: As `fetch`.
        """
        aside = self._fetcher.repair(entry, names, files=files)
        if aside:
            warnings.warn(
                f"{entry.key} was damaged in the cache and has been fetched again; the damaged "
                f"objects are kept: {', '.join(aside)}",
                stacklevel=stacklevel,
            )
        return bool(aside)

    def _repaired(
        self,
        entry: StateEntry,
        read: Callable[[], _Result],
        names: Sequence[str] | None = None,
        *,
        files: bool = True,
        stacklevel: int = 4,
    ) -> _Result:
        for _ in range(_TRIES):
            try:
                return read()
            except IntegrityError as error:
                try:
                    mended = self.mend(entry, names, files=files, stacklevel=stacklevel)
                except (FetchError, OfflineError) as failure:
                    error.remedy = f"fetch it again when that is possible; now: {failure.message}"
                    raise error from failure
                # What is gone another process has just set aside; reading brings it first. If
                # nothing is damaged any more, another one was faster: once more will tell.
                if not mended and not isinstance(error, ObjectNotFoundError):
                    break
        return read()

"""Access to the bytes of states: they are there, or are fetched into a cache first."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Protocol, TypeVar

from mlstate.errors import FetchError, IntegrityError, ObjectNotFoundError, OfflineError
from mlstate.manifests import StateEntry
from mlstate.reading import Names
from mlstate.warn import warn

if TYPE_CHECKING:
    from mlstate.fetch import Fetcher, FetchReport
    from mlstate.fetch.progress import Progress

__all__ = ["Access", "Trash"]

_Result = TypeVar("_Result")
_TRIES = 3
"""Other processes may repair the same state, and set aside what this one has just fetched."""


class Trash(Protocol):
    """Where a pruning of the store moves what it takes away, if fetches do not look there."""

    def bring(self, entry: StateEntry, names: Names, *, files: bool) -> bool:
        """Bring what is there of a state into the cache; says whether to fetch again."""


class Access:
    """The bytes of states, which a fetcher brings into the cache; without one, they are there.

    Each method takes the entry of a state and the names of the tensors that are needed: by default
    all; and, unless `files` is False, the files of the state.
    """

    def __init__(self, fetcher: Fetcher | None, trash: Trash | None = None) -> None:
        self._fetcher = fetcher
        self._trash = trash

    def watched(self, check: Callable[[], object]) -> Access:
        """The same, whose fetches end with what ``check`` raises: it is called as bytes come."""
        if self._fetcher is None:
            return self
        fetcher = copy(self._fetcher)
        tell = fetcher.on_progress

        def told(progress: Progress) -> None:
            if not progress.ended:
                check()
            if tell is not None:
                tell(progress)

        fetcher.on_progress = told
        return Access(fetcher, self._trash)

    def bring(
        self, entry: StateEntry, names: Names = None, *, files: bool = True
    ) -> FetchReport | None:
        """Fetch what is missing of a state, if there is a fetcher; raises what that raises."""
        if self._fetcher is None:
            return None
        try:
            return self._fetcher.fetch(entry, names, files=files)
        except FetchError:
            if self._trash is None or not self._trash.bring(entry, names, files=files):
                raise
        return self._fetcher.fetch(entry, names, files=files)

    def mend(self, entry: StateEntry, names: Names = None, *, files: bool = True) -> bool:
        """Set aside damaged objects in the cache, fetch them again, and warn of them.

        Returns whether there were any. Without a mirror they stay, and an IntegrityError is raised.
        """
        if self._fetcher is None:
            return False
        aside = self._fetcher.repair(entry, names, files=files)
        if aside:
            warn(
                f"{entry.key} was damaged in the cache and has been fetched again; the damaged "
                f"objects are kept: {', '.join(aside)}"
            )
        return bool(aside)

    def repaired(
        self,
        entry: StateEntry,
        read: Callable[[], _Result],
        names: Names = None,
        *,
        files: bool = True,
    ) -> _Result:
        """The result of `read`, which is called again after damaged objects have been replaced."""
        for _ in range(_TRIES if self._fetcher is not None else 0):
            try:
                return read()
            except IntegrityError as error:
                try:
                    mended = self.mend(entry, names, files=files)
                except (FetchError, OfflineError) as failure:
                    error.remedy = f"fetch it again when that is possible; now: {failure.message}"
                    raise error from failure
                # Another process has just set aside a missing object: the next read fetches it. If
                # nothing is damaged any more, another process has replaced it: read once more.
                if not mended and not isinstance(error, ObjectNotFoundError):
                    break
        return read()

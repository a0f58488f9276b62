"""How a store comes by the bytes of a state: they are there, or are fetched into a cache first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mlstate.errors import FetchError, IntegrityError, ObjectNotFoundError, OfflineError
from mlstate.manifests import StateEntry
from mlstate.reading import Names
from mlstate.warn import warn

if TYPE_CHECKING:
    from mlstate.fetch import Fetcher

__all__ = ["Access"]

_Result = TypeVar("_Result")
_TRIES = 3
"""Other processes may be mending the same, and set aside what this one has just brought."""


class Access:
    """The way to the bytes of states.

    Args:
        fetcher: Brings missing objects into the cache; None for a store whose bytes are its own.
    """

    def __init__(self, fetcher: Fetcher | None) -> None:
        self._fetcher = fetcher

    def bring(self, entry: StateEntry, names: Names = None, *, files: bool = True) -> None:
        """Fetch what is missing of a state, if it can be fetched.

        Args:
            entry: The state.
            names: The tensors that are needed; all by default.
            files: Whether the state's files are needed, too.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        if self._fetcher is not None:
            self._fetcher.fetch(entry, names, files=files)

    def mend(self, entry: StateEntry, names: Names = None, *, files: bool = True) -> bool:
        """Set aside what is damaged of a state in the cache, and fetch it again; warn if it was so.

        Args:
            entry: The state.
            names: The tensors to look at; all by default.
            files: Whether to look at the state's files, too.

        Returns:
            Whether something was replaced, so that it is worth to read again.

        Raises:
            IntegrityError: Something is damaged and no mirror is listed; it stays where it is.
            MlstateError: As `Fetcher.fetch`.
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
        """Read a state; again once what is damaged of it in the cache has been fetched anew.

        Args:
            entry: The state.
            read: Brings and reads it, perhaps several times.
            names: The tensors that it reads; all by default.
            files: Whether it reads the state's files, too.

        Returns:
            What `read` returns.

        Raises:
            MlstateError: What `read` raises, where it cannot be mended.
        """
        for _ in range(_TRIES if self._fetcher is not None else 0):
            try:
                return read()
            except IntegrityError as error:
                try:
                    mended = self.mend(entry, names, files=files)
                except (FetchError, OfflineError) as failure:
                    error.remedy = f"fetch it again when that is possible; now: {failure.message}"
                    raise error from failure
                # What is gone another process has just set aside; reading brings it first. If
                # nothing is damaged any more, another one was faster: once more will tell.
                if not mended and not isinstance(error, ObjectNotFoundError):
                    break
        return read()

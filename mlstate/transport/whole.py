"""Resources that are read whole or not at all, for servers that cannot be asked for a range."""

from __future__ import annotations

from contextlib import AbstractContextManager

from mlstate.errors import NoRangesError
from mlstate.transport.interface import Resource, Stream

__all__ = ["WholeResource"]


class WholeResource:
    """A resource of which every range is refused: what comes is of one version, from one reply.

    Servers behind one address may each have a version of their own, or other names for the same
    one. Ranges of several replies are then nothing that anybody could trust.
    """

    def __init__(self, resource: Resource) -> None:
        self._resource = resource

    def __repr__(self) -> str:
        return f"WholeResource({self._resource!r})"

    @property
    def address(self) -> str:
        """See `Resource.address`."""
        return self._resource.address

    def size(self) -> None:
        """None: to ask for it is to ask once more; see `Resource.size`."""

    def read(self, start: int = 0, stop: int | None = None) -> AbstractContextManager[Stream]:
        """See `Resource.read`."""
        if start or stop is not None:
            raise NoRangesError("this is read as a whole only", path=self.address)
        return self._resource.read()

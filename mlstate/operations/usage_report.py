"""The report of `usage`: states and architectures with the space that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mlstate.digests import Digest
from mlstate.operations.reports import iso_time
from mlstate.operations.tables import Table, Tabular, size_cell
from mlstate.states import StateKey, StateType

__all__ = ["ArchitectureUsage", "Cached", "DiskUsage", "EncodedUsage", "StateUsage", "Usage"]

Cached = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class StateUsage:
    """A state, and the space that it takes, in bytes.

    Attributes:
        key: Its key.
        digest: Its state digest; None if it is not pinned, or if the store's listing does not tell:
            that of a release, that of checkpoints of an older layout.
        nbytes: The size of its tensor data, every name counted, as a manifest and `describe` give
            it; of an older checkpoint that of the file; None if unknown.
        own: The size of its objects that no other state of the store names, as they are there,
            encoded or not, with what they are built on: of those in the cache, if the store is a
            view; None if unknown.
        shared: The size of its other objects.
        cached: Whether it is in the cache, of a store whose states load through one; else None.
        modified: The time when it was saved; of a state of a view, when it was last used; None if
            unknown. In Python these are seconds since the epoch.
        error: Why nothing more is known of it, or None.
        unsigned: Whether this is that it has no good signature, and the store requires one.
        meta: The notes that were saved with it; None unless they were asked for.
    """

    key: StateKey
    digest: Digest | None = None
    nbytes: int | None = None
    own: int | None = None
    shared: int | None = None
    cached: Cached | None = None
    modified: float | None = field(default=None, metadata={"json": iso_time})
    error: str | None = None
    unsigned: bool = False
    meta: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ArchitectureUsage:
    """All states of an architecture together, in bytes.

    Attributes:
        state_type: Backend and architecture.
        states: How many there are.
        nbytes: The sum of their sizes, as far as these are known.
        own: The size of objects that no state of another architecture names, each once.
        shared: The size of their other objects, each once.
    """

    state_type: StateType
    states: int
    nbytes: int
    own: int
    shared: int


@dataclass(frozen=True)
class DiskUsage:
    """What lies on the disk of a store, or in its bucket, in bytes.

    Attributes:
        total: All of it: the sum of what follows.
        own: Objects that one state of the store needs, and checkpoints of an older layout.
        shared: Objects that several of them need.
        others: Objects of other states in the same folder: fetched for other manifests, or saved.
        copies: Objects that another folder of the cache has, too.
        unnamed: Objects that no state needs: pruning takes them when they are old enough.
        trash: What prunings and deletions moved to trash/: the next pruning deletes what is old.
        unfinished: What is in tmp/: of fetches and saves that are under way, or were interrupted.
        records: State files, notes of use, settings; what was computed from states: the index of
            what they say, the statistics of reports.
        folders: Folders that frameworks opened states from; see `mlstate.integrations`.
        foreign: Files among these that are not mlstate's.
    """

    total: int
    own: int
    shared: int
    others: int
    copies: int
    unnamed: int
    trash: int
    unfinished: int
    records: int
    folders: int
    foreign: int

    @classmethod
    def parts(cls) -> list[str]:
        """The names of the parts that add up to the total."""
        return [one.name for one in fields(cls) if one.name != "total"]


@dataclass(frozen=True)
class EncodedUsage:
    """The objects that are in encoded form only; see `mlstate.compact`.

    Attributes:
        objects: How many there are.
        nbytes: Their bytes.
        saved: How many bytes more they would have plainly.
    """

    objects: int
    nbytes: int
    saved: int


@dataclass(frozen=True)
class Usage(Tabular):
    """The space that a store takes, in bytes.

    Attributes:
        total: The size of all objects that the states of the store name, each once, and of what a
            folder keeps as a cache. Of a view: of those that are in the cache.
        unnamed: The size of all objects in the folder, bucket or cache that no state needs, which
            pruning takes when they are old enough; None where these are not measured.
        trash: The size of what is in trash/ there; None likewise.
        architectures: The states of the whole store by backend and architecture.
        states: The states that were asked for, sorted by key.
        disk: All that lies in the folder, bucket or cache; None where that is not measured.
        encoded: What of it is in encoded form only; None where nothing is, or it is not measured.
    """

    total: int
    unnamed: int | None
    trash: int | None
    architectures: tuple[ArchitectureUsage, ...]
    states: tuple[StateUsage, ...]
    disk: DiskUsage | None = None
    encoded: EncodedUsage | None = None

    def _table(self) -> Table:
        titles = ["KEY", ">SIZE", ">OWN DISK", ">SHARED"]
        rows = [
            [str(one.key), *map(size_cell, (one.nbytes, one.own, one.shared))]
            for one in self.states
        ]
        if any(one.cached is not None for one in self.states):
            titles.append("CACHED")
            rows = [[*row, one.cached or ""] for row, one in zip(rows, self.states, strict=True)]
        on_disk = self.total if self.disk is None else self.disk.total
        summary = f"{size_cell(on_disk)} for {len(self.states)} states"
        return Table(tuple(titles), rows, summary)

    def by_architecture(self) -> Mapping[StateType, ArchitectureUsage]:
        """The states by backend and architecture, whatever their extras; of the whole store."""
        return {found.state_type: found for found in self.architectures}

"""What ``--json`` prints: the promise to programs.

Each command prints one object. Its ``schema`` names command and version: within a version fields
are only added. Sizes are bytes, times are ISO 8601 in UTC, digests are 64 hexadecimal digits.

What the API reports is printed as it is declared there, see `mlstate.operations.reports`. Here is
the rest. A test holds the output of each command against these types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlstate.states import StateKey

if TYPE_CHECKING:
    from mlstate.operations.usage import StateUsage

__all__ = [
    "Compared",
    "Copied",
    "CopyFailure",
    "Deleted",
    "Digests",
    "Fetched",
    "FetchedState",
    "FileDigest",
    "Listed",
    "Looked",
    "Objects",
    "Pinned",
    "PinnedState",
    "Pruned",
    "Unbundled",
    "Verdict",
    "Written",
    "printed",
]


@dataclass(frozen=True)
class Looked:
    """Which store was looked at.

    Attributes:
        store: The store, as it was typed.
    """

    store: str


@dataclass(frozen=True)
class Listed(Looked):
    """The states of a store."""

    states: tuple[StateUsage, ...]


@dataclass(frozen=True)
class FetchedState:
    """A state that was fetched, or with `error` was not."""

    key: StateKey
    digest: str | None
    fetched: int
    spared: int
    error: str | None


@dataclass(frozen=True)
class Fetched:
    """What came of each state."""

    states: tuple[FetchedState, ...]


@dataclass(frozen=True)
class Written:
    """What was written where."""

    states: tuple[StateKey, ...]
    path: str


@dataclass(frozen=True)
class Deleted:
    """The states that are no longer there."""

    removed: tuple[StateKey, ...]


@dataclass(frozen=True)
class CopyFailure:
    """A state that could not be copied."""

    key: str
    error: str


@dataclass(frozen=True)
class Copied:
    """What a copy did; `bytes` are those of tensors that were read for it."""

    copied: tuple[StateKey, ...]
    present: tuple[StateKey, ...]
    failed: tuple[CopyFailure, ...]
    nbytes: int
    manifest: str | None


@dataclass(frozen=True)
class PinnedState:
    """A state that is pinned now."""

    key: StateKey
    digest: str
    nbytes: int | None


@dataclass(frozen=True)
class Pinned:
    """The states that are pinned now and were not before."""

    pinned: tuple[PinnedState, ...]


@dataclass(frozen=True)
class Unbundled:
    """The states that a bundle brought."""

    states: tuple[StateKey, ...]


@dataclass(frozen=True)
class Objects:
    """So many objects, of so many bytes in all."""

    objects: int
    nbytes: int


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be; `states` are those that left a cache."""

    dry_run: bool
    states: tuple[str, ...]
    deleted: Objects
    trashed: Objects


@dataclass(frozen=True)
class Verdict:
    """Whether all is well.

    Attributes:
        ok: Whether nothing is wrong, or all that was is repaired.
    """

    ok: bool


@dataclass(frozen=True)
class Compared:
    """What was compared.

    Attributes:
        first: The first state or file, as it was typed.
        second: The second.
        same_weights: Whether names, types, shapes and bytes of all tensors are the same.
    """

    first: str
    second: str
    same_weights: bool


@dataclass(frozen=True)
class FileDigest:
    """The state digest of a weights file."""

    path: str
    digest: str


@dataclass(frozen=True)
class Digests:
    """The digest of each file that could be read."""

    files: tuple[FileDigest, ...]


def printed() -> dict[str, tuple[type, ...]]:
    """Command -> the reports whose members it prints, one after the other."""
    from mlstate.operations.describe import Description
    from mlstate.operations.diff import StateDiff
    from mlstate.operations.doctor.doctor import Diagnosis
    from mlstate.operations.intake import AdoptReport
    from mlstate.operations.usage import Usage
    from mlstate.operations.verify.report import VerifyReport

    return {
        "ls": (Listed,),
        "show": (Description,),
        "du": (Looked, Usage),
        "fetch": (Fetched,),
        "export": (Written,),
        "materialize": (Written,),
        "bundle": (Written,),
        "rm": (Deleted,),
        "copy": (Copied,),
        "lock": (Pinned,),
        "unbundle": (Unbundled,),
        "prune": (Pruned,),
        "add": (AdoptReport,),
        "verify": (Verdict, VerifyReport),
        "diff": (Compared, StateDiff),
        "digest": (Digests,),
        "doctor": (Verdict, Diagnosis),
    }

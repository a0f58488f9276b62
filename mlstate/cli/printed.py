"""What ``--json`` prints: the promise to programs.

Each command prints one object. Its ``schema`` names command and version: within a version fields
are only added. Sizes are bytes, times are ISO 8601 in UTC, digests are 64 hexadecimal digits.

What the API reports is printed as it is declared there, see `mlstate.operations.reports`. A test
holds the output of each command against these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlstate.states import StateKey

__all__ = [
    "VARIANTS",
    "CopyFailure",
    "FetchedState",
    "FileDigest",
    "Objects",
    "PinnedState",
    "printed",
]


@dataclass(frozen=True)
class FetchedState:
    """A state that was fetched, or with `error` was not; of a dry run, what would be."""

    key: StateKey
    digest: str | None
    fetched: int | None
    spared: int
    error: str | None
    pinned_now: bool = False


@dataclass(frozen=True)
class CopyFailure:
    """A state that could not be copied."""

    key: str
    error: str


@dataclass(frozen=True)
class PinnedState:
    """A state that is pinned now."""

    key: StateKey
    digest: str
    nbytes: int | None


@dataclass(frozen=True)
class Objects:
    """So many objects, of so many bytes in all."""

    objects: int
    nbytes: int


@dataclass(frozen=True)
class FileDigest:
    """The state digest of a weights file."""

    path: str
    digest: str


VARIANTS = {
    "add-all": "`mlstate add --all`: all weights below a folder.",
    "manifest-diff": "What `diff` prints of two manifests.",
}
"""What is printed by a command of another name, and what it is."""


def printed() -> dict[str, tuple[type | Mapping[str, Any], ...]]:
    """Command -> the reports whose members it prints, with members that are in no report."""
    from mlstate.manifests.signed import ManifestSignature
    from mlstate.operations.adopt_all import AdoptAllReport
    from mlstate.operations.adopt_report import AdoptReport
    from mlstate.operations.check import CheckReport
    from mlstate.operations.describe import Description
    from mlstate.operations.diff import StateDiff
    from mlstate.operations.diff_manifests import ManifestDiff
    from mlstate.operations.doctor.doctor import Diagnosis
    from mlstate.operations.git.setup import GitSetup
    from mlstate.operations.history import Event
    from mlstate.operations.pins import PinnedByUser
    from mlstate.operations.usage_report import StateUsage, Usage
    from mlstate.operations.verify.report import VerifyReport

    keys = list[str]
    written = {"states": keys, "path": str}
    copied = {"copied": keys, "present": keys, "failed": list[CopyFailure]}
    pruned = {"dry_run": bool, "states": keys, "deleted": Objects, "trashed": Objects}
    pruned |= {"in_use": keys, "future": list[str]}
    return {
        "init": ({"path": str, "store": str | None, "manifests": list[str]},),
        "ls": ({"store": str, "states": list[StateUsage], "passed_over": list[str]},),
        "show": (Description,),
        "du": ({"store": str}, Usage),
        "fetch": ({"dry_run": bool, "states": list[FetchedState]},),
        "export": (written,),
        "materialize": (written,),
        "bundle": (written,),
        "rm": ({"dry_run": bool, "removed": keys},),
        "mv": ({"old": str, "new": str},),
        "meta": ({"key": str, "meta": dict[str, Any]},),
        "alias": ({"aliases": dict[str, str]},),
        "log": ({"events": list[Event]},),
        "restore": ({"dry_run": bool}, Event),
        "copy": ({**copied, "dry_run": bool, "bytes": int, "manifest": str | None},),
        "lock": ({"pinned": list[PinnedState]},),
        "pins": ({"path": str | None, "pins": list[PinnedByUser], "removed": list[PinnedByUser]},),
        "unbundle": ({"states": keys},),
        "prune": (pruned,),
        "add": (AdoptReport,),
        "add-all": ({"dry_run": bool}, AdoptAllReport),
        "verify": ({"ok": bool}, VerifyReport),
        "diff": (
            {"first": str, "second": str, "same_weights": bool, "same_but_for_ties": bool},
            StateDiff,
        ),
        "manifest-diff": ({"first": str, "second": str, "same": bool}, ManifestDiff),
        "check": ({"ok": bool}, CheckReport),
        "git-setup": (GitSetup,),
        "digest": ({"files": list[FileDigest]},),
        "sign": ({"signatures": list[ManifestSignature]},),
        "verify-signature": ({"signatures": list[ManifestSignature]},),
        "doctor": ({"ok": bool}, Diagnosis),
    }

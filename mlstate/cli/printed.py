"""What ``--json`` prints: the promise to programs.

Each command prints one object. Its ``schema`` names command and version: within a version fields
are only added. A command that fails prints an object, too, with the schema ``mlstate.error/1``:
whatever ends it, be it a word that was mistyped or Ctrl-C. Sizes are bytes, times are ISO 8601 in
UTC, digests are 64 hexadecimal digits.

What the API reports is printed as it is declared there, see `mlstate.operations.reports`. A test
holds the output of each command against these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlstate.states import StateKey

__all__ = [
    "VARIANTS",
    "CopyFailure",
    "Failure",
    "FetchedState",
    "FileDigest",
    "FileFailure",
    "Folder",
    "Kept",
    "KeyParts",
    "LockFailure",
    "MirrorFailure",
    "Objects",
    "PinnedState",
    "UnreachedServer",
    "failed",
    "printed",
]


@dataclass(frozen=True)
class MirrorFailure:
    """Why a mirror did not do."""

    mirror: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """An error: what happened, where, and what to do about it.

    Attributes:
        kind: The type of the error in Python, such as `FetchError`; of a command line that cannot
            be understood `UsageError`, and of Ctrl-C `Interrupted`.
        message: What happened, one sentence.
        key: The state concerned.
        tensor: The tensor concerned.
        path: Where: a file, an address or another place.
        line: The line in that file.
        expected: What should have been there.
        found: What was there instead.
        remedy: What to do about it, in words of the command line.
        mirrors: Each mirror that was tried, with the reason why it did not do.
    """

    kind: str
    message: str
    key: str | None = None
    tensor: str | None = None
    path: str | None = None
    line: int | None = None
    expected: str | None = None
    found: str | None = None
    remedy: str | None = None
    mirrors: list[MirrorFailure] = field(default_factory=list)


@dataclass(frozen=True)
class UnreachedServer:
    """A server that could not be reached: what other mirrors have came from these."""

    server: str
    reason: str


@dataclass(frozen=True)
class FetchedState:
    """A state that was fetched, or with `error` was not, of which `failure` says all.

    Of a dry run, what would be fetched.
    """

    key: StateKey
    digest: str | None
    fetched: int | None
    spared: int
    error: str | None
    pinned_now: bool = False
    failure: Failure | None = None


@dataclass(frozen=True)
class KeyParts:
    """A key as it was understood: of its text, the dots part it."""

    backend: str
    architecture: str
    extra: list[str]
    training_id: str


@dataclass(frozen=True)
class CopyFailure:
    """A state that could not be copied."""

    key: str
    error: str
    failure: Failure


@dataclass(frozen=True)
class LockFailure:
    """A state that could not be pinned."""

    key: StateKey
    failure: Failure


@dataclass(frozen=True)
class FileFailure:
    """A file that could not be read."""

    path: str
    failure: Failure


@dataclass(frozen=True)
class PinnedState:
    """A state that is pinned now: by what its mirrors send, or by an earlier first use."""

    key: StateKey
    digest: str
    nbytes: int | None
    pinned_now: bool = True


@dataclass(frozen=True)
class Folder:
    """A folder of a cache, with the bytes of its files."""

    path: str
    nbytes: int


@dataclass(frozen=True)
class Objects:
    """So many objects, of so many bytes in all."""

    objects: int
    nbytes: int


@dataclass(frozen=True)
class Kept:
    """What a pruning left where it is, and why.

    The reasons: "in use" by a process; "recent", used or fetched within the grace period; "saved"
    in the folder of the cache; "young", objects that no state needs; "unfinished", other files of
    work that was interrupted or is under way, and of deleted states; "recent folders", from which
    frameworks opened states within the grace period. Of states that go on with others no objects
    are counted, and of folders each is one.
    """

    reason: str
    states: list[str]
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
    from mlstate.operations.compact.report import CompactReport
    from mlstate.operations.describe import Description
    from mlstate.operations.diff import StateDiff
    from mlstate.operations.diff_manifests import ManifestDiff
    from mlstate.operations.doctor.doctor import Diagnosis
    from mlstate.operations.git.setup import GitSetup
    from mlstate.operations.history import Event
    from mlstate.operations.peers.write import WrittenPeers
    from mlstate.operations.pins import PinnedByUser
    from mlstate.operations.report.values import ReportData
    from mlstate.operations.usage_report import StateUsage, Usage
    from mlstate.operations.verify.report import VerifyReport

    keys = list[str]
    written = {"states": keys, "path": str, "pinned_now": keys}
    copied = {"copied": keys, "present": keys, "failed": list[CopyFailure], "pinned_now": keys}
    pruned = {"dry_run": bool, "states": keys, "deleted": Objects, "trashed": Objects}
    pruned |= {"in_use": keys, "future": list[str], "kept": list[Kept]}
    pruned |= {"swept": list[str], "restored": list[str], "folders": list[Folder]}
    return {
        "init": ({"path": str, "store": str | None, "manifests": list[str]},),
        "ls": (
            {
                "store": str,
                "states": list[StateUsage],
                "aliases": dict[str, str],
                "passed_over": list[str],
            },
        ),
        "show": (Description,),
        "du": ({"store": str}, Usage),
        "fetch": (
            {
                "dry_run": bool,
                "states": list[FetchedState],
                "unreached": list[UnreachedServer],
            },
        ),
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
        "lock": ({"pinned": list[PinnedState], "failed": list[LockFailure]},),
        "pins": ({"path": str | None, "pins": list[PinnedByUser], "removed": list[PinnedByUser]},),
        "unbundle": ({"states": keys},),
        "prune": (pruned,),
        "compact": ({"dry_run": bool, "saved": int}, CompactReport),
        "add": (AdoptReport, {"understood": KeyParts}),
        "add-all": ({"dry_run": bool}, AdoptAllReport),
        "verify": ({"ok": bool, "checked": keys}, VerifyReport),
        "diff": (
            {"first": str, "second": str, "same_weights": bool, "same_but_for_ties": bool},
            StateDiff,
        ),
        "manifest-diff": ({"first": str, "second": str, "same": bool}, ManifestDiff),
        "check": ({"ok": bool}, CheckReport),
        "git-setup": (GitSetup,),
        "digest": ({"files": list[FileDigest], "failed": list[FileFailure]},),
        "sign": ({"signatures": list[ManifestSignature]},),
        "verify-signature": ({"signatures": list[ManifestSignature]},),
        "doctor": ({"ok": bool}, Diagnosis),
        "peers": (WrittenPeers,),
        "report": (ReportData,),
    }


def failed() -> tuple[type | Mapping[str, Any], ...]:
    """The reports whose members any command prints that fails, as `mlstate.error`."""
    return ({"command": str | None, "exit_code": int}, Failure)

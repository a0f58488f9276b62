"""What ``--json`` prints: the promise to programs.

Each command prints one object. Its ``schema`` names command and version: within a version fields
are only added. Sizes are bytes, times are ISO 8601 in UTC, digests are 64 hexadecimal digits.
The page about the command line lists these types; a test holds the output of each command against
them.
"""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = ["SCHEMAS"]


class LsState(TypedDict):
    """A state in a list."""

    key: str
    digest: str | None
    bytes: int | None
    own: int | None
    shared: int | None
    cached: str | None
    modified: str | None
    error: str | None


class Ls(TypedDict):
    """``mlstate ls``."""

    schema: str
    store: str
    states: list[LsState]


class ShowFile(TypedDict):
    """A file of a state; ``bytes`` is null if it is not here."""

    name: str
    digest: str
    bytes: int | None


class ShowTensor(TypedDict):
    """A tensor; ``digest`` is null if it is within the state object."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    digest: str | None
    same_names: list[str]
    states: list[str]


class Show(TypedDict):
    """``mlstate show``; ``tensors`` is null if they are not known here."""

    schema: str
    key: str
    digest: str | None
    bytes: int | None
    origin: str | None
    mirrors: list[str]
    objects: list[str]
    files: list[ShowFile]
    meta: dict[str, Any]
    tensors: list[ShowTensor] | None


class DuArchitecture(TypedDict):
    """The states of one architecture."""

    type: str
    states: int
    bytes: int
    own: int
    shared: int


class Du(TypedDict):
    """``mlstate du``; ``unnamed`` is what no state names, null where nobody knows."""

    schema: str
    store: str
    bytes: int
    unnamed: int | None
    trash: int | None
    architectures: list[DuArchitecture]
    states: list[LsState]


class FetchState(TypedDict):
    """A state that was fetched, or with ``error`` was not."""

    key: str
    digest: str | None
    fetched: int
    spared: int
    error: str | None


class Fetch(TypedDict):
    """``mlstate fetch``."""

    schema: str
    states: list[FetchState]


class CopyFailure(TypedDict):
    """A state that could not be copied."""

    key: str
    error: str


class Copy(TypedDict):
    """``mlstate copy``; ``bytes`` are those of tensors that were read for it."""

    schema: str
    copied: list[str]
    present: list[str]
    failed: list[CopyFailure]
    bytes: int
    manifest: str | None


class LockState(TypedDict):
    """A state that is pinned now."""

    key: str
    digest: str
    bytes: int | None


class Lock(TypedDict):
    """``mlstate lock``."""

    schema: str
    pinned: list[LockState]


class Unbundle(TypedDict):
    """``mlstate unbundle``."""

    schema: str
    states: list[str]


class Objects(TypedDict):
    """So many objects, of so many bytes in all."""

    objects: int
    bytes: int


class Prune(TypedDict):
    """``mlstate prune``; ``states`` are those that left a cache."""

    schema: str
    dry_run: bool
    states: list[str]
    deleted: Objects
    trashed: Objects


class Add(TypedDict):
    """``mlstate add``; ``existed`` if it was there already."""

    schema: str
    key: str
    digest: str
    bytes: int | None
    fetched: int
    spared: int
    existed: bool
    files: list[str]


class Written(TypedDict):
    """``mlstate export``, ``materialize`` and ``bundle``: where it is."""

    schema: str
    states: list[str]
    path: str


class Rm(TypedDict):
    """``mlstate rm``."""

    schema: str
    removed: list[str]


class VerifyFinding(TypedDict):
    """Something that is not as it should be; ``kind`` is damaged, missing or unreadable."""

    keys: list[str]
    kind: str
    what: str
    tensors: list[str]
    digest: str | None
    path: str | None
    expected: str | None
    found: str | None
    repaired: bool
    remedy: str | None


class Verify(TypedDict):
    """``mlstate verify``."""

    schema: str
    ok: bool
    states: list[str]
    objects: int
    bytes: int
    findings: list[VerifyFinding]
    absent: list[str]
    partial: list[str]
    unpinned: list[str]
    unverifiable: list[str]


class DiffSpec(TypedDict):
    """What a tensor is."""

    dtype: str
    shape: list[int]


class DiffChange(TypedDict):
    """A tensor that differs; numbers are null where values were not or cannot be compared."""

    name: str
    first: DiffSpec
    second: DiffSpec
    differing: int | None
    max_abs: float | None
    relative: float | None
    nonfinite: int | None


class DiffRename(TypedDict):
    """The same tensor under two names."""

    first: str
    second: str


class Diff(TypedDict):
    """``mlstate diff``."""

    schema: str
    first: str
    second: str
    same_weights: bool
    equal: list[str]
    changed: list[DiffChange]
    removed: list[str]
    added: list[str]
    renamed: list[DiffRename]
    files: list[str]


class FileDigest(TypedDict):
    """The state digest of a weights file."""

    path: str
    digest: str


class Digests(TypedDict):
    """``mlstate digest``."""

    schema: str
    files: list[FileDigest]


class DoctorSetting(TypedDict):
    """A setting; ``value`` is null if it is not set, and hidden if it is a secret."""

    name: str
    value: str | None
    default: str


class DoctorCheck(TypedDict):
    """Something that was looked at; ``ok`` is null where it is information only."""

    name: str
    ok: bool | None
    found: str
    remedy: str | None


class Doctor(TypedDict):
    """``mlstate doctor``; a version is null if the package is not installed."""

    schema: str
    ok: bool
    versions: dict[str, str | None]
    settings: list[DoctorSetting]
    checks: list[DoctorCheck]


SCHEMAS: dict[str, type] = {
    "ls": Ls,
    "show": Show,
    "du": Du,
    "fetch": Fetch,
    "export": Written,
    "materialize": Written,
    "bundle": Written,
    "rm": Rm,
    "copy": Copy,
    "lock": Lock,
    "unbundle": Unbundle,
    "prune": Prune,
    "add": Add,
    "verify": Verify,
    "diff": Diff,
    "digest": Digests,
    "doctor": Doctor,
}
"""Command -> what it prints."""

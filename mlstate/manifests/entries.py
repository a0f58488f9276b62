"""The content of a manifest as values: the entries of its states, and of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import FormatError, UnpinnedStateError
from mlstate.layouts import Layout
from mlstate.locations import Mirror, UnusableMirror
from mlstate.phrases import LOCK
from mlstate.states import StateKey

__all__ = ["FileEntry", "ManifestContent", "StateEntry", "check_alias"]

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,200}")
_NAMES = ("blake3", "size", "mirrors", "files", "layout", "meta")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


class _Values:
    """Values that go to other processes: a read-only view of a mapping goes as a plain one."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: dict(value) if isinstance(value, MappingProxyType) else value
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class FileEntry(_Values):
    """A file of a state: raw bytes with a digest of their own.

    Attributes:
        digest: The digest of its bytes.
        mirrors: Where they can be had.
        unknown: Keys of a later version: kept, not understood.
    """

    digest: Digest
    mirrors: tuple[Mirror | UnusableMirror, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=_nothing)


@dataclass(frozen=True)
class StateEntry(_Values):
    """A state in a manifest.

    Attributes:
        key: Its key.
        digest: Its state digest; None if it is not pinned yet.
        size: The bytes of its tensor data, every name counted, files not included; or None.
        mirrors: Where its tensors can be had, in order of preference.
        files: Its files, by name.
        meta: Free information: licence, description, metrics. Not authenticated.
        unknown: Keys of a later version: kept, not understood.
        objects: The object mirrors of its manifest.
        origin: The manifest that lists it, or None.
        layout: The files that its tensors came in, by path; empty if that is not known.
        source: Where the manifest itself came from, if from elsewhere; None if it is the user's
            own. What is from elsewhere may not name every place: see `mlstate.transport.reach`.
    """

    key: StateKey
    digest: Digest | None
    size: int | None = None
    mirrors: tuple[Mirror | UnusableMirror, ...] = ()
    files: Mapping[str, FileEntry] = field(default_factory=_nothing)
    meta: Mapping[str, Any] = field(default_factory=_nothing)
    unknown: Mapping[str, Any] = field(default_factory=_nothing)
    objects: tuple[str, ...] = ()
    origin: str | None = field(default=None, compare=False)
    layout: Layout = field(default_factory=_nothing)
    source: str | None = field(default=None, compare=False)

    @property
    def misspelt(self) -> dict[str, str]:
        """Unknown names in the manifest, with the known name that each may be meant for."""
        near = {name: get_close_matches(name, _NAMES, n=1, cutoff=0.8) for name in self.unknown}
        return {name: found[0] for name, found in near.items() if found}

    @property
    def pinned_digest(self) -> Digest:
        """The state digest.

        Raises:
            UnpinnedStateError: There is none.
        """
        if self.digest is None:
            raise self.unpinned()
        return self.digest

    def unpinned(self) -> UnpinnedStateError:
        """The error for a state without a digest; it says how to pin it, or a name misspelt."""
        name = next((name for name, meant in self.misspelt.items() if meant == "blake3"), None)
        return UnpinnedStateError(
            "this state has no digest in its manifest, so it could not be verified",
            key=self.key,
            path=self.origin,
            found=f"{name}, which is no name of a manifest" if name else None,
            remedy=(
                "call it blake3"
                if name
                else "pin it: " + LOCK + " fetches it and writes its digest"
            ),
        )


@dataclass(frozen=True)
class ManifestContent(_Values):
    """The content of one manifest file; see `mlstate.manifests.Manifest`."""

    states: Mapping[StateKey, StateEntry]
    objects: tuple[str, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=_nothing)
    aliases: Mapping[str, StateKey] = field(default_factory=_nothing)


def check_alias(name: str) -> None:
    """Refuse, by a FormatError, what is no name of an alias: it has no dots, so it is no key."""
    if not _ALIAS.fullmatch(name):
        raise FormatError(
            "this is no name of an alias",
            expected="letters, digits, - and _, without dots: best",
            found=repr(name),
        )

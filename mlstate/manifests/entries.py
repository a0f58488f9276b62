"""The content of a manifest as values: the entries of its states, and of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import FormatError, UnpinnedStateError
from mlstate.layouts import Layout
from mlstate.locations import Mirror, UnusableMirror
from mlstate.phrases import Phrase, locking
from mlstate.states import StateKey

__all__ = ["FileEntry", "ManifestContent", "Pin", "StateEntry", "check_alias"]

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,200}")
_INSTALLED = Path(__file__).absolute().parents[2]
"""Where packages are installed, or a checkout of this one: nobody edits a manifest there."""
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
class Pin(_Values):
    """The digest of a state that its manifest gives none of, as this user first met it.

    Attributes:
        key: The state.
        digest: Its state digest.
        size: The bytes of its tensor data.
        mirror: Where it came from, with the whole SHA-256 of each file.
        digits: How many leading digits of these sums the publisher had given: 64 are all.
        date: When that was.
        manifest: The manifest that listed it: a path, or ``mlstate:NAME`` of one that mlstate
            ships; None if it was in no file.
        place: The pins file and the line of this pin, as errors name them.
        came: The bytes that came for it, if the call that gives it has made it; else None.
    """

    key: StateKey
    digest: Digest
    size: int
    mirror: Mirror
    digits: int
    date: datetime
    manifest: str | None = None
    place: tuple[str, int | None] = field(default=("", None), compare=False)
    came: int | None = field(default=None, compare=False)

    @property
    def where(self) -> str:
        """Where the pin is kept, for people."""
        path, line = self.place
        return path if line is None else f"{path}, line {line}"

    @property
    def remedy(self) -> str:
        """What to do where other weights come than those that are pinned."""
        return "if its publisher has changed it, and you trust that: " + Phrase(
            f"mlstate.remove_pins([StateKey.parse({str(self.key)!r})])",
            f"mlstate pins rm {self.key}",
        )


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
        pin: The pin that digest and size are from, where the manifest gives no digest; or None.
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
    pin: Pin | None = field(default=None, compare=False)

    @property
    def pinned_now(self) -> bool:
        """Whether the call that gives this entry has pinned it: this was its first use."""
        return self.pin is not None and self.pin.came is not None

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

    def how_to_lock(self) -> Phrase:
        """How to pin it: in the manifest that lists it, unless that is installed with a package."""
        own = self.origin
        if own is None or _INSTALLED in Path(own).absolute().parents or not os.path.isfile(own):
            own = None
        return locking(self.key, own)

    def unpinned(self, why: str | None = None, remedy: str | None = None) -> UnpinnedStateError:
        """The error for a state without a digest; it says how to pin it, or a name misspelt.

        Args:
            why: Why its first use does not pin it, where one would.
            remedy: What else to do than to lock it.
        """
        name = next((name for name, meant in self.misspelt.items() if meant == "blake3"), None)
        return UnpinnedStateError(
            "this state has no digest in its manifest, so it could not be verified",
            key=self.key,
            path=self.origin,
            found=f"{name}, which is no name of a manifest" if name else why,
            remedy=(
                "call it blake3"
                if name
                else remedy or "pin it: " + self.how_to_lock() + " fetches it and writes its digest"
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

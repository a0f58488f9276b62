"""Save requests: what a caller of `save` or `copy` asks for, compared with what is stored."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlstate.digests import Digest
from mlstate.errors import FormatError, StateExistsError
from mlstate.files import read_file
from mlstate.locations import check_file_names
from mlstate.manifests import FileEntry, StateEntry
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.stores.statefiles import format_state_file, parse_state_file
from mlstate.warn import warn

__all__ = [
    "Content",
    "SaveRequest",
    "Source",
    "case_variant_exists",
    "content_of",
    "is_same",
    "other_exists",
    "warn_of_meta",
]

Content = bytes | str | os.PathLike[str]
"""A file to keep with a state: its bytes, or the path of a file that has them."""


class Source(Protocol):
    """Where a state comes from that another store has."""

    def bring(self, missing: Callable[[], Collection[Digest]]) -> None:
        """Make sure that the bytes of some objects are at hand; others come when they are read.

        Args:
            missing: Says of which objects; not asked where all are at hand.
        """

    def passed(self, digest: Digest, size: int) -> None:
        """Note that an object has been stored, or was there."""


@dataclass(frozen=True)
class SaveRequest:
    """What a caller of `save` or `copy` asked for beside the weights.

    Attributes:
        files: The files to keep with the state.
        meta: What to note with it; None: nothing in particular.
        overwrite: Replace another state.
        verify: Read objects that are reused.
        source: The store that the state comes from, if it comes from one.
        reused: Filled with the tensor objects that were there already, each with the bytes of its
            tensor, by stores that know.
    """

    files: Mapping[str, Content]
    meta: Mapping[str, Any] | None
    overwrite: bool
    verify: bool = False
    source: Source | None = None
    reused: dict[Digest, int] | None = None

    def entry(self, key: StateKey) -> StateEntry:
        """What is to be said of the state, without digest and size, as it will be read back.

        Raises:
            FormatError: Files or meta are of the wrong kind, a file's name leaves its bounds, or
                meta holds something that TOML cannot.
        """
        _check_kinds(self.files, self.meta)
        check_file_names(self.files)
        files = {name: FileEntry(Digest.of(content_of(self.files[name]))) for name in self.files}
        entry = StateEntry(key, None, files=files, meta=self.meta or {})
        if not files and not self.meta:
            return entry  # nothing that TOML might refuse or change
        return parse_state_file(format_state_file(entry), key, "the new state file")

    def other_meta(self, stored: StateEntry, wanted: StateEntry) -> bool:
        """Whether the caller gave meta, and other meta is stored."""
        return self.meta is not None and wanted.meta != stored.meta


def content_of(content: Content) -> bytes:
    """The bytes of a file to keep with a state."""
    if isinstance(content, bytes):
        return content
    try:
        return read_file(content, sys.maxsize)
    except OSError as error:
        error.add_note("in files=, a text is the path of a file; give its content as bytes")
        raise


def is_same(stored: StateEntry, digest: Digest, wanted: StateEntry) -> bool:
    """Whether a stored state has exactly these weights and files."""
    return stored.digest == digest and _digests(stored) == _digests(wanted)


def other_exists(stored: StateEntry, digest: Digest, wanted: StateEntry) -> StateExistsError:
    """The error that another state has the key."""
    what, yours, theirs = "weights", str(digest), str(stored.digest)
    if stored.digest == digest:
        what, yours, theirs = "files", str(_digests(wanted)), str(_digests(stored))
    return StateExistsError(
        f"this key has other {what} already; nothing was changed",
        key=stored.key,
        path=stored.origin,
        expected=f"{yours}, yours",
        found=f"{theirs}, stored",
        remedy="choose another training id, or " + OVERWRITE,
    )


def case_variant_exists(variant: StateKey) -> StateExistsError:
    """The error that a key differs only in case from one that is there."""
    return StateExistsError(
        "a state whose key differs only in case is there; many file systems cannot tell them apart",
        found=variant,
        remedy="choose another training id",
    )


def warn_of_meta(key: StateKey) -> None:
    """Warn the caller that other meta is stored, and stays."""
    warn(
        f"{key} is stored already with the same weights and other meta: the stored meta stays; "
        + OVERWRITE
        + " replaces it"
    )


def _digests(entry: StateEntry) -> dict[str, Digest]:
    return {name: file.digest for name, file in entry.files.items()}


def _check_kinds(files: object, meta: object) -> None:
    """Refuse files and meta of the wrong kind, before anything is looked at."""
    if not isinstance(files, Mapping) or not all(
        isinstance(name, str) and isinstance(value, bytes | str | os.PathLike)
        for name, value in files.items()
    ):
        raise FormatError(
            "files is a mapping from names to contents",
            expected='for instance {"labels.json": b"[]", "config.json": "path/to/config.json"}',
            found=files,
        )
    if meta is not None and not isinstance(meta, Mapping):
        raise FormatError(
            "meta is a mapping", expected='for instance {"license": "MIT"}', found=repr(meta)
        )

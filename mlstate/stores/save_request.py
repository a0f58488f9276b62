"""Requests to save: the arguments of `save` and `copy`, compared with what is stored."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlstate.digests import Digest
from mlstate.errors import FormatError, StateExistsError
from mlstate.files import read_file
from mlstate.layouts import Layout
from mlstate.locations import check_file_names
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import ObjectStore
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.states import StateKey
from mlstate.stores.statefiles import format_state_file, parse_state_file
from mlstate.warn import warn

__all__ = [
    "Content",
    "SaveRequest",
    "Source",
    "case_variant_exists",
    "check_alone",
    "check_same",
    "content_of",
    "is_same",
]

Content = bytes | str | os.PathLike[str]
"""A file to keep with a state: its bytes, or the path of a file that has them."""


class Source(Protocol):
    """The other store from which a state is copied."""

    @property
    def objects(self) -> ObjectStore:
        """What it has, and has fetched: bases of what is encoded are nearer there, perhaps."""

    def bring(self, missing: Callable[[], Collection[Digest]]) -> None:
        """Fetch the objects that `missing` returns; it is not called where nothing is fetched."""

    def passed(self, digest: Digest, size: int) -> None:
        """Note that an object has been stored, or was there."""


@dataclass(frozen=True)
class SaveRequest:
    """The arguments of `save` or `copy` beside the weights.

    Attributes:
        files: The files to keep with the state.
        meta: Free information; None leaves that of a stored state.
        overwrite: Replace another state.
        verify: Read objects that are reused.
        source: The store from which the state is copied, if there is one.
        layout: The files that the tensors came in; None leaves that of a stored state.
        reused: Filled, by some stores, with the objects that were there already, each with the
            bytes of its tensor; of the state object those of the tensors in it.
        written: Filled likewise with those that were not.
        compact: Whether tensors are encoded, and against the state of which key; None: as the
            settings of the store say.
    """

    files: Mapping[str, Content]
    meta: Mapping[str, Any] | None
    overwrite: bool
    verify: bool = False
    source: Source | None = None
    reused: dict[Digest, int] | None = None
    written: dict[Digest, int] | None = None
    layout: Layout | None = None
    compact: bool | StateKey | None = None

    def entry(self, key: StateKey) -> StateEntry:
        """The entry of the state, without digest and size, as it will be read back.

        Raises:
            FormatError: Files, their names or meta are not valid, or not possible in TOML.
        """
        _check_kinds(self.files, self.meta)
        check_file_names(self.files)
        files = {name: FileEntry(Digest.of(content_of(self.files[name]))) for name in self.files}
        layout = self.layout or {}
        entry = StateEntry(key, None, files=files, meta=self.meta or {}, layout=layout)
        if not files and not self.meta and not layout:
            return entry  # nothing that TOML might refuse or change
        return parse_state_file(format_state_file(entry), key, "the new state file")

    def stays(
        self, stored: StateEntry, digest: Digest, wanted: StateEntry, *, is_saved: bool
    ) -> bool:
        """Whether a stored state stays: it is the one to save, and nothing of it is replaced.

        `is_saved` is False of a checkpoint of MLModule.

        Raises:
            StateExistsError: It is another state, and the caller does not overwrite it.
        """
        if not self.overwrite:
            check_same(stored, digest, wanted)
            return True
        other_layout = self.layout is not None and wanted.layout != stored.layout
        renews = self._has_other_meta(stored, wanted) or other_layout or not is_saved
        return is_same(stored, digest, wanted) and not renews

    def warn_of_other_meta(self, stored: StateEntry, wanted: StateEntry) -> None:
        """Warn a caller who gave meta that other meta is stored, and stays."""
        if self._has_other_meta(stored, wanted):
            warn(
                f"{stored.key} is stored already with the same weights and other meta: the stored "
                "meta stays; " + OVERWRITE + " replaces it"
            )
        if self.layout and wanted.layout != stored.layout:
            said = "another layout" if stored.layout else "no layout"
            warn(
                f"{stored.key} is stored already with the same weights and {said}: it stays so; "
                + OVERWRITE
                + " writes the layout of these files"
            )

    def _has_other_meta(self, stored: StateEntry, wanted: StateEntry) -> bool:
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


def check_same(stored: StateEntry, digest: Digest, wanted: StateEntry) -> None:
    """Refuse, by a StateExistsError, to save a state under the key of another."""
    if is_same(stored, digest, wanted):
        return
    what, yours, theirs = "weights", str(digest), str(stored.digest)
    if stored.digest == digest:
        what, yours, theirs = "files", str(_digests(wanted)), str(_digests(stored))
    raise StateExistsError(
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


def check_alone(check_replicas: bool) -> None:
    """Refuse to compare copies where no other rank takes part, by a FormatError."""
    torch: Any = sys.modules.get("torch")
    if check_replicas and torch is not None and torch.distributed.is_available():
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if ranks > 1:
            raise FormatError(
                "this state is saved by this process alone, so no copies are compared",
                remedy=Phrase("give group=torch.distributed.group.WORLD, on all ranks", ""),
            )


def _digests(entry: StateEntry) -> dict[str, Digest]:
    return {name: file.digest for name, file in entry.files.items()}


def _check_kinds(files: object, meta: object) -> None:
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

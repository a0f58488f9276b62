"""State files: which keys a store has, and the few bytes of TOML behind each.

A state file knows nothing of tensors; of several savers of one key exactly one creates it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Protocol

from mlstate.errors import FormatError, ManifestError
from mlstate.files import ABSENT
from mlstate.format import layout
from mlstate.manifests.entries import ManifestContent, StateEntry
from mlstate.manifests.parse import parse_manifest
from mlstate.objects.durable import Publish, make_folders, read_small, sync_path, write_in_store
from mlstate.objects.folder import check_folder, prepare_folder
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey, StateType

__all__ = [
    "FolderStateFiles",
    "MemoryStateFiles",
    "StateFiles",
    "format_state_file",
    "parse_state_file",
    "trash_name",
]


def format_state_file(entry: StateEntry) -> bytes:
    """The content of a state file: a manifest with exactly this state.

    Raises:
        FormatError: The meta holds something that TOML cannot.
    """
    from mlstate.manifests.write import format_manifest

    return format_manifest(ManifestContent({entry.key: entry}, entry.objects)).encode()


def parse_state_file(data: bytes, key: StateKey, origin: str) -> StateEntry:
    """The one entry of a state file.

    Raises:
        ManifestError: It cannot be read, or does not have exactly this state.
    """
    states = parse_manifest(data, origin).states
    if states.keys() != {key}:
        raise ManifestError(
            "a state file has exactly the state that its path names",
            path=origin,
            expected=key,
            found=", ".join(map(str, states)) or "none",
            remedy="restore the file, or save the state again with " + OVERWRITE,
        )
    return states[key]


class StateFiles(Protocol):
    """The state files of a store."""

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are here, sorted by fields; those compatible with a type, or all."""

    def dated(self) -> Iterator[tuple[StateKey, float | None]]:
        """All keys, each with when it was written, in seconds since the epoch; None if unknown."""

    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""

    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file that is not there yet.

        Returns:
            False if another was first; it stays as it is.
        """

    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there."""

    def remove(self, key: StateKey) -> bool:
        """Take a state file away.

        Returns:
            False if there was none.
        """

    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs from this one in case only, or None."""

    def locate(self, key: StateKey) -> str:
        """Where the state file is, or would be: for people."""


class FolderStateFiles:
    """State files in a folder: ``states/<backend>/<architecture>/...toml``.

    Args:
        root: The store's folder; it may be missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are here, by path alone: a damaged file fails at its own load only."""
        folders = [layout.state_folder(state_type)] if state_type else self._folders()
        return chain.from_iterable(
            layout.keys_in_state_folder(folder, _names(self.root / folder)) for folder in folders
        )

    def dated(self) -> Iterator[tuple[StateKey, float | None]]:
        """All keys, each with the time of its file."""
        for key in self.keys():
            with contextlib.suppress(FileNotFoundError):  # it was deleted just now
                yield key, self._path(key).lstat().st_mtime

    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""
        try:
            return read_small(self._path(key), ManifestError)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file that is not there yet; see `StateFiles.create`."""
        prepare_folder(self.root)
        return write_in_store(self.root, layout.state_path(key), [data], publish=Publish.CREATE)

    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there."""
        prepare_folder(self.root)
        try:
            old = read_small(self._path(key))
        except (OSError, FormatError):  # nothing there, or nothing that names objects
            old = None
        if old is not None:
            # What it names lives on for the grace period: somebody may just be reading it.
            self._bury(key, old)
        elif self._path(key).is_dir():  # which no file could replace
            make_folders(self.root, self.root / layout.TRASH)
            os.rename(self._path(key), self.root / layout.TRASH / trash_name(key))
        write_in_store(self.root, layout.state_path(key), [data])

    def remove(self, key: StateKey) -> bool:
        """Move a state file to trash/, so that what it names lives on for the grace period."""
        check_folder(self.root)
        trash = self.root / layout.TRASH
        path = self._path(key)
        if not os.path.lexists(path):
            return False
        make_folders(self.root, trash)
        try:
            try:
                os.utime(path, follow_symlinks=False)  # its age in the trash counts from now
            except PermissionError:  # another member's file: bury a copy of our own
                with contextlib.suppress(FormatError):  # of what is no file there is none
                    self._bury(key, read_small(path))
                path.unlink()
            else:
                os.rename(path, trash / trash_name(key))
        except FileNotFoundError:
            return False
        sync_path(trash)
        sync_path(path.parent)
        return True

    def _bury(self, key: StateKey, data: bytes) -> None:
        write_in_store(self.root, f"{layout.TRASH}/{trash_name(key)}", [data])

    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs in case only: one file where names ignore case."""
        own = layout.state_path(key)
        found = [""]
        for part in own.split("/"):
            found = [
                f"{folder}{name}/"
                for folder in found
                for name in _names(self.root / folder)
                if name.lower() == part.lower()
            ]
        keys = (layout.key_of_state_path(path.rstrip("/")) for path in found)
        return next((other for other in keys if other not in (None, key)), None)

    def locate(self, key: StateKey) -> str:
        """The path of the state file."""
        return str(self._path(key))

    def _path(self, key: StateKey) -> Path:
        return self.root / layout.state_path(key)

    def _folders(self) -> Iterator[str]:
        for backend in sorted(_names(self.root / layout.STATES)):
            for architecture in sorted(_names(self.root / layout.STATES / backend)):
                yield f"{layout.STATES}/{backend}/{architecture}"


class MemoryStateFiles:
    """State files in a dictionary of this process."""

    def __init__(self) -> None:
        self._files: dict[StateKey, bytes] = {}
        self._lock = Lock()

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are here."""
        for key in sorted(self._files):
            if state_type is None or key.state_type.is_compatible_with(state_type):
                yield key

    def dated(self) -> Iterator[tuple[StateKey, float | None]]:
        """All keys; nobody notes when."""
        return ((key, None) for key in self.keys())

    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""
        return self._files.get(key)

    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file that is not there yet; see `StateFiles.create`."""
        with self._lock:
            if key in self._files:
                return False
            self._files[key] = data
            return True

    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there."""
        self._files[key] = data

    def remove(self, key: StateKey) -> bool:
        """Forget a state file."""
        return self._files.pop(key, None) is not None

    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs in case only."""
        same = (k for k in list(self._files) if k != key and str(k).lower() == str(key).lower())
        return next(same, None)

    def locate(self, key: StateKey) -> str:
        """A name for the state file's place."""
        return f"memory:{key}"


def trash_name(key: StateKey) -> str:
    """A name in trash/ for a state file that is taken away."""
    return f"{key}{layout.STATE_SUFFIX}.{uuid.uuid4().hex}"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise

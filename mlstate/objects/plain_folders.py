"""Folders in a cache that states were written into for frameworks: each is known by its name.

A folder can be written again at any time. When it was last used is the time of its modification.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "PLACE",
    "PlainFolder",
    "is_folder_name",
    "note_folder_use",
    "plain_folder",
    "read_folders",
    "remove_folder",
]

PLACE = "folders"
"""The folder of a cache that has them."""
_NAME = re.compile(r"[0-9a-f]{32}")
_GONE = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{16}\.gone")


@dataclass(frozen=True)
class PlainFolder:
    """A folder of a cache.

    Attributes:
        path: Where it is.
        size: The bytes of its files.
        used: When it was last used: seconds since the epoch.
        gone: Whether a pruning that was interrupted has begun to remove it.
    """

    path: Path
    size: int
    used: float
    gone: bool = False


def plain_folder(cache: Path, name: str) -> Path:
    """The folder with this name, of 32 hex digits, in a cache."""
    return cache / PLACE / name


def is_folder_name(name: str) -> bool:
    """Whether what is called so there is one of them, or what is left of one."""
    return (_NAME.fullmatch(name) or _GONE.fullmatch(name)) is not None


def note_folder_use(folder: Path) -> None:
    """Note that a folder is used now, so that no pruning takes it for an hour."""
    with suppress(OSError):  # it is not there yet, or somebody else's
        os.utime(folder)


def read_folders(cache: Path) -> Iterator[PlainFolder]:
    """The folders of a cache. Links are passed over, and so is what has another name."""
    place = cache / PLACE
    if place.is_symlink():
        return
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for entry in os.scandir(place):
            gone = _GONE.fullmatch(entry.name) is not None
            if is_folder_name(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):  # another pruning was faster
                    used = entry.stat(follow_symlinks=False).st_mtime
                    yield PlainFolder(Path(entry.path), _size(entry.path), used, gone)


def remove_folder(folder: PlainFolder) -> bool:
    """Remove a folder, unless it was used since it was looked at; says whether it is gone."""
    gone = folder.path
    if not folder.gone:
        gone = gone.with_name(f".{gone.name}.{os.urandom(8).hex()}.gone")
        try:
            folder.path.rename(gone)
        except FileNotFoundError:
            return True
        if gone.lstat().st_mtime > folder.used:
            with suppress(OSError):  # it was written anew meanwhile: then this one is not needed
                gone.rename(folder.path)
                return False
    shutil.rmtree(gone, ignore_errors=True)  # what is left is removed the next time
    return True


def _size(folder: str) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size

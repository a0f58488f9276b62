"""What a cache keeps, and since when nobody has asked for it: a small file for each state.

``roots/<state digest>`` is TOML: the keys that the state was fetched for, and the digests of its
files. The time of its last use is the file's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.format import layout
from mlstate.objects.files import read_small, write_in_store

__all__ = ["Root", "forget_root", "last_use", "note_use", "read_roots", "write_root"]

_NAME = re.compile(r"[0-9a-f]{64}")
_NOTED = 3600.0


@dataclass(frozen=True)
class Root:
    """A state that was fetched into a cache.

    Attributes:
        digest: Its state digest.
        key: The key that it was last fetched for.
        files: The digests of its files.
        used: When it was last used, in seconds since the epoch, by the file server's clock.
    """

    digest: Digest
    key: str
    files: frozenset[Digest]
    used: float


def write_root(folder: Path, digest: Digest, key: str, files: Iterable[Digest]) -> None:
    """Note that a state was fetched, and is used now. The files of earlier notes stay named.

    Args:
        folder: The cache's folder.
        digest: The state digest.
        key: The key that it was fetched for.
        files: The digests of its files.
    """
    old = _read(_path(folder, digest))
    named = sorted({*files, *(old.files if old else ())})
    lines = [f"key = {_quoted(key)}", f"files = [{', '.join(map(_quoted, named))}]", ""]
    data = "\n".join(lines).encode()
    write_in_store(folder, f"{layout.ROOTS}/{digest}", [data], sync_parent=False)


def note_use(folder: Path, digest: Digest, key: str, files: Iterable[Digest]) -> None:
    """Note that a state is used, if that can be noted and was not within the last hour.

    A state that a cache holds and does not keep, since somebody pruned it a while ago, is kept
    again. Not so in a folder that somebody saves into: what is kept there is for its owner to say.

    Args:
        folder: The cache's folder.
        digest: The state digest.
        key: The key that it is used for.
        files: The digests of its files.
    """
    path = _path(folder, digest)
    with contextlib.suppress(OSError):
        try:
            if time.time() - path.stat().st_mtime > _NOTED:
                os.utime(path)
        except FileNotFoundError:
            held = (folder / layout.object_path(digest)).exists()
            if held and not (folder / layout.STATES).exists():
                write_root(folder, digest, key, files)


def forget_root(folder: Path, digest: Digest) -> None:
    """No longer keep a state."""
    _path(folder, digest).unlink(missing_ok=True)


def last_use(folder: Path, digest: Digest) -> float | None:
    """When a state was last used, in seconds since the epoch; None if a cache does not keep it."""
    try:
        return _path(folder, digest).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_roots(folder: Path) -> Iterator[Root]:
    """What a cache keeps; what cannot be read is no root, for it can be fetched again."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted((folder / layout.ROOTS).iterdir()):
            if root := _read(path):
                yield root


def _read(path: Path) -> Root | None:
    if not _NAME.fullmatch(path.name):
        return None
    try:
        used = path.stat().st_mtime
        said = tomllib.loads(read_small(path).decode())
        files = frozenset(Digest(text) for text in said["files"])
        return Root(Digest(path.name), str(said["key"]), files, used)
    except (OSError, ValueError, KeyError, TypeError, FormatError):
        return None


def _path(folder: Path, digest: Digest) -> Path:
    return folder / layout.ROOTS / digest


def _quoted(text: str) -> str:
    return f'"{text}"'  # keys and digests have nothing that needs an escape

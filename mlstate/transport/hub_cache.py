"""The cache of the hub's own client on this machine: copies of files, each under its checksum.

A copy is a link to a blob. The blob of a large file is named by its SHA-256, that of a small one by
what git calls it: so a copy that was cut short or damaged can be told from a right one.
"""

from __future__ import annotations

import hashlib
import re
import threading
from importlib.util import find_spec
from pathlib import Path

from mlstate.files import open_input
from mlstate.warn import warn

__all__ = ["HubCopies", "is_right"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_SHA1 = re.compile(r"[0-9a-f]{40}")


class HubCopies:
    """The copies of one job: which were read, and which are not read again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: set[Path] = set()
        self._passed_over: set[Path] = set()
        self.checked = False
        """Whether copies are compared with their names before they are read."""

    def find(self, repo: str, path: str | None, revision: str) -> Path | None:
        """The copy of a file, or None if there is none, or none that is read."""
        copy = None if path is None else _cached(repo, path, revision)
        if copy is None:
            return None
        with self._lock:
            if copy in self._passed_over:
                return None
            if copy not in self._read and self.checked and is_right(copy) is False:
                self._passed_over.add(copy)
                warn(f"{copy} in the cache of the hub's client is damaged, and is not used")
                return None
            self._read.add(copy)
        return copy

    def files(self, repo: str, commit: str) -> tuple[str, ...]:
        """The files of a commit that have copies, perhaps not all that it has."""
        root = _root()
        if root is None:
            return ()
        folder = root / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        found = (path for path in folder.rglob("*") if path.is_file())
        return tuple(sorted(path.relative_to(folder).as_posix() for path in found))

    def with_sum(self, sha256: str) -> Path | None:
        """A copy with this SHA-256, of whichever repository; it was compared."""
        root = _root() if _SHA256.fullmatch(sha256) else None
        if root is None:
            return None
        copies = sorted(root.glob(f"models--*/blobs/{sha256}"))
        return next((copy for copy in copies if is_right(copy)), None)

    def wrong(self, *, pass_over: bool) -> list[Path]:
        """The copies that were read and may be wrong; with ``pass_over`` none is read again.

        A copy that has the checksum which its name says is right.
        """
        with self._lock:
            wrong = sorted(copy for copy in self._read if not is_right(copy))
            if pass_over:
                self._passed_over.update(wrong)
                self._read.difference_update(wrong)
        return wrong


def is_right(copy: Path) -> bool | None:
    """Whether a copy has the checksum that its name says; None if it says none."""
    try:
        name = copy.resolve().name
        if _SHA256.fullmatch(name):
            return _sum(copy, hashlib.sha256(), git=False) == name
        if _SHA1.fullmatch(name):
            return _sum(copy, hashlib.sha1(usedforsecurity=False), git=True) == name
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return False
    return None


def _sum(copy: Path, hasher: hashlib._Hash, *, git: bool) -> str:
    """The checksum of a file; with ``git`` after the words that git puts before its content."""
    with open_input(copy) as file:
        if git:
            hasher.update(f"blob {file.seek(0, 2)}\0".encode())
            file.seek(0)
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


def _root() -> Path | None:
    """The folder of the cache; None where the hub's client is not installed."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _cached(repo: str, path: str, revision: str) -> Path | None:
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, path, revision=revision)
    except (HFValidationError, OSError, ValueError):  # ValueError: a note that is no text
        return None
    return Path(found) if isinstance(found, str) else None

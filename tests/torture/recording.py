"""What the shim noted: a folder as it was, and each change to it with its bytes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Disk", "Step", "read_log", "snapshot"]


@dataclass(frozen=True)
class Step:
    """One call that succeeded; paths are relative to the folder that was watched, "." is itself.

    Attributes:
        call: create, mkdir, link, rename, exchange, unlink, write, truncate, fsync, or mark.
        inode: The file that it is about. Of an exchange, the one that bore the second name.
        path: The file, or the text of a mark.
        other: The second name.
        offset: Of a write; of a truncation, the new size.
        data: What was written.
    """

    call: str
    inode: int
    path: str
    other: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Disk:
    """What lies below a folder.

    Attributes:
        folders: The folders.
        names: Path -> inode of the files.
        contents: Inode -> bytes.
    """

    folders: frozenset[str]
    names: dict[str, int]
    contents: dict[int, bytes]

    def write(self, root: Path) -> None:
        """Make all of it below a folder that is not there yet."""
        root.mkdir()
        for folder in sorted(self.folders - {"."}):
            (root / folder).mkdir(exist_ok=True)
        for path, inode in self.names.items():
            (root / path).write_bytes(self.contents[inode])


def snapshot(root: Path) -> Disk:
    """What lies below a folder now."""
    folders, names, contents = {"."}, {}, {}
    for path in sorted(root.rglob("*")):
        found, name = path.lstat(), str(path.relative_to(root))
        if stat.S_ISDIR(found.st_mode):
            folders.add(name)
        elif stat.S_ISREG(found.st_mode):
            names[name] = found.st_ino
            contents[found.st_ino] = path.read_bytes()
    return Disk(frozenset(folders), names, contents)


def read_log(log: Path, root: Path) -> list[Step]:
    """The steps that a log has."""
    data, steps, at = log.read_bytes(), [], 0
    while at < len(data):
        end = data.index(b"\n", at)
        call, inode, path, other, offset, size = os.fsdecode(data[at:end]).split("\t")
        at = end + 1
        content = data[at : at + int(size)]
        at += int(size) + 1
        if call != "mark":
            path, other = _below(path, root), other and _below(other, root)
        steps.append(Step(call, int(inode), path, other, int(offset), content))
    return steps


def _below(path: str, root: Path) -> str:
    return os.path.relpath(path.removesuffix(" (deleted)"), root)

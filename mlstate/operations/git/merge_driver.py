"""Git's merge driver for manifests: entries of both sides are joined, by `merge_manifests`.

Where a side is no manifest that can be merged by entries, its lines are merged, as git does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from mlstate.errors import ManifestError
from mlstate.manifests import signature_file
from mlstate.manifests.parse import parse_manifest
from mlstate.manifests.three_way import Conflict, Marks, Merge, NotMergeableError, merge_manifests
from mlstate.operations.git.run import run_git

__all__ = ["FileMerge", "merge_files"]

_PathLike = str | os.PathLike[str]
_MOST_CONFLICTS = 127
"""Up to so many ``git merge-file`` counts by its exit code."""


@dataclass(frozen=True)
class FileMerge:
    """What became of a merge.

    Attributes:
        conflicts: What could not be merged; it is marked in the file.
        by_lines: Why lines were merged and not entries; None if entries were.
        stale_signature: Whether the manifest had a signature, which is not good any more.
    """

    conflicts: tuple[Conflict, ...]
    by_lines: str | None = None
    stale_signature: bool = False


def merge_files(
    base: _PathLike, ours: _PathLike, theirs: _PathLike, *, size: int = 7, path: _PathLike
) -> FileMerge:
    """Merge three files, as git calls a driver: the result is written over ours.

    Args:
        base: The file with the ancestor; empty if there is none.
        ours: The file with one version.
        theirs: The file with the other.
        size: How long the lines that mark a conflict are.
        path: Where the manifest is in the repository, to look for its signature.

    Raises:
        GitError: Lines had to be merged, and git could not.
        OSError: A file cannot be read or written.
    """
    base, ours, theirs = map(Path, (base, ours, theirs))
    before = ours.read_bytes()
    style = run_git("config", "--get", "merge.conflictStyle", codes=(0, 1)).strip()
    marks = Marks(size=size, with_base=style in (b"diff3", b"zdiff3"))
    by_lines = None
    try:
        merged = merge_manifests(base.read_bytes(), before, theirs.read_bytes(), marks)
    except NotMergeableError as error:
        by_lines = str(error).partition("\n")[0]
        merged = _by_lines(base, ours, theirs, marks)
    if merged.data != before:
        ours.write_bytes(merged.data)
    changed = merged.data not in (before, theirs.read_bytes())
    signed = merged.unsigned or os.path.lexists(signature_file(path))
    return FileMerge(merged.conflicts, by_lines, changed and signed)


def _by_lines(base: Path, ours: Path, theirs: Path, marks: Marks) -> Merge:
    """Merge lines; what comes out without a conflict and is no manifest is one as a whole."""
    style = ["--diff3"] if marks.with_base else []
    labels = [each for name in (marks.ours, marks.base, marks.theirs) for each in ("-L", name)]
    options = ["-p", *style, f"--marker-size={marks.size}", *labels]
    data = run_git(
        *("merge-file", *options, str(ours), str(base), str(theirs)),
        codes=range(_MOST_CONFLICTS + 1),
    )
    whole = Conflict("the file", "lines of the sides are in each other's way")
    if any(line.startswith(b"<" * marks.size) for line in data.split(b"\n")):
        return Merge(data, (whole,))
    try:
        parse_manifest(data, "")
    except ManifestError as error:
        mark = marks.size
        parts = [b"<" * mark + b" ours\n", _ended(ours), b"=" * mark + b"\n", _ended(theirs)]
        why = f"its merged lines are no manifest: {error.message}"
        return Merge(b"".join([*parts, b">" * mark + b" theirs\n"]), (replace(whole, why=why),))
    return Merge(data)


def _ended(file: Path) -> bytes:
    data = file.read_bytes()
    return data if not data or data.endswith(b"\n") else data + b"\n"

"""The files that the next commit changes, as they are staged: the work tree may differ."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import GitError
from mlstate.operations.git.run import run_git, work_tree

__all__ = ["StagedFile", "staged_files"]


@dataclass(frozen=True)
class StagedFile:
    """A file that is staged.

    Attributes:
        path: Where it is.
        data: Its staged content.
        committed: Its content in the last commit; None if it is new.
        is_named: Whether ``.gitattributes`` says that it is a manifest.
    """

    path: Path
    data: bytes
    committed: bytes | None
    is_named: bool


def staged_files(folder: str | os.PathLike[str] | None = None) -> Iterator[StagedFile]:
    """The files that the next commit adds or changes: TOML files, and what attributes name.

    Raises:
        GitError: This is no work tree of git.
    """
    top = work_tree(folder)
    listed = run_git(
        *("diff", "--cached", "--name-only", "-z", "--no-renames", "--diff-filter=ACMT"), folder=top
    )
    names = [name for name in listed.split(b"\0") if name]
    if not names:
        return
    asked = b"".join(name + b"\0" for name in names)
    said = run_git("check-attr", "--cached", "-z", "--stdin", "diff", folder=top, data=asked)
    fields = said.split(b"\0")
    named = {n for n, value in zip(fields[::3], fields[2::3], strict=False) if value == b"mlstate"}
    for name in names:
        if name in named or name.endswith(b".toml"):
            path = os.fsdecode(name)
            data = run_git("cat-file", "blob", f":{path}", folder=top)
            yield StagedFile(_from_here(top / path), data, _committed(path, top), name in named)


def _committed(path: str, top: Path) -> bytes | None:
    try:
        return run_git("cat-file", "blob", f"HEAD:{path}", folder=top)
    except GitError:  # it is not there, or there is no commit yet
        return None


def _from_here(path: Path) -> Path:
    here = Path.cwd().resolve()
    real = path.parent.resolve() / path.name
    return real.relative_to(here) if real.is_relative_to(here) else path

"""Asking git."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from pathlib import Path

from mlstate.errors import GitError

__all__ = ["run_git", "work_tree"]


def run_git(
    *arguments: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    data: bytes | None = None,
    codes: Collection[int] = (0,),
) -> bytes:
    """What git prints.

    Args:
        arguments: Its arguments.
        folder: Where it runs; by default here.
        data: Its input.
        codes: The exit codes that are no errors.

    Raises:
        GitError: There is no git, or it ended with another code.
    """
    command = ["git", *(os.fspath(argument) for argument in arguments)]
    try:
        done = subprocess.run(command, cwd=folder, input=data, capture_output=True, check=False)
    except FileNotFoundError as error:
        if error.filename != "git":  # the folder is not there
            raise
        raise GitError("git is not installed", remedy="install git") from None
    if done.returncode not in codes:
        raise GitError(
            f"git {arguments[0]} did not work",
            path=folder,
            found=done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}",
        )
    return done.stdout


def work_tree(folder: str | os.PathLike[str] | None = None) -> Path:
    """The top of the work tree that a folder is in: of a worktree or a submodule its own.

    Raises:
        GitError: It is in none, or there is no git.
    """
    try:
        top = run_git("rev-parse", "--show-toplevel", folder=folder)
    except GitError as error:
        if error.found is None:
            raise
        raise GitError(
            "this is no work tree of a git repository; nothing was changed",
            path=Path() if folder is None else folder,
            found=error.found,
            remedy="change to a folder of the repository, or make one: git init",
        ) from None
    return Path(os.fsdecode(top.removesuffix(b"\n")))

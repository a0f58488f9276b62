"""Git repositories of tests: a home of their own, and no settings of the user's or the system's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.commands import PROGRAM, Shell

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@dataclass(frozen=True)
class Repository:
    """A work tree, with a home beside it; ``settings`` are further environment variables."""

    folder: Path
    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, home: Path, **settings: str) -> Repository:
        """A repository without a commit, with `main` checked out."""
        folder.mkdir(parents=True)
        home.mkdir(parents=True, exist_ok=True)
        made = cls(folder, home, settings)
        made.git("init", "-q", "-b", "main")
        return made

    @property
    def environment(self) -> dict[str, str]:
        """What the environment says of a user who has no settings."""
        who = {
            f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _WHO
        }
        return {
            **who,
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_EDITOR": "true",
            "MLSTATE_CACHE": str(self.home / "cache"),
            **self.settings,
        }

    @property
    def shell(self) -> Shell:
        """The program in the work tree."""
        return Shell(self.folder, self.environment)

    def run(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run git, which may fail."""
        return subprocess.run(
            ["git", *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    def git(self, *arguments: object, **more: str) -> str:
        """What git prints; it has to succeed."""
        done = self.run(*arguments, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Write a file of the work tree."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, name: str) -> str:
        """Read one."""
        return (self.folder / name).read_text()

    def commit(self, **files: str) -> None:
        """Write files, by names without ``.toml``, and commit all that is there."""
        for name, text in files.items():
            self.write(f"{name}.toml", text)
        self.git("add", "--all")
        self.git("commit", "-q", "-m", "a commit")


_WHO = (("NAME", "A Name"), ("EMAIL", "name@example.org"))
WITH_PROGRAM = f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}"
"""A search path on which the program is."""

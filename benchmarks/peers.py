"""Other tools that keep checkpoints: how they are installed, and how they add and restore a file.

Each is used as it is by default. A tool that cannot be installed says so; it is then named as not
measured. They are never installed by the package.
"""

from __future__ import annotations

import abc
import os
import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["PEERS", "Borg", "Casync", "Dvc", "MissingPeerError", "Peer", "Restic", "Zstd"]

_DVC = "dvc==3.67.0"
_DVC_HOME = Path(__file__).resolve().parents[1] / ".venv-dvc"
_FILE = "model.safetensors"


class MissingPeerError(Exception):
    """A tool is not here and cannot be installed."""


class Peer(abc.ABC):
    """One tool, with a repository of its own.

    Args:
        folder: A new folder for all that it writes.

    Raises:
        MissingPeerError: The tool is not here and cannot be installed.
    """

    name: str
    """What it is called in the tables."""
    program: str
    """What it is called on the command line."""
    package: str
    """What it is called by apt."""
    asks_version = "--version"
    """How its version is asked for."""

    def __init__(self, folder: Path) -> None:
        self.install()
        self.folder = folder
        self.repository = folder / "repository"
        self.out = folder / "out"
        for made in (self.repository, self.out, folder / "home"):
            made.mkdir(parents=True)
        self.begin()

    def install(self) -> None:
        """Install the tool by apt, if it is missing."""
        if shutil.which(self.program) is None and os.geteuid() == 0 and shutil.which("apt-get"):
            command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", self.package]
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=environment, capture_output=True, check=False)
        if shutil.which(self.program) is None:
            raise MissingPeerError(f"{self.program} is not here: apt-get install {self.package}")

    def begin(self) -> None:
        """Make the repository, where that is a step of its own."""
        return

    @abc.abstractmethod
    def add(self, file: Path, number: int) -> None:
        """Add a checkpoint."""

    @abc.abstractmethod
    def restore(self, number: int) -> None:
        """Write a checkpoint that was added into `out`, which is empty."""

    def version(self) -> str:
        """The number of its version, out of what it says about that."""
        said = self.run(self.asks_version, capture=True)
        found = re.search(r"\d+(\.\d+)+", said) or re.search(r"\d+", said)
        return found[0] if found else "version unknown"

    def clear(self) -> None:
        """Empty `out`; the disk is not to be busy with it in the next run."""
        shutil.rmtree(self.out)
        self.out.mkdir()

    def disk(self) -> int:
        """What the repository takes on the disk, in bytes."""
        return disk_used(self.repository)

    def run(self, *arguments: str | Path, at: Path | None = None, capture: bool = False) -> str:
        """Run the tool; its own caches and settings lie in this folder."""
        home = str(self.folder / "home")
        environment = {
            **os.environ,
            "HOME": home,
            "XDG_CACHE_HOME": home,
            "XDG_CONFIG_HOME": home,
            **self.settings(),
        }
        done = subprocess.run(
            [self.program, *arguments],
            cwd=at or self.out,
            env=environment,
            stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if capture else subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} failed: {done.stderr or done.stdout}")
        return done.stdout or ""

    def settings(self) -> dict[str, str]:
        """Environment variables that it needs to run unattended."""
        return {}


class Restic(Peer):
    """restic: chunks by content, packed, compressed, always encrypted."""

    name = program = package = "restic"
    asks_version = "version"

    def begin(self) -> None:
        """Make the repository."""
        self.run("init")

    def add(self, file: Path, number: int) -> None:
        """Back up the file."""
        self.run("backup", "--quiet", "--tag", str(number), file.name, at=file.parent)

    def restore(self, number: int) -> None:
        """Restore the snapshot with this tag."""
        self.run("restore", "latest", "--tag", str(number), "--target", self.out)

    def settings(self) -> dict[str, str]:
        """Where the repository is, and any password."""
        return {"RESTIC_REPOSITORY": str(self.repository), "RESTIC_PASSWORD": "benchmark"}


class Borg(Peer):
    """borg: chunks by content, compressed by lz4; without encryption."""

    name = program = "borg"
    package = "borgbackup"

    def begin(self) -> None:
        """Make the repository."""
        self.run("init", "--encryption", "none", self.repository)

    def add(self, file: Path, number: int) -> None:
        """Create an archive."""
        self.run("create", f"{self.repository}::{number}", file.name, at=file.parent)

    def restore(self, number: int) -> None:
        """Extract the archive."""
        self.run("extract", f"{self.repository}::{number}")

    def settings(self) -> dict[str, str]:
        """No questions, and no files outside this folder."""
        return {
            "BORG_BASE_DIR": str(self.folder / "home"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }


class Casync(Peer):
    """casync: chunks by content, each a compressed file."""

    name = program = package = "casync"

    def add(self, file: Path, number: int) -> None:
        """Make an index of the file, and chunks."""
        self.run("make", f"--store={self._chunks}", self._index(number), file)

    def restore(self, number: int) -> None:
        """Extract the file."""
        self.run("extract", f"--store={self._chunks}", self._index(number), self.out / _FILE)

    @property
    def _chunks(self) -> Path:
        return self.repository / "default.castr"

    def _index(self, number: int) -> Path:
        return self.repository / f"{number}.caibx"


class Dvc(Peer):
    """DVC: whole files, in a cache by their MD5. By pip, into an environment of its own."""

    name = "DVC"
    program = str(_DVC_HOME / "bin" / "dvc")
    package = _DVC

    def install(self) -> None:
        """Install it by pip, if it is missing."""
        if not Path(self.program).exists():
            try:
                subprocess.run(["python3", "-m", "venv", _DVC_HOME], check=True)
                pip = [str(_DVC_HOME / "bin" / "pip"), "install", "--quiet", self.package]
                subprocess.run(pip, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                shutil.rmtree(_DVC_HOME, ignore_errors=True)
                raise MissingPeerError(f"pip install {self.package}: {error}") from None

    def begin(self) -> None:
        """Make a workspace, without git."""
        self.run("init", "--no-scm", "--quiet", at=self.repository)
        self.run("config", "core.analytics", "false", at=self.repository)

    def add(self, file: Path, number: int) -> None:
        """Add the file, which is to lie in the workspace, and keep the note of its sum."""
        self.run("add", "--quiet", file.name, at=file.parent)
        note = file.with_name(f"{file.name}.dvc")
        shutil.copyfile(note, self.folder / f"{number}.dvc")

    def restore(self, number: int) -> None:
        """Check the file out into the workspace."""
        note = self.repository / f"{_FILE}.dvc"
        shutil.copyfile(self.folder / f"{number}.dvc", note)
        self.run("checkout", "--quiet", note.name, at=self.repository)

    def clear(self) -> None:
        """Remove the file of the workspace."""
        (self.repository / _FILE).unlink(missing_ok=True)

    def disk(self) -> int:
        """What the cache takes on the disk, in bytes; the file of the workspace is not counted."""
        return disk_used(self.repository / ".dvc" / "cache")

    def settings(self) -> dict[str, str]:
        """No files outside this folder, and no look for a newer version."""
        return {"DVC_SITE_CACHE_DIR": str(self.folder / "home" / "site"), "CI": "true"}


class Zstd(Peer):
    """zstd with the first checkpoint as its dictionary: no store, but what few lines can do."""

    name = "zstd -3 --patch-from the base"
    program = package = "zstd"
    asks_version = "-V"

    def add(self, file: Path, number: int) -> None:
        """Compress the file, against the base if there is one."""
        base = self.repository / _FILE
        if not base.exists():
            shutil.copyfile(file, base)
        else:
            self.run("-q", "-3", f"--patch-from={base}", file, "-o", self._packed(number))

    def restore(self, number: int) -> None:
        """Decompress the file."""
        base = f"--patch-from={self.repository / _FILE}"
        self.run("-q", "-d", "--memory=2048MB", base, self._packed(number), "-o", self.out / _FILE)

    def _packed(self, number: int) -> Path:
        return self.repository / f"{number}.zst"


PEERS: tuple[type[Peer], ...] = (Dvc, Restic, Borg, Casync, Zstd)


def disk_used(folder: Path) -> int:
    """What the files of a folder take on the disk, in bytes."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))

"""What tests ask of the machine: file systems of a kind, and how much memory a program takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["PEAK", "mounted"]

PEAK = """
import threading
def anonymous():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return 1024 * int(fields["RssAnon"].split()[0])
class Peak:
    def __enter__(self):
        self.most = self.before = anonymous()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self
    def __exit__(self, *_):
        self._done.set()
        self._watcher.join()
    def _watch(self):
        while not self._done.wait(0.002):
            self.most = max(self.most, anonymous())
"""
"""Code of a child: the most anonymous memory while something runs; pages of files do not count."""


@contextmanager
def mounted(kind: str, folder: Path, size: int) -> Iterator[Path]:
    """Mount a new file system (btrfs, xfs) below a folder; skip where that cannot be done."""
    make = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if make is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image, mount = folder / "image", folder / "a mount"
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    subprocess.run([make, "-q", image], check=True, capture_output=True)
    done = subprocess.run(
        ["mount", "-o", "loop", image, mount], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this user cannot mount a {kind}: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)

"""Real mounts, made for a test: each is skipped, with the reason, where it cannot be made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

__all__ = ["MOUNTS", "ext4", "tmpfs"]

_PATH = f"{os.environ['PATH']}:/sbin:/usr/sbin"


@contextmanager
def _mounted(on: Path, *command: object) -> Iterator[Path]:
    """Mount by a command that ends once it is done."""
    on.mkdir()
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    if done.returncode or not os.path.ismount(on):
        pytest.skip(f"{command[0]} cannot mount here: {done.stderr.strip()[-200:]}")
    try:
        yield on
    finally:
        subprocess.run(["umount", "--lazy", on], check=True)


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def bindfs(folder: Path) -> Iterator[Path]:
    """A folder again, through FUSE."""
    (folder / "below").mkdir()
    with _mounted(folder / "fuse", _program("bindfs"), folder / "below", folder / "fuse") as here:
        yield here


@contextmanager
def vfat(folder: Path) -> Iterator[Path]:
    """FAT, as on sticks and cards: by the kernel, or by FUSE where it has none."""
    image, on = folder / "fat.img", folder / "fat"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([_program("mkfs.vfat"), image], check=True, capture_output=True)
    if "\tvfat\n" in Path("/proc/filesystems").read_text():
        command = ["mount", "-t", "vfat", "-o", "loop", image, on]
    else:
        command = [_program("fusefat"), "-o", "rw+", image, on]
    with _mounted(on, *command) as here:
        yield here


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """Layers, as containers have them."""
    with tmpfs(folder, 64 << 20) as memory:
        layers = [memory / name for name in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        said = "lowerdir={},upperdir={},workdir={}".format(*layers)
        on = folder / "overlay"
        with _mounted(on, "mount", "-t", "overlay", "overlay", "-o", said, on) as here:
            yield here


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """Memory of a certain size in bytes."""
    on = folder / "memory"
    with _mounted(on, "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", on) as here:
        yield here


@contextmanager
def ext4(folder: Path, *, size: int = 32 << 20) -> Iterator[Path]:
    """A disk of its own; `remounted` makes it read-only."""
    image, on = folder / "ext4.img", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([_program("mkfs.ext4"), "-q", image], check=True, capture_output=True)
    with _mounted(on, "mount", "-o", "loop", image, on) as here:
        yield here


MOUNTS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "bindfs": bindfs,
    "vfat": vfat,
    "overlay": overlay,
    "ext4": ext4,
}

"""Power cuts of real file systems, in images on loop devices.

ext4 and XFS have a call that stops the file system at once, without writing what it holds in memory
(xfstests use it): after the next mount the journal is all that is left. Where there is none, as on
btrfs, the image lies on an XFS that shares blocks, and a clone of it is what a disk has at this
moment; the clone is mounted then.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlstate import LocalStateStore
from tests.torture.states import check_folder, key_of, save

__all__ = ["KINDS", "NoDiskError", "power_cut"]

KINDS = {"ext4": 96, "xfs": 320, "btrfs": 160}
"""File systems, with the sizes of their images in MiB."""
_SHUTDOWN, _LOSE_ALL = 0x8004587D, 2
_FORMAT = {"ext4": ["-F", "-q"], "xfs": ["-f", "-q"], "btrfs": ["-f", "-q"]}


class NoDiskError(Exception):
    """This machine does not let this user make or mount such a file system; the text says why."""


def _image(kind: str, path: Path) -> None:
    maker = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if maker is None:
        raise NoDiskError(f"mkfs.{kind} is not installed")
    with path.open("wb") as file:
        file.truncate(KINDS[kind] << 20)
    subprocess.run([maker, *_FORMAT[kind], path], check=True, capture_output=True)


@contextmanager
def _mounted(image: Path, mount: Path) -> Iterator[Path]:
    mount.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-o", "loop", image, mount], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise NoDiskError(f"no mount: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        _unmount(mount)


def _unmount(mount: Path) -> None:
    for _ in range(50):  # a process that was killed may hold a file for a moment
        done = subprocess.run(["umount", mount], check=False, capture_output=True, text=True)
        if not done.returncode:
            return
        time.sleep(0.1)
    raise RuntimeError(f"cannot unmount {mount}: {done.stderr}")


def _stop(mount: Path) -> bool:
    """Stop a file system, and lose what it has in memory; False where it has no such call."""
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _LOSE_ALL))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _work(folder: Path, seed: int) -> None:
    """Save, replace, delete and prune for ever, and say what is true after each step."""
    chance, store, states = random.Random(seed), LocalStateStore(folder), dict[str, int | None]()
    print(json.dumps({}), flush=True)
    while True:
        name, number = chance.choice("abcde"), chance.randrange(8)
        doing: dict[str, int | None] = {name: number}
        there = states.get(name) is not None
        if there and chance.random() < 0.3:
            doing = {name: None}
        elif chance.random() < 0.1:
            doing = {}
        print(json.dumps({"doing": doing}), flush=True)
        if not doing:
            store.prune(grace_seconds=3600)
        elif doing[name] is None:
            store.delete(key_of(name))
        else:
            save(store, name, number, scale=0.3, overwrite=True)
        states.update(doing)
        print(json.dumps({"done": states}), flush=True)


def power_cut(kind: str, seed: int, folder: Path, figures: Counter[str]) -> None:
    """Work on a file system of a kind, stop it at a random moment, and look at what is left.

    Raises:
        AssertionError: Something that had returned is lost, or something is there in part.
        NoDiskError: It cannot be done on this machine.
    """
    chance = random.Random(seed)
    if kind == "btrfs":
        _image("xfs", folder / "below.img")
        with _mounted(folder / "below.img", folder / "below") as below:
            _cut_on(kind, below, seed, chance, figures)
    else:
        _cut_on(kind, folder, seed, chance, figures)


def _cut_on(
    kind: str, folder: Path, seed: int, chance: random.Random, figures: Counter[str]
) -> None:
    image, mount = folder / f"{kind}.img", folder / f"mount-{kind}"
    _image(kind, image)
    left = image
    with _mounted(image, mount):
        store = mount / "store"
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.disks", str(store), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it ends with an error of the disk
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0.05, 1.5))
        if not _stop(mount):
            left = folder / "clone.img"
            # The saver is stopped, not the kernel: what it had submitted is on the disk, or not.
            child.send_signal(signal.SIGSTOP)
            subprocess.run(["cp", "--reflink=always", image, left], check=True)
        child.kill()
        said = [json.loads(line) for line in child.stdout if line.endswith("\n")]
        child.stdout.close()
        child.wait()
    figures[f"power cuts of {kind}"] += 1
    figures["changes before them"] += sum("done" in one for one in said)
    states = next((one["done"] for one in reversed(said) if "done" in one), {})
    doing = said[-1].get("doing", {}) if said else {}
    with _mounted(left, mount):
        names = {*"abcde"}
        allowed = {n: {states.get(n), doing.get(n, states.get(n))} for n in names}
        found = check_folder(mount / "store", allowed, scale=0.3)
        again = LocalStateStore(mount / "store")  # and it goes on
        save(again, "a", 7, scale=0.3, overwrite=True)
        check_folder(mount / "store", {**{n: {s} for n, s in found.items()}, "a": {7}}, scale=0.3)
        figures["states that had been saved before a cut"] += len(
            [s for s in found.values() if s is not None]
        )


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]))

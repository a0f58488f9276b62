"""What `diagnose` says of the file system of a folder, on real mounts and over the shim."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlstate import LocalStateStore, diagnose
from tests.machines.mounts import MOUNTS
from tests.machines.shim import OPTIONAL, environment

ROOT = Path(__file__).parents[2]

TELL = """
import json, sys
from pathlib import Path
from mlstate.operations.doctor.folders import folder_checks
from tests.machines.shim import refusing
told = {}
for refusal in sys.argv[2:]:
    call, _, number = refusal.rpartition("=")
    with refusing(call, int(number), Path(sys.argv[1])):
        checks = list(folder_checks("store", Path(sys.argv[1])))
    told[call] = {check.name.removeprefix("store: "): check.found for check in checks}
print(json.dumps(told))
"""
SAID = {
    "create read-only": "read-only files",
    "chmod": None,  # rights are given when a file is made
    "flush folder": "flush of folders",
    "open folder": "flush of folders",
    "flush file": "flush",
    "link": "hard links",
    "rename with flags": "exclusive rename",
    "flock": "locks",
    "utime": "times",
    "fstatfs": "memory maps",
    "mmap": "memory maps",
    "ftruncate": None,  # nothing depends on it
    "clone": "shared blocks",
    "fadvise": None,
    "rename over": "replacing open files",
}
"""The check that says which promise goes with a call; None if none does."""


def test_each_call_that_is_lacking_is_said(shim: Path, tmp_path: Path):
    assert SAID.keys() >= OPTIONAL.keys()
    refusals = [f"{call}={OPTIONAL.get(call, (1,))[0]}" for call in SAID]
    done = subprocess.run(
        [sys.executable, "-c", TELL, tmp_path, *refusals],
        cwd=ROOT,
        env=environment(shim),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    for call, name in SAID.items():
        noes = {check for check, found in told[call].items() if found.startswith("no")}
        ordinary = {"shared blocks"}  # of this disk
        assert noes | ordinary == ordinary | ({name} if name else set()), (call, noes)
    assert list(tmp_path.iterdir()) == []


LACKS = {
    "bindfs": {"memory maps", "shared blocks"},
    "vfat": {
        *("memory maps", "shared blocks", "hard links", "case-sensitive names", "read-only files"),
    },
    "overlay": {"shared blocks"},
    "ext4": {"shared blocks"},
}


@pytest.mark.machines
@pytest.mark.parametrize("kind", MOUNTS)
def test_a_real_mount_is_described(tmp_path: Path, kind: str):
    with MOUNTS[kind](tmp_path) as mount:
        found = diagnose(LocalStateStore(mount / "store"), reach=False)
        told = {c.name: c.found for c in found.checks if c.name.startswith("store: ")}
        noes = {name[7:] for name, said in told.items() if said.startswith("no")}
        print(kind, noes)
        assert noes >= LACKS[kind]
        assert list(mount.glob(".mlstate*")) == []

"""Members of a group with other umasks, and folders and files that may not be read."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.machines.users import GROUP, Users, shared_folder

pytestmark = pytest.mark.machines

ANNA, BEN = 54322, 54323

SAVE = "save(root / 'store')"
READ = "read(LocalStateStore(root / 'store')); print('read')"
FETCH = """
with small_is_large():
    fetch(root, bool({}))
"""


def rights(folder: Path) -> dict[str, str]:
    """What lies below a folder, with its rights."""
    return {
        str(path.relative_to(folder)): stat.filemode(path.lstat().st_mode)
        for path in folder.rglob("*")
    }


def locked_out(folder: Path) -> dict[str, str]:
    """What the group may not read, and folders that it may not write into."""
    return {
        name: mode
        for name, mode in rights(folder).items()
        if mode[4] != "r" or (mode[0] == "d" and (mode[5] != "w" or mode[6] not in "s"))
    }


def test_a_umask_of_077_locks_nobody_out_of_a_shared_store(as_user: Users):
    with shared_folder() as folder:
        as_user(ANNA, SAVE, folder, umask=0o077)
        assert rights(folder)
        assert locked_out(folder) == {}
        assert as_user(BEN, READ, folder, umask=0o077) == "read"
        # Each goes on with what the other has made.
        as_user(BEN, "take_away(root / 'store')", folder, umask=0o077)
        assert locked_out(folder / "store") == {}
        as_user(ANNA, SAVE, folder, umask=0o077)
        assert as_user(BEN, READ, folder, umask=0o077) == "read"
        assert {path.stat().st_gid for path in folder.rglob("*")} == {GROUP}


@pytest.mark.parametrize("whole", [True, False])
def test_a_shared_cache_stays_shared(as_user: Users, whole: bool):
    with shared_folder() as folder:
        as_user(ANNA, SAVE, folder, umask=0o077)
        as_user(ANNA, FETCH.format(whole), folder, umask=0o077)
        cache = folder / f"cache{whole:d}"
        assert locked_out(cache) == {}
        # The manifest too: it is a file of the folder.
        as_user(
            BEN, f"read(ManifestStore('{folder}/mirror{whole:d}.toml', cache='{cache}'))", folder
        )
        as_user(BEN, FETCH.format(whole), folder, umask=0o077)
        assert locked_out(cache) == {}


def test_the_use_of_a_state_that_another_member_fetched_is_noted(as_user: Users):
    """Else it is evicted while it is used every day."""
    with shared_folder() as folder:
        as_user(ANNA, SAVE, folder)
        as_user(ANNA, FETCH.format(True), folder)
        notes = list((folder / "cache1" / "roots").iterdir())
        old = time.time() - 30 * 24 * 3600
        for note in notes:
            os.utime(note, (old, old))
        view = f"ManifestStore('{folder}/mirror1.toml', cache='{folder}/cache1')"
        as_user(BEN, f"read({view})", folder)
        assert any(note.stat().st_mtime > old + 24 * 3600 for note in notes)


def test_in_a_folder_that_is_not_shared_the_umask_decides(as_user: Users):
    with shared_folder(0o777) as folder:
        as_user(ANNA, SAVE, folder, umask=0o077)
        assert all(mode[4:] == "------" for mode in rights(folder).values())


def test_a_manifest_keeps_its_rights_when_it_is_edited(as_user: Users):
    with shared_folder() as folder:
        manifest = folder / "weights.toml"
        manifest.write_text("version = 1\n")
        os.chown(manifest, ANNA, GROUP)
        manifest.chmod(0o664)
        as_user(ANNA, SAVE, folder)
        code = (
            "from mlstate.operations.enlist import enlist\n"
            "enlist(root / 'weights.toml', LocalStateStore(root / 'store'), KEYS)"
        )
        as_user(BEN, code, folder, umask=0o077)
        assert "tuned" in manifest.read_text()
        assert stat.filemode(manifest.stat().st_mode) == "-rw-rw-r--"
        assert manifest.stat().st_uid == BEN


CLOSED = {
    "a folder of objects": lambda store: next(store.glob("objects/*")),
    "an object": lambda store: next(store.glob("objects/*/*")),
    "all objects": lambda store: store / "objects",
    "a folder of states": lambda store: next(store.glob("states/*/*")),
    "a state": lambda store: store / "states" / "pytorch" / "net" / "tuned.toml",
    "all states": lambda store: store / "states",
    "the trash": lambda store: store / "trash",
    "the temporaries": lambda store: store / "tmp",
}

LOOK = """
import warnings
from mlstate.errors import MlstateError
warnings.simplefilter("ignore")
store = LocalStateStore(root / "store")
def tell(name, work):
    try:
        print(name, work())
    except MlstateError as error:
        assert isinstance(error, PermissionError), repr(error)
        print(name, "refused")
tell("keys", lambda: len(store.get_state_keys()))
tell("list", lambda: len(list(store.listing())))
tell("verify", lambda: bool(mlstate.verify(store).findings))
tell("usage", lambda: len(mlstate.usage(store).states))
tell("doctor", lambda: mlstate.diagnose(store, reach=False).ok)
tell("dry", lambda: len(store.prune(grace_seconds=-3600, dry_run=True).trashed))
tell("prune", lambda: len(store.prune(grace_seconds=-3600).trashed))
"""
# keys, list, verify, usage, doctor, dry, prune
EXPECTED = {
    "a folder of objects": "2 2 True 2 False ? ?",
    "an object": "2 2 True 2 False ? ?",
    "all objects": "2 2 True 2 False refused refused",
    "a folder of states": "refused 0 True 0 False refused refused",
    "a state": "2 2 True 2 False refused refused",
    "all states": "refused 0 True 0 False refused refused",
    "the trash": "2 2 False 2 False refused refused",
    "the temporaries": "2 2 False 2 False refused refused",
}
"""A question mark: as it happens to be a state object that may not be read, or another one."""


@pytest.mark.parametrize("what", CLOSED)
def test_what_may_not_be_read_is_a_finding_and_nothing_is_lost(as_user: Users, what: str):
    with shared_folder() as folder:
        as_user(ANNA, SAVE, folder)
        store = folder / "store"
        (store / "trash").mkdir(exist_ok=True)
        path = CLOSED[what](store)
        mode = path.stat().st_mode
        path.chmod(0)
        lines = as_user(BEN, LOOK, folder).splitlines()
        path.chmod(mode)
        for line, expected in zip(lines, EXPECTED[what].split(), strict=True):
            told = line.rsplit(" ", 1)[1]
            assert told == expected or (expected == "?" and told in ("0", "refused")), line
        assert as_user(ANNA, READ, folder) == "read"

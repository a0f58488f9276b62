"""Several processes on one store, killed ones, other users' umasks, and a read-only mount."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, Manifest, StateKey, adopt, enlist, export, verify
from mlstate.errors import FormatError, StateExistsError
from tests.support.models import LINEAR, net, same, values

SPAWN = multiprocessing.get_context("spawn")


def _race(folder, seed, barrier, results):
    torch.set_num_threads(1)
    model, store = net(seed), LocalStateStore(folder)
    barrier.wait()
    try:
        store.save(model, "a")
    except StateExistsError:
        results.put(None)
    else:
        results.put(seed)


def test_of_racing_processes_with_other_weights_one_wins(tmp_path):
    count = 4
    barrier, results = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_race, args=(str(tmp_path), seed, barrier, results))
        for seed in range(count)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    winners = [seed for seed in found if seed is not None]
    assert len(winners) == 1
    model = net(99)
    LocalStateStore(tmp_path).load(model, StateKey(LINEAR, "a"))
    assert same(values(model), values(net(winners[0])))


SAVER = """
import sys
import torch
from mlstate import LocalStateStore
from tests.support.models import net
torch.set_num_threads(1)
store = LocalStateStore(sys.argv[1])
models = [net(seed, width=2000) for seed in range(20)]
print("ready", flush=True)
for number in range(10_000):
    store.save(models[number % 20], f"s{number}")
    print(number, flush=True)
"""


def test_kill_9_at_any_moment_leaves_every_saved_state_and_no_half_one(tmp_path):
    rng = random.Random(1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
            saved = [int(line) for line in process.stdout if line.endswith("\n")]
        store = LocalStateStore(folder)
        keys = store.get_state_keys(LINEAR)
        # The state that was being saved may be there, whole, though no one was told.
        assert {f"s{number}" for number in saved} <= {key.training_id for key in keys}
        assert len(keys) <= len(saved) + 1
        for key in keys:
            expected = net(int(key.training_id[1:]) % 20, width=2000)
            model = net(99, width=2000)
            store.load(model, key)
            assert same(values(model), values(expected))
        assert verify(store).findings == ()
        store.save(net(0, width=2000), f"s{len(saved) + 5}")  # and goes on


GROUP = """
import os, sys
os.umask(int(sys.argv[2], 8))
from mlstate import LocalStateStore, StateKey
import torch
store = LocalStateStore(sys.argv[1])
store.save_state_dict({"w": torch.ones(9000)}, StateKey.parse("pytorch.net.a"))
"""


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [("002", 0o444, 0o775), ("077", 0o400, 0o700)]
)
def test_modes_follow_the_umask_so_a_group_can_share(tmp_path, umask, file, folder):
    root = tmp_path / "store"
    subprocess.run([sys.executable, "-c", GROUP, str(root), umask], check=True)
    for path in root.rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (folder if path.is_dir() else file), path
    assert root.stat().st_mode & 0o777 == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_two_members_of_a_group_share_a_store(tmp_path):
    """Each reuses, freshens or replaces what the other saved, and loads it."""
    root = tmp_path / "shared"
    root.mkdir()
    os.chown(root, 0, 12345)
    root.chmod(0o2775)
    for parent in root.parents:
        if Path(tempfile.gettempdir()) in parent.parents:
            parent.chmod(0o755)
    if not all(parent.stat().st_mode & 0o001 for parent in root.parents):
        pytest.skip("other users cannot reach the temporary folder")
    program = (
        "import os, sys, torch\n"
        "from mlstate import LocalStateStore, MemoryStateStore, StateKey\n"
        # Another user may not be able to read where Python lies: import all that is needed first.
        "MemoryStateStore().save_state_dict("
        "{'a': torch.ones(1)}, StateKey.parse('a.b.c'), meta={'m': 1})\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(int(sys.argv[2])); os.umask(0o002)\n"
        "store = LocalStateStore(sys.argv[1])\n"
        "name = StateKey.parse(f'pytorch.net.u{sys.argv[2]}')\n"
        "tensors = {'w': torch.ones(9000), 'own': torch.full((9000,), float(sys.argv[2]))}\n"
        "store.save_state_dict(tensors, name)\n"
        "for key in store.get_state_keys():\n"
        "    assert store.load_state_dict(key)['w'].sum() == 9000\n"
    )
    for user in (2001, 2002):
        subprocess.run([sys.executable, "-c", program, str(root), str(user)], check=True, cwd="/")
        old = time.time() - 30 * 24 * 3600
        for path in root.glob("objects/*/*"):
            os.utime(path, (old, old))
    assert len(LocalStateStore(root).get_state_keys()) == 2


@pytest.fixture
def read_only(tmp_path):
    """A store, mounted read-only."""
    store = LocalStateStore(tmp_path / "store")
    store.save(net(1, width=5000), "a", files={"f": b"1"})
    mount = tmp_path / "mount"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "--bind", store.folder, mount], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("this user cannot mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mount], check=True)
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_store_on_a_read_only_mount_loads(read_only):
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "x").touch()
    store = LocalStateStore(read_only)
    key = StateKey(LINEAR, "a")
    assert store.get_state_keys(LINEAR) == [key]
    for assign in (False, True):
        model = net(2, width=5000)
        store.load(model, key, assign=assign)
        assert same(values(model), values(net(1, width=5000)))
    assert store.files(key)["f"] == b"1"
    store.save(net(1, width=5000), "a", files={"f": b"1"})  # nothing changed: nothing is written
    with pytest.raises(OSError, match="Read-only"):
        store.save(net(2), "b")


@pytest.mark.parametrize("address", ["s3://bucket/x", "https://host/x"])
def test_an_address_is_no_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="a folder or file of this machine is needed") as caught:
        LocalStateStore(address)
    assert ("open_store" in str(caught.value)) is address.startswith("s3")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_no_store_is_refused_untouched(tmp_path):
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "mine").write_text("x")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(FormatError, match="not a store"):
        LocalStateStore(tmp_path)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("settings", ["version = 2", 'version = 1\nrequires = ["packs"]', "x"])
def test_a_store_of_a_newer_version_is_refused_untouched(tmp_path, settings):
    store = LocalStateStore(tmp_path)
    key = store.save(net(1), "a")
    path = tmp_path / "mlstate.toml"
    path.unlink()
    path.write_text(settings)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(FormatError):
        LocalStateStore(tmp_path)
    for write in (
        lambda: store.save(net(2), "b"),
        lambda: store.save(net(2), "a", overwrite=True),
        lambda: store.delete(key),
        store.prune,
    ):
        with pytest.raises(FormatError):
            write()
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def _list(folder, manifest, number, barrier):
    store, key = LocalStateStore(folder), StateKey(LINEAR, f"n{number}")
    barrier.wait()
    if number % 2:
        enlist(manifest, store, [key])
    else:
        adopt(Path(folder).parent / f"{number}.safetensors", key, manifest, mirror=True)


def test_processes_that_list_states_in_one_manifest_at_once_lose_none(tmp_path):
    count, manifest = 6, tmp_path / "deep" / "er" / "m.toml"
    store = LocalStateStore(tmp_path / "store")
    for number in range(count):
        key = store.save(net(number), f"n{number}")
        export(store, key, tmp_path / f"{number}.safetensors")
    barrier = SPAWN.Barrier(count)
    processes = [
        SPAWN.Process(target=_list, args=(str(store.folder), manifest, number, barrier))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    states = Manifest.read(manifest).states
    assert {key: entry.digest for key, entry in states.items()} == {
        key: store.digest(key) for key in store.get_state_keys()
    }
    assert [path.name for path in manifest.parent.iterdir()] == ["m.toml"]

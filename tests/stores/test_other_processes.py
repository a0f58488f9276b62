"""Stores in other processes: sent to spawned ones, and used on in forked ones."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mlstate import LocalStateStore, ManifestStore, MemoryStateStore, Store, manifest_of
from tests.support.models import LINEAR, net, same, values

SPAWN = get_context("spawn")


class States(Dataset):
    """A dataset that reads states of a store, as code that evaluates checkpoints does."""

    def __init__(self, store):
        self.store = store
        self.keys = store.get_state_keys(LINEAR)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return self.store.load_state_dict(self.keys[index])["0.weight"].clone()


def loaded(store, key):
    return {name: tensor.numpy() for name, tensor in store.load_state_dict(key).items()}


def filled(store):
    for seed in range(3):
        store.save(net(seed), f"s{seed}")
    return store


def stores_in(folder: Path, monkeypatch):
    """A store of each kind on this machine, all with the same three states."""
    local = filled(LocalStateStore(folder / "local"))
    yield local
    yield filled(MemoryStateStore())
    manifest_of(local, objects=[str(folder / "local")]).write(folder / "m.toml")
    yield ManifestStore(folder / "m.toml", cache=folder / "cache")
    yield ManifestStore(manifest_of(local, objects=[str(folder / "local")]), cache=folder / "c2")
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(folder / "m.toml"))
    yield Store(cache=folder / "c3")


def test_stores_can_be_sent_to_spawned_processes(tmp_path, monkeypatch):
    with ProcessPoolExecutor(1, SPAWN) as pool:
        for store in stores_in(tmp_path, monkeypatch):
            key = store.get_state_keys(LINEAR)[1]
            found = pool.submit(loaded, store, key).result(120)
            tensors = {name: torch.from_numpy(array) for name, array in found.items()}
            assert same(tensors, values(net(1))), store


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader_read_states(tmp_path, context):
    store = filled(LocalStateStore(tmp_path))
    loader = DataLoader(States(store), num_workers=1, multiprocessing_context=context, timeout=120)
    found = torch.cat(list(loader))
    assert torch.equal(found, torch.stack([values(net(s))["0.weight"] for s in range(3)]))


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process without threads of pytest; `forked(work)` forks, and has 60 seconds."""
    start = """
        import os, signal, sys, threading, traceback
        from mlstate import *

        def forked(work):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # for what would wait for ever
                try:
                    work()
                    sys.stdout.flush()
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == 0, code
    """
    command = [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_a_forked_child_saves_and_loads_while_threads_of_its_parent_do(tmp_path):
    code = """
        from tests.support.models import net, same, values
        store, memory = LocalStateStore(sys.argv[1]), MemoryStateStore()
        nets = [net(seed) for seed in range(4)]  # torch has a lock of its own for seeds
        key = store.save(nets[0], "first")
        memory.save(nets[0], "first")
        end = threading.Event()

        def busy(seed):
            number = 0
            while not end.is_set():
                for other in (store, memory):
                    other.save(nets[seed], f"p{seed}-{number}")
                    other.load_state_dict(key)
                number += 1

        def work():
            for other in (store, memory):
                mine = other.save(nets[3], f"c{os.getpid()}")
                assert same(other.load_state_dict(mine), values(nets[3]))
                assert same(other.load_state_dict(key), values(nets[0]))

        threads = [threading.Thread(target=busy, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                forked(work)
        finally:
            end.set()
            for thread in threads:
                thread.join()
        report = verify(store)
        assert report.ok, report
        print(sum(str(key).startswith("pytorch.net.c") for key in store.get_state_keys()))
    """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


def test_a_lock_on_a_manifest_does_not_stay_with_a_forked_child(tmp_path):
    code = """
        import time
        from mlstate.manifests.update import change_manifest
        from mlstate.objects.durable import try_lock
        children = []

        def change(manifest):
            child = os.fork()
            if child == 0:
                signal.pause()  # it lives on, and has open what its parent had open
            children.append(child)
            return manifest

        change_manifest(sys.argv[1] + "/m.toml", change)
        descriptor = os.open(sys.argv[1], os.O_RDONLY)
        print(try_lock(descriptor))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_child_forked_by_a_process_that_fetched_fetches_too(tmp_path, start_nginx):
    local = filled(LocalStateStore(tmp_path / "web" / "store"))
    nginx = start_nginx(tmp_path / "web")
    manifest_of(local, objects=[nginx.url("store")]).write(tmp_path / "m.toml")
    code = """
        from tests.support.models import net, same, values
        store = ManifestStore(sys.argv[1] + "/m.toml", cache=sys.argv[1] + "/cache")
        first, second, third = store.get_state_keys()

        def work():
            assert same(store.load_state_dict(second), values(net(1)))

        assert same(store.load_state_dict(first), values(net(0)))
        forked(work)
        assert store.fetch(second).fetched == 0
        assert same(store.load_state_dict(third), values(net(2)))
        print("fine")
    """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_forked_child_is_told_that_buckets_cannot_be_asked(tmp_path, moto):
    code = """
        from tests.support.models import net, same, values
        url, bucket, cache = sys.argv[1:]
        kwargs = dict(aws_access_key_id="a", aws_secret_access_key="b", region_name="eu-west-1")
        store = S3StateStore(bucket, kwargs, url, cache=cache)
        key = store.save(net(0), "a")
        store.load_state_dict(key)
        digest = store.digest(key)

        def work():
            fresh = S3StateStore(bucket, kwargs, url, cache=cache)
            for other in (store, fresh):
                try:
                    other.get_state_keys()
                except ConnectionError as error:
                    print(error.message, "|", error.remedy)
                other.load(net(1), key, digest=digest)  # of the cache

        forked(work)
        assert store.get_state_keys() == [key]  # and the parent's connection is as it was
    """
    done = run(code, moto.url, moto.new_bucket(), tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("forked from one which used them | start processes by") == 2

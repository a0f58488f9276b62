"""Saving into a release: nothing is lost by a crash, a race, or what GitHub does to an upload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch

from mlstate import StateKey, state_digest
from mlstate.errors import (
    AccessError,
    IntegrityError,
    LimitError,
    MlstateError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    TransportError,
)
from mlstate.stores.github import upload
from tests.servers.recording import Reply
from tests.support.github_stores import KEY, TAG, asset_of, data_names, github_store, weights
from tests.support.models import LINEAR, same

OLD, NEW = weights(1), weights(2)
FILES = {"f": b"12345"}


@pytest.fixture
def store(github, tmp_path):
    return github_store(tmp_path / "cache")


def check_only(github, tensors, files=FILES):
    """Nothing is there but this state, and each asset is complete."""
    digest = state_digest(tensors)
    data = data_names(github)
    assert all(f".{digest}." in name or name.endswith(".file") for name in data)
    assert len(data) == 2 + len(files)
    assert github.names(TAG) == sorted(["a.toml", *data])
    assets = github.repos["org/models"].tagged(TAG).assets.values()
    assert {asset.state for asset in assets} == {"uploaded"}


class Power:
    """Fails all requests that change something after so many: not done, or done and not told."""

    def __init__(self, github, left, *, done=False):
        self.github, self.left, self.done, self.failed = github, left, done, False
        github.before, github.after = self.count, self.lose

    def count(self, record):
        if record.method == "GET":
            return None if not self.failed else Reply(500)
        self.left -= 1
        if self.left < -1 or (self.left < 0 and not self.done):
            self.failed = True
            return Reply(500)
        return None

    def lose(self, record):
        if self.done and self.left < 0 and record.method != "GET":
            self.failed = True
            return Reply(500)
        return None

    def back(self):
        self.github.before = self.github.after = None


def steps(work, github, *, done):
    """Do something with the power going out after 0, 1, 2... changes, until it is not noticed."""
    for left in range(50):
        power = Power(github, left, done=done)
        with suppress(MlstateError):
            work(left)
        power.back()
        if not power.failed:
            return
        yield left
    raise AssertionError("it never ends")


@pytest.mark.parametrize("done", [False, True])
def test_a_first_save_that_is_broken_off_leaves_nothing_or_all(github, fresh, done):
    def save(left):
        fresh(attempts=1).save_state_dict(NEW, StateKey(LINEAR, f"n{left}"), files=FILES)

    count = 0
    for left in steps(save, github, done=done):
        count += 1
        key = StateKey(LINEAR, f"n{left}")
        reader = fresh()
        if reader.exists(key):
            assert same(reader.load_state_dict(key), NEW)
            assert dict(reader.files(key)) == FILES
            assert reader.get_state_keys().count(key) == 1
        else:
            assert key not in reader.get_state_keys()
        fresh().save_state_dict(NEW, key, files=FILES)
        assert same(fresh().load_state_dict(key), NEW)
    assert count >= 4  # a plain file, a state object, a file, the pointer


@pytest.mark.parametrize("done", [False, True])
def test_an_overwrite_that_is_broken_off_leaves_the_old_state_or_the_new(github, fresh, done):
    fresh().save_state_dict(OLD, KEY, files=FILES)

    def save(left):
        fresh(attempts=1).save_state_dict(NEW, KEY, overwrite=True)

    count = 0
    for _ in steps(save, github, done=done):
        count += 1
        reader = fresh()
        found = reader.load_state_dict(KEY)
        assert same(found, OLD) or same(found, NEW)
        assert dict(reader.files(KEY)) == (FILES if same(found, OLD) else {})
        assert reader.get_state_keys() == [KEY]
        with pytest.raises(StateExistsError):
            fresh().save_state_dict(weights(3), KEY)
        fresh().save_state_dict(found, KEY, files=dict(reader.files(KEY)))  # nothing to do
        assert same(fresh().load_state_dict(KEY), found)
        fresh().save_state_dict(OLD, KEY, files=FILES, overwrite=True)
        assert same(fresh().load_state_dict(KEY), OLD)
    assert count >= 6  # two of data, a rename, the pointer, two of what is not needed any more
    check_only(github, NEW, {})


@pytest.mark.parametrize("done", [False, True])
def test_a_delete_that_is_broken_off_leaves_the_state_or_none(github, fresh, done):
    fresh().save_state_dict(OLD, KEY, files=FILES)
    count = 0
    for _ in steps(lambda left: fresh(attempts=1).delete(KEY), github, done=done):
        count += 1
        if fresh().exists(KEY):
            assert same(fresh().load_state_dict(KEY), OLD)
        else:
            with pytest.raises(StateNotFoundError):
                fresh().delete(KEY)
        fresh().save_state_dict(OLD, KEY, files=FILES, overwrite=True)
    assert count >= 4
    assert github.names(TAG) == []


def test_a_pointer_and_an_old_one_are_both_deleted_the_old_one_first(store, github, fresh):
    store.save_state_dict(OLD, KEY)
    pointer = asset_of(github, "a.toml")
    store.save_state_dict(NEW, KEY, overwrite=True)
    github.put(github.repos["org/models"], TAG, "a.toml.old", pointer.data)
    assert same(fresh().load_state_dict(KEY), NEW)
    github.reset()
    store.delete(KEY)
    assert not fresh().exists(KEY)
    assert github.names(TAG) == []


def test_a_save_that_was_broken_off_gets_its_pointer_back(store, github):
    store.save_state_dict(OLD, KEY)
    asset_of(github, "a.toml").name = "a.toml.old"
    store.save_state_dict(OLD, KEY)
    check_only(github, OLD, {})


def test_data_that_is_missing_or_damaged_is_mended_by_saving_again(store, github, fresh):
    store.save_state_dict(OLD, KEY, files=FILES)
    release = github.repos["org/models"].tagged(TAG)
    for name in data_names(github):
        del release.assets[release.named(name).id]
        store.save_state_dict(OLD, KEY, files=FILES)
        check_only(github, OLD)
    for name in data_names(github):
        asset = release.named(name)
        asset.data = bytes([asset.data[0] ^ 1]) + asset.data[1:]
        store.save_state_dict(OLD, KEY, files=FILES, verify=True)
        check_only(github, OLD)
    assert same(fresh().load_state_dict(KEY), OLD)
    github.reset()
    store.save_state_dict(OLD, KEY, files=FILES)
    assert {record.method for record in github.calls} == {"GET"}


def test_data_that_was_spread_in_another_way_stays_and_is_mended(store, github, fresh):
    tensors = weights(1, a=5000, b=5000)
    store.saver.asset_limit = 30_000
    store.save_state_dict(tensors, KEY)
    spread = github.names(TAG)
    assert len(spread) == 4
    fresh().save_state_dict(tensors, KEY)
    assert github.names(TAG) == spread
    release = github.repos["org/models"].tagged(TAG)
    del release.assets[release.named(spread[0]).id]
    fresh().save_state_dict(tensors, KEY)
    check_only(github, tensors, {})
    assert same(fresh().load_state_dict(KEY), tensors)


# What GitHub does to uploads.


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("how", ["corrupt", "break_off"])
def test_an_upload_that_went_wrong_is_done_again(store, github, fresh, digests, how):
    github.digests = digests
    digest = state_digest(OLD)
    names = [f"a.{digest}.safetensors", f"a.{digest}.mlstate", "a.toml"]
    setattr(github, how, dict.fromkeys(names, 1))
    store.save_state_dict(OLD, KEY)
    assert not any(getattr(github, how).values())
    check_only(github, OLD, {})
    assert same(fresh().load_state_dict(KEY), OLD)
    assert github.leaked == []


def test_a_server_that_stores_other_bytes_again_and_again_is_an_error(store, github):
    github.corrupt = {"*": 100}
    with pytest.raises(IntegrityError, match="other bytes") as caught:
        store.save_state_dict(OLD, KEY)
    assert "sha256" in caught.value.expected
    assert github.names(TAG) == []


def test_a_server_that_breaks_off_again_and_again_is_an_error(store, github):
    github.break_off = {"*": 100}
    with pytest.raises(TransportError) as caught:
        store.save_state_dict(OLD, KEY)
    assert caught.value.status == 502
    assert github.names(TAG) == []
    assert not store.exists(KEY)


def test_what_cut_uploads_left_is_removed(store, github, monkeypatch):
    monkeypatch.setattr(upload, "PATIENCE", 0.3)
    digest, repo = state_digest(OLD), github.repos["org/models"]
    old = time.time() - 3600
    github.put(repo, TAG, f"a.{digest}.safetensors", b"", state="starter", created=old)
    github.put(repo, TAG, f"a.{digest}.mlstate", b"", state="starter")
    github.put(repo, TAG, "a.toml", b"", state="starter")
    assert store.get_state_keys() == []
    store.save_state_dict(OLD, KEY)
    check_only(github, OLD, {})


def test_another_upload_of_the_same_is_waited_for(store, github, fresh):
    name = f"a.{state_digest(OLD)}.safetensors"
    fresh().save_state_dict(OLD, StateKey(LINEAR, "b"))
    asset = asset_of(github, f"b.{name[2:]}")
    under_way = github.put(github.repos["org/models"], TAG, name, asset.data, state="starter")

    def finish():
        under_way.state = "uploaded"

    timer = threading.Timer(0.5, finish)
    timer.start()
    store.save_state_dict(OLD, KEY)
    timer.join()
    assert asset_of(github, name) is under_way


def test_data_of_saves_that_died_long_ago_goes_with_the_next_and_young_data_stays(store, github):
    repo = github.repos["org/models"]
    young, dead = (f"a.{character * 64}.safetensors" for character in "12")
    other = f"a.b.{'3' * 64}.safetensors"
    for name, age in ((young, 3600), (dead, 2 * 86400), (other, 2 * 86400)):
        github.put(repo, TAG, name, b"1", created=time.time() - age)
    store.save_state_dict(OLD, KEY)
    assert young in github.names(TAG)
    assert dead not in github.names(TAG)
    store.delete(KEY)
    assert github.names(TAG) == sorted([young, other])


def test_a_tensor_that_changes_while_it_is_saved_leaves_no_state(store, github):
    tensors = weights(1, a=200_000)

    def change(record):
        if record.method == "POST" and record.path.endswith("/releases"):
            tensors["a"][100] += 1

    github.before = change
    with pytest.raises(IntegrityError, match="changed while it was saved") as caught:
        store.save_state_dict(tensors, KEY)
    github.before = None
    assert caught.value.tensor == "a"
    assert not store.exists(KEY)
    store.save_state_dict(tensors, KEY)
    assert same(store.load_state_dict(KEY), tensors)


# Limits.


def test_a_release_that_is_immutable_is_an_error_with_a_remedy(store, github):
    store.save_state_dict(OLD, KEY)
    repo = github.repos["org/models"]
    repo.tagged(TAG).immutable = True
    store.save_state_dict(OLD, KEY)  # the same again changes nothing
    for use in (
        lambda: store.save_state_dict(NEW, StateKey(LINEAR, "b")),
        lambda: store.save_state_dict(NEW, KEY, overwrite=True),
        lambda: store.delete(KEY),
    ):
        with pytest.raises(ReadOnlyStoreError, match="immutable") as caught:
            use()
        assert "settings" in caught.value.remedy
        assert caught.value.key is not None
    assert same(store.load_state_dict(KEY), OLD)
    repo.immutable = True
    with pytest.raises(ReadOnlyStoreError, match="immutable"):
        store.save_state_dict(OLD, StateKey.parse("jax.net.a"))


@pytest.mark.parametrize("known", [True, False])
def test_a_release_that_is_full_is_an_error_with_a_remedy(store, github, known):
    github.most_assets = 8
    store.saver.most_assets = 8 if known else 1000
    store.save_state_dict(OLD, KEY, files=FILES)
    store.save_state_dict(OLD, StateKey(LINEAR, "b"))
    with pytest.raises(LimitError, match="1,000") as caught:
        store.save_state_dict(NEW, StateKey(LINEAR, "c"))
    assert "release_name_prefix" in caught.value.remedy
    assert store.get_state_keys() == [KEY, StateKey(LINEAR, "b")]
    assert len(github.names(TAG)) == (7 if known else 8)


@pytest.mark.parametrize("limit", [40_000, 5000])
def test_a_limit_that_only_github_knows_is_an_error_with_a_remedy(store, github, limit):
    github.asset_limit = limit
    with pytest.raises(LimitError, match="S3StateStore") as caught:
        store.save_state_dict(OLD, KEY)
    assert str(limit) in caught.value.found
    assert not store.exists(KEY)


def test_without_the_branch_no_release_is_made(github, tmp_path):
    github.repos["org/models"].branches.remove("model-store")
    store = github_store(tmp_path / "cache")
    with pytest.raises(AccessError, match="'model-store'"):
        store.save_state_dict(OLD, KEY)
    github.repos["org/models"].tags[TAG] = "main"  # a tag that is there needs no branch
    store.save_state_dict(OLD, KEY)


def test_architectures_that_differ_in_case_only_are_refused(store):
    store.save_state_dict(OLD, KEY)
    with pytest.raises(StateExistsError, match="case"):
        store.save_state_dict(OLD, StateKey.parse("pytorch.Net.a"))


# Races.


def test_of_racing_overwriters_one_is_last_and_its_state_is_whole(github, fresh):
    fresh().save_state_dict(OLD, KEY)
    states = [weights(seed) for seed in range(5)]
    with ThreadPoolExecutor(5) as pool:
        done = [
            pool.submit(fresh(attempts=8).save_state_dict, state, KEY, overwrite=True)
            for state in states
        ]
    for future in done:
        future.result()
    found = fresh().load_state_dict(KEY)
    assert any(same(found, state) for state in states)
    assert [name for name in github.names(TAG) if "toml" in name] == ["a.toml"]


def test_readers_of_a_state_that_is_overwritten_find_one_or_the_other(github, fresh):
    fresh().save_state_dict(OLD, KEY)
    stop = threading.Event()
    seen = []

    def read():
        reader = fresh()
        while not stop.is_set():
            seen.append(reader.digest(KEY))

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        for number in range(6):
            fresh().save_state_dict(NEW if number % 2 else OLD, KEY, overwrite=True)
        stop.set()
    for future in reading:
        future.result()
    assert set(seen) <= {state_digest(OLD), state_digest(NEW)}
    assert len(seen) > 10


def test_data_that_another_takes_away_in_the_meantime_is_uploaded_again(store, github):
    """Somebody who overwrites the same key tidies up what is just being reused."""
    store.save_state_dict(OLD, KEY)
    release = github.repos["org/models"].tagged(TAG)
    name = f"a.{state_digest(OLD)}.safetensors"
    taken = []

    def take_away(record):
        if record.method == "PATCH" and not taken:
            taken.append(release.assets.pop(release.named(name).id))

    github.before = take_away
    store.save_state_dict(OLD, KEY, meta={"n": 1}, overwrite=True)
    assert taken
    check_only(github, OLD, {})


CHILD = """
import sys, torch
from mlstate import GitHubReleaseStore, StateKey
store = GitHubReleaseStore("org", "models", cache=sys.argv[1])
key = StateKey.parse("pytorch.net.a")
print("ready", flush=True)
try:
    store.save_state_dict({"w": torch.full((50_000,), float(sys.argv[2]))}, key)
    print("won")
except Exception as error:
    print(type(error).__name__)
"""


def child(cache, seed):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(CHILD), cache, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def test_of_racing_processes_one_wins(github, fresh, tmp_path):
    children = [child(tmp_path / f"child{n}", n) for n in range(2)]
    told = [one.communicate(timeout=60)[0].split()[1] for one in children]
    assert sorted(told) == ["StateExistsError", "won"]
    found = fresh().load_state_dict(KEY)["w"]
    assert torch.equal(found, torch.full((50_000,), float(told.index("won"))))


def test_a_saver_that_is_killed_leaves_what_was_there(github, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "PATIENCE", 0.2)
    other = StateKey(LINEAR, "b")
    fresh().save_state_dict(OLD, other)
    killed = []

    def kill(record):
        if record.method == "POST" and record.path.endswith("safetensors"):
            killed.append(process.send_signal(signal.SIGKILL))
            return Reply(500)
        return None

    github.before = kill
    process = child(tmp_path / "child", 1)
    process.communicate(timeout=60)
    github.before = None
    assert killed
    assert process.returncode == -signal.SIGKILL
    assert not fresh().exists(KEY)
    assert same(fresh().load_state_dict(other), OLD)
    fresh().save_state_dict(NEW, KEY)
    assert same(fresh().load_state_dict(KEY), NEW)

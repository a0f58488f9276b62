"""Buckets behind bad networks and servers, and savers that are killed or race.

After each fault every earlier state loads, and every object has the bytes that its name says.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from mlstate import S3StateStore, StateKey, verify
from mlstate.buckets.client import PART
from mlstate.buckets.open import BucketOptions
from mlstate.digests import Digest
from mlstate.errors import BucketError, FetchError, IntegrityError, MlstateError
from mlstate.objects import read_verified
from mlstate.objects.bucket import LARGE_AT_ONCE, PARTS_EACH, BucketObjectStore
from mlstate.transport import Retries
from tests.servers.forwarding import Forwarding
from tests.servers.replies import Reply
from tests.support.buckets import (
    bucket_place,
    bucket_store,
    check_objects,
    contents,
    put,
    unfinished,
)
from tests.support.models import LINEAR, net, same, values

IGNORES = "ignore:the server of .* ignores conditional writes"
BIG = random.Random(0).randbytes(20_000_001)
PARENT = Path(__file__).parents[2]


@pytest.fixture(params=["moto", "ceph"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def start_proxy(server):
    """A proxy before the server, and a bucket with one state in it."""
    with Forwarding(server.url) as proxy:
        yield proxy


@pytest.fixture
def bucket(server, bucket):
    bucket_store(server, bucket).save(net(0), "earlier")
    return bucket


def all_is_well(server, bucket, *keys, least=3):
    """Earlier states load, with empty caches, and the store passes `verify`."""
    model = net(9)
    store = bucket_store(server, bucket)
    store.load(model, StateKey(LINEAR, "earlier"))
    assert same(values(model), values(net(0)))
    for key in keys:
        store.load_state_dict(key)
    report = verify(store)
    assert report.findings == ()
    assert {StateKey(LINEAR, "earlier"), *keys} <= {*report.states}
    assert report.objects >= least


def slow_down(record):
    return Reply(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")


# Bad networks and servers.


def test_what_is_asked_too_often_is_asked_again_later(server, bucket, start_proxy):
    seen = Counter()

    def answer(record):
        seen[record.method, record.path] += 1
        return slow_down(record) if seen[record.method, record.path] == 1 else None

    start_proxy.answer = answer
    store = bucket_store(server, bucket, url=start_proxy.url)
    key = store.save(net(1), "a")
    model = net(2)
    store.load(model, key)
    assert same(values(model), values(net(1)))
    all_is_well(server, bucket, key, least=6)


def test_answers_that_are_lost_change_nothing(server, bucket, start_proxy):
    """The request was served, nobody heard of it, and it is sent again."""
    seen = Counter()

    def cut(record):
        seen[record.method, record.path] += 1
        return seen[record.method, record.path] == 1

    start_proxy.cut = cut
    store = bucket_store(server, bucket, url=start_proxy.url)
    key = store.save(net(1), "a")
    store.save(net(2), "a", overwrite=True)
    model = net(3)
    store.load(model, key)
    assert same(values(model), values(net(2)))
    assert sum(seen.values()) > len(seen)
    all_is_well(server, bucket, key)


def test_a_server_that_stays_busy_is_an_error_that_changes_nothing(server, bucket, start_proxy):
    store = bucket_store(server, bucket, url=start_proxy.url)
    store.get_state_keys()
    before = contents(server, bucket)
    start_proxy.answer = lambda record: slow_down(record) if record.method == "PUT" else None
    with pytest.raises(BucketError, match="fewer requests") as caught:
        store.save(net(1), "a")
    assert caught.value.transient
    assert contents(server, bucket) == before
    start_proxy.answer = lambda record: None
    all_is_well(server, bucket, store.save(net(1), "a"))


def test_downloads_that_are_cut_go_on(server, bucket, start_chaos):
    tensors = {"w": torch.randn(3000, 1000), "v": torch.randn(200, 300)}
    key = bucket_store(server, bucket).save_state_dict(tensors, StateKey(LINEAR, "big"))
    chaos = start_chaos(server.url)
    chaos.set(cut_after=700_000, reset=True, first=4)
    store = bucket_store(server, bucket, url=chaos.url)
    assert same(store.load_state_dict(key), tensors)
    assert chaos.counts().connections > 4


def test_a_server_that_always_cuts_is_an_error_and_loads_nothing(
    server, bucket, start_proxy, monkeypatch
):
    hasty = partial(BucketOptions, attempts=2, first_delay=0.01)
    monkeypatch.setattr("mlstate.stores.s3.BucketOptions", hasty)
    store = bucket_store(server, bucket, url=start_proxy.url)
    store.fetcher.retries = Retries(2, first=0.01, most=0.05)
    start_proxy.cut = lambda record: "/objects/" in record.path
    model = net(9)
    with pytest.raises(FetchError, match="s3://") as caught:
        store.load(model, StateKey(LINEAR, "earlier"))
    assert "AKTEST" not in str(caught.value)
    assert same(values(model), values(net(9)))
    start_proxy.cut = lambda record: False
    store.load(model, StateKey(LINEAR, "earlier"))
    assert same(values(model), values(net(0)))


@pytest.mark.parametrize("name", ["moto", "rclone", "ceph"])
def test_a_bit_that_flips_on_the_way_down_reaches_no_model(request, name, start_chaos):
    server = request.getfixturevalue(name)
    bucket = server.new_bucket()
    digest = Digest.of(BIG)
    place = bucket_place(server, bucket)
    place.client.put(f"objects/{digest[:2]}/{digest[2:]}", BIG)
    chaos = start_chaos(server.url, flip_at=1_000_000)
    store = BucketObjectStore(bucket_place(server, bucket, endpoint=chaos.url))
    with pytest.raises(IntegrityError):
        read_verified(store, digest, what="it")
    chaos.clear()
    chaos.drop()
    assert read_verified(store, digest, what="it") == BIG


# Large objects.


@pytest.mark.parametrize("name", ["moto", "rclone", "ceph"])
@pytest.mark.parametrize("size", [(8 << 20) - 1, 8 << 20, (8 << 20) + 1, 16 << 20, 20_000_001])
def test_objects_about_as_long_as_parts(request, name, size):
    server = request.getfixturevalue(name)
    bucket = server.new_bucket()
    store = BucketObjectStore(bucket_place(server, bucket))
    data = BIG[:size]
    digest = Digest.of(data)
    store.writer().put(digest, [data[:4096], memoryview(data)[4096:]])
    assert store.size(digest) == size
    assert check_objects(server, bucket) == 1
    with store.open(digest) as file:
        file.seek(size - 5)
        assert file.read() == data[-5:]


@pytest.mark.parametrize("name", ["moto", "rclone", "ceph"])
def test_a_large_object_that_changes_while_it_is_uploaded_is_never_seen(request, name):
    server = request.getfixturevalue(name)
    bucket = server.new_bucket()
    store = BucketObjectStore(bucket_place(server, bucket))
    digest = Digest.of(BIG)
    with pytest.raises(IntegrityError, match="changed"):
        store.writer().put(digest, [BIG[:-1], b"!"])
    assert store.size(digest) is None
    assert unfinished(server, bucket) == []
    assert check_objects(server, bucket) == 0


MEMORY = """
import re, sys, torch
from pathlib import Path
from mlstate import S3StateStore, StateKey
from tests.servers.s3 import S3Server
bucket, url, cache, count, size = sys.argv[1:]
store = S3StateStore(bucket, S3Server().session_kwargs, url, cache=cache)
store.save_state_dict({"warm": torch.ones(3_000_000)}, StateKey.parse("pytorch.net.warm"))
tensors = {f"{i}": torch.full((int(size) // 4,), i / 7) for i in range(int(count))}
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is there now
before = status("VmRSS")
store.save_state_dict(tensors, StateKey.parse("pytorch.net.big"))
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("large", [True, False])
def test_an_upload_needs_the_memory_of_its_parts(ceph, tmp_path, large):
    """Of a state that is three times as large as what is allowed."""
    size = 12 * PART if large else PART - 4096
    most = LARGE_AT_ONCE * PARTS_EACH * PART if large else S3StateStore.threads * PART
    arguments = [ceph.new_bucket(), ceph.url, tmp_path / "cache", 3 * most // size, size]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PARENT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < most + (16 << 20)


# Killed and racing savers.

SAVE = """
import sys, torch
from mlstate import S3StateStore, StateKey
from mlstate.errors import StateExistsError
from tests.servers.s3 import S3Server
from tests.support.models import net
bucket, url, cache, name, *seeds = sys.argv[1:]
store = S3StateStore(bucket, S3Server().session_kwargs, url, "models", cache=cache)
print("ready", flush=True)
sys.stdin.readline()
for seed in map(int, seeds):
    torch.manual_seed(seed)
    tensors = {"big": torch.randn(2_500_000), "small": torch.randn(9000)}
    try:
        store.save_state_dict(tensors, StateKey.parse(name))
        print("won", seed, flush=True)
    except StateExistsError:
        print("lost", seed, flush=True)
"""


def start(server, bucket, tmp_path, name, *seeds, url=None):
    arguments = [bucket, url or server.url, str(tmp_path / "cache"), name, *map(str, seeds)]
    return subprocess.Popen(
        [sys.executable, "-W", IGNORES.replace(".*", ""), "-c", SAVE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PARENT,
    )


@pytest.mark.filterwarnings(IGNORES)
@pytest.mark.parametrize("name", ["moto", "rclone", "ceph"])
def test_a_save_that_is_killed_anywhere_leaves_all_or_nothing(request, name, tmp_path):
    """Killed before its first, second, third... write, until one comes through."""
    server = request.getfixturevalue(name)
    bucket, key = server.new_bucket(), StateKey.parse("pytorch.net.killed")
    bucket_store(server, bucket).save(net(0), "earlier")
    with Forwarding(server.url) as proxy:
        for writes in range(20):
            left = [writes]
            child = start(server, bucket, tmp_path, str(key), 5, url=proxy.url)

            def kill(record, left=left, child=child):
                if record.method in ("PUT", "POST"):
                    left[0] -= 1
                    if left[0] < 0 and child.poll() is None:
                        os.kill(child.pid, signal.SIGKILL)
                        child.wait()

            proxy.answer = kill
            child.communicate("go\n", timeout=60)
            exists = bucket_store(server, bucket).exists(key)
            all_is_well(server, bucket, *([key] if exists else []))
            if child.returncode == 0:
                break
    assert exists
    assert writes >= 4  # large parts, the rest of the objects, and the state file
    abandoned = unfinished(server, bucket)
    assert abandoned
    swept = bucket_store(server, bucket).prune(grace_seconds=-60).swept
    assert [path for path in abandoned if not any(path in it for it in swept)] == []
    assert unfinished(server, bucket) == []
    all_is_well(server, bucket, key)


def race(server, bucket, tmp_path, seeds):
    name = "pytorch.net.raced"
    children = [start(server, bucket, tmp_path, name, seed) for seed in seeds]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    with ThreadPoolExecutor(len(children)) as pool:
        said = [*pool.map(lambda child: child.communicate(timeout=60), children)]
    assert [child.returncode for child in children] == [0] * len(children), said
    return [out.split()[0] for out, _ in said]


def test_of_processes_that_save_different_states_exactly_one_wins(server, bucket, tmp_path):
    results = race(server, bucket, tmp_path, range(4))
    assert sorted(results) == ["lost"] * 3 + ["won"]
    key = StateKey.parse("pytorch.net.raced")
    torch.manual_seed(results.index("won"))
    big = torch.randn(2_500_000)
    assert torch.equal(bucket_store(server, bucket).load_state_dict(key)["big"], big)
    all_is_well(server, bucket, key)


def test_processes_that_save_the_same_state_all_succeed(server, bucket, tmp_path):
    assert race(server, bucket, tmp_path, [7] * 3) == ["won"] * 3
    all_is_well(server, bucket, StateKey.parse("pytorch.net.raced"))


@pytest.mark.filterwarnings(IGNORES)
def test_where_conditions_are_ignored_a_race_still_ends_with_one_whole_state(rclone, tmp_path):
    bucket = rclone.new_bucket()
    bucket_store(rclone, bucket).save(net(0), "earlier")
    assert "won" in race(rclone, bucket, tmp_path, range(3))
    all_is_well(rclone, bucket, StateKey.parse("pytorch.net.raced"))


def test_damage_in_the_bucket_is_found_at_load(server, bucket):
    before = contents(server, bucket)
    victim = max(before, key=lambda name: len(before[name]))
    put(server, bucket, victim, before[victim][:-1] + b"!")
    model = net(9)
    with pytest.raises(FetchError, match="wrong bytes"):
        bucket_store(server, bucket).load(model, StateKey(LINEAR, "earlier"))
    assert same(values(model), values(net(9)))


@pytest.mark.parametrize("endpoint", ["::", "https://", "ftp://host", "host:9000", "https://["])
def test_an_endpoint_that_is_none_is_a_typed_error(monkeypatch, endpoint):
    """Some that pass for one end the client of buckets by a panic, which is no `Exception`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(MlstateError) as caught:
        S3StateStore("bucket").get_state_keys()
    assert "AWS_ENDPOINT_URL" in str(caught.value)

"""What has no end, of a size that nobody gives, ends soon; what cannot be used again is removed."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time

import pytest
import torch

from mlstate import lock
from mlstate.errors import FetchError, IntegrityError
from mlstate.fetch import attempts, download
from mlstate.fetch.fetcher import CONNECTIONS
from mlstate.fetch.object_mirror import read_state_object
from mlstate.fetch.plan import LARGE
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.stores.prune_folder import prune_folder
from mlstate.stores.statefiles import FolderStateFiles
from mlstate.transport import Transports
from tests.servers.recording import Reply, serve
from tests.support.fetching import (
    FILE,
    FILES,
    KEY,
    STORE,
    leftovers,
    manifest_store,
    publish,
    start_child,
    write_manifest,
)

KERNEL = 16 << 20  # what may wait in the buffers of a connection: bytes
JUNK = b"x" * (1 << 18)


def endless(front, cap=3 << 30):
    """A reply that begins so, and does not end."""
    parts = itertools.chain([front], itertools.repeat(JUNK, cap // len(JUNK)))
    return Reply(200, {"Content-Type": "application/octet-stream"}, parts)


def plain(length, text=b"{}"):
    return length.to_bytes(8, "little") + text


FRONTS = {
    "no header": JUNK,
    "a header beyond all bounds": plain(1 << 62),
    "a header of 90 MB": plain(90_000_000),
    "a header that says more than a state object has": plain(
        len(b'{"a":{"data_offsets":[0,1000000000]}}'), b'{"a":{"data_offsets":[0,1000000000]}}'
    ),
    "a right one that goes on": None,
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("kind", ["objects", "beside"])
def test_a_state_object_of_unknown_size_ends(recording_server, published, tmp_path, front, kind):
    right = published.read(published.state_object)
    data = right if FRONTS[front] is None else FRONTS[front]
    recording_server.before = lambda request: endless(data)
    where = (
        {"objects": [f"{recording_server.url}/{STORE}"]}
        if kind == "objects"
        else {"mirrors": [{"url": "missing", "state": f"{recording_server.url}/x"}]}
    )
    path = write_manifest(tmp_path / "m.toml", published, size=None, **where)
    store = manifest_store(path, tmp_path / "cache")
    with pytest.raises(FetchError) as caught:
        store.fetch(KEY)
    reason = caught.value.attempts[0][1]
    assert any(said in reason for said in ("larger", "no state object", "wrong bytes"))
    assert recording_server.bytes_sent <= KERNEL
    assert leftovers(tmp_path / "cache") == {}


def test_a_right_state_object_is_read_whatever_its_length(recording_server, published):
    right = published.read(published.state_object)
    recording_server.files = {"x": right}
    with Transports() as web:
        resource = web.open(recording_server.url + "/x")
        digest = published.entry.digest
        assert read_state_object(resource, digest, len(right)) == right
        with pytest.raises(IntegrityError, match="larger") as caught:
            read_state_object(resource, digest, len(right) - 1)
    assert "size" in caught.value.remedy


def test_a_file_of_a_state_ends_though_nobody_says_how_long_it_is(
    start_recording, published, tmp_path, monkeypatch
):
    monkeypatch.setattr(attempts, "_ROOM", 1 << 20)
    recording_server = start_recording(published.folder / STORE)
    labels = layout.object_path(published.entry.files["labels.json"].digest)
    recording_server.before = lambda request: (
        endless(FILES["labels.json"]) if request.name == labels else None
    )
    path = write_manifest(tmp_path / "m.toml", published, objects=[recording_server.url])
    with pytest.raises(FetchError, match=r"wrong length.*does not say how many"):
        manifest_store(path, tmp_path / "cache").fetch(KEY)
    assert recording_server.bytes_sent <= 2 * KERNEL
    assert leftovers(tmp_path / "cache") == {}


def test_a_checkpoint_ends_though_nobody_says_how_long_it_is(
    recording_server, published, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "_UNSAID", 1 << 20)
    recording_server.before = lambda request: endless(JUNK)
    mirror = {"url": f"{recording_server.url}/x.pth", "format": "torch"}
    path = write_manifest(
        tmp_path / "m.toml", published, mirrors=[mirror], digest=None, size=None, files={}
    )
    with pytest.raises(FetchError, match="does not say how many"):
        lock(path, cache=tmp_path / "cache")
    assert recording_server.bytes_sent <= KERNEL
    assert leftovers(tmp_path / "cache") == {}


# What a failed or killed `lock` leaves


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tensor that comes in segments, and two that are staged whole."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"a": LARGE + 5_000_000, "b": 200_000, "c": 300_000}
    tensors = {
        name: torch.randint(0, 99, (size,), dtype=torch.int8, generator=generator)
        for name, size in sizes.items()
    }
    published = publish(tmp_path_factory.mktemp("large"), KEY, tensors)
    torch.save(dict(tensors), published.folder / "model.pth")
    return published


def breaking(server, requests, after):
    """Let a server refuse all but the first requests, once so many bytes of these were sent."""
    asked = itertools.count(1)

    def before(request):
        if next(asked) > requests:
            end = time.monotonic() + 30
            while server.bytes_sent <= after and time.monotonic() < end:
                time.sleep(0.01)
            return Reply(403)
        return serve(request, server.files / request.name)

    server.before = before


def lockable(folder, state, server, kind):
    mirror = f"{server.url}/{FILE}"
    if kind == "torch":
        mirror = {"url": f"{server.url}/model.pth", "format": "torch"}
    return write_manifest(
        folder / "m.toml", state, mirrors=[mirror], digest=None, size=None, files={}
    )


KILLED = """
import sys
from mlstate import lock
lock(sys.argv[1], cache=sys.argv[2])
"""


def temporaries(cache):
    """What lies in tmp/, but for locks."""
    names = [path.name for path in (cache / layout.TEMPORARIES).iterdir()]
    return [name for name in names if not name.endswith(layout.LOCK_SUFFIX)]


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_lock_that_fails_leaves_nothing(large, start_recording, tmp_path, kind):
    server = start_recording(large.folder)
    path = lockable(tmp_path, large, server, kind)
    breaking(server, 4, 20_000_000)
    with pytest.raises(FetchError):
        lock(path, cache=tmp_path / "cache")
    assert server.bytes_sent > 20_000_000
    assert temporaries(tmp_path / "cache") == []


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_what_a_killed_lock_leaves_is_gone_after_the_next(
    large, start_recording, tmp_path, kind, start_chaos
):
    server = start_recording(large.folder)
    chaos = start_chaos(server.url, rate=20_000_000)
    server.url = chaos.url
    path = lockable(tmp_path, large, server, kind)
    cache = tmp_path / "cache"
    child = start_child(
        "import sys; from mlstate import lock; lock(sys.argv[1], cache=sys.argv[2])", path, cache
    )
    end = time.monotonic() + 60
    while server.bytes_sent < 12_000_000 and time.monotonic() < end:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert temporaries(cache)
    chaos.clear()
    lock(path, cache=cache)
    # At most the object that was just arriving is left: it may be another process's for an hour.
    left = [cache / layout.TEMPORARIES / name for name in temporaries(cache)]
    assert all(re.fullmatch("[0-9a-f]{32}", one.name) for one in left)
    assert len(left) <= CONNECTIONS
    for one in left:
        os.utime(one, (time.time() - 7200, time.time() - 7200))
    prune_folder(FolderStateFiles(cache), FolderObjectStore(cache), grace_seconds=0)
    assert temporaries(cache) == []

"""Servers that lie: nothing false is kept, nothing goes on for ever, and no secret gets out."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import time
import traceback
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from urllib3.connection import HTTPConnection

from mlstate import StateKey, lock
from mlstate.errors import FetchError, ManifestError
from mlstate.fetch import attempts
from mlstate.format.state_object import StateObject
from mlstate.locations import parse_mirror
from tests.servers.liar import LIES
from tests.servers.recording import Reply
from tests.support.fetching import (
    FILE,
    STORE,
    check_cache,
    leftovers,
    manifest_store,
    publish,
    write_manifest,
)
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")
LABELS = b"[1, 2, 3]" * 5000
ROOM = 1 << 20
HASTY = {
    "connect_timeout": 5,
    "read_timeout": 0.3,
    "low_speed": 10_000,
    "low_speed_seconds": 0.4,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One tensor inside the state object, and two outside."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.rand(size, generator=generator)
        for name, size in [("bias", 100), ("w1", 75_000), ("w2", 25_000)]
    }
    published = publish(tmp_path_factory.mktemp("small"), KEY, tensors, {"labels.json": LABELS})
    torch.save(tensors, published.folder / "model.pth")
    (published.folder / "labels.json").write_bytes(LABELS)
    return published


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """What a file may have beside the state is a constant of 1 GiB: too much for a quick test."""
    monkeypatch.setattr(attempts, "_ROOM", ROOM)


@pytest.fixture
def honest(start_recording, small):
    return start_recording(small.folder)


# What a liar can be: each with what it lies about, and the manifest's mirrors (its own, then
# perhaps an honest one).


def as_file(small, honest, *bases):
    return {"mirrors": [f"{base}/{FILE}" for base in bases]}


def as_file_with_state(small, honest, *bases):
    state = f"{honest}/{small.state_object}"
    return {"mirrors": [{"url": f"{base}/{FILE}", "state": state} for base in bases]}


def as_state(small, honest, base, *others):
    url = f"{honest}/{FILE if others else 'missing'}"
    return {"mirrors": [{"url": url, "state": f"{base}/state"}]}


def as_objects(small, honest, *bases):
    return {"objects": [base if base != honest else f"{base}/{STORE}" for base in bases]}


def as_checkpoint(small, honest, *bases):
    return {"mirrors": [{"url": f"{base}/model.pth", "format": "torch"} for base in bases]}


def as_state_file(small, honest, *bases):
    mirrors = tuple(parse_mirror(f"{base}/labels.json") for base in bases)
    file = replace(small.entry.files["labels.json"], mirrors=mirrors)
    return {"mirrors": [f"{honest}/{FILE}"], "files": {"labels.json": file}}


def object_of(small, name):
    state = StateObject.parse(small.read(small.state_object))
    return small.path_of(state.refs[name].digest)


ROLES = {
    "file": (as_file, lambda small: small.read(FILE)),
    "file with state": (as_file_with_state, lambda small: small.read(FILE)),
    "state": (as_state, lambda small: small.read(small.state_object)),
    "objects, the state": (as_objects, lambda small: small.read(small.state_object)),
    "objects, a tensor": (as_objects, lambda small: small.read(object_of(small, "w1"))),
    "checkpoint": (as_checkpoint, lambda small: small.read("model.pth")),
    "file of the state": (as_state_file, lambda small: LABELS),
}
HARMLESS = {  # lies about ranges where none is asked for
    (role, lie)
    for role in ("objects, a tensor", "file of the state")
    for lie in ("range-shifted", "range-other-total", "range-ignored")
}
KERNEL = 8 << 20  # what may wait in the buffers of a connection, unread: bytes


@pytest.fixture(autouse=True)
def small_receive_buffers():
    """Receive buffers of 2 MiB: the system lets them grow to any size, which `KERNEL` counts."""
    option = (socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    HTTPConnection.default_socket_options.append(option)
    yield
    HTTPConnection.default_socket_options.remove(option)


def most_sent(role, small):
    """How much of an endless lie may be read: the size of the thing, or what it could have."""
    if role in ("checkpoint", "file of the state"):
        return 4 * small.nbytes + ROOM
    if role in ("state", "objects, the state"):
        return 100_000_008 + small.nbytes
    return 2 * small.nbytes


@pytest.fixture
def prepare(tmp_path, small, honest, start_liar):
    """A liar in some role, and a function that makes a store with its mirrors."""

    def make(role, lie, **options):
        given, content = ROLES[role]
        data = content(small)
        liar = start_liar(data, wrong_from=min(10_000, len(data) // 2), **options)
        base = liar.url(lie).rpartition("/")[0]

        def store(*others):
            path = tmp_path / "manifest.toml"
            changes = {"files": {}, **given(small, honest.url, base, *others)}
            write_manifest(path, small, **changes)
            return manifest_store(path, tmp_path / "cache", attempts=2, **HASTY)

        if role == "objects, a tensor":  # all else is there already
            path = tmp_path / "before.toml"
            write_manifest(path, small, objects=[f"{honest.url}/{STORE}"], files={})
            manifest_store(path, tmp_path / "cache").fetch(KEY, names=["bias", "w2"])
        return liar, store

    return make


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "drip"])
@pytest.mark.parametrize("role", ROLES)
def test_no_lie_is_believed_or_goes_on_for_long(role, lie, prepare, small, tmp_path):
    liar, store = prepare(role, lie)
    began = time.monotonic()
    if (role, lie) in HARMLESS:
        store().fetch(KEY)
    else:
        with pytest.raises(FetchError) as caught:
            store().fetch(KEY)
        assert caught.value.key == KEY
        # Who is right about the state object, and has nothing else, is blamed for nothing.
        blamed = any(f":{liar.port}/" in place for place, _ in caught.value.attempts)
        assert blamed or (role == "state" and lie.startswith("range-"))
    assert time.monotonic() - began < 5
    assert liar.sent() <= most_sent(role, small) + KERNEL
    assert len(liar.requests) <= 22  # twice ten redirects
    assert leftovers(tmp_path / "cache") == {}
    check_cache(tmp_path / "cache")


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "drip"])
@pytest.mark.parametrize("role", ROLES)
def test_after_any_lie_the_honest_mirror_is_used(role, lie, prepare, small, honest):
    _, store = prepare(role, lie)
    fetching = store(honest.url)
    fetching.fetch(KEY)
    assert leftovers(fetching.objects.own.root) == {}
    check_cache(fetching.objects.own.root)
    assert same(fetching.load_state_dict(KEY), dict(small.tensors))
    if role == "file of the state":
        assert fetching.files(KEY)["labels.json"] == LABELS


@pytest.mark.parametrize("role", ["file", "objects, a tensor"])
def test_a_drip_does_not_keep_the_fetch_for_ever(role, prepare, small, honest):
    liar, store = prepare(role, "drip", drip_seconds=0.05)
    fetching = store(honest.url)
    done = []
    thread = Thread(target=lambda: done.append(fetching.fetch(KEY)))
    thread.start()
    thread.join(2)
    in_time = bool(done)
    liar.close()  # which ends the drip
    thread.join()
    assert same(fetching.load_state_dict(KEY), dict(small.tensors))
    assert in_time


# Headers


def plain(header, size=0):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry_of(start, stop, dtype="F32", shape=None):
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


MALFORMED = {
    "nothing": b"",
    "no JSON": plain(b"{nonsense"),
    "not UTF-8": plain(b'{"\xff":1}'),
    "deep lists": plain(b"[" * 60_000),
    "deep tables": plain(b'{"a":' * 10_000),
    "a list": plain([]),
    "a long number": plain(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"),
    "a name twice": plain(b'{"a":1,"a":2}'),
    "no places": plain({"w1": {"dtype": "F32", "shape": [1]}}, 4),
    "a gap": plain({"w1": entry_of(4, 8)}, 8),
    "an overlap": plain({"w1": entry_of(0, 8), "w2": entry_of(4, 12)}, 12),
    "a negative place": plain({"w1": entry_of(-4, 0)}),
    "a negative shape": plain({"w1": entry_of(0, 4, shape=[-1, -1])}, 4),
    "a huge shape": plain({"w1": entry_of(0, 4, shape=[1 << 62, 1 << 62])}, 4),
    "a place that is true": plain({"w1": {**entry_of(0, 4), "data_offsets": [False, 4]}}, 4),
    "an unknown type": plain({"w1": entry_of(0, 4, dtype="X32")}, 4),
    "a reserved name": plain({"mlstate.x": entry_of(0, 4)}, 4),
    "no tensors": plain({}),
    "more than the state": plain({"w1": entry_of(0, 1 << 20)}, 1 << 20),
    "bytes after the end": plain({"w1": entry_of(0, 4)}, 5),
    "a file that is too short": plain({"w1": entry_of(0, 400)}, 5),
}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_is_refused(what, ranges, small, tmp_path, start_recording):
    server = start_recording({"a": MALFORMED[what]}, ranges=ranges)
    path = write_manifest(tmp_path / "m.toml", small, mirrors=[f"{server.url}/a"], files={})
    with pytest.raises(FetchError) as caught:
        manifest_store(path, tmp_path / "cache").fetch(KEY)
    ((place, reason),) = caught.value.attempts
    assert place == f"{server.url}/a"
    assert reason
    assert check_cache(tmp_path / "cache") == 0
    assert leftovers(tmp_path / "cache") == {}


@pytest.mark.parametrize("size", [None, "given"])
def test_a_tensor_of_2_to_the_60_bytes_takes_no_room(size, small, tmp_path, recording_server):
    huge = 1 << 60
    front = plain({"w1": entry_of(0, huge)})
    total = len(front) + huge

    def before(request):
        start, stop = (int(text) for text in request.range.removeprefix("bytes=").split("-"))
        given = f"bytes {start}-{stop}/{total}"
        length = stop + 1 - start
        headers = {"Content-Range": given, "Content-Length": str(length)}
        return Reply(206, headers, (front + bytes(1 << 16))[start : stop + 1])

    recording_server.before = before
    changes = {"files": {}, **({"size": None} if size is None else {})}
    mirrors = [f"{recording_server.url}/a"]
    path = write_manifest(tmp_path / "m.toml", small, mirrors=mirrors, **changes)
    with pytest.raises(FetchError, match="more than the state"):
        manifest_store(path, tmp_path / "cache").fetch(KEY)
    assert len(recording_server.requests) == 1
    assert leftovers(tmp_path / "cache") == {}


@pytest.mark.parametrize(
    "shard", ["../secret", "/etc/passwd", "http://127.0.0.1:9/a", "file:///etc/passwd", "a\\b", ""]
)
def test_an_index_does_not_lead_elsewhere(shard, small, tmp_path, start_recording):
    index = json.dumps({"weight_map": {"w1": shard}}).encode()
    server = start_recording({"f/m.safetensors.index.json": index, "secret": small.read(FILE)})
    mirrors = [f"{server.url}/f/m.safetensors.index.json"]
    path = write_manifest(tmp_path / "m.toml", small, mirrors=mirrors, files={})
    with pytest.raises(FetchError, match="not a valid name"):
        manifest_store(path, tmp_path / "cache").fetch(KEY)
    assert len(server.requests) == 1


# States that are not pinned


@pytest.fixture
def unpinned(small, tmp_path):
    def make(*mirrors):
        changes = {"mirrors": mirrors, "digest": None, "size": None, "files": {}}
        return write_manifest(tmp_path / "unpinned.toml", small, **changes)

    return make


def pin(path, max_size):
    return lock(path, cache=path.parent / "cache", max_size=max_size)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_an_unpinned_state_is_taken_up_to_max_size(
    ranges, length, small, unpinned, start_recording
):
    server = start_recording(small.folder, ranges=ranges)
    if not length:
        server.before = lambda request: Reply(200, {}, iter([small.read(FILE)]))
    path = unpinned(f"{server.url}/{FILE}")
    text = path.read_text()
    with pytest.raises(FetchError, match="max_size") as caught:
        pin(path, small.nbytes - 1)
    assert caught.value.key == KEY
    assert path.read_text() == text
    assert check_cache(path.parent / "cache") == 0
    assert leftovers(path.parent / "cache") == {}
    assert pin(path, 2 * small.nbytes)[KEY].digest == small.entry.digest


@pytest.mark.parametrize("lie", ["endless-body", "endless-chunks", "length-huge"])
@pytest.mark.parametrize("form", ["safetensors", "torch", "torch-gzip"])
def test_of_an_unpinned_state_no_more_comes_than_max_size(lie, form, unpinned, start_liar):
    liar = start_liar(plain({"w1": entry_of(0, 40_000)}, 40_000))
    path = unpinned({"url": liar.url(lie), "format": form})
    with pytest.raises(FetchError):
        pin(path, 100_000)
    assert liar.sent() <= 100_000 + KERNEL
    assert leftovers(path.parent / "cache") == {}


@pytest.mark.parametrize("form", ["torch", "torch-gzip"])
def test_a_checkpoint_is_taken_up_to_max_size(form, small, unpinned, start_recording):
    data = small.read("model.pth")
    data = gzip.compress(data, 1) if form == "torch-gzip" else data
    server = start_recording({"a": data})
    server.before = lambda request: Reply(200, {}, iter([data]))
    path = unpinned({"url": f"{server.url}/a", "format": form})
    with pytest.raises(FetchError, match=r"max_size|at most"):
        pin(path, 200_000)
    assert leftovers(path.parent / "cache") == {}
    assert pin(path, 1_000_000)[KEY].digest == small.entry.digest


# Secrets


SECRET = "s3cret-t0ken"


@pytest.mark.parametrize("where", ["mirror", "state", "objects", "file"])
def test_a_password_in_an_address_is_refused(where, small, tmp_path):
    url = f"https://user:{SECRET}@example.org/a"
    lines = {
        "mirror": f'mirrors = ["{url}"]',
        "state": f'mirrors = [{{ url = "https://example.org/a", state = "{url}" }}]',
        "objects": "",
        "file": f'files."a" = {{ blake3 = "{small.entry.digest}", mirrors = ["{url}"] }}',
    }
    objects = f'objects = ["{url}"]\n' if where == "objects" else ""
    path = tmp_path / "m.toml"
    path.write_text(
        f'version = 1\n{objects}[states."{KEY}"]\nblake3 = "{small.entry.digest}"\n{lines[where]}\n'
    )
    with pytest.raises(ManifestError, match="user name or password") as caught:
        manifest_store(path, tmp_path / "cache")
    assert SECRET not in shown(caught.value)


def shown(error):
    return "".join(traceback.format_exception(error)) + str(error) + repr(error.__dict__)


def in_token(monkeypatch, server):
    monkeypatch.setenv("MLSTATE_TOKEN_127_0_0_1", SECRET)


def in_netrc(monkeypatch, server):
    Path(os.environ["NETRC"]).write_text(f"machine 127.0.0.1 login me password {SECRET}\n")


def in_config(monkeypatch, server):
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "tokens.toml"
    path.write_text(f'[tokens]\n"127.0.0.1:{server.port}" = "{SECRET}"\n')
    monkeypatch.setenv("MLSTATE_CONFIG", str(path))


CREDENTIALS = {"token": in_token, "netrc": in_netrc, "config": in_config}


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("form", ["file", "objects"])
def test_a_credential_stays_with_its_server_on_a_redirect(kind, form, watched, small, monkeypatch):
    origin, other, store, caplog = watched(form)
    CREDENTIALS[kind](monkeypatch, origin)
    fetching = store()
    fetching.fetch(KEY)
    assert same(fetching.load_state_dict(KEY), dict(small.tensors))
    assert origin.requests
    assert all(request.authorization for request in origin.requests)
    assert other.requests
    assert not any(request.authorization for request in other.requests)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("form", ["file", "objects"])
def test_no_secret_is_in_an_error_or_a_log(kind, form, watched, monkeypatch):
    origin, other, store, caplog = watched(form, "?X-Amz-Signature=" + SECRET)
    CREDENTIALS[kind](monkeypatch, origin)
    other.before = lambda request: Reply(403, {}, SECRET.encode())
    with pytest.raises(FetchError, match="HTTP 403") as caught:
        store().fetch(KEY)
    assert SECRET not in shown(caught.value)
    assert SECRET not in caplog.text


@pytest.fixture
def watched(small, tmp_path, start_recording, caplog):
    """A server that redirects to another one, and a store that fetches from it."""
    caplog.set_level(logging.DEBUG)

    def make(form, query=""):
        other = start_recording(small.folder)
        origin = start_recording(
            before=lambda request: Reply.redirect(f"{other.url}/{request.name}{query}")
        )
        given = (
            {"objects": [f"{origin.url}/{STORE}"]}
            if form == "objects"
            else {"mirrors": [f"{origin.url}/{FILE}{query}"]}
        )
        path = write_manifest(tmp_path / "m.toml", small, files={}, **given)
        return origin, other, lambda: manifest_store(path, tmp_path / "cache"), caplog

    return make


def test_no_signature_of_a_mirror_that_cannot_be_used_is_shown(small, tmp_path):
    odd = [
        f"ftp://host/a?sig={SECRET}",
        f"s3://bucket/a?sig={SECRET}",
        {"url": f"http://127.0.0.1:9/a?sig={SECRET}", "token": SECRET},
        {"urls": [f"http://127.0.0.1:9/a?sig={SECRET}"], "format": "later"},
        {
            "url": f"http://127.0.0.1:9/a?sig={SECRET}",
            "state": f"http://127.0.0.1:9/b?sig={SECRET}",
        },
    ]
    path = write_manifest(tmp_path / "m.toml", small, mirrors=odd, files={})
    with pytest.raises(FetchError) as caught:
        manifest_store(path, tmp_path / "cache", attempts=1).fetch(KEY)
    assert len(caught.value.attempts) == 6
    assert SECRET not in shown(caught.value)

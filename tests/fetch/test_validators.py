"""Servers behind one address, each with its own name for a version of the same file."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from mlstate import Manifest, lock
from mlstate.errors import FetchError
from mlstate.fetch.plan import LARGE
from tests.servers.recording import serve
from tests.support.fetching import (
    FILE,
    KEY,
    STORE,
    check_cache,
    leftovers,
    manifest_store,
    publish,
    write_manifest,
)
from tests.support.models import same

NAMES = {
    "strong": lambda n: {"ETag": f'"{n}"'},
    "weak, with a date": lambda n: {
        "ETag": f'W/"{n}"',
        "Last-Modified": f"Mon, 0{n + 1} Jan 2024 00:00:00 GMT",
    },
    "a date": lambda n: {"Last-Modified": f"Mon, 0{n + 1} Jan 2024 00:00:00 GMT"},
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tensor that comes in segments, and some that do not."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"a": LARGE + 1_000_000, "b": 200_000, "c": 300_000, "d": 100}
    tensors = {
        name: torch.randint(0, 99, (size,), dtype=torch.int8, generator=generator)
        for name, size in sizes.items()
    }
    published = publish(tmp_path_factory.mktemp("large"), KEY, tensors)
    torch.save(dict(tensors), published.folder / "model.pth")
    return published


def alternating(server, names, other=None):
    """Let each request be answered by another of two hosts; ``other`` has files of its own."""
    folders = itertools.cycle([server.files, other or server.files])
    numbers = itertools.cycle([0, 1])

    def before(request):
        number, folder = next(numbers), next(folders)
        if not (folder / request.name).is_file():
            return None
        reply = serve(request, folder / request.name)
        kept = {k: v for k, v in reply.headers.items() if k not in ("ETag", "Last-Modified")}
        return replace(reply, headers={**kept, **names(number)})

    server.before = before


def mirrors(kind, server):
    match kind:
        case "objects":
            return {"objects": [f"{server.url}/{STORE}"]}
        case "file":
            return {"mirrors": [f"{server.url}/{FILE}"]}
    return {"mirrors": [{"url": f"{server.url}/model.pth", "format": "torch"}]}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("kind", ["objects", "file", "torch"])
def test_the_digest_decides_where_hosts_disagree(large, start_recording, tmp_path, kind, names):
    server = start_recording(large.folder)
    alternating(server, NAMES[names])
    path = write_manifest(tmp_path / "m.toml", large, files={}, **mirrors(kind, server))
    store = manifest_store(path, tmp_path / "cache")
    store.fetch(KEY)
    check_cache(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == {}
    assert same(store.load_state_dict(KEY), dict(large.tensors))
    assert server.bytes_sent < 3 * large.nbytes
    assert len(server.requests) < 40


@pytest.mark.parametrize("kind", ["file", "torch"])
def test_a_state_that_nobody_knows_comes_in_one_piece(large, start_recording, tmp_path, kind):
    server = start_recording(large.folder)
    alternating(server, NAMES["strong"])
    given = mirrors(kind, server)
    path = write_manifest(tmp_path / "m.toml", large, digest=None, size=None, files={}, **given)
    lock(path, cache=tmp_path / "cache")
    assert Manifest.read(path).states[KEY].digest == large.entry.digest
    assert sum(request.range is None for request in server.requests) == 1


@pytest.mark.parametrize("kind", ["file", "torch"])
def test_two_versions_are_never_mixed(large, start_recording, tmp_path, kind):
    """Half of the hosts has other weights: one state or the other comes, or none."""
    other = publish(tmp_path / "other", KEY, {n: t + 1 for n, t in large.tensors.items()})
    torch.save(dict(other.tensors), other.folder / "model.pth")
    server = start_recording(large.folder)
    alternating(server, NAMES["strong"], other.folder)
    given = mirrors(kind, server)
    path = write_manifest(tmp_path / "m.toml", large, digest=None, size=None, files={}, **given)
    lock(path, cache=tmp_path / "cache")
    found = Manifest.read(path).states[KEY].digest
    assert found in (large.entry.digest, other.entry.digest)


def test_a_host_that_never_agrees_with_itself_ends(large, start_recording, tmp_path, start_chaos):
    """Each reply has another name, and none is whole."""
    server = start_recording(large.folder)
    names = itertools.count()
    alternating(server, lambda n: {"ETag": f'"{next(names)}"'})
    chaos = start_chaos(server.url, cut_after=5_000_000)
    server.url = chaos.url
    path = write_manifest(tmp_path / "m.toml", large, files={}, **mirrors("file", server))
    with pytest.raises(FetchError, match="changed while it was read"):
        manifest_store(path, tmp_path / "cache").fetch(KEY)
    assert len(server.requests) < 60


def test_the_digest_decides_where_the_hosts_of_a_bucket_disagree(
    large, start_recording, tmp_path, monkeypatch
):
    server = start_recording(large.folder.parent)
    date = "Mon, 01 Jan 2024 00:00:00 GMT"
    alternating(server, lambda n: {"ETag": f'"{n}"', "Last-Modified": date})
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    mirror = f"s3://{large.folder.name}/{FILE}"
    path = write_manifest(tmp_path / "m.toml", large, files={}, mirrors=[mirror])
    store = manifest_store(path, tmp_path / "cache")
    store.fetch(KEY)
    assert same(store.load_state_dict(KEY), dict(large.tensors))
    assert len(server.requests) < 40

"""Headers and indexes of mirrors: what they may take depends on the state, not on the mirror."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import contextmanager

import pytest
import torch

from mlstate.errors import FetchError, FormatError
from mlstate.fetch.header import HeaderRoom, fetch_header
from mlstate.transport.local import LocalResource
from tests.support.fetching import FILE, KEY, TENSORS, manifest_store, publish, write_manifest
from tests.support.models import same

MIB = 1 << 20


@contextmanager
def peak_below(most):
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def bomb(length):
    """A header that is JSON, of the longest kind in memory for its length."""
    text = b'{"__metadata__":{' + b",".join(b'"%d":"ab"' % i for i in range(length // 14)) + b"}}"
    return len(text).to_bytes(8, "little") + text


@pytest.fixture
def published(tmp_path):
    return publish(tmp_path / "published", KEY, TENSORS)


@pytest.mark.parametrize("pinned", [True, False])
def test_six_headers_of_one_index_take_no_more_than_the_state_may_need(tmp_path, published, pinned):
    names = [f"shard{i}.safetensors" for i in range(6)]
    for name in names:
        (published.folder / name).write_bytes(bomb(20 * MIB))
    index = published.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    url = str(index)
    mirror = {"url": url, "state": str(published.folder / published.state_object)}
    manifest = write_manifest(tmp_path / "a.toml", published, mirrors=[mirror if pinned else url])
    store = manifest_store(manifest, tmp_path / "cache")
    with peak_below(64 * MIB), pytest.raises(FetchError, match="too long for this state"):
        store.fetch(KEY)


def test_an_index_is_as_long_as_the_state_may_need(tmp_path, published):
    index = published.folder / "model.safetensors.index.json"
    index.write_bytes(b'{"weight_map":{"a":"' + b"b" * (20 * MIB) + b'"}}')
    manifest = write_manifest(tmp_path / "a.toml", published, mirrors=[str(index)])
    with peak_below(64 * MIB), pytest.raises(FetchError, match="index of shards is too long"):
        manifest_store(manifest, tmp_path / "cache").fetch(KEY)


def test_a_mirror_with_a_bomb_is_passed_over(tmp_path, published):
    (published.folder / "bomb.safetensors").write_bytes(bomb(20 * MIB))
    mirrors = [str(published.folder / name) for name in ("bomb.safetensors", FILE)]
    manifest = write_manifest(tmp_path / "a.toml", published, mirrors=mirrors)
    with pytest.warns(UserWarning, match=r"bomb\.safetensors"):
        assert same(manifest_store(manifest, tmp_path / "cache").load_state_dict(KEY), TENSORS)


def test_a_small_state_may_have_much_metadata(tmp_path, published):
    from safetensors.torch import save_file

    metadata = {"recipe": "x" * (6 * MIB)}
    save_file(dict(TENSORS), published.folder / FILE, metadata)
    manifest = write_manifest(
        tmp_path / "a.toml", published, mirrors=[str(published.folder / FILE)]
    )
    assert same(manifest_store(manifest, tmp_path / "cache").load_state_dict(KEY), TENSORS)


def test_room_is_given_back_after_an_error(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / FILE
    save_file({"a": torch.ones(3)}, path, {"x": "y" * (5 * MIB)})
    room = HeaderRoom(0)
    resource = LocalResource(path)
    with pytest.raises(ZeroDivisionError), room.header(5 * MIB, resource):
        raise ZeroDivisionError
    assert list(fetch_header(resource, 100, room).tensors) == ["a"]
    with pytest.raises(FormatError, match="too long for this state"):
        fetch_header(resource, 100, room)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 4300 + b"]}}",
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1e999,NaN]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}',
        b'{"\xed\xa0\x80":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode("utf-16"),
    ],
)
def test_odd_json_is_refused_by_an_error_that_can_be_shown(tmp_path, text):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0")
    with pytest.raises(FormatError) as caught:
        fetch_header(LocalResource(path), 1000)
    assert len(str(caught.value)) < 2000


def test_no_memory_for_a_header_is_an_error_of_ours(tmp_path, published, monkeypatch):
    from mlstate import texts

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(texts.json, "loads", full)
    resource = LocalResource(published.folder / FILE)
    with pytest.raises(FormatError, match="not enough memory to read the header"):
        fetch_header(resource, 1000)
    with (
        pytest.raises(FormatError, match="not enough memory to read the header"),
        HeaderRoom().header(1000, resource),
    ):
        full()

"""A damaged cache is mended before a state goes on from it: to a folder, a bundle, a program."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mlstate import LocalStateStore, Manifest, ManifestStore, StateKey, bundle, unbundle
from mlstate.errors import IntegrityError

KEY = StateKey.parse("pytorch.net.a")
WAYS = {
    "materialize": lambda store, out: store.materialize(KEY, out / "folder"),
    "bundle": lambda store, out: bundle(store, [KEY], out / "x.tar", overwrite=True),
    "fetch of the state object": lambda store, out: store.fetch(KEY),
}


@pytest.fixture
def source(tmp_path):
    source = LocalStateStore(tmp_path / "source")
    source.save_state_dict({"w": torch.arange(10_000.0), "b": torch.ones(3)}, KEY)
    return source


def cached(source, tmp_path, **changes):
    """A store whose cache has the state; of its manifest everything but `changes` is right."""
    entry = replace(source.get(KEY).entry, objects=("source",))
    Manifest({KEY: entry}, objects=("source",)).write(tmp_path / "weights.toml")
    ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache").fetch(KEY)
    Manifest({KEY: replace(entry, **changes)}).write(tmp_path / "changed.toml")
    return ManifestStore(tmp_path / "changed.toml", cache=tmp_path / "cache")


def damage(store, way):
    victims = {"fetch of the state object": store.digest(KEY)}
    largest = max(store.objects.own.root.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    path = store.objects.own.path(victims[way]) if way in victims else largest
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_it_is_mended_and_a_warning_says_so(way, source, tmp_path):
    store = cached(source, tmp_path)
    path = damage(store, way)
    with pytest.warns(UserWarning, match="was damaged in the cache"):
        WAYS[way](store, tmp_path)
    digest = path.parent.name + path.name
    assert path.read_bytes() == source.objects.path(digest).read_bytes()
    assert len(list((tmp_path / "cache" / "trash").glob(f"{digest}.damaged.*"))) == 1
    WAYS[way](store, tmp_path)  # and without a warning
    if way == "bundle":
        assert unbundle(tmp_path / "x.tar", tmp_path / "there") == [KEY]


@pytest.mark.parametrize("way", WAYS)
def test_without_a_mirror_it_is_reported_and_left_in_place(way, source, tmp_path):
    store = cached(source, tmp_path, objects=())
    path = damage(store, way)
    before = path.read_bytes()
    with pytest.raises(IntegrityError) as caught:
        WAYS[way](store, tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert not (tmp_path / "x.tar").exists()
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("way", ["materialize", "bundle"])
def test_a_store_of_ones_own_is_reported_too(way, source, tmp_path):
    path = max(source.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(IntegrityError, match="damaged"):
        WAYS[way](source, tmp_path)

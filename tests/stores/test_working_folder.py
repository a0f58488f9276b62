"""Stores that were opened by a relative path, when the working folder is another, or removed."""

from __future__ import annotations

import os
import pickle
import subprocess

import pytest
import torch

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    bundle,
    copy,
    manifest_of,
    unbundle,
    usage,
    verify,
)
from mlstate.errors import MlstateError, StoreNotFoundError
from tests.support.commands import PROGRAM, Shell
from tests.support.models import LINEAR, net, same, values

KEY = StateKey(LINEAR, "a")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Two folders; the working folder is the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    monkeypatch.chdir(first)
    return second


def test_a_store_stays_where_it_was_opened(elsewhere):
    store = LocalStateStore("rel")
    store.save(net(1), "a")
    os.chdir(elsewhere)
    assert store.get_state_keys() == [KEY]
    assert same(store.load_state_dict(KEY), values(net(1)))
    store.save(net(2), "b")
    assert verify(store).ok
    store.prune()
    assert usage(store).states
    store.delete(KEY)
    again = pickle.loads(pickle.dumps(store))
    assert [str(key) for key in again.get_state_keys()] == ["pytorch.net.b"]
    assert os.listdir(elsewhere) == []
    assert repr(store) == "LocalStateStore('rel')"


@pytest.mark.parametrize("objects", ["rel", "./rel"])
def test_a_manifest_its_mirrors_and_its_cache_stay_where_they_were(elsewhere, objects):
    first = LocalStateStore("rel")
    first.save(net(1), "a", files={"f": b"1"})
    manifest_of(first, objects=[objects]).write("m.toml")
    store = ManifestStore("m.toml", cache="cache")
    whole = ManifestStore(Manifest.read("m.toml"), cache="cache")
    os.chdir(elsewhere)
    for each in (store, whole):
        assert same(each.load_state_dict(KEY), values(net(1)))
        assert dict(each.files(KEY)) == {"f": b"1"}
        assert verify(each).ok
    assert store.path.read_text().startswith("version")
    store.materialize(KEY, elsewhere / "out")
    assert os.listdir(elsewhere) == ["out"]


def test_a_setting_that_is_relative_stays_where_it_was_read(elsewhere, monkeypatch):
    first = LocalStateStore("rel")
    first.save(net(1), "a")
    manifest_of(first, objects=["rel"]).write("m.toml")
    monkeypatch.setenv("MLSTATE_CACHE", "cache")
    store = ManifestStore("m.toml")
    os.chdir(elsewhere)
    store.fetch(KEY)
    assert os.listdir(elsewhere) == []


def test_bundles_and_copies_go_where_they_are_named(elsewhere, tmp_path):
    store = LocalStateStore("rel")
    store.save(net(1), "a")
    os.chdir(elsewhere)
    bundle(store, [KEY], "b.tar")
    unbundle("b.tar", LocalStateStore("here"))
    copy(store, LocalStateStore("copy"), [KEY])
    assert sorted(os.listdir(elsewhere)) == ["b.tar", "copy", "here"]


@pytest.fixture
def removed(elsewhere):
    """A working folder that is not there any more."""
    os.chdir(elsewhere)
    elsewhere.rmdir()


@pytest.mark.usefixtures("removed")
@pytest.mark.parametrize(
    "work",
    [
        lambda: LocalStateStore("rel"),
        lambda: LocalStateStore("."),
        lambda: ManifestStore("m.toml"),
        lambda: ManifestStore(Manifest({}), cache="rel"),
        lambda: unbundle("b.tar", LocalStateStore("rel")),
    ],
)
def test_where_the_working_folder_was_removed_a_relative_path_is_a_typed_error(work):
    with pytest.raises(MlstateError) as caught:
        work()
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.usefixtures("removed")
def test_without_a_working_folder_absolute_paths_work(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save(net(1), "a")
    manifest_of(store, objects=[str(tmp_path / "store")]).write(tmp_path / "m.toml")
    other = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    assert torch.equal(other.load_state_dict(KEY)["0.bias"], values(net(1))["0.bias"])
    with pytest.raises(StoreNotFoundError, match="working folder was removed"):
        LocalStateStore("rel")


@pytest.mark.parametrize(
    "words", [["ls", "rel"], ["ls", "."], ["fetch", "--all", "--store", "m.toml"], ["digest", "a"]]
)
def test_a_command_without_a_working_folder_ends_with_a_word(tmp_path, words):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$0" "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, PROGRAM, *words],
        cwd=gone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert Shell(tmp_path)("--help").returncode == 0

"""Calls that look right and would do something else are refused, with what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mlstate
from mlstate import (
    GitHubReleaseStore,
    LocalStateStore,
    Manifest,
    ManifestStore,
    MemoryStateStore,
    S3StateStore,
    StateKey,
    Store,
    copy,
    open_store,
    unbundle,
    verify,
)
from mlstate.errors import ArgumentError, FormatError, IncompatibleStateError, MlstateError

KEY = StateKey.parse("pytorch.net.one")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Manifest({}).write(tmp_path / "a.toml")
    return tmp_path


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ManifestStore("a.toml", "b.toml"), "Manifest.read"),
        (lambda: Store("weights"), "open_store"),
        (lambda: S3StateStore("bucket", "prefix"), "base_path=..."),
    ],
)
def test_a_second_argument_without_a_name_is_refused(here, call, says):
    before = sorted(here.iterdir())
    with pytest.raises(ArgumentError) as caught:
        call()
    assert isinstance(caught.value, TypeError)
    assert says in caught.value.remedy
    assert sorted(here.iterdir()) == before


def test_by_its_name_it_is_taken(here):
    store = ManifestStore("a.toml", cache=here / "cache")
    assert store.fetcher.cache.own.root == here / "cache"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: LocalStateStore("s3://bucket/x"), "open_store"),
        (lambda: LocalStateStore(Path("s3://bucket/x")), "open_store"),
        (lambda: LocalStateStore("github:owner/repo"), "open_store"),
        (lambda: LocalStateStore("b.toml"), "ends in /"),
        (lambda: unbundle("x.tar", "b.tar"), "ends in /"),
        (lambda: S3StateStore("s3://bucket/x"), "open_store('s3://bucket/x')"),
        (lambda: GitHubReleaseStore("owner/repo", "x"), "open_store"),
        (lambda: verify("weights"), "open_store('weights')"),
        (lambda: copy("weights", "others"), "open_store('others')"),
    ],
)
def test_what_names_another_kind_of_store_says_how_to_open_it(here, call, says):
    with pytest.raises(MlstateError) as caught:
        call()
    assert says in (caught.value.remedy or "")
    assert sorted(path.name for path in here.iterdir()) == ["a.toml"]


def test_the_advice_about_a_key_that_is_a_text_works():
    store = MemoryStateStore()
    store.save_state_dict({"w": torch.ones(2)}, KEY)
    with pytest.raises(FormatError) as caught:
        store.load_state_dict("pytorch.net.one")
    assert eval(caught.value.remedy, {"StateKey": StateKey}) == KEY
    model = mlstate.with_state_type(torch.nn.Linear(1, 1), KEY.state_type)
    with pytest.raises(FormatError) as caught:
        store.load(model, "one")
    assert eval(caught.value.remedy, {"StateKey": StateKey, "model": model}) == KEY
    with pytest.raises(FormatError) as caught:
        StateKey.parse("minilm")
    assert caught.value.remedy.startswith("pytorch.minilm.base")


def test_a_folder_may_be_called_like_a_file_by_a_slash(here):
    store = LocalStateStore("b.tar/")
    store.save_state_dict({"w": torch.ones(2)}, KEY)
    assert LocalStateStore("b.tar").get_state_keys() == [KEY]  # it is there now
    assert open_store("b.tar").get_state_keys() == [KEY]


def test_text_forms_of_types_are_refused_with_what_to_write(tmp_path):
    store = LocalStateStore(tmp_path)
    for call in (
        lambda: store.get_state_keys("pytorch.mlp"),
        lambda: mlstate.with_state_type(torch.nn.Linear(1, 1), "pytorch.mlp"),
    ):
        with pytest.raises(FormatError) as caught:
            call()
        assert caught.value.remedy == "StateType.parse('pytorch.mlp')"
    with pytest.raises(FormatError) as caught:
        store.get_state_keys("mlp")
    assert caught.value.remedy is None


def test_tensors_without_a_model_are_refused_with_what_takes_them(tmp_path):
    store, key = LocalStateStore(tmp_path), StateKey.parse("pytorch.mlp.a")
    tensors = {"w": torch.ones(2)}
    for call in (lambda: store.save(tensors, "a"), lambda: store.load(tensors, key)):
        with pytest.raises(IncompatibleStateError) as caught:
            call()
        assert "save_state_dict(state_dict, key)" in caught.value.remedy
    store.save_state_dict(tensors, key)  # as the remedy says
    assert torch.equal(store.load_state_dict(key)["w"], tensors["w"])


@pytest.mark.parametrize("kind", ["store", "cache"])
def test_an_age_is_a_number(kind, tmp_path):
    store = LocalStateStore(tmp_path / "w")
    if kind == "cache":
        store = ManifestStore(Manifest({}), cache=tmp_path / "c")
    with pytest.raises(FormatError, match="a number of seconds"):
        store.prune(grace_seconds="1d")
    if kind == "cache":
        with pytest.raises(FormatError, match="older_than is a number"):
            store.prune(older_than="1d")
    store.prune(grace_seconds=86400)

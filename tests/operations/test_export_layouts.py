"""`export` to a folder writes the files that the weights came in; and what shards become."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save

from mlstate import (
    LocalStateStore,
    ManifestStore,
    StateKey,
    adopt,
    export,
    file_digest,
    manifest_of,
)
from tests.operations.test_layouts import FOLDERS, PT, contents, pipeline, sharded, write
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path):
    return LocalStateStore(tmp_path / "store")


def is_weights(name):
    return ".safetensors" in name


@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_an_export_has_the_weights_as_they_were_and_nothing_else(kind, tmp_path, store):
    source = write(tmp_path / "source", FOLDERS[kind]())
    adopt(source, KEY, store)
    wanted = {name: file for name, file in contents(source).items() if is_weights(name)}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for _ in range(2):
        export(store, KEY, tmp_path / "out")
        found = contents(tmp_path / "out")
        assert found.pop("mine.txt") == b"mine"
        assert found == wanted
    # All of it in one file is an export of its own.
    export(store, KEY, tmp_path / "one.safetensors")
    assert file_digest(tmp_path / "one.safetensors") == store.digest(KEY)


def test_an_export_of_a_manifest_fetches_the_indexes_that_it_writes(tmp_path, store):
    source = write(tmp_path / "source", FOLDERS["shards"]())
    adopt(source, KEY, store)
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "m.toml")
    export(ManifestStore(tmp_path / "m.toml", cache=tmp_path / "fetched"), KEY, tmp_path / "out")
    wanted = {name: file for name, file in contents(source).items() if is_weights(name)}
    assert contents(tmp_path / "out") == wanted


def test_an_export_in_shards_of_another_size_and_back(tmp_path, store):
    source = write(tmp_path / "source", pipeline())
    adopt(source, KEY, store)
    export(store, KEY, tmp_path / "out", max_shard_size=20_000)
    assert (tmp_path / "out/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    export(store, KEY, tmp_path / "out")
    wanted = {name: file for name, file in contents(source).items() if is_weights(name)}
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize(
    "stem", ["model", "diffusion_pytorch_model", "diffusion_pytorch_model.fp16"]
)
@pytest.mark.parametrize("lost", ["index", "an entry", "names"])
def test_shards_without_a_good_index_become_the_file_that_their_library_opens(
    tmp_path, store, stem, lost
):
    index = f"{stem.removesuffix('.fp16')}.safetensors.index{'.fp16' * (stem[-1] == '6')}.json"
    files = sharded("", stem, index)
    source = write(tmp_path / "source", {"config.json": {}, **files})
    if lost == "index":
        (source / index).unlink()
    elif lost == "an entry":
        places = json.loads((source / index).read_text())
        del places["weight_map"]["c"]
        (source / index).write_text(json.dumps(places))
    adopt(source, KEY, store, add_prefix="new." if lost == "names" else "")
    store.materialize(KEY, tmp_path / "out")
    found = contents(tmp_path / "out")
    assert set(found) == {"config.json", f"{stem}.safetensors"}
    assert found[f"{stem}.safetensors"][0] == PT  # what both shards say
    assert same(load_file(tmp_path / "out" / f"{stem}.safetensors"), store.load_state_dict(KEY))


def test_one_component_without_its_index_changes_no_other(tmp_path, store):
    source = write(tmp_path / "source", pipeline())
    (source / "text_encoder/model.safetensors.index.json").unlink()
    adopt(source, KEY, store)
    store.materialize(KEY, tmp_path / "out")
    found, wanted = contents(tmp_path / "out"), contents(source)
    assert set(found) - set(wanted) == {"text_encoder/model.safetensors"}
    assert all(found[name] == wanted[name] for name in found.keys() & wanted.keys())
    assert {n for n in wanted if n not in found} == {n for n in wanted if "-of-" in n}


def test_files_that_say_different_things_say_the_usual_in_one(tmp_path, store):
    files = {f"model-0000{n}-of-00002.safetensors": {"only": str(n)} for n in (1, 2)}
    (tmp_path / "source").mkdir()
    for name, said in files.items():
        (tmp_path / "source" / name).write_bytes(save({name[10]: torch.ones(2)}, said))
    adopt(tmp_path / "source", KEY, store)
    store.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"][0] == PT

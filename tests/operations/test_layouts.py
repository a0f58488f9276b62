"""The layout of what was adopted: kept with the state, and written back by `materialize`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    adopt,
    bundle,
    copy,
    export,
    file_digest,
    lock,
    manifest_of,
    unbundle,
)
from mlstate.errors import FormatError, StateNotFoundError
from mlstate.layouts import WeightsFile
from mlstate.operations.describe import describe
from mlstate.reading import read_state
from mlstate.stores.materialize import materialize_state
from tests.support.buckets import bucket_store
from tests.support.github_stores import github_store
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")
PT = {"format": "pt"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))


def tensors(seed, big="big"):
    torch.manual_seed(seed)
    return {big: torch.randn(64, 128), "small": torch.randn(3), "n": torch.tensor(seed)}


def write(folder: Path, files: dict[str, object]) -> Path:
    """A folder: texts, bytes, JSON, and files of weights, as (tensors, metadata)."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            save_file(content[0], path, content[1])
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def sharded(prefix, stem="model", index=None):
    first, second = {"a": torch.randn(80, 80)}, {"b": torch.randn(80, 80), "c": torch.ones(2)}
    one, two = (f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2))
    places = {"a": one, "b": two, "c": two}
    return {
        prefix + one: (first, PT),
        prefix + two: (second, {**PT, "shard": "2"}),
        prefix + (index or f"{stem}.safetensors.index.json"): {"weight_map": places},
    }


def adapter():
    return {
        "adapter_config.json": {"peft_type": "LORA"},
        "adapter_model.safetensors": (tensors(1), PT),
    }


def sentences():
    modules = [
        {"idx": 0, "path": "", "type": "Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "Pooling"},
        {"idx": 2, "path": "2_Dense", "type": "Dense"},
    ]
    return {
        "modules.json": modules,
        "config.json": {},
        "model.safetensors": (tensors(1), PT),
        "1_Pooling/config.json": {"pooling": "mean"},
        "2_Dense/config.json": {"out": 3},
        "2_Dense/model.safetensors": (tensors(2, "linear.weight"), PT),
    }


def pipeline():
    parts = {name: ["diffusers", "Kind"] for name in ("unet", "vae", "scheduler", "text_encoder")}
    return {
        "model_index.json": {"_class_name": "Pipeline", **parts, "safety": [None, None]},
        "unet/config.json": {"u": 1},
        "unet/diffusion_pytorch_model.safetensors": (tensors(1), PT),
        "vae/config.json": {"v": 1},
        "vae/diffusion_pytorch_model.fp16.safetensors": (tensors(2), None),
        "text_encoder/config.json": {},
        **sharded("text_encoder/"),
        "scheduler/scheduler_config.json": {"steps": 3},
    }


def variant():
    return {"config.json": {}, "diffusion_pytorch_model.fp16.safetensors": (tensors(1), PT)}


def metadata_alone():
    return {"model.safetensors": (tensors(1), {**PT, "made": 'ä\n"quoted"', "by": ""})}


FOLDERS = {
    "adapter": adapter,
    "sentences": sentences,
    "pipeline": pipeline,
    "shards": lambda: {"config.json": {}, **sharded("")},
    "variant": variant,
    "metadata": metadata_alone,
    "no metadata": lambda: {"model.safetensors": (tensors(1), None)},
}


@pytest.fixture(params=sorted(FOLDERS))
def folder(request, tmp_path):
    return write(tmp_path / "source", FOLDERS[request.param]())


@pytest.fixture
def pipe(tmp_path):
    return write(tmp_path / "source", pipeline())


def contents(folder):
    """Each file with what it says: bytes; of weights the tensors and the metadata."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == ".mlstate.toml":
            continue
        if path.suffix != ".safetensors":
            found[name] = path.read_bytes()
            continue
        with safe_open(path, "pt") as opened:
            held = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
            found[name] = (
                opened.metadata(),
                {n: (t.dtype, t.shape, t.numpy().tobytes()) for n, t in held.items()},
            )
    return found


def test_what_is_adopted_is_materialized_as_it_was(folder, store, tmp_path):
    report = adopt(folder, KEY, store)
    assert report.digest == store.digest(KEY) == file_digest(folder)
    store.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)
    # Again, nothing is in the way, and nothing is written.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    store.materialize(KEY, tmp_path / "out")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert adopt(folder, KEY, store).existed


@pytest.mark.parametrize("way", ["copy", "bundle", "manifest", "mirror", "lock"])
def test_the_layout_goes_wherever_the_state_goes(folder, store, tmp_path, way):
    adopt(folder, KEY, store)
    taken = store
    if way == "copy":
        copy(store, taken := MemoryStateStore())
    elif way == "bundle":
        bundle(store, [KEY], tmp_path / "b.tar")
        unbundle(tmp_path / "b.tar", taken := MemoryStateStore())
    elif way == "manifest":
        manifest_of(store, objects=[str(tmp_path / "store")]).write(tmp_path / "m.toml")
        taken = ManifestStore(tmp_path / "m.toml")
    else:
        adopt(folder, KEY, tmp_path / "m.toml", mirror=True)
        if way == "lock":
            text = (tmp_path / "m.toml").read_text()
            pinned = f'blake3 = "{store.digest(KEY)}"\n'
            assert pinned in text
            (tmp_path / "m.toml").write_text(text.replace(pinned, ""))
            lock(tmp_path / "m.toml")
        taken = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "other")
    assert taken.get(KEY).entry.layout == store.get(KEY).entry.layout
    taken.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)


def test_a_bucket_keeps_the_layout(pipe, moto, tmp_path):
    bucket = moto.new_bucket()
    adopt(pipe, KEY, bucket_store(moto, bucket))
    again = bucket_store(moto, bucket, cache=tmp_path / "other")
    again.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(pipe)


def test_a_release_keeps_the_layout(pipe, github, tmp_path):
    adopt(pipe, KEY, github_store(tmp_path / "one"))
    github_store(tmp_path / "other").materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(pipe)


def test_an_adapter_of_the_hub_keeps_its_name(hub_only, store, tmp_path):
    source = write(tmp_path / "source", adapter())
    hub_only.add("org/adapter", {p.name: p.read_bytes() for p in source.iterdir()})
    adopt("hf://org/adapter@main", KEY, store)
    store.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


@pytest.mark.parametrize("kind", ["adapter", "shards", "single"])
def test_what_is_locked_from_the_hub_keeps_the_names_of_its_files(kind, hub_only, tmp_path):
    files = {"adapter": adapter(), "shards": FOLDERS["shards"](), "single": metadata_alone()}[kind]
    source = write(tmp_path / "source", files)
    hub_only.add("org/model", {p.name: p.read_bytes() for p in source.iterdir()})
    manifest = tmp_path / "weights.toml"
    manifest.write_text(f'version = 1\n[states."{KEY}"]\nmirrors = ["hf://org/model"]\n')
    lock(manifest)
    ManifestStore(manifest).materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


def test_export_writes_the_metadata(store, tmp_path):
    source = write(tmp_path / "source", metadata_alone())
    adopt(source, KEY, store)
    export(store, KEY, tmp_path / "one.safetensors")
    export(store, KEY, tmp_path / "folder")
    for path in (tmp_path / "one.safetensors", tmp_path / "folder/model.safetensors"):
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == metadata_alone()["model.safetensors"][1]


def test_a_single_file_keeps_its_metadata(store, tmp_path):
    source = write(tmp_path / "source", {"any.safetensors": (tensors(1), {"flat": "[1]"})})
    adopt(source / "any.safetensors", KEY, store)
    store.materialize(KEY, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as opened:
        assert opened.metadata() == {"flat": "[1]"}


@pytest.mark.parametrize("option", ["add_prefix", "strip_prefix", "rename", "select"])
def test_the_names_of_a_pipeline_are_its_own(pipe, store, option):
    value = {"a": "b"} if option == "rename" else "a"
    with pytest.raises(FormatError, match="its components"):
        adopt(pipe, KEY, store, **{option: value})


def test_renamed_tensors_are_written_with_their_new_names(store, tmp_path):
    for number, files in enumerate((adapter(), FOLDERS["shards"]())):
        key = StateKey.parse(f"pytorch.net.n{number}")
        adopt(write(tmp_path / str(number), files), key, store, add_prefix="new.")
        store.materialize(key, tmp_path / f"out{number}")
    assert set(load_file(tmp_path / "out0/adapter_model.safetensors")) == {
        "new.big",
        "new.small",
        "new.n",
    }
    # Of the shards no index knows the new names: they are one file.
    assert set(load_file(tmp_path / "out1/model.safetensors")) == {"new.a", "new.b", "new.c"}


def test_each_component_loads_alone(pipe, store, tmp_path):
    adopt(pipe, KEY, store)
    names = store.load_state_dict(KEY)
    assert {name.partition("/")[0] for name in names} == {"unet", "vae", "text_encoder"}
    unet = load_file(pipe / "unet/diffusion_pytorch_model.safetensors")
    assert same(store.load_state_dict(KEY, component="unet"), unet)
    assert same(store.load_state_dict(KEY, ["big"], component="unet"), {"big": unet["big"]})
    assert same(store.load_state_dict(KEY, names=["unet/big"]), {"unet/big": unet["big"]})

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in unet.items():
                self.register_buffer(name, torch.zeros_like(value))

    part = Part()
    assert store.load(part, KEY, component="unet").missing_keys == []
    assert same(dict(part.state_dict()), unet)
    for name in ("unet", "vae", "text_encoder"):
        store.materialize(KEY, tmp_path / name, component=name)
        assert contents(tmp_path / name) == contents(pipe / name)


@pytest.mark.parametrize("component", ["une", "unet/", "../unet", "", "scheduler", "unet/x"])
def test_what_is_no_component_is_refused(pipe, store, tmp_path, component):
    adopt(pipe, KEY, store)
    for use in (
        lambda: store.load_state_dict(KEY, component=component),
        lambda: store.load(torch.nn.Linear(1, 1), KEY, component=component),
        lambda: store.materialize(KEY, tmp_path / "out", component=component),
    ):
        with pytest.raises((FormatError, StateNotFoundError)) as caught:
            use()
        if isinstance(caught.value, StateNotFoundError):
            assert "text_encoder, unet, vae" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_component_fetches_no_other(pipe, store, tmp_path):
    adopt(pipe, KEY, store)
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "m.toml")
    remote = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "fetched")
    remote.load_state_dict(KEY, component="unet")
    with pytest.raises(FileNotFoundError):
        ManifestStore(tmp_path / "m.toml", cache=tmp_path / "fetched", offline=True).objects.open(
            next(ref.digest for name, ref in _refs(store).items() if name.startswith("vae/"))
        )


def _refs(store):
    return read_state(*store.get(KEY)).refs


def test_shards_of_another_size_keep_their_places(pipe, store, tmp_path):
    adopt(pipe, KEY, store)
    store.materialize(KEY, tmp_path / "out", max_shard_size=20_000)
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert {
        "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/model.safetensors.index.json",
    } <= names
    index = json.loads((tmp_path / "out/text_encoder/model.safetensors.index.json").read_text())
    found = {
        name: load_file(tmp_path / "out/text_encoder" / shard)[name]
        for name, shard in index["weight_map"].items()
    }
    assert same(found, store.load_state_dict(KEY, component="text_encoder"))
    # And back: no shard of the other size is left.
    store.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(pipe)


def test_a_folder_of_another_layout_is_brought_up_to_date(store, tmp_path):
    adopt(write(tmp_path / "source", adapter()), KEY, store)
    other = StateKey.parse("pytorch.net.b")
    store.save_state_dict(tensors(1), other)
    for key in (other, KEY, other):
        store.materialize(key, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"model.safetensors"}


def test_metadata_that_changed_are_written_anew(store, tmp_path):
    out = tmp_path / "out"
    for number in range(2):
        key = StateKey.parse(f"pytorch.net.n{number}")
        one = write(tmp_path / str(number), {"model.safetensors": (tensors(1), {"n": str(number)})})
        adopt(one, key, store)
        store.materialize(key, out)
        assert contents(out) == contents(one)
    assert store.digest(key) == store.digest(StateKey.parse("pytorch.net.n0"))


def test_foreign_weights_beside_ours_are_in_the_way(pipe, store, tmp_path):
    adopt(pipe, KEY, store)
    rival = tmp_path / "out/unet/diffusion_pytorch_model.safetensors.index.json"
    write(tmp_path / "out", {"unet/diffusion_pytorch_model.safetensors.index.json": {}})
    with pytest.raises(FileExistsError, match="in the way"):
        store.materialize(KEY, tmp_path / "out")
    assert rival.exists()
    store.materialize(KEY, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == contents(pipe)


def test_a_state_without_a_layout_is_as_it_was(store, tmp_path):
    write(tmp_path / "source", {"config.json": {}, "model.safetensors": (tensors(1), PT)})
    adopt(tmp_path / "source", KEY, store)
    assert store.get(KEY).entry.layout == {}
    assert "layout" not in next((store.folder / "states").rglob("*.toml")).read_text()


def test_a_torch_checkpoint_becomes_safetensors_in_its_place(store, tmp_path):
    source = write(tmp_path / "source", {"adapter_config.json": {}})
    torch.save(tensors(1), source / "adapter_model.bin")
    adopt(source, KEY, store)
    store.materialize(KEY, tmp_path / "out")
    assert same(load_file(tmp_path / "out/adapter_model.safetensors"), tensors(1))


def test_a_layout_that_is_new_is_told_and_written_when_asked(store, tmp_path):
    source = write(tmp_path / "source", adapter())
    files = {"adapter_config.json": source / "adapter_config.json"}
    store.save_state_dict(load_file(source / "adapter_model.safetensors"), KEY, files=files)
    with pytest.warns(UserWarning, match="no layout"):
        assert adopt(source, KEY, store).existed
    assert store.get(KEY).entry.layout == {}
    assert not adopt(source, KEY, store, overwrite=True).existed
    assert set(store.get(KEY).entry.layout) == {"adapter_model.safetensors"}


def test_describe_names_the_files(pipe, store):
    adopt(pipe, KEY, store)
    assert [(file.name, file.prefix) for file in describe(store, KEY).layout][:2] == [
        ("text_encoder/model-00001-of-00002.safetensors", "text_encoder/"),
        ("text_encoder/model-00002-of-00002.safetensors", "text_encoder/"),
    ]


@pytest.mark.parametrize(
    "layout",
    [
        {"unet/x.safetensors": WeightsFile("unet/")},  # the others are in no file
        {"x.safetensors": WeightsFile(), "y.safetensors": WeightsFile()},  # in two
        {"x.safetensors": WeightsFile(index="x.safetensors.index.json")},  # which is not there
        {"x.safetensors": WeightsFile(index="unet/config.json")},
        {"unet/x.safetensors": WeightsFile(index="unet/config.json")},  # no index
        {"a.safetensors": WeightsFile(), "b.safetensors": WeightsFile("unet/big")},  # name ""
        {"unet/config.json/x.safetensors": WeightsFile()},  # below a file
        {"unet/../../x.safetensors": WeightsFile()},
        {"/x.safetensors": WeightsFile()},
        {".mlstate/x.safetensors": WeightsFile()},
        {"x.safetensors": WeightsFile(unknown={"encoding": "later"})},
        {"x.safetensors": WeightsFile(), "x.safetensors/y.safetensors": WeightsFile("unet/")},
        {"config.json": WeightsFile()},
        {f"{n}.safetensors": WeightsFile(str(n)) for n in range(10_001)},
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_anything_is_written(
    pipe, store, tmp_path, layout
):
    adopt(pipe, KEY, store)
    found = store.get(KEY)
    entry = replace(found.entry, layout=layout)
    if WeightsFile("unet/big") in layout.values():  # an empty name is a name: this one fits
        materialize_state(entry, found.objects, tmp_path / "out")
        return
    with pytest.raises(FormatError):
        _materialize_by_text(entry, found.objects, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _materialize_by_text(entry, objects, folder):
    """As a state whose text was edited by hand would be: what is read is checked first."""
    text = Manifest({KEY: entry}).format().encode()
    materialize_state(Manifest.parse(text, "m").states[KEY], objects, folder)


def test_names_that_would_be_taken_for_another_folders_are_refused(tmp_path, store):
    files = sentences()
    files["model.safetensors"] = ({"2_Dense/odd": torch.ones(2)}, PT)
    with pytest.raises(FormatError, match="another folder"):
        adopt(write(tmp_path / "source", files), KEY, store)


def test_a_file_of_the_state_in_the_place_of_weights_is_refused(tmp_path, store):
    source = write(tmp_path / "source", adapter())
    adopt(source, KEY, store, files={"adapter_model.safetensors": source / "adapter_config.json"})
    with pytest.raises(FormatError, match="weights need"):
        store.materialize(KEY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_local_store_keeps_the_layout_in_its_state_file(pipe, tmp_path):
    store = LocalStateStore(tmp_path / "store")
    adopt(pipe, KEY, store)
    text = next((tmp_path / "store/states").rglob("*.toml")).read_text()
    assert '"unet/diffusion_pytorch_model.safetensors" = {metadata = {format = "pt"}, ' in text
    assert 'prefix = "unet/"' in text

"""The integration with fsspec: stores as a file system."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save_file

from mlstate import LocalStateStore, ManifestStore, StateKey, adopt, manifest_of
from mlstate.errors import IntegrityError, ReadOnlyStoreError, StoreNotFoundError
from tests.frameworks.entry_points import ROOT, installed
from tests.frameworks.models import needs
from tests.support.models import LINEAR, net, same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
FILES = {"config.json": b'{"a": 1}', "1_Pooling/config.json": b"{}", "table.csv": b"x,y\n1,2\n"}


@pytest.fixture
def fsspec():
    needs("fsspec")
    import fsspec

    import mlstate.integrations.fsspec as integration

    fsspec.register_implementation("mlstate", integration.StoreFileSystem, clobber=True)
    integration.StoreFileSystem.clear_instance_cache()
    return fsspec


@pytest.fixture
def saved(store):
    """A state with tensors of both kinds and files, and its address."""
    key = store.save(net(), "one", files=FILES)
    return key, f"mlstate://{store.folder}/{key}"


def test_a_state_is_a_folder_as_it_would_be_materialized(fsspec, store, saved, tmp_path):
    key, address = saved
    folder = store.materialize(key, tmp_path / "plain")
    fs, path = fsspec.url_to_fs(address)
    wanted = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    assert {name.removeprefix(f"{path}/") for name in fs.find(path)} == wanted.keys()
    for name, content in wanted.items():
        assert fs.cat_file(f"{path}/{name}") == content
        assert fs.info(f"{path}/{name}")["size"] == len(content)
    assert sorted(fs.ls(path, detail=False)) == [
        f"{path}/{name}" for name in ("1_Pooling", "config.json", "model.safetensors", "table.csv")
    ]
    assert fs.ls(f"{path}/1_Pooling", detail=False) == [f"{path}/1_Pooling/config.json"]
    assert fs.isdir(f"{path}/1_Pooling")
    assert fs.glob(f"{path}/*.json") == [f"{path}/config.json"]
    fs.get(path, str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got" / "1_Pooling" / "config.json").read_bytes() == b"{}"


def test_a_store_is_a_folder_of_states(fsspec, store, saved):
    _, address = saved
    fs, path = fsspec.url_to_fs(address)
    assert fs.ls(str(store.folder), detail=False) == [path]
    assert fs.isdir(path)
    assert fs.isdir(str(store.folder))
    other = store.save(net(1), "two")
    assert fs.ls(str(store.folder), detail=False) == [path, f"{store.folder}/{other}"]
    assert not fs.exists(f"{path}/nothing.json")
    assert not fs.exists(f"{store.folder}/pytorch.net.three")
    with pytest.raises(FileNotFoundError, match="no such file"):
        fs.open(f"{path}/nothing.json")
    with pytest.raises(FileNotFoundError, match="no such state"):
        fs.ls(f"{store.folder}/pytorch.net.three")
    with pytest.raises(StoreNotFoundError):
        fs.ls("nowhere")


def test_it_opens_as_others_do(fsspec, saved):
    _, address = saved
    with fsspec.open(f"{address}/table.csv", "rt") as file:
        assert file.read() == "x,y\n1,2\n"
    with fsspec.open(f"{address}/config.json") as file:
        assert json.load(file) == {"a": 1}
    with fsspec.open(f"{address}/model.safetensors") as file:
        assert same(load(file.read()), values(net()))
    with fsspec.open(f"simplecache::{address}/model.safetensors") as file:
        assert same(load(file.read()), values(net()))
    mapper = fsspec.get_mapper(address)
    assert mapper["config.json"] == FILES["config.json"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_range_is_that_of_the_whole(fsspec, saved, data):
    _, address = saved
    fs, path = fsspec.url_to_fs(f"{address}/model.safetensors")
    whole = fs.cat_file(path)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    kind = data.draw(st.sampled_from(["none", "readahead", "bytes", "blockcache"]))
    with fs.open(path, block_size=5000, cache_type=kind) as file:
        file.seek(start)
        assert file.read(end - start) == whole[start:end]
    assert fs.cat_file(path, start, end) == whole[start:end]


def test_only_what_is_read_is_fetched(fsspec, store, tmp_path):
    tensors = {name: torch.full((10_000,), float(number)) for number, name in enumerate("abc")}
    key = store.save_state_dict(tensors, StateKey(LINEAR, "one"))
    manifest = tmp_path / "weights.toml"
    manifest_of(store, objects=[str(store.folder)]).write(manifest)
    fs = fsspec.filesystem("mlstate", cache=str(tmp_path / "cache"))
    path = f"{manifest}/{key}/model.safetensors"
    header = fs.cat_file(path, 0, 4096)
    length = int.from_bytes(header[:8], "little")
    place, _ = json.loads(header[8 : 8 + length])["b"]["data_offsets"]

    def there():
        return {file.stat().st_size for file in (tmp_path / "cache").glob("objects/*/*")}

    assert max(there()) < 40_000
    start = 8 + length + place
    assert fs.cat_file(path, start, start + 8) == tensors["b"][:2].numpy().tobytes()
    big = [
        file for file in (tmp_path / "cache").glob("objects/*/*") if file.stat().st_size > 40_000
    ]
    assert len(big) == 1


def test_a_damaged_tensor_gives_no_byte(fsspec, store, saved):
    _, address = saved
    fs, path = fsspec.url_to_fs(f"{address}/model.safetensors")
    size = fs.info(path)["size"]
    largest = max(store.folder.glob("objects/*/*"), key=lambda file: file.stat().st_size)
    largest.chmod(0o600)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    seen = []
    with fs.open(path, cache_type="none") as file, pytest.raises(IntegrityError, match="damaged"):
        seen.extend(iter(lambda: file.read(1000), b""))
    assert sum(map(len, seen)) < size - largest.stat().st_size + 4096
    assert fs.cat_file(f"{path.rpartition('/')[0]}/config.json") == FILES["config.json"]


def test_a_damaged_tensor_of_a_cache_is_fetched_again(fsspec, store, saved, tmp_path):
    key, _ = saved
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "weights.toml")
    cache = tmp_path / "cache"
    ManifestStore(tmp_path / "weights.toml", cache=cache).fetch(key)
    largest = max(cache.glob("objects/*/*"), key=lambda file: file.stat().st_size)
    largest.chmod(0o600)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    fs = fsspec.filesystem("mlstate", cache=str(cache))
    data = fs.cat_file(f"{tmp_path / 'weights.toml'}/{key}/model.safetensors")
    assert same(load(data), values(net()))


def test_nothing_can_be_changed(fsspec, store, saved, tmp_path):
    key, address = saved
    fs, path = fsspec.url_to_fs(address)
    (tmp_path / "x").write_bytes(b"x")
    for change in (
        lambda: fs.rm(path, recursive=True),
        lambda: fs.rm_file(f"{path}/config.json"),
        lambda: fs.mkdir(f"{path}/new"),
        lambda: fs.makedirs(f"{path}/new"),
        lambda: fs.rmdir(path),
        lambda: fs.open(f"{path}/x", "wb"),
        lambda: fs.open(f"{path}/x", "w"),
        lambda: fs.pipe_file(f"{path}/x", b"x"),
        lambda: fs.pipe(f"{path}/x", b"x"),
        lambda: fs.put_file(str(tmp_path / "x"), f"{path}/x"),
        lambda: fs.touch(f"{path}/x"),
        lambda: fs.mv(f"{path}/config.json", f"{path}/x"),
        lambda: fs.copy(f"{path}/config.json", f"{path}/x"),
    ):
        with pytest.raises(ReadOnlyStoreError, match="only read"):
            change()
    assert dict(store.files(key)) == FILES


def test_its_key_for_caches_changes_with_the_content(fsspec, store, saved):
    key, address = saved
    fs, path = fsspec.url_to_fs(address)
    before = fs.ukey(f"{path}/model.safetensors"), fs.ukey(f"{path}/config.json")
    assert before[0] == store.digest(key)
    store.save(net(1), "one", files=FILES, overwrite=True)
    after = fs.ukey(f"{path}/model.safetensors"), fs.ukey(f"{path}/config.json")
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert fs.checksum(f"{path}/config.json") > 0


def test_folders_whose_names_look_like_keys(fsspec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = LocalStateStore(tmp_path / "my.own.weights" / "a.b.c")
    key = store.save(net(), "one", files=FILES)
    fs = fsspec.filesystem("mlstate")
    for start in ("my.own.weights/a.b.c", str(store.folder)):
        assert fs.ls(start, detail=False) == [f"{start}/{key}"]
        assert fs.cat_file(f"{start}/{key}/table.csv") == FILES["table.csv"]


def test_the_default_store_needs_no_name(fsspec, store, saved, tmp_path, monkeypatch):
    key, _ = saved
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "own.toml")
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(tmp_path / "own.toml"))
    with fsspec.open(f"mlstate://{key}/config.json") as file:
        assert file.read() == FILES["config.json"]


def test_the_entry_point_is_what_fsspec_looks_for(store, saved, tmp_path):
    _, address = saved
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["fsspec.specs"].items()
    needs("fsspec")
    point = importlib.metadata.EntryPoint(name, value, "fsspec.specs")
    assert point.load().protocol == name == "mlstate"
    code = f"import fsspec; print(fsspec.open('{address}/table.csv', 'rt').open().read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": installed(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "x,y\n1,2\n\n", done.stderr


def test_files_have_the_names_that_the_state_came_in(fsspec, store, tmp_path):
    """A folder with parts, and shards with their index: what is materialized is what is seen."""
    saved = tmp_path / "saved"
    for part, shards in (("unet", 1), ("vae", 2)):
        (saved / part).mkdir(parents=True)
        tensors = {f"{n}": torch.full((5000,), float(n)) for n in range(4)}
        if shards == 1:
            save_file(tensors, saved / part / "diffusion_pytorch_model.safetensors")
        else:
            names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
            places = {name: names[int(name) % 2] for name in tensors}
            for file in names:
                own = {name: tensors[name] for name in tensors if places[name] == file}
                save_file(own, saved / part / file, metadata={"format": "pt"})
            index = {"metadata": {}, "weight_map": places}
            (saved / part / "model.safetensors.index.json").write_text(json.dumps(index))
    parts = {"unet": ["diffusers", "UNet2DModel"], "vae": ["diffusers", "AutoencoderTiny"]}
    (saved / "model_index.json").write_text(json.dumps(parts))
    key = StateKey(LINEAR, "pipeline")
    adopt(saved, key, store)
    folder = store.materialize(key, tmp_path / "plain")
    wanted = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    assert len(wanted) == 5
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "weights.toml")
    for where in (str(store.folder), str(tmp_path / "weights.toml")):
        fs = fsspec.filesystem("mlstate", cache=str(tmp_path / "cache"))
        path = f"{where}/{key}"
        assert {name.removeprefix(f"{path}/") for name in fs.find(path)} == wanted.keys()
        for name, content in wanted.items():
            assert fs.cat_file(f"{path}/{name}") == content, name
            assert fs.info(f"{path}/{name}")["size"] == len(content)

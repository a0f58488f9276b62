"""`export --dcp`: folders that plain ``dcp.load`` reads, of checkpoints and of other states."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader

from mlstate import LocalStateStore, StateKey, adopt, export
from mlstate.errors import FormatError, IntegrityError, StateExistsError
from mlstate.integrations.dcp import MlstateWriter
from mlstate.tensors.dcp_index import INDEX_NAME
from tests.integrations.test_dcp import flip
from tests.integrations.test_dcp_chunks import HALVES, Touch, changed, zipped_pickle
from tests.support.dcp import ALONE, STEP, Training, chunked, load_all, load_into, save
from tests.support.models import BytesModel, net, same, values

pytestmark = pytest.mark.filterwarnings(ALONE)

KEY, OTHER = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_state_round_trips(store, tmp_path):
    store.save_state_dict(values(net(0)), KEY)
    folder = export(store, KEY, tmp_path / "new" / "ck", format="dcp")
    assert sorted(files(folder)) == [".metadata", "__0_0.distcp"]
    weights = values(net(1))
    dcp.load(weights, checkpoint_id=folder)
    assert same(weights, values(net(0)))
    assert adopt(folder, OTHER, store).digest == store.digest(KEY)


def test_a_checkpoint_goes_on_from_the_folder(store, tmp_path):
    training = Training()
    training.step()
    saved = {"app": training, "python": random.getstate(), "betas": (0.9, 0.99)}
    save(saved, MlstateWriter(store, STEP))
    folder = export(store, STEP, tmp_path / "ck", format="dcp")
    expected = [training.step(), training.step()]
    again = Training(seed=1)
    again.step()
    state = {"app": again, "python": None, "betas": None}
    dcp.load(state, checkpoint_id=folder)
    assert [again.step(), again.step()] == expected
    assert (state["python"], state["betas"]) == (saved["python"], saved["betas"])

    report = adopt(folder, OTHER, store, select="app.model")
    assert same(store.load_state_dict(report.key), weights_of_model(store))


def weights_of_model(store: LocalStateStore) -> dict[str, torch.Tensor]:
    prefix = "app.model."
    found = store.load_state_dict(STEP)
    return {name[len(prefix) :]: t for name, t in found.items() if name.startswith(prefix)}


def test_chunks_stay_as_they_are(store, tmp_path):
    tensor = torch.arange(40_000.0).reshape(200, 200)
    boxes = [((0, 0), (200, 150)), ((0, 150), (10, 50)), ((10, 150), (190, 50))]
    metadata, results = chunked(store, {"a": tensor}, {"a": boxes})
    MlstateWriter(store, STEP).finish(metadata, [results])
    folder = export(store, STEP, tmp_path / "ck", format="dcp")
    reader = FileSystemReader(folder)
    chunks = reader.read_metadata().state_dict_metadata["a"].chunks
    assert [(tuple(one.offsets), tuple(one.sizes)) for one in chunks] == boxes
    assert torch.equal(load_all(reader)["a"], tensor)
    adopt(folder, OTHER, store)
    assert torch.equal(store.load_state_dict(OTHER)["a"], tensor)


@pytest.mark.parametrize("place", ["x.safetensors", "x.pth", "x.gguf"])
def test_a_name_of_another_format_is_refused(store, tmp_path, place):
    store.save_state_dict(HALVES, KEY)
    with pytest.raises(FormatError):
        export(store, KEY, tmp_path / place, format="dcp")
    assert os.listdir(tmp_path) == ["store"]


def test_shards_of_a_size_are_refused(store, tmp_path):
    store.save_state_dict(HALVES, KEY)
    with pytest.raises(FormatError, match="chunks"):
        export(store, KEY, tmp_path / "ck", format="dcp", max_shard_size="1GB")


def test_what_is_there_stays_unless_it_is_overwritten(store, tmp_path):
    store.save_state_dict(values(net(0)), KEY)
    store.save_state_dict(values(net(1)), OTHER)
    folder = export(store, KEY, tmp_path / "ck", format="dcp")
    (folder / "notes.txt").write_text("mine")
    (folder / "__1_0.distcp").write_text("of another rank")
    before = files(folder)
    with pytest.raises(StateExistsError):
        export(store, OTHER, folder, format="dcp")
    assert files(folder) == before
    export(store, OTHER, folder, format="dcp", overwrite=True)
    assert sorted(files(folder)) == [".metadata", "__0_0.distcp", "notes.txt"]
    weights = values(net(0))
    dcp.load(weights, checkpoint_id=folder)
    assert same(weights, values(net(1)))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StateExistsError):
        export(store, OTHER, tmp_path / "file", format="dcp", overwrite=True)


def test_damage_leaves_no_folder(store, tmp_path):
    store.save_state_dict({"a": torch.ones(100, 100), "b": torch.ones(3)}, KEY)
    digest = next(one for one in store.own.digests() if (store.own.size(one) or 0) > 40_000)
    flip(Path(store.own.locate(digest)))
    with pytest.raises(IntegrityError):
        export(store, KEY, tmp_path / "ck", format="dcp")
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize("make", [pickle.dumps, zipped_pickle])
def test_what_would_run_in_the_folder_is_not_written(store, tmp_path, make: Any):
    said = changed(tensors={}, values={}, bytes=["thing"])
    raw = torch.frombuffer(bytearray(make(Touch(tmp_path / "ran"))), dtype=torch.uint8)
    store.save_state_dict({"thing": raw}, KEY, files={INDEX_NAME: said})
    with pytest.raises(FormatError):
        export(store, KEY, tmp_path / "ck", format="dcp")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "ck").exists()


def test_bytes_of_no_state_are_refused(store, tmp_path):
    key = store.save(BytesModel(b"x"), "a")
    with pytest.raises(FormatError, match="opaque"):
        export(store, key, tmp_path / "ck", format="dcp")


def test_a_state_is_loaded_into_layers_of_its_names(store, tmp_path):
    store.save_state_dict({"layer.weight": torch.ones(2, 2)}, KEY)
    folder = export(store, KEY, tmp_path / "ck", format="dcp")
    target = {"layer.weight": torch.zeros(2, 2)}
    load_into(target, FileSystemReader(folder))
    assert target["layer.weight"].sum() == 4

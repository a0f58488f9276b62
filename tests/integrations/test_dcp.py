"""Checkpoints of DCP in a store, saved and loaded by one process."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from pprint import pformat
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from mlstate import (
    LocalStateStore,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    bundle,
    copy,
    unbundle,
    verify,
    with_state_type,
)
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    IntegrityError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
)
from mlstate.integrations.dcp import MlstateReader, MlstateWriter
from mlstate.stores.statefiles import FolderStateFiles
from mlstate.tensors.dcp_index import INDEX_NAME, DcpIndex
from tests.support.buckets import bucket_store
from tests.support.dcp import (
    ALONE,
    NET,
    STEP,
    Parts,
    Training,
    cause,
    chunked,
    load_all,
    load_into,
    save,
)
from tests.support.models import same

pytestmark = pytest.mark.filterwarnings(ALONE)


def objects(store: LocalStateStore) -> dict[str, int]:
    """All objects of a store with their sizes."""
    return {digest: store.own.size(digest) or 0 for digest in store.own.digests()}


def flip(path: Path) -> None:
    """Change one byte of an object, which is read-only."""
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_training_goes_on_exactly(store):
    training = Training()
    training.step()
    save({"app": training, "torch": torch.get_rng_state()}, MlstateWriter(store, STEP))
    expected = [training.step(), training.step()]

    again = Training(seed=1)
    again.step()  # an optimizer has a state only then
    state = {"app": again, "torch": torch.zeros_like(torch.get_rng_state())}
    load_into(state, MlstateReader(store, STEP))
    assert again.steps == 1
    assert [again.step(), again.step()] == expected


def test_every_kind_of_plain_value_comes_back(store):
    saved = {
        "step": 7,
        "flags": [True, None, "a", 0.1, -0.0],
        "betas": (0.9, 0.999),
        "large": 2**80,
        "nan": float("nan"),
        "bytes": b"\0\1",
        "python": random.getstate(),
        "text": "ä\n",
        "nested": {"list": [1, [2, (3,)]], "empty": []},
        "weight": torch.ones(2),
    }
    save(saved, MlstateWriter(store, STEP))
    found = load_all(MlstateReader(store, STEP))
    assert torch.equal(found.pop("weight"), saved.pop("weight"))
    assert pformat(found) == pformat(saved)  # in which a NaN is as another, and -0.0 is not 0.0


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int8, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
def test_every_element_type_comes_back(store, dtype):
    tensors = {
        "scalar": torch.ones(()).to(dtype),
        "empty": torch.ones(0, 3).to(dtype),
        "large": (torch.arange(40_000) % 2).to(torch.float32).to(dtype).reshape(200, 200),
        "view": (torch.arange(40_000) % 2).to(torch.float32).to(dtype).reshape(200, 200).t(),
    }
    save(tensors, MlstateWriter(store, STEP))
    found = load_all(MlstateReader(store, STEP))
    assert {name: t.dtype for name, t in found.items()} == dict.fromkeys(tensors, dtype)
    widened = {name: t.to(torch.complex64) for name, t in found.items()}
    assert same(widened, {name: t.to(torch.complex64) for name, t in tensors.items()})


def test_the_state_says_what_it_is(store):
    save({"model": Training().model, "step": 3}, MlstateWriter(store, STEP, meta={"loss": 0.5}))
    assert store.meta(STEP) == {"format": "dcp", "ranks": 1, "loss": 0.5}
    assert [*store.load_state_dict(STEP)] == [
        "model.0.bias",
        "model.2.bias",
        "model.0.weight",
        "model.2.weight",
    ]
    index = DcpIndex.parse(store.files(STEP)[INDEX_NAME])
    assert index.values == {"step": 3}
    assert index.paths["model.0.bias"] == ("model", "0.bias")


def test_what_did_not_change_is_not_written_again(store):
    training = Training()
    training.step()
    writer = MlstateWriter(store, NET)
    save({"app": training, "step": 1}, writer, "step-1")
    before = objects(store)
    save({"app": training, "step": 2}, writer, "step-2")
    new = objects(store).keys() - before.keys()
    assert new == {store.find(StateKey(NET, "step-2")).entry.files[INDEX_NAME].digest}
    assert store.digest(StateKey(NET, "step-1")) == store.digest(StateKey(NET, "step-2"))

    with torch.no_grad():
        training.model[0].bias += 1  # inside of the state object
        training.model[2].weight += 1
    before = objects(store)
    save({"app": training, "step": 2}, writer, "step-3")
    new = objects(store).keys() - before.keys()
    state = store.load_state_dict(StateKey(NET, "step-3"))
    assert len(new) == 2  # the state object, and the weight
    assert torch.equal(state["app.model.2.weight"], training.model[2].weight)


class Own:
    """An object that only a pickle could hold."""


@pytest.mark.parametrize(
    "value", [Own(), np.arange(3), Own, [Own()]], ids=["object", "array", "type", "list"]
)
def test_an_object_that_is_not_plain_is_refused_and_named(store, value):
    saved = {"weight": torch.ones(100, 100), "app": {"thing": value}}
    with pytest.raises(CheckpointException) as caught:
        save(saved, MlstateWriter(store, STEP))
    error = cause(caught.value)
    assert isinstance(error, FormatError)
    assert (error.key, error.tensor) == (STEP, "app.thing")
    assert "plain values" in (error.remedy or "")
    assert store.get_state_keys() == []
    assert not store.folder.exists()


def test_what_the_remedy_says_of_arrays_works(store):
    array = np.random.RandomState(0).get_state()[1]
    save({"numpy": torch.from_numpy(array.copy())}, MlstateWriter(store, STEP))
    assert np.array_equal(load_all(MlstateReader(store, STEP))["numpy"].numpy(), array)


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.ones(100, 100).to_sparse(), "dense"),
        (torch.ones(3, dtype=torch.complex128), "element type"),
        (torch.ones(100, 100, device="meta"), "meta"),
    ],
    ids=["sparse", "complex128", "meta"],
)
def test_a_tensor_that_cannot_be_stored_is_named(store, tensor, match):
    with pytest.raises(CheckpointException) as caught:
        save({"a": torch.ones(3), "b": tensor}, MlstateWriter(store, STEP))
    error = cause(caught.value)
    assert isinstance(error, FormatError)
    assert (error.tensor, match in str(error)) == ("b", True)
    assert store.get_state_keys() == []


def test_a_checkpoint_without_tensors_is_refused(store):
    with pytest.raises(CheckpointException) as caught:
        save({"step": 1}, MlstateWriter(store, STEP))
    assert isinstance(cause(caught.value), FormatError)


def test_two_entries_of_one_name_are_refused(store):
    """A part of one tensor is called as another whole one is."""
    metadata, results = chunked(store, {"a": torch.ones(4)}, {"a": [((0,), (2,)), ((2,), (2,))]})
    metadata.state_dict_metadata["a[0:2]"] = dcp.metadata.BytesStorageMetadata()
    place = dcp.metadata.MetadataIndex("a[0:2]")
    odd = dcp.storage.WriteResult(place, 3, results[0].storage_data)
    with pytest.raises(FormatError, match="one name"):
        MlstateWriter(store, STEP).finish(metadata, [[*results, odd]])
    assert store.get_state_keys() == []


@pytest.mark.parametrize("given", ["step-2", "pytorch.net.step-2", StateKey(NET, "step-2")])
def test_an_id_is_a_training_id_or_a_key(store, given):
    save({"a": torch.ones(3)}, MlstateWriter(store, NET), given)
    assert store.get_state_keys() == [StateKey(NET, "step-2")]
    load_into({"a": torch.ones(3)}, MlstateReader(store, NET), given)
    load_into({"a": torch.ones(3)}, MlstateReader(store, "pytorch.net.step-2"))


@pytest.mark.parametrize("given", ["runs/step-2", Path("/checkpoints/1"), "s3://bucket/a"])
def test_an_id_that_is_a_path_is_refused(store, given):
    for work, end in ((save, MlstateWriter), (load_into, MlstateReader)):
        with pytest.raises(FormatError):
            work({"a": torch.ones(3)}, end(store, NET), given)


def test_without_a_training_id_there_is_no_key(store):
    for work, end in ((save, MlstateWriter), (load_into, MlstateReader)):
        with pytest.raises(CheckpointException, match="no training id"):
            work({"a": torch.ones(3)}, end(store, NET))


def test_a_checkpoint_that_is_not_there_is_an_error_that_says_so(store):
    save({"a": torch.ones(3)}, MlstateWriter(store, NET), "step-1")
    reader = MlstateReader(store, NET)
    values = torch.zeros(3)
    with pytest.raises(CheckpointException) as caught:
        load_into({"a": values}, reader, "step-2")
    error = cause(caught.value)
    assert isinstance(error, StateNotFoundError)
    assert error.key == StateKey(NET, "step-2")
    assert "step-1" in (error.remedy or "")
    assert not values.any()
    with pytest.raises(CheckpointException) as caught:
        load_all(reader, "step-2")
    assert isinstance(cause(caught.value), StateNotFoundError)
    # Whoever reads without dcp.load gets it at once, or from what dcp.load would be given.
    with pytest.raises(StateNotFoundError):
        MlstateReader(store, StateKey(NET, "step-2")).read_metadata()
    reader.reset("step-2")
    with pytest.raises(StateNotFoundError):
        reader.read_metadata().state_dict_metadata  # noqa: B018  # what is looked at raises it
    load_into({"a": values}, reader, "step-1")
    assert values.all()


def test_a_model_that_a_checkpoint_does_not_fit_is_told_how_it_is_read(store):
    model = with_state_type(torch.nn.Linear(100, 100), NET)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    save({"model": saved}, MlstateWriter(store, STEP))
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(IncompatibleStateError) as caught:
        store.load(model, STEP)
    assert f'MlstateReader(store, "{STEP}")' in (caught.value.remedy or "")
    load_into({"model": model.state_dict()}, MlstateReader(store, f"{STEP}"))
    assert torch.equal(model.weight, saved["weight"])


def test_a_state_that_another_job_has_saved_meanwhile_stays(store):
    """Even if this one finds that its own shards are gone."""
    other = LocalStateStore(store.folder)

    class Late(MlstateWriter):
        def finish(self, metadata, results):
            def receive(encoded, wanted, request):
                save({"b": torch.ones(3)}, MlstateWriter(other, STEP))
                raise ObjectNotFoundError("a shard is gone", key=wanted.key)

            self._saver.receive = receive
            super().finish(metadata, results)

    with pytest.raises(CheckpointException) as caught:
        save({"a": torch.ones(100, 100)}, Late(store, STEP))
    assert isinstance(cause(caught.value), ObjectNotFoundError)
    assert load_all(MlstateReader(store, STEP))["b"].sum() == 3


def test_another_state_of_the_key_stays_unless_it_is_overwritten(store):
    save({"a": torch.ones(3)}, MlstateWriter(store, STEP))
    save({"a": torch.ones(3)}, MlstateWriter(store, STEP))
    with pytest.raises(CheckpointException) as caught:
        save({"a": torch.zeros(3)}, MlstateWriter(store, STEP))
    assert isinstance(cause(caught.value), StateExistsError)
    assert load_all(MlstateReader(store, STEP))["a"].sum() == 3
    save({"a": torch.zeros(3)}, MlstateWriter(store, STEP, overwrite=True))
    assert load_all(MlstateReader(store, STEP))["a"].sum() == 0


def training_ids(store: Any) -> list[str]:
    return [key.training_id for key in store.get_state_keys()]


def test_the_last_checkpoints_stay_and_others_make_room(store):
    store.save_state_dict({"a": torch.ones(3)}, StateKey(NET, "step-0"))  # no checkpoint of DCP
    save({"a": torch.full((70, 70), -1.0)}, MlstateWriter(store, NET), "other-1")
    save({"a": torch.full((70, 70), 9.0)}, MlstateWriter(store, NET), "step-30")
    writer = MlstateWriter(store, NET, keep_last=2, grace_seconds=0)
    for step in (2, 9, 10, 11):
        save({"a": torch.full((70, 70), float(step))}, writer, f"step-{step}")
    kept = ["other-1", "step-0", "step-10", "step-11", "step-30"]
    assert training_ids(store) == kept
    save({"a": torch.full((70, 70), 12.0)}, writer, "step-12")
    large = [size for size in objects(store).values() if size > 16_384]
    assert len(large) == 4  # of those that are there; the second pruning took the others away
    assert verify(store).ok


@pytest.mark.parametrize("keep_last", [1, 2, 3, 5, 9])
def test_so_many_stay_as_are_asked_for(keep_last):
    store = MemoryStateStore()
    writer = MlstateWriter(store, NET, keep_last=keep_last)
    for step in range(1, 9):
        save({"a": torch.full((3,), float(step))}, writer, f"step-{step}")
        kept = range(max(1, step + 1 - keep_last), step + 1)
        assert sorted(training_ids(store)) == [f"step-{one}" for one in kept]


def test_meta_that_cannot_be_kept_is_refused_before_anything_is_written(store):
    with pytest.raises(CheckpointException) as caught:
        save({"a": torch.ones(100, 100)}, MlstateWriter(store, STEP, meta={"a": object()}))
    assert isinstance(cause(caught.value), FormatError)
    assert not store.folder.exists()


def test_a_chunk_that_is_gone_as_it_is_published_leaves_no_state(store, monkeypatch):
    """As a pruning without a grace period may take it."""
    boxes = {"a": [((0, 0), (50, 100)), ((50, 0), (50, 100))]}
    metadata, results = chunked(store, {"a": torch.ones(100, 100)}, boxes)
    create = FolderStateFiles.create

    def pruned(files: Any, key: StateKey, data: bytes) -> bool:
        made = create(files, key, data)
        for digest, size in objects(store).items():
            if size > 20_000:
                Path(store.own.locate(digest)).unlink()
        return made

    monkeypatch.setattr(FolderStateFiles, "create", pruned)
    with pytest.raises(ObjectNotFoundError):
        MlstateWriter(store, STEP).finish(metadata, [results])
    assert store.get_state_keys() == []
    assert verify(store).ok


def test_an_older_checkpoint_that_cannot_be_deleted_does_no_harm(store, monkeypatch):
    writer = MlstateWriter(store, NET, keep_last=1)
    save({"a": torch.ones(3)}, writer, "step-1")
    monkeypatch.setattr(LocalStateStore, "prune", lambda *_, **__: (_ for _ in ()).throw(OSError))
    with pytest.warns(UserWarning, match="step-2 was saved"):
        save({"a": torch.ones(3)}, writer, "step-2")
    assert training_ids(store) == ["step-2"]


@pytest.mark.parametrize("keep_last", [0, -1])
def test_none_to_keep_is_refused(store, keep_last):
    with pytest.raises(FormatError, match="keep_last"):
        MlstateWriter(store, NET, keep_last=keep_last)


def test_to_keep_the_last_takes_numbers(store):
    with pytest.raises(FormatError, match="end in a number"):
        save({"a": torch.ones(3)}, MlstateWriter(store, NET, keep_last=1), "final")
    with pytest.raises(FormatError, match="end in a number"):
        MlstateWriter(store, StateKey(NET, "final"), keep_last=1)


def test_damage_is_met_before_any_value_changes(store):
    saved = {"a": torch.ones(100, 100), "b": torch.full((100, 100), 2.0)}
    save(saved, MlstateWriter(store, STEP))
    victim = store.find(STEP)
    ref = MlstateReader(store, STEP)
    ref.read_metadata()
    digest = ref._open().state.refs["b"].digest
    flip(Path(victim.objects.locate(digest)))
    target = {"a": torch.zeros(100, 100), "b": torch.zeros(100, 100)}
    with pytest.raises(CheckpointException) as caught:
        load_into(target, MlstateReader(store, STEP))
    error = cause(caught.value)
    assert isinstance(error, IntegrityError)
    assert (error.key, error.tensor) == (STEP, "b")
    assert not any(tensor.any() for tensor in target.values())


@pytest.mark.parametrize("mapped", [True, False])
def test_each_object_is_read_whole_before_it_is_used(store, monkeypatch, mapped):
    """Where no file can be mapped, as on a network, it is verified, and again when it is used."""
    saved = {"a": torch.arange(40_000.0).reshape(200, 200), "b": torch.ones(3)}
    save(saved, MlstateWriter(store, STEP))
    if not mapped:
        monkeypatch.setattr("mlstate.tensors.memory.may_map", lambda *_: False)
    assert same(load_all(MlstateReader(store, STEP)), saved)
    digest = next(digest for digest, size in objects(store).items() if size > 100_000)
    flip(Path(store.own.locate(digest)))
    target = {"b": torch.zeros(3)}
    load_into(target, MlstateReader(store, STEP))  # which needs no part of it
    assert target["b"].sum() == 3
    with pytest.raises(CheckpointException, match="damaged"):
        load_all(MlstateReader(store, STEP))


def test_a_missing_state_is_said(store):
    with pytest.raises(StateNotFoundError):
        MlstateReader(store, STEP).read_metadata()
    with pytest.raises(CheckpointException, match="no such state"):
        load_into({"a": torch.ones(3)}, MlstateReader(store, STEP))


def test_a_digest_pins(store):
    save({"a": torch.ones(3)}, MlstateWriter(store, STEP))
    load_into({"a": torch.ones(3)}, MlstateReader(store, STEP, digest=store.digest(STEP)))
    with pytest.raises(IntegrityError):
        MlstateReader(store, STEP, digest="0" * 64).read_metadata()


def test_ranks_that_read_different_states_load_none(store):
    reader = MlstateReader(store, STEP)
    plans = []
    for value in (1.0, 2.0):
        save({"a": torch.full((3,), value)}, MlstateWriter(store, STEP, overwrite=True))
        reader.reset()
        reader.read_metadata()
        reader.set_up_storage_reader(reader.read_metadata(), False)
        plans.append(reader.prepare_local_plan(dcp.planner.LoadPlan([])))
    assert len(reader.prepare_global_plan(plans[:1])) == 1
    with pytest.raises(IntegrityError, match="replaced"):
        reader.prepare_global_plan(plans)


def test_a_plain_state_loads_as_a_checkpoint(store):
    model = Training().model
    store.save_state_dict(model.state_dict(), STEP)
    again = Training(seed=1).model
    weights = again.state_dict()
    load_into(weights, MlstateReader(store, STEP))
    assert same(weights, model.state_dict())


def test_the_index_is_read_without_a_pickle(store, monkeypatch):
    save({"a": torch.ones(100, 100), "python": random.getstate()}, MlstateWriter(store, STEP))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "load", refused)
    metadata = MlstateReader(store, STEP).read_metadata()
    assert metadata.state_dict_metadata.keys() == {"a", "python"}


def test_copies_and_bundles_are_checkpoints(store, tmp_path):
    training = Training()
    training.step()
    save({"app": training}, MlstateWriter(store, STEP))
    other = LocalStateStore(tmp_path / "other")
    copy(store, other, keys=[STEP])
    bundle(store, [STEP], tmp_path / "all.tar")
    unbundle(tmp_path / "all.tar", tmp_path / "third")
    for place in (other, LocalStateStore(tmp_path / "third")):
        again = Training(seed=1)
        again.step()
        load_into({"app": again}, MlstateReader(place, STEP))
        assert same(again.model.state_dict(), training.model.state_dict())
    assert verify(other).ok


def test_of_a_manifest_only_what_is_needed_is_fetched(store, tmp_path, start_recording):
    save({"a": torch.ones(100, 100), "b": torch.zeros(100, 100)}, MlstateWriter(store, STEP))
    files = {
        str(path.relative_to(store.folder)): path.read_bytes()
        for path in store.folder.rglob("*")
        if path.is_file()
    }
    with start_recording(files) as server:
        entry = store.get(STEP).entry
        manifest = tmp_path / "weights.toml"
        manifest.write_text(
            f'version = 1\nobjects = ["{server.url}"]\n[states."{STEP}"]\n'
            f'blake3 = "{entry.digest}"\n'
            f'files."{INDEX_NAME}" = {{ blake3 = "{entry.files[INDEX_NAME].digest}" }}\n'
        )
        target = {"a": torch.zeros(100, 100)}
        load_into(target, MlstateReader(ManifestStore(manifest), STEP))
        assert target["a"].min() == 1
        asked = [request.path for request in server.requests]
        assert len(asked) == len({*asked}) == 3, asked  # the state object, the index, one tensor


def test_a_bucket_takes_checkpoints(moto, tmp_path):
    store = bucket_store(moto, moto.new_bucket())
    training = Training()
    training.step()
    writer = MlstateWriter(store, NET, keep_last=1, grace_seconds=0)
    for step in (1, 2):
        save({"app": training, "step": step}, writer, f"step-{step}")
    assert training_ids(store) == ["step-2"]
    again = Training(seed=1)
    again.step()
    load_into({"app": again, "step": 0}, MlstateReader(store, NET), "step-2")
    assert same(again.model.state_dict(), training.model.state_dict())
    assert verify(store).ok


@pytest.mark.parametrize("place", [MemoryStateStore, None], ids=["memory", "folder"])
def test_a_save_in_the_background_is_a_save(store, place):
    target = place() if place else store
    training = Training()
    training.step()
    expected = {name: t.clone() for name, t in training.model.state_dict().items()}
    saved = {"app": training, "step": 1}
    future = dcp.async_save(saved, storage_writer=MlstateWriter(target, STEP))
    training.step()  # what it changes is not saved
    future.result()
    again = Training(seed=1)
    again.step()
    load_into({"app": again, "step": 0}, MlstateReader(target, STEP))
    assert same(again.model.state_dict(), expected)


def test_an_error_in_the_background_is_told(store):
    saved = {"a": torch.ones(3), "thing": np.arange(3)}
    future = dcp.async_save(saved, storage_writer=MlstateWriter(store, STEP))
    with pytest.raises(CheckpointException):
        future.result()
    assert store.get_state_keys() == []


def test_stores_that_cannot_take_one_are_refused(tmp_path, github):
    manifest = tmp_path / "weights.toml"
    manifest.write_text("version = 1\n")
    with pytest.raises(ReadOnlyStoreError):
        MlstateWriter(manifest, STEP)
    with pytest.raises(FormatError, match="several processes"):
        MlstateWriter("github:owner/repo", STEP)


def test_ranks_that_do_not_speak_are_refused(store):
    writer = MlstateWriter(store, STEP)
    with pytest.raises(FormatError, match="speak"):
        writer.set_up_storage_writer(True, rank=0, use_collectives=False)


def test_a_chunk_that_the_coordinator_does_not_see_is_said(store, tmp_path):
    """As of ranks with a folder each."""
    elsewhere = LocalStateStore(tmp_path / "elsewhere")
    boxes = {"a": [((0, 0), (50, 100)), ((50, 0), (50, 100))]}
    metadata, results = chunked(elsewhere, {"a": torch.ones(100, 100)}, boxes)
    with pytest.raises(ObjectNotFoundError) as caught:
        MlstateWriter(store, STEP).finish(metadata, [results])
    assert "all ranks" in (caught.value.remedy or "")
    assert store.get_state_keys() == []
    MlstateWriter(elsewhere, STEP).finish(metadata, [results])
    assert load_all(MlstateReader(elsewhere, STEP))["a"].min() == 1


def test_a_planner_that_gives_another_tensor_is_refused(store):
    tensor = torch.ones(4)
    chunk = dcp.metadata.ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))
    properties = dcp.metadata.TensorProperties(dtype=torch.float16)
    data = dcp.planner.TensorWriteData(chunk, properties, tensor.shape)
    place = dcp.metadata.MetadataIndex("a", chunk.offsets)
    item = dcp.planner.WriteItem(place, dcp.planner.WriteItemType.TENSOR, None, data)
    plan = dcp.planner.SavePlan([item])
    with pytest.raises(FormatError, match="another tensor"):
        MlstateWriter(store, STEP).write_data(plan, Parts(tensor, chunk))


def test_the_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
    section = page.split("## torch.distributed.checkpoint")[1]
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state(), random.getstate()
    try:
        exec(section.split("```python\n")[1].split("```")[0], {})
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
    kept = " ".join(f"pytorch.net.run-7.step-{step}" for step in (2000, 3000, 4000))
    assert capsys.readouterr().out == kept + "\n"

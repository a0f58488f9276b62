"""The integration with Lightning: real training, interrupted and resumed through a store."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, StateKey, StateType, with_state_type
from mlstate.errors import FormatError, IntegrityError, StateExistsError, StateNotFoundError
from tests.frameworks.entry_points import ROOT
from tests.frameworks.models import needs
from tests.support.models import same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
TYPE = StateType("pytorch", "net")


def task(seed=0, **more):
    lightning = needs("lightning")

    class Task(lightning.LightningModule):
        def __init__(self, width=80, **others):
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(seed)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(64, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2)
            )
            self.frozen = torch.nn.Linear(64, 128).requires_grad_(False)

        def training_step(self, batch, index):
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.3)
            return [optimizer], [steps]

        def train_dataloader(self):
            generator = torch.Generator().manual_seed(1)
            data = torch.randn(24, 64, generator=generator)
            labels = torch.randint(0, 2, (24,), generator=generator)
            return torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(data, labels), batch_size=4
            )

    return Task(**more)


def trainer(folder, plugin=None, *, epochs=4, callbacks=(), **more):
    lightning = needs("lightning")
    every = lightning.pytorch.callbacks.ModelCheckpoint(
        Path(folder) / "checkpoints", **{"save_top_k": -1, "save_last": True, **more}
    )
    return lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[] if plugin is None else [plugin],
        callbacks=[every, *callbacks],
    )


@pytest.fixture
def integration():
    needs("lightning")
    import mlstate.integrations.lightning

    return mlstate.integrations.lightning


@pytest.fixture
def io(integration, store):
    return integration.StoreCheckpointIO(store, TYPE, "a")


def names(store, state_type=TYPE):
    return {key.training_id for key in store.get_state_keys(state_type)}


def state_of(training):
    """All that a checkpoint of Lightning's own has of a trainer, without its paths."""
    checkpoint = training._checkpoint_connector.dump_checkpoint()
    return {name: value for name, value in checkpoint.items() if name != "callbacks"}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(equal(a[n], b[n]) for n in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("by", ["path", "last", "key"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not_bit_for_bit(io, tmp_path, by):
    whole = trainer(tmp_path / "whole", epochs=4)
    whole.fit(task())
    trainer(tmp_path / "parts", io, epochs=2).fit(task())
    path = {
        "path": tmp_path / "parts" / "checkpoints" / "epoch=1-step=12.ckpt",
        "last": "last",
        "key": "pytorch.net.a-epoch-1-step-12",
    }[by]
    second = trainer(tmp_path / "parts", io, epochs=4)
    second.fit(task(7), ckpt_path=path)
    assert second.global_step == 24
    first, found = state_of(whole), state_of(second)
    assert list(first) == list(found)
    assert all(equal(first[name], found[name]) for name in first)
    assert same(values(second.lightning_module), values(whole.lightning_module))


def test_what_is_read_is_what_lightning_itself_would_read(io, tmp_path):
    """The checkpoint of one trainer, written in both ways."""
    training = trainer(tmp_path, epochs=1)
    training.fit(task())
    plain = tmp_path / "checkpoints" / "epoch=0-step=6.ckpt"
    usual = torch.load(plain, weights_only=True)
    assert usual["state_dict"]._metadata
    io.save_checkpoint(usual, tmp_path / "x.ckpt")
    found = io.load_checkpoint(tmp_path / "x.ckpt")
    assert found.keys() == usual.keys()
    for name in usual.keys() - {"state_dict"}:
        assert equal(found[name], usual[name]), name
    assert same(found["state_dict"], usual["state_dict"])
    assert found["state_dict"]._metadata == usual["state_dict"]._metadata


def test_the_model_is_a_state_of_its_own_and_equal_tensors_are_there_once(io, store, tmp_path):
    training = trainer(tmp_path, io, epochs=2)
    training.fit(task())
    assert names(store) == {"a-epoch-0-step-6", "a-epoch-1-step-12", "a-last"}
    module = with_state_type(task(3), TYPE)
    store.load(module, StateKey(TYPE, "a-last"))
    assert same(values(module), values(training.lightning_module))
    frozen = training.lightning_module.frozen.weight.nbytes
    sizes = [path.stat().st_size for path in store.folder.glob("objects/*/*")]
    assert len([size for size in sizes if size > frozen]) == 1
    assert store.meta(StateKey(TYPE, "a-last"))["global_step"] == 12


def test_top_k_and_removal(io, store, tmp_path):
    training = trainer(
        tmp_path, io, epochs=4, monitor="loss", save_top_k=1, save_last="link", mode="min"
    )
    training.fit(task())
    best = Path(training.checkpoint_callback.best_model_path)
    assert names(store) == {io.key(best).training_id}
    assert len(store.get_state_keys()) == 2  # the model, and all else
    assert io.load_checkpoint(best.parent / "last.ckpt")["global_step"] > 0
    io.remove_checkpoint(best)
    assert store.get_state_keys() == []
    assert not best.exists()
    io.remove_checkpoint(best)
    with pytest.raises(StateNotFoundError):
        io.load_checkpoint(best)


KILLED = """
import os, sys, torch
from mlstate import LocalStateStore, StateType
from mlstate.integrations.lightning import StoreCheckpointIO
store = LocalStateStore(sys.argv[1])
saved, calls, at = store.save_state_dict, [], int(sys.argv[3])
def save(*arguments, **options):
    if len(calls) == at:
        os._exit(9)
    calls.append(1)
    return saved(*arguments, **options)
def delete(key):
    os._exit(9)
store.save_state_dict, store.delete = save, delete
io = StoreCheckpointIO(store, StateType("pytorch", "net"), "a")
checkpoint = {"state_dict": {"w": torch.ones(2)}, "n": torch.zeros(3), "epoch": 9}
io.save_checkpoint(checkpoint, sys.argv[2])
"""


@pytest.mark.parametrize(
    ("first", "at"),
    [(True, 1), (True, 2), (False, 1)],
    ids=["before the model", "before the old is deleted", "the first of all"],
)
def test_what_a_killed_save_left_is_deleted_by_the_next(  # noqa: PLR0917
    integration, io, store, tmp_path, first, at
):
    path, other = tmp_path / "last.ckpt", tmp_path / "other.ckpt"
    one = {"state_dict": {"w": torch.zeros(2)}, "n": torch.ones(3), "epoch": 1}
    io.save_checkpoint(one, other)
    if first:
        io.save_checkpoint(one, path)
    there = len(store.get_state_keys())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.folder), str(path), str(at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 9
    assert len(store.get_state_keys()) == there + 1
    if first:  # whole, the old or the new
        assert io.load_checkpoint(path)["epoch"] == (1 if at == 1 else 9)
    io.save_checkpoint(one, path)
    assert len(store.get_state_keys()) == 4
    (left,) = [key for key in store.get_state_keys() if key.training_id == "a-last"]
    beside = integration._type_of_rest(TYPE)
    orphan = StateKey(beside, f"{integration._mark(left)}{'0' * 32}")
    store.save_state_dict({"n": torch.ones(2)}, orphan)
    io.remove_checkpoint(path)
    assert len(store.get_state_keys()) == 2
    assert equal(io.load_checkpoint(other)["n"], one["n"])


def test_tests_load_the_best(io, store, tmp_path):
    lightning = needs("lightning")
    assert lightning
    module = task()
    type(module).test_step = lambda self, batch, index: self.log("x", self.net(batch[0]).sum())
    type(module).test_dataloader = type(module).train_dataloader
    training = trainer(tmp_path, io, epochs=1)
    training.fit(module)
    (wanted,) = training.test(module)
    with torch.no_grad():
        module.net[0].weight.zero_()
    (found,) = training.test(module, ckpt_path="best")
    assert found == wanted


def test_another_run_of_the_name_is_refused_and_changes_nothing(integration, io, store, tmp_path):
    trainer(tmp_path / "a", io, epochs=1).fit(task())
    key = StateKey(TYPE, "a-epoch-0-step-6")
    before = {one: store.digest(one) for one in store.get_state_keys()}
    with pytest.raises(StateExistsError, match="another name"):
        trainer(tmp_path / "b", io, epochs=1).fit(task(5))
    assert {one: store.digest(one) for one in store.get_state_keys()} == before
    other = integration.StoreCheckpointIO(store, TYPE, "a", overwrite=True)
    trainer(tmp_path / "b", other, epochs=1).fit(task(5))
    assert store.digest(key) != before[key]
    assert len(store.get_state_keys()) == 4


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (argparse.Namespace(a=1), "argparse.Namespace"),
        (Path("x"), "pathlib"),
        (lambda: None, "builtins.function"),
    ],
)
def test_other_objects_are_refused_by_their_place(io, store, tmp_path, value, kind):
    checkpoint = {"state_dict": {"x": torch.ones(3)}, "hyper": {"a": [1, {"deep": value}]}}
    with pytest.raises(FormatError, match=kind) as caught:
        io.save_checkpoint(checkpoint, tmp_path / "x.ckpt")
    assert caught.value.path == "hyper.a.1.deep"
    assert store.get_state_keys() == []
    assert not (tmp_path / "x.ckpt").exists()


def test_nothing_of_a_pickle_runs(io, store, tmp_path):
    """Somebody who can write to the store puts another pickle where the plain values are."""
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    io.save_checkpoint({"state_dict": {"x": torch.ones(3)}, "epoch": 1}, tmp_path / "x.ckpt")
    (beside,) = [key for key in store.get_state_keys() if key.state_type != TYPE]
    torch.save(Evil(), tmp_path / "evil")
    store.save_state_dict(
        store.load_state_dict(beside),
        beside,
        files={"lightning.pt": tmp_path / "evil"},
        overwrite=True,
    )
    with pytest.raises(FormatError, match="no plain values"):
        io.load_checkpoint(tmp_path / "x.ckpt")
    assert not marker.exists()


def test_a_state_with_other_optimizers_is_refused(io, store, tmp_path):
    checkpoint = {"state_dict": {"x": torch.ones(3)}, "optimizer_states": [torch.ones(2)]}
    io.save_checkpoint(checkpoint, tmp_path / "x.ckpt")
    (beside,) = [key for key in store.get_state_keys() if key.state_type != TYPE]
    tensors = {name: tensor + 1 for name, tensor in store.load_state_dict(beside).items()}
    store.save_state_dict(tensors, beside, files=dict(store.files(beside)), overwrite=True)
    with pytest.raises(IntegrityError):
        io.load_checkpoint(tmp_path / "x.ckpt")


def test_names_that_fall_together_and_keys_that_are_no_texts(io, tmp_path):
    shared = torch.arange(3.0)
    rest = {
        "count": torch.tensor(5),
        "a": {"b": torch.ones(1), 0: torch.zeros(2), "0": torch.ones(2)},
        "a.b": torch.zeros(1),
        "twice": [shared, (shared, None, float("inf"), b"x", 2**70)],
        "size": torch.Size([1, 2]),
        "none": {},
    }
    io.save_checkpoint({"state_dict": {"x": torch.ones(3)}, **rest}, tmp_path / "x.ckpt")
    found = io.load_checkpoint(tmp_path / "x.ckpt")
    found.pop("state_dict")
    assert equal(found, rest)


def test_a_crash_while_one_is_replaced_leaves_the_old_one_whole(io, store, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"

    def checkpoint(number):
        tensor = torch.full((3,), float(number))
        return {"state_dict": {"x": tensor}, "epoch": number, "optimizer_states": [tensor]}

    io.save_checkpoint(checkpoint(1), path)
    real, calls = LocalStateStore.save_state_dict, []

    def crash(self, state_dict, key, **options):
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, state_dict, key, **options)

    monkeypatch.setattr(LocalStateStore, "save_state_dict", crash)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint(checkpoint(2), path)
    monkeypatch.undo()
    assert equal(dict(io.load_checkpoint(path)["state_dict"]), checkpoint(1)["state_dict"])
    assert io.load_checkpoint(path)["epoch"] == 1
    io.save_checkpoint(checkpoint(3), path)
    assert equal(io.load_checkpoint(path)["optimizer_states"], checkpoint(3)["optimizer_states"])


def test_what_is_no_checkpoint_of_ours(io, store, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(FormatError, match="without this plugin"):
        io.load_checkpoint(tmp_path / "plain.ckpt")
    key = store.save_state_dict({"x": torch.ones(3)}, StateKey(TYPE, "alone"))
    with pytest.raises(FormatError, match=r"store\.load"):
        io.load_checkpoint(str(key))
    with pytest.raises(StateNotFoundError, match="no such state"):
        io.load_checkpoint("pytorch.net.nothing")
    with pytest.raises(FormatError, match="valid part"):
        type(io)(store, TYPE, "a/b")

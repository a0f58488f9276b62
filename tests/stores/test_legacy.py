"""The predecessor's folders of .pt files, and models of its protocol: read, never written."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch

from mlstate import LocalStateStore, StateKey, StateType, state_digest
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    ReadOnlyStoreError,
    StateExistsError,
)
from tests.pickled.crafted import legacy, state, storage, tensor
from tests.support.models import LINEAR, BytesModel, net, same, values

KEY = StateKey(StateType("pytorch", "net", ("cls10",)), "imagenet")


def dump(tensors: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pytorch.net.cls10.imagenet.pt").write_bytes(dump(net(1).state_dict()))
    (tmp_path / "pytorch.net.plain.pt").write_bytes(dump(net(2).state_dict()))
    for other in ("notes.txt", "checkpoint.pt", "pytorch.net2.imagenet.pt", "a..b.pt"):
        (tmp_path / other).write_bytes(b"")
    return tmp_path


def test_they_list_and_load(folder):
    store = LocalStateStore(folder)
    assert store.get_state_keys(LINEAR) == [StateKey(LINEAR, "plain"), KEY]
    assert store.exists(KEY)
    model = net(3)
    result = store.load(model, KEY)
    assert same(values(model), values(net(1)))
    assert result.digest == store.digest(KEY) == state_digest(net(1).state_dict())
    assert same(store.load_state_dict(KEY, names=["0.bias"]), {"0.bias": net(1)[0].bias.detach()})
    assert dict(store.files(KEY)) == {}


def test_the_rules_of_every_load_hold(folder):
    store = LocalStateStore(folder)
    store.load(net(3), KEY, digest=store.digest(KEY), assign=True)
    with pytest.raises(IncompatibleStateError):
        store.load(net(3, classes=2), KEY)
    store.load(net(3, classes=2), KEY, ignore_mismatched_sizes=True)


def test_reading_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    store = LocalStateStore(folder)
    store.load(net(3), KEY)
    store.get_state_keys(LINEAR)
    assert sorted(folder.rglob("*")) == before


def test_new_states_are_saved_beside_them(folder):
    store = LocalStateStore(folder)
    new = store.save(net(4), "new")
    assert store.get_state_keys(LINEAR) == [new, StateKey(LINEAR, "plain"), KEY]
    assert (folder / "objects").is_dir()
    assert (folder / "pytorch.net.plain.pt").exists()


def test_their_keys_are_taken(folder):
    store = LocalStateStore(folder)
    with pytest.raises(StateExistsError):
        store.save(net(4), "plain")
    before = sorted(folder.rglob("*"))
    assert store.save(net(2), "plain") == StateKey(LINEAR, "plain")  # the same weights
    assert sorted(folder.rglob("*")) == before
    store.save(net(2), "plain", meta={"x": 1}, overwrite=True)  # brings it over
    assert store.meta(StateKey(LINEAR, "plain")) == {"x": 1}
    store.load(net(5), StateKey(LINEAR, "plain"))
    store.save(net(4), "plain", overwrite=True)
    model = net(5)
    store.load(model, StateKey(LINEAR, "plain"))
    assert same(values(model), values(net(4)))
    assert (folder / "pytorch.net.plain.pt").exists()


def test_they_are_not_deleted(folder):
    store = LocalStateStore(folder)
    with pytest.raises(ReadOnlyStoreError, match="remove the file"):
        store.delete(KEY)
    with pytest.raises(NotImplementedError):
        store.delete(KEY)
    assert store.exists(KEY)


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/never", "w"))


def test_no_older_state_takes_the_place_of_one_that_is_deleted(folder):
    store = LocalStateStore(folder)
    key = store.save(net(4), "plain", overwrite=True)
    with pytest.raises(ReadOnlyStoreError, match="remove the file"):
        store.delete(key)
    (folder / "pytorch.net.plain.pt").unlink()
    store.delete(key)
    assert not store.exists(key)


def test_nothing_is_run_that_a_pickle_contains(folder):
    import pickle

    for content in (
        dump({"a": Evil()}),
        pickle.dumps(Evil(), protocol=2),
        b"",
        b"garbage",
        dump([1]),
    ):
        (folder / "pytorch.net.evil.pt").write_bytes(content)
        model = net(3)
        with pytest.raises(FormatError, match=r"pytorch\.net\.evil\.pt"):
            LocalStateStore(folder).load(model, StateKey(LINEAR, "evil"))
        assert same(values(model), values(net(3)))


def test_the_only_state_dict_in_a_checkpoint_is_read(folder):
    (folder / "pytorch.net.within.pt").write_bytes(dump({"state_dict": net(1).state_dict()}))
    model = net(3)
    LocalStateStore(folder).load(model, StateKey(LINEAR, "within"))
    assert same(values(model), values(net(1)))


def test_a_nested_checkpoint_is_refused_by_name(folder):
    nested = {"state_dict": net(1).state_dict(), "ema": net(2).state_dict()}
    (folder / "pytorch.net.nested.pt").write_bytes(dump(nested))
    with pytest.raises(FormatError, match="state_dict") as caught:
        LocalStateStore(folder).load(net(3), StateKey(LINEAR, "nested"))
    assert caught.value.tensor == "state_dict"
    assert caught.value.path == str(folder / "pytorch.net.nested.pt")


def test_a_model_of_the_older_protocol_gets_the_files_bytes(folder):
    (folder / "sklearn.forest.old.pt").write_bytes(b"any bytes at all")
    model = BytesModel()
    LocalStateStore(folder).load(model, StateKey(BytesModel.state_type, "old"))
    assert model.state == b"any bytes at all"
    other = BytesModel()
    with pytest.raises(IncompatibleStateError):
        LocalStateStore(folder).load(other, KEY)


def test_a_model_of_both_protocols_is_loaded_by_names_and_tensors(folder):
    class Both(torch.nn.Linear):
        state_type = StateType("pytorch", "both")

        def get_state(self):
            raise AssertionError

        def set_state(self, state):
            raise AssertionError

    model = Both(3, 3)
    (folder / "pytorch.both.old.pt").write_bytes(dump(model.state_dict()))
    store = LocalStateStore(folder)
    other = Both(3, 3)
    store.load(other, StateKey(Both.state_type, "old"))
    assert same(values(other), values(model))
    assert store.digest(store.save(model, "new")) == state_digest(model.state_dict())


def test_a_legacy_file_without_its_storages_loads_nothing(tmp_path):
    """Torch makes tensors of memory that nobody wrote, where the list of storages is empty."""
    kept = tensor(storage(4, more=b"N"), (2, 2), (2, 1))
    (tmp_path / "pytorch.net.old.pt").write_bytes(legacy(state(kept), [], []))
    with pytest.raises(FormatError, match="storage"):
        LocalStateStore(tmp_path).load_state_dict(StateKey.parse("pytorch.net.old"))


def test_no_torch_is_imported_to_copy_them(folder, tmp_path):
    code = """
import sys
from mlstate.__main__ import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    given = ["copy", str(KEY), "--from", str(folder), "--to", str(tmp_path / "new")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *given], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    new = LocalStateStore(tmp_path / "new")
    assert new.digest(KEY) == state_digest(net(1).state_dict())

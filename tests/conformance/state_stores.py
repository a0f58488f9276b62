"""One suite for every store that saves. A new one joins by subclassing `StateStoreSuite`.

The subclass gives a fixture ``store``: an empty store, and is named ``Test...``.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import execnet
import pytest
import torch

from mlstate import LoadResult, StateKey, StateType, state_digest, verify, with_state_type
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    IntegrityError,
    StateExistsError,
    StateNotFoundError,
)
from mlstate.format.encode import encode_state
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.phrases import in_shell
from mlstate.stores.save_request import SaveRequest
from tests.support.models import LINEAR, BytesModel, NoModule, net, same, values


class StateStoreSuite:
    def test_an_empty_store_has_no_states(self, store):
        assert store.get_state_keys(LINEAR) == []
        assert not store.exists(StateKey(LINEAR, "a"))

    def test_what_was_saved_is_loaded(self, store):
        model, other = net(1), net(2)
        key = store.save(model, training_id="a")
        assert key == StateKey(LINEAR, "a")
        result = store.load(other, state_key=key)
        assert same(values(model), values(other))
        assert isinstance(result, LoadResult)
        missing, unexpected = result
        assert missing == unexpected == result.mismatched_keys == result.cast_keys == []
        assert result.digest == store.digest(key) == state_digest(model.state_dict())

    def test_keys_are_those_that_are_compatible_sorted(self, store):
        keys = [
            StateKey(StateType("pytorch", "net", extra), training)
            for extra in [("z",), (), ("a", "b")]
            for training in ("two", "one")
        ]
        others = [StateKey.parse("pytorch.net2.one"), StateKey.parse("jax.net.one")]
        for key in [*keys, *others]:
            store.save_state_dict({"x": torch.zeros(1)}, key)
        assert store.get_state_keys(LINEAR) == sorted(keys)
        assert store.get_state_keys(StateType("pytorch", "net", ("other",))) == sorted(keys)
        assert store.get_state_keys(StateType("jax", "net")) == [others[1]]
        assert all(store.exists(key) for key in [*keys, *others])

    def test_saving_the_same_again_changes_nothing(self, store):
        key = store.save(net(1), "a", files={"f": b"1"})
        assert store.save(net(1), "a", files={"f": b"1"}) == key

    def test_saving_the_same_again_does_not_even_begin_to_write(self, store, monkeypatch):
        files = {"f": b"1", "empty": b""}
        store.save(net(1), "a", files=files)

        def writer(*_):
            raise AssertionError("nothing is to be written")

        for kind in (FolderObjectStore, MemoryObjectStore):
            monkeypatch.setattr(kind, "writer", writer)
        store.save(net(1), "a", files=files)

    def test_other_weights_under_a_key_are_refused(self, store):
        key = store.save(net(1), "a")
        with pytest.raises(StateExistsError) as caught:
            store.save(net(2), "a")
        assert caught.value.key == key
        assert "other weights" in str(caught.value)
        assert store.digest(key) == state_digest(net(1).state_dict())

    def test_other_files_under_a_key_are_refused(self, store):
        store.save(net(1), "a", files={"f": b"1"})
        for files in ({}, {"f": b"2"}, {"f": b"1", "g": b""}):
            with pytest.raises(StateExistsError, match="other files"):
                store.save(net(1), "a", files=files)

    def test_overwrite_replaces(self, store):
        key = store.save(net(1), "a", files={"f": b"1"}, meta={"m": 1})
        store.save(net(2), "a", files={"g": b"2"}, overwrite=True)
        model = net(3)
        store.load(model, key)
        assert same(values(model), values(net(2)))
        assert dict(store.files(key)) == {"g": b"2"}
        assert dict(store.get(key).entry.meta) == {}

    def test_other_meta_of_the_same_state_stays_with_a_warning(self, store):
        key = store.save(net(1), "a", meta={"accuracy": 0.5})
        with pytest.warns(UserWarning, match="stored meta stays"):
            store.save(net(1), "a", meta={"accuracy": 0.6})
        assert store.get(key).entry.meta == {"accuracy": 0.5}
        store.save(net(1), "a")  # says nothing of meta: no warning
        store.save(net(1), "a", meta={"accuracy": 0.6}, overwrite=True)
        assert store.get(key).entry.meta == {"accuracy": 0.6}

    def test_meta_that_toml_cannot_hold_is_refused_before_anything_is_written(self, store):
        with pytest.raises(FormatError):
            store.save(net(1), "a", meta={"nothing": None})
        assert store.get_state_keys(LINEAR) == []

    def test_files_come_back_and_cannot_be_damaged(self, store, tmp_path):
        path = tmp_path / "config.json"
        path.write_bytes(b"{}")
        key = store.save(net(), "a", files={"config.json": path, "sub/b.bin": b"\0" * 20_000})
        files = store.files(key)
        assert list(files) == ["config.json", "sub/b.bin"]
        assert len(files) == 2
        assert files["config.json"] == b"{}"
        assert files["sub/b.bin"] == b"\0" * 20_000
        with pytest.raises(KeyError):
            files["other"]
        with pytest.raises(TypeError):
            files["config.json"] = b"x"

    @pytest.mark.parametrize(
        "name", ["../x", "/etc/passwd", "a\\b", "C:x", "", "a//b", "a\nb", "."]
    )
    def test_files_with_names_that_leave_their_bounds_are_refused(self, store, name):
        with pytest.raises(FormatError):
            store.save(net(), "a", files={name: b""})
        assert store.get_state_keys(LINEAR) == []

    def test_a_state_of_another_type_is_refused(self, store):
        key = store.save_state_dict(net(1).state_dict(), StateKey.parse("pytorch.other.a"))
        model = net(2)
        with pytest.raises(IncompatibleStateError):
            store.load(model, key)
        assert same(values(model), values(net(2)))

    def test_a_model_without_a_state_type_is_refused(self, store):
        key = store.save(net(1), "a")
        with pytest.raises(IncompatibleStateError, match="with_state_type"):
            store.load(torch.nn.Linear(1, 1), key)
        with pytest.raises(IncompatibleStateError, match="with_state_type"):
            store.save(torch.nn.Linear(1, 1), "a")

    def test_an_unknown_key_is_an_error_that_names_near_misses(self, store):
        store.save(net(1), "imagenet")
        unknown = StateKey(LINEAR, "imagenett")
        for use in (
            lambda: store.load(net(), unknown),
            lambda: store.load_state_dict(unknown),
            lambda: store.digest(unknown),
            lambda: store.files(unknown),
            lambda: store.delete(unknown),
        ):
            with pytest.raises(StateNotFoundError, match=r"did you mean pytorch.net.imagenet\?"):
                use()
        with pytest.raises(KeyError):
            store.digest(unknown)

    def test_a_key_is_a_key_and_not_its_text(self, store):
        store.save(net(1), "a")
        for use in (
            lambda: store.load(net(), "pytorch.net.a"),
            lambda: store.load_state_dict("pytorch.net.a"),
            lambda: store.digest("pytorch.net.a"),
            lambda: store.delete("pytorch.net.a"),
            lambda: store.save_state_dict({}, "pytorch.net.a"),
        ):
            with pytest.raises(FormatError, match=r"StateKey.parse\('pytorch.net.a'\)"):
                use()

    def test_what_is_of_the_wrong_kind_is_refused_with_a_word(self, store):
        model = net(1)
        key = store.save(model, "a")
        for wrong in (
            lambda: store.get_state_keys("pytorch.net"),
            lambda: store.get_state_keys(model),
            lambda: store.save_state_dict(model, StateKey(LINEAR, "b")),
            lambda: store.save_state_dict([], StateKey(LINEAR, "b")),
            lambda: store.load(model, key, digest=b"0" * 64),
            lambda: store.save(model, "b", files=["f.txt"]),
            lambda: store.save(model, "b", files={"f": {}}),
            lambda: store.save(model, "b", meta="MIT"),
            lambda: store.save(model, "v1.0"),
        ):
            with pytest.raises(FormatError):
                wrong()
        with pytest.raises(StateNotFoundError, match="no file of this name"):
            store.files(key)["x.json"]
        with pytest.raises(FormatError, match=r"state_dict\['model'\]"):
            store.save_state_dict({"model": values(model), "epoch": 1}, StateKey(LINEAR, "b"))
        assert store.get_state_keys() == [key]

    def test_a_state_without_tensors_is_refused_at_save_and_at_load(self, store):
        nothing = with_state_type(torch.nn.ReLU(), LINEAR)
        key = StateKey(LINEAR, "a")
        for save in (
            lambda: store.save_state_dict({}, key),
            lambda: store.save_state_dict({}, key, files={"f": b"1"}, meta={"a": 1}),
            lambda: store.save(nothing, "a"),
        ):
            with pytest.raises(FormatError, match="without tensors is not stored") as caught:
                save()
            assert caught.value.key == key
            assert not store.exists(key)
        # As older versions saved it.
        store.saver.receive(encode_state([]), StateEntry(key, None), SaveRequest({}, None, False))
        for strict in (True, False):
            with pytest.raises(IncompatibleStateError, match="no tensors; nothing was loaded"):
                store.load(net(1), key, strict=strict)

    def test_meta_and_all_keys(self, store):
        key = store.save(net(1), "a", meta={"license": "MIT"})
        other = store.save_state_dict({"a": torch.ones(1)}, StateKey.parse("jax.x.y"))
        assert store.meta(key) == {"license": "MIT"}
        assert store.meta(other) == {}
        assert store.get_state_keys() == [other, key]

    def test_one_name_is_no_list_of_names(self, store):
        with pytest.raises(FormatError):
            store.load_state_dict(store.save(net(1), "a"), names="0.weight")

    def test_digest_pins(self, store):
        key = store.save(net(1), "a")
        store.load(net(), key, digest=str(store.digest(key)))
        model = net(2)
        with pytest.raises(IntegrityError, match="digest="):
            store.load(model, key, digest="0" * 64)
        with pytest.raises(FormatError):
            store.load(model, key, digest="abc")
        assert same(values(model), values(net(2)))

    def test_a_state_dict_needs_no_model(self, store):
        tensors = {"größe": torch.arange(6).reshape(2, 3), "w": torch.randn(100, 100)}
        key = store.save_state_dict(tensors, StateKey.parse("pytorch.adapter.lora"))
        assert same(store.load_state_dict(key), tensors)
        assert list(store.load_state_dict(key, names=["w"])) == ["w"]
        assert store.load_state_dict(key, names=[]) == {}
        with pytest.raises(StateNotFoundError) as caught:
            store.load_state_dict(key, names=["ww"])
        assert caught.value.tensor == "ww"

    def test_what_is_loaded_is_the_users_own(self, store):
        key = store.save_state_dict(
            {"a": torch.ones(9), "b": torch.ones(600, 600)}, StateKey.parse("pytorch.x.y")
        )
        for tensor in store.load_state_dict(key).values():
            tensor.zero_()
        assert all(bool((tensor == 1).all()) for tensor in store.load_state_dict(key).values())

    def test_models_of_the_older_protocol(self, store):
        for size in (0, 5, 40_000):
            key = store.save(BytesModel(b"\x80" * size), f"n{size}")
            model = BytesModel()
            assert store.load(model, key).digest == store.digest(key)
            assert model.state == b"\x80" * size

    def test_opaque_bytes_do_not_go_into_a_model_of_tensors_nor_the_other_way(self, store):
        opaque = store.save(BytesModel(b"1234"), "a")
        model = net(1)
        model.state_type = BytesModel.state_type
        with pytest.raises(IncompatibleStateError, match=r"mlstate\.bytes"):
            store.load(model, opaque)
        tensors = store.save(model, "b")
        with pytest.raises(IncompatibleStateError, match="takes no tensors"):
            store.load(BytesModel(), tensors)

    def test_a_model_need_not_be_a_module(self, store):
        key = store.save(NoModule(x=torch.ones(3)), "a")
        model = NoModule(x=torch.zeros(3))
        store.load(model, key)
        assert same(model.tensors, {"x": torch.ones(3)})
        with pytest.raises(IncompatibleStateError):
            store.load(NoModule(y=torch.zeros(3)), key)
        with pytest.raises(IncompatibleStateError):
            store.load(model, key, assign=True)

    def test_delete(self, store):
        key, other = store.save(net(1), "a"), store.save(net(1), "b")
        store.delete(key)
        assert not store.exists(key)
        assert store.get_state_keys(LINEAR) == [other]
        with pytest.raises(StateNotFoundError):
            store.delete(key)
        store.load(net(), other)
        store.save(net(2), "a")  # the key is free again
        assert store.exists(key)

    def test_two_keys_that_differ_in_case_only_are_refused(self, store):
        store.save(net(1), "ImageNet")
        with pytest.raises(StateExistsError, match="case"):
            store.save(net(1), "imagenet")
        assert store.get_state_keys(LINEAR) == [StateKey(LINEAR, "ImageNet")]

    def test_a_refused_save_writes_nothing(self, store):
        nested = torch.optim.SGD(net().parameters(), lr=1, momentum=0.9).state_dict()
        with pytest.raises(FormatError, match="flat mapping"):
            store.save_state_dict(nested, StateKey.parse("pytorch.net.optimizer"))
        assert store.get_state_keys(LINEAR) == []

    def test_of_racing_savers_of_one_key_one_wins(self, store):
        models = [net(seed) for seed in range(6)]

        def save(seed: int) -> int | None:
            try:
                store.save(models[seed], "a")
            except StateExistsError:
                return None
            return seed

        with ThreadPoolExecutor(6) as pool:
            winners = [seed for seed in pool.map(save, range(6)) if seed is not None]
        assert len(winners) == 1
        model = net(99)
        store.load(model, StateKey(LINEAR, "a"))
        assert same(values(model), values(net(winners[0])))

    def test_of_racing_savers_of_the_same_state_all_succeed(self, store):
        model = net(1)
        with ThreadPoolExecutor(6) as pool:
            keys = list(pool.map(lambda _: store.save(model, "a"), range(6)))
        assert set(keys) == {StateKey(LINEAR, "a")}

    def test_a_pickled_or_copied_store_has_the_same_states(self, store):
        key = store.save(net(1), "a", files={"f": b"1"}, meta={"m": {"n": 1}})
        pickled = pickle.loads(pickle.dumps(store))
        for again in (pickled, copy.copy(store), copy.deepcopy(store)):
            assert again.digest(key) == store.digest(key)
            assert same(again.load_state_dict(key), values(net(1)))
            assert dict(again.files(key)) == {"f": b"1"}
        assert pickled.save(net(2), "b") == StateKey(LINEAR, "b")

    def test_its_name_is_a_text_that_can_be_sent_by_its_type(self, store):
        assert execnet.loads(execnet.dumps(repr(store))) == repr(store)
        assert in_shell(store) == in_shell(store.phrase)

    def test_after_everything_the_store_passes_verify(self, store):
        """Saves, savings of the same, overwriting and deleting leave objects that are right."""
        key = store.save(net(1), "a", files={"labels.json": b"[1]", "empty.txt": b""})
        other = store.save(net(1), "b", meta={"license": "MIT"})
        store.save(net(1), "a", files={"labels.json": b"[1]", "empty.txt": b""})
        opaque = store.save(BytesModel(b"x" * 40_000), "c")
        tensors = {"mask": torch.rand(40_000) < 0.5, "half": torch.rand(20_000).half()}
        store.save_state_dict(tensors, other, overwrite=True)
        store.delete(store.save(net(2), "d"))
        for saved in (key, other, opaque):
            self.bring(store, saved)
        report = verify(self.opened(store))
        assert report.findings == ()
        assert report.ok
        assert set(report.states) == {key, other, opaque}
        assert report.absent == report.partial == report.unpinned == report.unverifiable == ()
        # What no state needs any more may be there too: at least these are.
        assert report.objects >= (1 + 2 + 2) + (1 + 2) + (1 + 1)
        assert verify(self.opened(store), [key]).objects == 1 + 2 + 2

    def opened(self, store):
        """The store itself, where the one under test is a way to it."""
        return store

    def bring(self, store, key):
        """Make sure that a state is where `verify` looks for it; a view looks into its cache."""

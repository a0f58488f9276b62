"""Costs that do not grow with a store, counted: times say little on a busy machine."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlstate import LocalStateStore, StateKey, StateType
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.parallel import THREADS

ASKED = StateType("pytorch", "asked")

names = st.lists(
    st.one_of(
        st.text(st.sampled_from("aB9_-. é"), max_size=9).map(lambda text: f"{text}.toml"),
        st.sampled_from(
            ["con.toml", "x.CON.toml", "a.b.c.toml", ".toml", "a\nb.toml", "a.toml\nb.toml"]
        ),
        st.integers(63, 66).map(lambda length: f"{'a' * length}.toml"),
        st.text(max_size=5),
    )
)


@given(names, st.sampled_from(["pytorch", "no part", "nul"]), st.sampled_from(["net", "a.b", ""]))
def test_the_keys_of_a_folder_are_those_of_its_paths(found, backend, architecture):
    folder = f"states/{backend}/{architecture}"
    one_by_one = [layout.key_of_state_path(f"{folder}/{name}") for name in found]
    wanted = [key for key in one_by_one if key is not None]
    assert layout.keys_in_state_folder(folder, found) == sorted(wanted)


def save_tiny(store: LocalStateStore, *keys: StateKey) -> None:
    for key in keys:
        store.save_state_dict({"w": torch.tensor([len(str(key))])}, key)


@pytest.fixture
def asked(monkeypatch):
    """Counts what the file system is asked: listings and files opened, by path."""
    seen: Counter[str] = Counter()

    def counting(real):
        def call(path, *arguments, **options):
            seen[f"{real.__name__} {os.fspath(path)}"] += 1
            return real(path, *arguments, **options)

        return call

    for real in (os.listdir, os.scandir, os.open):
        monkeypatch.setattr(os, real.__name__, counting(real))
    return seen


@pytest.mark.parametrize("others", [0, 40])
def test_listing_a_type_and_finding_a_state_do_not_look_at_other_architectures(
    tmp_path, asked, others
):
    store = LocalStateStore(tmp_path)
    key = StateKey(ASKED, "a")
    save_tiny(store, key)
    save_tiny(store, *(StateKey(StateType("pytorch", f"other{n}"), "a") for n in range(others)))
    asked.clear()
    assert store.get_state_keys(ASKED) == [key]
    # Its own folder, and the store's for checkpoints of MLModule.
    assert asked == {f"listdir {tmp_path / 'states/pytorch/asked'}": 1, f"scandir {tmp_path}": 1}
    asked.clear()
    assert store.exists(key)
    assert not store.exists(StateKey(ASKED, "b"))
    assert sorted(asked) == [f"open {tmp_path}/states/pytorch/asked/{name}.toml" for name in "ab"]


def test_keys_are_sorted_by_fields_whatever_shares_their_types(tmp_path):
    store = LocalStateStore(tmp_path)
    types = [
        ASKED,
        StateType("pytorch", "asked", ("z",)),
        StateType("pytorch", "asked", ("a", "z")),
    ]
    keys = [StateKey(kind, f"{n}") for kind in types for n in (1, 10, 2)]
    legacy = StateKey(StateType("pytorch", "asked", ("m",)), "old")
    random.shuffle(keys)
    save_tiny(store, *keys)
    for key in (legacy, keys[0]):
        torch.save({"w": torch.zeros(1)}, tmp_path / f"{key}.pt")
    assert store.get_state_keys() == sorted([*keys, legacy])
    assert store.get_state_keys(ASKED) == sorted([*keys, legacy])


@pytest.mark.parametrize("states", [4, 12])
def test_pruning_reads_each_state_object_once_a_thread_and_no_tensor(tmp_path, monkeypatch, states):
    store = LocalStateStore(tmp_path)
    shared = torch.arange(5000.0)
    for number in range(states):
        key = StateKey(ASKED, f"{number}")
        own = torch.full((5000,), float(number))
        store.save_state_dict({"shared": shared, "own": own}, key)
        copy = StateKey(ASKED, f"{number}-copy")
        store.save_state_dict({"shared": shared, "own": own}, copy)
    gone = StateKey(ASKED, "gone")
    store.save_state_dict({"own": torch.full((5000,), -1.0)}, gone)
    (tmp_path / layout.state_path(gone)).unlink()
    for path in tmp_path.glob("objects/*/*"):
        os.utime(path, (1, 1))
    opened: Counter[str] = Counter()
    real = FolderObjectStore.open

    def counting(self, digest):
        opened[digest] += 1
        return real(self, digest)

    monkeypatch.setattr(FolderObjectStore, "open", counting)
    wanted = {store.digest(key) for key in store.get_state_keys(ASKED)}
    assert len(wanted) == states
    for dry_run in (True, False):  # the second moves things, and so looks at all states again
        opened.clear()
        assert len(store.prune(dry_run=dry_run).trashed) == 2
        assert opened.keys() == wanted
        assert max(opened.values()) <= THREADS  # two may meet at one that neither has read

"""What `ls`, `du` and `show` say of encoded objects is what lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlstate import LocalStateStore, compact, describe, usage
from mlstate.operations.usage import usage_of_states
from mlstate.states import StateKey, StateType
from tests.operations.compact.states import KEYS, noise, save_all, weights

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def store(tmp_path) -> LocalStateStore:
    store = LocalStateStore(tmp_path / "store")
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:3])})
    return store


def size_of(store, below: str) -> int:
    return sum(path.stat().st_size for path in Path(store.folder).glob(below))


def test_own_and_shared_are_the_bytes_of_the_forms_that_are_there(store):
    """The base belongs to each state that is built on it."""
    compact(store)
    first, *others = usage(store).states
    base = size_of(store, "objects/*/*") - sum(
        store.own.plain_size(store.digest(key)) for key in KEYS[:3]
    )
    assert (first.own, first.shared) == (store.own.size(store.digest(KEYS[0])), base)
    for state in others:
        (tensor,) = [t for t in describe(store, state.key).tensors if t.digest]
        assert state.shared == base
        assert state.own == store.own.size(state.digest) + tensor.encoded
        assert tensor.base == [t.digest for t in describe(store, KEYS[0]).tensors][-1]


def test_a_base_whose_state_is_gone_is_of_those_that_need_it(store):
    compact(store)
    gone = store.digest(KEYS[0])
    (base,) = [tensor.digest for tensor in describe(store, KEYS[0]).tensors if tensor.digest]
    store.delete(KEYS[0])
    used = usage(store)
    assert used.disk.unnamed == store.own.size(gone)
    assert [state.shared for state in used.states] == [store.own.size(base)] * 2


def test_what_encoding_saves_is_said(store):
    assert usage(store).encoded is None
    report = compact(store)
    encoded = usage(store).encoded
    assert (encoded.objects, encoded.nbytes) == (report.objects, report.after)
    assert encoded.saved == report.saved
    assert encoded.nbytes == size_of(store, "encoded/[0-9a-f][0-9a-f]/*")


def test_a_part_of_a_store_says_the_same(store):
    other = StateKey.parse("pytorch.other.one")
    store.save_state_dict({"w": noise(5)}, other)
    compact(store)
    part = usage_of_states(store, StateType("pytorch", "net"))
    whole = [state for state in usage(store).states if state.key in KEYS]
    assert [(s.key, s.own, s.shared) for s in part] == [(s.key, s.own, s.shared) for s in whole]

"""What a compaction makes smaller, against what, and that nothing is lost by it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate import LocalStateStore, ManifestStore, MemoryStateStore, StateKey, compact, verify
from mlstate.errors import (
    ArgumentError,
    LimitError,
    ReadOnlyStoreError,
    StateNotFoundError,
)
from mlstate.format import layout
from mlstate.format.encoded_object import DEPTH_LIMIT
from mlstate.objects.encoded_forms import head_of
from mlstate.reading import read_state
from mlstate.texts import load_toml
from tests.operations.compact.states import KEYS, digests, files, near, noise, save_all, weights

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def store(tmp_path) -> LocalStateStore:
    return LocalStateStore(tmp_path / "store")


def refs(store, key):
    """The references of a state, by name."""
    return read_state(store.get(key).entry, store.own).refs


def is_plain(store, key, name="layers.0.weight") -> bool:
    return store.own.plain_size(refs(store, key)[name].digest) is not None


def head(store, key, name="layers.0.weight"):
    return head_of(store.own, refs(store, key)[name].digest)


def base_of(store, key, name="layers.0.weight") -> StateKey | None:
    """The state that has the base of a tensor."""
    base = head(store, key, name).base
    (found,) = [k for k in store.get_state_keys() if refs(store, k)[name].digest == base] or [None]
    return found


def requires(store) -> list[str]:
    return load_toml((store.folder / layout.SETTINGS).read_bytes(), "settings")["requires"]


def test_fine_tunes_become_differences_to_the_first(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:5])})
    before = digests(store)
    report = compact(store)
    assert (report.objects, report.looked_at, report.unread) == (8, 10, ())
    assert report.after < 0.3 * report.before
    assert [state.key for state in report.states] == KEYS[1:5]
    assert {state.bases for state in report.states} == {(str(KEYS[0]),)}
    assert is_plain(store, KEYS[0])
    for key in KEYS[1:5]:
        assert not is_plain(store, key)
        assert (head(store, key).depth, base_of(store, key)) == (1, KEYS[0])
    assert digests(store) == before
    assert verify(store).ok
    assert requires(store) == ["encoded"]


def test_what_is_on_the_disk_after_prunings_is_what_the_report_says(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:4])})
    report = compact(store)
    assert report.trash == report.before
    assert sum(p.stat().st_size for p in store.folder.glob("trash/*")) == report.trash
    encoded = sum(p.stat().st_size for p in store.folder.glob("encoded/[0-9a-f][0-9a-f]/*"))
    assert encoded == report.after
    before = digests(store)
    for _ in range(2):
        store.prune(grace_seconds=0)
    assert not list(store.folder.glob("trash/*"))
    assert digests(store) == before
    assert verify(store).ok


def test_again_changes_nothing(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:4])})
    compact(store)
    there = files(store.folder, "")
    again = compact(store)
    assert (again.objects, again.states) == (0, ())
    assert files(store.folder, "") == there


def test_undo_gives_the_same_objects_and_no_requirement(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:4])})
    there = files(store.folder)
    compact(store)
    for _ in range(2):
        store.prune(grace_seconds=0)
    report = compact(store, undo=True)
    assert report.undone
    assert report.objects == 6
    assert report.saved < 0
    assert files(store.folder) == there
    assert requires(store) == []
    assert not list(store.folder.glob("encoded/[0-9a-f][0-9a-f]/*"))
    assert verify(store).ok


def test_undo_of_one_state_leaves_the_others_and_the_requirement(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:4])})
    compact(store)
    report = compact(store, [KEYS[2]], undo=True)
    assert [state.key for state in report.states] == [KEYS[2]]
    assert is_plain(store, KEYS[2])
    assert not is_plain(store, KEYS[1])
    assert requires(store) == ["encoded"]
    assert verify(store).ok


def test_undo_brings_back_what_a_deleted_state_has(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
    compact(store)
    store.delete(KEYS[1])
    compact(store, undo=True)
    assert requires(store) == []
    from mlstate import restore

    restore(store, KEYS[1])
    assert digests(store)[KEYS[1]] == store.digest(KEYS[1])


def test_undo_says_what_is_still_encoded_and_a_pruning_helps(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
    compact(store)
    assert compact(store, [KEYS[2]], undo=True).left == 2
    store.delete(KEYS[1])
    for path in store.folder.glob("trash/*.toml.*"):
        path.unlink()
    report = compact(store, undo=True)
    assert (report.objects, report.left) == (0, 2)
    assert requires(store) == ["encoded"]
    store.prune(grace_seconds=0)
    assert compact(store, undo=True).left == 0
    assert requires(store) == []


def test_a_dry_run_changes_nothing_and_is_about_right(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:4])})
    there = files(store.folder, "")
    said = compact(store, dry_run=True)
    assert files(store.folder, "") == there
    assert said.estimated
    assert "about" in str(said)
    done = compact(store)
    assert (said.objects, said.before, said.looked_at) == (
        done.objects,
        done.before,
        done.looked_at,
    )
    assert 0.5 < said.after / done.after < 1.5


def test_names_alone_make_no_base(store):
    """Tensors of the same names that have nothing to do with each other."""
    save_all(store, {key: {"w": noise(place, torch.float32)} for place, key in enumerate(KEYS[:3])})
    assert compact(store).objects == 0
    assert requires(store) == []


def test_a_near_tensor_of_another_name_is_a_base(store):
    base = noise(1)
    store.save_state_dict({"encoder.layers.0.weight": base}, KEYS[0])
    store.save_state_dict({"model.encoder.layers.0.weight": near(base, 3)}, KEYS[1])
    assert compact(store).objects == 1
    assert head(store, KEYS[1], "model.encoder.layers.0.weight").base is not None


def test_another_architecture_gives_no_base(store):
    other = StateKey.parse("pytorch.other.one")
    base = noise(1, torch.float32)
    save_all(store, {KEYS[0]: {"w": base}, other: {"w": near(base, 3)}})
    assert compact(store).objects == 0


def test_another_type_or_shape_gives_no_base(store):
    base = noise(1, torch.float32)
    save_all(store, {KEYS[0]: {"w": base}, KEYS[1]: {"w": base.reshape(-1)}})
    store.save_state_dict({"w": base.double()}, KEYS[2])
    assert compact(store).objects == 0


@pytest.mark.parametrize(
    ("dtype", "by_default"),
    [(torch.bfloat16, 1), (torch.float16, 0), (torch.float32, 0)],
)
def test_what_is_near_to_nothing_is_encoded_alone_if_it_is_bf16_or_asked_for(
    store, dtype, by_default
):
    store.save_state_dict({"w": noise(1, dtype)}, KEYS[0])
    before = digests(store)
    report = compact(store)
    assert report.objects == by_default
    if by_default:
        assert report.after < 0.7 * report.before
    assert compact(store, alone=True).objects == 1 - by_default
    assert head(store, KEYS[0], "w").base is None
    assert digests(store) == before


def test_what_is_encoded_alone_is_a_base_of_what_comes_later(store):
    store.save_state_dict({"w": noise(1)}, KEYS[0])
    compact(store)
    store.save_state_dict({"w": near(noise(1), 2)}, KEYS[1])
    assert compact(store).objects == 1
    assert (head(store, KEYS[1], "w").depth, base_of(store, KEYS[1], "w")) == (1, KEYS[0])
    assert verify(store).ok


def test_what_saves_less_than_a_tenth_stays_plain(store):
    random = torch.randint(-(2**31), 2**31, (2, 50_000), dtype=torch.int64).int()
    save_all(store, {KEYS[0]: {"w": random[0]}, KEYS[1]: {"w": random[1]}})
    assert compact(store, alone=True).objects == 0


def test_only_the_states_that_are_named_change(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:4])})
    report = compact(store, [KEYS[0], KEYS[3]])
    assert {state.key for state in report.states} <= {KEYS[0], KEYS[3]}
    assert is_plain(store, KEYS[1])
    assert is_plain(store, KEYS[2])
    assert not is_plain(store, KEYS[3])


def test_the_base_is_what_most_are_near_to(store):
    """The oldest is near to one other only."""
    lonely, popular = noise(1, torch.float32), noise(2, torch.float32)
    states = {KEYS[0]: lonely, KEYS[1]: popular}
    states |= {key: near(popular, place) for place, key in enumerate(KEYS[2:8])}
    save_all(store, {key: {"w": tensor} for key, tensor in states.items()})
    compact(store)
    assert {base_of(store, key, "w") for key in KEYS[2:8]} == {KEYS[1]}
    assert is_plain(store, KEYS[0], "w")


class TestChains:
    def test_the_newest_stays_plain_and_each_is_built_on_the_next(self, store):
        save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:5])})
        before = digests(store)
        report = compact(store, KEYS[:5], chain=True)
        assert report.objects == 8
        assert is_plain(store, KEYS[4])
        for place in range(4):
            assert base_of(store, KEYS[place]) == KEYS[place + 1]
            assert head(store, KEYS[place]).depth == 4 - place
        assert digests(store) == before
        assert verify(store).ok

    def test_no_chain_is_deeper_than_readers_take(self, store):
        save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS)})
        before = digests(store)
        compact(store, chain=True)
        depths = [head(store, key).depth for key in KEYS[:-1]]
        assert depths == [3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1]
        assert depths.index(DEPTH_LIMIT) == 3
        assert base_of(store, KEYS[2]) == KEYS[-1]  # it starts anew, from the plain one
        assert digests(store) == before
        again = compact(store, chain=True)
        assert again.objects == 0

    def test_the_order_is_that_of_the_times_of_saving(self, store):
        order = [KEYS[2], KEYS[0], KEYS[1]]
        for step, key in enumerate(order):
            store.save_state_dict(weights(step), key)
            path = store.folder / layout.state_path(key)
            os.utime(path, (1e9 + step, 1e9 + step))
        compact(store, chain=True)
        assert is_plain(store, KEYS[1])
        assert base_of(store, KEYS[0]) == KEYS[1]
        assert base_of(store, KEYS[2]) == KEYS[0]

    def test_the_order_of_the_keys_counts_where_they_are_given(self, store):
        save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
        compact(store, [KEYS[2], KEYS[0], KEYS[1]], chain=True)
        assert is_plain(store, KEYS[1])
        assert base_of(store, KEYS[2]) == KEYS[0]

    def test_checkpoints_that_come_later_are_chained_beside_what_is_there(self, store):
        """A base of what is encoded stays as it is: its depth would have to grow."""
        for count in range(1, 8):
            step = count - 1
            store.save_state_dict(weights(step, layers=1), KEYS[step])
            compact(store, KEYS[:count], chain=True)
            assert verify(store).ok
        assert is_plain(store, KEYS[6])
        compact(store, undo=True)  # which joins them
        compact(store, KEYS[:7], chain=True)
        assert [is_plain(store, key) for key in KEYS[:7]] == [False] * 6 + [True]

    def test_architectures_have_chains_of_their_own(self, store):
        others = [StateKey.parse(f"pytorch.other.step-{place}") for place in range(2)]
        for step in range(2):
            store.save_state_dict(weights(step), KEYS[step])
            store.save_state_dict(weights(step), others[step])
        compact(store, chain=True)
        assert is_plain(store, KEYS[1])
        assert is_plain(store, others[1])


def test_a_base_lives_as_long_as_something_needs_it(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
    compact(store)
    expected = digests(store)
    store.delete(KEYS[0])
    for path in store.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    for _ in range(3):
        store.prune(grace_seconds=0)
    assert digests(store) == {key: expected[key] for key in KEYS[1:3]}
    assert verify(store).ok
    for key in KEYS[1:3]:
        store.delete(key)
    for path in store.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    for _ in range(3):
        store.prune(grace_seconds=0)
    assert not list(store.folder.glob("objects/*/*"))
    assert not list(store.folder.glob("encoded/[0-9a-f][0-9a-f]/*"))


def test_a_damaged_object_stays_and_is_named(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
    digest = refs(store, KEYS[1])["layers.0.weight"].digest
    path = store.own.path(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    report = compact(store)
    (unread,) = report.unread
    assert (unread.key, unread.tensor) == (KEYS[1], digest)
    assert path.read_bytes() == data
    assert report.objects == 3
    assert not is_plain(store, KEYS[2])


def test_a_damaged_base_is_no_base(store):
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:2])})
    path = store.own.path(refs(store, KEYS[0])["layers.0.weight"].digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    report = compact(store)
    assert report.objects == 0
    assert is_plain(store, KEYS[1])
    assert len(report.unread) == 1


def test_what_does_not_come_back_from_the_disk_is_not_relied_on(store, monkeypatch):
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:2])})
    there = files(store.folder)
    put = type(store.own).put_encoded

    def put_damaged(self, digest, parts, **options):
        data = bytearray(b"".join(parts))
        data[100] ^= 1
        return put(self, digest, [bytes(data)], **options)

    monkeypatch.setattr(type(store.own), "put_encoded", put_damaged)
    report = compact(store)
    assert report.objects == 0
    assert len(report.unread) == 1
    assert files(store.folder) == there
    assert not list(store.folder.glob("encoded/[0-9a-f][0-9a-f]/*"))


def test_a_full_disk_leaves_all_as_it_was(store, monkeypatch):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
    there, before = files(store.folder), digests(store)
    full = os.statvfs(store.folder)

    class Full:
        free = 10
        total = used = full.f_blocks

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(LimitError, match="no room") as info:
        compact(store)
    assert "mlstate prune" in str(info.value.remedy)
    assert files(store.folder) == there
    assert digests(store) == before
    assert requires(store) == []


def test_what_was_done_before_the_disk_was_full_stays_done(store, monkeypatch):
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:4])})
    before = digests(store)
    put, left = type(store.own).put_encoded, [2]

    def put_encoded(self, digest, parts, **options):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return put(self, digest, parts, **options)

    monkeypatch.setattr(type(store.own), "put_encoded", put_encoded)
    with pytest.raises(OSError, match="No space left"):
        compact(store)
    assert sum(is_plain(store, key) for key in KEYS[:4]) == 2
    assert digests(store) == before
    left[0] = 10
    assert compact(store).objects == 1
    assert digests(store) == before


def test_a_store_of_manifests_is_not_compacted(store, tmp_path):
    (tmp_path / "m.toml").write_text("version = 1\n")
    view = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    with pytest.raises(ReadOnlyStoreError):
        compact(view)


def test_what_does_not_go_together_is_refused(store):
    with pytest.raises(ArgumentError):
        compact(store, undo=True, chain=True)


def test_a_state_that_is_not_there_is_refused_before_anything_changes(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:2])})
    with pytest.raises(StateNotFoundError):
        compact(store, [KEYS[1], KEYS[5]])
    assert is_plain(store, KEYS[1])


def test_an_empty_store_has_nothing_to_compact(store):
    assert compact(store).objects == 0
    assert not store.folder.exists()
    assert compact(MemoryStateStore()).objects == 0


def test_progress_tells_of_all_that_is_encoded(store):
    save_all(store, {key: weights(step) for step, key in enumerate(KEYS[:3])})
    told = []
    report = compact(store, progress=told.append)
    assert told[-1].ended
    assert told[-1].done == told[-1].total == report.before


def test_an_object_is_not_encoded_against_one_that_it_is_the_base_of(store):
    """By hand, in the worst order: readers would refuse a circle."""
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:2])})
    first, second = (refs(store, key)["layers.0.weight"] for key in KEYS[:2])
    compact(store, [KEYS[1]])
    assert head(store, KEYS[1]).base == first.digest
    for chain in (False, True):
        report = compact(store, [KEYS[1], KEYS[0]], chain=chain)
        assert report.objects == 0
        assert is_plain(store, KEYS[0])
    assert second.digest not in {first.digest}


def test_what_a_killed_compaction_has_encoded_is_verified_and_used(store):
    """It is not encoded once more, and a damaged form is no loss."""
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:3])})
    before = digests(store)
    compact(store)
    for ref_ in [refs(store, key)["layers.0.weight"] for key in KEYS[1:3]]:
        assert store.own.restore(ref_.digest)  # as before it was moved
    forms = files(store.folder, layout.ENCODED)
    damaged = store.own.encoded_path(refs(store, KEYS[2])["layers.0.weight"].digest)
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-4] + bytes(4))
    assert compact(store).objects == 1
    assert digests(store) == before
    assert compact(store).objects == 1
    assert files(store.folder, layout.ENCODED) == forms
    assert digests(store) == before


# Laws, for any related states.

_DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


@st.composite
def related(draw):
    """States that share tensors, are near to each other, or not."""
    dtype = draw(_DTYPES)
    pool = [noise(number, dtype) for number in range(2)]
    for number in range(draw(st.integers(0, 3))):
        pool.append(near(draw(st.sampled_from(pool)), 50 + number))
    states = {}
    for key in KEYS[: draw(st.integers(1, 4))]:
        names = draw(st.lists(st.sampled_from(["a", "b.w", "c.b.w"]), min_size=1, unique=True))
        states[key] = {name: draw(st.sampled_from(pool)) for name in names}
    return states


@settings(max_examples=15, deadline=None)
@given(related(), st.booleans(), st.booleans())
def test_laws_of_compaction(states, chain, alone):
    """The same digests; once more changes nothing; undone, the objects are byte-equal."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStateStore(Path(folder) / "store")
        save_all(store, states)
        before, there = digests(store), files(store.folder)
        report = compact(store, chain=chain, alone=alone and not chain)
        assert report.saved >= 0
        assert digests(store) == before
        assert verify(store).ok
        compacted = files(store.folder, "")
        assert compact(store, chain=chain, alone=alone and not chain).objects == 0
        assert files(store.folder, "") == compacted
        assert compact(store, undo=True).objects == report.objects
        assert digests(store) == before
        assert files(store.folder) == there
        assert requires(store) == []
        assert verify(store).ok

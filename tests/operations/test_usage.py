"""What takes the space in a store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate import (
    LocalStateStore,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    StateType,
    copy,
    describe,
    manifest_of,
    usage,
    verify,
)
from mlstate.digests import Digest
from mlstate.errors import FetchError
from mlstate.format import layout
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import Manifest, StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import last_use, read_roots
from mlstate.operations.usage_report import DiskUsage
from mlstate.stores.read import StateStore
from mlstate.stores.statefiles import format_state_file
from tests.support.buckets import bucket_store, contents, put
from tests.support.github_stores import TAG, data_names, github_store, weights

LARGE = 5000


def key(text: str) -> StateKey:
    return StateKey.parse(f"pytorch.{text}")


def tensor(value: int) -> torch.Tensor:
    return torch.full((LARGE,), float(value))


def objects_of(store: StateStore, state: StateKey) -> dict[Digest, int]:
    """Every object of a state with its size, found in the plainest way."""
    entry, objects = store.get(state)
    with objects.open(entry.pinned_digest) as file:
        parsed = StateObject.parse(file.read())
    digests = {entry.pinned_digest, *(ref.digest for ref in parsed.refs.values())}
    digests |= {file.digest for file in entry.files.values()}
    return {digest: objects.size(digest) or 0 for digest in digests}


def check(store: StateStore) -> None:
    """The numbers are what counting every object by hand gives."""
    used = usage(store)
    assert [state.key for state in used.states] == store.get_state_keys()
    every = {state.key: objects_of(store, state.key) for state in used.states}
    assert used.total == sum(
        {d: n for having in every.values() for d, n in having.items()}.values()
    )
    for state in used.states:
        others = set().union(*(having for other, having in every.items() if other != state.key))
        own = sum(size for digest, size in every[state.key].items() if digest not in others)
        assert (state.own, state.error) == (own, None)
        assert state.own + state.shared == sum(every[state.key].values())
        assert state.digest == store.digest(state.key)
        tensors = store.load_state_dict(state.key).values()
        assert state.nbytes == sum(t.numel() * t.element_size() for t in tensors)
        assert state.nbytes == describe(store, state.key).nbytes
    for family, found in used.by_architecture().items():
        mine = [k for k in every if k.state_type.is_compatible_with(family)]
        inside = {d: n for k in mine for d, n in every[k].items()}
        outside = set().union(*(every[k] for k in every if k not in mine))
        assert found.states == len(mine)
        assert found.own == sum(size for digest, size in inside.items() if digest not in outside)
        assert found.own + found.shared == sum(inside.values())
        assert found.nbytes == sum(s.nbytes or 0 for s in used.states if s.key in mine)


STATES = st.dictionaries(
    st.sampled_from(["a.one", "a.cls2.one", "a.two", "b.one", "b.two", "c.one"]),
    st.tuples(
        st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=3),
        st.dictionaries(st.sampled_from("fg"), st.sampled_from([b"", b"1", b"22"]), max_size=2),
    ),
)


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_own_shared_and_total_are_what_counting_by_hand_gives(states):
    store = MemoryStateStore()
    for name, (tensors, files) in states.items():
        values = {part: tensor(value) for part, value in tensors.items()}
        store.save_state_dict({**values, "bias": torch.ones(3)}, key(name), files=files)
    check(store)


@pytest.fixture
def store(store: LocalStateStore) -> LocalStateStore:
    """Two architectures, with an object in common; equal states; files."""
    base = {"x": tensor(1), "y": tensor(2), "tied": tensor(2)}
    store.save_state_dict(base, key("a.base"), files={"f": b"12345"})
    store.save_state_dict({**base, "x": tensor(3)}, key("a.tuned"))
    store.save_state_dict({**base, "x": tensor(3)}, key("a.tuned-copy"))
    store.save_state_dict({"x": tensor(1)}, key("b.base"), files={"f": b"12345"})
    return store


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("objects/*/*"))


def all_on_disk(folder: Path) -> int:
    """Every byte of every file, found in the plainest way."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def check_sums(disk: DiskUsage | None, real: int) -> DiskUsage:
    assert disk is not None
    assert sum(getattr(disk, part) for part in DiskUsage.parts()) == disk.total == real
    return disk


def add_strays(folder: Path) -> dict[str, int]:
    """What no state needs, by the field of `DiskUsage` that counts it."""
    FolderObjectStore(folder).writer().put(Digest.of(b"orphan"), [b"orphan"])
    for name in ("objects/note.txt", "objects/ab/cd", "trash/x/y", "tmp/" + "e" * 32, "roots/n"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234567")
    return {"unnamed": 6, "foreign": 3 * 7, "trash": 7, "unfinished": 7}


def add_folders(cache: Path) -> None:
    """Folders for frameworks: one, what a pruning left of one, and a user's own beside them."""
    gone = f".{'2' * 32}.{'0' * 16}.gone"
    for name in ("1" * 32 + "/unet", gone, "mine"):
        (cache / "folders" / name).mkdir(parents=True)
        (cache / "folders" / name / "model.safetensors").write_bytes(b"12345")


def test_a_folder(store):
    check(store)
    used = usage(store)
    assert (used.total, used.unnamed, used.trash) == (on_disk(store.folder), 0, 0)
    times = {state.key: state.modified for state in used.states}
    assert times == {k: os.stat(store.saver.files.locate(k)).st_mtime for k in times}
    assert {state.cached for state in used.states} == {None}


def test_what_no_state_names_and_what_is_in_the_trash(store):
    before = usage(store)
    own = next(state.own for state in before.states if state.key == key("b.base"))
    store.delete(key("b.base"))
    after = usage(store)
    assert (after.total, after.unnamed) == (before.total - own, own)
    assert after.trash == sum(f.stat().st_size for f in (store.folder / "trash").iterdir()) > 0
    store.prune(grace_seconds=0)
    pruned = usage(store)
    assert (pruned.total, pruned.unnamed) == (after.total, 0)
    assert pruned.trash >= own


def test_the_parts_of_a_folder_add_up_to_what_is_on_the_disk(store):
    before = check_sums(usage(store).disk, all_on_disk(store.folder))
    used = usage(store)
    assert before.own == sum(state.own for state in used.states)
    assert before.own + before.shared == used.total
    added = add_strays(store.folder)
    (store.folder / "objects" / ("f" * 2)).mkdir()
    (store.folder / "objects" / "link").symlink_to(store.folder / "states")
    after = check_sums(usage(store).disk, all_on_disk(store.folder))
    assert {part: getattr(after, part) - getattr(before, part) for part in added} == added
    store.delete(key("b.base"))
    store.prune(grace_seconds=0)
    check_sums(usage(store).disk, all_on_disk(store.folder))
    assert usage(store, disk=False).disk is None


def test_the_parts_of_a_cache_add_up_to_what_is_on_the_disk(store, tmp_path, monkeypatch):
    """With what it keeps for others, what was saved in it, and a second folder that is read."""
    cache, other = tmp_path / "cache", tmp_path / "read"
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "m.toml")
    view = ManifestStore(tmp_path / "m.toml", cache=cache)
    view.fetch(key("a.base"))
    view.fetch(key("a.tuned"))
    LocalStateStore(cache).save_state_dict({"z": tensor(9)}, key("z.saved"))
    kept = LocalStateStore(tmp_path / "kept")
    kept.save_state_dict({"z": tensor(8)}, key("z.fetched"))
    manifest_of(kept, objects=[str(kept.folder)]).write(tmp_path / "k.toml")
    ManifestStore(tmp_path / "k.toml", cache=cache).fetch(key("z.fetched"))
    added = add_strays(cache)
    add_folders(cache)
    added |= {"folders": 2 * 5, "foreign": added["foreign"] + 5}
    disk = check_sums(usage(view).disk, all_on_disk(cache))
    assert {part: getattr(disk, part) for part in added} == added
    assert disk.others == on_disk(kept.folder) + objects_size(LocalStateStore(cache))
    assert disk.own + disk.shared == usage(view).total
    shutil.copytree(cache, other)
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(other))
    monkeypatch.setenv("MLSTATE_CACHE", str(cache))
    both = ManifestStore(tmp_path / "m.toml")
    twice = usage(both).disk  # which keeps an index in the cache
    check_sums(twice, all_on_disk(cache) + all_on_disk(other))
    assert twice.copies == disk.own + disk.shared


def objects_size(store: LocalStateStore) -> int:
    every = {d: n for one in store.get_state_keys() for d, n in objects_of(store, one).items()}
    return sum(every.values())


def test_a_file_alone_that_is_in_the_cache_is_a_part_of_its_state(store, tmp_path):
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "m.toml")
    view = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    assert view.files(key("a.base"))["f"] == b"12345"
    used = next(state for state in usage(view).states if state.key == key("a.base"))
    assert (used.cached, used.own, used.shared) == ("partly", 5, 0)
    others = [state for state in usage(view).states if state.key != key("a.base")]
    assert {state.cached for state in others} == {"no"}  # though b.base has the same file
    report = verify(view)
    assert report.partial == (key("a.base"),)
    assert report.absent == tuple(sorted(state.key for state in others))
    check_sums(usage(view).disk, all_on_disk(tmp_path / "cache"))


def test_a_failed_fetch_is_no_use_of_a_state_that_is_not_there(store, tmp_path):
    manifest_of(store, objects=[str(store.folder)]).write(tmp_path / "m.toml")
    store.folder.rename(tmp_path / "away")
    view = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    with pytest.raises(FetchError):
        view.fetch(key("a.base"))
    assert list(read_roots(tmp_path / "cache")) == []
    assert {(one.cached, one.modified) for one in usage(view).states} == {("no", None)}
    (tmp_path / "away").rename(store.folder)
    view.fetch(key("a.base"), names=["y"])
    store.folder.rename(tmp_path / "away")
    with pytest.raises(FetchError):  # what is here of it is kept
        view.fetch(key("a.base"))
    assert [root.key for root in read_roots(tmp_path / "cache")] == [str(key("a.base"))]


def test_some_states_of_a_store(store):
    every = usage(store)
    some = usage(store, [key("b.base"), key("a.none")])
    assert some.states == tuple(s for s in every.states if s.key == key("b.base"))
    assert (some.total, some.by_architecture()) == (every.total, every.by_architecture())


@pytest.mark.parametrize("harm", ["state file", "state object", "missing"])
def test_a_state_that_cannot_be_read_is_listed_with_its_error(store, harm):
    if harm == "state file":
        path = Path(store.saver.files.locate(key("a.base")))
        path.chmod(0o644)
        path.write_text("version = 1")
    else:
        path = store.own.path(store.digest(key("a.base")))
        path.chmod(0o644)
        path.write_bytes(b"x") if harm == "state object" else path.unlink()
    used = {state.key: state for state in usage(store).states}
    assert used[key("a.base")].error
    assert used[key("a.base")].own is used[key("a.base")].nbytes is None
    assert [state.error for k, state in used.items() if k != key("a.base")] == [None] * 3


def test_checkpoints_of_the_older_layout_count_as_files(store):
    path = store.folder / "pytorch.a.old.pt"
    torch.save({"x": torch.ones(3)}, path)
    before = usage(store)
    (old,) = (state for state in before.states if state.key == key("a.old"))
    size = path.stat().st_size
    assert (old.nbytes, old.own, old.shared, old.digest) == (size, size, 0, None)
    assert before.total == on_disk(store.folder) + size
    found = before.by_architecture()[StateType("pytorch", "a")]
    assert (found.states, found.own + found.shared) == (
        4,
        before.total - usage(store).states[-1].own,
    )


def test_a_view_tells_what_is_in_its_cache_and_fetches_nothing(store, tmp_path):
    manifest = tmp_path / "m.toml"
    listed = manifest_of(store, objects=[str(store.folder)]).states
    unpinned = StateEntry(key("b.unpinned"), None)
    Manifest({**listed, unpinned.key: unpinned}, (str(store.folder),)).write(manifest)
    view = ManifestStore(manifest, cache=tmp_path / "cache")
    view.fetch(key("a.base"))
    view.fetch(key("a.tuned"), names=["y"])
    before = sorted((tmp_path / "cache").rglob("*"))
    used = {
        state.key.training_id + state.key.state_type.architecture: state
        for state in usage(view).states
    }
    assert before == sorted((tmp_path / "cache").rglob("*"))
    cached = {name: state.cached for name, state in used.items()}
    assert cached == {
        "basea": "yes",
        "tuneda": "partly",
        "tuned-copya": "partly",
        "baseb": "no",
        "unpinnedb": "no",
    }
    assert (used["baseb"].nbytes, used["baseb"].own, used["baseb"].shared) == (
        4 * LARGE,
        None,
        None,
    )
    assert used["baseb"].modified is None
    assert used["unpinnedb"] == type(used["unpinnedb"])(unpinned.key, cached="no")
    assert usage(view).total == on_disk(tmp_path / "cache")
    assert (usage(view).unnamed, usage(view).trash) == (0, 0)
    check_sums(usage(view).disk, all_on_disk(tmp_path / "cache"))
    assert used["basea"].modified == last_use(tmp_path / "cache", store.digest(key("a.base")))
    assert used["basea"].own + used["basea"].shared == sum(
        objects_of(store, key("a.base")).values()
    )


def test_a_folder_that_is_a_cache_as_well_keeps_what_it_fetched(store, tmp_path):
    other = LocalStateStore(tmp_path / "other")
    other.save_state_dict({"z": tensor(9)}, key("z.elsewhere"))
    manifest = tmp_path / "m.toml"
    manifest_of(other, objects=[str(other.folder)]).write(manifest)
    ManifestStore(manifest, cache=store.folder).fetch(key("z.elsewhere"))
    used = usage(store)
    assert (used.total, used.unnamed) == (on_disk(store.folder), 0)
    shutil.rmtree(store.folder / layout.ROOTS)
    assert usage(store).unnamed == on_disk(other.folder)


def test_no_torch_is_needed(store):
    code = """
import sys
from mlstate import LocalStateStore, usage
assert len(usage(LocalStateStore(sys.argv[1])).states) == 4
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, store.folder], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("no_fsync")
def test_a_thousand_states_of_a_hundred_tensors(tmp_path):
    store = LocalStateStore(tmp_path)
    store.save_state_dict({"a": torch.zeros(0)}, key("many.first"))
    spec, objects = TensorSpec("F32", (LARGE,)), store.own.writer()
    common = {f"layer.{i}.weight": TensorRef(spec, Digest.of(b"%d" % i)) for i in range(99)}
    for number in range(1000):
        own = TensorRef(spec, Digest.of(b"own", b"%d" % number))
        state = StateObject({}, {**common, "head": own})
        data = state.encode()
        objects.put(Digest.of(data), [data])
        name = key(f"many{number % 3}.state-{number}")
        entry = StateEntry(name, Digest.of(data), state.nbytes)
        store.saver.files.create(name, format_state_file(entry))
    used = usage(store)
    assert len(used.states) == 1001
    assert {state.nbytes for state in used.states} == {0, 100 * 4 * LARGE}
    assert used.total == on_disk(tmp_path)  # their tensors are missing, and take no space
    assert used.unnamed == 0


def test_a_bucket_is_asked_for_its_states_and_not_for_its_tensors(store, moto, tmp_path):
    bucket = moto.new_bucket()
    remote = bucket_store(moto, bucket, cache=tmp_path / "cache")
    copy(store, remote)
    put(moto, bucket, "models/pytorch/a.old.pt", b"x" * 1000)
    used, local = usage(remote), usage(store)
    objects = [d for name, d in contents(moto, bucket).items() if "/objects/" in name]
    assert used.total == local.total + 1000 == sum(map(len, objects)) + 1000
    assert used.states[1].own == used.states[1].nbytes == 1000
    numbers = [(s.key, s.digest, s.nbytes, s.own, s.shared) for s in local.states]
    states = [s for s in used.states if s.key != key("a.old")]
    assert [(s.key, s.digest, s.nbytes, s.own, s.shared) for s in states] == numbers
    assert [s.cached for s in states] == ["partly"] * 4  # the state objects are here now
    assert all(s.modified for s in used.states)
    assert (used.unnamed, used.trash) == (0, 0)
    check_sums(used.disk, sum(map(len, contents(moto, bucket).values())))
    put(moto, bucket, "models/objects/ab/" + "c" * 62, b"x" * 70)
    put(moto, bucket, "models/trash/" + "d" * 64, b"x" * 30)
    stray = check_sums(usage(remote).disk, sum(map(len, contents(moto, bucket).values())))
    assert (stray.unnamed, stray.trash) == (70, 30)
    remote.fetch(key("a.base"))
    assert next(s.cached for s in usage(remote).states if s.digest) == "yes"


def test_releases_are_listed_and_nothing_else(github, tmp_path):
    remote = github_store(tmp_path / "cache")
    state = StateKey.parse("pytorch.net.a")
    remote.save_state_dict(weights(1), state)
    (found,) = usage(remote).states
    release = github.repos["org/models"].tagged(TAG)
    data = [release.named(name).data for name in data_names(github, state)]
    assert found.nbytes == found.own == sum(map(len, data)) > 40_000
    assert (found.shared, found.digest, found.cached) == (0, None, None)
    assert found.modified

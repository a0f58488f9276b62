"""What is no file where a file belongs, and no folder where a folder does, ends no work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mlstate
from mlstate import LocalStateStore, ManifestStore, StateKey
from mlstate.errors import MlstateError
from mlstate.format import layout
from mlstate.objects.cache import read_roots
from mlstate.objects.folder import prepare_folder
from mlstate.reading import read_state
from tests.support.fetching import KEY, Published, check_cache, manifest_store, write_manifest
from tests.support.models import same
from tests.support.planting import KINDS, Victim, plant, time_limit

OTHER = StateKey.parse("pytorch.net.other")
OTHERS = {"w": torch.ones(200, 200)}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with time_limit(60):
        yield


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    watched = Victim(tmp_path / "home")
    yield watched
    watched.check()


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects come in segments, too."""
    monkeypatch.setattr("mlstate.fetch.object_mirror.LARGE", 1000)


def fetched(tmp_path: Path, published: Published) -> ManifestStore:
    """A view whose cache has the state."""
    mirror = str(published.folder / "store")
    manifest = write_manifest(tmp_path / "m.toml", published, objects=[mirror])
    view = manifest_store(manifest, tmp_path / "cache")
    view.fetch(KEY)
    return view


def places(folder: Path, published: Published) -> dict[str, Path]:
    """Where things are planted in a cache."""
    digest = published.entry.pinned_digest
    tensor = next(
        path
        for path in (folder / layout.OBJECTS).rglob("*")
        if path.is_file() and path.parent.name + path.name != digest
    )
    tmp = folder / layout.TEMPORARIES
    return {
        "state object": folder / layout.object_path(digest),
        "object": tensor,
        "folder of objects": tensor.parent,
        "lock": tmp / f"{digest}{layout.LOCK_SUFFIX}",
        "partial": tmp / f"{tensor.parent.name}{tensor.name}{layout.PARTIAL_SUFFIX}",
        "staged": tmp / f"{tensor.parent.name}{tensor.name}{layout.STAGED_SUFFIX}",
        "note": folder / layout.ROOTS / digest,
        "notes": folder / layout.ROOTS,
        "trash": folder / layout.TRASH / f"{digest}.{'0' * 32}",
    }


PLACES = (
    "state object",
    "object",
    "folder of objects",
    "lock",
    "partial",
    "staged",
    "note",
    "notes",
    "trash",
)


@pytest.mark.filterwarnings("ignore:.*damaged in the cache and has been fetched again")
@pytest.mark.parametrize("kind", [*KINDS, "file"])
@pytest.mark.parametrize("place", PLACES)
def test_a_cache_with_the_wrong_kind_of_thing_in_it_is_used_and_mended(
    tmp_path: Path, published: Published, victim: Victim, place: str, kind: str
):
    view = fetched(tmp_path, published)
    cache = tmp_path / "cache"
    (cache / layout.TRASH).mkdir()
    path = places(cache, published)[place]
    plant(kind, path, victim)
    mlstate.usage(view)
    report = mlstate.verify(view)
    # What is no file is not in the cache at all, and fetched when it is needed.
    wrong = place in ("object", "state object") and kind in ("link", "hard link", "file")
    assert bool(report.findings) == wrong
    if place != "notes":
        assert mlstate.copy(view, LocalStateStore(tmp_path / "copy"))
        assert same(view.load_state_dict(KEY), published.tensors)
        assert not mlstate.verify(view, repair=True).findings
        check_cache(cache)
        view.prune(max_size=10**9)
        view.prune(older_than=0)
        view.prune(older_than=0)
        view.fetch(KEY)
        noted = [root.digest for root in read_roots(cache)]
        assert noted == [published.entry.digest] or (place, kind) == ("note", "file")
    else:
        view.load_state_dict(KEY)
        view.prune(max_size=10**9)
    check_cache(cache)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["", layout.DONE_SUFFIX])
@pytest.mark.usefixtures("small_is_large")
def test_a_fetch_writes_a_large_object_into_no_file_of_others(
    tmp_path: Path,
    published: Published,
    victim: Victim,
    ending: str,
    kind: str,
):
    """A member knows which state the others will fetch, and so the names of the partial objects."""
    cache = tmp_path / "cache"
    prepare_folder(cache)
    (cache / layout.TEMPORARIES).mkdir(exist_ok=True)
    ending = layout.PARTIAL_SUFFIX + ending
    digests = refs_of(LocalStateStore(published.folder / "store"), KEY)
    assert len(digests) > 1
    for digest in digests:
        plant(kind, cache / layout.TEMPORARIES / f"{digest}{ending}", victim)
    view = fetched(tmp_path, published)
    assert same(view.load_state_dict(KEY), published.tensors)
    assert check_cache(cache) == len(digests) + 1 + len(published.entry.files)
    assert len(os.listdir(cache / layout.TEMPORARIES)) == len(digests)


@pytest.mark.parametrize("kind", [*KINDS, "file"])
@pytest.mark.parametrize(
    "place",
    [
        "state file",
        "folder of states",
        "state object",
        "object",
        "folder of objects",
        "tmp",
        "trash",
    ],
)
def test_a_store_with_the_wrong_kind_of_thing_in_it_says_so_and_the_rest_goes_on(
    tmp_path: Path, victim: Victim, place: str, kind: str
):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict({"w": torch.zeros(200, 200)}, KEY)
    other = StateKey.parse("pytorch.other.b")
    store.save_state_dict(OTHERS, other)
    digest = store.get(KEY).entry.pinned_digest
    state_file = store.folder / layout.state_path(KEY)
    tensor = store.folder / layout.object_path(next(iter(refs_of(store, KEY))))
    (store.folder / layout.TRASH).mkdir(exist_ok=True)
    path = {
        "state file": state_file,
        "folder of states": state_file.parent,
        "state object": store.folder / layout.object_path(digest),
        "object": tensor,
        "folder of objects": tensor.parent,
        "tmp": store.folder / layout.TEMPORARIES / ("0" * 32),
        "trash": store.folder / layout.TRASH / f"{digest}.{'0' * 32}",
    }[place]
    plant(kind, path, victim)
    broken = place not in ("tmp", "trash")
    usage = mlstate.usage(store)
    assert other in [state.key for state in usage.states if state.error is None]
    report = mlstate.verify(store)
    if place in ("state object", "object", "folder of objects"):
        assert report.findings
    with contextlib.suppress(MlstateError):  # it names a state that cannot be read
        store.prune(grace_seconds=0)
    with contextlib.suppress(MlstateError):
        mlstate.copy(store, LocalStateStore(tmp_path / "copy"))
    assert same(LocalStateStore(tmp_path / "copy").load_state_dict(other), OTHERS)
    assert same(store.load_state_dict(other), OTHERS)
    if broken:
        with contextlib.suppress(MlstateError):
            store.load_state_dict(KEY)
        with contextlib.suppress(MlstateError):
            store.save_state_dict({"w": torch.zeros(200, 200)}, KEY, overwrite=True)
    if place in ("state object", "object"):
        assert same(store.load_state_dict(KEY), {"w": torch.zeros(200, 200)})
    assert sorted(os.listdir(victim.folder)) == ["bashrc"]


def refs_of(store: LocalStateStore, key: StateKey) -> set[str]:
    """The digests of a state's tensors."""
    return {ref.digest for ref in read_state(*store.get(key)).refs.values()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("link", "hard link")])
def test_what_bears_the_name_of_an_old_checkpoint_and_is_no_file_is_no_state(
    tmp_path: Path, victim: Victim, kind: str
):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(OTHERS, OTHER)
    plant(kind, tmp_path / "store" / "pytorch.net.old.pt", victim)
    # What leads to a device is listed by nobody, either.
    assert store.get_state_keys() == [OTHER]
    assert [listed.key for listed in store.listing()] == [OTHER]
    assert [state.key for state in mlstate.usage(store).states] == [OTHER]
    assert mlstate.verify(store).ok
    assert mlstate.copy(store, LocalStateStore(tmp_path / "copy"))

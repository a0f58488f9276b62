"""A damaged copy on this machine is passed over and named; what has the right bytes is asked."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mlstate import ManifestStore, lock, state_digest
from mlstate.errors import FetchError, MlstateError
from mlstate.format import layout
from mlstate.transport.hub_cache import is_right
from tests.servers.recording import RecordingServer
from tests.support.fetching import KEY, TENSORS, manifest_store, write_manifest
from tests.support.models import same

COMMIT_FILES = {"config.json": b'{"a": 1}', "tokenizer.json": b"{}"}


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


hurts = pytest.mark.parametrize("hurt", [flip, cut, empty])


def keep(folder: Path, commit: str, files: dict[str, bytes], *, links: bool = True) -> None:
    """Put files where the hub's own client keeps them, under the names that it gives them."""
    repo = folder / "hf" / "hub" / "models--org--model"
    for name, data in files.items():
        large = name.endswith(".safetensors")
        front = b"" if large else b"blob %d\0" % len(data)
        sum_of = hashlib.sha256 if large else hashlib.sha1
        blob = repo / "blobs" / sum_of(front + data).hexdigest()
        copy = repo / "snapshots" / commit / name
        for path in (blob, copy):
            path.parent.mkdir(parents=True, exist_ok=True)
        if links:
            blob.write_bytes(data)
            copy.symlink_to(os.path.relpath(blob, copy.parent))
        else:
            copy.write_bytes(data)


def copy_of(folder: Path, commit: str, name: str) -> Path:
    return folder / "hf" / "hub" / "models--org--model" / "snapshots" / commit / name


def damage(path: Path, hurt) -> bytes:
    target = path.resolve()
    data = hurt(target.read_bytes())
    target.chmod(0o644)
    target.write_bytes(data)
    return data


class TestHub:
    @pytest.fixture
    def kept(self, hub_only, tmp_path, published):
        """A commit on the hub, of which a copy is in the cache of its client."""
        files = {**COMMIT_FILES, "model.safetensors": save(dict(TENSORS))}
        commit = hub_only.add("org/model", files)
        keep(tmp_path, commit, files)
        return commit

    def store(self, tmp_path, published, commit, **options) -> ManifestStore:
        mirror = f"hf://org/model@{commit}/model.safetensors"
        path = write_manifest(tmp_path / "m.toml", published, mirrors=[mirror], files={})
        return manifest_store(path, tmp_path / "cache", **options)

    @hurts
    def test_the_hub_itself_is_asked(self, hub_only, tmp_path, published, kept, hurt):
        copy = copy_of(tmp_path, kept, "model.safetensors")
        data = damage(copy, hurt)
        store = self.store(tmp_path, published, kept)
        with pytest.warns(UserWarning, match="damaged") as caught:
            assert same(store.load_state_dict(KEY), TENSORS)
        assert [str(copy) in str(warning.message) for warning in caught] == [True]
        assert copy.read_bytes() == data  # it belongs to another program
        assert hub_only.resolves
        store.load_state_dict(KEY)  # and nobody is told again

    def test_a_copy_without_a_checksum_is_passed_over_too(self, hub_only, tmp_path, published):
        files = {"model.safetensors": save(dict(TENSORS))}
        commit = hub_only.add("org/model", files)
        keep(tmp_path, commit, files, links=False)
        damage(copy_of(tmp_path, commit, "model.safetensors"), flip)
        with pytest.warns(UserWarning, match="damaged"):
            assert same(self.store(tmp_path, published, commit).load_state_dict(KEY), TENSORS)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_a_copy_that_cannot_be_read_is_passed_over(self, tmp_path, published, kept):
        copy_of(tmp_path, kept, "model.safetensors").resolve().chmod(0)
        with pytest.warns(UserWarning, match="damaged"):
            self.store(tmp_path, published, kept).load_state_dict(KEY)

    def test_offline_the_error_names_the_copy(self, tmp_path, published, kept, monkeypatch):
        copy = copy_of(tmp_path, kept, "model.safetensors")
        damage(copy, cut)
        store = self.store(tmp_path, published, kept, offline=True)
        with pytest.raises(MlstateError) as caught:
            store.load_state_dict(KEY)
        assert str(copy) in str(caught.value)

    def test_if_the_hub_does_not_help_the_error_names_the_copy(
        self, hub_only, tmp_path, published, kept
    ):
        copy = copy_of(tmp_path, kept, "model.safetensors")
        damage(copy, cut)
        hub_only.close()
        with pytest.raises(FetchError) as caught:
            self.store(tmp_path, published, kept).load_state_dict(KEY)
        assert str(copy) in str(caught.value)

    def test_a_right_copy_of_other_weights_is_not_fetched_once_more(
        self, hub_only, tmp_path, published
    ):
        files = {"model.safetensors": save({"x": torch.zeros(3)})}
        commit = hub_only.add("org/model", files)
        keep(tmp_path, commit, files)
        with pytest.raises(FetchError):
            self.store(tmp_path, published, commit).fetch(KEY)
        assert hub_only.resolves == []

    @hurts
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_state_is_not_pinned_to_a_damaged_copy(self, hub_only, tmp_path, kept, hurt, name):
        copy = copy_of(tmp_path, kept, name)
        damage(copy, hurt)
        path = tmp_path / "m.toml"
        path.write_text(f'version = 1\n[states."{KEY}"]\nmirrors = ["hf://org/model"]\n')
        with pytest.warns(UserWarning, match="damaged") as caught:
            [pinned] = lock(path, cache=tmp_path / "cache").values()
        assert str(copy) in str(caught[0].message)
        assert pinned.digest == state_digest(TENSORS)
        assert dict(ManifestStore(path, cache=tmp_path / "cache").files(KEY)) == COMMIT_FILES

    def test_right_copies_are_all_that_a_pin_needs(self, hub_only, tmp_path, kept):
        path = tmp_path / "m.toml"
        path.write_text(f'version = 1\n[states."{KEY}"]\nmirrors = ["hf://org/model"]\n')
        lock(path, cache=tmp_path / "cache")
        assert hub_only.resolves == []


def test_what_a_checksum_says_of_a_copy(tmp_path):
    keep(tmp_path, "c", {"a.safetensors": b"abc", "b.json": b"{}"})
    keep(tmp_path, "d", {"a.safetensors": b"abc"}, links=False)
    copies = [copy_of(tmp_path, "c", name) for name in ("a.safetensors", "b.json")]
    assert list(map(is_right, copies)) == [True, True]
    assert is_right(copy_of(tmp_path, "d", "a.safetensors")) is None
    for copy in copies:
        damage(copy, flip)
    assert list(map(is_right, copies)) == [False, False]
    copies[0].resolve().unlink()
    assert is_right(copies[0]) is False


@pytest.fixture
def web(published):
    with RecordingServer(published.folder) as server:
        yield server.url


@hurts
@pytest.mark.parametrize("form", ["path", "file"])
class TestLocalMirrors:
    def test_the_next_mirror_is_asked(self, tmp_path, published, web, hurt, form):
        local = tmp_path / "local" / "model.safetensors"
        local.parent.mkdir()
        local.write_bytes(hurt(published.read("model.safetensors")))
        address = str(local) if form == "path" else local.as_uri()
        mirrors = [address, f"{web}/model.safetensors"]
        path = write_manifest(tmp_path / "m.toml", published, mirrors=mirrors, files={})
        with pytest.warns(UserWarning, match="damaged") as caught:
            assert same(manifest_store(path, tmp_path / "c").load_state_dict(KEY), TENSORS)
        assert [address in str(warning.message) for warning in caught] == [True]

    def test_without_another_the_error_names_it(self, tmp_path, published, hurt, form):
        local = tmp_path / "model.safetensors"
        local.write_bytes(hurt(published.read("model.safetensors")))
        address = str(local) if form == "path" else local.as_uri()
        path = write_manifest(tmp_path / "m.toml", published, mirrors=[address], files={})
        with pytest.raises(FetchError, match="tried") as caught:
            manifest_store(path, tmp_path / "c").load_state_dict(KEY)
        assert address in str(caught.value)

    def test_a_store_is_passed_over(self, tmp_path, published, web, hurt, form):
        folder = tmp_path / "local"
        shutil.copytree(published.folder / "store", folder)
        largest = max(folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
        damage(largest, hurt)
        first = str(folder) if form == "path" else folder.as_uri()
        objects = [first, f"{web}/store"]
        manifest = write_manifest(tmp_path / "m.toml", published, objects=objects)
        with pytest.warns(UserWarning, match="damaged") as caught:
            assert same(manifest_store(manifest, tmp_path / "c").load_state_dict(KEY), TENSORS)
        (said,) = [str(warning.message) for warning in caught]
        assert largest.name in said
        # Nobody else has it: the error names the very file.
        write_manifest(tmp_path / "n.toml", published, objects=[first])
        with pytest.raises(FetchError) as failed:
            manifest_store(tmp_path / "n.toml", tmp_path / "c2").load_state_dict(KEY)
        assert largest.name in str(failed.value)


def test_a_local_mirror_that_lacks_something_is_not_damaged(tmp_path, published):
    folder = tmp_path / "local"
    shutil.copytree(published.folder / "store", folder)
    max(folder.glob("objects/*/*"), key=lambda path: path.stat().st_size).unlink()
    objects = [str(tmp_path / "nothing"), str(folder), str(published.folder / "store")]
    path = write_manifest(tmp_path / "m.toml", published, objects=objects)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(manifest_store(path, tmp_path / "c").load_state_dict(KEY), TENSORS)


@hurts
@pytest.mark.parametrize("what", ["tensor", "state"])
def test_a_damaged_object_of_a_readonly_cache_is_passed_over(
    tmp_path, published, monkeypatch, hurt, what
):
    front, own = tmp_path / "front", tmp_path / "own"
    shutil.copytree(published.folder / "store", front)
    state = published.entry.pinned_digest
    largest = max(front.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    object_ = largest if what == "tensor" else front / layout.object_path(state)
    data = damage(object_, hurt)
    for path in (front, *front.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(front))
    monkeypatch.setenv("MLSTATE_CACHE", str(own))
    manifest = write_manifest(
        tmp_path / "m.toml", published, objects=[str(published.folder / "store")]
    )
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert same(ManifestStore(manifest).load_state_dict(KEY), TENSORS)
    assert [str(object_) in str(warning.message) for warning in caught] == [True]
    assert object_.read_bytes() == data
    # Without a network what came is enough, and what is read-only is passed over again.
    offline = write_manifest(tmp_path / "n.toml", published, objects=["https://host.invalid/x"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(ManifestStore(offline, offline=True).load_state_dict(KEY), TENSORS)
    shutil.rmtree(own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MlstateError) as failed:
            ManifestStore(offline, offline=True).load_state_dict(KEY)
    assert str(object_) in str(failed.value)

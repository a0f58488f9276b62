"""`open_store`: which store a text names."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from mlstate import (
    GitHubReleaseStore,
    LocalStateStore,
    ManifestStore,
    S3StateStore,
    StateKey,
    Store,
    manifest_of,
    open_store,
)
from mlstate.errors import (
    FormatError,
    ManifestError,
    ManifestNotFoundError,
    MlstateError,
    StoreNotFoundError,
)

KEY = StateKey.parse("pytorch.net.one")


@pytest.fixture
def weights(tmp_path):
    store = LocalStateStore(tmp_path / "weights")
    store.save_state_dict({"a": torch.ones(2)}, KEY)
    return store


def test_nothing_is_the_default_store():
    assert type(open_store()) is Store
    assert type(open_store("")) is Store


def test_a_folder_with_states_is_a_store(weights):
    opened = open_store(weights.folder)
    assert isinstance(opened, LocalStateStore)
    assert opened.get_state_keys() == [KEY]


def test_a_cache_is_a_store_too(weights, tmp_path):
    manifest = manifest_of(weights, objects=[str(weights.folder)])
    manifest.write(tmp_path / "m.toml")
    ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache").fetch(KEY)
    assert isinstance(open_store(tmp_path / "cache"), LocalStateStore)


def test_a_folder_of_the_predecessor_is_a_store(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / f"{KEY}.pt")
    assert open_store(tmp_path).get_state_keys() == [KEY]


def test_manifests_one_or_a_folder_of_them(weights, tmp_path):
    (tmp_path / "manifests" / "deep").mkdir(parents=True)
    manifest_of(weights).write(tmp_path / "manifests" / "deep" / "m.toml")
    for path in (tmp_path / "manifests", tmp_path / "manifests" / "deep" / "m.toml"):
        opened = open_store(path, cache=tmp_path / "cache")
        assert isinstance(opened, ManifestStore)
        assert opened.get_state_keys() == [KEY]


def test_buckets_with_and_without_a_prefix():
    opened = open_store("s3://bucket/a/prefix/", offline=True)
    assert isinstance(opened, S3StateStore)
    assert "s3://bucket/a/prefix" in repr(opened)
    assert "s3://bucket" in repr(open_store("s3://bucket", offline=True))


@pytest.mark.parametrize(
    "text", ["github:owner/repo", "github:owner/repo/", "github:owner/repo.git"]
)
def test_repositories(text):
    opened = open_store(text, offline=True)
    assert isinstance(opened, GitHubReleaseStore)
    assert opened.repository == "owner/repo"


@pytest.mark.parametrize(
    "text", ["https://example.org/weights", "github:owner", "s3:bucket", "gs://b", "github:a/b/c"]
)
def test_what_is_no_store(text):
    with pytest.raises(FormatError, match="none of a store"):
        open_store(text)


def test_what_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("a")
    for name, says in (("nothing", "nothing"), ("empty", "empty"), ("full", "without states")):
        with pytest.raises(StoreNotFoundError) as caught:
            open_store(tmp_path / name)
        assert says in caught.value.found
        assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(StoreNotFoundError, match="no manifest"):
        open_store(tmp_path / "missing.toml", create=True)
    with pytest.raises(ManifestNotFoundError) as caught:
        ManifestStore(tmp_path / "missing.toml")
    assert isinstance(caught.value, ManifestError | StoreNotFoundError | FileNotFoundError)


def test_a_new_folder_where_something_is_to_be_saved(tmp_path):
    store = open_store(tmp_path / "new", create=True)
    assert store.get_state_keys() == []
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_version_is_refused(weights):
    path = weights.folder / "mlstate.toml"
    path.chmod(0o644)
    path.write_text("version = 99\n")
    with pytest.raises(MlstateError, match="newer"):
        open_store(weights.folder).load_state_dict(KEY)


def test_a_folder_is_opened_and_listed_without_the_parts_that_fetch(tmp_path):
    code = """
        import sys
        from mlstate import open_store
        open_store(sys.argv[1], create=True).get_state_keys()
        parts = ("mlstate.fetch", "mlstate.transport", "requests", "tomlkit", "torch")
        print([name for name in sys.modules if name.startswith(parts)])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

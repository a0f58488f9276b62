"""The store of a project: what its file names is opened, and its manifests are those of others."""

from __future__ import annotations

import pytest
import torch

from mlstate import LocalStateStore, ManifestStore, manifest_of, open_project
from mlstate.errors import FetchError, FormatError, ManifestNotFoundError, StoreNotFoundError
from mlstate.manifests import Manifest
from mlstate.project import find_project
from mlstate.stores.project import open_named
from tests.support.models import LINEAR, net


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "repo"
    (folder / "src").mkdir(parents=True)
    (folder / ".git").mkdir()
    monkeypatch.setenv("MLSTATE_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("")
    return folder


def trust(project):
    (project.parent / "config.toml").write_text(f'[projects]\ntrusted = ["{project}"]\n')


def test_a_store_of_it_is_where_states_are_saved(project, monkeypatch):
    (project / "mlstate.toml").write_text('store = "weights"')
    monkeypatch.chdir(project / "src")
    store = open_project()
    assert isinstance(store, LocalStateStore)
    key = store.save(net(), "one")
    assert LocalStateStore(project / "weights").get_state_keys() == [key]
    monkeypatch.chdir("/")
    assert open_project(project / "src").get_state_keys(LINEAR) == [key]
    with pytest.raises(StoreNotFoundError, match="no project"):
        open_project()


def test_manifests_of_it_alone_are_a_view(project):
    store = LocalStateStore(project / "weights")
    key = store.save(net(), "one")
    (project / "manifests").mkdir()
    manifest_of(store, objects=["../weights"]).write(project / "manifests" / "all.toml")
    (project / "manifests" / "ruff.toml").write_text("line-length = 100")
    (project / "pyproject.toml").write_text('[tool.mlstate]\nmanifests = ["manifests"]\n')
    view = open_project(project)
    assert isinstance(view, ManifestStore)
    assert view.get_state_keys() == [key]  # and none of those that mlstate ships
    assert torch.equal(view.load_state_dict(key)["0.bias"], net()[0].bias)


def test_of_both_each_can_be_had(project):
    store = LocalStateStore(project / "weights")
    store.save(net(), "one")
    manifest_of(store).write(project / "all.toml")
    store.save(net(1), "two")
    (project / "mlstate.toml").write_text('store = "weights"\nmanifests = ["all.toml"]\n')
    found = find_project(project)
    assert len(open_named(found).get_state_keys()) == 2
    assert len(open_named(found, manifests=True).get_state_keys()) == 1


def test_what_is_not_there_names_the_project_file(project):
    file = project / "mlstate.toml"
    for text, error in (
        ('manifests = ["gone.toml"]', ManifestNotFoundError),
        ('store = "gone.toml"', StoreNotFoundError),
        ('store = "src/.."', FormatError),  # the project itself, whose file is no marker
    ):
        file.write_text(text)
        with pytest.raises(error) as caught:
            open_project(project)
        assert str(file) in caught.value.remedy
    file.write_text("manifests = []")
    with pytest.raises(StoreNotFoundError, match="names no store and no manifest"):
        open_project(project)


@pytest.mark.parametrize("kind", ["objects", "mirrors"])
def test_a_manifest_of_a_project_reaches_no_private_host_before_it_is_trusted(
    project, published, start_recording, kind
):
    server = start_recording(
        {
            path.relative_to(published.folder).as_posix(): path.read_bytes()
            for path in published.folder.rglob("*")
            if path.is_file()
        }
    )
    entry = published.entry
    said = f'objects = ["{server.url}/store"]\n' if kind == "objects" else ""
    mirrors = f'mirrors = ["{server.url}/model.safetensors"]\n' if kind == "mirrors" else ""
    (project / "all.toml").write_text(
        f'version = 1\n{said}[states."{entry.key}"]\nblake3 = "{entry.digest}"\n{mirrors}'
    )
    (project / "mlstate.toml").write_text('manifests = ["all.toml"]')
    with pytest.raises((FetchError, FileNotFoundError)) as caught:
        open_project(project).fetch(entry.key)
    assert server.requests == []
    if kind == "mirrors":
        assert "MLSTATE_ALLOWED_HOSTS" in str(caught.value)
    trust(project)
    open_project(project).fetch(entry.key)
    assert server.requests


@pytest.mark.parametrize("place", ["absolute", "up", "link", "file"])
def test_a_manifest_of_a_project_reads_no_file_outside_of_it_before_it_is_trusted(
    project, published, place
):
    outside = published.folder / "model.safetensors"
    (project / "link").symlink_to(published.folder)
    address = {
        "absolute": str(outside),
        "up": "../" * 20 + str(outside).lstrip("/"),
        "link": "link/model.safetensors",
        "file": outside.as_uri(),
    }[place]
    entry = published.entry
    (project / "all.toml").write_text(
        f'version = 1\n[states."{entry.key}"]\nblake3 = "{entry.digest}"\nmirrors = ["{address}"]\n'
    )
    (project / "mlstate.toml").write_text('manifests = ["all.toml"]')
    with pytest.raises(FetchError, match="outside of the project"):
        open_project(project).fetch(entry.key)
    trust(project)
    open_project(project).fetch(entry.key)


def test_a_program_is_not_changed_by_where_it_runs(project, monkeypatch):
    from mlstate import Store, open_store

    before = Store().get_state_keys()
    (project / "mlstate.toml").write_text('store = "weights"\nmanifests = ["none.toml"]')
    monkeypatch.chdir(project)
    assert Store().get_state_keys() == open_store().get_state_keys() == before


def test_a_signature_that_is_required_is_required_of_a_project(project, monkeypatch):
    from mlstate.errors import SignatureError

    Manifest({}).write(project / "all.toml")
    (project / "signers").write_text("")
    (project / "mlstate.toml").write_text('manifests = ["all.toml"]')
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(project / "signers"))
    with pytest.raises(SignatureError):
        open_project(project)

"""Folders whose TOML files are mostly none of manifests: what is read, and what is passed over."""

from __future__ import annotations

import pytest

from mlstate import Manifest, ManifestStore, manifest_of, open_store
from mlstate.errors import ManifestError, StoreNotFoundError
from mlstate.format import layout
from mlstate.manifests.folder import is_manifest_text, toml_files

ENTRY = f'[states."pytorch.net.a"]\nblake3 = "{"1" * 64}"\n'
MANIFEST = f"# ours\nversion = 1\n\n{ENTRY}"

OTHERS = {
    "pyproject.toml": '[project]\nname = "x"\nversion = "1"\n[tool.ruff]\nline-length = 100\n',
    "ruff.toml": "",
    "Cargo.toml": '[package]\nname = "x"\nversion = "0.1.0"\n',
    "REUSE.toml": 'version = 1\n\n[[annotations]]\npath = "x"\n',
    "machine.toml": "[states]\nidle = 1\n",
    "rustfmt.toml": 'version = "Two"\n',
    "broken.toml": "[project\nname = ",
    "dated.toml": "version = 1\nedition = 2021\n",
    "mlstate.toml": 'manifests = ["manifests"]\n',
}


@pytest.fixture
def repo(tmp_path):
    for name, text in OTHERS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "weights.toml").write_text(MANIFEST)
    return tmp_path


def test_the_manifests_are_read_and_the_rest_is_passed_over(repo):
    for store in (ManifestStore(repo), open_store(repo)):
        assert list(map(str, store.get_state_keys())) == ["pytorch.net.a"]
    found = toml_files(repo)
    assert [file.name for file in found.manifests] == ["weights.toml"]
    assert [file.name for file in found.others] == sorted(OTHERS)


def test_stores_and_virtual_environments_in_it_are_not_looked_into(repo, store):
    for name, marker in (("weights", layout.SETTINGS), ("venv", "pyvenv.cfg"), (".venv", "x")):
        folder = repo / name
        folder.mkdir()
        (folder / marker).write_bytes(layout.NEW_SETTINGS)
        (folder / "inside.toml").write_text(MANIFEST.replace(".a", ".b"))
    assert len(ManifestStore(repo).get_state_keys()) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"version = 1\n{ENTRY}broken",  # no TOML
        ENTRY,  # without its version
        MANIFEST.replace("1111", "x", 1),
        f"version = 2\n{ENTRY}",
        f"version = \n{ENTRY}",
        'version = 1\nstates = "none"\n',
        "version = 1\nobjects = 1\n",
    ],
)
def test_a_broken_manifest_is_an_error_all_the_same(repo, text):
    (repo / "manifests" / "broken.toml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        ManifestStore(repo)
    assert "broken.toml" in caught.value.path


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_manifest_in_another_encoding_is_an_error(repo, encoding):
    (repo / "manifests" / "other.toml").write_bytes(MANIFEST.encode(encoding))
    with pytest.raises(ManifestError, match="UTF-8"):
        ManifestStore(repo)


def test_a_mark_at_its_front_hides_no_manifest(repo):
    (repo / "manifests" / "weights.toml").write_text(MANIFEST, encoding="utf-8-sig")
    assert len(ManifestStore(repo).get_state_keys()) == 1


def test_all_that_mlstate_writes_is_a_manifest(store, tmp_path):
    import torch

    from mlstate import StateKey

    assert is_manifest_text(Manifest({}).format().encode())
    key = StateKey.parse("pytorch.net.a")
    store.save_state_dict({"x": torch.ones(2)}, key, meta={"states": "x", "n": 1})
    manifest_of(store, objects=["store"]).write(tmp_path / "all.toml")
    assert is_manifest_text((tmp_path / "all.toml").read_bytes())
    for text in ("version = 1\nstates = {}", 'version=1\n"states"."a.b.c".size = 1'):
        assert is_manifest_text(text.encode())


def test_a_folder_without_manifests_is_none(repo):
    (repo / "manifests" / "weights.toml").unlink()
    with pytest.raises(StoreNotFoundError):
        open_store(repo)
    assert ManifestStore(repo).get_state_keys() == []


def test_a_project_is_no_store(repo):
    from mlstate import LocalStateStore
    from mlstate.errors import FormatError

    with pytest.raises(FormatError, match="a project, not a store"):
        LocalStateStore(repo)
    assert (repo / "mlstate.toml").read_text() == OTHERS["mlstate.toml"]

"""Manifests of other libraries: real distributions on ``sys.path``, in folders and in wheels."""

from __future__ import annotations

import sys
import zipfile

import pytest

from mlstate import Store, load_pretrained_model
from mlstate.errors import ManifestError, UnpinnedStateError
from mlstate.manifests.registered import registered
from tests.support.models import net

ONE, TWO = "1" * 64, "2" * 64


def manifest(key: str, digest: str | None = ONE) -> str:
    blake3 = "" if digest is None else f'blake3 = "{digest}"\n'
    return f'version = 1\n[states."{key}"]\n{blake3}'


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a library on the path: its files, and the value of its entry point."""

    def install(name, value, files, *, zipped=False):
        everything = {
            f"{name}/__init__.py": "raise RuntimeError('it was imported')",
            f"{name}-1.0.dist-info/METADATA": f"Name: {name}\nVersion: 1.0\n",
            f"{name}-1.0.dist-info/entry_points.txt": f"[mlstate.manifests]\nweights = {value}\n",
            **{f"{name}/{path}": text for path, text in files.items()},
        }
        root = tmp_path / (f"{name}-1.0-py3-none-any.whl" if zipped else f"{name}-root")
        if zipped:
            with zipfile.ZipFile(root, "w") as archive:
                for path, text in everything.items():
                    archive.writestr(path, text)
        else:
            for path, text in everything.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
        monkeypatch.syspath_prepend(root)
        return root

    return install


def keys():
    return [str(key) for key in Store().get_state_keys() if "lib" in str(key)]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("alpha", "weights.toml"),
        ("alpha:manifests", "manifests/weights.toml"),
        ("alpha.data", "data/weights.toml"),
        ("alpha:data.manifests", "data/manifests/weights.toml"),
        ("alpha:data/manifests", "data/manifests/deep/weights.toml"),
        ("alpha:weights.toml", "weights.toml"),
        ("alpha:data.weights.toml", "data/weights.toml"),
        ("alpha.data:weights.toml", "data/weights.toml"),
    ],
)
def test_they_are_found_without_importing_the_library(install, value, path, zipped):
    files = {path: manifest("pytorch.lib.one"), "pyproject.toml": "[project]\n"}
    install("alpha", value, files, zipped=zipped)
    assert keys() == ["pytorch.lib.one"]
    assert "alpha" not in sys.modules
    (found,) = [each for each in registered() if each.library == "alpha"]
    assert list(map(str, found.manifest.states)) == ["pytorch.lib.one"]


def test_a_library_that_is_imported_already_does_as_well(install, monkeypatch):
    import types
    from importlib.util import find_spec

    install("alpha", "alpha:manifests", {"manifests/w.toml": manifest("pytorch.lib.one")})
    module = types.ModuleType("alpha")
    module.__spec__ = find_spec("alpha")
    monkeypatch.setitem(sys.modules, "alpha", module)
    assert keys() == ["pytorch.lib.one"]


def test_load_pretrained_model_sees_them(install):
    text = manifest("pytorch.net.lib", None)
    install("alpha", "alpha:w.toml", {"w.toml": text})
    with pytest.raises(UnpinnedStateError):
        load_pretrained_model(net(), "lib")


def test_weights_beside_a_manifest_in_a_package_are_loaded(install, store):
    import shutil

    key = store.save(net(), "lib-weights")
    entry = manifest(str(key), store.digest(key)).replace(
        "version = 1", 'version = 1\nobjects = ["store"]'
    )
    root = install("alpha", "alpha:manifests", {"manifests/w.toml": entry})
    shutil.copytree(store.folder, root / "alpha" / "manifests" / "store")
    assert load_pretrained_model(net(1), "lib-weights")
    assert "alpha" not in sys.modules


@pytest.mark.parametrize(
    ("value", "files"),
    [
        ("gone:manifests", {}),
        ("beta:manifests", {}),
        ("beta:../other", {}),
        ("beta:w.toml", {"w.toml": 'version = 1\n[states."pytorch.lib.x"]\nblake3 = "short"\n'}),
        ("beta:w.toml", {"w.toml": "version = ["}),
        ("beta:empty", {"empty/readme.txt": "x"}),
        ("beta:%%%", {}),
        ("json.decoder", {}),
        ("sys", {}),
        ("", {}),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_broken_library_is_named_and_the_others_count(install, value, files, zipped):
    install("alpha", "alpha", {"w.toml": manifest("pytorch.lib.one")}, zipped=zipped)
    install("beta", value, files, zipped=zipped)
    with pytest.warns(UserWarning, match="library beta"):
        assert keys() == ["pytorch.lib.one"]


def test_a_clash_names_both_libraries(install):
    install("alpha", "alpha", {"w.toml": manifest("pytorch.lib.one")})
    install("beta", "beta", {"w.toml": manifest("pytorch.lib.one")}, zipped=True)
    assert keys() == ["pytorch.lib.one"]  # the same weights are no clash
    for name, key in (("gamma", "pytorch.lib.one"), ("delta", "pytorch.lib.ONE")):
        root = install(name, name, {"w.toml": manifest(key, TWO)})
        with pytest.raises(ManifestError, match="two libraries") as caught:
            Store()
        told = str(caught.value)
        assert name in told
        assert "alpha" in told or "beta" in told
        sys.path.remove(str(root))
    assert keys() == ["pytorch.lib.one"]


def test_a_manifest_of_ones_own_gives_the_digest_that_a_library_lacks(install, tmp_path):
    install("alpha", "alpha", {"w.toml": manifest("pytorch.lib.one", None)})
    own = tmp_path / "own.toml"
    own.write_text(manifest("pytorch.lib.one", TWO))
    store = Store(manifests=[own])
    (key,) = [key for key in store.get_state_keys() if "lib" in str(key)]
    assert store.digest(key) == TWO


def test_manifests_that_are_given_stand_in_for_the_variable(tmp_path, monkeypatch):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(manifest("pytorch.lib.first"))
    second.write_text(manifest("pytorch.lib.second"))
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(first))
    assert keys() == ["pytorch.lib.first"]

    def given(*manifests):
        return [str(k) for k in Store(manifests=manifests).get_state_keys() if "lib" in str(k)]

    assert given(second) == ["pytorch.lib.second"]
    assert given(str(second), first) == ["pytorch.lib.first", "pytorch.lib.second"]
    assert given() == []


@pytest.mark.parametrize("wrong", ["one.toml", 5])
def test_one_path_is_no_list(wrong):
    with pytest.raises((ValueError, TypeError)):
        Store(manifests=wrong)


def test_where_signatures_are_required_a_library_needs_them_too(install, tmp_path, monkeypatch):
    signers = tmp_path / "signers"
    signers.write_text("")
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(signers))
    install("alpha", "alpha", {"w.toml": manifest("pytorch.lib.one")})
    install("beta", "beta", {"w.toml": manifest("pytorch.lib.two")}, zipped=True)
    with pytest.warns(UserWarning, match="not signed|archive") as caught:
        assert keys() == []
    assert {"alpha", "beta"} <= {word for w in caught for word in str(w.message).split(" ")}


def test_entry_points_are_read_by_the_default_store_alone(tmp_path):
    import subprocess

    code = (
        "import sys; from mlstate import LocalStateStore, ManifestStore, Manifest\n"
        "LocalStateStore(sys.argv[1]).get_state_keys(); ManifestStore(Manifest({}))\n"
        "assert 'mlstate.manifests.registered' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

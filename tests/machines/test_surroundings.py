"""A process without a home, in a folder that is gone, and paths of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlstate
from mlstate import LocalStateStore, ManifestStore, manifest_of
from mlstate.errors import FormatError, StoreNotFoundError
from mlstate.objects.beside import temporary_beside
from tests.machines.job import BASE, FILES, KEYS, read, save, tensors
from tests.support.models import same

RUN = [sys.executable, "-W", "error", "-m", "mlstate"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and a manifest of it."""
    made = tmp_path_factory.mktemp("made")
    store = LocalStateStore(made / "store")
    store.save_state_dict(tensors(), BASE, files=FILES)
    manifest_of(store, objects=["store"]).write(made / "weights.toml")
    return made


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    for name in [name for name, value in environment.items() if value is None]:
        del environment[name]
    return subprocess.run(
        [*RUN, *map(os.fspath, arguments)],
        env=environment,
        capture_output=True,
        check=False,
        errors="surrogateescape",
        **options,
    )


# Relative paths.


def test_a_relative_store_means_the_same_folder_after_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = LocalStateStore("store")
    assert repr(store) == "LocalStateStore('store')"
    monkeypatch.chdir("elsewhere")
    store.save_state_dict(tensors(), BASE)
    assert (tmp_path / "store" / "mlstate.toml").exists()
    assert list(Path().iterdir()) == []
    assert store.folder == tmp_path / "store"


def test_a_relative_view_means_the_same_files_after_chdir(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLSTATE_CACHE", os.path.relpath(tmp_path / "cache", folder))
    monkeypatch.setenv("MLSTATE_MANIFESTS", "weights.toml")
    views = [ManifestStore("weights.toml"), mlstate.Store()]
    monkeypatch.chdir(tmp_path)
    for view in views:
        view.fetch(BASE)
        assert same(view.load_state_dict(BASE), tensors())
    assert (tmp_path / "cache" / "mlstate.toml").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_in_a_folder_that_is_gone_absolute_paths_work_and_others_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    opened = LocalStateStore(folder / "store")
    gone.rmdir()
    assert same(opened.load_state_dict(BASE), tensors())
    view = ManifestStore(folder / "weights.toml", cache=tmp_path / "cache")
    view.fetch(BASE)
    assert mlstate.verify(view).findings == ()
    save(tmp_path / "another")
    for make in (lambda: LocalStateStore("store"), lambda: ManifestStore("weights.toml")):
        with pytest.raises(StoreNotFoundError, match="working folder was removed"):
            make()


# No home.


@pytest.mark.machines
@pytest.mark.parametrize("home", [None, "/proc/nowhere", "relative"])
def test_what_names_its_folders_needs_no_home(folder: Path, tmp_path: Path, home: str | None):
    env = {"HOME": home, "XDG_CONFIG_HOME": None, "XDG_STATE_HOME": None, "XDG_CACHE_HOME": None}
    env["MLSTATE_CACHE"] = str(tmp_path / "cache")
    for command in (
        ("ls", folder / "store"),
        ("verify", "--all", "--store", folder / "weights.toml"),
        ("fetch", "--all", "--store", folder / "weights.toml"),
    ):
        done = run(*command, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.machines
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that is not known")
def test_a_user_who_is_not_known_and_has_no_home_is_told_what_to_set(tmp_path: Path):
    code = (
        "import os, sys\n"
        "import mlstate, mlstate.cli, mlstate.cli.app, mlstate.operations.doctor.doctor\n"
        "import concurrent.futures.thread, mlstate.stores.manifest, platformdirs.unix\n"
        "import mlstate.manifests.registered\n"
        "os.setgroups([]); os.setgid(64321); os.setuid(64321); os.environ.pop('HOME', None)\n"
        "try:\n"
        "    mlstate.Store()\n"
        "except mlstate.errors.FormatError as error:\n"
        "    print(error.remedy)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG")}
    env.pop("MLSTATE_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert "set MLSTATE_CACHE to a path" in done.stdout, done.stderr


# Names.


@pytest.mark.machines
def test_a_path_of_bytes_that_are_no_text(tmp_path: Path):
    base = tmp_path / os.fsdecode(b"caf\xe9 \xff\n")
    try:
        base.mkdir()
    except OSError as error:
        pytest.skip(f"no such names here: {error}")
    use_but_name(base)
    for command in (("ls", "store"), ("verify", "--all", "--store", "store")):
        for path in (base / "store", Path("store")):
            for more in ([], ["--json"]):
                done = run(
                    *(path if part == "store" else part for part in command), *more, cwd=base
                )
                assert done.returncode == 0, done.stderr
                assert "Traceback" not in done.stderr
    done = run("ls", base / "missing", cwd=base)
    assert done.returncode not in (0, 1), done.stderr
    assert "Traceback" not in done.stderr


def use_but_name(base: Path) -> None:
    """A manifest is UTF-8: such a path cannot stand in it, and that is said."""
    store = save(base / "store")
    read(store)
    with pytest.raises(FormatError):
        manifest_of(store, objects=[str(base / "store")]).write(base / "weights.toml")
    assert not (base / "weights.toml").exists()
    manifest_of(store, objects=["store"]).write(base / "weights.toml")
    view = ManifestStore(base / "weights.toml", cache=base / "cache")
    for key in KEYS:
        view.fetch(key)
    read(view)


def test_names_as_long_as_a_file_system_takes(tmp_path: Path):
    store = save(tmp_path / "store")
    name = "é" * 120  # 240 bytes, of 255
    manifest = tmp_path / f"{name}.toml"
    manifest_of(store, objects=["store"]).write(manifest)
    mlstate.enlist(manifest, store)
    mlstate.bundle(store, KEYS, tmp_path / f"{name}.tar")
    mlstate.export(store, BASE, tmp_path / f"{'e' * 243}.safetensors")
    for target in (manifest, tmp_path / "short.toml", tmp_path / ("x" * 255)):
        assert len(os.fsencode(temporary_beside(target).name)) <= 255


@pytest.mark.machines
@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000 + "x"])
def test_a_name_that_is_too_long_is_an_error_and_no_traceback(tmp_path: Path, name: str):
    for command in (("ls", name), ("verify", "--all", "--store", name)):
        done = run(*command, cwd=tmp_path)
        assert done.returncode not in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
        assert "too long" in done.stderr

"""Project files: which one counts, what it may say, and what it may not lead to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError, StoreNotFoundError
from mlstate.format import layout
from mlstate.project import find_project, is_project_file, read_project


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository with a folder below, in which one works."""
    folder = tmp_path / "home" / "repo"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder / "src" / "deep")
    return folder


def write(path: Path, text: str = 'store = "weights"') -> Path:
    path.write_text(text)
    return path


PYPROJECT = '[project]\nname = "x"\n\n[tool.mlstate]\nstore = "weights"\n'


def test_the_nearest_one_counts_and_nothing_is_added_to_it(repo):
    assert find_project() is None
    far = write(repo / "pyproject.toml", PYPROJECT + 'manifests = ["manifests"]\n')
    assert find_project().file == far
    assert find_project().manifests == ("manifests",)
    near = write(repo / "src" / "mlstate.toml", 'store = "near"')
    found = find_project()
    assert (found.file, found.store, found.manifests) == (near, "near", ())


def test_a_pyproject_without_the_table_is_passed_over(repo):
    write(repo / "mlstate.toml")
    write(repo / "src" / "pyproject.toml", "[tool.ruff]\nline-length = 100\n[tool.poetry]\n")
    write(repo / "src" / "deep" / "pyproject.toml", "broken [ of another tool")
    assert find_project().file == repo / "mlstate.toml"


def test_of_both_in_a_folder_one_counts_and_that_is_said(repo):
    write(repo / "pyproject.toml", PYPROJECT)
    write(repo / "mlstate.toml", 'store = "here"')
    with pytest.warns(UserWarning, match="passed over"):
        assert find_project().store == "here"


def test_the_search_ends_at_the_root_of_the_repository_and_below_home(repo, monkeypatch):
    write(repo.parent / "mlstate.toml")
    assert find_project() is None
    (repo / ".git").rmdir()
    assert find_project() is None  # what lies in the home folder is of no project
    monkeypatch.chdir(repo.parent)
    assert find_project().file == repo.parent / "mlstate.toml"  # unless one works there
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.chdir(repo)
    assert find_project().file == repo.parent / "mlstate.toml"


def test_a_store_is_no_project(repo, monkeypatch):
    write(repo / "mlstate.toml")
    store = repo / "weights"
    store.mkdir()
    (store / layout.SETTINGS).write_bytes(layout.NEW_SETTINGS)
    assert not is_project_file(store / layout.SETTINGS)
    monkeypatch.chdir(store)
    assert find_project().file == repo / "mlstate.toml"
    (store / layout.SETTINGS).write_bytes(b"")  # as a crash may leave it
    assert find_project().file == repo / "mlstate.toml"
    (store / "objects").mkdir()
    (store / layout.SETTINGS).write_bytes(b"damaged [")
    assert find_project().file == repo / "mlstate.toml"


@given(st.sampled_from(["version = 1", "version = 2", "requires = []", 'version = "x"']))
def test_what_says_a_version_is_a_store(text):
    import tomllib

    assert not layout.is_no_marker(tomllib.loads(text))
    assert layout.is_no_marker(tomllib.loads(text + '\nstore = "weights"'))  # an unknown key then


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ('# a comment\nstor = "weights"', "did you mean store", 2),
        ('manifest = ["x"]', "did you mean manifests", 1),
        ("store = 1", "store is a path|store of a project file is a path", 1),
        ('store = "x"\nmanifests = "x"', "a list of paths", 2),
        ('store = ""', "a path", 1),
        ("store = [", "not valid TOML", None),
        ('store = "x"\nversion = 1', "not known", 2),
    ],
)
def test_a_mistake_is_an_error_that_names_file_and_line(repo, text, said, line):
    for name, front in (("mlstate.toml", ""), ("pyproject.toml", "[tool.mlstate]\n")):
        file = write(repo / name, front + text)
        with pytest.raises(FormatError, match=said) as caught:
            find_project()
        assert caught.value.path == str(file)
        if line is not None:
            assert caught.value.line == line + bool(front)
        file.unlink()


@pytest.mark.parametrize(
    "place", ["../x", "/data/x", "s3://bucket/x", "github:a/b", "https://x/y", "~/x", "link/x"]
)
def test_what_leads_out_of_the_project_needs_trust(repo, tmp_path, monkeypatch, place):
    (repo / "link").symlink_to(tmp_path)
    write(repo / "mlstate.toml", f'store = "{place}"')
    config = write(tmp_path / "config.toml", "")
    monkeypatch.setenv("MLSTATE_CONFIG", str(config))
    found = find_project()
    with pytest.raises(FormatError, match="outside") as caught:
        found.place(found.store, "store")
    assert caught.value.line == 1
    assert str(config) in caught.value.remedy
    said = caught.value.remedy.partition("write ")[2].partition(" into ")[0]
    config.write_text(said.replace("[projects] ", "[projects]\n"))  # as it says
    found = find_project()
    assert found.place(found.store, "store")


@pytest.mark.parametrize("place", ["x", "./x/", "src/../x", "sub/x.toml"])
def test_what_is_in_the_project_needs_none(repo, place):
    write(repo / "mlstate.toml", f'store = "{place}"')
    found = find_project()
    assert not found.trusted
    assert found.place(found.store, "store").startswith(f"{repo}/")


def test_trust_is_for_a_folder_and_what_is_in_it(repo, tmp_path, monkeypatch):
    write(repo / "mlstate.toml", 'store = "/data"')
    config = tmp_path / "config.toml"
    monkeypatch.setenv("MLSTATE_CONFIG", str(config))
    for trusted, result in ((repo, True), (repo.parent, True), (f"{repo}-2", False), ("~", True)):
        config.write_text(f'[projects]\ntrusted = ["{trusted}"]\n')
        assert find_project().trusted is result
    for wrong in ("trusted = 1", 'trusted = "x"', "trusted = [1]"):
        config.write_text(f"[projects]\n{wrong}\n")
        with pytest.raises(FormatError, match="config file"):
            find_project()


def test_a_file_that_the_user_names_counts_and_is_trusted(repo, tmp_path, monkeypatch):
    write(repo / "mlstate.toml")
    other = write(tmp_path / "other.toml", 'store = "/data"')
    monkeypatch.setenv("MLSTATE_PROJECT", str(other))
    assert (find_project().file, find_project().trusted) == (other, True)
    assert find_project(repo).file == repo / "mlstate.toml"  # a folder that a program names
    monkeypatch.setenv("MLSTATE_PROJECT", "none")
    assert find_project() is None
    monkeypatch.setenv("MLSTATE_PROJECT", str(tmp_path / "missing.toml"))
    with pytest.raises(StoreNotFoundError, match="MLSTATE_PROJECT"):
        find_project()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_passed_over_and_that_is_said(repo, tmp_path, monkeypatch):
    file = write(repo / "mlstate.toml")
    os.chown(file, 65534, 65534)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert find_project() is None
    config = write(tmp_path / "config.toml", f'[projects]\ntrusted = ["{repo}"]')
    monkeypatch.setenv("MLSTATE_CONFIG", str(config))
    assert find_project().file == file


def test_a_removed_working_folder_is_in_no_project(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert find_project() is None


def test_a_pipe_of_its_name_is_not_waited_for(repo):
    os.mkfifo(repo / "mlstate.toml")
    assert find_project() is None
    assert not is_project_file(repo / "mlstate.toml")
    with pytest.raises(FormatError, match="cannot be read"):
        read_project(repo / "mlstate.toml")

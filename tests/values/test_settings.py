"""Settings are read from the environment when they are asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlstate.settings import cache_folder, extra_manifests, readonly_caches

LISTS = {"MLSTATE_READONLY_CACHES": readonly_caches, "MLSTATE_MANIFESTS": extra_manifests}

every_list = pytest.mark.parametrize(("variable", "read"), LISTS.items(), ids=LISTS)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "one"))
    assert cache_folder() == tmp_path / "one"
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "two"))
    assert cache_folder() == tmp_path / "two"


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_the_cache_is_in_the_users_cache_folder_otherwise(monkeypatch, tmp_path, value):
    monkeypatch.delenv("MLSTATE_CACHE")
    if value is not None:
        monkeypatch.setenv("MLSTATE_CACHE", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "mlstate"
    assert cache_folder().is_relative_to(tmp_path)


def test_asking_for_the_cache_does_not_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))
    cache_folder()
    assert not (tmp_path / "cache").exists()


@every_list
def test_a_list_is_empty_unless_set(monkeypatch, variable, read):
    monkeypatch.delenv(variable, raising=False)
    assert read() == []
    monkeypatch.setenv(variable, "")
    assert read() == []


@every_list
def test_a_list_has_its_paths_in_order_and_no_empty_ones(monkeypatch, variable, read):
    monkeypatch.setenv(variable, os.pathsep.join(["", "b", "/a c", "", "b", ""]))
    assert read() == [Path("b"), Path("/a c"), Path("b")]


@every_list
def test_a_list_is_of_its_own_variable(monkeypatch, variable, read):
    for other in LISTS:
        monkeypatch.setenv(other, other)
    assert read() == [Path(variable)]

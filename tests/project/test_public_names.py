"""The names that users import: where they were promised to be, each the same thing everywhere."""

from __future__ import annotations

import importlib

import pytest

import mlstate

HOMES = {
    "mlstate.states": ["StateKey", "StateType"],
    "mlstate.stores": ["LocalStateStore", "ManifestStore", "S3StateStore", "GitHubReleaseStore"],
    "mlstate.stores.abstract": ["AbstractStateStore"],
    "mlstate.stores.list": ["AbstractListStateStore"],
    "mlstate.stores.local": ["LocalStateStore", "MemoryStateStore"],
    "mlstate.stores.manifest": ["ManifestStore", "Store", "load_pretrained_model"],
    "mlstate.stores.s3": ["S3StateStore"],
    "mlstate.stores.github": ["GitHubReleaseStore", "GitHUBReleaseStore"],
    "mlstate.manifests": ["Manifest"],
    "mlstate.errors": ["MlstateError"],
}


@pytest.mark.parametrize(("home", "name"), [(h, n) for h, names in HOMES.items() for n in names])
def test_a_name_is_where_it_was_promised(home, name):
    assert getattr(importlib.import_module(home), name) is getattr(mlstate, name)


def test_every_public_name_can_be_imported():
    for name in mlstate.__all__:
        assert getattr(mlstate, name) is not None
    assert set(mlstate.__all__) <= set(dir(mlstate))


def test_the_predecessors_spelling_is_the_same_store():
    assert mlstate.GitHUBReleaseStore is mlstate.GitHubReleaseStore


def test_an_operation_stays_a_function_after_its_module_was_imported():
    for name in ("copy", "adopt", "export", "diff", "usage", "bundle", "describe", "lock"):
        importlib.import_module(f"mlstate.operations.{name}")
        assert callable(getattr(mlstate, name))
    importlib.import_module("mlstate.operations.report.report")
    assert callable(mlstate.report)

"""What a change of a manifest means: for its states, for their layers, for the rest."""

from __future__ import annotations

import os

import pytest
import torch

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    diff,
    diff_manifests,
    manifest_of,
)
from mlstate.errors import FormatError, ManifestError
from mlstate.operations.diff_manifests import FieldChange

D = [f"{number:x}" * 64 for number in range(16)]
A, B, C = (StateKey.parse(f"pytorch.net.{name}") for name in "abc")


def manifest(text: str) -> Manifest:
    return Manifest.parse(f"version = 1\n{text}".encode(), "here.toml")


def state(key: StateKey, digest: int, more: str = "") -> str:
    return f'[states."{key}"]\nblake3 = "{D[digest]}"\n{more}'


def test_states_come_go_move_and_get_other_names():
    old = manifest(state(A, 1, "size = 4\n") + state(B, 2))
    new = manifest(state(A, 3, "size = 8\n") + state(C, 2, "size = 1\n") + '[states."p.r.n"]')
    found = diff_manifests(old, new)
    assert [(s.key.training_id, s.digest, s.size) for s in found.added] == [("n", None, None)]
    assert found.dropped == ()
    assert [(s.first, s.second, s.digest) for s in found.renamed] == [(B, C, D[2])]
    assert [(s.key, s.first, s.second, s.layers) for s in found.moved] == [(A, D[1], D[3], None)]
    ((key, fields),) = [(entry.key, entry.fields) for entry in found.changed]
    assert (key, fields) == (C, (FieldChange("size", None, 1),))
    back = diff_manifests(new, old)
    assert [s.key.training_id for s in back.dropped] == ["n"]
    assert [(s.first, s.second) for s in back.renamed] == [(C, B)]


def test_of_several_with_one_digest_pairs_are_made_once():
    keys = [StateKey.parse(f"p.r.{name}") for name in "stuv"]
    old = manifest("".join(state(key, 1) for key in keys[:2]))
    found = diff_manifests(old, manifest("".join(state(key, 1) for key in keys[1:])))
    assert [(pair.first, pair.second) for pair in found.renamed] == [(keys[0], keys[2])]
    assert [listed.key for listed in found.added] == [keys[3]]


def test_mirrors_files_and_meta_are_compared_value_by_value():
    old = state(A, 1, 'mirrors = ["https://one", "https://two"]\nmeta = {x = 1, y = {z = [1]}}\n')
    new = state(A, 1, 'mirrors = ["https://two", {url = "https://3", format = "torch"}]\n')
    new += f'meta = {{x = 1.0, y = {{z = [1]}}, w = true}}\nfiles."c.json" = "{D[4]}"\n'
    ((entry,), fields) = (diff_manifests(manifest(old), manifest(new)).changed, [])
    fields = [(field.name, field.first, field.second) for field in entry.fields]
    assert fields == [
        ("mirrors", "https://one", None),
        ("mirrors", None, {"url": "https://3", "format": "torch"}),
        ("meta.x", 1, 1.0),
        ("meta.w", None, True),
        ("files.c.json", None, D[4]),
    ]


def test_an_order_of_mirrors_is_a_change_and_that_of_states_is_none():
    mirrors = 'mirrors = ["https://one", "https://two"]\n'
    turned = 'mirrors = ["https://two", "https://one"]\n'
    found = diff_manifests(manifest(state(A, 1, mirrors)), manifest(state(A, 1, turned)))
    assert [field.name for entry in found.changed for field in entry.fields] == ["mirrors"]
    assert diff_manifests(
        manifest(state(A, 1) + state(B, 2)), manifest("# x\n" + state(B, 2) + state(A, 1))
    ).same


def test_what_is_outside_of_states_is_compared():
    old = manifest(
        'name = "n"\nserial = 1\nobjects = ["https://one"]\naliases = {best = "p.net.x"}\n'
    )
    new = manifest(
        'name = "n"\nserial = 2\nobjects = ["https://two"]\naliases = {best = "p.net.y"}\n'
    )
    found = diff_manifests(old, new)
    assert sorted((c.name, c.first, c.second) for c in found.top if c.name != "objects") == [
        ("aliases.best", "p.net.x", "p.net.y"),
        ("serial", 1, 2),
    ]
    assert {(c.first, c.second) for c in found.top if c.name == "objects"} == {
        ("https://one", None),
        (None, "https://two"),
    }


@pytest.fixture
def versions(tmp_path):
    """Two versions of a manifest, whose state is in a store beside them."""
    store = LocalStateStore(tmp_path / "weights")
    paths = []
    for name, value in (("old", 0.0), ("new", 1.0)):
        tensors = {"body": torch.ones(64, 64), "head": torch.full((64, 64), value)}
        store.save_state_dict(tensors, A, overwrite=True)
        paths.append(tmp_path / f"{name}.toml")
        manifest_of(store, objects=["weights"]).write(paths[-1])
    return paths


def test_layers_are_told_of_states_in_an_object_mirror_beside_the_manifest(versions, tmp_path):
    (moved,) = diff_manifests(*versions).moved
    assert [change.name for change in moved.layers.changed] == ["head"]
    assert moved.layers.equal == ("body",)
    assert moved.layers.changed[0].differing is None  # no tensor was read
    elsewhere = [manifest(path.read_text().partition("\n")[2]) for path in versions]
    assert diff_manifests(*elsewhere).moved[0].layers is None
    assert diff_manifests(*elsewhere, folder=tmp_path).moved[0].layers == moved.layers


def test_layers_are_told_of_states_in_the_cache_and_nothing_is_fetched(versions, tmp_path):
    server = tmp_path / "weights"
    hidden = tmp_path / "hidden"
    for path in versions:
        ManifestStore(path).fetch(A)
    server.rename(hidden)
    (moved,) = diff_manifests(*versions).moved
    assert [change.name for change in moved.layers.changed] == ["head"]
    empty = diff_manifests(*versions, cache=tmp_path / "empty")
    assert empty.moved[0].layers is None
    assert not (tmp_path / "empty").exists()


def test_a_damaged_state_is_as_one_that_is_not_there(versions, tmp_path):
    digest = LocalStateStore(tmp_path / "weights").digest(A)
    damaged = next((tmp_path / "weights/objects").rglob(digest[2:]))
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert diff_manifests(*versions).moved[0].layers is None


def test_nothing_and_what_is_no_manifest(versions, tmp_path):
    assert [listed.key for listed in diff_manifests(os.devnull, versions[0]).added] == [A]
    assert [listed.key for listed in diff_manifests(versions[0], os.devnull).dropped] == [A]
    (tmp_path / "other.toml").write_text("[")
    with pytest.raises(ManifestError):
        diff_manifests(versions[0], tmp_path / "other.toml")


def test_diff_of_states_says_how_manifests_are_compared(versions):
    with pytest.raises(FormatError) as caught:
        diff(*versions)
    assert "mlstate.diff_manifests(old, new)" in caught.value.remedy
    assert "mlstate diff OLD.toml NEW.toml" in caught.value.remedy.shell

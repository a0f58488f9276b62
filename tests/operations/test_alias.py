"""Aliases: other names for the states of a manifest."""

from __future__ import annotations

import pickle

import pytest

from mlstate import Manifest, ManifestStore, StateKey, set_alias, unlist
from mlstate.errors import FormatError, ManifestError, StateNotFoundError

A, B = StateKey.parse("p.net.a"), StateKey.parse("p.net.b")
TEXT = f"""\
version = 1

[states."{A}"] # ours
blake3 = "{"1" * 64}"

[states."{B}"]
blake3 = "{"2" * 64}"
"""


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text(TEXT)
    return path


def test_an_alias_is_given_moved_and_taken_away(manifest):
    assert set_alias(manifest, "best", A) is None
    assert ManifestStore(manifest).aliases == {"best": A}
    assert set_alias(manifest, "best", B) == A
    assert set_alias(manifest, "latest", B) is None
    assert ManifestStore(manifest).aliases == {"best": B, "latest": B}
    assert set_alias(manifest, "best", None) == B
    assert Manifest.read(manifest).aliases == {"latest": B}
    assert set_alias(manifest, "latest", None) == B
    assert Manifest.read(manifest).aliases == {}
    assert "# ours" in manifest.read_text()
    assert Manifest.read(manifest).states == Manifest.parse(TEXT.encode(), "text").states


def test_a_new_manifest_has_them_and_reads_them_again(manifest, tmp_path):
    set_alias(manifest, "best", A)
    read = Manifest.read(manifest)
    assert Manifest.parse(read.format().encode(), "new").aliases == {"best": A}
    assert pickle.loads(pickle.dumps(ManifestStore(manifest))).aliases == {"best": A}


@pytest.mark.parametrize("name", ["a.b", "", "p.net.a", "two words", "ä", "x" * 201])
def test_names_that_could_be_keys_or_cannot_be_typed_are_refused(manifest, name):
    with pytest.raises(FormatError, match="name of an alias"):
        set_alias(manifest, name, A)
    assert manifest.read_text() == TEXT


@pytest.mark.parametrize(
    ("written", "line"),
    [('best = "no key"', 3), ("best = 1", 3), ('"a.b" = "p.net.a"', 3)],
)
def test_what_is_no_alias_is_named_with_its_line(manifest, written, line):
    manifest.write_text(f"version = 1\n[aliases]\n{written}\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(manifest)
    assert caught.value.line == line


def test_states_and_aliases_that_are_not_there_are_named(manifest):
    with pytest.raises(StateNotFoundError):
        set_alias(manifest, "best", StateKey.parse("p.net.c"))
    with pytest.raises(StateNotFoundError, match="no such alias"):
        set_alias(manifest, "best", None)
    assert manifest.read_text() == TEXT


def test_a_state_that_leaves_takes_its_aliases_along(manifest):
    set_alias(manifest, "best", A)
    set_alias(manifest, "other", B)
    unlist(manifest, [A])
    assert Manifest.read(manifest).aliases == {"other": B}


def test_manifests_of_a_folder_share_their_aliases_and_may_not_contradict(tmp_path):
    for name, alias in (("one", "best"), ("two", "other")):
        (tmp_path / f"{name}.toml").write_text(TEXT)
        set_alias(tmp_path / f"{name}.toml", alias, A)
    assert ManifestStore(tmp_path).aliases == {"best": A, "other": A}
    assert set_alias(tmp_path, "best", B) == A
    assert Manifest.read(tmp_path / "one.toml").aliases == {"best": B}
    set_alias(tmp_path / "two.toml", "best", A)
    with pytest.raises(ManifestError, match="one alias to different states"):
        ManifestStore(tmp_path)

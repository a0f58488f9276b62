"""`ls`: which states, in which order, with which columns."""

from __future__ import annotations

import os
import re

import pytest
import torch

from mlstate import LocalStateStore, StateKey, manifest_of

A, B, C = (StateKey.parse(f"pytorch.net.{name}") for name in "abc")
OTHER = StateKey.parse("pytorch.mlp.x")


@pytest.fixture
def shell(shell):
    store = LocalStateStore(shell.folder / "weights")
    shared = torch.arange(10_000.0)
    store.save_state_dict({"s": shared, "w": torch.ones(9000)}, A, meta={"acc": 0.5, "by": "me"})
    store.save_state_dict({"s": shared, "w": torch.ones(30_000)}, B, meta={"acc": 0.75})
    store.save_state_dict({"s": shared}, C, meta={"acc": "good"})
    store.save_state_dict({"z": torch.zeros(50_000)}, OTHER)
    for days, key in enumerate((B, A, OTHER, C)):
        when = 1_700_000_000 - days * 86_400
        os.utime(store.catalog.text(key).path, (when, when))
    manifest_of(store, objects=["weights"]).write(shell.folder / "weights.toml")
    return shell


def keys(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines[1:]]


def test_patterns_choose_states(shell):
    assert keys(shell.lines("ls", "weights", "pytorch.net.*")) == [str(A), str(B), str(C)]
    assert keys(shell.lines("ls", "weights", B, "pytorch.m*")) == [str(OTHER), str(B)]
    assert keys(shell.lines("ls", "pytorch.m*", "--store", "weights")) == [str(OTHER)]
    assert "no state fits" in shell.complaint("ls", "weights", "jax.*", code=3)


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("key", [OTHER, A, B, C]),
        ("size", [OTHER, B, A, C]),
        ("own", [OTHER, B, A, C]),
        ("age", [B, A, OTHER, C]),
        ("meta.acc", [B, A, C, OTHER]),
    ],
)
def test_states_are_sorted(shell, column, order):
    assert keys(shell.lines("ls", "weights", "--sort", column)) == list(map(str, order))
    backwards = shell.json("ls", "weights", "--sort", column, "--reverse")["states"]
    assert [state["key"] for state in backwards] == [str(key) for key in order[::-1]]


def test_columns_are_chosen(shell):
    lines = shell.lines("ls", "weights", "pytorch.net.*", "--columns", "key,digest,meta.acc")
    assert lines[0].split() == ["KEY", "DIGEST", "ACC"]
    store = LocalStateStore(shell.folder / "weights")
    assert lines[1].split() == [str(A), store.digest(A), "0.5"]
    assert lines[3].split()[-1] == "good"
    lines = shell.lines("ls", "weights", A, "--columns", "key,meta")
    assert lines[1].split(maxsplit=1)[1] == "acc=0.5, by=me"
    for bad in ("sizes", "meta.", "key,,size"):
        assert "is no column" in shell.complaint("ls", "weights", "--columns", bad, code=2)
    assert "is no column" in shell.complaint("ls", "weights", "--sort", "name", code=2)


def test_notes_are_read_only_where_they_are_asked_for(shell):
    assert {state["meta"] is None for state in shell.json("ls", "weights")["states"]} == {True}
    states = shell.json("ls", "weights", "--columns", "key,meta")["states"]
    assert [state["meta"] for state in states][1] == {"acc": 0.5, "by": "me"}


def test_aliases_have_a_column_where_there_are_some(shell):
    shell.lines("alias", "best", B, "--store", "weights.toml")
    lines = shell.lines("ls", "weights.toml")
    titles = ["KEY", "ALIAS", "SIZE", "OWN DISK", "SHARED", "CACHED", "USED"]
    assert re.split("  +", lines[0]) == titles
    (line,) = [line for line in lines if str(B) in line]
    assert line.split()[1] == "best"
    assert keys(shell.lines("ls", "weights.toml", "best")) == [str(B)]
    assert shell.json("ls", "weights.toml")["aliases"] == {"best": str(B)}

"""The commands `mv`, `meta`, `alias`, `log` and `restore`, as a person runs them."""

from __future__ import annotations

import pytest
import torch

from mlstate import LocalStateStore, Manifest, StateKey, manifest_of

A, B = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")


@pytest.fixture
def shell(shell):
    store = LocalStateStore(shell.folder / "weights")
    store.save_state_dict({"w": torch.ones(3)}, A, meta={"licence": "MIT"})
    store.save_state_dict({"w": torch.zeros(3)}, B)
    manifest_of(store, objects=["weights"]).write(shell.folder / "weights.toml")
    return shell


def test_mv_and_back(shell):
    new = "pytorch.net.c"
    assert shell.lines("mv", A, new, "-s", "weights") == [f"{A}  is {new} now"]
    assert shell.json("mv", new, A, "-s", "weights") == {
        "schema": "mlstate.mv/1",
        "old": new,
        "new": str(A),
    }
    assert "nothing was changed" in shell.complaint("mv", A, B, "-s", "weights", code=6)
    shell.lines("mv", A, new, "-s", "weights.toml")
    assert StateKey.parse(new) in Manifest.read(shell.folder / "weights.toml").states


def test_meta_is_shown_and_changed_and_numbers_stay_numbers(shell):
    assert shell.lines("meta", A, "-s", "weights") == ["licence  MIT"]
    words = ["acc=0.93", "steps=100", "ok=true", 'version="1"', "id=007", "nan=nan", "big=1e400"]
    said = shell.json("meta", A, "set", *words, "-s", "weights")["meta"]
    assert said == {
        "licence": "MIT",
        "acc": 0.93,
        "steps": 100,
        "ok": True,
        "version": "1",
        "id": "007",
        "nan": "nan",
        "big": "1e400",
    }
    shell.lines("meta", A, "unset", "licence", "steps", "-s", "weights")
    stored = LocalStateStore(shell.folder / "weights").meta(A)
    assert stored == {name: said[name] for name in said if name not in ("licence", "steps")}
    shell.lines("meta", A, "set", "acc=1", "-s", "weights.toml")
    assert Manifest.read(shell.folder / "weights.toml").states[A].meta["acc"] == 1
    for words in (["set"], ["unset"], ["put", "a=1"], ["set", "a"], ["set", "a=1", "a=2"]):
        shell.complaint("meta", A, *words, "-s", "weights", code=2)
    assert "no such note" in shell.complaint("meta", A, "unset", "x", "-s", "weights", code=2)


def test_an_alias_stands_for_a_key(shell):
    assert shell.lines("alias", "best", B, "-s", "weights.toml") == [f"best  {B}"]
    assert shell.json("show", "best", "-s", "weights.toml")["key"] == str(B)
    assert shell.lines("fetch", "best", "-s", "weights.toml")[0].startswith(str(B))
    assert shell.json("alias", "-s", "weights.toml")["aliases"] == {"best": str(B)}
    assert "did you mean best" in shell.complaint("show", "bist", "-s", "weights.toml", code=2)
    shell.lines("alias", "--rm", "best", "-s", "weights.toml")
    assert shell.json("alias", "-s", "weights.toml")["aliases"] == {}
    for words in (["best"], ["--rm", "best", A]):
        shell.complaint("alias", *words, "-s", "weights.toml", code=2)
    assert "kept in manifests" in shell.complaint("alias", "best", A, "-s", "weights", code=6)


def test_log_and_restore(shell):
    rows = [line.split() for line in shell.lines("rm", A, "-s", "weights", "--dry-run")]
    assert rows == [[str(A), "would", "be", "removed"]]
    shell.lines("rm", A, "-s", "weights")
    lines = shell.lines("log", "-s", "weights")
    assert lines[0].split() == ["WHEN", "EVENT", "KEY", "DIGEST", "SIZE"]
    assert [line.split()[2:4] for line in lines[1:]] == [["deleted", str(A)], ["saved", str(B)]]
    assert len(shell.lines("log", "--limit", "1", "-s", "weights")) == 2
    (event,) = shell.json("log", A, "-s", "weights")["events"]
    assert (event["event"], event["bytes"]) == ("deleted", 12)
    dry = shell.lines("restore", A, "-s", "weights", "--dry-run")
    assert dry == [f"{A}  {event['digest']}  would be restored"]
    assert shell.json("restore", A, "-s", "weights")["digest"] == event["digest"]
    assert shell.json("meta", A, "-s", "weights")["meta"] == {"licence": "MIT"}
    assert "is there" in shell.complaint("restore", A, "-s", "weights", code=6)
    assert "nothing is known" in shell.complaint("log", "p.q.*", "-s", "weights", code=3)
    assert "keeps nothing" in shell.complaint("log", "-s", "weights.toml", code=2)


def test_dry_runs_of_fetch_and_copy_change_nothing(shell):
    (line,) = shell.lines("fetch", A, "-s", "weights.toml", "--dry-run")
    assert line == f"{A}  12 B would be fetched"
    data = shell.json("fetch", "--all", "-s", "weights.toml", "--dry-run")
    assert data["dry_run"] is True
    assert [state["fetched"] for state in data["states"]] == [12, 12]
    assert {state["cached"] for state in shell.json("ls", "weights.toml")["states"]} == {"no"}
    shell.lines("fetch", A, "-s", "weights.toml")
    assert shell.lines("fetch", A, "-s", "weights.toml", "--dry-run") == [f"{A}  in the cache"]
    options = ("copy", "--all", "--from", "weights", "--to", "new", "--manifest", "new.toml")
    assert shell.lines(*options, "-n") == [f"{A}  would be copied", f"{B}  would be copied"]
    assert shell.json(*options, "-n")["dry_run"] is True
    assert not (shell.folder / "new").exists()
    assert not (shell.folder / "new.toml").exists()

"""`-v`, `-vv` and `-q`, and the logger ``mlstate`` of which they show the lines."""

from __future__ import annotations

import logging

import pytest
import torch

from mlstate import LocalStateStore, ManifestStore, StateKey, manifest_of

KEY = StateKey.parse("pytorch.net.a")


@pytest.fixture
def shell(shell):
    store = LocalStateStore(shell.folder / "weights")
    store.save_state_dict({"w": torch.ones(9000)}, KEY)
    manifest_of(store, objects=["nowhere", "weights"]).write(shell.folder / "weights.toml")
    return shell


@pytest.mark.parametrize("place", ["before", "behind"])
def test_what_is_done_is_said_where_it_is_asked_for(shell, place):
    def run(*options: str) -> str:
        words = ["fetch", KEY, "--store", "weights.toml"]
        done = shell(*(options + tuple(words) if place == "before" else (*words, *options)))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{KEY}  ")
        return done.stderr

    said = run("-v")
    assert f"{KEY}: nowhere did not do: " in said
    assert "bytes fetched" in said
    assert "open " not in said
    assert "bytes fetched" not in run()
    (shell.folder / "cache").rename(shell.folder / "away")
    assert "open nowhere" in run("-vv")


def test_quiet_leaves_results_warnings_and_errors(shell):
    lines = shell("rm", KEY, "--store", "weights", "-q")
    assert (lines.stdout, lines.stderr) == (f"{KEY}  removed\n", "")
    failed = shell("show", KEY, "--store", "weights", "--quiet")
    assert failed.returncode == 3
    assert "no such state" in failed.stderr
    lines = shell("restore", KEY, "--store", "weights")
    assert lines.returncode == 0


def test_what_stands_behind_two_dashes_is_no_option(shell):
    failed = shell("show", "--store", "weights", "--", "-v")
    assert failed.returncode == 2
    assert "-v" in failed.stderr


def test_a_program_hears_of_it_by_its_logger(tmp_path, caplog):
    store = LocalStateStore(tmp_path / "store")
    with caplog.at_level(logging.DEBUG, logger="mlstate"):
        store.save_state_dict({"w": torch.ones(9000)}, KEY)
        manifest_of(store, objects=[str(tmp_path / "store")]).write(tmp_path / "weights.toml")
        ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache").fetch(KEY)
        store.delete(KEY)
        store.prune()
    said = [record.getMessage() for record in caplog.records if record.name == "mlstate"]
    assert any(line.startswith(f"{KEY} saved: ") for line in said)
    assert any("bytes fetched" in line for line in said)
    assert f"{KEY} removed" in said
    assert any(line.startswith("pruned: ") for line in said)
    assert any(line.startswith("open ") for line in said)


def test_without_a_listener_nothing_is_printed(tmp_path, capsys):
    LocalStateStore(tmp_path / "store").save_state_dict({"w": torch.ones(9000)}, KEY)
    assert capsys.readouterr() == ("", "")

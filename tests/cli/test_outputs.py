"""What is written goes where its name says: streams, endings, folders; tables fold no names."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlstate import LocalStateStore, StateKey
from tests.cli.test_terminal import ESCAPE, Terminal
from tests.support.commands import PROGRAM

KEY = StateKey.parse("pytorch.mlp.cls10.base")
TUNED = StateKey.parse("pytorch.mlp.cls10.tuned")


@pytest.fixture
def shell(shell):
    store = LocalStateStore(shell.folder / "weights")
    base = {"a.weight": torch.ones(64, 128), "b.bias": torch.ones(3)}
    store.save_state_dict(base, KEY)
    store.save_state_dict({**base, "b.bias": torch.zeros(3)}, TUNED)
    return shell


def test_a_bundle_goes_through_a_pipe(shell):
    done = subprocess.run(
        f"{PROGRAM} bundle --all -s weights -o - | {PROGRAM} unbundle - -s there",
        shell=True,
        cwd=shell.folder,
        env={**os.environ, **shell.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(KEY), str(TUNED)]
    assert "unbundle -" in done.stderr
    assert not (shell.folder / "-").exists()
    assert shell.json("verify", "--all", "-s", "there")["ok"]
    shell.lines("bundle", "--all", "-s", "weights", "-o", "all.tar")
    written = subprocess.run(
        [PROGRAM, "bundle", "--all", "-s", "weights", "-o", "-"],
        cwd=shell.folder,
        env={**os.environ, **shell.environment},
        capture_output=True,
        check=True,
    )
    assert written.stdout == (shell.folder / "all.tar").read_bytes()


def test_a_damaged_bundle_in_a_pipe_is_refused_at_its_end(shell):
    largest = max((shell.folder / "weights").glob("objects/*/*"), key=lambda p: p.stat().st_size)
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)
    done = subprocess.run(
        f"{PROGRAM} bundle --all -s weights -o - | {PROGRAM} unbundle - -s there",
        shell=True,
        cwd=shell.folder,
        env={**os.environ, **shell.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert not list((shell.folder / "there").glob("states/**/*.toml"))


def test_nobody_gets_a_tar_on_a_terminal(shell):
    terminal = Terminal(shell, "bundle", "--all", "--store", "weights", "-o", "-")
    assert terminal.wait() == 2
    assert "into a pipe, or a file" in " ".join(ESCAPE.sub("", terminal.shown).split())


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.zip", "x.safetensors"])
def test_a_bundle_is_what_its_name_says(shell, name):
    told = shell.complaint("bundle", "--all", "-s", "weights", "-o", name, code=2)
    assert "mlstate bundle -o -" in told
    assert not (shell.folder / name).exists()


@pytest.mark.parametrize("name", ["x.gguf", "x.onnx", "x.safetensor", "x.h5", "x.foo", "x.tar"])
@pytest.mark.parametrize("options", [[], ["--torch"]])
def test_an_export_is_what_its_name_says(shell, name, options):
    if name == "x.foo" and options:
        pytest.skip("a name of one's own for a checkpoint")
    told = shell.complaint("export", KEY, name, "-s", "weights", *options, code=2)
    assert ".safetensors" in told
    assert not (shell.folder / name).exists()


@pytest.mark.parametrize("name", ["bert-v1.5", "model.v2", "plain", "x.gguf/"])
def test_an_export_into_a_new_folder_still_is_one(shell, name):
    shell.lines("export", KEY, name, "-s", "weights")
    assert load_file(shell.folder / name / "model.safetensors").keys() == {"a.weight", "b.bias"}


def test_a_folder_is_not_written_under_the_name_of_a_file(shell):
    for name in ("x.safetensors", "x.pt", "x.gguf"):
        told = shell.complaint("materialize", KEY, name, "-s", "weights", code=2)
        assert "mlstate export" in told
        assert not (shell.folder / name).exists()
    shell.lines("materialize", KEY, "x.pt/", "-s", "weights")
    assert (shell.folder / "x.pt" / "model.safetensors").exists()
    shell.lines("bundle", "--all", "-s", "weights", "-o", "all.tar")
    for name in ("mine.json", "mine.tar"):
        told = shell.complaint("unbundle", "all.tar", "-s", name, code=2)
        assert "ends in /" in told
        assert not (shell.folder / name).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", KEY, "-", "-s", "weights"],
        ["materialize", KEY, "-", "-s", "weights"],
        ["digest", "-"],
        ["diff", "-", KEY, "-s", "weights"],
        ["ls", "-"],
        ["copy", "--all", "--from", "weights", "--to", "-"],
        ["copy", "--all", "--from", "weights", "--to", "copies", "--manifest", "-"],
        ["add", "pytorch.mlp.x", "-", "-s", "weights"],
        ["add", "pytorch.mlp.x", "a.safetensors", "-s", "-"],
        ["lock", "-"],
        ["sign", "-"],
        ["verify-signature", "-"],
    ],
    ids=lambda words: words[0],
)
def test_a_stream_where_none_can_be_is_refused(shell, arguments):
    before = sorted(path.name for path in shell.folder.iterdir())
    shell.complaint(*arguments, code=2)
    assert sorted(path.name for path in shell.folder.iterdir()) == before


def test_a_file_that_is_called_so_is_meant_by_its_path(shell):
    shell.lines("bundle", "--all", "-s", "weights", "-o", "./-")
    assert (shell.folder / "-").is_file()


def test_a_manifest_is_refused_before_anything_is_copied(shell):
    told = shell.complaint(
        "copy", "--all", "--from", "weights", "--to", "copies", "--manifest", "x.txt", code=2
    )
    assert "ends in .toml" in told
    assert not (shell.folder / "copies").exists()


def test_a_name_is_whole_on_a_narrow_terminal(shell):
    terminal = Terminal(shell, "ls", "weights", width=40, NO_COLOR="1")
    assert terminal.wait() == 0
    lines = [line.rstrip() for line in terminal.shown.splitlines()]
    assert str(KEY) in lines
    assert str(TUNED) in lines
    assert max(map(len, lines)) <= 40
    assert lines[0] == "KEY"


def test_a_key_is_shown_as_it_was_understood(shell):
    save_file({"w": torch.ones(3)}, shell.folder / "a.safetensors")
    done = shell("add", "pytorch.minilm.pooler-v1.2", "a.safetensors", "-s", "new")
    assert done.returncode == 0
    assert "architecture minilm, extra pooler-v1, training id 2" in done.stderr
    assert "write it as pooler-v1-2" in done.stderr
    data = shell.json("add", "pytorch.minilm.cls2.base", "a.safetensors", "-s", "new")
    assert data["understood"] == {
        "backend": "pytorch",
        "architecture": "minilm",
        "extra": ["cls2"],
        "training_id": "base",
    }
    plain = shell("add", "pytorch.minilm.base", "a.safetensors", "-s", "new")
    assert "understood" not in plain.stderr


def test_an_age_has_a_unit(shell):
    assert "5d is days" in shell.complaint("prune", "-s", "weights", "--older-than", "5", code=2)
    shell.lines("prune", "-s", "weights", "--older-than", "0")


def test_a_prefix_is_one_line_of_a_diff_and_nothing_is_an_empty_column(shell):
    tensors = LocalStateStore(shell.folder / "weights").load_state_dict(KEY)
    torch.save({f"model.{name}": t for name, t in tensors.items()}, shell.folder / "a.pt")
    lines = shell.lines("diff", KEY, "a.pt", "-s", "weights", code=1)
    assert lines == [
        "no names in common",
        "renamed: 2 names, with model. before them in the second",
    ]
    lines = shell.lines("diff", "a.pt", KEY, "-s", "weights", code=1)
    assert lines[1] == "renamed: 2 names, with model. before them in the first"
    lines = shell.lines("diff", KEY, TUNED, "-s", "weights", "--names-only", code=1)
    assert lines[2].split() == ["CHANGED", "SHAPE"]


WARNING = """
import sys, warnings
import mlstate.stores.open
def warn(*_, **__):
    for kind in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.warn_explicit("of torch", kind, "torch/x.py", 1, module="torch.x")
    from mlstate.warn import warn
    warn("ours")
    raise SystemExit(0)
mlstate.stores.open.open_store = warn
from mlstate.cli.app import run
sys.exit(run(["ls", "weights"]))
"""


def test_warnings_that_torch_has_for_programs_are_not_shown(shell):
    import sys

    variables = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", WARNING],
        cwd=shell.folder,
        env={**variables, **shell.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "warning: ours\n")

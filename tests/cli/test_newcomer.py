"""A newcomer's first hour: sixty commands in a fresh folder, mistakes among them.

What every command prints is held against the rules of messages: no traceback, no empty remedy, no
name that Python alone knows; a command that a remedy names is one that there is. Each mistake is
followed by what its message says to do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlstate.cli.app import command_tree
from tests.support.commands import Shell

FINAL = "pytorch.linear.final"
_COMMAND = re.compile(r"\bmlstate ([a-z]+(?:-[a-z]+)*)")
_PYTHON = ("StateKey", "LocalStateStore", "overwrite=", "None", "object at 0x", "Traceback")


@dataclass(frozen=True)
class Step:
    """A command, the code that it ends with, and what it says."""

    command: str
    code: int = 0
    says: str = ""


STEPS = [
    Step("", 2, "First steps"),
    Step("--version", 0, "mlstate "),
    Step("lst", 2, "Did you mean 'ls'?"),
    Step("list", 2, "Did you mean 'ls'?"),
    Step("init --store weights", 0, "mlstate.toml"),
    Step("ls", 0, "no states in"),
    Step("add linear linear.pt", 2, "backend.architecture[.extra...].training_id"),
    Step("add pytorch.linear.v1 linaer.pt", 3, "there is no such file"),
    Step("add linear.pt pytorch.linear.v1", 2, "mlstate add pytorch.linear.v1 linear.pt"),
    Step("add pytorch.linear.v1 https://", 2, "the host of an address"),
    Step("add pytorch.linear.v1 org/repo", 3, "hf://org/repo"),
    Step("add pytorch.linear.v1 hf:org/repo", 2, "hf://org/repo"),
    Step("add pytorch.linear.v1 runs/none.pt", 3, "what to do: check the path\n"),
    Step("add pytorch.linear.v1 page.pt", 2, "a web page (HTML)"),
    Step("add pytorch.linear.v1 linear.pt", 0, "40.4 kB new"),
    Step("add pytorch.linear.v1 linear.pt", 0, "it was there already"),
    Step("add pytorch.linear.v1 other.pt", 6, "this key has other weights already"),
    Step("add pytorch.linear.v2.5 other.pt", 0, "architecture linear, extra v2, training id 5"),
    Step("add pytorch.linear.both two.pt", 2, "model, ema"),
    Step("add pytorch.linear.both two.pt --select ema", 0, "pytorch.linear.both"),
    Step("ls", 0, "pytorch.linear.v1"),
    Step("ls --sort size --columns key,size,digest", 0, "DIGEST"),
    Step("ls --sort acc", 2, "is no column"),
    Step("ls 'pytorch.conv*'", 3, "no state fits"),
    Step("show pytorch.linear.v3", 3, "did you mean pytorch.linear.v1"),
    Step("show pytorch.linear.v1", 0, "100x100"),
    Step("show v1", 2, "did you mean pytorch.linear.v1?"),
    Step("ls v1", 3, "mlstate ls '*v1*'"),
    Step("ls '*v1*'", 0, "pytorch.linear.v1"),
    Step("ls weight", 3, "did you mean weights?"),
    Step("ls linear.pp", 3, "nothing: there is no such file"),
    Step("show weights", 2, "mlstate ls weights"),
    Step("meta pytorch.linear.v1 set acc", 2, "is not NAME=VALUE"),
    Step("meta pytorch.linear.v1 set acc=0.9 licence=MIT", 0, "acc"),
    Step("ls --sort meta.acc --columns key,meta.acc", 0, "0.9"),
    Step("ls --columns key,meta.ac", 0, "no state has a note 'ac'; there are acc, licence"),
    Step("digest linear.pt other.pt", 0, "linear.pt"),
    Step("digest linear.pt --select model", 2, "weight, bias"),
    Step("diff pytorch.linear.v1 linear.pt", 0, "the same weights"),
    Step("diff pytorch.linear.v1 pytorch.linear.v2.5", 1, "weight"),
    Step("mv pytorch.linear.v1 final", 2, "not a state key"),
    Step(f"mv pytorch.linear.v1 {FINAL}", 0, FINAL),
    Step("show pytorch.linear.v1", 3, "did you mean"),
    Step(f"export {FINAL} out.gguf", 2, "a GGUF file"),
    Step(f"export {FINAL} out.safetensors", 0, "out.safetensors"),
    Step(f"export {FINAL} out.safetensors", 6, "--overwrite"),
    Step(f"export {FINAL} out.safetensors --overwrite", 0, "out.safetensors"),
    Step(f"materialize {FINAL} folder", 0, "folder"),
    Step("bundle --all", 2, "--output"),
    Step("bundle --all -o states.tar.gz", 2, "ends in .tar"),
    Step("bundle --all -o states.tar", 0, "mlstate unbundle states.tar"),
    Step("unbundle states.tar --to elsewhere", 2, "--store"),
    Step("unbundle states.tar --store elsewhere", 0, "in elsewhere"),
    Step("copy --all --store weights --to shared", 2, "--from"),
    Step("fetch pytorch.resnet18.cls1000.imagenet --dry-run", 0, "would be fetched, and pinned"),
    Step("fetch resnet18 --dry-run", 2, "backend.architecture"),
    Step("verify", 0, "3 states checked"),
    Step("verify pytorch.linear.nope", 3, "no such state"),
    Step("copy --all --to nope://x", 2, "is none of a store"),
    Step(f"copy {FINAL} --to shared --manifest models.toml --dry-run", 0, "would be copied"),
    Step(f"copy {FINAL} --to shared --manifest models.toml", 0, "1 state listed"),
    Step("ls models.toml", 0, "no"),
    Step(f"verify {FINAL} --store models.toml", 1, "unchecked"),
    Step(f"fetch {FINAL} --store models.toml", 0, "fetched"),
    Step(f"verify {FINAL} --store models.toml", 0, "all as they should be"),
    Step("verify --mirrors --store models.toml", 0, "all have what they should"),
    Step("alias best pytorch.linear.final", 6, "kept in manifests"),
    Step(f"alias {FINAL} best --store models.toml", 2, f"mlstate alias best {FINAL}"),
    Step(f"alias best {FINAL} --store models.toml", 0, f"best  {FINAL}"),
    Step("show best --store models.toml", 0, FINAL),
    Step("check models.toml", 0, "all is well"),
    Step(f"rm {FINAL} --dry-run", 0, "would be removed"),
    Step(f"rm {FINAL}", 0, "mlstate restore"),
    Step("log", 0, "deleted"),
    Step(f"restore {FINAL}", 0, "restored"),
    Step("prune --older-than 5", 2, "5d is days"),
    Step("prune", 0, "0 objects"),
    Step("prune --max-size 1MB", 2, "mlstate rm"),
    Step("du", 0, "on disk"),
    Step("compact --dry-run", 0, "would be encoded"),
    Step("compact --alone", 0, "encoded"),
    Step("du", 0, "saved by that"),
    Step("compact --undo", 0, "plain again"),
    Step("git-setup", 6, "git init"),
    Step("add --all runs", 2, "--all needs --key"),
    Step("add --all runs --key 'pytorch.run.{stem}' --dry-run", 0, "pytorch.run.one"),
    Step("add --all runs --key 'pytorch.run.{stem}'", 0, "pytorch.run.two"),
    Step("ls nowhere", 3, "there is no store here"),
    Step("fetch --all", 2, "mlstate copy"),
    Step("doctor", 0, "cache"),
]


@pytest.fixture
def home(tmp_path):
    """A folder with files of weights, and a shell in it that knows no git repository above."""
    torch.manual_seed(0)
    linear, other = torch.nn.Linear(100, 100).state_dict(), torch.nn.Linear(100, 100).state_dict()
    torch.save(linear, tmp_path / "linear.pt")
    torch.save(other, tmp_path / "other.pt")
    torch.save({"model": linear, "ema": other, "epoch": 3}, tmp_path / "two.pt")
    (tmp_path / "page.pt").write_text("<!doctype html><html>404</html>")
    (tmp_path / "runs").mkdir()
    for name, state in (("one", linear), ("two", other)):
        save_file(
            {n: t.contiguous() for n, t in state.items()}, tmp_path / f"runs/{name}.safetensors"
        )
    environment = {"MLSTATE_CACHE": str(tmp_path / "cache"), "GIT_CEILING_DIRECTORIES": "/"}
    return Shell(tmp_path, environment)


def check(step: Step, done: subprocess.CompletedProcess[str]) -> None:
    """What holds for whatever a command prints."""
    said = done.stdout + done.stderr
    assert done.returncode == step.code, said
    assert step.says in said, said
    if not step.command:  # the help, which has lines of Python among the first steps
        return
    assert not [word for word in _PYTHON if word in done.stderr], done.stderr
    assert not re.search(r"^  [a-z ]+:\s*$", done.stderr, re.MULTILINE), done.stderr
    unknown = set(_COMMAND.findall(done.stderr)) - set(command_tree().commands) - {"help"}
    assert not unknown, (unknown, done.stderr)


def test_sixty_commands(home):
    assert len(STEPS) >= 60
    for step in STEPS:
        done = subprocess.run(
            f"mlstate {step.command}",
            shell=True,
            cwd=home.folder,
            env=home_environment(home),
            capture_output=True,
            text=True,
            check=False,
        )
        check(step, done)
    assert torch.equal(
        load_file(home.folder / "out.safetensors")["weight"],
        torch.load(home.folder / "linear.pt")["weight"],
    )


def home_environment(home: Shell) -> dict[str, str]:
    """The environment of a shell that finds the program of these tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **home.environment, "PATH": path, "PYTHONWARNINGS": "error"}


def test_every_mistake_is_an_object_too(home):
    """With --json each failure is one JSON object on standard output, with a kind and a message."""
    home("init", "--store", "weights")
    home("add", FINAL, "linear.pt")
    for command in (
        ["show", "pytorch.linear.v3"],
        ["add", "linear", "linear.pt"],
        ["export", FINAL, "out.gguf"],
        ["ls", "nowhere"],
        ["prune", "--older-than", "5"],
        ["verify", "pytorch.linear.nope"],
        ["lst"],
    ):
        done = home(*command, "--json")
        assert done.returncode not in (0, 1)
        failure = json.loads(done.stdout)
        assert failure["schema"] == "mlstate.error/1"
        assert failure["exit_code"] == done.returncode
        assert failure["kind"]
        assert failure["message"]

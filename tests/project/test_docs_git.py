"""The page about manifests in git: every block runs, in order, and says what it shows."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.project.test_docs_signing import BLOCK, STEP, run
from tests.support.repositories import WITH_PROGRAM, Repository, needs_git

pytestmark = needs_git

PAGE = Path(__file__).parents[2] / "docs" / "git.md"
FINDINGS = ("1 finding", "CONFLICT", "states: ")
"""What a command shows that ends with exit code 1."""


def test_every_block_runs_and_says_what_it_shows(tmp_path):
    repository = Repository(tmp_path / "work", tmp_path / "home")
    for folder in (repository.folder, repository.home, tmp_path / "tmp"):
        folder.mkdir()
    environment = {**os.environ, **repository.environment, "PATH": WITH_PROGRAM}
    steps = 0
    for language, block in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            command = [sys.executable, "-W", "error", "-c", block]
            run(command, repository.folder, environment, 0)
            continue
        for typed, shown in STEP.findall(block):
            steps += 1
            command = typed.replace("/tmp/", f"{tmp_path}/tmp/")
            finding = command != "git diff" and any(text in shown for text in FINDINGS)
            said = run(["bash", "-c", command], repository.folder, environment, int(finding))
            pattern = ".*".join(map(re.escape, shown.split("...")))  # three dots: whatever it is
            assert re.fullmatch(pattern, said, re.DOTALL), said
    assert steps == 18

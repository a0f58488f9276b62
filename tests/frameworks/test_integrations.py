"""All integrations: what their page says, and what is imported when."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.frameworks.entry_points import ROOT, installed
from tests.frameworks.models import needs

pytestmark = pytest.mark.frameworks

PAGE = (ROOT / "docs" / "integrations.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.M)[1:]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PACKAGES = {
    "transformers": ("transformers", "transformers"),
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
    "diffusers": ("diffusers", "diffusers"),
    "lightning": ("lightning", "lightning"),
    "ignite": ("ignite", "pytorch-ignite"),
    "fsspec": ("fsspec", "fsspec"),
}


def run(code, folder, path=str(ROOT)):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0])
def test_every_block_of_the_page_runs(section, tmp_path):
    for package in [*(package for package, _ in PACKAGES.values()), "peft"]:
        if f"import {package}" in section or f"from {package}" in section:
            needs(package)
    blocks = BLOCK.findall(section)
    assert blocks
    done = run("\n".join(blocks), tmp_path, installed(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", PACKAGES)
def test_without_its_package_it_says_what_to_install(module, tmp_path):
    package, distribution = PACKAGES[module]
    code = f"""
import sys
sys.modules["{package}"] = None  # what Python then says is what it says of a missing package
import mlstate.integrations.common
from mlstate.errors import MissingPackageError
try:
    import mlstate.integrations.{module}
except MissingPackageError as error:
    assert isinstance(error, ImportError)
    assert error.remedy == "pip install {distribution}", error.remedy
else:
    raise AssertionError("it was imported")
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"`mlstate.integrations.{module}`" in PAGE
    assert f"`pip install {distribution}`" in PAGE


def test_the_package_alone_imports_no_framework_and_no_torch(tmp_path):
    names = {"torch", *(package for package, _ in PACKAGES.values())}
    code = f"import mlstate.integrations, sys; assert not {names!r} & sys.modules.keys()"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_one_framework_imports_no_other(tmp_path):
    needs("fsspec")
    names = {"torch", "transformers", "lightning", "ignite", "diffusers"}
    code = f"import mlstate.integrations.fsspec, sys; assert not {names!r} & sys.modules.keys()"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr

"""Run docs/tutorial.ipynb in an empty folder and keep what it prints.

With ``--check`` nothing is written; the exit code says whether it runs and prints what is
committed. Digests of weights that were trained differ from machine to machine, so they are not
compared.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
_DIGEST = re.compile(r"[0-9a-f]{32,64}")


def run(notebook: Any) -> Any:
    """Execute all cells; what went to standard error, warnings of libraries, is left out."""
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def printed(notebook: Any) -> list[str]:
    """What each cell printed and returned, digests masked."""
    texts = []
    for cell in notebook.cells:
        parts = [
            output.get("text") or output["data"]["text/plain"] for output in cell.get("outputs", [])
        ]
        texts.append(_DIGEST.sub("...", "".join(parts)))
    return texts


def main() -> None:
    """Run the notebook; write it or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    committed = printed(nbformat.read(NOTEBOOK, 4))
    notebook = run(nbformat.read(NOTEBOOK, 4))
    if check:
        for number, (old, new) in enumerate(zip(committed, printed(notebook), strict=True)):
            if old != new:
                sys.exit(f"{NOTEBOOK}: cell {number} printed\n{new}\nand the page says\n{old}")
    else:
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()

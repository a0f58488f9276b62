"""Progress in a notebook: a line below the cell, in a real kernel."""

from __future__ import annotations

import nbclient
import nbformat
import torch

from mlstate import LocalStateStore, StateKey, manifest_of

KEY = StateKey.parse("pytorch.net.a")

FETCH = f"""
from mlstate import ManifestStore, StateKey, usage
view = ManifestStore("weights.toml", cache="cache", progress=True)
view.fetch(StateKey.parse("{KEY}")).fetched
"""


def test_a_fetch_shows_its_progress_below_the_cell(tmp_path):
    store = LocalStateStore(tmp_path / "weights")
    store.save_state_dict({"w": torch.ones(100_000)}, KEY)
    manifest_of(store, objects=["weights"]).write(tmp_path / "weights.toml")
    cells = [nbformat.v4.new_code_cell(FETCH), nbformat.v4.new_code_cell("usage(view)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    shown, returned = notebook.cells[0].outputs
    assert shown.output_type == "display_data"
    assert shown.data["text/plain"] == f"{KEY}: 404.3 kB of 404.3 kB"
    assert int(returned.data["text/plain"]) >= 400_000
    (table,) = notebook.cells[1].outputs
    assert f'<td style="text-align: left">{KEY}</td>' in table.data["text/html"]

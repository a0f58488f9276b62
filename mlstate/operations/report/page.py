"""A report as one HTML file: what browsers need is in it, and it asks no network.

The page is joined of the files in ``assets/``. Texts of stores come in as JSON, and scripts show
them as text alone; a policy in the page lets nothing run but these scripts, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mlstate.locations import local_path
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import sync_path
from mlstate.operations.export import publish, refuse_existing
from mlstate.operations.report.page_data import page_data
from mlstate.operations.report.values import ReportData

__all__ = ["Report", "page_of"]

_FIRST_LINES = b"<!doctype html>\n<!-- A report of mlstate"
_LIBRARY = "d3-hierarchy.min.js"
_SCRIPTS = (
    "common.js",
    "treemap.js",
    "layers.js",
    "heatmap.js",
    "lineage.js",
    "details.js",
    "tables.js",
    "start.js",
)
_FRAME_HEIGHT = 760


@dataclass(frozen=True, repr=False)
class Report(ReportData):
    """A store to look at: in a notebook as the value of a cell, or as a file, see `write`.

    Attributes are those of `ReportData`.
    """

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the report as one HTML file, which needs nothing else and asks no network.

        An earlier report is replaced.

        Args:
            path: The file; its folders are made if they are missing.
            overwrite: Replace any other file, too.

        Raises:
            StateExistsError: Another file is there already; nothing was changed.
        """
        _write_page(self, path, overwrite=overwrite)

    def _repr_html_(self) -> str:
        """The report in a frame of its own, for notebooks."""
        return _in_frame(self)

    def __repr__(self) -> str:
        """A line: the whole would fill the screen."""
        return f"<report on {len(self.usage.states)} states of {self.store}>"


def _write_page(
    report: ReportData, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a report as a file, whole or not at all."""
    target = local_path(path)
    replace = overwrite or _is_report(target)
    refuse_existing(target, overwrite=replace)
    text = page_of(report).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        with temporary.open("xb") as file:
            file.write(text)
        sync_path(temporary)
        publish(temporary, target, overwrite=replace)
    finally:
        temporary.unlink(missing_ok=True)


def _is_report(path: os.PathLike[str]) -> bool:
    """Whether a file is an earlier report, which nobody misses."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(_FIRST_LINES)) == _FIRST_LINES


def _in_frame(report: ReportData) -> str:
    """A report as HTML for a notebook: in a frame whose scripts cannot reach the notebook."""
    return (
        f'<iframe title="{html.escape(f"mlstate report on {report.store}")}" '
        f'sandbox="allow-scripts" width="100%" height="{_FRAME_HEIGHT}" style="border:0" '
        f'srcdoc="{html.escape(page_of(report))}"></iframe>'
    )


def page_of(report: ReportData) -> str:
    """The text of the page."""
    data = page_data(report)
    library = _asset(_LIBRARY)
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src {_hash_of(library)} {_hash_of(script)}"
    )
    parts = {
        "policy": policy,
        "title": html.escape(f"{data['store']}: mlstate report"),
        "style": _asset("report.css"),
        "data": _json(data),
        "licence": _asset("d3-hierarchy.LICENSE").strip(),
        "library": library,
        "script": script,
    }
    # At once: what came into the page is not looked at for more places.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("report.html"))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _hash_of(script: str) -> str:
    """A script as a content security policy names it."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(data: dict[str, Any]) -> str:
    """JSON that can stand within a script element: nothing in it looks like a tag."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text

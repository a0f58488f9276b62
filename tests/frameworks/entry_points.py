"""The entry points of the package, as an installation has them."""

from __future__ import annotations

import tomllib
from pathlib import Path

__all__ = ["ROOT", "installed"]

ROOT = Path(__file__).parents[2]


def installed(folder: Path) -> str:
    """A PYTHONPATH with this package and its entry points, which are written into a folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    metadata = folder / "installed" / "named-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: named\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return f"{ROOT}:{metadata.parent}"

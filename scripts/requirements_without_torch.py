"""Print what the package and its tests need but for torch: for Pythons without a wheel of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("hub", "s3", "sign", "test")
NEEDS_TORCH = {"torch", "mlstate"}


def main() -> None:
    """One requirement a line."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    for requirement in sorted(wanted):
        if re.split(r"[^\w.-]", requirement)[0] not in NEEDS_TORCH:
            print(requirement)


if __name__ == "__main__":
    main()

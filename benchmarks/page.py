"""Write the tables of docs/performance.md anew from the results: ``python -m benchmarks.page``.

A table there follows a comment that names it, ``<!-- table: load warm -->``. What is said around
the tables is a person's.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.pagetables import TABLES

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_TABLE = re.compile(r"^<!-- table: (.*) -->\n\n((?:\|.*\|\n)*)", re.M)


def page(text: str) -> str:
    """The page with its tables as the results have them."""
    named = [found[1] for found in _TABLE.finditer(text)]
    if sorted(named) != sorted(TABLES):
        raise ValueError(f"not once each on the page: {set(named) ^ set(TABLES) or named}")
    return _TABLE.sub(lambda found: f"<!-- table: {found[1]} -->\n\n{TABLES[found[1]]()}", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

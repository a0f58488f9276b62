"""The pages have a form that people and readers of screens can use, whoever wrote them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mlstate

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
HEADS = re.compile(r"^(\|.*\|)\n\|[-|: ]+\|$", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_column_of_a_table_has_a_head(page):
    for heads in HEADS.findall(page.read_text()):
        assert all(head.strip() for head in heads.strip("|").split("|")), heads


CODE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
WIDEST = 100
"""What the width of a page has room for: `docs/_static/mlstate.css`."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_code_is_wider_than_a_page(page):
    lines = [line for code in CODE.findall(page.read_text()) for line in code.splitlines()]
    assert [line for line in lines if len(line) > WIDEST] == []


def test_there_are_tables_and_pages():
    assert len(PAGES) > 10
    assert any(HEADS.search(page.read_text()) for page in PAGES)


def test_the_reference_has_every_public_name_and_nothing_that_is_no_promise():
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    for name in set(mlstate.__all__) - {"GitHUBReleaseStore"}:
        assert re.search(rf"auto(class|function|exception):: {name}$", text, re.M), name
    inner = ("raw_bytes", "bring", "mend", "recorded", "find", "clients", "threads", "listing")
    for name in (*inner, "check_key", "keys_of", "state_type_of", "put_back", "trashed_paths"):
        assert not re.search(rf"(automethod|members):.*\b{name}\b", text), name
    assert not re.search(r"automodule:: mlstate.states", text)  # of which all would be shown

"""The page of guarantees names tests that exist, and no promise stands there without one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
PAGE = (DOCS / "guarantees.md").read_text()
PROMISED = PAGE.split("\n## What is not promised")[0]
PROMISE = re.compile(r"^\*\*([A-Z]\d+)\. ", re.M)
TEST = re.compile(r"^- `([\w/]+\.py)::(\w+)`$", re.M)


@cache
def names(path: Path) -> set[str]:
    """The functions of a file, those of its classes among them."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "test"), TEST.findall(PAGE))
def test_each_test_that_is_named_exists(file, test):
    assert test.startswith("test_")
    assert test in names(TESTS / file)


def test_no_promise_is_without_a_test():
    starts = [found.start() for found in PROMISE.finditer(PROMISED)]
    assert len(starts) > 20
    for start, end in zip(starts, [*starts[1:], len(PROMISED)], strict=True):
        assert TEST.search(PROMISED[start:end]), PROMISED[start : start + 80]


def test_what_looks_like_a_test_is_read_as_one():
    assert len(TEST.findall(PAGE)) == sum(line.startswith("- `") for line in PAGE.splitlines())


def test_the_threat_model_leans_on_promises_that_stand_there():
    promises = PROMISE.findall(PROMISED)
    assert len(promises) == len(set(promises))
    text = (DOCS / "threat-model.md").read_text()
    leant_on = {
        name
        for group in re.findall(r"\(([A-Z]\d+(?:, [A-Z]\d+)*)\)", text)
        for name in group.split(", ")
    }
    assert leant_on
    assert leant_on <= set(promises)

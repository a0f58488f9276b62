"""Public names of packages that are imported at their first use (PEP 562).

Python runs `mlstate/__init__.py` first for every module of the package, so that each of its imports
would delay every command.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["exports", "public"]


def exports(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose public names are in other modules."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names


def public(name: str) -> Any:
    """A public name of mlstate, for a method that is the short form of an operation."""
    return getattr(importlib.import_module("mlstate"), name)

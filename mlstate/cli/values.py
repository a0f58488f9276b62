"""Words of a command line that are names and values: ``licence=MIT``, ``accuracy=0.93``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import typer

__all__ = ["pairs", "typed"]

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)")
_BOOLS = {"true": True, "false": False}
_LARGEST = 2**63


def pairs(texts: list[str], option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """Names and values, each name once; a `typer.BadParameter` names the option."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value
    return found


def typed(values: Mapping[str, str]) -> dict[str, Any]:
    """Values as TOML would have them: numbers, true and false; all else is text.

    A value in double quotes is a text, without them.

    Example:
        >>> typed({"accuracy": "0.93", "steps": "100", "version": '"1"', "licence": "MIT"})
        {'accuracy': 0.93, 'steps': 100, 'version': '1', 'licence': 'MIT'}
    """
    return {name: _typed(value) for name, value in values.items()}


def _typed(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    if _INTEGER.fullmatch(text) and -_LARGEST <= int(text[:20]) < _LARGEST and len(text) <= 20:
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return _BOOLS.get(text, text)

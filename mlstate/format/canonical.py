"""Canonical JSON: one text for one value, so that equal values have equal digests."""

from __future__ import annotations

import json
from typing import Any

from mlstate.errors import FormatError

__all__ = ["dumps", "loads"]


def dumps(value: Any) -> bytes:
    """Encode as JSON with keys sorted by code point, no spaces, non-ASCII escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


def loads(data: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object; whether it was canonical is for the caller to check by encoding it.

    Args:
        data: The JSON text.
        what: What it is, for the error.

    Raises:
        FormatError: Not JSON, or not an object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON", found=str(error)) from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object", found=type(value).__name__)
    return value

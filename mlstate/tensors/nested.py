"""Nested values of a training: mappings, lists and tuples with tensors and plain values in them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from mlstate.errors import FormatError

__all__ = ["free_name", "mapped", "under"]

_MOST = 100
_MAPPINGS = (dict, OrderedDict, Counter)


def mapped(
    value: Any,
    leaf: Callable[[str, Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda value: False,
    most: int = _MOST,
) -> Any:
    """The same nesting of mappings, lists and tuples with other leaves.

    Args:
        value: Nested values.
        leaf: Gives what takes the place of a leaf, by its path and the leaf. A path is the keys
            from the top on, with dots between them: ``state.0.exp_avg``.
        is_leaf: Whether a mapping, list or tuple is a leaf itself.
        most: The most of them inside each other.

    Raises:
        FormatError: Too many are inside each other, or one is in itself.
    """

    def walk(value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind not in (*_MAPPINGS, list, tuple) or is_leaf(value):
            return leaf(path, value)
        if depth >= most:
            raise FormatError(
                "too many lists or mappings are inside each other",
                tensor=path[:200],
                expected=f"at most {most}",
            )
        if kind in _MAPPINGS:
            pairs = {key: walk(one, under(path, key), depth + 1) for key, one in value.items()}
            return kind(pairs)
        return kind([walk(one, under(path, at), depth + 1) for at, one in enumerate(value)])

    return walk(value, "", 0)


def free_name(path: str, taken: dict[str, Any]) -> str:
    """A name for the tensor at a path: the path, unless another has the same."""
    return path if path not in taken else f"{path}~{len(taken)}"


def under(path: str, key: Any) -> str:
    """The path of what a container at a path has under a key."""
    return f"{path}.{key}" if path else str(key)

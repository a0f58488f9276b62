"""The names in a state of what the files of a mirror call otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlstate.errors import FormatError
from mlstate.locations import Mirror

__all__ = ["Naming", "translate", "translate_all"]

Naming = Callable[[Mirror, Iterable[str]], dict[str, str]]
"""What gives the names in the state of what a mirror's files have, as `translate_all` does."""


def translate(mirror: Mirror, name: str) -> str:
    """The name in the state of what a mirror's file calls ``name``.

    `strip_prefix` is taken off the front (a name without it stays as it is), then the pairs of
    `rename` are replaced one after the other, wherever they occur, and `add_prefix` is put in
    front. Parts of a mirror have rules of their own.

    Example:
        >>> mirror = Mirror(("a.pth",), strip_prefix="module.", rename=(("norm.1", "norm1"),))
        >>> translate(mirror, "module.norm.1.bias")
        'norm1.bias'
    """
    name = name.removeprefix(mirror.strip_prefix)
    for old, new in mirror.rename:
        name = name.replace(old, new)
    return mirror.add_prefix + name


def translate_all(mirror: Mirror, names: Iterable[str]) -> dict[str, str]:
    """Name in the state -> name in the file; a `FormatError` if two of the file become one."""
    translated: dict[str, str] = {}
    for name in names:
        ours = translate(mirror, name)
        other = translated.setdefault(ours, name)
        if other != name:
            raise FormatError(
                "two names of a file become one name of the state",
                tensor=ours,
                found=f"{other!r} and {name!r}",
                remedy="look at strip_prefix and rename of the mirror",
            )
    return translated

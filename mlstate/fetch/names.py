"""The names in a state of what the files of a mirror call otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mlstate.errors import FormatError
from mlstate.locations import Mirror
from mlstate.models import AVERAGED

__all__ = ["counts_of_wrappers", "translate", "translate_all"]

_INSIDE = "module."
_AROUND = ("", "_orig_mod.")
"""What torch.compile puts before the names of an AveragedModel."""


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
    """Name in the state -> name in the file; a `FormatError` if two of the file become one.

    What `counts_of_wrappers` names is left out.
    """
    listed = [*names]
    left = counts_of_wrappers(mirror, listed)
    translated: dict[str, str] = {}
    for name in listed:
        if name in left:
            continue
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


def counts_of_wrappers(mirror: Mirror, names: Collection[str]) -> set[str]:
    """The count of an AveragedModel, if the prefix of its model is to be stripped off all names.

    The count belongs to the wrapper as the prefix does: the model inside has no such name.
    """
    for around in _AROUND:
        count, inside = around + AVERAGED, around + _INSIDE
        if count in names and mirror.strip_prefix.startswith(inside):
            others = [name for name in names if name != count]
            if others and all(name.startswith(inside) for name in others):
                return {count}
    return set()

"""From the names that a publisher gave to tensors to those of the state."""

from __future__ import annotations

from collections.abc import Iterable

from mlstate.errors import FormatError
from mlstate.locations import Mirror

__all__ = ["translate", "translate_all"]


def translate(mirror: Mirror, name: str) -> str:
    """The name in the state of what a mirror's file calls ``name``.

    Three steps, in this order: `strip_prefix` is taken off the front (a name without it stays as
    it is), the pairs of `rename` are replaced one after the other, wherever they occur, and
    `add_prefix` is put in front.

    Args:
        mirror: A mirror with a file of its own; parts have rules of their own.
        name: The name in the file.

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
    """Translate all names of a mirror's file; see `translate`.

    Returns:
        The name in the state -> the name in the file.

    Raises:
        FormatError: Two names of the file become one.
    """
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

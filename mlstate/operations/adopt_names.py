"""The names of what is adopted: those that a mirror gives, without the count of a wrapper."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mlstate.fetch.names import translate_all
from mlstate.locations import Mirror
from mlstate.models import AVERAGED

__all__ = ["AdoptedNames"]

_INSIDE = "module."
_AROUND = ("", "_orig_mod.")
"""What torch.compile puts before the names of an AveragedModel."""


class AdoptedNames:
    """Turns the names in files into those of the state that is adopted, as `translate_all` does.

    The count of an AveragedModel is left out, if the prefix of its model is to be stripped off all
    names: it belongs to the wrapper as the prefix does, and the model inside has no such name. No
    mirror of a manifest says so; there every name stays.

    Attributes:
        counts: The names of counts that were left out, as the files have them.
    """

    def __init__(self) -> None:
        self.counts: set[str] = set()

    def __call__(self, part: Mirror, names: Iterable[str]) -> dict[str, str]:
        """Name in the state -> name in the file; see `translate_all`."""
        listed = [*names]
        counts = _counts(part, listed)
        self.counts.update(counts)
        return translate_all(part, [name for name in listed if name not in counts])


def _counts(part: Mirror, names: Collection[str]) -> set[str]:
    for around in _AROUND:
        count, inside = around + AVERAGED, around + _INSIDE
        if count in names and part.strip_prefix.startswith(inside):
            others = [name for name in names if name != count]
            if others and all(name.startswith(inside) for name in others):
                return {count}
    return set()

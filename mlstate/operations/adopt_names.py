"""The names of what is adopted: those that a mirror gives, without the count of a wrapper."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mlstate.fetch.names import translate_all
from mlstate.locations import Mirror
from mlstate.models import AVERAGED
from mlstate.phrases import Phrase
from mlstate.warn import warn

__all__ = ["AdoptedNames"]

_INSIDE = "module."
_STRIP = "strip_prefix"
_OPTIONS = {
    _STRIP: Phrase("strip_prefix=", "--strip-prefix "),
    "rename": Phrase("rename of ", "--rename "),
}
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
        self._fitting: dict[tuple[str, str], bool] = {}
        self._dotted: str | None = None

    def __call__(self, part: Mirror, names: Iterable[str]) -> dict[str, str]:
        """Name in the state -> name in the file; see `translate_all`."""
        listed = [*names]
        counts = _counts(part, listed)
        self.counts.update(counts)
        names = [name for name in listed if name not in counts]
        self._note(part, names)
        return translate_all(part, names)

    def warn(self) -> None:
        """Warn of what was asked for and changed no name, and of names that begin with a dot."""
        for (option, text), fits in self._fitting.items():
            what = "begins with it" if option == _STRIP else "has it"
            if not fits:
                shown = _OPTIONS[option] + repr(text)
                warn(shown + f" changes nothing: no name of a tensor {what}")
        if self._dotted is not None:
            whole = Phrase(f"strip_prefix={self._dotted!r}", f"--strip-prefix {self._dotted}")
            warn("names of tensors begin with a dot now; " + whole + " takes that off, too")

    def _note(self, part: Mirror, names: Collection[str]) -> None:
        stripped = [(_STRIP, part.strip_prefix)] if part.strip_prefix else []
        for option, text in [*stripped, *(("rename", old) for old, _ in part.rename)]:
            fits = any(n.startswith(text) if option == _STRIP else text in n for n in names)
            self._fitting[option, text] = self._fitting.get((option, text), False) or fits
        dotted = f"{part.strip_prefix}."
        if part.strip_prefix and any(name.startswith(dotted) for name in names):
            self._dotted = dotted


def _counts(part: Mirror, names: Collection[str]) -> set[str]:
    for around in _AROUND:
        count, inside = around + AVERAGED, around + _INSIDE
        if count in names and part.strip_prefix.startswith(inside):
            others = [name for name in names if name != count]
            if others and all(name.startswith(inside) for name in others):
                return {count}
    return set()

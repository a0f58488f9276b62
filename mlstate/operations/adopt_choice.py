"""What `adopt` is to take of a source, and under which names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mlstate.errors import FormatError
from mlstate.locations import (
    ARRAYS,
    DISTRIBUTED,
    FORMATS,
    LOCAL_ONLY,
    SAFETENSORS,
    TORCH,
    TORCH_GZIP,
    Mirror,
    parse_mirror,
)
from mlstate.phrases import Phrase

__all__ = ["Choice", "chosen_files", "make_choice"]


@dataclass(frozen=True)
class Choice:
    """What is to be taken, as the arguments of `adopt` say.

    Attributes:
        select: Paths inside a torch checkpoint. Of several, each is put in front of the names of
            what it selects.
        weights: The file of a folder or a repository that has or lists the weights.
        form: The container, if it is not to be found out.
        tensors_only: Pass over entries that are no tensors.
        strip_prefix: See `mlstate.locations.Mirror`; so the next two.
        add_prefix: What to put in front of names.
        rename: Pairs of texts.
        include: Patterns of files to keep beside those that are kept by default.
        exclude: Patterns of files not to keep.
    """

    select: tuple[str, ...] = ()
    weights: str | None = None
    form: str | None = None
    tensors_only: bool = False
    strip_prefix: str = ""
    add_prefix: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def renames(self) -> bool:
        """Whether tensors get other names than in the files."""
        return bool(self.strip_prefix or self.add_prefix or self.rename)

    def mirror(self, addresses: tuple[str, ...], form: str) -> Mirror:
        """The mirror as a manifest would have it, with nothing in it that goes without saying.

        Raises:
            FormatError: Something is to be selected in a container that has nothing inside.
        """
        nested = form in (TORCH, TORCH_GZIP, DISTRIBUTED)
        mixed = nested or form == ARRAYS
        if (self.select and not nested) or (self.tensors_only and not mixed):
            asked = "tensors_only=True", "--tensors-only"
            if self.select:
                asked = f"select={self.select[0]!r}", f"--select {self.select[0]!r}"
            raise FormatError(
                "a safetensors file has nothing inside that could be selected"
                if form == SAFETENSORS
                else "this container has nothing inside that could be selected",
                path=addresses[0],
                found=Phrase(*asked),
            )
        # What is read on this machine only becomes no mirror: its choices are those of torch's.
        form = TORCH if form in LOCAL_ONLY else form
        table: dict[str, Any] = {"url": addresses[0]}
        if len(addresses) > 1:
            table = {"urls": [*addresses]}
        table |= {} if form == SAFETENSORS else {"format": form}
        table |= {"tensors_only": True} if self.tensors_only else {}
        table |= {"strip_prefix": self.strip_prefix} if self.strip_prefix else {}
        table |= {"rename": [[*pair] for pair in self.rename]} if self.rename else {}
        if len(self.select) > 1:
            parts = [
                {**table, "select": path, "add_prefix": f"{self.add_prefix}{path}."}
                for path in self.select
            ]
            return _parsed({"parts": parts})
        table |= {"select": self.select[0]} if self.select else {}
        table |= {"add_prefix": self.add_prefix} if self.add_prefix else {}
        return _parsed(addresses[0] if [*table] == ["url"] else table)


def make_choice(
    *,
    select: str | Sequence[str] | None,
    weights: str | None,
    form: str | None,
    tensors_only: bool,
    strip_prefix: str,
    add_prefix: str,
    rename: Mapping[str, str] | Iterable[tuple[str, str]],
    include: str | Sequence[str],
    exclude: str | Sequence[str],
) -> Choice:
    """The choice that these arguments of `adopt` say, or a `FormatError`."""
    if form is not None and form not in FORMATS:
        raise FormatError("unknown format", expected=" or ".join(FORMATS), found=repr(form))
    pairs = tuple(rename.items() if isinstance(rename, Mapping) else map(tuple, rename))
    if not all(len(pair) == 2 and pair[0] for pair in pairs):
        raise FormatError("rename is a mapping from texts to texts", found=repr(rename))
    paths = _texts("select", () if select is None else select)
    if len(set(paths)) != len(paths):
        raise FormatError("the same part of a checkpoint is selected twice", found=", ".join(paths))
    return Choice(
        paths,
        weights,
        form,
        tensors_only,
        strip_prefix,
        add_prefix,
        pairs,
        _texts("include", include),
        _texts("exclude", exclude),
    )


def chosen_files(
    names: Collection[str], kept: Collection[str], weights: Collection[str], choice: Choice
) -> list[str]:
    """The files that are kept with a state, sorted.

    Args:
        names: All there are.
        kept: Those that are kept by default.
        weights: Those whose tensors are the state; they are never kept as files.
        choice: Its patterns; a ``*`` in one matches a ``/``, too.

    Raises:
        FormatError: A pattern that no name matches.
    """
    others = [name for name in names if name not in weights]
    for option, patterns in (("include", choice.include), ("exclude", choice.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in others):
                raise FormatError(
                    "no file beside these weights has a name of this pattern",
                    expected=Phrase(f"{option}={pattern!r}", f"--{option} {pattern!r}"),
                    found=", ".join(sorted(others)[:20]) or "no files",
                )
    return sorted(
        name
        for name in others
        if (name in kept or _matches(name, choice.include)) and not _matches(name, choice.exclude)
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _parsed(value: object) -> Mirror:
    mirror = parse_mirror(value)
    assert isinstance(mirror, Mirror)
    return mirror


def _texts(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) and text for text in texts):
        raise FormatError(f"{name} is a text, or several", found=repr(given))
    return texts

"""The states that need an object, and as what: looked up for the few objects that are not right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.operations.verify.inspect import Inspection
from mlstate.states import StateKey

__all__ = ["Dependents", "find_dependents", "incomplete_states"]


@dataclass
class Dependents:
    """The states that need an object: those whose state object, tensor or file it is.

    Tensors are given by name and type, files by name.
    """

    states: set[StateKey] = field(default_factory=set)
    refs: dict[tuple[str, TensorSpec], set[StateKey]] = field(default_factory=dict)
    files: dict[str, set[StateKey]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.states or self.refs or self.files)

    def state_keys(self, spec: TensorSpec | None = None) -> tuple[StateKey, ...]:
        """The states, sorted; with a tensor's type only those that need it as one of that type."""
        refs = [keys for (_, other), keys in self.refs.items() if spec in (None, other)]
        others = () if spec else (self.states, *self.files.values())
        return tuple(sorted(set().union(*refs, *others)))

    def tensor_names(self, spec: TensorSpec | None = None) -> tuple[str, ...]:
        """The names of the tensors, sorted; only those of a type, if one is given."""
        return tuple(sorted({name for name, other in self.refs if spec in (None, other)}))

    def in_words(self, spec: TensorSpec | None = None) -> str:
        """What the object is, for people."""
        parts = ["the state object"] if self.states and not spec else []
        parts += _some("tensor", self.tensor_names(spec))
        parts += () if spec else _some("the file", sorted(self.files))
        return ", ".join(parts) or "an object that no state needs"


def find_dependents(
    inspection: Inspection, entries: Sequence[StateEntry], digests: Collection[Digest]
) -> dict[Digest, Dependents]:
    """The dependents of each of some objects; an object that no state needs is left out."""
    found: defaultdict[Digest, Dependents] = defaultdict(Dependents)
    for digest, sharing in _by_digest(entries).items() if digests else ():
        keys = {entry.key for entry in sharing}
        if digest in digests:
            found[digest].states |= keys
        for name, (ref, spec) in inspection.refs_of(digest).items():
            if ref in digests:
                found[ref].refs.setdefault((name, spec), set()).update(keys)
    for entry in entries:
        for name, file in entry.files.items():
            if file.digest in digests:
                found[file.digest].files.setdefault(name, set()).add(entry.key)
    return dict(found)


def incomplete_states(
    inspection: Inspection, entries: Sequence[StateEntry], is_noted: Callable[[Digest], bool]
) -> tuple[list[StateKey], list[StateKey]]:
    """The states of which nothing is there, and those of which something is missing; sorted.

    A file that others have, too, does not make a state one of the latter, unless a cache notes that
    it was fetched.
    """
    absent: list[StateKey] = []
    partial: list[StateKey] = []
    missing = inspection.missing
    for digest, sharing in _by_digest(entries).items() if missing else ():
        lacking = any(ref in missing for ref, _ in inspection.refs_of(digest).values())
        for entry in sharing:
            files = [file.digest in missing for file in entry.files.values()]
            if digest in missing and (all(files) or not is_noted(digest)):
                absent.append(entry.key)
            elif digest in missing or lacking or any(files):
                partial.append(entry.key)
    return sorted(absent), sorted(partial)


def _by_digest(entries: Sequence[StateEntry]) -> dict[Digest, list[StateEntry]]:
    found: dict[Digest, list[StateEntry]] = {}
    for entry in entries:
        found.setdefault(entry.pinned_digest, []).append(entry)
    return found


def _some(what: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return [f"{what} {names[0]!r}{more}"] if names else []

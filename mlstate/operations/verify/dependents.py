"""Which states need an object, and as what: found out for the few objects that are not right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.operations.verify.inspect import Inspection
from mlstate.states import StateKey

__all__ = ["Need", "Needing"]


@dataclass
class Need:
    """Who needs an object, and as what.

    Attributes:
        states: The states whose state object it is.
        refs: The tensors whose object it is, by name and type, with the states that have them.
        files: The files that it is, by name, with the states that have them.
    """

    states: set[StateKey] = field(default_factory=set)
    refs: dict[tuple[str, TensorSpec], set[StateKey]] = field(default_factory=dict)
    files: dict[str, set[StateKey]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.states or self.refs or self.files)

    def state_keys(self, spec: TensorSpec | None = None) -> tuple[StateKey, ...]:
        """The states, sorted; of a tensor's type only those that need it as one of that type."""
        refs = [keys for (_, other), keys in self.refs.items() if spec in (None, other)]
        others = () if spec else (self.states, *self.files.values())
        return tuple(sorted(set().union(*refs, *others)))

    def tensor_names(self, spec: TensorSpec | None = None) -> tuple[str, ...]:
        """The names of the tensors, sorted; only those of a type, if one is given."""
        return tuple(sorted({name for name, other in self.refs if spec in (None, other)}))

    def in_words(self, spec: TensorSpec | None = None) -> str:
        """What the object is."""
        parts = ["the state object"] if self.states and not spec else []
        parts += _some("tensor", self.tensor_names(spec))
        parts += () if spec else _some("the file", sorted(self.files))
        return ", ".join(parts) or "an object that no state needs"


class Needing:
    """Finds out who needs an object.

    Args:
        look: Knows what the states refer to.
        entries: The states.
    """

    def __init__(self, look: Inspection, entries: Sequence[StateEntry]) -> None:
        self._look = look
        self._entries = entries

    def of(self, digests: Collection[Digest]) -> dict[Digest, Need]:
        """Who needs these objects; what nobody needs is left out."""
        needs: dict[Digest, Need] = {}
        for digest, entries in self._by_digest() if digests else ():
            keys = {entry.key for entry in entries}
            if digest in digests:
                needs.setdefault(digest, Need()).states |= keys
            for name, (ref, spec) in self._look.refs_of(digest).items():
                if ref in digests:
                    need = needs.setdefault(ref, Need())
                    need.refs.setdefault((name, spec), set()).update(keys)
        for entry in self._entries:
            for name, file in entry.files.items():
                if file.digest in digests:
                    need = needs.setdefault(file.digest, Need())
                    need.files.setdefault(name, set()).add(entry.key)
        return needs

    def incomplete(self) -> tuple[list[StateKey], list[StateKey]]:
        """The states of which nothing is there, and those of which something is missing, sorted."""
        absent: list[StateKey] = []
        partial: list[StateKey] = []
        missing = self._look.missing
        for digest, entries in self._by_digest() if missing else ():
            lacking = any(ref in missing for ref, _ in self._look.refs_of(digest).values())
            for entry in entries:
                files = [file.digest in missing for file in entry.files.values()]
                if digest in missing and all(files):
                    absent.append(entry.key)
                elif digest in missing or lacking or any(files):
                    partial.append(entry.key)
        return sorted(absent), sorted(partial)

    def _by_digest(self) -> Iterator[tuple[Digest, list[StateEntry]]]:
        found: dict[Digest, list[StateEntry]] = {}
        for entry in self._entries:
            found.setdefault(entry.pinned_digest, []).append(entry)
        yield from found.items()


def _some(what: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return [f"{what} {names[0]!r}{more}"] if names else []

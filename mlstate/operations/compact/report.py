"""The report of a compaction: which states have encoded objects now, and what that saves."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlstate.operations.tables import Table, Tabular, size_cell
from mlstate.states import StateKey

__all__ = ["CompactReport", "CompactedState", "Tally", "UnreadObject"]


@dataclass(frozen=True)
class CompactedState:
    """A state of which objects changed their form; an object of several is told with the oldest.

    Attributes:
        key: Its key.
        objects: How many of its objects changed their form.
        before: The bytes of these before.
        after: The bytes of these now; of a dry run, about what they would have.
        bases: The states that have the bases, as far as these are other ones.
    """

    key: StateKey
    objects: int
    before: int
    after: int
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnreadObject:
    """A state, or a tensor of one, that could not be read: it stays as it is.

    Attributes:
        key: The state.
        tensor: The digest of the tensor's object; None where it is the state object.
        error: Why.
    """

    key: StateKey
    tensor: str | None
    error: str


@dataclass(frozen=True)
class CompactReport(Tabular):
    """What a compaction did, or with ``dry_run`` would do.

    Attributes:
        states: The states whose objects changed their form.
        objects: How many objects these are.
        before: Their bytes before.
        after: Their bytes now.
        looked_at: How many objects of the chosen states could have changed it.
        trash: The bytes that were moved to trash/: they are on the disk until prunings delete them.
        unread: What could not be read, and stays as it is.
        undone: Whether encoded objects became plain ones, and not the other way round.
        estimated: Whether sizes are estimates, from samples: those of a dry run.
        left: After an undoing, how many objects are in encoded form only: of other states, of none,
            or unread. As long as there are some, older readers refuse the store.
    """

    states: tuple[CompactedState, ...]
    objects: int
    before: int
    after: int
    looked_at: int
    trash: int
    unread: tuple[UnreadObject, ...] = ()
    undone: bool = False
    estimated: bool = False
    left: int = 0

    @property
    def saved(self) -> int:
        """The bytes that are saved, once the trash is empty; less than 0 of what is undone."""
        return self.before - self.after

    def _table(self) -> Table:
        rows = [
            (
                str(one.key),
                str(one.objects),
                size_cell(one.before),
                size_cell(one.after),
                ", ".join(one.bases),
            )
            for one in self.states
        ]
        about = "about " if self.estimated else ""
        summary = f"{self.objects} of {self.looked_at} objects: "
        summary += f"{size_cell(self.before)} become {about}{size_cell(self.after)}"
        return Table(("KEY", ">OBJECTS", ">BEFORE", ">AFTER", "BASES"), rows, summary)


@dataclass
class Tally:
    """What changed its form, object by object, while that goes on."""

    states: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    bases: dict[int, set[int]] = field(default_factory=dict)

    def add(self, state: int, before: int, after: int, base: int | None) -> None:
        """Note an object of a state; ``base`` is a state that has its base."""
        self.states.setdefault(state, []).append((before, after))
        if base is not None and base != state:
            self.bases.setdefault(state, set()).add(base)

    def by_state(self, keys: list[StateKey]) -> tuple[CompactedState, ...]:
        """The states, sorted by key."""
        return tuple(
            sorted(
                (
                    CompactedState(
                        keys[state],
                        len(sizes),
                        sum(before for before, _ in sizes),
                        sum(after for _, after in sizes),
                        tuple(sorted(str(keys[base]) for base in self.bases.get(state, ()))),
                    )
                    for state, sizes in self.states.items()
                ),
                key=lambda one: one.key,
            )
        )

"""Histories: does an order of operations exist in which each gave what it gave?

Every key is a register with four operations, whose moments lie somewhere between call and return:

    save N        "saved" if nothing or N was there, and N is then; "exists" if another is there
    save over N   "saved", and N is there
    delete        "deleted", and nothing is there; "absent" if nothing was
    load          the number that is there, or "absent"
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Event", "contradiction"]

Value = int | None
_IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Event:
    """An operation on a key: what was asked and answered, between two moments of one clock."""

    key: str
    call: str
    number: Value
    answer: object
    start: int
    end: int
    by: int = 0

    def applied(self, value: Value) -> Value | str:
        """What is there afterwards; `_IMPOSSIBLE` if this answer could not be given."""
        there = value is not None
        if self.call == "load":
            wanted = None if self.answer == "absent" else self.answer
            return value if value == wanted else _IMPOSSIBLE
        if self.call == "delete":
            return None if there == (self.answer == "deleted") else _IMPOSSIBLE
        if self.call == "save over":
            return self.number
        if self.answer == "saved":
            return self.number if value in (None, self.number) else _IMPOSSIBLE
        return value if there and value != self.number else _IMPOSSIBLE


def contradiction(events: Iterable[Event]) -> str | None:
    """What cannot have been, of the first key of which something cannot; None if all can."""
    by_key: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_key[event.key].append(event)
    for key, own in by_key.items():
        if stuck := _stuck(sorted(own, key=lambda event: event.start)):
            return f"of {key}: {stuck}"
    return None


def _stuck(events: list[Event]) -> list[Event] | None:
    """The events around which no order exists; None if one does."""
    seen: set[tuple[frozenset[int], int, Value]] = set()
    # Done are all events before `first`, and those in `ahead`.
    todo: list[tuple[frozenset[int], int, Value]] = [(frozenset(), 0, None)]
    furthest = 0
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        ahead, first, value = state
        while first in ahead:
            ahead, first = ahead - {first}, first + 1
        if first == len(events):
            return None
        furthest = max(furthest, first)
        # Next comes one that had begun before any other of those left returned.
        left = [n for n in range(first, len(events)) if n not in ahead]
        deadline = min(events[n].end for n in left[:64])
        for n in left:
            if events[n].start > deadline:
                break
            after = events[n].applied(value)
            if after != _IMPOSSIBLE:
                assert not isinstance(after, str)
                todo.append((ahead | {n}, first, after))
    return events[max(0, furthest - 4) : furthest + 8]

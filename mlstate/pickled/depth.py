"""How many containers of a pickle are inside each other."""

from __future__ import annotations

from collections.abc import Iterator

from mlstate.pickled.caps import MAX_DEPTH, capped
from mlstate.pickled.values import Call, Items, Pairs, Value

__all__ = ["check_depth", "children"]


def children(value: Value) -> Iterator[Value]:
    """The values that lie in a container; none of anything else."""
    if isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Pairs):
        for key, inside in value.items():
            yield key
            yield inside
    elif isinstance(value, Items):
        yield from value.items
    elif isinstance(value, Call):
        yield value.function
        yield value.arguments
        yield from value.parts


def check_depth(value: Value) -> None:
    """Refuse, by a FormatError, values with more than `MAX_DEPTH` containers inside each other.

    Each container is walked through once, however often it is referred to. One that holds itself
    counts once.
    """
    heights: dict[int, int] = {}  # of the containers that were walked through; 0 while they are
    open_containers: list[tuple[int, Iterator[Value], int]] = []

    def enter(container: Value) -> None:
        heights[id(container)] = 0
        open_containers.append((id(container), children(container), 0))

    if _holds(value):
        enter(value)
    while open_containers:
        key, inside, height = open_containers.pop()
        for child in inside:
            if not _holds(child):
                continue
            known = heights.get(id(child))
            if known is None:
                open_containers.append((key, inside, height))
                enter(child)
                break
            height = max(height, known)
        else:
            heights[key] = height + 1
            if open_containers:
                parent, rest, tallest = open_containers[-1]
                open_containers[-1] = (parent, rest, max(tallest, height + 1))
        if len(open_containers) > MAX_DEPTH or height >= MAX_DEPTH:
            raise capped("a pickle with too many containers inside each other", MAX_DEPTH)


def _holds(value: Value) -> bool:
    return isinstance(value, list | tuple | Pairs | Items | Call)

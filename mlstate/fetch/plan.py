"""Which bytes to ask for: ranges of a file, joined where that spares requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["MOST", "WASTE", "Piece", "join"]

MOST = 16 << 20
"""The most bytes that one request asks for, where the pieces allow it."""

WASTE = 0.02
"""Bytes that nobody wants, for bytes that are wanted: what joining ranges may cost."""

_Want = TypeVar("_Want")


@dataclass(frozen=True)
class Piece(Generic[_Want]):
    """Bytes of a resource that are wanted.

    Attributes:
        start: The first byte.
        stop: The byte after the last.
        want: What they are wanted for.
    """

    start: int
    stop: int
    want: _Want


def join(
    pieces: Iterable[Piece[_Want]], *, waste: float = WASTE, spent: int = 0, most: int = MOST
) -> list[tuple[Piece[_Want], ...]]:
    """Put pieces together into runs: one run, one request.

    Pieces that touch are joined. Gaps between others are read and thrown away, the smallest
    first, as long as that costs no more than ``waste`` of what is wanted. A run is cut between two
    pieces where it would exceed ``most``, so that several connections share the work.

    Args:
        pieces: What is wanted of one resource; none overlaps another.
        waste: The share of bytes that may be read for nothing.
        spent: Bytes that were read for nothing already (a header).
        most: The most bytes of a run; a single larger piece is a run of its own.

    Returns:
        Runs in the order of the resource, each with its pieces in order.
    """
    ordered = sorted(pieces, key=lambda piece: (piece.start, piece.stop))
    runs: list[list[Piece[_Want]]] = []
    bridged = _bridged(ordered, waste, spent)
    for index, piece in enumerate(ordered):
        if runs and index in bridged and piece.stop - runs[-1][0].start <= most:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [tuple(run) for run in runs]


def _bridged(ordered: Sequence[Piece[_Want]], waste: float, spent: int) -> set[int]:
    """The pieces that go with the one before: the gap is empty, or small enough to be read."""
    budget = waste * sum(piece.stop - piece.start for piece in ordered) - spent
    gaps = sorted(
        (ordered[index].start - ordered[index - 1].stop, index) for index in range(1, len(ordered))
    )
    bridged = set()
    for gap, index in gaps:
        budget -= gap
        if gap and budget < 0:
            break
        bridged.add(index)
    return bridged

"""Plans: which object is encoded as the difference to which, before any of it is read whole.

A plan is made of samples of 4 KiB of each object. A base is plain, or encoded by a compaction
before, and at a lower depth; what is a base already stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.format.encoded_object import DEPTH_LIMIT
from mlstate.format.state_object import TensorRef
from mlstate.objects.chains import Chains
from mlstate.objects.encoding import is_near, stands_alone
from mlstate.operations.compact.candidates import (
    Candidate,
    Family,
    Group,
    ReadStates,
    by_name,
    family_of,
)

__all__ = ["Known", "Plan", "Step", "plan_chains", "plan_stars"]

_PEERS = 8
"""So many objects of its name tell how many an object is near to."""
_SAME_NAME, _OTHER_NAME = 16, 8
"""So many bases are compared with an object: of one of its names, and else of the group."""

Distance = Callable[[TensorRef, TensorRef], float]
"""How far two objects of one type and shape are from each other; see `mlstate.encoded.distance`."""


@dataclass(frozen=True)
class Known:
    """What is known of the objects of a store.

    Attributes:
        chains: What is encoded already.
        plain: The objects that are there plainly.
        distance: The distance of two of them; a MlstateError where one cannot be read.
    """

    chains: Chains
    plain: Collection[Digest]
    distance: Distance

    def is_there(self, digest: Digest) -> bool:
        """Whether an object is there, plainly or encoded."""
        return digest in self.plain or self.chains.is_good(digest, self.plain.__contains__)

    def near(self, ref: TensorRef, other: TensorRef) -> float | None:
        """The distance of two objects; None if nothing would be saved."""
        try:
            distance = self.distance(ref, other)
        except MlstateError:  # one of them is damaged, or gone by now
            return None
        return distance if is_near(distance, ref.spec) else None


@dataclass(frozen=True, slots=True)
class Step:
    """An object that is to be encoded: as the difference to a base, at a depth, or alone."""

    ref: TensorRef
    state: int
    base: TensorRef | None = None
    depth: int = 0


@dataclass
class Plan:
    """The steps, no object twice, and no base after what is built on it.

    Attributes:
        steps: What is to be encoded.
        looked_at: The plain objects of chosen states, encoded or not, with their states.
    """

    steps: list[Step] = field(default_factory=list)
    looked_at: dict[Digest, tuple[TensorRef, int]] = field(default_factory=dict)


def plan_stars(groups: Iterable[Group], known: Known, *, alone: bool) -> Plan:
    """Plan differences to bases that stay as they are: plain, or encoded alone before. Depth 1.

    With ``alone`` what is near to no other is encoded alone, of whatever type.
    """
    plan = Plan()
    bases: set[Digest] = set()
    differences: dict[Digest, Step] = {}
    lonely: dict[Digest, Candidate] = {}
    for group in groups:
        for candidate, base in _Stars(group, known, differences, bases).run():
            digest = candidate.ref.digest
            plan.looked_at[digest] = candidate.ref, candidate.states[0]
            if base is None:
                lonely[digest] = candidate
            else:
                differences[digest] = Step(candidate.ref, candidate.states[0], base.ref, 1)
                bases.add(base.ref.digest)
    plan.steps += differences.values()
    for digest, candidate in lonely.items():
        is_base = digest in bases or digest in differences or known.chains.dependants(digest)
        if not is_base and (alone or stands_alone(candidate.ref.spec)):
            plan.steps.append(Step(candidate.ref, candidate.states[0]))
    return plan


class _Stars:
    """The objects of one group, each with the nearest of the bases before it, or one itself."""

    def __init__(
        self,
        group: Group,
        known: Known,
        differences: Container[Digest],
        bases: Container[Digest],
    ) -> None:
        self._members = group.members
        self._known = known
        self._chains = known.chains
        self._differences = differences
        self._needed = bases
        self._named = by_name(group.members)
        self._bases: list[Candidate] = []
        self._bases_named: dict[str, list[Candidate]] = {}

    def run(self) -> Iterator[tuple[Candidate, Candidate | None]]:
        """Each plain object of a chosen state, and its base, or None."""
        for candidate in sorted(self._members, key=self._preference):
            digest = candidate.ref.digest
            if digest in self._differences:  # as a member of another group
                continue
            if digest in self._known.plain:
                free = not self._chains.dependants(digest) and digest not in self._needed
                base = self._nearest(candidate) if candidate.is_chosen and free else None
                if candidate.is_chosen:
                    yield candidate, base
                if base is not None:
                    continue
            elif self._chains.depth(digest) or not self._known.is_there(digest):
                continue  # it is a difference itself, or missing
            self._bases.append(candidate)
            for name in candidate.names:
                self._bases_named.setdefault(name, []).append(candidate)

    def _preference(self, candidate: Candidate) -> tuple[bool, bool, bool, int, int, int]:
        """What stays as it is comes first, and then what makes the better base."""
        digest = candidate.ref.digest
        return (
            digest in self._known.plain,
            not self._chains.dependants(digest),
            candidate.is_chosen,
            -self._votes(candidate),
            -len(candidate.states),
            candidate.states[0],
        )

    def _votes(self, candidate: Candidate) -> int:
        """How many of some objects of the same name it is near to."""
        peers = _spread(self._named[candidate.names[0]], _PEERS)
        if len(peers) < 3:  # they are near to each other, or not
            return 0
        return sum(
            peer is candidate or self._known.near(candidate.ref, peer.ref) is not None
            for peer in peers
        )

    def _nearest(self, candidate: Candidate) -> Candidate | None:
        named = [base for name in candidate.names for base in self._bases_named.get(name, ())]
        bases = _spread(list(dict.fromkeys(named)), _SAME_NAME)
        best = self._best(candidate, bases)
        if best is None:
            others = sorted(
                (base for base in self._bases if base not in bases),
                key=lambda base: -_common_end(base.names[0], candidate.names[0]),
            )
            best = self._best(candidate, others[:_OTHER_NAME])
        return best

    def _best(self, candidate: Candidate, bases: Sequence[Candidate]) -> Candidate | None:
        """The nearest of some bases; None if all are far."""
        near = [
            (distance, place)
            for place, base in enumerate(bases)
            if (distance := self._known.near(candidate.ref, base.ref)) is not None
        ]
        return bases[min(near)[1]] if near else None


def plan_chains(read: ReadStates, order: Sequence[int], known: Known) -> Plan:
    """Plan differences of each checkpoint to the next newer one of its family.

    The newest stays plain. Where a chain is as deep as one may be, the next object is built on the
    plain one at its end, or stays plain.

    Args:
        read: The states.
        order: The places of the checkpoints among these, the oldest first.
        known: What is known of their objects.
    """
    chains = _Chained(read, known)
    families: dict[Family, list[int]] = {}
    for place in order:
        families.setdefault(family_of(read.keys[place]), []).append(place)
    for places in families.values():
        for name in dict.fromkeys(name for place in places for name in read.states[place].refs):
            chains.add(name, places)
    return chains.plan


class _Chained:
    """The chains of a plan, which grow name by name, each from its newest object on."""

    def __init__(self, read: ReadStates, known: Known) -> None:
        self._read = read
        self._known = known
        self._depths: dict[Digest, int] = {}
        self.plan = Plan()

    def add(self, name: str, order: Sequence[int]) -> None:
        """Add the tensors of a name."""
        newer: TensorRef | None = None  # the object before
        end: TensorRef | None = None  # the one without a base that its chain ends with
        for place in reversed(order):
            ref = self._read.states[place].refs.get(name)
            if ref is None or ref == newer or not self._known.is_there(ref.digest):
                continue
            if newer is not None and newer.spec != ref.spec:
                newer = end = None
            if ref.digest not in self._depths:
                self._take(ref, place, [base for base in (newer, end) if base is not None])
            newer = ref
            end = end if self._depths[ref.digest] else ref

    def _take(self, ref: TensorRef, place: int, bases: Sequence[TensorRef]) -> None:
        """Give an object its depth, and a step if it is built on one of some bases."""
        depth = self._known.chains.depth(ref.digest)
        if ref.digest in self._known.plain:
            depth = 0
            self.plan.looked_at[ref.digest] = ref, place
            if step := self._step(ref, place, bases):
                self.plan.steps.append(step)
                depth = step.depth
        self._depths[ref.digest] = depth

    def _step(self, ref: TensorRef, place: int, bases: Sequence[TensorRef]) -> Step | None:
        dependants = self._known.chains.dependants(ref.digest)
        for base in bases:
            depth = self._depths[base.digest] + 1
            if depth > DEPTH_LIMIT or any(other <= depth for other in dependants):
                continue
            if self._known.near(ref, base) is not None:
                return Step(ref, place, base, depth)
        return None


def _spread(candidates: Sequence[Candidate], most: int) -> Sequence[Candidate]:
    """At most so many of them, spread over all, the first and the last among them."""
    if len(candidates) <= most:
        return candidates
    last = len(candidates) - 1
    return [candidates[round(place * last / (most - 1))] for place in range(most)]


def _common_end(name: str, other: str) -> int:
    """How many of the last parts of two names are the same."""
    count = 0
    for part, its in zip(reversed(name.split(".")), reversed(other.split(".")), strict=False):
        if part != its:
            break
        count += 1
    return count

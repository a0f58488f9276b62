"""`diff` finds which tensors differ between two states, and by how much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, MissingPackageError
from mlstate.format.state_object import InlineTensor, StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.operations.tables import Table, Tabular
from mlstate.parallel import for_each
from mlstate.phrases import Phrase

if TYPE_CHECKING:
    from mlstate.operations.diff_inputs import ComparedWeights, StateOrFile

__all__ = [
    "Change",
    "Rename",
    "StateDiff",
    "TiedName",
    "comparable",
    "compare_states",
    "content_of",
    "diff",
]


@dataclass(frozen=True)
class Change:
    """A tensor that both states have, and that differs.

    There are no numbers where nothing was to be compared: the shapes differ, or one of the two has
    elements of 4 bits and the other has not. They are computed in double precision; of 64-bit
    integers the change is taken before it is rounded. Positions where either side is infinite or
    not a number are left out of `max_abs` and `relative`.

    Attributes:
        name: The tensor's name.
        first: Its element type and shape in the first state.
        second: The same in the second.
        differing: How many elements have another value: 0 if only the element type changed, or the
            sign of zeros, or the bits of what is not a number.
        max_abs: The largest absolute change of an element.
        relative: The Euclidean norm of the change, over that of the tensor in the first state; None
            also where that is 0 and the change is not.
        nonfinite: How many of these are infinite or not a number, on one side or on both.
    """

    name: str
    first: TensorSpec
    second: TensorSpec
    differing: int | None = None
    max_abs: float | None = None
    relative: float | None = None
    nonfinite: int | None = None


class Rename(NamedTuple):
    """The same tensor under two names: in the first state, and in the second."""

    first: str
    second: str


class TiedName(NamedTuple):
    """A name that only one state has, and a name of the same tensor that both have."""

    name: str
    other: str


@dataclass(frozen=True)
class StateDiff(Tabular):
    """The differences between two states.

    Attributes:
        first: The state digest of the first.
        second: That of the second.
        equal: The names that are the same in both, in type, shape and bytes; sorted.
        changed: The tensors that both have and that differ, sorted by name.
        removed: What only the first has, by name.
        added: What only the second has, by name.
        renamed: Of `removed` those that are in `added` under another name, with the same type,
            shape and bytes: pairs of both names, sorted.
        tied: Of all other `removed` and `added` those that are the same tensor as a name that both
            have, each with that name; sorted. Tools leave out such names of tied weights. Of
            tensors below 16 KiB the names have the same last part, and there are several elements:
            others are often equal by chance.
        files: The names of files that differ, or that only one has; sorted. Empty if a side is no
            state of a store.
    """

    first: Digest
    second: Digest
    equal: tuple[str, ...]
    changed: tuple[Change, ...] = ()
    removed: Mapping[str, TensorSpec] = field(default_factory=dict, metadata={"json": list})
    added: Mapping[str, TensorSpec] = field(default_factory=dict, metadata={"json": list})
    renamed: tuple[Rename, ...] = ()
    tied: tuple[TiedName, ...] = ()
    files: tuple[str, ...] = ()

    def _table(self) -> Table:
        other = {name for pair in (*self.renamed, *self.tied) for name in pair}
        rows = [
            (one.name, "changed", *map(_number, (one.differing, one.max_abs, one.relative)))
            for one in self.changed
        ]
        rows += [(one.first, f"renamed to {one.second}", "", "", "") for one in self.renamed]
        rows += [(one.name, f"tied to {one.other}", "", "", "") for one in self.tied]
        rows += [(name, "removed", "", "", "") for name in self.removed if name not in other]
        rows += [(name, "added", "", "", "") for name in self.added if name not in other]
        rows += [(name, "file differs", "", "", "") for name in self.files]
        summary = f"{len(self.equal)} tensors are the same"
        return Table(("NAME", "CHANGE", ">DIFFERING", ">MAX ABS", ">RELATIVE"), rows, summary)

    @property
    def same_weights(self) -> bool:
        """Whether names, types, shapes and bytes of all tensors are the same."""
        return self.first == self.second

    @property
    def same_but_for_ties(self) -> bool:
        """Whether they differ in nothing but names of tensors that both have, as `tied` lists them.

        A model that has these names tied is the same with both.
        """
        alone = {*self.removed, *self.added}
        return bool(alone) and not self.changed and alone == {name for name, _ in self.tied}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def diff(
    first: StateOrFile,
    second: StateOrFile,
    *,
    values: bool = True,
    select: str | None = None,
    max_size: int | str | None = None,
) -> StateDiff:
    """Compare two states: which tensors differ, and by how much.

    Digests are compared first. If the state digests are equal nothing else is read; and of two
    states of stores only tensors that differ are fetched or read. A file is read once to be
    hashed, and its tensors that differ once more. However large a tensor is, a few megabytes of it
    are in memory. Torch is imported if values are compared.

    Args:
        first: A state of a store, as ``(store, key)``, or of the default store, by its key; the
            path of a file of weights: a safetensors file, the index of a sharded one, a torch
            checkpoint, or a folder with one of these; a model, whose names are as `save` has them;
            or a state dict: name -> tensor.
        second: The other.
        values: Compare the values of tensors that differ. Without, only names, types and shapes
            are told.
        select: Of torch checkpoints, the dotted path of the state dict inside.
        max_size: Of files, as for `mlstate.file_digest`.

    Returns:
        What differs.

    Raises:
        StateNotFoundError: There is no such state.
        UnpinnedStateError: A manifest gives no digest.
        IntegrityError: Bytes are damaged or missing.
        FormatError: A side is neither a state nor a file of weights.
        FetchError: Something is missing, and no mirror could give it.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore, StateKey
        >>> store = MemoryStateStore()
        >>> one, two = map(StateKey.parse, ("pytorch.linear.one", "pytorch.linear.two"))
        >>> _ = store.save_state_dict({"weight": torch.ones(3), "bias": torch.zeros(3)}, one)
        >>> _ = store.save_state_dict({"weight": torch.ones(3), "bias": torch.ones(3)}, two)
        >>> found = diff((store, one), (store, two))
        >>> found.equal, [(change.name, change.max_abs) for change in found.changed]
        (('weight',), [('bias', 1.0)])
    """
    from mlstate.operations.diff_inputs import open_weights  # which opens files of any kind

    with (
        open_weights(first, select, max_size) as one,
        open_weights(second, select, max_size) as other,
    ):
        for again in (True, False):
            try:
                return _compare(one, other, values)
            except IntegrityError:
                if not (again and any([one.mend(), other.mend()])):  # both, whichever is damaged
                    raise
    raise AssertionError  # the second time ends it


def _compare(one: ComparedWeights, other: ComparedWeights, values: bool) -> StateDiff:
    files: tuple[str, ...] = ()
    if one.files is not None and other.files is not None:
        files = tuple(sorted({name for name, _ in one.files.items() ^ other.files.items()}))
    if one.digest == other.digest:
        names = tuple(sorted(one.state.specs))
        return StateDiff(one.digest, other.digest, names, files=files)

    def numbers(changed: _Changed) -> dict[str, dict[str, Any]]:
        return _numbers(changed, one, other) if values else {}

    found = compare_states((one.digest, one.state), (other.digest, other.state), numbers)
    return replace(found, files=files)


_Tensor = InlineTensor | TensorRef
_Changed = Mapping[str, tuple[_Tensor, _Tensor]]


def compare_states(
    one: tuple[Digest, StateObject],
    other: tuple[Digest, StateObject],
    numbers: Callable[[_Changed], Mapping[str, Mapping[str, Any]]] = lambda changed: {},
) -> StateDiff:
    """Compare two states by their state objects: no tensor is read.

    Args:
        one: A state, by its digest and its object.
        other: The other.
        numbers: Gives what is known of the values of tensors that differ, by name.
    """
    mine, theirs = _tensors(one[1]), _tensors(other[1])
    both = sorted(mine.keys() & theirs.keys())
    changed = {name: (mine[name], theirs[name]) for name in both if mine[name] != theirs[name]}
    known = numbers(changed)
    removed = {name: mine[name] for name in sorted(mine.keys() - theirs.keys())}
    added = {name: theirs[name] for name in sorted(theirs.keys() - mine.keys())}
    equal = tuple(name for name in both if name not in changed)
    renamed = _renamed(removed, added)
    return StateDiff(
        one[0],
        other[0],
        equal,
        tuple(
            Change(name, first.spec, second.spec, **known.get(name, {}))
            for name, (first, second) in changed.items()
        ),
        {name: tensor.spec for name, tensor in removed.items()},
        {name: tensor.spec for name, tensor in added.items()},
        renamed,
        _tied({**removed, **added}, {name: mine[name] for name in equal}, renamed),
    )


def _tensors(state: StateObject) -> dict[str, _Tensor]:
    return {**state.inline, **state.refs}


def _numbers(
    changed: Mapping[str, tuple[_Tensor, _Tensor]], one: ComparedWeights, other: ComparedWeights
) -> dict[str, dict[str, Any]]:
    """The numbers of each change whose elements can be compared; tied tensors are read once."""
    groups: dict[object, list[str]] = {}
    for name, (first, second) in changed.items():
        if comparable(first.spec, second.spec):
            groups.setdefault((content_of(first), content_of(second)), []).append(name)
    if not groups:
        return {}
    try:  # before anything is fetched for it
        from mlstate.tensors.difference import compare_tensors
    except ImportError as error:
        raise MissingPackageError(
            "values are compared by torch, which cannot be imported",
            found=str(error),
            remedy="install torch, or compare names, types and shapes alone: "
            + Phrase("values=False", "--names-only"),
        ) from error
    names = [group[0] for group in groups.values()]
    one.bring(names)
    other.bring(names)
    numbers: dict[str, dict[str, Any]] = {}

    def compare(group: list[str]) -> None:
        name = group[0]
        specs = [tensor.spec for tensor in changed[name]]
        # Closed at once, also if the other side turns out to be damaged.
        with closing(one.pieces(name)) as mine, closing(other.pieces(name)) as theirs:
            difference = compare_tensors(specs[0], mine, specs[1], theirs)
        numbers.update(dict.fromkeys(group, vars(difference)))

    largest_first = sorted(groups.values(), key=lambda group: -changed[group[0]][0].spec.nbytes)
    for_each(compare, largest_first)
    return numbers


def comparable(first: TensorSpec, second: TensorSpec) -> bool:
    """Whether elements can be compared: no format says how two of 4 bits lie in a byte."""
    return first.shape == second.shape and (first.dtype == "F4") == (second.dtype == "F4")


def content_of(tensor: _Tensor) -> tuple[object, ...]:
    """A value that equal tensors have in common."""
    if isinstance(tensor, TensorRef):
        return tensor.spec, tensor.digest
    return tensor.spec, bytes(tensor.data)


def _renamed(removed: Mapping[str, _Tensor], added: Mapping[str, _Tensor]) -> tuple[Rename, ...]:
    """Pairs of equal tensors under two names; of several, those whose names end most alike.

    Small tensors are often equal by chance, all zeros say, so the last parts of their names have
    to be the same.
    """
    free = {name: content_of(tensor) for name, tensor in added.items()}
    shared = set(free.values())
    left = {name: content_of(tensor) for name, tensor in removed.items()}
    left = {name: content for name, content in left.items() if content in shared}
    found: dict[str, str] = {}
    for length in range(max((name.count(".") + 1 for name in left), default=0), -1, -1):
        ends: dict[tuple[object, ...], list[str]] = {}
        for name, content in free.items():
            if length or isinstance(added[name], TensorRef):
                ends.setdefault((_ending(name, length), content), []).append(name)
        for name in list(left):
            if same := ends.get((_ending(name, length), left[name])):
                found[name] = same.pop(0)
                del left[name], free[found[name]]
    return tuple(sorted(map(Rename._make, found.items())))


def _tied(
    alone: Mapping[str, _Tensor], equal: Mapping[str, _Tensor], renamed: Iterable[Rename]
) -> tuple[TiedName, ...]:
    """Names of one side whose tensor both have under another: the one that ends most alike."""
    moved = {name for pair in renamed for name in pair}
    left = {name: content_of(tensor) for name, tensor in alone.items() if name not in moved}
    wanted = set(left.values())
    partners: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in equal.items() if left else ():
        if (content := content_of(tensor)) in wanted:
            partners.setdefault(content, []).append(name)
    found = []
    for name, content in left.items():
        others = partners.get(content, [])
        if not isinstance(alone[name], TensorRef):
            others = [other for other in others if _ending(other, 1) == _ending(name, 1)]
        if others and math.prod(alone[name].spec.shape) > 1:
            found.append(TiedName(name, max(others, key=lambda other: _common_end(other, name))))
    return tuple(sorted(found))


def _common_end(one: str, other: str) -> int:
    """How many last parts two names have in common."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ending(name: str, length: int) -> tuple[str, ...]:
    return tuple(name.split(".")[-length:]) if length else ()

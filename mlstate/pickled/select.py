"""The one mapping of tensors that is looked for in a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from mlstate.errors import FormatError
from mlstate.phrases import Phrase
from mlstate.pickled.caps import MAX_REPEAT, SMALL
from mlstate.pickled.tensor import CheckpointTensor
from mlstate.pickled.values import Call, Global, Items, Pairs, Value, kind_of

__all__ = ["Selected", "choose_tensors", "select_tensors"]

_SHOWN = 8


@dataclass(frozen=True)
class Selected:
    """The state dict of a checkpoint.

    Attributes:
        tensors: Its tensors by name.
        path: Where it was found, if nobody said where it is and it is not the checkpoint itself.
        passed_over: Its entries that are no tensors.
    """

    tensors: dict[str, CheckpointTensor]
    path: str | None = None
    passed_over: tuple[str, ...] = ()


def select_tensors(
    root: Value, size: int, select: str | None = None, tensors_only: bool = False
) -> dict[str, CheckpointTensor]:
    """The tensors of the state dict of a checkpoint; see `choose_tensors`."""
    return choose_tensors(root, size, select, tensors_only).tensors


def choose_tensors(
    root: Value, size: int, select: str | None = None, tensors_only: bool = False
) -> Selected:
    """The state dict of a checkpoint.

    Args:
        root: What the checkpoint holds.
        size: The size of the file, which bounds how often its tensors may repeat it.
        select: The dotted path of the state dict inside. At each step the longest key that
            matches is taken, so keys may have dots themselves. Without it the checkpoint is the
            state dict, or has exactly one mapping with tensors under names inside.
        tensors_only: Pass over entries that are no tensors under a name.

    Raises:
        FormatError: Nothing where `select` leads, or entries that are no tensors.
    """
    found, path = root if select is None else _selected(root, select), None
    if select is None and isinstance(root, Pairs) and not _has_tensor(root):
        inside = _inside(root, 2)
        if len(inside) == 1:
            path = inside[0]
            found = _selected(root, path)
    if isinstance(found, Call | Global):
        raise FormatError(
            "this file is not a checkpoint of plain tensors",
            expected="what torch.save writes of tensors, whole",
            found=kind_of(found),
            remedy="if it is a whole model and you trust it, load it with torch and save its "
            "state_dict()",
        )
    if not isinstance(found, Pairs):
        raise FormatError(
            "this checkpoint holds no state dict",
            expected="a mapping from names to tensors",
            found=_kind(found),
        )
    tensors = {}
    passed_over = []
    for name, value in found.items():
        if type(name) is str and isinstance(value, CheckpointTensor):
            tensors[name] = value
        elif tensors_only and not _holds_tensors(value):
            passed_over.append(name if isinstance(name, str) else _brief(name))
        else:
            raise _no_tensor(found, name, value)
    _check_repeats(tensors.values(), size)
    return Selected(tensors, path, tuple(passed_over))


def _has_tensor(pairs: Pairs) -> bool:
    return any(isinstance(value, CheckpointTensor) for _, value in pairs.items())


def _holds_tensors(value: Value) -> bool:
    """Whether a value is, or has in it, a tensor: one that must not be passed over."""
    queue, seen = [value], set()
    while queue:
        here = queue.pop()
        if isinstance(here, CheckpointTensor):
            return True
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, Pairs):
            queue.extend(part for pair in here.items() for part in pair)
        elif isinstance(here, list | tuple):
            queue.extend(here)
        elif isinstance(here, Items):
            queue.extend(here.items)
        elif isinstance(here, Call):
            queue.extend((here.arguments, *here.parts))
    return False


def _kind(value: Value) -> str:
    return "Tensor" if isinstance(value, CheckpointTensor) else kind_of(value)


def _no_tensor(found: Pairs, name: Value, value: Value) -> FormatError:
    inside = _inside(found)
    unknown = isinstance(value, Call | Global) and _remedy(value) is None
    remedy: str | None = _remedy(value)
    if inside:
        remedy = "select the state dict inside: " + ", ".join(inside)
    elif remedy is None and _has_tensor(found) and not _holds_tensors(value):
        remedy = Phrase("tensors_only=True", "--tensors-only") + " passes over what is no tensor"
    return FormatError(
        "this file is not a checkpoint of plain tensors"
        if unknown
        else "this entry of the checkpoint is no tensor",
        tensor=name if isinstance(name, str) else _brief(name),
        expected="a mapping from names to tensors",
        found=_kind(value),
        remedy=remedy,
    )


def _remedy(value: Value) -> str | None:
    return _REMEDIES.get(str(value.function)) if isinstance(value, Call) else None


_REMEDIES = {
    "torch._utils._rebuild_sparse_tensor": "store to_dense(), or indices and values under names "
    "of their own",
    "torch._utils._rebuild_nested_tensor": "store the tensors under names of their own",
    "torch._utils._rebuild_qtensor": "convert it to a plain tensor first, by dequantising",
    "torch._utils._rebuild_meta_tensor_no_storage": "it has no values: load or initialise the "
    "model before it is saved",
    "torch._tensor._rebuild_from_type_v2": "convert it to a plain tensor first",
    "torch._utils._rebuild_wrapper_subclass": "convert it to a plain tensor first",
}
"""What to do about tensors that are not dense memory, by the function that makes them."""


def _brief(name: Value) -> str:
    """A key for a message: of a container, which can be large, its kind."""
    return repr(name)[:60] if isinstance(name, int | float | bytes | None) else kind_of(name)


def _check_repeats(tensors: Iterable[CheckpointTensor], size: int) -> None:
    # A tensor under many names is read once.
    total = sum(tensor.nbytes for tensor in set(tensors))
    most = max(SMALL, MAX_REPEAT * size)
    if total > most:
        raise FormatError(
            "the tensors of this checkpoint repeat its storages too often",
            expected=f"at most {most} bytes, {MAX_REPEAT} times the file",
            found=f"{total} bytes",
        )


def _selected(root: Value, select: str) -> Value:
    """The value under a dotted path."""
    here, left = root, select
    while True:
        parts = left.split(".")
        heads = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        head = next((h for h in heads if isinstance(here, Pairs) and h in here), None)
        if head is None:
            inside = _inside(root)
            near = get_close_matches(select, inside, n=1) or inside
            raise FormatError(
                "the checkpoint has nothing where select leads",
                expected=select,
                found=_keys(here) if isinstance(here, Pairs) else _kind(here),
                remedy=f"select one of: {', '.join(near)}" if near else None,
            )
        here = here.get(head)
        if head == left:
            return here
        left = left[len(head) + 1 :]


def _inside(root: Value, most: int = 5) -> list[str]:
    """Dotted paths of mappings with a tensor in them: the first few, those further up first."""
    paths: list[str] = []
    queue = deque([("", root)])
    seen = {id(root)}  # a pickle can put one mapping into another many times, or into itself
    while queue and len(paths) < most:
        path, mapping = queue.popleft()
        if not isinstance(mapping, Pairs):
            continue
        if path and any(isinstance(value, CheckpointTensor) for _, value in mapping.items()):
            paths.append(path)
            continue
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Pairs) and id(value) not in seen:
                seen.add(id(value))
                queue.append((f"{path}.{key}" if path else key, value))
    return paths


def _keys(pairs: Pairs) -> str:
    names = [key if isinstance(key, str) else _brief(key) for key, _ in pairs.items()]
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return shown + more or "an empty mapping"

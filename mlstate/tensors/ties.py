"""Ties: names of a model that are one tensor, one memory, or parts of one another.

Entries on the meta device have no memory, but they share a storage where they would share memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from mlstate.tensors.memory import as_bytes, is_shard

__all__ = [
    "contradicted",
    "covered",
    "overlapping",
    "part_constant",
    "same_bytes",
    "stand_apart",
    "tied_groups",
]

_Span = tuple[int, int, int]
"""A space of addresses, the first byte in it, and the one behind the last."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ALIGNED = 16


def stand_apart(own: Mapping[str, Any]) -> bool:
    """Whether no two entries are one, or share memory. So it is in most models.

    Devices are not told apart: what seems to overlap is looked at again.
    """
    if len(set(map(id, own.values()))) < len(own):
        return False
    spans = sorted(_span(entry) for entry in own.values() if _has_place(entry))
    return all(before[0] != after[0] or before[2] <= after[1] for before, after in pairwise(spans))


def tied_groups(own: Mapping[str, Any]) -> list[list[str]]:
    """Names of a model that are one tensor or one memory, together; all others are left out."""
    groups: dict[Any, list[str]] = {}
    for name, entry in own.items():
        groups.setdefault(_place(name, entry), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def overlapping(own: Mapping[str, Any], groups: list[list[str]]) -> list[list[str]]:
    """Names whose memory overlaps without being the same, together.

    ``groups`` is from `tied_groups`; of each the first name in ``own`` stands for all.
    """
    again = {name for group in groups for name in [n for n in group if n in own][1:]}
    spans = sorted(
        (_device(entry), *_span(entry), name)
        for name, entry in own.items()
        if name not in again and _has_place(entry)
    )
    found: list[list[str]] = []
    place, behind = None, 0
    for device, space, start, end, name in spans:
        if place == (device, space) and start < behind:
            found[-1].append(name)
        else:
            found.append([name])
            place, behind = (device, space), end
        behind = max(behind, end)
    return [names for names in found if len(names) > 1]


def covered(own: Mapping[str, Any], names: Collection[str], present: Iterable[str]) -> set[str]:
    """Those of ``names`` that are, in the model, the same memory as others that are ``present``.

    They may be one tensor with one of these, a part of one, or made of several: what is written
    into all that is present fills them, too.
    """
    if not names:
        return set()
    there = [own[name] for name in present]
    same = {_place("", entry) for entry in there if isinstance(entry, torch.Tensor)}
    found = {name for name in names if _place(name, own[name]) in same}
    filled = _joined(
        (_device(entry), *_span(entry)) for entry in there if _has_place(entry) and _is_dense(entry)
    )
    for name in set(names) - found:
        if _has_place(entry := own[name]):
            device, (space, start, end) = _device(entry), _span(entry)
            spans = filled.get((device, space), [])
            if any(first <= start and end <= behind for first, behind in spans):
                found.add(name)
    return found


def contradicted(
    own: Mapping[str, Any], groups: list[list[str]], tensors: Mapping[str, torch.Tensor]
) -> list[list[str]]:
    """Names for whose common memory in the model a state has different values, bit for bit.

    ``groups`` is from `tied_groups`; names that the state lacks are left out.
    """
    having = [[name for name in group if name in tensors] for group in groups]
    torn = [names for names in having if _differ(names, tensors)]
    given = {name: own[name] for name in own if name in tensors}
    clusters = overlapping(given, groups)
    return torn + [names for names in clusters if not _fits_together(own, names, tensors)]


def _differ(names: list[str], tensors: Mapping[str, torch.Tensor]) -> bool:
    having = [tensors[name] for name in names]
    return any(
        other is not having[0]
        and (
            (other.dtype, other.shape) != (having[0].dtype, having[0].shape)
            or as_bytes(other.cpu()) != as_bytes(having[0].cpu())
        )
        for other in having[1:]
    )


def _fits_together(
    own: Mapping[str, Any], names: list[str], tensors: Mapping[str, torch.Tensor]
) -> bool:
    """Whether all of these values are there, once each was written to where it belongs.

    They are written into a copy of the memory that the entries of the model share.
    """
    spans = {name: _span(own[name]) for name in names}
    base = min(start for _, start, _ in spans.values())
    base -= base % _ALIGNED
    end = max(behind for _, _, behind in spans.values())
    memory = torch.zeros(end - base, dtype=torch.uint8, device="cpu")
    places: dict[str, torch.Tensor] = {}
    for name in sorted(names, key=list(own).index):
        entry, (_, start, behind) = own[name], spans[name]
        if (start - base) % entry.element_size() or entry.is_conj() or entry.is_neg():
            return True  # such a view cannot be made again, so nobody can tell
        part = memory[start - base : behind - base].view(entry.dtype)
        places[name] = part.as_strided(entry.shape, entry.stride(), part.storage_offset())
    values = {
        name: _bits(tensors[name].cpu().to(place.dtype).reshape(place.shape))
        for name, place in places.items()
    }
    for name, place in places.items():
        _bits(place).copy_(values[name])
    return all(torch.equal(_bits(place), values[name]) for name, place in places.items())


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one type and shape have the same values, bit for bit."""
    return torch.equal(_bits(one), _bits(other))


def part_constant(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by name, of which those that are one and of one value become one for each name.

    All zeros, say, are equal by chance. Where other values are equal, they were one tensor.
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        again = id(tensor) in seen and _is_constant(tensor)
        found[name] = tensor.clone() if again else tensor
        seen.add(id(tensor))
    return found


def _is_constant(tensor: torch.Tensor) -> bool:
    bits = _bits(tensor).reshape(-1)
    return bool((bits == bits[0]).all()) if len(bits) else True


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: for them equal is equal, and each can be copied."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.view(_BITS[plain.element_size()])


def _joined(spans: Iterable[tuple[str, int, int, int]]) -> dict[tuple[str, int], list[list[int]]]:
    """By device and space, the memory of these spans, in as few pieces as possible."""
    found: dict[tuple[str, int], list[list[int]]] = {}
    for device, space, start, end in sorted(spans):
        pieces = found.setdefault((device, space), [])
        if pieces and start <= pieces[-1][1]:
            pieces[-1][1] = max(pieces[-1][1], end)
        else:
            pieces.append([start, end])
    return found


def _span(entry: torch.Tensor) -> _Span:
    start, space = entry.data_ptr(), 0
    if entry.is_meta:  # where a storage is a space of its own
        start = int(entry.storage_offset()) * entry.element_size()
        space = entry.untyped_storage()._cdata
    return space, start, start + _extent(entry)


def _device(entry: torch.Tensor) -> str:
    return "cpu" if entry.is_cpu else str(entry.device)


def _extent(entry: torch.Tensor) -> int:
    """The bytes from a tensor's first one to its last one."""
    if entry.is_contiguous():
        return entry.nbytes
    steps = zip(entry.shape, entry.stride(), strict=True)
    return int(sum((size - 1) * step for size, step in steps) + 1) * entry.element_size()


def _is_dense(entry: torch.Tensor) -> bool:
    """Whether a tensor fills all of its extent, in whichever order."""
    expected: Any = 1
    for step, size in sorted(zip(entry.stride(), entry.shape, strict=True)):
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def _has_place(entry: Any) -> bool:
    return (
        isinstance(entry, torch.Tensor)
        and not is_lazy(entry)
        and not is_shard(entry)  # its memory is elsewhere: those that are tied are one object
        and entry.layout is torch.strided
        and entry.numel() > 0
        and (entry.data_ptr() != 0 or entry.is_meta)
    )


def _place(name: str, entry: Any) -> Any:
    """Equal for entries that are one tensor or one memory, and for no others."""
    if _has_place(entry):
        view = (entry.shape, entry.stride(), entry.dtype, entry.is_conj(), entry.is_neg())
        return (entry.device, *_span(entry)[:2], *view)
    return id(entry) if isinstance(entry, torch.Tensor) else name

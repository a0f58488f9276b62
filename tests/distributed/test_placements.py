"""The part that each rank holds, computed, and held against torch's own splitting."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from mlstate.distributed.placements import (
    Layout,
    Split,
    boxes,
    is_empty,
    region_of,
    replicas,
    rows,
    size_of,
    sources,
)
from mlstate.distributed.plan import owners_of, rounds_of


@st.composite
def placed(draw):
    """A layout and a shape, with torch's own placements; None is Replicate."""
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    own, splits = [], []
    for mesh_dim in range(len(mesh)):
        dim = draw(st.integers(0, len(shape) - 1))
        factor = draw(st.sampled_from([0, 1, 1, 2, 3]))
        if factor:
            splits.append(Split(mesh_dim, dim, factor))
        own.append(
            None
            if not factor
            else Shard(dim)
            if factor == 1
            else _StridedShard(dim, split_factor=factor)
        )
    return Layout(tuple(range(prod(mesh))), mesh, tuple(splits)), shape, own


@given(placed())
def test_each_rank_holds_what_torch_gives_it(found):
    layout, shape, own = found
    whole = torch.arange(prod(shape)).reshape(shape)
    for rank, place in enumerate(product(*map(range, layout.mesh))):
        part = whole
        for count, one, placement in zip(layout.mesh, place, own, strict=True):
            if placement is not None:
                part = placement._split_tensor(part, count, with_padding=False)[0][one]
        region = region_of(layout, shape, rank)
        computed = torch.full(size_of(region), -1)
        for inside, outside in boxes(region):
            computed[inside] = whole[outside]
        assert torch.equal(computed, part)
        assert is_empty(region) == (part.numel() == 0)


@given(placed())
def test_the_sources_give_every_element_once(found):
    layout, shape, _ = found
    count = torch.zeros(shape, dtype=torch.int64)
    for rank, region in sources(layout, shape):
        for _, outside in boxes(region):
            count[outside] += 1
        same = [ranks for ranks in replicas((layout,), shape) if rank in ranks]
        assert all(rank == min(ranks) for ranks in same)
    assert (count == 1).all()


@given(placed(), st.integers(1, 64))
def test_slabs_are_the_region_in_order_of_memory(found, most):
    layout, shape, _ = found
    whole = torch.arange(prod(shape)).reshape(shape)
    for rank in layout.ranks:
        region = region_of(layout, shape, rank)
        if not is_empty(region):
            slabs = [_part(whole, slab).reshape(-1) for slab in rows(region, 8, most)]
            assert torch.equal(torch.cat(slabs), _part(whole, region).reshape(-1))


def _part(whole, region):
    part = torch.empty(size_of(region), dtype=whole.dtype)
    for inside, outside in boxes(region):
        part[inside] = whole[outside]
    return part


def test_a_scalar_is_whole_on_each_rank():
    layout = Layout((0, 1), (2,))
    assert sources(layout, ()) == ((0, ()),)
    assert replicas((layout,), ()) == ((0, 1),)


def test_a_rank_outside_of_the_mesh_holds_nothing():
    layout = Layout((1, 2), (2,), (Split(0, 0),))
    assert is_empty(region_of(layout, (4,), 0))
    assert is_empty(region_of(layout, (), 0))


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 100), max_size=30),
    st.integers(1, 5),
    st.integers(1, 200),
)
def test_rounds_hold_each_tensor_once_within_the_budget(sizes, world, budget):
    owners = owners_of(sizes, dict.fromkeys(sizes, range(world)))
    listed = rounds_of(sizes, owners, budget)
    assert sorted(name for names in listed for name in names) == sorted(sizes)
    for names in listed:
        for rank in range(world):
            own = [sizes[name] for name in names if owners[name] == rank]
            assert len(own) <= 1 or sum(own) <= budget


@pytest.mark.parametrize("world", [1, 2, 4])
def test_owners_have_equal_loads_but_for_one_tensor(world):
    sizes = {f"layer{i}": 100 + i % 7 for i in range(50)}
    owners = owners_of(sizes, dict.fromkeys(sizes, range(world)))
    loads = [sum(sizes[n] for n in sizes if owners[n] == rank) for rank in range(world)]
    assert max(loads) - min(loads) <= max(sizes.values())


def test_an_owner_holds_a_part_of_its_tensor():
    owners = owners_of({"a": 5, "b": 5, "c": 5}, {"a": [2], "b": [2, 3], "c": [0]})
    assert owners == {"a": 2, "b": 3, "c": 0}

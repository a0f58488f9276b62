"""State dicts of optimizers: stored whole, restored exactly, and a training goes on bit-equal."""

from __future__ import annotations

import copy
import json
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from mlstate import LocalStateStore, MemoryStateStore, StateKey, state_digest
from mlstate.errors import FormatError, IncompatibleStateError, StateExistsError
from mlstate.tensors.optimizers import STRUCTURE, flattened, unflattened
from tests.support.models import net

KEY = StateKey.parse("pytorch.net-optimizer.a")


def small() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def groups(model: Any) -> list[dict[str, Any]]:
    return [
        {"params": model[0].parameters(), "lr": 0.1, "name": "body"},
        {"params": model[2].parameters(), "weight_decay": 0.5, "name": "head"},
    ]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
    "AdamW, amsgrad, groups": lambda m: torch.optim.AdamW(groups(m), amsgrad=True),
    "AdamW, foreach": lambda m: torch.optim.AdamW(m.parameters(), foreach=True, maximize=True),
    "Adam, fused": lambda m: torch.optim.Adam(m.parameters(), fused=True),
    "AdamW, names and a tensor as rate": lambda m: torch.optim.AdamW(
        m.named_parameters(), lr=torch.tensor(1e-2)
    ),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "SGD, momentum": lambda m: torch.optim.SGD(groups(m), lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), momentum=0.9, centered=True),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters()),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters()),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), history_size=4, max_iter=3),
}


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(32, 8, generator=generator)
    y = torch.randn(32, 4, generator=generator)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return float(loss.detach())

    for _ in range(steps):
        optimizer.step(closure)


def alike(a: Any, b: Any) -> bool:
    """Whether two nestings are the same in kinds, order and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and state_digest({"x": a}) == state_digest({"x": b})
    if isinstance(a, dict):
        return [*map(repr, a)] == [*map(repr, b)] and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_training_goes_on_bit_equal(tmp_path, name, steps):
    make = OPTIMIZERS[name]
    store = LocalStateStore(tmp_path / "store")
    model = small()
    optimizer = make(model)
    train(model, optimizer, steps)
    store.save_optimizer_state_dict(optimizer.state_dict(), KEY, meta={"steps": steps})
    found = LocalStateStore(store.folder).load_optimizer_state_dict(KEY)
    assert alike(found, optimizer.state_dict())
    twin = copy.deepcopy(model)
    again = make(twin)
    again.load_state_dict(found)
    train(model, optimizer, 3)
    train(twin, again, 3)
    assert state_digest(twin.state_dict()) == state_digest(model.state_dict())
    assert alike(again.state_dict(), optimizer.state_dict())


def test_without_its_state_the_training_would_go_otherwise():
    model = small()
    optimizer = OPTIMIZERS["AdamW"](model)
    train(model, optimizer, 3)
    twin = copy.deepcopy(model)
    train(model, optimizer, 3)
    train(twin, OPTIMIZERS["AdamW"](twin), 3)
    assert state_digest(twin.state_dict()) != state_digest(model.state_dict())


def test_names_are_paths_and_numbers_are_tensors():
    model = small()
    optimizer = torch.optim.SGD(groups(model), lr=0.25, momentum=0.9)
    train(model, optimizer, 1)
    store = MemoryStateStore()
    store.save_optimizer_state_dict(optimizer.state_dict(), KEY)
    tensors = store.load_state_dict(KEY)
    assert {"state.0.momentum_buffer", "param_groups.1.lr", STRUCTURE} < tensors.keys()
    assert tensors["param_groups.1.lr"].item() == 0.25
    assert tensors["param_groups.0.nesterov"].dtype is torch.bool
    assert tensors["param_groups.1.params"].tolist() == [2, 3]
    said = bytes(tensors[STRUCTURE].tolist()).decode()
    assert json.loads(said)["dict"][0][0] == "state"
    assert "body" in said


def test_another_rate_is_another_digest():
    def digest(**options: Any) -> str:
        optimizer = torch.optim.SGD(small().parameters(), **{"lr": 0.1, **options})
        return state_digest(flattened(optimizer.state_dict()))

    first = digest()
    assert first == digest()
    assert len({first, digest(lr=0.2), digest(maximize=True), digest(foreach=True)}) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 3]),
        lambda o: lr_scheduler.ReduceLROnPlateau(o),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    ],
)
def test_schedulers_are_stored_too(make):
    def fresh() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW(small().parameters(), lr=0.1)
        return optimizer, make(optimizer)

    first, scheduler = fresh()
    first.step()
    scheduler.step(*[1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
    store = MemoryStateStore()
    store.save_optimizer_state_dict(scheduler.state_dict(), KEY)
    found = store.load_optimizer_state_dict(KEY)
    assert alike(found, scheduler.state_dict())
    _, other = fresh()
    other.load_state_dict(found)
    assert other.state_dict() == scheduler.state_dict()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.just(torch.arange(3)),
    st.just(torch.tensor(1.5, dtype=torch.bfloat16)),
)
KEYS = st.one_of(st.integers(-5, 5), st.sampled_from(["a", "b", "a.b", "0", "a~1", "tensor"]))
NESTED = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.lists(inside, max_size=3).map(tuple),
        st.dictionaries(KEYS, inside, max_size=3),
        st.dictionaries(KEYS, inside, max_size=3).map(OrderedDict),
        st.dictionaries(KEYS, st.integers(0, 9), max_size=3).map(Counter),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(max_size=4).filter(str.isidentifier), NESTED, max_size=4))
def test_what_is_flattened_comes_back_exactly(value):
    tensors = flattened({"x": value})
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert alike(unflattened(tensors), {"x": value})
    store = MemoryStateStore()
    store.save_optimizer_state_dict({"x": value}, KEY)
    assert alike(store.load_optimizer_state_dict(KEY), {"x": value})


class _Own:
    pass


@pytest.mark.parametrize(
    ("value", "name", "found"),
    [
        (_Own(), "param_groups.0.x", "_Own"),
        ([1.0, _Own()], "param_groups.0.x.1", "_Own"),
        ({"a": {(1, 2): 3}}, "param_groups.0.x.a.(1, 2)", "tuple"),
        ({True: 1}, "param_groups.0.x.True", "bool"),
        (1j, "param_groups.0.x", "complex"),
        (b"raw", "param_groups.0.x", "bytes"),
        ({1, 2}, "param_groups.0.x", "set"),
        (torch.float32, "param_groups.0.x", "dtype"),
        (2**63, "param_groups.0.x", None),
        ([1, -(2**64)], "param_groups.0.x", None),
        (torch.ones(2).to_sparse(), "param_groups.0.x", "sparse"),
        (torch.ones(2, device="meta"), "param_groups.0.x", None),
        (torch.ones(2, dtype=torch.complex128), "param_groups.0.x", "complex128"),
        (float, "param_groups.0.x", "type"),
        (print, "param_groups.0.x", "builtin"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path, value, name, found):
    store = LocalStateStore(tmp_path / "store")
    state = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"x": value}]}
    with pytest.raises(FormatError) as caught:
        store.save_optimizer_state_dict(state, KEY)
    assert (caught.value.key, caught.value.tensor) == (KEY, name)
    assert found is None or found in str(caught.value.found)
    assert not (tmp_path / "store").exists()


def test_what_has_no_end_or_no_room_is_refused():
    endless: dict[str, Any] = {}
    endless["again"] = endless
    deep: Any = 1.0
    for _ in range(30):
        deep = {"deeper": deep}
    for value in (endless, {"deep": deep}):
        with pytest.raises(FormatError, match="inside each other"):
            flattened(value)
    for _ in range(11):
        deep = deep["deeper"]
    assert alike(unflattened(flattened({"deep": deep})), {"deep": deep})
    with pytest.raises(FormatError, match="reserved"):
        flattened({STRUCTURE: 1.0})
    for odd in ([1], None, torch.ones(2)):
        with pytest.raises(FormatError, match="is a mapping"):
            flattened(odd)  # type: ignore[arg-type]


def test_another_state_is_told(tmp_path):
    store = MemoryStateStore()
    model = net(1)
    key = store.save(model, "a")
    with pytest.raises(FormatError, match="not that of an optimizer") as caught:
        store.load_optimizer_state_dict(key)
    assert caught.value.key == key
    assert "load_state_dict" in str(caught.value.remedy)
    optimizer = StateKey(model.state_type, "optimizer")  # type: ignore[arg-type]
    store.save_optimizer_state_dict(torch.optim.SGD(model.parameters()).state_dict(), optimizer)
    with pytest.raises(IncompatibleStateError):
        store.load(model, optimizer)


def test_a_state_that_is_taken_is_not_replaced():
    store = MemoryStateStore()
    model = small()
    store.save_optimizer_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), KEY)
    other = torch.optim.SGD(model.parameters(), lr=0.2).state_dict()
    with pytest.raises(StateExistsError):
        store.save_optimizer_state_dict(other, KEY)
    store.save_optimizer_state_dict(other, KEY, overwrite=True, files={"a.txt": b"x"})
    assert store.load_optimizer_state_dict(KEY)["param_groups"][0]["lr"] == 0.2
    assert store.files(KEY)["a.txt"] == b"x"


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "null",
        '{"dict":[["a"]]}',
        '{"dict":[[1.5,null]]}',
        '{"dict":[[true,null]]}',
        '{"dict":[["a",{"tensor":"b"}]]}',
        '{"dict":[["a",{"tensor":3}]]}',
        '{"dict":[["a",{"float":"x"}]]}',
        '{"dict":[["a",{"tuple[float]":"x"}]]}',
        '{"dict":[["a",{"set[int]":"x"}]]}',
        '{"dict":[["a",{"int":"x"}]]}',
        '{"dict":[["a",{"list[tensor]":"x"}]]}',
        '{"dict":[["a",{"eval":"x"}]]}',
        '{"dict":[["a",{"tuple":"x"}]]}',
        '{"dict":[["a",7]]}',
        '{"dict":[["a",{}]]}',
        '{"dict":[]',
        "{" * 5000,
    ],
)
def test_a_structure_that_lies_is_refused(said):
    tensors = {"x": torch.arange(3), STRUCTURE: torch.tensor([*said.encode()], dtype=torch.uint8)}
    with pytest.raises(FormatError, match=r"structure of an optimizer's state|JSON|levels"):
        unflattened(tensors)

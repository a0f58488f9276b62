"""What the ranks of a test's job do: each function runs on every rank, in its process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from mlstate import (
    LocalStateStore,
    ManifestStore,
    MemoryStateStore,
    S3StateStore,
    StateKey,
    StateType,
    state_digest,
    with_state_type,
)
from mlstate.distributed import owned
from mlstate.errors import MlstateError
from tests.support.ranks import Rank

NET = StateType("pytorch", "net")


class Net(nn.Module):
    """Large and small tensors, uneven ones, tied ones, a scalar, and booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(501, 67)
        self.first = nn.Linear(67, 203)
        self.second = nn.Linear(203, 67)
        self.norm = nn.BatchNorm1d(67)
        self.out = nn.Linear(67, 501, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", torch.arange(20_001) % 3 == 0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.second(self.first(self.embed(tokens)))))


def layouts(world: int) -> list[str]:
    """The ways in which a model can lie on so many ranks."""
    return ["fsdp", "tp", *(["2d", "hsdp"] if world == 4 else [])]


def make(rank: Rank, layout: str, seed: int = 0, *, dtype: Any = None, device: str = "cpu") -> Net:
    """A model of this rank; ``whole`` is one that each rank has all of."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = Net()
    with torch.no_grad():
        for entry in model.state_dict().values():
            if entry.is_floating_point() and not entry.is_meta:
                entry.uniform_()
    if dtype is not None:
        model.to(dtype)
    with_state_type(model, NET)
    if layout == "whole":
        return model
    if layout in ("tp", "2d"):
        size = 2 if layout == "2d" else rank.world
        mesh = init_device_mesh("cpu", (rank.world // size, size), mesh_dim_names=("dp", "tp"))
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(model, mesh["tp"], plan)
        shards = mesh["dp"]
    elif layout == "hsdp":
        shards = init_device_mesh("cpu", (2, rank.world // 2), mesh_dim_names=("copy", "shard"))
    else:
        shards = init_device_mesh("cpu", (rank.world,))
    if layout != "tp":
        fully_shard(model.first, mesh=shards)
        fully_shard(model, mesh=shards)
    return model


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with all values, gathered by torch."""
    return {
        name: entry.full_tensor() if isinstance(entry, DTensor) else entry
        for name, entry in model.state_dict().items()
    }


def local(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what this rank holds."""
    return {
        name: (entry.to_local() if isinstance(entry, DTensor) else entry).clone()
        for name, entry in model.state_dict().items()
    }


def expected(rank: Rank, seed: int = 0, dtype: Any = None) -> str:
    """The digest that one process gives the state of a model."""
    return state_digest(make(rank, "whole", seed, dtype=dtype).state_dict())


def store_of(rank: Rank, name: str = "store") -> LocalStateStore:
    return LocalStateStore(f"{rank.folder}/{name}")


def save_layouts(rank: Rank) -> dict[str, bool]:
    """Save one model in each layout; whether the digest is that of one process."""
    store, digest = store_of(rank), expected(rank)
    found = {}
    for layout in layouts(rank.world):
        key = store.save(make(rank, layout), f"from-{layout}", check_replicas=True)
        found[layout] = store.digest(key) == digest
    key = store.save(make(rank, "whole"), "whole", group=dist.group.WORLD)
    return {**found, "whole": store.digest(key) == digest}


def load_layouts(rank: Rank, saved: str = "whole") -> dict[str, bool]:
    """Load a state into models of each layout: by copying, by assigning, with a cast."""
    store, digest = store_of(rank), expected(rank)
    key = StateKey(NET, saved)
    half = make(rank, "whole", 9, dtype=torch.bfloat16)
    half.load_state_dict(make(rank, "whole").state_dict())
    cast = state_digest(half.state_dict())
    found = {}
    for layout in layouts(rank.world):
        model = make(rank, layout, 1)
        result = store.load(model, key, digest=digest)
        found[layout] = state_digest(whole(model)) == digest == result.digest
        found[f"{layout}, tied"] = model.out.weight is model.embed.weight
        model = make(rank, layout, 1, device="meta")
        store.load(model, key, assign=True)
        found[f"{layout}, assigned"] = state_digest(whole(model)) == digest
        model = make(rank, layout, 1, dtype=torch.bfloat16)
        result = store.load(model, key)
        found[f"{layout}, cast"] = (
            state_digest(whole(model)) == cast and "first.weight" in result.cast_keys
        )
    model = make(rank, "whole", 1)
    store.load(model, key, group=dist.group.WORLD)
    found["whole"] = state_digest(model.state_dict()) == digest
    return found


def train_after_assign(rank: Rank) -> bool:
    """A step of FSDP2 after an assigned load: whether all values change, on the shards."""
    model = make(rank, "fsdp", 1, device="meta")
    store_of(rank).load(model, StateKey(NET, "whole"), assign=True)
    before = whole(model)["first.weight"].clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    return not torch.equal(before, whole(model)["first.weight"])


def options(rank: Rank) -> dict[str, Any]:
    """What a load says of states that do not fit; models stay as they are."""
    store, found = store_of(rank), {}
    state = make(rank, "whole").state_dict()
    state["more"] = state.pop("mask")
    state["norm.weight"] = torch.ones(5)
    key = StateKey(NET, "other")
    store.save_state_dict(state, key, group=dist.group.WORLD)
    model = make(rank, "fsdp", 1)
    before = local(model)
    with contextlib.suppress(MlstateError):
        store.load(model, key)
    with contextlib.suppress(MlstateError):
        store.load(model, key, strict=False)
    found["same"] = _equal(before, local(model))
    result = store.load(model, key, strict=False, ignore_mismatched_sizes=True)
    found["missing"] = result.missing_keys
    found["unexpected"] = result.unexpected_keys
    found["mismatched"] = result.mismatched_keys
    found["loaded"] = torch.equal(whole(model)["first.weight"], state["first.weight"])
    with contextlib.suppress(MlstateError):
        store.load(model, key, digest="0" * 64)
    return found


def placements(rank: Rank) -> bool:
    """Tensors in all placements, of all kinds of elements: whether the digest is that of one."""
    mesh = init_device_mesh("cpu", (rank.world,))
    flat = torch.arange(90_000)
    state = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool):
        values = (flat % 100).to(dtype).reshape(300, 300)
        for name, placement in (("r", Replicate()), ("0", Shard(0)), ("1", Shard(1))):
            state[f"{dtype}.{name}"] = distribute_tensor(values, mesh, [placement])
    numbers = torch.complex(flat.float(), -flat.float())
    state["complex"] = distribute_tensor(numbers, mesh, [Shard(0)])
    state["conjugated"] = numbers.conj()
    state["few"] = distribute_tensor(torch.arange(3), mesh, [Shard(0)])
    state["none"] = distribute_tensor(torch.ones(0, 4), mesh, [Shard(0)])
    state["turned"] = distribute_tensor(torch.rand(1).expand(200, 200), mesh, [Shard(0)]).t()
    state["plain"] = flat
    same = {
        name: entry.full_tensor() if isinstance(entry, DTensor) else entry
        for name, entry in state.items()
    }
    key = StateKey.parse("pytorch.all.kinds")
    store = store_of(rank)
    store.save_state_dict(state, key, files={"a.txt": b"a"}, meta={"step": 1})
    return store.digest(key) == state_digest({n: t.resolve_conj() for n, t in same.items()})


def stages(rank: Rank) -> list[str]:
    """Stages of a pipeline, each with names of its own: saved as one state, loaded by each."""
    store, key = store_of(rank), StateKey.parse("pytorch.pipe.line")
    own = {f"stage{rank.rank}.weight": torch.full((90, 90), float(rank.rank))}
    store.save_state_dict(own, key, group=dist.group.WORLD)
    stage = nn.ModuleDict({f"stage{rank.rank}": nn.Linear(90, 90, bias=False)})
    with_state_type(stage, StateType("pytorch", "pipe"))
    result = store.load(stage, key, group=dist.group.WORLD)
    assert torch.equal(stage.state_dict()[f"stage{rank.rank}.weight"], next(iter(own.values())))
    return [*result.missing_keys, *result.unexpected_keys]


def save_twice(rank: Rank, training_id: str, seed: int, **more: Any) -> str:
    store = store_of(rank)
    return store.digest(store.save(make(rank, "fsdp", seed), training_id, **more))


def save_other_replicas(rank: Rank) -> None:
    """Copies that differ from rank to rank."""
    state = {"weight": torch.full((90, 90), float(rank.rank))}
    key = StateKey.parse("pytorch.copies.a")
    store = store_of(rank)
    store.save_state_dict(state, key, group=dist.group.WORLD)
    assert float(store.load_state_dict(key)["weight"][0, 0]) == 0  # the lowest holder's
    store.save_state_dict(
        state, StateKey.parse("pytorch.copies.b"), group=dist.group.WORLD, check_replicas=True
    )


def save_other_keys(rank: Rank) -> None:
    store_of(rank).save(make(rank, "fsdp"), f"own-{rank.rank}")


def save_own_folders(rank: Rank) -> None:
    store_of(rank, f"own-{rank.rank}").save(make(rank, "fsdp"), "a")


def save_memory(rank: Rank) -> None:
    MemoryStateStore().save(make(rank, "fsdp"), "a")


def save_partial(rank: Rank) -> None:
    from torch.distributed.tensor import Partial

    mesh = init_device_mesh("cpu", (rank.world,))
    part = DTensor.from_local(torch.ones(90, 90), mesh, [Partial()])
    store_of(rank).save_state_dict({"sum": part}, StateKey.parse("pytorch.sum.a"))


def save_alone(rank: Rank) -> None:
    """Plain tensors are saved by whoever saves: no rank waits for another."""
    if rank.rank == 0:
        store_of(rank).save(make(rank, "whole", 4), "alone")


def save_s3(rank: Rank, bucket: str, endpoint: str, session: dict[str, str]) -> bool:
    store = S3StateStore(bucket, session, endpoint, cache=f"{rank.folder}/s3-cache-{rank.rank}")
    key = store.save(make(rank, "fsdp"), "a")
    model = make(rank, "tp", 1)
    store.load(model, key)
    return state_digest(whole(model)) == store.digest(key) == expected(rank)


def load_manifest(rank: Rank, manifest: str, caches: str) -> dict[str, Any]:
    """Load from a manifest into a cache; how often this rank hashed each object."""
    hashed: Counter[str] = Counter()
    check = owned.check_tensor

    def counted(objects: Any, ref: Any, seen: Any) -> None:
        hashed[str(ref.digest)] += 1
        check(objects, ref, seen)

    owned.check_tensor = counted
    try:
        store = ManifestStore(manifest, cache=caches.format(rank=rank.rank))
        model = make(rank, "fsdp", 1)
        store.load(model, StateKey(NET, "whole"))
    finally:
        owned.check_tensor = check
    return {"right": state_digest(whole(model)) == expected(rank), "hashed": dict(hashed)}


def load_while_one_fails(rank: Rank, manifest: str, caches: str) -> None:
    """Load from a slow mirror, while rank 1 meets an exception."""
    store = ManifestStore(manifest, cache=caches.format(rank=rank.rank))
    if rank.rank == 1:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        store.access.watched = lambda check: SimpleNamespace(bring=full)
    store.load(make(rank, "fsdp", 1), StateKey(NET, "whole"))


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def save_while_pruned(rank: Rank, training_id: str) -> str:
    """Save, while a pruning takes all objects just before the state is published."""
    store = store_of(rank, "pruned")

    class Pruned(_Wrapped):
        def create(self, key: Any, data: bytes) -> bool:
            for path in (store.folder / "objects").rglob("*"):
                if path.is_file() and path.stat().st_size > 16_384:
                    path.unlink()
            created: bool = self._inner.create(key, data)
            return created

    store.saver.files = Pruned(store.saver.files, {})
    return store.digest(store.save(make(rank, "fsdp"), training_id))


def save_anew(rank: Rank, worlds: list[list[int]], port: int) -> list[str | None]:
    """Save by groups that are made one after the other, of these ranks, and leave each."""
    found: list[str | None] = []
    for number, ranks in enumerate(worlds):
        digest = None
        if rank.rank in ranks:
            own = dist.PrefixStore(f"anew-{number}", _client(port))
            dist.destroy_process_group()
            place = ranks.index(rank.rank)
            dist.init_process_group("gloo", store=own, rank=place, world_size=len(ranks))
            weight = torch.full((90, 90), float(number))
            key = StateKey.parse(f"pytorch.anew.group-{number}-of-{min(ranks)}")
            store = store_of(rank)
            store.save_state_dict({"weight": weight}, key, group=dist.group.WORLD)
            digest = store.digest(key)
        found.append(digest)
    return found


def _client(port: int) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", port, None, False, wait_for_workers=False)


def save_by_groups_at_once(rank: Rank) -> bool:
    """Save by all ranks, while each saves by a group of its own, too: whether all is right."""
    groups = [dist.new_group([one]) for one in range(rank.world)]
    store = store_of(rank)

    def work(name: str, group: Any) -> bool:
        right = []
        for number in range(3):
            state = {"weight": torch.full((300, 300), float(number)), "small": torch.ones(3)}
            key = StateKey.parse(f"pytorch.groups.{name}-{number}")
            store.save_state_dict(state, key, group=group)
            model = with_state_type(nn.Linear(300, 300), key.state_type)
            store.load(model, key, group=group, strict=False)
            right.append(
                store.digest(key) == state_digest(state)
                and torch.equal(model.weight, state["weight"])
            )
        return all(right)

    with ThreadPoolExecutor(1) as threads:
        own = threads.submit(work, f"own-{rank.rank}", groups[rank.rank])
        return work("all", dist.group.WORLD) and own.result()


def run_page(rank: Rank, code: str) -> tuple[str, str, str]:
    """Run the code of the page with a model: the key, its digest, and that of one process."""
    torch.manual_seed(0)
    model = with_state_type(nn.Linear(90, 90), StateType("pytorch", "page"))
    digest = state_digest(model.state_dict())
    names: dict[str, Any] = {"model": model, "store": store_of(rank)}
    exec(code, names)
    assert state_digest(whole(model)) == digest
    return str(names["key"]), names["store"].digest(names["key"]), digest


class OwnState(nn.Linear):
    """A model whose state is not what its parameters hold."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: 2 * value for name, value in super().state_dict(*args, **kwargs).items()}


def save_own_state(rank: Rank) -> bool:
    """Save a model that says itself what its state is; whether that is what is stored."""
    torch.manual_seed(0)
    model = with_state_type(OwnState(90, 90), StateType("pytorch", "own"))
    store = store_of(rank)
    key = store.save(model, "group", group=dist.group.WORLD)
    return store.digest(key) == state_digest(model.state_dict())


def save_copies_alone(rank: Rank) -> None:
    """Copies are to be compared, and no other rank takes part."""
    store_of(rank).save(make(rank, "whole"), "alone", check_replicas=True)


class Fault:
    """Something that happens to this rank at the n-th call: to the test's own wrappers."""

    def __init__(self, how: str, calls: int = 1) -> None:
        self._how, self._left = how, calls

    def __call__(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self._how == "error":
            raise OSError(28, "No space left on device")
        if self._how == "slow":
            time.sleep(5)
        elif self._how in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self._how == "kill" else signal.SIGSTOP)


class _Wrapped:
    """Calls a fault before some methods of what it wraps."""

    def __init__(self, inner: Any, before: dict[str, Fault]) -> None:
        self._inner, self._before = inner, before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "writer":
            return lambda: _Wrapped(found(), self._before)
        if name not in self._before:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before[name]()
            return found(*args, **kwargs)

        return call


class _State(dict[str, Any]):
    """Calls a fault when its entries are described, after all ranks have come."""

    fault = Fault("none")

    def items(self) -> Any:
        self.fault()
        return super().items()


def failing(rank: Rank, phase: str, how: str, who: int) -> bool:
    """Save or load, with a fault on one rank in one phase; whether the model is as it was."""
    store = store_of(rank)
    model = make(rank, "fsdp", 5)
    before = local(model)
    dist.barrier()
    fault = Fault(how) if rank.rank == who else Fault("none")
    key = StateKey(NET, f"{phase}-{how}-{who}")
    try:
        if phase == "come":
            fault()
            store.save(model, key.training_id)
        elif phase == "describe":
            state = _State(model.state_dict())
            state.fault = fault
            store.save_state_dict(state, key)
        elif phase == "verify":
            store.objects = _Wrapped(store.objects, {"open": fault})
            store.load(model, StateKey(NET, "whole"))
        else:
            methods = {"store": ("add", "reuse"), "flush": ("flush",), "publish": ("create",)}
            before_each = dict.fromkeys(methods[phase], fault)
            saver = store.saver
            saver.objects = _Wrapped(saver.objects, before_each)
            saver.files = _Wrapped(saver.files, before_each)
            store.save(model, key.training_id)
    finally:
        if phase == "verify" and how != "slow" and not _equal(before, local(model)):
            raise AssertionError("the model has changed")
    return True

"""Tensors on their way to an accelerator; without one, by the same code onto the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mlstate import LocalStateStore, StateKey, StateType, with_state_type
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.reading import read_state
from mlstate.tensors import encode_tensors, gpu, places_of, places_on, read_tensors
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.one")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def tensors() -> dict[str, torch.Tensor]:
    """More than the buffers hold, exactly a piece, a piece and a bit; and what else there is."""
    torch.manual_seed(0)
    many = (gpu._BUFFERS + 2) * gpu.PIECE + 12
    return {
        "many": torch.randint(256, (many,), dtype=torch.uint8),
        "piece": torch.randn(gpu.PIECE // 4),
        "more": torch.randn(gpu.PIECE // 2 + 8).bfloat16().reshape(8, -1),
        "mask": torch.randint(2, (300, 200)).bool(),
        "narrow": torch.randn(200, 100).to(torch.float8_e4m3fn),
        "complex": torch.randn(90, 90, dtype=torch.complex64),
        "equal": torch.zeros(5000),
        "twin": torch.zeros(5000),
        "scalar": torch.tensor(3.5),
        "small": torch.arange(7),
        "none": torch.empty(0, 3),
    }


@pytest.fixture
def store(store):
    store.save_state_dict(tensors(), KEY)
    return store


@pytest.fixture
def late(monkeypatch):
    """Copies that are made as late as they may be: when somebody waits for them."""
    pending = []

    class Copy:
        def __init__(self, piece, part):
            self.piece, self.part = piece, part
            pending.append(self)

        def synchronize(self):
            if self in pending:
                pending.remove(self)
                self.part.copy_(self.piece)

    def settle(lane):
        for one in list(pending):
            one.synchronize()

    monkeypatch.setattr(gpu._Lane, "_send", lambda lane, piece, part: Copy(piece, part))
    monkeypatch.setattr(gpu._Lane, "settle", settle)
    return pending


def read(store, names=None, **options):
    found = store.get(KEY)
    state = read_state(*found)
    places = dict.fromkeys(state.specs, CPU)
    return read_tensors(found.objects, state, names, places=places, **options)


def test_all_arrives(store):
    assert same(read(store), tensors())


def test_no_buffer_is_filled_again_before_it_was_copied(store, late):
    assert same(read(store), tensors())
    assert late == []


def test_a_failure_waits_for_what_is_under_way(store, late):
    damage(store, "piece", -1)
    with pytest.raises(IntegrityError):
        read(store)
    assert late == []


@pytest.mark.parametrize("first", [0, 3])
def test_where_the_room_does_not_suffice_all_comes_by_way_of_the_cpu(
    store, late, monkeypatch, first
):
    receive, calls = gpu._Lane.receive, []

    def full(lane, *arguments):
        calls.append(lane)
        if len(calls) > first:
            raise torch.OutOfMemoryError("no room on the device")
        return receive(lane, *arguments)

    monkeypatch.setattr(gpu._Lane, "receive", full)
    assert same(read(store), tensors())
    assert len(calls) > first
    assert late == []


def test_some_of_them(store):
    wanted = ["small", "more"]
    assert list(read(store, wanted)) == wanted
    assert same(read(store, wanted), {name: tensors()[name] for name in wanted})


@pytest.mark.parametrize("shared", [True, False])
def test_equal_tensors(store, shared):
    found = read(store, shared=shared)
    assert (found["equal"].data_ptr() == found["twin"].data_ptr()) is shared


def test_each_has_a_memory_of_its_own_and_no_more(store):
    found = read(store)
    assert len({t.untyped_storage().data_ptr() for t in found.values() if t.numel()}) == 10
    for tensor in found.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        tensor.view(torch.uint8).fill_(1) if tensor.element_size() == 1 else tensor.fill_(1)
    assert same(read(store), tensors())


@pytest.mark.parametrize("where", [0, 4095, 4096, 5000, 4096 + (5 << 20), -1])
def test_damage_is_refused_wherever_it_is(store, where):
    path = damage(store, "many", where)
    with pytest.raises(IntegrityError, match="damaged") as caught:
        read(store)
    assert caught.value.tensor == "many"
    assert caught.value.path == str(path)


@pytest.mark.parametrize("change", ["shorter", "longer", "missing"])
def test_an_object_of_another_length_is_refused(store, change):
    path = path_of(store, "more")
    path.chmod(0o644)
    if change == "missing":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + (-1 if change == "shorter" else 1))
    with pytest.raises(IntegrityError) as caught:
        read(store)
    assert caught.value.tensor == "more"


def test_a_byte_that_is_no_bool_is_refused_and_damage_is_called_damage(store):
    encoded = encode_tensors({"mask": torch.ones(5_000_000, dtype=torch.bool)})
    (digest, source), *_ = encoded.sources.items()
    with source.data() as data:
        content = bytearray(4096) + bytearray(data)
    from mlstate.format import tensor_object

    content[:4096] = tensor_object.header(source.spec)
    content[3_000_000] = 2
    memory = MemoryObjectStore()
    memory.writer().put(Digest.of(content), [bytes(content)])
    state = type(encoded.state)(
        {}, {"mask": type(encoded.state.refs["mask"])(source.spec, Digest.of(content))}
    )
    with pytest.raises(FormatError, match="BOOL"):
        read_tensors(memory, state, places={"mask": CPU})

    class Damaged(MemoryObjectStore):
        def open(self, asked):
            return memory.open(Digest.of(content))

    with pytest.raises(IntegrityError, match="damaged"):
        read_tensors(Damaged(), encoded.state, places={"mask": CPU})
    assert digest != Digest.of(content)


def test_another_tensor_than_the_state_says_is_refused(store):
    encoded = encode_tensors({"a": torch.zeros(5000)})
    (_, source), *_ = encoded.sources.items()
    with source.data() as data:
        content = bytes(4096) + bytes(data)
    memory, ref = MemoryObjectStore(), encoded.state.refs["a"]
    memory.writer().put(Digest.of(content), [content])
    state = type(encoded.state)({}, {"a": type(ref)(ref.spec, Digest.of(content))})
    with pytest.raises(FormatError, match="is not the tensor"):
        read_tensors(memory, state, places={"a": CPU})


def test_without_an_accelerator_nothing_is_placed():
    model = nn.Linear(3, 3)
    assert places_on("cpu", ["a"]) == places_on(CPU, ["a"]) == places_on("meta", ["a"]) == {}
    if not torch.cuda.is_initialized():
        assert places_of(model, {}) == {}


class TestOnAGpu:
    """What only a device can show."""

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.Linear(2000, 1500), nn.Linear(1500, 9), nn.BatchNorm1d(9)]
        return with_state_type(nn.Sequential(*layers), StateType("pytorch", "net"))

    @needs_gpu
    @pytest.mark.parametrize("assign", [False, True])
    def test_a_load_goes_straight_there(self, tmp_path, assign, monkeypatch):
        sent = []
        receive = gpu._Lane.receive
        monkeypatch.setattr(gpu._Lane, "receive", lambda *args: sent.append(args) or receive(*args))
        store, source, model = LocalStateStore(tmp_path), self.model(1), self.model(2).cuda()
        key = store.save(source, "one")
        before = [parameter.data_ptr() for parameter in model.parameters()]
        store.load(model, key, assign=assign)
        assert sent
        assert all(entry.is_cuda for entry in model.state_dict().values())
        after = [parameter.data_ptr() for parameter in model.parameters()]
        assert (after == before) is not assign, "a copy stays in the model's own memory"
        assert same(model.cpu().state_dict(), source.state_dict())

    @needs_gpu
    def test_tensors_without_a_model(self, store):
        found = store.load_state_dict(KEY, device="cuda")
        assert all(tensor.is_cuda for tensor in found.values())
        assert same({name: tensor.cpu() for name, tensor in found.items()}, tensors())

    @needs_gpu
    @pytest.mark.parametrize("assign", [False, True])
    def test_damage_leaves_the_model_as_it_was(self, tmp_path, assign):
        store, model = LocalStateStore(tmp_path), self.model(2).cuda()
        key = store.save(self.model(1), "one")
        path = max(tmp_path.glob("objects/*/*"), key=lambda path: path.stat().st_size)
        flip(path, -1)
        before = copy.deepcopy(model).cpu().state_dict()
        with pytest.raises(IntegrityError):
            store.load(model, key, assign=assign)
        assert same(model.cpu().state_dict(), before)

    @needs_gpu
    def test_where_there_is_no_room_it_goes_by_way_of_the_cpu(self, tmp_path, monkeypatch):
        monkeypatch.setattr("mlstate.tensors.read._room", lambda device: 0)
        store, source, model = LocalStateStore(tmp_path), self.model(1), self.model(2).cuda()
        store.load(model, store.save(source, "one"))
        assert same(model.cpu().state_dict(), source.state_dict())


def path_of(store, name):
    digest = read_state(*store.get(KEY)).refs[name].digest
    return FolderObjectStore(store.folder).path(digest)


def damage(store, name, where):
    path = path_of(store, name)
    flip(path, where)
    return path


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)

"""A state dict becomes objects and comes back, bit for bit; what cannot is refused."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlstate import LocalStateStore, StateKey, state_digest
from mlstate.errors import FormatError
from mlstate.format.state_object import INLINE_LIMIT, InlineTensor, StateObject
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.objects import MemoryObjectStore
from mlstate.tensors import encode_tensors, read_tensors
from mlstate.tensors.memory import TORCH_DTYPES
from mlstate.weights.files import file_digest

DTYPES = sorted(TORCH_DTYPES)
KEY = StateKey.parse("pytorch.net.one")


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    assert tensor.is_contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def through(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Encoded into memory, and read back by way of the state object's bytes."""
    objects = MemoryObjectStore()
    encoded = encode_tensors(tensors, objects.put)
    return read_tensors(objects, StateObject.parse(encoded.data))


def of_bytes(dtype: str, data: bytes) -> torch.Tensor:
    flat = torch.empty(len(data), dtype=torch.uint8)
    if data:
        flat.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return flat.view(TORCH_DTYPES[dtype])


def some_bytes(dtype: str, size: int, seed: int = 0) -> bytes:
    data = random.Random(seed).randbytes(size)
    return bytes(byte & 1 for byte in data) if dtype == "BOOL" else data


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


# --------------------------------------------------------------------------------- bit for bit


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    if dtype == "F4" and not shape:
        shape = [1]  # a scalar of two elements is none
    elements = torch.Size(shape).numel()
    width = TORCH_DTYPES[dtype].itemsize
    if draw(st.booleans()):  # around the size from which tensors are outside
        elements = INLINE_LIMIT // width + draw(st.integers(-2, 2))
        shape = draw(st.permutations([1, elements]))
    data = some_bytes(dtype, elements * width, draw(st.integers(0, 9)))
    return of_bytes(dtype, data).reshape(shape)


@given(tensors(), tensors())
@settings(deadline=None)
def test_every_tensor_comes_back_bit_for_bit(a, b):
    found = through(a=a, b=b)
    assert same(found["a"], a)
    assert same(found["b"], b)


needs_f4 = pytest.mark.skipif(
    not hasattr(torch, "float4_e2m1fn_x2"), reason=f"torch {torch.__version__} has no F4"
)


@needs_f4
def test_torch_has_every_dtype_of_the_format():
    assert set(TORCH_DTYPES) == set(BITS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 8, 16_376, 16_384, 16_392, 160_000])
def test_every_dtype_comes_back_bit_for_bit(dtype, size):
    tensor = of_bytes(dtype, some_bytes(dtype, size))
    found = through(tensor=tensor)["tensor"]
    assert same(found, tensor)
    assert found.is_contiguous()
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "F4"])
def test_scalars_come_back(dtype):
    width = BITS[dtype] // 8
    scalar = of_bytes(dtype, some_bytes(dtype, width)).reshape(())
    assert same(through(scalar=scalar)["scalar"], scalar)


@pytest.mark.parametrize(("size", "inline"), [(16_383, True), (16_384, False), (16_385, False)])
def test_tensors_are_outside_from_16384_bytes(size, inline):
    state = encode_tensors({"x": torch.zeros(size, dtype=torch.uint8)}).state
    assert ("x" in state.inline) == inline
    assert ("x" in state.refs) != inline


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 65_536])
def test_views_of_every_dtype_come_back(dtype, size):
    data = some_bytes(dtype, size)
    plain = of_bytes(dtype, data).reshape(4, -1)
    by_bytes = of_bytes("U8", data).view(*plain.shape, plain.element_size())
    transposed = of_bytes(dtype, raw(by_bytes.transpose(0, 1).contiguous()))
    expected = transposed.reshape(plain.shape[::-1])
    assert same(through(x=plain.t())["x"], expected)
    assert state_digest({"x": plain.t()}) == state_digest({"x": expected})


PLAIN = torch.arange(40_000, dtype=torch.float32).reshape(2, 100, 10, 20)
VIEWS = {
    "transposed": PLAIN.transpose(1, 3),
    "permuted": PLAIN.permute(3, 1, 0, 2),
    "expanded": torch.arange(100, dtype=torch.float32).expand(90, 100),
    "expanded scalar": torch.tensor(2.5).expand(80, 80),
    "sliced": PLAIN[:, 3:, ::2],
    "offset": PLAIN[1],
    "last column": PLAIN[..., -1:].expand(2, 100, 10, 7),
    "channels last": PLAIN.contiguous(memory_format=torch.channels_last),
    "strided": PLAIN.as_strided((50, 90), (7, 3), 11),
    "overlapping": PLAIN.as_strided((90, 90), (1, 1), 5),
    "diagonal": torch.arange(160_000, dtype=torch.float64).reshape(400, 400).diagonal(),
    "flipped": PLAIN.flip(0, 2),
    "unfolded": torch.arange(300.0).unfold(0, 20, 1),
    "small transposed": PLAIN[0, :5, :3, 0].t(),
    "small expanded": torch.tensor(1.5).expand(3, 4),
    "small sliced": PLAIN[0, 0, 0, ::3],
    "empty": PLAIN[:, :0],
    "parameter": nn.Parameter(PLAIN.clone()),
    "parameter, transposed": nn.Parameter(PLAIN.clone()).transpose(0, 1),
    "buffer": nn.Buffer(PLAIN.clone()),
    "frozen": nn.Parameter(PLAIN.clone(), requires_grad=False),
    "result": nn.Parameter(PLAIN.clone()) * 2,
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_stored_as_its_value(view):
    tensor = VIEWS[view]
    expected = tensor.detach().clone(memory_format=torch.contiguous_format)
    before = tensor.detach().clone()
    found = through(x=tensor)["x"]
    assert same(found, expected)
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    assert state_digest({"x": tensor}) == state_digest({"x": expected})
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("size", [3, 5000])
def test_conjugate_and_negative_views_are_resolved(size):
    z = torch.complex(torch.arange(size * 1.0), torch.arange(size * 1.0) + 0.5)
    lazy = z.conj()
    assert lazy.is_conj()
    assert same(through(x=lazy)["x"], torch.complex(z.real, -z.imag))
    negative = z.conj().imag
    assert negative.is_neg()
    assert same(through(x=negative)["x"], -z.imag)
    neg_view = torch._neg_view(torch.arange(size * 1.0))
    assert neg_view.is_neg()
    assert same(through(x=neg_view)["x"], -torch.arange(size * 1.0))
    both = through(plain=z, lazy=lazy)
    assert same(both["plain"], z)
    assert same(both["lazy"], lazy.resolve_conj())
    twice = z.conj().reshape(1, -1).expand(7, size).t()
    assert same(through(x=twice)["x"], twice.resolve_conj().contiguous())


@pytest.mark.parametrize("size", [4, 100, 16_384, 50_000])
def test_a_bool_is_stored_as_0_or_1(size):
    memory = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    odd = memory.view(torch.bool)
    assert memory.max() > 1
    expected = memory.ne(0)
    found = through(odd=odd, even=expected)
    assert raw(found["odd"]) == bytes(byte != 0 for byte in memory.tolist())
    assert state_digest({"x": odd}) == state_digest({"x": expected})
    strided = odd.reshape(2, -1).t()
    assert same(through(x=strided)["x"], expected.reshape(2, -1).t().contiguous())
    assert memory.max() > 1  # what was saved is as it was


@pytest.mark.parametrize("place", [0, 20_000, 2_500_000])
def test_a_stored_bool_byte_of_2_is_refused(place):
    from mlstate.digests import Digest
    from mlstate.format.state_object import TensorRef
    from mlstate.format.tensor_object import header

    spec = TensorSpec("BOOL", (2_500_001,))
    data = bytearray(spec.nbytes)
    data[place] = 2
    parts = [header(spec), bytes(data)]
    objects = MemoryObjectStore()
    objects.put(Digest.of(*parts), parts)
    state = StateObject({}, {"mask": TensorRef(spec, Digest.of(*parts))})
    with pytest.raises(FormatError, match="BOOL") as caught:
        read_tensors(objects, state)
    assert caught.value.tensor == "mask"


NANS = [0x7FC00000, 0x7F800001, 0xFFC00000, 0xFFFFFFFF, 0x7FC0BEEF, 0x80000000, 0x00000001]


@pytest.mark.parametrize("copies", [1, 2000])
def test_nan_payloads_and_negative_zero_count(copies):
    bits = torch.tensor(NANS * copies, dtype=torch.int64).to(torch.int32)
    tensor = bits.view(torch.float32)
    assert through(x=tensor)["x"].view(torch.int32).tolist() == bits.tolist()
    strided = tensor.reshape(-1, 7).t()
    assert torch.equal(
        through(x=strided)["x"].view(torch.int32), bits.reshape(-1, 7).t().contiguous()
    )
    zero = torch.zeros(5000 * copies)
    assert state_digest({"x": zero}) != state_digest({"x": -zero})
    quiet, other = (torch.tensor([n]).to(torch.int32).view(torch.float32) for n in NANS[:2])
    assert state_digest({"x": quiet}) != state_digest({"x": other})


def test_dtype_and_shape_count_even_for_equal_bytes():
    zeros = [torch.zeros(5000), torch.zeros(5000, dtype=torch.int32), torch.zeros(50, 100)]
    zeros += [torch.zeros(5000, 1), torch.zeros(2500, dtype=torch.float64), torch.zeros(20, 1)]
    assert len({state_digest({"x": zero}) for zero in zeros}) == len(zeros)
    objects = MemoryObjectStore()
    state = encode_tensors({str(i): zero for i, zero in enumerate(zeros)}, objects.put).state
    found = read_tensors(objects, state)
    assert all(same(found[str(i)], zero) for i, zero in enumerate(zeros))


def test_inference_tensors_are_plain_tensors():
    with torch.inference_mode():
        tensor = torch.arange(5000.0)
    assert same(through(x=tensor)["x"], torch.arange(5000.0))


def test_peculiar_names_come_back():
    names = ["", " ", "\0", '"', "\U0001f600", "é", "e\u0301", "a.b", "mlstate", "__metadata__2"]
    state = {name: torch.full((5000,), float(i)) for i, name in enumerate(names)}
    found = through(**state)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in names)


# ------------------------------------------------------------------------------------- refused


class Sub(torch.Tensor):
    """A subclass whose values mean something else."""


class Fancy(nn.Parameter):
    """A subclass of Parameter."""


class WithExtra(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}


class WithBytes(nn.Linear):
    def get_extra_state(self):
        return io.BytesIO(b"state")


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(5000), 0.1, 0, torch.qint8)


def complex32(*shape: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.zeros(shape, dtype=torch.complex32)


def sparse(kind: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(torch.eye(100), kind)()


def nested(size: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(size), torch.ones(size + 1)])


def optimiser() -> object:
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()["state"]


REFUSED = {
    "complex128": lambda: torch.zeros(5000, dtype=torch.complex128),
    "complex128, small": lambda: torch.zeros((), dtype=torch.complex128),
    "complex32": lambda: complex32(5000),
    "complex32, small": complex32,
    "quantised": quantised,
    "sparse coo": lambda: sparse("to_sparse"),
    "sparse csr": lambda: sparse("to_sparse_csr"),
    "meta": lambda: torch.empty(5000, device="meta"),
    "meta, small": lambda: torch.empty(1, device="meta"),
    "meta, empty": lambda: torch.empty(0, device="meta"),
    "meta parameter": lambda: nn.Parameter(torch.empty(5000, device="meta")),
    "subclass": lambda: torch.ones(5000).as_subclass(Sub),
    "subclass of Parameter": lambda: Fancy(torch.ones(5000)),
    "nested": lambda: nested(5000),
    "nested, small": lambda: nested(3),
    "uninitialized": nn.UninitializedParameter,
    "uninitialized buffer": nn.parameter.UninitializedBuffer,
    "None": lambda: None,
    "str": lambda: "text",
    "int": lambda: 3,
    "float": lambda: 0.5,
    "bytes": lambda: b"bytes",
    "list": lambda: [torch.ones(5000)],
    "dict": lambda: {"w": torch.ones(5000)},
    "dtype": lambda: torch.float32,
    "array": lambda: np.array(["text"]),
    "optimizer": optimiser,
    "extra state": lambda: WithExtra(2, 2).state_dict()["_extra_state"],
    "extra bytes": lambda: WithBytes(2, 2).state_dict()["_extra_state"],
}


def refused(state: dict, folder=None) -> FormatError:
    """The error; nothing was hashed or stored before it."""
    stored = []
    with pytest.raises(FormatError) as caught:
        encode_tensors(state, lambda digest, parts: stored.append(digest))
    assert stored == []
    if folder is not None:
        with pytest.raises(FormatError):
            LocalStateStore(folder / "store").save_state_dict(state, KEY)
        assert not (folder / "store").exists()
    return caught.value


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_tensor_is_refused_by_name(kind, tmp_path):
    state = {"a": torch.ones(9000), "culprit": REFUSED[kind](), "z": torch.ones(9000)}
    error = refused(state, tmp_path)
    assert error.tensor == "culprit"
    assert "culprit" in str(error)


@pytest.mark.parametrize("kind", ["extra state", "extra bytes"])
def test_a_model_with_extra_state_is_refused(kind):
    model = {"extra state": WithExtra, "extra bytes": WithBytes}[kind](100, 100)
    assert refused(model.state_dict()).tensor == "_extra_state"


def test_a_lazy_model_is_refused():
    assert refused(nn.LazyLinear(3).state_dict()).tensor in {"weight", "bias"}


def test_an_optimizer_is_refused():
    model = nn.Linear(2, 2)
    state = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict()
    assert refused(state).tensor == "state"


@pytest.mark.parametrize("name", ["__metadata__", "mlstate.x", "mlstate.", "a\ud800", "\udc00"])
def test_a_reserved_or_impossible_name_is_refused(name, tmp_path):
    error = refused({"a": torch.ones(9000), name: torch.ones(9000)}, tmp_path)
    assert error.tensor == name


@pytest.mark.parametrize("name", [None, 1, b"a", ("a",), 1.5])
def test_a_name_is_text(name, tmp_path):
    error = refused({"a": torch.ones(9000), name: torch.ones(9000)}, tmp_path)
    assert error.tensor == repr(name)


@pytest.mark.parametrize(
    "state",
    [
        {"a": torch.ones(9000), "mlstate.bytes": torch.ones(9000, dtype=torch.uint8)},
        {"mlstate.bytes": torch.ones(9000)},
        {"mlstate.bytes": torch.ones(90, 900, dtype=torch.uint8)},
    ],
    ids=["company", "float", "two dimensions"],
)
def test_opaque_bytes_are_alone_or_refused(state, tmp_path):
    assert "mlstate.bytes" in str(refused(state, tmp_path))


def test_a_tensor_of_too_many_dimensions_is_refused_by_name(tmp_path):
    many = torch.ones(9000).reshape([1] * 2100 + [9000])
    error = refused({"a": torch.ones(9999), "culprit": many}, tmp_path)
    assert error.tensor == "culprit"


@needs_f4
def test_a_scalar_of_two_4_bit_elements_is_refused(tmp_path):
    scalar = of_bytes("F4", b"\x12").reshape(())
    assert refused({"a": torch.ones(9000), "culprit": scalar}, tmp_path).tensor == "culprit"


GHOSTS = {
    "freed": "torch.ones(9000), 0",
    "freed, small": "torch.ones(10), 0",
    "freed, transposed": "torch.ones(2, 9000).t(), 0",
    "freed, bool": "torch.ones(20_000, dtype=torch.bool), 0",
    "freed, parameter": "torch.nn.Parameter(torch.ones(9000)), 0",
    "too short": "torch.ones(9_000_000), 9000",
    "too short, small": "torch.ones(10), 10",
    "too short, transposed": "torch.ones(2, 4_500_000).t(), 9000",
    "zero": "torch._efficientzerotensor((9000,)), None",
    "zero, small": "torch._efficientzerotensor((10,)), None",
}
HAUNT = """
    import os, sys, torch
    from mlstate.tensors import encode_tensors
    from mlstate.errors import FormatError

    def outcome(ghost, size):
        if size is not None:
            ghost.untyped_storage().resize_(size)
        try:
            encode_tensors({"culprit": ghost})
        except FormatError as error:
            return int(error.tensor != "culprit")
        return 2

    for ghost in sys.stdin.read().splitlines():
        child = os.fork()
        if not child:
            os._exit(outcome(*eval(ghost)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def haunted() -> dict[str, str]:
    """What came of encoding each ghost, in a process of its own: reading such memory can kill."""
    result = script(HAUNT, "\n".join(GHOSTS.values()))
    assert result.returncode == 0, result.stderr
    return dict(zip(GHOSTS, result.stdout.split(), strict=True))


@pytest.mark.parametrize("ghost", GHOSTS)
def test_a_tensor_without_real_storage_is_refused_by_name(ghost, haunted):
    # 0: refused by name; 1: without the name; 2: stored; less: killed by this signal
    assert haunted[ghost] == "0"


def test_a_tensor_of_a_transform_is_refused():
    # Inside vmap and grad the type is Tensor, but there is no storage to take bytes from.
    def f(x):
        assert type(x) is torch.Tensor
        with pytest.raises(FormatError) as caught:
            encode_tensors({"culprit": x})
        assert caught.value.tensor == "culprit"
        return x.sum()

    torch.func.vmap(f)(torch.ones(2, 9000))


# --------------------------------------------------------------------------- tied, equal, shared


class Calls:
    """Counts the objects that an encoding hands out."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, digest, parts) -> None:
        with self._lock:
            self.digests.append(digest)


def test_tied_tensors_are_hashed_once():
    weight = nn.Parameter(torch.ones(100, 100))
    calls = Calls()
    encoded = encode_tensors({"a": weight, "b": weight, "c": weight.detach()[:]}, calls)
    assert len(calls.digests) == 1
    assert {ref.digest for ref in encoded.state.refs.values()} == set(calls.digests)
    assert encoded.sizes() == {
        calls.digests[0]: 4096 + 40_000,
        encoded.digest: len(encoded.data),
    }


def test_tied_views_are_hashed_once():
    weight = torch.rand(100, 100)
    calls = Calls()
    encode_tensors({"a": weight.t(), "b": weight.t()}, calls)
    assert len(calls.digests) == 1


def test_views_of_one_memory_are_told_apart():
    weight = torch.rand(100, 100)
    z = torch.view_as_complex(torch.rand(5000, 2))
    views = {
        "plain": weight,
        "transposed": weight.t(),
        "flat": weight.reshape(-1),
        "ints": weight.view(torch.int32),
        "part": weight[:90],
        "next": weight[1:91],
        "z": z,
        "conj": z.conj(),
        "negative": torch._neg_view(weight),
    }
    found = through(**views)
    for name, view in views.items():
        assert same(found[name], view.clone(memory_format=torch.contiguous_format).resolve_conj())


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_tensors_are_one_object_and_separate_after_a_read(dtype):
    data = some_bytes(dtype, 40_000)
    calls = Calls()
    state = {"a": of_bytes(dtype, data), "b": of_bytes(dtype, data)}
    encode_tensors(state, calls)
    assert len(calls.digests) == 2
    assert len(set(calls.digests)) == 1
    found = through(**state)
    assert same(found["a"], state["a"])
    assert same(found["b"], state["b"])
    found["a"].view(torch.uint8).fill_(1)
    assert same(found["b"], state["b"])


def test_small_equal_tensors_are_separate_after_a_read():
    found = through(a=torch.ones(3), b=torch.ones(3))
    found["a"].zero_()
    assert torch.equal(found["b"], torch.ones(3))


def test_only_the_names_asked_for_are_read():
    objects = MemoryObjectStore()
    state = {"a": torch.rand(9000), "b": torch.rand(9000), "c": torch.rand(3)}
    encoded = encode_tensors(state, objects.put)
    del objects._objects[encoded.state.refs["a"].digest]
    found = read_tensors(objects, encoded.state, ["c", "b"])
    assert list(found) == ["c", "b"]
    assert torch.equal(found["b"], state["b"])


@pytest.mark.parametrize("size", [3, 20_001])
def test_an_odd_number_of_4_bit_elements_is_refused_by_name(size):
    # 3 x 2 and so on is a whole number of bytes, but torch holds pairs along the last dimension.
    from mlstate.digests import Digest
    from mlstate.format.state_object import TensorRef
    from mlstate.format.tensor_object import header

    spec = TensorSpec("F4", (2, size))
    data = bytes(spec.nbytes)
    objects = MemoryObjectStore()
    if spec.nbytes < INLINE_LIMIT:
        state = StateObject({"culprit": InlineTensor(spec, data)}, {})
    else:
        parts = [header(spec), data]
        objects.put(Digest.of(*parts), parts)
        state = StateObject({}, {"culprit": TensorRef(spec, Digest.of(*parts))})
    with pytest.raises(FormatError) as caught:
        read_tensors(objects, state)
    assert caught.value.tensor == "culprit"


# ------------------------------------------------------------------------------------ identity


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64), nn.Linear(100, 90)).half()


def test_the_order_of_a_state_dict_does_not_count():
    state = model().state_dict()
    items = list(state.items())
    digest = state_digest(state)
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert state_digest(dict(items)) == digest


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_has_the_same_digest(tmp_path, legacy):
    state = model().state_dict()
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert state_digest(torch.load(path, weights_only=True)) == state_digest(state)
    assert file_digest(path) == state_digest(state)
    if not legacy:
        assert state_digest(torch.load(path, mmap=True)) == state_digest(state)


def test_a_safetensors_file_has_the_same_digest(tmp_path):
    state = model().state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    assert state_digest(safetensors.torch.load_file(path)) == state_digest(state)


def test_shards_have_the_same_digest(tmp_path):
    state = model().state_dict()
    names = sorted(state)
    found = {}
    for number, half in enumerate([names[1::2], names[::2]]):
        path = tmp_path / f"model-{number}.safetensors"
        safetensors.torch.save_file({name: state[name] for name in half}, path)
        found |= safetensors.torch.load_file(path)
    assert state_digest(found) == state_digest(state)


def test_memory_format_does_not_count():
    plain = model()
    last = model().to(memory_format=torch.channels_last)
    assert not last.state_dict()["0.weight"].is_contiguous()
    assert state_digest(last.state_dict()) == state_digest(plain.state_dict())


def test_training_mode_and_gradients_do_not_count():
    digest = state_digest(model().state_dict())
    assert state_digest(model().eval().requires_grad_(False).state_dict()) == digest
    assert state_digest(model().state_dict(keep_vars=True)) == digest


def test_a_read_state_has_the_same_digest():
    state = model().state_dict()
    assert state_digest(through(**state)) == state_digest(state)


@given(tensors(), tensors())
@settings(deadline=None)
def test_states_are_equal_exactly_if_their_digests_are(a, b):
    assert (state_digest({"x": a}) == state_digest({"x": b})) == same(a, b)


def test_names_count():
    one = torch.ones(5000)
    digests = {state_digest({name: one}) for name in ["a", "b", "", "A", "é", "e\u0301"]}
    assert len(digests) == 6


# ------------------------------------------------------------------------------ time and memory


def script(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_50_000_small_tensors_take_seconds():
    values = torch.rand(50_000, 16)
    state = {f"layers.{i}.weight": values[i] for i in range(50_000)}
    start = time.process_time()
    objects = MemoryObjectStore()
    encoded = encode_tensors(state, objects.put)
    found = read_tensors(objects, StateObject.parse(encoded.data))
    assert time.process_time() - start < 30
    assert torch.equal(torch.stack(list(found.values())), torch.stack([state[n] for n in found]))
    assert len(found) == 50_000


PEAK = """
    import pathlib, torch
    from mlstate.tensors import encode_tensors

    def status(name):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) >> 10

    encode_tensors({"warm": torch.ones(3000, 300).t()}, lambda digest, parts: None)
    state = {str(i): MAKE for i in range(5)}
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    assert before > 240, "the state is in memory"
    encode_tensors(state, lambda digest, parts: [bytes(part[:10]) for part in parts])
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("make", "most"),
    [("torch.full((3500, 3572), i + 1.0).t()", 75), ("torch.full((12_500_000,), i + 1.0)", 25)],
    ids=["views", "contiguous"],
)
def test_encoding_holds_about_one_copy(make, most):
    # Each tensor is 50 MB: two copies at once, or one of a tensor that needs none, are too many.
    result = script(PEAK.replace("MAKE", make))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < most

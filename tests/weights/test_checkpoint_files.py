"""Checkpoint files of torch.save, both formats and compressed: read, nothing run."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import random
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import state_digest
from mlstate.errors import FormatError, IntegrityError, concerning
from mlstate.fetch.download import check_sha256
from mlstate.format.encode import TensorSource
from mlstate.weights.checkpoints import checkpoint_sources
from tests.pickled.crafted import legacy, state, storage, tensor
from tests.support.models import net, same, values

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux of maps")
ORIGIN = "https://example.org/net.pth"


def save(path: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def compress(path: Path) -> Path:
    target = path.with_name(f"{path.name}.gz")
    target.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
    return target


DTYPES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "BF16": torch.bfloat16,
}


def tensor_of(source: TensorSource) -> torch.Tensor:
    with source.data() as data:
        content = bytearray(data)
    if not content:
        return torch.empty(source.spec.shape, dtype=DTYPES[source.spec.dtype])
    return torch.frombuffer(content, dtype=DTYPES[source.spec.dtype]).reshape(source.spec.shape)


def opened(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    with concerning(path=ORIGIN), ExitStack() as stack:
        sources = checkpoint_sources(path, stack, **options)
        return {source.name: tensor_of(source) for source in sources}


def refused(path: Path, **options: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        opened(path, **options)
    assert caught.value.path == ORIGIN
    assert "weights_only" not in str(caught.value)  # no advice to switch the protection off
    return caught.value


@FORMATS
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_state_dict_comes_back_bit_for_bit(tmp_path, zipped, packed):
    state = net(1).state_dict()
    state["half"] = torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16)
    state["empty"] = torch.empty(0, 3)
    state["scalar"] = torch.tensor(7)
    state["view"] = state["0.weight"][::2, 1:]
    path = save(tmp_path / "net.pth", state, zipped=zipped)
    if packed:
        path = compress(path)
    found = opened(path, gzip=packed)
    assert same(found, dict(state))
    assert state_digest(found) == state_digest(state)
    assert sorted(tmp_path.iterdir()) == sorted({path, tmp_path / "net.pth"})  # nothing is left


@FORMATS
def test_parameters_become_plain_tensors_and_ties_stay(tmp_path, zipped):
    weight = torch.nn.Parameter(torch.randn(4, 4))
    content = {"a": weight, "b": weight, "c": torch.nn.Buffer(torch.ones(2))}
    path = save(tmp_path / "net.pth", content, zipped=zipped)
    assert torch.equal(opened(path)["a"], weight.detach())
    with ExitStack() as stack:
        first, second, third = checkpoint_sources(path, stack)
        assert first.memory == second.memory != third.memory


@FORMATS
def test_one_that_was_saved_on_a_gpu_opens_without_one(tmp_path, zipped, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = save(tmp_path / "net.pth", net(1).state_dict(), zipped=zipped)
    assert b"cuda:0" in path.read_bytes()
    assert same(opened(path), values(net(1)))


def test_the_file_stays_as_it_is_and_may_be_removed(tmp_path):
    path = save(tmp_path / "net.pth", {"a": torch.zeros(1 << 20)})
    with ExitStack() as stack:
        [source] = checkpoint_sources(path, stack)
        path.unlink()
        assert tensor_of(source).sum() == 0


def test_what_was_decompressed_has_no_name(tmp_path):
    path = compress(save(tmp_path / "net.pth", {"a": torch.ones(1 << 20)}))
    with ExitStack() as stack:
        [source] = checkpoint_sources(path, stack, gzip=True)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["net.pth", "net.pth.gz"]
        assert tensor_of(source).sum() == 1 << 20


PEAK = """
import sys
from contextlib import ExitStack
from pathlib import Path
from mlstate.format.encode import encode_state
from mlstate.weights.checkpoints import checkpoint_sources

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

before = anonymous()
with ExitStack() as stack:
    found = checkpoint_sources(Path(sys.argv[1]), stack, gzip=sys.argv[1].endswith(".gz"))
    opened = anonymous() - before
    encode_state(found)
    print(opened, anonymous() - before)
assert "torch" not in sys.modules
"""


@LINUX
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_memory_does_not_grow_with_the_file(tmp_path, packed):
    content = {str(i): torch.full((4 << 20,), float(i)) for i in range(4)}  # 64 MiB
    path = save(tmp_path / "net.pth", content)
    if packed:
        path = compress(path)
    command = [sys.executable, "-W", "error", "-c", PEAK, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for used in done.stdout.split():
        assert int(used) < 24 << 20


NESTED = {
    "epoch": 3,
    "state_dict": {"w": torch.ones(2)},
    "model": {"ema": {"w": torch.zeros(2)}, "step": 1},
    "a.b": {"c": {"w": torch.tensor(1)}, "d.e": {"w": torch.tensor(2)}},
    "a": {"b.c": {"w": torch.tensor(3)}, "b": {"x": {"w": torch.tensor(4)}}},
    "a.b.c.d": {"w": torch.tensor(5)},
    "optimizer": {"state": {}, "lr": 0.1},
}


@FORMATS
@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("state_dict", torch.ones(2)),
        ("model.ema", torch.zeros(2)),
        ("a.b.c", torch.tensor(1)),  # of "a.b" and "a" the longer
        ("a.b.d.e", torch.tensor(2)),
        ("a.b.c.d", torch.tensor(5)),
    ],
)
def test_select_finds_the_state_dict_inside(tmp_path, zipped, select, expected):
    path = save(tmp_path / "net.pth", NESTED, zipped=zipped)
    found = opened(path, select=select)
    assert same(found, {"w": expected})


@pytest.mark.parametrize(
    ("select", "found", "remedy"),
    [
        ("state-dict", "epoch, state_dict, model", "select one of: state_dict"),
        ("model.emo", "ema, step", "select one of: model.ema"),
        ("epoch.x", "int", "state_dict"),
        ("a.b.x", "c, d.e", "a.b"),  # the longest key, and no way back
        ("", "epoch, state_dict", "state_dict, "),
    ],
)
def test_where_select_leads_nowhere_the_error_says_what_there_is(tmp_path, select, found, remedy):
    error = refused(save(tmp_path / "net.pth", NESTED), select=select)
    assert error.expected == select
    assert error.found.startswith(found)
    assert remedy in error.remedy


@pytest.mark.parametrize("select", ["epoch", "state_dict.w"])
def test_what_select_names_is_to_be_a_state_dict(tmp_path, select):
    error = refused(save(tmp_path / "net.pth", NESTED), select=select)
    assert "no state dict" in error.message


@FORMATS
@pytest.mark.parametrize(
    "value", [3, 0.5, "text", None, [torch.ones(1)]], ids=["int", "float", "str", "None", "list"]
)
def test_what_is_no_tensor_is_refused_by_name(tmp_path, zipped, value):
    path = save(tmp_path / "net.pth", {"w": torch.ones(1), "extra": value}, zipped=zipped)
    error = refused(path)
    assert (error.tensor, error.found) == ("extra", type(value).__name__)
    # There is nothing inside to select; and no tensor is ever passed over.
    passed_over = None if isinstance(value, list) else "tensors_only=True passes over"
    assert (error.remedy or "").startswith(passed_over or "")
    assert (error.remedy is None) == isinstance(value, list)


def test_a_nested_checkpoint_is_refused_with_what_to_select(tmp_path):
    error = refused(save(tmp_path / "net.pth", NESTED))
    assert error.tensor == "epoch"
    inside = "state_dict, a.b.c.d, model.ema, a.b.c, a.b.d.e"  # five of seven
    assert error.remedy == f"select the state dict inside: {inside}"
    for select in inside.split(", "):
        assert opened(tmp_path / "net.pth", select=select).keys() == {"w"}


def test_names_are_texts(tmp_path):
    error = refused(save(tmp_path / "net.pth", {7: torch.ones(1)}))
    assert error.tensor == "7"


def test_a_mapping_within_itself_is_no_trap(tmp_path):
    # Not saved by torch: its pickler would write the keys one by one and never end.
    knot: dict[str, Any] = {"w": 1}
    for name in "abcdefgh":
        knot[name] = knot
    assert "select" not in str(refused(save(tmp_path / "net.pth", knot)))
    broad: dict[str, Any] = {}
    for _ in range(50):
        broad = {str(i): broad for i in range(100)}
    refused(save(tmp_path / "net.pth", broad))


def test_a_sparse_tensor_is_refused_by_name(tmp_path):
    assert refused(save(tmp_path / "net.pth", {"w": torch.eye(3).to_sparse()})).tensor == "w"


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self.command,))


@FORMATS
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped, packed):
    mark = tmp_path / "it-ran"
    path = save(tmp_path / "net.pth", {"w": Evil(f"touch {mark}")}, zipped=zipped)
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would
    mark.unlink()
    error = refused(compress(path) if packed else path, gzip=packed)
    assert error.found == f"a pickled {os.system.__module__}.system"
    assert not mark.exists()


def test_a_bare_malicious_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "it-ran"
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Evil(f"touch {mark}"), protocol=2))
    refused(path)
    assert not mark.exists()


@FORMATS
def test_a_whole_model_is_refused(tmp_path, zipped):
    error = refused(save(tmp_path / "net.pth", torch.nn.Linear(2, 2), zipped=zipped))
    assert error.found == "a pickled torch.nn.modules.linear.Linear"


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), "text", None])
def test_what_is_no_mapping_is_refused(tmp_path, content):
    assert "no state dict" in refused(save(tmp_path / "net.pth", content)).message


@FORMATS
def test_a_damaged_file_is_refused(tmp_path, zipped):
    path = save(tmp_path / "net.pth", net(1).state_dict(), zipped=zipped)
    whole = path.read_bytes()
    for length in (0, 1, 4, 50, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        refused(path)
    for text in (b"<!DOCTYPE html><html>not found</html>", b"PK\x03\x04" + b"\0" * 1000):
        path.write_bytes(text)
        refused(path)


def test_a_torchscript_archive_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:  # the shape; torch.jit.save warns these days
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/data.pkl", b"")
    error = refused(path)
    assert "TorchScript" in error.message
    assert "torch.jit.load" in error.remedy


def test_a_storage_that_claims_more_than_the_file_has_is_refused(tmp_path):
    path = save(tmp_path / "net.pth", {"w": torch.ones(1000)})
    forged = tmp_path / "forged.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(forged, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = data.replace(b"M\xe8\x03", b"M\xff\xff")  # 1000 elements become 65535
            target.writestr(entry.filename, data)
    refused(forged)


def test_storages_that_are_not_there_are_refused_and_not_made_up(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(legacy(state(tensor(storage(64, more=b"N"), (64,), (1,))), [], []))
    assert torch.load(path, weights_only=True)["w"].shape == (64,)  # of whatever was in memory
    assert "lists other storages" in refused(path).message


def test_a_tensor_that_repeats_its_storage_too_often_is_refused(tmp_path):
    path = save(tmp_path / "net.pth", {"w": torch.ones(1).expand(10**6, 10**4)})
    assert "repeats its storage" in refused(path).message


def test_a_bomb_is_refused_before_the_disk_is_spent(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    limit = 3 << 20
    code = f"""
import resource, pathlib
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))  # more, and the kernel kills
from mlstate.errors import FormatError
from contextlib import ExitStack
from mlstate.weights.checkpoints import checkpoint_sources
try:
    with ExitStack() as stack:
        checkpoint_sources(pathlib.Path({str(path)!r}), stack, gzip=True, max_size={limit})
except FormatError as error:
    print(error.expected)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"at most {limit} bytes"
    assert list(tmp_path.iterdir()) == [path]


def test_exactly_as_large_as_it_may_be_is_not_too_large(tmp_path):
    path = save(tmp_path / "net.pth", {"w": torch.ones(1 << 19)})
    size = path.stat().st_size
    packed = compress(path)
    assert opened(packed, gzip=True, max_size=size)["w"].sum() == 1 << 19
    assert "larger" in refused(packed, gzip=True, max_size=size - 1).message


def test_a_damaged_compressed_file_is_refused(tmp_path):
    packed = compress(save(tmp_path / "net.pth", net(1).state_dict()))
    whole = packed.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    for content in (b"plain", whole[:-1], whole[: len(whole) // 2], whole[:5], bytes(flipped)):
        packed.write_bytes(content)
        assert "damaged" in refused(packed, gzip=True).message or content is flipped
    packed.write_bytes(b"")
    refused(packed, gzip=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.pth", "net.pth.gz"]


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    for gzipped in (False, True):
        with pytest.raises(FileNotFoundError):
            opened(tmp_path / "net.pth", gzip=gzipped)


def test_a_sum_is_compared_whole_or_by_its_leading_digits(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(b"content")
    digits = hashlib.sha256(b"content").hexdigest()
    for length in (1, 8, 63, 64):
        check_sha256(path, digits[:length], ORIGIN)
    for wrong in ("0" * 64, f"{digits[:7]}{'0' if digits[7] != '0' else '1'}", digits.upper()):
        with pytest.raises(IntegrityError) as caught:
            check_sha256(path, wrong, ORIGIN)
        assert caught.value.path == ORIGIN
        assert caught.value.expected.startswith(wrong)
        assert caught.value.found == digits
    with pytest.raises(IntegrityError):
        check_sha256(path, f"{digits}0", ORIGIN)
    with pytest.raises(FormatError):
        check_sha256(path, "", ORIGIN)  # which everything begins with


def test_an_ordered_dict_with_metadata_is_a_state_dict(tmp_path):
    state = net(1).state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    assert list(opened(save(tmp_path / "net.pth", state))) == list(state)


def damaged_checkpoints():
    """Garbage, every kind of cut, and flipped bits, of both layouts of torch.save."""
    yield from (b"", b"abc", b"\x80", b"PK", b"PK\x03\x04", bytes(1000), b"\x80\x02}.")
    rng = random.Random(0)
    for zipped in (True, False):
        file = io.BytesIO()
        state = {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int64)}
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        good = file.getvalue()
        yield from (good[: rng.randrange(len(good))] for _ in range(100))
        for _ in range(300):
            bad = bytearray(good)
            bad[rng.randrange(min(len(bad), 700))] ^= 1 << rng.randrange(8)
            yield bytes(bad)


def test_a_damaged_checkpoint_is_a_format_error(tmp_path):
    path = tmp_path / "model.pt"
    other = {}
    for data in damaged_checkpoints():
        path.write_bytes(data)
        try:
            opened(path)
        except FormatError as error:
            if error.path != ORIGIN:
                other[data] = error
        except Exception as error:
            other[data] = error
    kinds = sorted({repr(error)[:90] for error in other.values()})
    assert not other, f"{len(other)} cases: {kinds[:8]}"


def test_a_checkpoint_with_a_class_is_a_format_error(tmp_path):
    error = refused(save(tmp_path / "net.pth", {"a": threading.Event}))
    assert "plain tensors" in error.message

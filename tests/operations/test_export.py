"""`export`: what other tools read, refusals, damage, and a kill at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mlstate import (
    LocalStateStore,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    adopt,
    bundle,
    export,
    file_digest,
    manifest_of,
)
from mlstate.errors import FormatError, IntegrityError, StateExistsError, StateNotFoundError
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.tensors.memory import torch_dtype
from tests.support.models import BytesModel, net, same, values

KEY, OTHER = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")


@pytest.fixture
def store(store):
    store.save_state_dict(values(net(0)), KEY, files={"config.json": b"{}"})
    store.save_state_dict(values(net(1)), OTHER)
    return store


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        return {n: t for f in path.glob("*.safetensors") for n, t in load_file(f).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


NAMES = ["x.safetensors", "x.pth", "x.bin", "folder", "new/x.pt", "new/folder"]


@pytest.mark.parametrize("name", NAMES)
def test_other_tools_read_it(tmp_path, store, name):
    path = export(store, KEY, tmp_path / name)
    assert path == tmp_path / name
    assert same(read(path), values(net(0)))
    assert file_digest(path) == store.digest(KEY)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob(f"{name}/config.json"))


def test_shards_and_format(tmp_path, store):
    path = export(store, KEY, tmp_path / "s", max_shard_size=30_000)
    assert len(list(path.glob("*.safetensors"))) > 1
    assert file_digest(path) == file_digest(path / "model.safetensors.index.json")
    assert file_digest(path) == store.digest(KEY)
    assert same(torch.load(export(store, KEY, tmp_path / "odd", format="torch")), values(net(0)))
    first = export(store, KEY, tmp_path / "1.pth").read_bytes()
    assert export(store, KEY, tmp_path / "2.pth").read_bytes() == first
    for name, options in [
        ("y.pth", {"format": "safetensors"}),
        ("y.safetensors", {"format": "torch"}),
        ("y.safetensors", {"max_shard_size": "1GB"}),
        ("y.pth", {"max_shard_size": "1GB"}),
        ("y", {"format": "onnx"}),
        ("y", {"max_shard_size": "many"}),
    ]:
        with pytest.raises(FormatError):
            export(store, KEY, tmp_path / name, **options)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_what_is_there_stays_unless_overwritten(tmp_path, store, name):
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(StateExistsError):
        export(store, KEY, path)
    assert path.read_text() == "mine"
    export(store, KEY, path, overwrite=True)
    assert file_digest(path) == store.digest(KEY)
    (tmp_path / "d.pth").mkdir()
    with pytest.raises(StateExistsError):
        export(store, KEY, tmp_path / "d.pth", format="torch", overwrite=True)


def test_weights_in_a_folder_leave_what_materialize_wrote_beside_them(tmp_path, store):
    folder = store.materialize(KEY, tmp_path / "m")
    export(store, OTHER, folder)
    assert (folder / "config.json").read_bytes() == b"{}"
    assert file_digest(folder) == store.digest(OTHER)
    store.materialize(OTHER, folder)  # which has no files: those of the earlier state go
    assert not (folder / "config.json").exists()
    (folder / "model.safetensors").write_text("trained")
    with pytest.raises(StateExistsError):
        export(store, KEY, folder)
    assert (folder / "model.safetensors").read_text() == "trained"


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_and_leaves_nothing(tmp_path, store, name):
    path = max(store.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    key = KEY if path.stat().st_size and _names(store, KEY, path) else OTHER
    before = set(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError):
        export(store, key, tmp_path / name)
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(StateNotFoundError):
        export(store, StateKey.parse("pytorch.net.none"), tmp_path / name)
    assert set(tmp_path.rglob("*")) == before


def _names(store: LocalStateStore, key: StateKey, path: Path) -> bool:
    try:
        store.load_state_dict(key)
    except IntegrityError:
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_fetches_what_it_lacks_and_mends_what_is_damaged(tmp_path, store, name):
    manifest = tmp_path / "m.toml"
    manifest_of(store, objects=[str(store.folder)]).write(manifest)
    shared = ManifestStore(manifest, cache=tmp_path / "cache")
    export(shared, KEY, tmp_path / "first.safetensors")
    path = max((tmp_path / "cache").glob("objects/*/*"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.warns(UserWarning, match="damaged"):
        found = export(shared, KEY, tmp_path / name)
    assert file_digest(found) == store.digest(KEY)


def test_opaque_bytes_are_no_weights(tmp_path):
    store = MemoryStateStore()
    model = BytesModel(b"opaque")
    key = store.save(model, "a")
    for name in NAMES:
        with pytest.raises(FormatError, match="opaque"):
            export(store, key, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_tied_weights_are_one_tensor_in_a_checkpoint_and_two_in_safetensors(tmp_path):
    store, weight = MemoryStateStore(), torch.randn(300, 70)
    state = {"embed": weight, "head": weight, "zero": torch.zeros(9000), "none": torch.zeros(9000)}
    store.save_state_dict(state, KEY)
    torch.save(state, tmp_path / "torchs.pth")
    path = export(store, KEY, tmp_path / "x.pth")
    found = torch.load(path)
    assert same(found, state)
    assert found["embed"].data_ptr() == found["head"].data_ptr()
    assert found["zero"].data_ptr() != found["none"].data_ptr()  # equal by chance
    assert abs(path.stat().st_size - (tmp_path / "torchs.pth").stat().st_size) < 2000
    again = StateKey.parse("pytorch.net.again")
    assert adopt(path, again, store).digest == store.digest(KEY)
    assert same(load_file(export(store, KEY, tmp_path / "x.safetensors")), state)


KNOWN = [dtype for dtype in BITS if dtype != "F4"]
SHAPES = st.lists(st.integers(0, 70), max_size=3).map(tuple)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text("ab.é", min_size=1), st.tuples(st.sampled_from(KNOWN), SHAPES), min_size=1
    )
)
def test_what_was_exported_is_adopted_as_the_same_state(specs):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (dtype, shape) in specs.items():
        spec = TensorSpec(dtype, shape)
        raw = torch.randint(0, 2, (spec.nbytes,), dtype=torch.uint8, generator=generator)
        state[name] = raw.view(torch_dtype(spec)).reshape(shape)
    store = MemoryStateStore()
    store.save_state_dict(state, KEY)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("x.safetensors", "x.pt", "shards")):
            most = 5000 if name == "shards" else None
            path = export(store, KEY, Path(folder) / name, max_shard_size=most)
            other = StateKey.parse(f"pytorch.net.other{number}")
            assert adopt(path, other, store).digest == store.digest(KEY) == file_digest(path)


CHILD = """
import sys
from mlstate import LocalStateStore, StateKey, export
store, path = LocalStateStore(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
export(store, StateKey.parse("pytorch.net.large"), path, overwrite=True)
print("done", flush=True)
"""


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_kill_leaves_no_half_file(tmp_path, store, name):
    large = {str(n): torch.randn(1_000_000) for n in range(6)}
    store.save_state_dict(large, StateKey.parse("pytorch.net.large"))
    path, rng, whole = tmp_path / "out" / name, random.Random(2), 0.0
    for attempt in range(5):
        command = [sys.executable, "-c", CHILD, str(store.folder), str(path)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        with process:
            assert process.stdout.readline() == "ready\n"
            began = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            if attempt == 0:
                assert process.stdout.readline() == "done\n"
                whole = time.monotonic() - began
                path.unlink()
            else:
                time.sleep(rng.uniform(0, whole))
                process.send_signal(signal.SIGKILL)
        if path.exists():
            assert same(read(path), large)
        if path.parent.exists():
            assert {p.name for p in path.parent.iterdir() if p.name[0] != "."} <= {name}


def test_a_full_disk_is_an_error_of_the_disk_even_if_torch_writes(tmp_path):
    code = f"""
import resource, signal, torch
from mlstate import LocalStateStore, StateKey, export
store = LocalStateStore({str(tmp_path / "w")!r})
key = StateKey.parse("pytorch.net.one")
store.save_state_dict({{"a": torch.ones(500_000)}}, key)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    export(store, key, {str(tmp_path / "x.pth")!r})
except OSError as error:
    print("OSError", error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("OSError"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, store, overwrite):
    """As root ``-o /dev/null --overwrite`` would leave a machine without that."""
    pipe = tmp_path / "null"
    os.mkfifo(pipe)
    for write in (
        lambda: export(store, KEY, pipe, format="torch", overwrite=overwrite),
        lambda: bundle(store, [KEY], pipe, overwrite=overwrite),
    ):
        with pytest.raises(StateExistsError, match="none; nothing was changed") as caught:
            write()
        assert caught.value.found == "a pipe"
    assert pipe.is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["null", "store"]


def test_what_a_link_with_the_name_of_temporaries_leads_to_stays(tmp_path, store):
    home, shared = tmp_path / "home", tmp_path / "shared"
    home.mkdir()
    shared.mkdir()
    (home / "thesis").write_text("mine")
    link = shared / f".mlstate-{'0' * 32}.tmp"
    link.symlink_to(home)
    for path in (link, home / "thesis", home):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
    export(store, KEY, shared / "x.safetensors")
    assert (home / "thesis").read_text() == "mine"

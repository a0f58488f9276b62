"""A store in which every tensor object is in encoded form: each operation does what it does."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mlstate
from mlstate import LocalStateStore, ManifestStore, MemoryStateStore, StateKey, with_state_type
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, ObjectNotFoundError
from mlstate.format import layout
from mlstate.format.tensor_object import DATA_OFFSET, TensorSpec, object_size
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.objects.encoded_indexes import write_index
from mlstate.operations.doctor.doctor import diagnose
from mlstate.reading import read_state
from mlstate.tensors import tensor_sources
from tests.support.encoding import encode_all, encode_store, near_tensors, put_tensor, refs_in
from tests.support.models import LINEAR, BytesModel, NoModule, same

SHAPES = {"embedding": (700, 900), "head": (40, 300), "again": (40, 300), "bias": (7,)}
KEYS = [StateKey.parse(f"pytorch.net.{name}") for name in ("a", "b", "c")]
FOREST = StateKey.parse("sklearn.forest.x")


def save_all(store: LocalStateStore) -> LocalStateStore:
    for step, key in enumerate(KEYS):
        store.save_state_dict(near_tensors(1, step, **SHAPES), key, files={"f": b"file"})
    store.save(BytesModel(bytes(range(256)) * 100), "x")
    return store


@pytest.fixture(scope="module")
def _encoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded") / "store"
    encode_store(save_all(LocalStateStore(folder)))
    return folder


@pytest.fixture
def store(_encoded, tmp_path):
    shutil.copytree(_encoded, tmp_path / "store")
    return LocalStateStore(tmp_path / "store")


def tensors(step: int) -> dict[str, torch.Tensor]:
    return near_tensors(1, step, **SHAPES)


def is_all_encoded(store: LocalStateStore) -> bool:
    refs = refs_in(store)
    assert len(refs) >= 10
    return all(store.own.plain_size(ref.digest) is None for ref in refs)


def damage(store: LocalStateStore, digest: Digest, place: int = 5000) -> str:
    path = store.own.encoded_path(digest)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.unlink()
    path.write_bytes(data)
    return str(path)


# Reading.


def test_the_store_under_test_has_nothing_plain(store):
    assert is_all_encoded(store)
    assert sum(map(object_size, (ref.spec for ref in refs_in(store)))) > sum(
        path.stat().st_size for path in store.folder.glob("encoded/*/*")
    )


@pytest.mark.parametrize("assign", [False, True])
def test_load(store, assign):
    if assign:
        model = with_state_type(torch.nn.Module(), LINEAR)
        for name, tensor in tensors(0).items():
            model.register_parameter(name, torch.nn.Parameter(torch.zeros_like(tensor)))
        store.load(model, KEYS[2], assign=True)
        assert same(dict(model.state_dict()), tensors(2))
        with torch.no_grad():
            model.embedding.add_(1)  # the memory is the model's own
        assert same(store.load_state_dict(KEYS[2]), tensors(2))
    else:
        model = NoModule(**tensors(0))
        store.load(model, KEYS[2])
        assert same(model.tensors, tensors(2))


def test_load_state_dict(store):
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))
    assert store.digest(KEYS[0]) == mlstate.state_digest(tensors(0))


def test_some_names_only(store):
    broken = next(r for n, r in read_state(*store.get(KEYS[1])).refs.items() if n == "embedding")
    damage(store, broken.digest)
    found = store.load_state_dict(KEYS[1], names=["head", "bias"])
    assert same(found, {name: tensors(1)[name] for name in ("head", "bias")})


def test_the_decoded_memory_is_taken_without_another_copy(store, monkeypatch):
    from mlstate.objects import decoded

    made = []
    new = decoded._new_memory

    def noted(size):
        made.append(torch.frombuffer(view := new(size), dtype=torch.uint8).data_ptr())
        return view

    monkeypatch.setattr(decoded, "_new_memory", noted)
    found = store.load_state_dict(KEYS[0], names=["embedding"])
    assert found["embedding"].data_ptr() - DATA_OFFSET in made


def test_a_tensor_of_another_device_by_way_of_the_lanes(store):
    """Without a GPU, the same lanes copy to the memory of the CPU."""
    from mlstate.tensors.read import read_tensors

    entry, objects = store.get(KEYS[1])
    places = {"embedding": torch.device("cpu")}
    found = read_tensors(objects, read_state(entry, objects), places=places)
    assert same(found, tensors(1))


def test_bytes_of_the_older_protocol(store):
    model = BytesModel()
    store.load(model, FOREST)
    assert model.state == bytes(range(256)) * 100


def test_files_and_list_and_exists(store):
    assert store.files(KEYS[0])["f"] == b"file"
    assert store.get_state_keys() == [*KEYS, FOREST]
    assert store.exists(KEYS[0])


def test_verify(store):
    report = mlstate.verify(store)
    assert report.findings == ()
    assert report.nbytes > sum(object_size(ref.spec) for ref in refs_in(store)[:3])


def test_verify_names_the_damaged_base(store):
    first = read_state(*store.get(KEYS[0])).refs["embedding"]
    path = damage(store, first.digest)
    report = mlstate.verify(store)
    assert {finding.path for finding in report.findings} == {path}
    named = {key for finding in report.findings for key in finding.keys}
    assert named == set(KEYS)  # all are built on it
    with pytest.raises(IntegrityError) as caught:
        store.load_state_dict(KEYS[2])
    assert caught.value.path == path
    assert caught.value.tensor == "embedding"


@pytest.mark.parametrize("damaged", [0, 2])
def test_verify_repairs_from_a_mirror(store, tmp_path, damaged):
    plain = save_all(LocalStateStore(tmp_path / "plain"))
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        f'version = 1\nobjects = ["{plain.folder.as_uri()}"]\n'
        + "".join(f'[states."{key}"]\nblake3 = "{store.digest(key)}"\n' for key in KEYS)
    )
    view = ManifestStore(manifest, cache=store.folder)
    damage(store, read_state(*store.get(KEYS[damaged])).refs["embedding"].digest)
    assert not mlstate.verify(view).ok
    report = mlstate.verify(view, repair=True)
    assert all(finding.repaired for finding in report.findings)
    assert report.findings
    assert mlstate.verify(view).ok
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))
    assert list(store.folder.glob("trash/*.damaged.*"))


def test_verify_repairs_from_the_plain_objects_that_were_given_up(tmp_path):
    store = save_all(LocalStateStore(tmp_path / "store"))
    encode_all(store.own, refs_in(store))
    base, other = (read_state(*store.get(key)).refs["embedding"].digest for key in KEYS[:2])
    damage(store, base)
    damage(store, other)
    report = mlstate.verify(store, repair=True)
    assert {finding.digest for finding in report.findings} >= {base, other}
    assert all(finding.repaired for finding in report.findings)
    said = {finding.digest: finding.remedy for finding in report.findings}
    assert said[base].startswith("the plain object was put back from the trash; what was there")
    assert all("put back" in text or "built on" in text for text in said.values())
    assert store.own.plain_size(base) is not None
    assert mlstate.verify(store).ok
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))


def test_a_load_repairs_an_encoded_object_in_a_cache(store, tmp_path):
    plain = save_all(LocalStateStore(tmp_path / "plain"))
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        f'version = 1\nobjects = ["{plain.folder.as_uri()}"]\n'
        f'[states."{KEYS[1]}"]\nblake3 = "{store.digest(KEYS[1])}"\n'
    )
    view = ManifestStore(manifest, cache=store.folder)
    shutil.move(plain.folder, tmp_path / "away")
    assert same(view.load_state_dict(KEYS[1]), tensors(1))  # nothing is fetched
    shutil.move(tmp_path / "away", plain.folder)
    damage(store, read_state(*store.get(KEYS[1])).refs["embedding"].digest)
    with pytest.warns(UserWarning, match="fetched again"):
        assert same(view.load_state_dict(KEYS[1]), tensors(1))
    assert same(view.load_state_dict(KEYS[1]), tensors(1))


def test_copy(store, tmp_path):
    target = LocalStateStore(tmp_path / "target")
    for key in [*KEYS, FOREST]:
        mlstate.copy(store, target, [key])
        assert target.digest(key) == store.digest(key)
    assert mlstate.verify(target).ok
    assert (target.folder / "mlstate.toml").read_bytes() == b"version = 1\nrequires = []\n"
    memory = MemoryStateStore()
    mlstate.copy(store, memory, KEYS)
    assert same(memory.load_state_dict(KEYS[1]), tensors(1))


def test_copy_names_what_is_damaged(store, tmp_path):
    path = damage(store, read_state(*store.get(KEYS[0])).refs["embedding"].digest)
    with pytest.raises(IntegrityError) as caught:
        mlstate.copy(store, LocalStateStore(tmp_path / "target"), [KEYS[1]])
    error = caught.value
    assert path in str(error)
    assert not LocalStateStore(tmp_path / "target").exists(KEYS[1])


def test_copy_into_takes_what_is_there(store, tmp_path):
    other = LocalStateStore(tmp_path / "other")
    other.save_state_dict(tensors(1), StateKey.parse("pytorch.net.same"))
    mlstate.copy(other, store, [StateKey.parse("pytorch.net.same")])
    assert is_all_encoded(store)


@pytest.mark.parametrize("form", ["one.safetensors", "one.pth", "folder/"])
def test_export(store, tmp_path, form):
    path = mlstate.export(store, KEYS[1], f"{tmp_path}/{form}")
    if form == "one.pth":
        found = torch.load(path, weights_only=True)
    else:
        found = load_file(path / "model.safetensors" if path.is_dir() else path)
    assert same(found, tensors(1))


def test_materialize(store, tmp_path):
    folder = store.materialize(KEYS[1], tmp_path / "folder")
    assert same(load_file(folder / "model.safetensors"), tensors(1))
    assert (folder / "f").read_bytes() == b"file"


def test_diff(store):
    found = mlstate.diff((store, KEYS[0]), (store, KEYS[1]))
    plain = mlstate.diff(tensors(0), tensors(1))
    assert [str(change) for change in found.changed] == [str(change) for change in plain.changed]
    assert found.changed


def test_bundle(store, tmp_path):
    mlstate.bundle(store, KEYS, tmp_path / "b.tar")
    twin = save_all(LocalStateStore(tmp_path / "plain"))
    mlstate.bundle(twin, KEYS, tmp_path / "c.tar")
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    target = LocalStateStore(tmp_path / "target")
    mlstate.unbundle(tmp_path / "b.tar", target)
    assert same(target.load_state_dict(KEYS[2]), tensors(2))
    mlstate.unbundle(tmp_path / "b.tar", store)  # into itself: all is there
    assert is_all_encoded(store)


def test_a_tar_of_an_encoded_store_is_refused_as_a_bundle(store, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(store.folder, ".")
    with pytest.raises(FormatError, match="newer mlstate"):
        mlstate.unbundle(tmp_path / "x.tar", LocalStateStore(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_report(store, tmp_path):
    twin = save_all(LocalStateStore(tmp_path / "plain"))
    found, plain = (mlstate.report(one, KEYS) for one in (store, twin))
    assert found.architectures == plain.architectures
    (architecture,) = found.architectures
    assert all(change.relative for state in architecture.states[1:] for change in state.changes)
    assert [len(state.changes) for state in architecture.states[1:]] == [3, 3]


def test_doctor_counts_encoded_objects(store):
    checks = {check.name: check.found for check in diagnose(store).checks}
    files = [path for path in store.folder.glob("*/??/*") if path.is_file()]
    assert len(files) > len(refs_in(store))
    assert checks["store: contents"].startswith(f"{len(files):,} objects, ")


def test_saving_the_same_again_writes_nothing(store):
    store.save_state_dict(tensors(1), KEYS[1], files={"f": b"file"}, verify=True)
    store.save_state_dict(tensors(1), StateKey.parse("pytorch.net.other"), verify=True)
    assert is_all_encoded(store)


def test_saving_with_verify_writes_a_damaged_encoded_object_again(store):
    damage(store, read_state(*store.get(KEYS[0])).refs["embedding"].digest)
    store.save_state_dict(tensors(0), KEYS[0], files={"f": b"file"}, verify=True)
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))


def test_restore_of_a_deleted_state(store):
    store.delete(KEYS[1])
    assert store.prune(grace_seconds=3600).trashed == {}
    from mlstate.operations import history

    history.restore(store, KEYS[1])
    assert same(store.load_state_dict(KEYS[1]), tensors(1))


def test_plain_programs_need_no_torch_for_what_is_not_decoded(store):
    code = (
        "import sys, mlstate\n"
        f"store = mlstate.LocalStateStore({str(store.folder)!r})\n"
        "keys = store.get_state_keys()\n"
        "print([store.digest(key) for key in keys], store.files(keys[0])['f'])\n"
        "store.prune()\n"
        "mlstate.usage(store)\n"
        "assert 'torch' not in sys.modules\n"
        "mlstate.verify(store)\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""


def test_a_plain_store_is_not_looked_at_for_encoded_objects(tmp_path, monkeypatch):
    store = save_all(LocalStateStore(tmp_path / "store"))

    def looked(*_, **__):
        raise AssertionError("a call of the system more for each tensor")

    for name in ("encoded_size", "open_encoded", "encoded_path"):
        monkeypatch.setattr(FolderObjectStore, name, looked)
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))


# Pruning.


def ages(store: LocalStateStore, seconds: float) -> None:
    then = time.time() - seconds
    for path in store.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_a_base_lives_while_something_needs_it(store):
    for key in KEYS[:2]:
        store.delete(key)
    ages(store, 90 * 24 * 3600)
    for _ in range(3):
        report = store.prune()
        assert same(store.load_state_dict(KEYS[2]), tensors(2))
    assert mlstate.verify(store).ok
    store.delete(KEYS[2])
    ages(store, 90 * 24 * 3600)
    for _ in range(2):
        report = store.prune()
    # The tensors of all, the state object of the last, and the file.
    assert len(report.deleted) == 9 + 1 + 1
    forest = read_state(*store.get(FOREST)).refs.values()
    assert list(store.own.encoded_digests()) == [ref.digest for ref in forest]


def test_what_is_unneeded_is_trashed_and_comes_back(store):
    folder = store.folder / "states/pytorch/net"
    states = {key: folder / f"{key.training_id}.toml" for key in KEYS}
    texts = {key: path.read_bytes() for key, path in states.items()}
    for path in states.values():
        path.unlink()
    ages(store, 90 * 24 * 3600)
    planned = store.prune(dry_run=True)
    report = store.prune()
    assert report.trashed == planned.trashed
    assert len(report.trashed) == 13  # with state objects and the file
    for key, path in states.items():
        path.write_bytes(texts[key])
    for step, key in enumerate(KEYS):  # it is read in the trash meanwhile
        if step == 0:
            assert store.own.restore(store.digest(key))
    report = store.prune()
    assert set(report.restored) >= {ref.digest for ref in refs_in(store)[:3]}
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))
    assert not list(store.folder.glob("trash/*"))


def test_an_encoded_object_is_restored_with_its_base(store):
    refs = [read_state(*store.get(key)).refs["embedding"] for key in KEYS]
    trash = store.folder / "trash"
    trash.mkdir()
    for number, ref in enumerate(refs):
        store.own.encoded_path(ref.digest).rename(trash / f"{ref.digest}.encoded.{number:032x}")
    assert same(store.load_state_dict(KEYS[2]), tensors(2))  # read where it is
    assert store.own.size(refs[2].digest) is None
    assert store.own.restore(refs[2].digest)
    assert not list(trash.iterdir())
    assert store.own.size(refs[2].digest) == object_size(refs[2].spec)


def test_what_an_encoded_object_needs_is_restored_where_that_alone_is_in_the_trash(store):
    """A pruning was killed when it had moved the bases."""
    refs = [read_state(*store.get(key)).refs["embedding"] for key in KEYS]
    trash = store.folder / "trash"
    trash.mkdir()
    store.own.encoded_path(refs[0].digest).rename(
        trash / f"{refs[0].digest}.encoded.{0:032x}",
    )
    assert store.own.restore(refs[2].digest)
    assert store.own.encoded_size(refs[0].digest) is not None
    assert not list(trash.iterdir())
    assert not store.own.restore(refs[2].digest)


def test_a_damaged_form_in_the_trash_is_set_aside(store):
    digest = read_state(*store.get(KEYS[0])).refs["embedding"].digest
    trash = store.folder / "trash"
    trash.mkdir()
    store.own.encoded_path(digest).rename(trash / f"{digest}.encoded.{0:032x}")
    Cache([store.own]).set_aside(digest)
    (path,) = trash.iterdir()
    assert ".damaged." in path.name
    with pytest.raises(ObjectNotFoundError):
        store.own.open_encoded(digest)


def test_indexes_of_states_that_are_gone_are_swept(store):
    for key in KEYS[:2]:
        write_index(store.own, store.digest(key), read_state(*store.get(key)), 1)
    gone, stays = (store.folder / layout.encoded_index_path(store.digest(key)) for key in KEYS[:2])
    other = gone.with_name("notes.txt")
    other.write_text("of somebody else")
    ages(store, 90 * 24 * 3600)
    assert store.prune().swept == []
    store.delete(KEYS[0])
    assert store.prune().swept == []  # it can be restored yet
    ages(store, 90 * 24 * 3600)
    planned = store.prune(dry_run=True).swept
    assert gone.exists()
    assert store.prune().swept == planned
    assert str(gone) in planned
    assert (gone.exists(), stays.exists(), other.exists()) == (False, True, True)


def test_the_plain_object_that_was_given_up_goes_after_the_grace_period(tmp_path):
    store = save_all(LocalStateStore(tmp_path / "store"))
    ages(store, 90 * 24 * 3600)
    encode_all(store.own, refs_in(store))
    refs = {ref.digest for ref in refs_in(store)}
    report = store.prune()
    assert report.restored == []
    assert len(report.waiting) == len(refs)
    assert is_all_encoded(store)
    ages(store, 15 * 24 * 3600)
    report = store.prune()
    assert set(report.deleted) == refs
    assert is_all_encoded(store)
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))


def test_a_plain_object_in_trash_comes_back_if_its_encoded_form_cannot_be_read(tmp_path):
    store = save_all(LocalStateStore(tmp_path / "store"))
    encode_all(store.own, refs_in(store))
    first = read_state(*store.get(KEYS[0])).refs["embedding"]
    store.own.encoded_path(first.digest).unlink()
    ages(store, 90 * 24 * 3600)
    report = store.prune()
    assert first.digest in report.restored
    for step, key in enumerate(KEYS):
        assert same(store.load_state_dict(key), tensors(step))


def test_savers_that_take_encoded_objects_beside_prunings_without_grace(store):
    """The base of what a saving takes may be moved to trash/ at any moment, and comes back."""
    for key in KEYS:
        store.delete(key)
    shutil.rmtree(store.folder / "trash")
    over, errors = threading.Event(), []

    def prune() -> None:
        try:
            while not over.is_set():
                LocalStateStore(store.folder).prune(grace_seconds=0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for turn in range(12):
            step = 2 - turn % 3
            key = StateKey.parse(f"pytorch.net.again{turn}")
            store.save_state_dict(tensors(step), key)
            assert same(store.load_state_dict(key), tensors(step))
            store.delete(key)
    finally:
        over.set()
        thread.join()
    assert errors == []


# Sources.


def test_a_thread_may_have_two_copied_tensors_at_once():
    """A tensor that does not lie as it is stored is copied, one at a time for each thread."""
    sources = tensor_sources({"a": torch.ones(40, 50).t(), "b": torch.zeros(40, 50).t()})
    done = []

    def use() -> None:
        with sources[0].data() as one, sources[1].data() as other:
            done.append(len(one) + len(other))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(30)
    assert done == [16_000]


# Other readers.

FIRST_READER = Path(__file__).parents[1] / "golden" / "first_reader.py"


def first_reader(folder: Path, key: StateKey) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(FIRST_READER), str(folder), str(key)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_formats_first_reader_refuses_an_encoded_store_and_reads_one_that_was_undone(tmp_path):
    store = save_all(LocalStateStore(tmp_path / "store"))
    before = first_reader(store.folder, KEYS[1])
    lines = [
        f"{name} BF16 {list(tensor.shape)} {Digest.of(tensor.view(torch.uint8).numpy().tobytes())}"
        for name, tensor in sorted(tensors(1).items())
    ]
    assert (before.returncode, before.stdout.splitlines(), before.stderr) == (0, lines, "")
    refs = refs_in(store)
    encode_all(store.own, refs)
    refused = first_reader(store.folder, KEYS[1])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "refused: requires ['encoded']\n"
    for ref in refs:
        if store.own.restore(ref.digest):
            store.own.drop_encoded(ref.digest)
    store.own.say_plain()
    assert first_reader(store.folder, KEYS[1]).stdout == before.stdout


# Hostile encoded objects.

HOSTILE = """
import os, random, sys
from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.objects.encoded_indexes import write_index
from mlstate.objects.verified import open_tensor
from mlstate.parallel import THREADS

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

def read(digest, shape):
    with open_tensor(store, TensorRef(TensorSpec("F32", shape), Digest(digest))) as file:
        file.seek(0)
        file.read(1)

store = FolderObjectStore(sys.argv[1])
small, *large = sys.argv[2:]
chance, shape, refused = random.Random(3), (4 << 20,), 0
read(small, (1 << 20,))  # what is imported and made once, by each thread
before = peak()
for turn in range(12):
    path = store.encoded_path(Digest(large[turn % 2]))
    os.chmod(path, 0o644)
    with open(path, "r+b", buffering=0) as file:
        size = file.seek(0, 2)
        where = chance.choice(((0, 64), (64, size), (size - 256, size)))
        place = chance.randrange(*where)
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << chance.randrange(8)]), place)
        try:
            read(large[turn % 2], shape)
        except MlstateError:
            refused += 1
        os.pwrite(file.fileno(), byte, place)
print((peak() - before - (16 << 20)) / (1 << 20) <= THREADS * 8, refused == 12)
"""


def test_hostile_encoded_objects_take_no_more_memory_than_the_tensor(tmp_path):
    """And 8 MiB for each thread; each is refused by an error of ours."""
    store = FolderObjectStore(tmp_path / "store")
    chance, mib = random.Random(3), 1 << 20
    mixed = b"".join(chance.randbytes(mib // 2) + bytes(mib // 2) for _ in range(16))
    refs = [
        put_tensor(store, TensorSpec("F32", (len(data) // 4,)), data)
        for data in (mixed[: 4 * mib], mixed, bytes(16 * mib))
    ]
    encode_all(store, refs)
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(store.root), *(ref.digest for ref in refs)],
        capture_output=True,
        text=True,
        # What is asked for is counted, not what the C library keeps for each of its arenas.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert (done.stdout, done.stderr) == ("True True\n", "")

"""Bundles go there and back, by tar too; damaged, foreign and hostile ones; pipes and crashes."""

from __future__ import annotations

import gzip
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, Manifest, ManifestStore, MemoryStateStore, StateKey, verify
from mlstate.digests import Digest
from mlstate.errors import (
    FormatError,
    IntegrityError,
    MlstateError,
    ObjectNotFoundError,
    StateExistsError,
    StateNotFoundError,
    UnpinnedStateError,
)
from mlstate.format.encode import encode_state
from mlstate.manifests import StateEntry
from mlstate.operations.bundle import bundle, unbundle
from mlstate.stores.save_request import SaveRequest
from tests.support.models import BytesModel, same
from tests.support.planting import Victim, plant, time_limit

A = StateKey.parse("pytorch.net.a")
B = StateKey.parse("pytorch.net.b")
LONG = StateKey.parse(f"{'b' * 64}.{'a' * 64}.{'e' * 40}.{'t' * 29}")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
FILES = {"config.json": b"{}", "tokenizer/vocab.txt": b"a\nb\n"}


def tensors(seed=0):
    torch.manual_seed(0)
    shared = torch.randn(128, 64)
    torch.manual_seed(seed)
    return {"shared": shared, "own": torch.randn(64, 64, dtype=torch.double), "bias": torch.ones(3)}


@pytest.fixture
def store(store):
    store.save_state_dict(tensors(1), A, files=FILES, meta={"license": "MIT", "n": [1, 2.5]})
    store.save_state_dict(tensors(2), B, files={"again.json": b"{}"})
    return store


@pytest.fixture
def tar(store, tmp_path):
    bundle(store, [A, B], tmp_path / "x.tar")
    return tmp_path / "x.tar"


def members(tar):
    with tarfile.open(tar) as opened:
        return [
            (member, opened.extractfile(member).read() if member.isfile() else b"")
            for member in opened
        ]


def write(path, contents, how=tarfile.PAX_FORMAT):
    """Write a tar of (name or member, content)."""
    with tarfile.open(path, "w", format=how) as opened:
        for member, content in contents:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            if member.isfile():
                member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def check(store, key=A, seed=1, files=FILES):
    assert same(store.load_state_dict(key), tensors(seed))
    assert dict(store.files(key)) == files


def nothing_visible(folder):
    assert LocalStateStore(folder).get_state_keys() == []
    assert not list(Path(folder).glob("states/**/*.toml"))
    assert not list(Path(folder).glob("tmp/*"))
    assert verify(LocalStateStore(folder)).findings == ()


# There and back.


def test_states_go_into_another_store_with_all_that_belongs_to_them(tar, tmp_path):
    assert unbundle(tar, tmp_path / "new") == [A, B]
    store = LocalStateStore(tmp_path / "new")
    assert store.get_state_keys() == [A, B]
    check(store)
    check(store, B, 2, {"again.json": b"{}"})
    assert store.meta(A) == {"license": "MIT", "n": [1, 2.5]}
    assert store.prune(grace_seconds=0).trashed == {}


def test_a_bundle_has_the_store_layout_in_order_each_object_once(store, tar):
    names = [member.name for member, _ in members(tar)]
    assert len(set(names)) == len(names)
    heads = sorted(store.digest(key) for key in (A, B))
    assert names[:5] == [
        "mlstate.toml",
        "states/pytorch/net/a.toml",
        "states/pytorch/net/b.toml",
        *(f"objects/{digest[:2]}/{digest[2:]}" for digest in heads),
    ]
    assert names[5:] == sorted(names[5:])
    assert set(names) == {
        str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()
    }
    for member, content in members(tar):
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
        assert (member.uname, member.gname, member.type) == ("", "", tarfile.REGTYPE)
        if member.name.startswith("objects/"):
            assert Digest.of(content) == member.name[8:].replace("/", "")


def test_the_same_states_make_the_same_bytes(store, tar, tmp_path):
    unbundle(tar, tmp_path / "new")
    bundle(LocalStateStore(tmp_path / "new"), iter([B, A, B]), tmp_path / "y.tar")
    assert (tmp_path / "y.tar").read_bytes() == tar.read_bytes()


def test_tar_makes_a_store_of_it(store, tar, tmp_path):
    (tmp_path / "new").mkdir()
    subprocess.run(["tar", "xf", tar, "-C", tmp_path / "new"], check=True)
    new = LocalStateStore(tmp_path / "new")
    check(new)
    new.save_state_dict(tensors(3), StateKey.parse("pytorch.net.c"))
    assert new.prune(grace_seconds=0).trashed == {}
    assert len(new.get_state_keys()) == 3


@pytest.mark.parametrize("how", [["--format=gnu"], ["--format=pax"], ["--format=ustar"]])
@pytest.mark.parametrize("what", [["."], ["objects", "states", "mlstate.toml"]])
def test_a_tar_of_a_whole_store_will_do(store, tmp_path, how, what):
    """Its members come in any order, folders among them, with ./ before the names."""
    store.prune()
    (store.folder / "trash").mkdir(exist_ok=True)
    if "ustar" not in how[0]:
        store.save_state_dict(tensors(4), LONG)
    tar = tmp_path / "x.tar"
    subprocess.run(["tar", "cf", tar, *how, "-C", store.folder, *what], check=True)
    keys = unbundle(tar, tmp_path / "new")
    assert keys == store.get_state_keys()
    check(LocalStateStore(tmp_path / "new"))


def test_from_a_pipe_the_order_must_be_a_bundles(store, tmp_path):
    first = tmp_path / "first.tar"
    subprocess.run(["tar", "cf", first, "-C", store.folder, "objects", "states"], check=True)
    with first.open("rb") as file, pytest.raises(FormatError, match="does not begin") as caught:
        unbundle(file, tmp_path / "new")
    assert "bundle()" in caught.value.remedy
    late = tmp_path / "late.tar"
    subprocess.run(
        ["tar", "cf", late, "-C", store.folder, "mlstate.toml", "objects", "states"], check=True
    )
    with late.open("rb") as file, pytest.raises(FormatError, match="no state before it names"):
        unbundle(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_names_of_every_length(store, tmp_path):
    store.save_state_dict(tensors(4), LONG, files={"f" * 300: b"1"})
    bundle(store, [LONG], tmp_path / "x.tar")
    (tmp_path / "by_tar").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "x.tar", "-C", tmp_path / "by_tar"], check=True)
    assert unbundle(tmp_path / "x.tar", tmp_path / "new") == [LONG]
    for folder in ("by_tar", "new"):
        check(LocalStateStore(tmp_path / folder), LONG, 4, {"f" * 300: b"1"})


def test_mirrors_are_kept_and_manifest_stores_can_be_bundled(store, tmp_path):
    text = (store.folder / "states/pytorch/net/a.toml").read_text()
    mirrors = 'mirrors = ["https://example.org/a.safetensors"]\n'
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        text.replace("version = 1\n", 'version = 1\nobjects = ["https://example.org/o"]\n').replace(
            "size", f"{mirrors}size"
        )
    )
    view = ManifestStore(manifest, cache=store)
    bundle(view, [A], tmp_path / "x.tar")
    unbundle(tmp_path / "x.tar", tmp_path / "new")
    entry = LocalStateStore(tmp_path / "new").get(A).entry
    assert entry == view.get(A).entry
    assert entry.mirrors[0].urls == ("https://example.org/a.safetensors",)
    assert entry.objects == ("https://example.org/o",)


def test_states_of_opaque_bytes_and_of_nothing(tmp_path):
    store = MemoryStateStore()
    opaque = store.save(BytesModel(b"x" * 20_000), "a")
    empty = encode_state([])  # as older versions saved it
    store.saver.receive(empty, StateEntry(A, None), SaveRequest({}, None, overwrite=False))
    bundle(store, [opaque, A], tmp_path / "x.tar")
    target = MemoryStateStore()
    unbundle(tmp_path / "x.tar", target)
    model = BytesModel()
    target.load(model, opaque)
    assert model.state == b"x" * 20_000
    assert target.load_state_dict(A) == {}


def test_a_checkpoint_of_the_older_layout_is_bundled_as_a_state(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    torch.save(tensors(1), folder / f"{A}.pt")
    bundle(LocalStateStore(folder), [A], tmp_path / "x.tar")
    unbundle(tmp_path / "x.tar", tmp_path / "new")
    check(LocalStateStore(tmp_path / "new"), files={})


def test_progress_is_told(store, tmp_path):
    told = []
    bundle(store, [A], tmp_path / "x.tar", progress=told.append)
    assert told[-1].done == told[-1].total > 50_000
    told = []
    unbundle(tmp_path / "x.tar", tmp_path / "new", progress=told.append)
    assert told[-1].done > 50_000


# Into a store that has something already.


def test_what_is_there_is_reused(store, tar):
    before = {p: p.stat().st_ino for p in store.folder.rglob("*") if p.is_file()}
    assert unbundle(tar, store) == [A, B]
    after = {p: p.stat().st_ino for p in store.folder.rglob("*") if p.is_file()}
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    heads = {store.objects.path(store.digest(key)) for key in (A, B)}
    assert changed <= heads  # a state object is small, and put anew: it might be damaged
    check(store)


def test_what_is_missing_of_an_equal_state_is_brought(store, tar):
    for path in store.folder.glob("objects/*/*"):
        path.unlink()
    unbundle(tar, store)
    check(store)
    damaged = store.objects.path(store.digest(A))
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    unbundle(tar, store)
    check(store)


def test_another_state_under_the_key_stays_unless_told(tar, tmp_path):
    target = LocalStateStore(tmp_path / "new")
    target.save_state_dict(tensors(5), B)
    before = sorted(target.folder.rglob("*"))
    with pytest.raises(StateExistsError, match="another state already") as caught:
        unbundle(tar, target)
    assert caught.value.key == B
    assert sorted(target.folder.rglob("*")) == before
    assert unbundle(tar, target, overwrite=True) == [A, B]
    check(target, B, 2, {"again.json": b"{}"})
    assert unbundle(tar, target) == [A, B]


def test_equal_weights_with_other_files_are_another_state(tar, tmp_path):
    target = LocalStateStore(tmp_path / "new")
    target.save_state_dict(tensors(2), B, files={"again.json": b"[]"})
    with pytest.raises(StateExistsError):
        unbundle(tar, target)
    target.save_state_dict(tensors(2), B, files={"again.json": b"{}"}, overwrite=True)
    unbundle(tar, target)


def test_a_key_that_differs_in_case_only_is_refused(tar, tmp_path):
    target = LocalStateStore(tmp_path / "new")
    target.save_state_dict(tensors(2), StateKey.parse("pytorch.net.B"))
    with pytest.raises(StateExistsError, match="differs only in case"):
        unbundle(tar, target, overwrite=True)
    assert len(target.get_state_keys()) == 1


def test_a_damaged_state_file_is_replaced_only_on_request(tar, tmp_path):
    unbundle(tar, tmp_path / "new")
    path = tmp_path / "new" / "states/pytorch/net/a.toml"
    path.chmod(0o644)
    path.write_text("x")
    with pytest.raises(FormatError):
        unbundle(tar, tmp_path / "new")
    unbundle(tar, tmp_path / "new", overwrite=True)
    check(LocalStateStore(tmp_path / "new"))


# Making a bundle of what is not right.


def test_a_damaged_object_never_gets_into_a_bundle(store, tar):
    before = tar.read_bytes()
    for path in store.folder.glob("objects/*/*"):
        content = path.read_bytes()
        path.chmod(0o644)
        for wrong in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], content + b"x"):
            path.write_bytes(wrong)
            with pytest.raises(MlstateError) as caught:
                bundle(store, [A, B], tar, overwrite=True)
            assert caught.value.path == str(path)
            assert caught.value.key in (A, B)
        path.unlink()
        with pytest.raises(ObjectNotFoundError):
            bundle(store, [A, B], tar, overwrite=True)
        path.write_bytes(content)
    assert tar.read_bytes() == before
    assert [p.name for p in tar.parent.iterdir() if p.is_file()] == ["x.tar"]
    bundle(store, [A, B], tar, overwrite=True)


@pytest.mark.parametrize("keys", [[], A, "pytorch.net.a", ["pytorch.net.a"]])
def test_keys_are_a_list_of_keys(store, tmp_path, keys):
    with pytest.raises(FormatError):
        bundle(store, keys, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_states_that_are_not_there_or_not_pinned_are_refused(store, tmp_path):
    with pytest.raises(StateNotFoundError):
        bundle(store, [A, StateKey.parse("pytorch.net.c")], tmp_path / "x.tar")
    Manifest({A: StateEntry(A, None)}).write(tmp_path / "m.toml")
    with pytest.raises(UnpinnedStateError):
        bundle(ManifestStore(tmp_path / "m.toml", cache=store), [A], tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


# Damaged, foreign and hostile bundles.


@pytest.mark.parametrize("stream", [False, True])
def test_a_bundle_that_is_cut_short_anywhere_is_refused(tar, tmp_path, stream):
    content = tar.read_bytes()
    end = len(content.rstrip(b"\0"))
    rng = random.Random(1)
    cuts = {0, 1, 511, 512, end - 1, end, *(rng.randrange(end) for _ in range(40))}
    cuts |= {512 * rng.randrange(end // 512) for _ in range(20)}
    for cut in sorted(cuts):
        short = tmp_path / "short.tar"
        short.write_bytes(content[:cut])
        with short.open("rb") as file, pytest.raises(IntegrityError, match=r"cut short|missing"):
            unbundle(file if stream else short, tmp_path / "new")
        nothing_visible(tmp_path / "new")
    unbundle(tar, tmp_path / "new")  # what came of the others is no hindrance


def test_no_flipped_byte_goes_unnoticed(tar, tmp_path):
    content = tar.read_bytes()
    rng = random.Random(2)
    places = [rng.randrange(len(content)) for _ in range(100)]
    places += [512 * n + rng.randrange(512) for n in range(20)]
    harmless = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(place)
        try:
            unbundle(io.BytesIO(flipped), folder)
        except MlstateError:
            nothing_visible(folder)
        else:
            harmless += 1  # between the members, or in what is not authenticated: meta
            check(LocalStateStore(folder))
    assert harmless < len(places) / 2


def link(kind, name="objects/aa/b", target="/etc/passwd"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


FOREIGN = {
    "a symbolic link": link(tarfile.SYMTYPE),
    "a hard link": link(tarfile.LNKTYPE, target="mlstate.toml"),
    "a device": link(tarfile.CHRTYPE),
    "a pipe": link(tarfile.FIFOTYPE),
    "a sparse file": link(tarfile.GNUTYPE_SPARSE),
    "a folder above": link(tarfile.DIRTYPE, "../x"),
    "a folder below and above": link(tarfile.DIRTYPE, "objects/../../x"),
    "a folder elsewhere": link(tarfile.DIRTYPE, "/etc/x"),
    "a file above": "../x",
    "a file below and above": "states/../../x/y.toml",
    "a file elsewhere": "/tmp/x",
    "an object above": f"objects/../{'a' * 62}",
    "an object in capitals": f"objects/AB/{'a' * 62}",
    "an object of a short name": f"objects/ab/{'a' * 61}",
    "an object in another folder": f"objects/{'a' * 64}",
    "an object that nothing names": f"objects/ab/{'a' * 62}",
    "a state elsewhere": "states/pytorch/net/x/a.toml",
    "a state without a key": "states/pytorch/net/.toml",
    "another file": "README.md",
    "a temporary": "tmp/x",
    "the settings again": "mlstate.toml",
    "a name with a backslash": "states\\x",
    "an empty name": "",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_does_not_belong_into_a_bundle_is_refused(tar, tmp_path, what, stream):
    contents = members(tar)
    for position in (1, 3, len(contents)):
        bad = write(
            tmp_path / "bad.tar",
            [*contents[:position], (FOREIGN[what], b"version = 1\n"), *contents[position:]],
        )
        with bad.open("rb") as file, pytest.raises(FormatError) as caught:
            unbundle(file if stream else bad, tmp_path / "new")
        assert caught.value.path.startswith(str(bad))
        nothing_visible(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["bad.tar", "new", "store", "x.tar"],
        ["bad.tar", "store", "x.tar"],
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_member_twice_is_refused(tar, tmp_path, stream):
    contents = members(tar)
    for n in range(len(contents)):
        bad = write(tmp_path / "bad.tar", [*contents[: n + 1], contents[n], *contents[n + 1 :]])
        with bad.open("rb") as file, pytest.raises(FormatError, match="twice"):
            unbundle(file if stream else bad, tmp_path / "new")
        nothing_visible(tmp_path / "new")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reused", [False, True])
def test_an_object_that_is_missing_or_wrong_is_refused(tar, tmp_path, stream, reused):
    contents = members(tar)
    new = tmp_path / "new"
    if reused:  # the objects are there, the states are not
        unbundle(tar, new)
        for path in new.glob("states/*/*/*"):
            path.unlink()
    for n, (member, content) in enumerate(contents):
        if not member.name.startswith("objects/"):
            continue
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        for wrong in (None, flipped, content[:-1], content + b"x", b""):
            some = [] if wrong is None else [(member.name, wrong)]
            bad = write(tmp_path / "bad.tar", [*contents[:n], *some, *contents[n + 1 :]])
            with bad.open("rb") as file, pytest.raises((IntegrityError, FormatError)) as caught:
                unbundle(file if stream else bad, new)
            assert isinstance(caught.value, IntegrityError) or (wrong is None and stream)
            nothing_visible(new)


def test_a_state_without_an_object_store_entry_is_refused(tar, tmp_path):
    """State files that say what cannot be."""
    contents = members(tar)
    name = "states/pytorch/net/a.toml"
    n, text = next((n, c.decode()) for n, (m, c) in enumerate(contents) if m.name == name)
    for bad in (
        "x",
        "version = 1\n",
        text.replace("net.a", "net.c"),
        text.replace("blake3 = ", "sha256 = "),
        text.replace("size = ", "size = 1"),
        text.replace("version = 1", "version = 2"),
        text.replace("config.json", "../config.json"),
    ):
        assert bad != text
        path = write(
            tmp_path / "bad.tar", [*contents[:n], (name, bad.encode()), *contents[n + 1 :]]
        )
        with pytest.raises(MlstateError):
            unbundle(path, tmp_path / "new")
        nothing_visible(tmp_path / "new")


@pytest.mark.parametrize(
    "settings", [b"", b"version = 2\n", b'version = 1\nrequires = ["packs"]\n', b"\xff"]
)
def test_settings_of_a_newer_store_are_refused(tar, tmp_path, settings):
    bad = write(tmp_path / "bad.tar", [("mlstate.toml", settings), *members(tar)[1:]])
    with pytest.raises(FormatError):
        unbundle(bad, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_bundle_is_refused(tar, tmp_path, stream):
    others = {
        "compressed": gzip.compress(tar.read_bytes()),
        "no tar": b"x" * 5000,
        "an empty tar": bytes(10240),
        "no states": write(tmp_path / "n.tar", members(tar)[:1]).read_bytes(),
        "other files": write(tmp_path / "o.tar", [("README.md", b"x")]).read_bytes(),
        "no settings": write(tmp_path / "s.tar", members(tar)[1:]).read_bytes(),
    }
    for what, content in others.items():
        path = tmp_path / "bad.tar"
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(FormatError) as caught:
            unbundle(file if stream else path, tmp_path / "new")
        assert caught.value.remedy, what
        assert not (tmp_path / "new").exists()


def header(name, size, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("size", [1 << 33, 1 << 60, (1 << 60) + 1, 1 << 80])
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_header_claims_is_not_believed(store, tar, tmp_path, size, stream):
    digest = store.digest(A)
    name = f"objects/{digest[:2]}/{digest[2:]}"
    front = b"".join(
        header(member.name, len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")
        for member, content in members(tar)[:3]
    )
    for bad in (
        front + header(name, size),
        front + header("x", size, tarfile.GNUTYPE_LONGNAME),
        front + header("x", size, tarfile.XHDTYPE),
        front + header("x", size, tarfile.XGLTYPE),
        header("mlstate.toml", size),
        header("mlstate.toml", 12)
        + b"version = 1\n".ljust(512, b"\0")
        + header("states/pytorch/net/a.toml", size),
    ):
        path = tmp_path / "bad.tar"
        path.write_bytes(bad + bytes(2048))
        with path.open("rb") as file, pytest.raises((IntegrityError, FormatError)):
            unbundle(file if stream else path, tmp_path / "new")
        nothing_visible(tmp_path / "new")


@pytest.mark.parametrize(
    "pax",
    [
        b"12 path=x",
        b"9999999 path=x\n",
        b"x path=y\n",
        b"5 x=\n" + b"0 =\n",
        b"-5 path=y\n",
        b"17 size=99999999999999999999999\n",
        b"12 size=-100\n",
        b"25 GNU.sparse.major=1\n23 path=mlstate.toml\n",
    ],
)
def test_headers_before_headers_are_not_believed_either(tar, tmp_path, pax):
    bad = header("x", len(pax), tarfile.XHDTYPE) + pax.ljust(512, b"\0") + tar.read_bytes()
    with pytest.raises((FormatError, IntegrityError)):
        unbundle(io.BytesIO(bad), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Pipes, crashes, memory.


def run(program, *arguments, **options):
    code = f"from mlstate.operations.bundle import bundle, unbundle\nimport sys\n{program}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=ENVIRONMENT, **options
    )


def test_a_pipe_is_read_as_it_comes_and_needs_no_torch(tar, tmp_path):
    program = "print(*unbundle('-', sys.argv[1])); assert 'torch' not in sys.modules"
    with subprocess.Popen(["cat", tar], stdout=subprocess.PIPE) as cat:
        process = run(program, tmp_path / "new", stdin=cat.stdout, stdout=subprocess.PIPE)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert told.decode() == f"{A} {B}\n"
    check(LocalStateStore(tmp_path / "new"))


def test_kill_9_at_any_moment_leaves_no_half_state_and_again_completes(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    state = {f"w{n}": torch.full((1 << 20,), n) for n in range(12)}
    store.save_state_dict(state, A)
    tar, new = tmp_path / "x.tar", tmp_path / "new"
    bundle(store, [A], tar)
    rng = random.Random(3)
    program = "print('ready', flush=True); unbundle(sys.argv[1], sys.argv[2])"
    for _ in range(5):
        with run(program, tar, new, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        found = LocalStateStore(new)
        for key in found.get_state_keys():
            assert same(found.load_state_dict(key), state)
    unbundle(tar, new)
    assert same(LocalStateStore(new).load_state_dict(A), state)


def test_several_processes_may_read_one_bundle(tar, tmp_path):
    program = "unbundle(sys.argv[1], sys.argv[2])"
    processes = [run(program, tar, tmp_path / "new") for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    store = LocalStateStore(tmp_path / "new")
    assert store.get_state_keys() == [A, B]
    check(store)


def test_memory_is_bounded_whatever_the_size(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    big = torch.arange(40 << 20, dtype=torch.int32)
    store.save_state_dict({"a": big}, A, files={"big.bin": big.numpy().tobytes()[:-1]})
    program = (
        "import resource\n"
        "from mlstate import LocalStateStore, StateKey\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "store, key = LocalStateStore(sys.argv[1]), StateKey.parse('pytorch.net.a')\n"
        "store.get(key); import tomlkit; before = peak()\n"
        "bundle(store, [key], sys.argv[2]); unbundle(sys.argv[2], sys.argv[3])\n"
        "print(peak() - before)\n"
    )
    process = run(
        program, store.folder, tmp_path / "x.tar", tmp_path / "new", stdout=subprocess.PIPE
    )
    told, _ = process.communicate(timeout=120)
    assert int(told) < 40  # MB, of 160 and 160
    assert LocalStateStore(tmp_path / "new").get_state_keys() == [A]


def test_what_is_there_is_not_replaced_unless_asked_for(store, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(StateExistsError, match="there already"):
        bundle(store, [A], tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "mine"
    bundle(store, [A], tmp_path / "precious.txt", overwrite=True)
    assert unbundle(tmp_path / "precious.txt", tmp_path / "new") == [A]
    with pytest.raises(StateExistsError, match="a folder"):
        bundle(store, [A], tmp_path / "new", overwrite=True)
    bundle(store, [A], tmp_path / "deep" / "er" / "x.tar")  # folders are made


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "socket", "loop"])
def test_a_bundle_that_is_no_file_is_not_waited_for(store, tmp_path, kind):
    plant(kind, tmp_path / "x.tar", Victim(tmp_path / "home"))
    with time_limit(20), pytest.raises(FormatError, match="no bundle"):
        unbundle(tmp_path / "x.tar", store)


def test_what_a_bundle_may_not_name_is_not_stored(store, tmp_path):
    mirrors = ["/etc/hostname", "file:///etc/hostname", "http://10.0.0.1/x", "s3://victim/x"]
    allowed = "https://weights.example/x"
    bundle(store, [A], tmp_path / "x.tar")
    contents = []
    for member, content in members(tmp_path / "x.tar"):
        if member.name.endswith("a.toml"):
            listed = ", ".join(f'"{mirror}"' for mirror in [*mirrors, allowed, "later://victim/x"])
            listed += ', {url = "file:///etc/hostname", of_a_later_version = 1}'
            text = content.decode().replace("size", f"mirrors = [{listed}]\nsize", 1)
            content = f'objects = ["/srv/objects", "{allowed}"]\n{text}'.encode()
        contents.append((member, content))
    write(tmp_path / "hostile.tar", contents)
    unbundle(tmp_path / "hostile.tar", tmp_path / "target")
    target = LocalStateStore(tmp_path / "target")
    check(target)
    entry = target.get(A).entry
    assert [mirror.urls for mirror in entry.mirrors] == [(allowed,)]
    assert entry.objects == (allowed,)

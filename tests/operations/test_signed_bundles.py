"""Bundles of signed states: a signature goes along, and is required where it is needed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, StateKey
from mlstate.errors import FormatError, SignatureError
from mlstate.operations.bundle import bundle, unbundle
from mlstate.signatures.inline import is_signed
from tests.support.commands import Shell
from tests.support.signing import Key, needs_ssh_keygen

pytestmark = needs_ssh_keygen

ALICE = "alice@lab.example"
A, B = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")
STATE_FILE = "states/pytorch/net/a.toml"


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return Key.make(tmp_path_factory.mktemp("keys"), ALICE)


@pytest.fixture
def allowed(tmp_path, key):
    path = tmp_path / "allowed_signers"
    path.write_text(key.line())
    return path


def weights(value=1.0):
    return {"weight": torch.full((3,), value)}


def saved(folder, *keys, value=1.0, **options):
    store = LocalStateStore(folder, **options)
    for key in keys:
        store.save_state_dict(weights(value), key, overwrite=True)
    return store


def texts(tar):
    with tarfile.open(tar) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened if m.name.endswith(".toml")}


def rewritten(tar, target, change):
    """A tar with another content of its state files."""
    with tarfile.open(tar) as source, tarfile.open(target, "w") as copy:
        for member in source:
            data = source.extractfile(member).read()
            if member.name.startswith("states/"):
                data = change(data)
                member.size = len(data)
            copy.addfile(member, io.BytesIO(data))
    return target


def test_a_signature_goes_along(tmp_path, key, allowed):
    store = saved(tmp_path / "store", A, signing_key=key.path)
    bundle(store, [A], tmp_path / "x.tar")
    original = (tmp_path / "store" / STATE_FILE).read_bytes()
    assert texts(tmp_path / "x.tar")[STATE_FILE] == original
    there = LocalStateStore(tmp_path / "there", require_signature=allowed)
    assert unbundle(tmp_path / "x.tar", there, require_signature=allowed) == [A]
    assert there.load_state_dict(A)
    assert (tmp_path / "there" / STATE_FILE).read_bytes() == original


def test_one_that_lies_beside_goes_along_at_the_end(tmp_path, key, allowed):
    store = saved(tmp_path / "store", A)
    file = tmp_path / "store" / STATE_FILE
    file.with_name("a.toml.sig").write_bytes(key.sign(file.read_bytes()))
    bundle(store, [A], tmp_path / "x.tar")
    assert unbundle(tmp_path / "x.tar", tmp_path / "there", require_signature=allowed) == [A]
    assert LocalStateStore(tmp_path / "there", require_signature=allowed).load_state_dict(A)


@pytest.mark.parametrize("kind", ["damaged", "fifo"])
def test_a_signature_that_is_none_goes_nowhere(tmp_path, key, allowed, kind):
    """Who requires none reads and bundles such a state as ever, and the others refuse it."""
    store = saved(tmp_path / "store", A)
    file = tmp_path / "store" / STATE_FILE
    if kind == "fifo":
        os.mkfifo(file.with_name("a.toml.sig"))
    else:
        data = file.read_bytes() + b"# -----BEGIN SSH SIGNATURE-----\n# x\n"
        file.unlink()
        file.write_bytes(data)
    bundle(store, [A], tmp_path / "x.tar")
    assert not is_signed(texts(tmp_path / "x.tar")[STATE_FILE])
    assert unbundle(tmp_path / "x.tar", tmp_path / "there") == [A]
    with pytest.raises(SignatureError):
        unbundle(tmp_path / "x.tar", tmp_path / "there", require_signature=allowed)
    with pytest.raises(SignatureError):
        LocalStateStore(tmp_path / "store", require_signature=allowed).digest(A)


def test_a_bundle_can_be_signed_as_it_is_made(tmp_path, key, allowed):
    store = saved(tmp_path / "store", A, B)
    bundle(store, [A, B], tmp_path / "x.tar", signing_key=key.path)
    assert not is_signed((tmp_path / "store" / STATE_FILE).read_bytes())
    assert unbundle(tmp_path / "x.tar", tmp_path / "there", require_signature=allowed) == [A, B]


@pytest.mark.parametrize("who", ["bundle", "target", "setting"])
def test_nothing_comes_of_a_bundle_that_is_not_signed(tmp_path, key, allowed, monkeypatch, who):
    store = saved(tmp_path / "store", A, signing_key=key.path)
    saved(tmp_path / "store", B)
    bundle(store, [A, B], tmp_path / "x.tar")
    if who == "setting":
        monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(allowed))
    target = LocalStateStore(
        tmp_path / "there", require_signature=allowed if who == "target" else False
    )
    with pytest.raises(SignatureError, match="not signed") as caught:
        unbundle(tmp_path / "x.tar", target, require_signature=allowed if who == "bundle" else None)
    assert caught.value.key == B
    assert target.get_state_keys() == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data + b"#\n", SignatureError),
        (lambda data: data.replace(b"size = 12", b"size = 13"), SignatureError),
        (lambda data: data.replace(b"net.a", b"net.b"), FormatError),
    ],
)
def test_a_state_file_that_was_changed_is_refused(tmp_path, key, allowed, change, error):
    store = saved(tmp_path / "store", A, signing_key=key.path)
    bundle(store, [A], tmp_path / "x.tar")
    changed = rewritten(tmp_path / "x.tar", tmp_path / "y.tar", change)
    with pytest.raises((error, SignatureError)):
        unbundle(changed, tmp_path / "there", require_signature=allowed)
    assert LocalStateStore(tmp_path / "there").get_state_keys() == []


def test_an_older_bundle_is_refused_where_a_newer_state_was_seen(tmp_path, key, allowed):
    store = saved(tmp_path / "store", A, signing_key=key.path)
    bundle(store, [A], tmp_path / "old.tar")
    saved(tmp_path / "store", A, value=2, signing_key=key.path)
    bundle(store, [A], tmp_path / "new.tar")
    there = LocalStateStore(tmp_path / "there", require_signature=allowed)
    unbundle(tmp_path / "new.tar", there)
    with pytest.raises(SignatureError, match="older"):
        unbundle(tmp_path / "old.tar", there, overwrite=True)
    assert there.load_state_dict(A)["weight"][0] == 2


def test_the_same_state_without_a_signature_gets_that_of_the_bundle(tmp_path, key, allowed):
    store = saved(tmp_path / "store", A, signing_key=key.path)
    bundle(store, [A], tmp_path / "x.tar")
    there = saved(tmp_path / "there", A)
    assert unbundle(tmp_path / "x.tar", there, require_signature=allowed) == [A]
    assert LocalStateStore(tmp_path / "there", require_signature=allowed).load_state_dict(A)


def test_the_cache_says_what_came_into_it_unsigned(tmp_path, key, allowed, monkeypatch):
    """A bundle goes into the cache; later signatures are required of what lies there."""
    store = saved(tmp_path / "store", A)
    bundle(store, [A], tmp_path / "x.tar")
    cache = tmp_path / "cache"
    shell = Shell(tmp_path, {"MLSTATE_CACHE": str(cache)})
    assert shell.lines("unbundle", "x.tar") == [str(A)]
    careful = Shell(tmp_path, {"MLSTATE_REQUIRE_SIGNATURE": str(allowed)})
    _, line = careful.lines("ls", cache)
    assert line.endswith("unsigned")
    assert careful.json("ls", cache)["states"][0]["unsigned"] is True
    (finding,) = careful.json("verify", "--all", "--store", cache, code=1)["findings"]
    assert finding["kind"] == "unsigned"
    assert "not signed" in careful.complaint("unbundle", "x.tar", "--store", "there", code=4)


def test_the_commands(tmp_path, key, allowed):
    saved(tmp_path / "store", A)
    shell = Shell(tmp_path, {"MLSTATE_REQUIRE_SIGNATURE": str(allowed)})
    assert "not signed" in shell.complaint("bundle", "--all", "-s", "store", "-o", "x.tar", code=4)
    (path,) = shell.lines("sign", "store", A, "--key", key.path)
    assert path == f"store/{STATE_FILE}"
    assert shell.lines("verify-signature", "store") == [f"store/{STATE_FILE}  signed by {ALICE}"]
    (signed,) = shell.json("verify-signature", "store", A)["signatures"]
    assert (signed["key"], signed["signer"]) == (str(A), ALICE)
    shell.lines("bundle", "--all", "--store", "store", "-o", "x.tar", "--key", key.path)
    assert shell.lines("unbundle", "x.tar", "--store", "there") == [str(A)]
    said = shell.complaint("sign", "store", code=2)
    assert "--key FILE" in said
    assert "MLSTATE_SIGNING_KEY" in said
    assert "as a whole" in shell.complaint("sign", write_manifest(tmp_path), A, code=2)


def write_manifest(folder: Path) -> Path:
    (folder / "weights.toml").write_text("version = 1\n")
    return folder / "weights.toml"

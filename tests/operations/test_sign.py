"""`sign` and `verify_signature`, and their commands: keys in files and in an agent."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest

from mlstate import Manifest, ManifestStore, sign, verify_signature
from mlstate.errors import FormatError, ManifestError, ManifestNotFoundError, SignatureError
from mlstate.manifests import keygen
from tests.support.commands import PROGRAM, Shell
from tests.support.planting import time_limit
from tests.support.signing import KINDS, Key, needs_ssh_keygen, ssh_accepts

pytestmark = needs_ssh_keygen

ALICE = "alice@lab.example"
TEXT = 'version = 1\nserial = 4\n\n[states."p.net.a"]\nblake3 = "' + "1" * 64 + '"\n'


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return Key.make(tmp_path_factory.mktemp("key"), ALICE)


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def allowed(tmp_path, key):
    path = tmp_path / "allowed_signers"
    path.write_text(key.line('namespaces="mlstate"'))
    return path


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_signed_here_is_good_here_and_for_ssh_keygen(kind, manifest, tmp_path):
    key = Key.make(tmp_path, ALICE, kind)
    (done,) = sign(manifest, key.path)
    signature = tmp_path / "weights.toml.sig"
    assert ssh_accepts(TEXT.encode(), signature.read_bytes(), key.line(), ALICE, tmp_path)
    (tmp_path / "allowed").write_text(key.line())
    (found,) = verify_signature(manifest, allowed_signers=tmp_path / "allowed")
    assert (found.signer, found.states, found.serial) == (ALICE, 1, 4)
    assert (found.path, found.fingerprint) == (done.path, done.fingerprint)
    assert done.signer is None
    assert ManifestStore(manifest, require_signature=tmp_path / "allowed").get_state_keys()


def test_a_key_of_an_agent_signs(manifest, tmp_path, key, allowed, monkeypatch):
    socket = tmp_path / "s"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        try:
            while not socket.exists():
                assert agent.poll() is None
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
            subprocess.run(["ssh-add", "-q", key.path], check=True, capture_output=True)
            public = tmp_path / "alice.pub"  # the private key is not beside it
            public.write_text(key.public)
            sign(manifest, public)
        finally:
            agent.terminate()
    assert verify_signature(manifest, allowed_signers=allowed)


def test_each_file_of_a_folder_is_signed(tmp_path, key, allowed):
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("a.toml", "b.toml"):
        (folder / name).write_text("version = 1\n")
    assert [done.path for done in sign(folder, key.path)] == [str(folder / "a.toml"),
                                                              str(folder / "b.toml")]  # fmt: skip
    assert len(verify_signature(folder, allowed_signers=allowed)) == 2


def test_a_signature_is_replaced_whole_and_readable_for_others(manifest, key, tmp_path):
    signature = tmp_path / "weights.toml.sig"
    signature.write_text("an old one")
    before = os.umask(0o022)
    try:
        sign(manifest, key.path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(signature.stat().st_mode) == 0o644
    assert {path.name for path in tmp_path.iterdir()} == {"weights.toml", "weights.toml.sig"}


def test_what_is_no_manifest_is_not_signed(tmp_path, key):
    for name, text in (("bad.toml", "nonsense"), ("serial.toml", 'version = 1\nserial = "x"')):
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError):
            sign(tmp_path / name, key.path)
        assert not (tmp_path / f"{name}.sig").exists()
    with pytest.raises(ManifestNotFoundError):
        sign(tmp_path / "none.toml", key.path)


def test_a_key_that_is_none_leaves_all_as_it_was(manifest, tmp_path):
    with pytest.raises(SignatureError, match="did not sign") as caught:
        sign(manifest, tmp_path / "no-key")
    assert "No such file" in caught.value.found
    assert [path.name for path in tmp_path.iterdir()] == ["weights.toml"]


def test_without_ssh_keygen_it_is_named(manifest, key, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SignatureError, match="cannot be run") as caught:
        sign(manifest, key.path)
    assert "openssh" in caught.value.remedy


def test_a_signature_that_is_not_good_is_not_written(manifest, key, monkeypatch, tmp_path):
    other = key.sign(b"something else")
    monkeypatch.setattr(keygen, "_run", lambda *_: other)
    with pytest.raises(SignatureError, match="not what was signed"):
        sign(manifest, key.path)
    assert not (tmp_path / "weights.toml.sig").exists()


def test_signing_needs_no_cryptography(manifest, key, monkeypatch, allowed):
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "cryptography", None)
        sign(manifest, key.path)
    assert verify_signature(manifest, allowed_signers=allowed)


def test_who_may_sign_comes_from_the_setting(manifest, key, allowed, monkeypatch):
    sign(manifest, key.path)
    with pytest.raises(FormatError, match="those who may sign"):
        verify_signature(manifest)
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(allowed))
    assert verify_signature(manifest)[0].signer == ALICE


def test_a_signer_can_be_asked_for(manifest, key, allowed):
    sign(manifest, key.path)
    assert verify_signature(manifest, allowed_signers=allowed, signer=ALICE)
    with pytest.raises(SignatureError) as caught:
        verify_signature(manifest, allowed_signers=allowed, signer="bob@lab.example")
    assert caught.value.signer == ALICE


def test_revoked_keys_can_be_given(manifest, key, allowed, tmp_path):
    sign(manifest, key.path)
    (tmp_path / "revoked").write_text(key.public)
    with pytest.raises(SignatureError, match="revoked"):
        verify_signature(manifest, allowed_signers=allowed, revoked_keys=tmp_path / "revoked")


def test_the_commands(shell, manifest, key, allowed):
    done = shell("sign", "weights.toml", "--key", key.path)
    assert done.stdout == "weights.toml.sig\n"
    assert "1 state, serial 4, signed with ED25519 key SHA256:" in done.stderr
    (signed,) = shell.json("sign", "weights.toml", "--key", key.path)["signatures"]
    assert signed["signer"] is None
    check = ("verify-signature", "weights.toml", "--allowed-signers", "allowed_signers")
    assert shell.lines(*check) == [f"weights.toml  signed by {ALICE}"]
    (found,) = shell.json(*check)["signatures"]
    assert found == {**signed, "signer": ALICE}
    assert "bob" in shell.complaint(*check, "--signer", "bob", code=4)
    manifest.write_text(TEXT + "#\n")
    assert "not what was signed" in shell.complaint(*check, code=4)
    assert "--allowed-signers FILE" in shell.complaint("verify-signature", "weights.toml", code=2)


def test_on_a_terminal_ssh_keygen_speaks_for_itself(manifest, key, allowed):
    ours, theirs = os.openpty()
    try:
        command = [PROGRAM, "sign", manifest, "--key", key.path]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=False)
        said = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert done.stdout == f"{manifest}.sig\n".encode()
    assert "Signing" in said
    assert verify_signature(manifest, allowed_signers=allowed)


def test_commands_refuse_what_is_not_signed_where_it_has_to_be(tmp_path, manifest, allowed, key):
    shell = Shell(tmp_path, {"MLSTATE_REQUIRE_SIGNATURE": "allowed_signers"})
    for command in (
        ["ls", "weights.toml"],
        ["fetch", "--all", "--store", "weights.toml"],
        ["show", "p.net.a", "--store", "weights.toml"],
        ["verify", "--all", "--store", "weights.toml"],
    ):
        said = shell.complaint(*command, code=4)
        assert "not signed" in said
        assert "mlstate sign FILE.toml --key KEY" in said
    sign(manifest, key.path)
    assert len(shell.lines("ls", "weights.toml")) == 2
    assert shell.lines("verify-signature", "weights.toml")
    assert Manifest.read(manifest)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_key_that_is_no_file_is_not_waited_for(manifest, tmp_path, kind):
    key = tmp_path / "key"
    if kind == "pipe":
        os.mkfifo(key)
    else:
        key.write_bytes(b"")
        os.truncate(key, 1 << 40)
    with time_limit(20), pytest.raises(SignatureError, match="no file of a key"):
        sign(manifest, key)
    assert not (tmp_path / "weights.toml.sig").exists()

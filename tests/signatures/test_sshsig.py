"""Signatures both ways with a real ssh-keygen: what it signs we accept, what we accept it does."""

from __future__ import annotations

import base64
import hashlib
import random
import struct
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import SignatureError
from mlstate.signatures.allowed import parse_allowed_signers
from mlstate.signatures.check import Signers
from mlstate.signatures.revoked import parse_revoked_keys
from mlstate.signatures.sshsig import MAX_SIGNATURE, parse_signature
from tests.support.signing import KINDS, Key, needs_ssh_keygen, run_keygen, ssh_accepts

pytestmark = needs_ssh_keygen

DATA = b"version = 1\n"
ALICE = "alice@lab.example"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {kind: Key.make(folder, ALICE, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def key(keys):
    return keys["ed25519"]


@pytest.fixture(scope="module")
def signature(key):
    return key.sign(DATA)


def signers(allowed, revoked="", signer=None):
    return Signers(
        parse_allowed_signers(allowed.encode(), "allowed"),
        parse_revoked_keys(revoked.encode(), "revoked"),
        signer,
        "allowed",
    )


def refused(check, *arguments, **options):
    with pytest.raises(SignatureError) as caught:
        check.check(*arguments, "m.toml.sig", **options)
    assert caught.value.path == "m.toml.sig"
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_what_ssh_keygen_signs_is_accepted(keys, kind, tmp_path):
    key = keys[kind]
    for data in (b"", DATA, bytes(100_000)):
        signature = key.sign(data)
        assert ssh_accepts(data, signature, key.line(), ALICE, tmp_path)
        signer, public = signers(key.line()).check(data, signature, "x")
        assert signer == ALICE
        assert public.fingerprint in run_keygen("-lf", key.path).stdout.decode()
        refused(signers(key.line()), data + b" ", signature)


@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_both_hashes_are_accepted(key, hash_name):
    signature = key.sign(DATA, "mlstate", "-O", f"hashalg={hash_name}")
    assert parse_signature(signature, "x").hash_name == hash_name
    assert signers(key.line()).check(DATA, signature, "x")[0] == ALICE


def test_a_short_rsa_key_is_refused(tmp_path):
    path = tmp_path / "short"
    done = run_keygen("-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", path)
    if done.returncode:
        pytest.skip("this ssh-keygen makes no such keys")
    key = Key(path, ALICE)
    assert "1024 bits" in refused(signers(key.line()), DATA, key.sign(DATA)).found


def test_tampered_bytes_are_refused(key, signature):
    error = refused(signers(key.line()), DATA.replace(b"1", b"2"), signature)
    assert "not what was signed" in error.message
    assert error.signer == ALICE
    assert error.fingerprint.startswith("SHA256:")
    assert f"signed by: {ALICE} SHA256:" in str(error)


def test_another_namespace_is_refused(key):
    error = refused(signers(key.line()), DATA, key.sign(DATA, "git"))
    assert "another purpose" in error.message
    assert "git" in error.found


def test_a_key_that_is_not_allowed_is_refused(keys, signature):
    other = keys["ecdsa256"]
    assert "not allowed" in refused(signers(other.line()), DATA, signature).message
    assert "not allowed" in refused(signers(""), DATA, signature).message


ALLOWED = {
    "plain": ("", True),
    "namespace": ('namespaces="mlstate"', True),
    "namespaces": ('namespaces="git,ml*"', True),
    "other-namespace": ('namespaces="git"', False),
    "negated": ('namespaces="*,!mlstate"', False),
    "valid": ('valid-after="20200101",valid-before="29990101Z"', True),
    "expired": ('valid-before="20200101Z"', False),
    "not-yet": ('valid-after="29990101Z"', False),
}


@pytest.mark.parametrize(("options", "good"), ALLOWED.values(), ids=ALLOWED)
def test_options_count_as_for_ssh_keygen(key, signature, options, good, tmp_path):
    line = key.line(options)
    assert ssh_accepts(DATA, signature, line, ALICE, tmp_path) is good
    if good:
        assert signers(line).check(DATA, signature, "x")[0] == ALICE
    else:
        error = refused(signers(line), DATA, signature)
        assert "may not sign this" in error.message
        assert error.signer == ALICE
        assert error.found


@pytest.mark.parametrize(
    ("principals", "signer", "good"),
    [
        (ALICE, ALICE, True),
        (ALICE, "bob@lab.example", False),
        (f"bob@lab.example,{ALICE}", ALICE, True),
        ("*@lab.example", ALICE, True),
        (f"*@lab.example,!{ALICE}", ALICE, False),
        ("*@other.example", ALICE, False),
    ],
)
def test_a_principal_counts_as_for_ssh(key, signature, tmp_path, *, principals, signer, good):
    line = f"{principals} {key.public}\n"
    assert ssh_accepts(DATA, signature, line, signer, tmp_path) is good
    check = signers(line, signer=signer)
    if good:
        assert check.check(DATA, signature, "x")[0] == signer
    else:
        assert "may not sign this" in refused(check, DATA, signature).message


def test_a_second_line_for_a_key_counts_where_the_first_has_expired(key, signature):
    text = key.line('valid-before="20200101Z"') + key.line('valid-before="29990101Z"')
    assert signers(text).check(DATA, signature, "x")[0] == ALICE


def test_a_key_expires_when_its_time_comes(key, signature):
    now = time.time()
    check = signers(key.line('valid-before="20300101Z"'))
    assert check.check(DATA, signature, "x", moment=now)
    assert "was good until 2030-01-01" in refused(check, DATA, signature, moment=now * 2).found


def test_a_revoked_key_is_refused_whatever_allows_it(key, signature, tmp_path):
    revoked = f"# stolen\n{key.public}\n"
    error = refused(signers(key.line(), revoked), DATA, signature)
    assert "revoked" in error.message
    (tmp_path / "revoked").write_text(revoked)
    assert not ssh_accepts(DATA, signature, key.line(), ALICE, tmp_path, "-r", tmp_path / "revoked")


@pytest.mark.parametrize("what", ["key", "sha1", "sha256", "hash", "another"])
def test_a_krl_counts_as_for_ssh_keygen(keys, key, signature, tmp_path, what):
    (tmp_path / "key.pub").write_text(key.public + "\n")
    (tmp_path / "another.pub").write_text(keys["ecdsa256"].public + "\n")
    fingerprint = run_keygen("-lf", tmp_path / "key.pub").stdout.decode().split()[1]
    (tmp_path / "spec").write_text(
        {"hash": f"hash: {fingerprint}\n"}.get(what, f"{what}: {key.public}\n")
    )
    source = {"key": "key.pub", "another": "another.pub"}.get(what, "spec")
    krl = tmp_path / "krl"
    done = run_keygen("-q", "-k", "-f", krl, tmp_path / source)
    assert done.returncode == 0, done.stderr
    check = Signers(
        parse_allowed_signers(key.line().encode(), "allowed"),
        parse_revoked_keys(krl.read_bytes(), "krl"),
    )
    good = what == "another"
    assert ssh_accepts(DATA, signature, key.line(), ALICE, tmp_path, "-r", krl) is good
    if good:
        assert check.check(DATA, signature, "x")
    else:
        assert "revoked" in refused(check, DATA, signature).message


def test_rsa_with_sha256_is_accepted_as_by_ssh_keygen(keys, tmp_path):
    """An agent may sign so; ssh-keygen itself takes SHA-512."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding

    key = keys["rsa2048"]
    private = serialization.load_ssh_private_key(key.path.read_bytes(), None)
    hashed = hashlib.sha512(DATA).digest()
    to_sign = b"SSHSIG" + b"".join(map(string, [b"mlstate", b"", b"sha512", hashed]))
    blob = base64.b64decode(key.public.split()[1])
    for name, hash_, good in (
        (b"rsa-sha2-256", hashes.SHA256(), True),
        (b"rsa-sha2-512", hashes.SHA256(), False),
        (b"ssh-rsa", hashes.SHA1(), False),
    ):
        raw = private.sign(to_sign, padding.PKCS1v15(), hash_)
        file = armoured(blob, string(name) + string(raw))
        assert ssh_accepts(DATA, file, key.line(), ALICE, tmp_path) is good
        if good:
            assert signers(key.line()).check(DATA, file, "x")
        else:
            refused(signers(key.line()), DATA, file)


def test_a_certificate_is_refused_clearly(tmp_path):
    authority, key = Key.make(tmp_path, "ca"), Key.make(tmp_path, ALICE, "ecdsa256")
    run_keygen("-q", "-s", authority.path, "-I", "id", "-n", ALICE, f"{key.path}.pub")
    certificate = Key(tmp_path / f"{key.path.name}-cert", ALICE)
    done = run_keygen("-Y", "sign", "-n", "mlstate", "-f", f"{certificate.path}.pub", data=DATA)
    if done.returncode:
        pytest.skip("this ssh-keygen signs with certificates by an agent only")
    error = refused(signers(certificate.line()), DATA, done.stdout)
    assert "certificates are not supported" in error.message


def string(data):
    return struct.pack(">I", len(data)) + data


def armoured(key_blob, signature, namespace=b"mlstate"):
    fields = [key_blob, namespace, b"", b"sha512", signature]
    blob = b"SSHSIG" + struct.pack(">I", 1) + b"".join(map(string, fields))
    text = base64.b64encode(blob).decode()
    return f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n".encode()


def mpint(number):
    return string(number.to_bytes(number.bit_length() // 8 + 1))


def device_signature(kind, data, application=b"ssh:", flags=1):
    """A signature as a hardware key makes it: the line for allowed signers, and the file."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

    hashed = hashlib.sha512(data).digest()
    to_sign = b"SSHSIG" + b"".join(map(string, [b"mlstate", b"", b"sha512", hashed]))
    tail = bytes([flags]) + struct.pack(">I", 7)
    by_device = hashlib.sha256(application).digest() + tail + hashlib.sha256(to_sign).digest()
    name = f"{kind}@openssh.com".encode()
    if kind == "sk-ssh-ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
        public = string(private.public_key().public_bytes_raw())
        raw = private.sign(by_device)
    else:
        own = ec.generate_private_key(ec.SECP256R1())
        form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        public = string(b"nistp256") + string(own.public_key().public_bytes(*form))
        r, s = utils.decode_dss_signature(own.sign(by_device, ec.ECDSA(hashes.SHA256())))
        raw = mpint(r) + mpint(s)
    blob = string(name) + public + string(application)
    line = f"{ALICE} {name.decode()} {base64.b64encode(blob).decode()}\n"
    return line, armoured(blob, string(name) + string(raw) + tail)


@pytest.mark.parametrize("flags", [0, 1, 5])
@pytest.mark.parametrize("kind", ["sk-ssh-ed25519", "sk-ecdsa-sha2-nistp256"])
def test_signatures_of_hardware_keys_are_checked_as_by_ssh_keygen(kind, flags, tmp_path):
    line, signature = device_signature(kind, DATA, flags=flags)
    assert ssh_accepts(DATA, signature, line, ALICE, tmp_path)
    assert signers(line).check(DATA, signature, "x")[1].kind.endswith("-SK")
    refused(signers(line), DATA + b"#", signature)
    other, _ = device_signature(kind, DATA, application=b"ssh:other")
    refused(signers(other), DATA, signature)


@pytest.mark.parametrize("length", range(0, 300, 7))
def test_a_truncated_file_is_refused(key, signature, length):
    refused(signers(key.line()), DATA, signature[:length])


@pytest.mark.parametrize(
    "change",
    [
        lambda s: b"",
        lambda s: b"\n" + s,
        lambda s: s.replace(b"\n", b"\r\n"),
        lambda s: s + b"more\n",
        lambda s: s + s,
        lambda s: s.replace(b"SSH SIGNATURE", b"PGP SIGNATURE"),
        lambda s: s.replace(b"U1NIU0lH", b"U1NIU0lI"),
        lambda s: b"\xff" + s,
        lambda s: s + b"\n" * MAX_SIGNATURE,
    ],
)
def test_what_is_no_signature_file_is_refused(key, signature, change):
    error = refused(signers(key.line()), DATA, change(signature))
    assert "damaged, or is none" in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_of_a_byte_is_taken_and_errors_are_typed(keys, kind, tmp_path):
    """Whatever becomes of a signature file: refused by a typed error, or good for ssh, too."""
    key = keys[kind]
    check = signers(key.line())
    blob = base64.b64decode("".join(key.sign(DATA).decode().split("\n")[1:-2]))
    chance = random.Random(kind)
    for _ in range(400):
        changed = bytearray(blob)
        for _ in range(chance.choice([1, 1, 2, 5])):
            changed[chance.randrange(len(changed))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, 42])
        if chance.random() < 0.2:
            del changed[chance.randrange(len(changed)) :]
        text = base64.b64encode(changed).decode()
        file = f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n".encode()
        try:
            check.check(DATA, file, "x")
        except SignatureError:
            continue
        assert changed == blob or ssh_accepts(DATA, file, key.line(), ALICE, tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic_are_refused_by_a_typed_error(data):
    text = base64.b64encode(b"SSHSIG\0\0\0\1" + data).decode()
    file = f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n".encode()
    with pytest.raises(SignatureError):
        Signers(()).check(DATA, file, "x")


def hostile(name, *fields):
    return string(name) + b"".join(fields)


@pytest.mark.parametrize(
    "blob",
    [
        hostile(b"ssh-ed25519", string(b"short")),
        hostile(b"ssh-ed25519"),
        hostile(b"ssh-ed25519", string(bytes(32)), b"more"),
        hostile(b"ecdsa-sha2-nistp256", string(b"nistp384"), string(b"\4" + bytes(96))),
        hostile(b"ecdsa-sha2-nistp256", string(b"nistp256"), string(b"\4" + bytes(64))),
        hostile(b"ecdsa-sha2-nistp256", string(b"nistp256"), string(b"")),
        hostile(b"ecdsa-sha2-nistp256", string(b"nistp256"), string(b"\0")),
        hostile(b"ssh-rsa", mpint(2), mpint(1 << 2048)),
        hostile(b"ssh-rsa", mpint(1 << 4000), mpint((1 << 2047) + 1)),
        hostile(b"ssh-rsa", mpint(65537), mpint(1 << 40_000)),
        hostile(b"ssh-rsa", string(b"\xff"), mpint((1 << 2047) + 1)),
        hostile(b"ssh-rsa", string(b""), string(b"")),
        hostile(b"ssh-dss", string(b"1")),
        hostile(b"sk-ssh-ed25519@openssh.com", string(bytes(32))),
    ],
)
def test_keys_that_are_none_are_refused_even_where_they_are_allowed(blob):
    name = blob[4 : 4 + struct.unpack(">I", blob[:4])[0]]
    line = f"{ALICE} {name.decode()} {base64.b64encode(blob).decode()}\n"
    algorithms = [name, b"rsa-sha2-512"]
    for algorithm in algorithms:
        for raw in (b"", bytes(64), mpint(1) + mpint(1), string(b"\x80") + mpint(1)):
            for tail in (b"", bytes(5)):
                file = armoured(blob, string(algorithm) + string(raw) + tail)
                refused(signers(line), DATA, file)


def test_sha1_is_refused(keys):
    key = keys["rsa2048"]
    blob = base64.b64decode(key.public.split()[1])
    file = armoured(blob, string(b"ssh-rsa") + string(bytes(256)))
    assert "its algorithm is ssh-rsa" in refused(signers(key.line()), DATA, file).found


def test_without_cryptography_the_extra_is_named(key, signature, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    error = refused(signers(key.line()), DATA, signature)
    assert error.remedy == "pip install 'mlstate[sign]'"
